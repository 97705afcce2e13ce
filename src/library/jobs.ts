/** The jobs as users of the library call them: over images that are open, or that are named and opened for the job. */

import { fileURLToPath } from "node:url";
import { BlockBackend } from "../block/backend.ts";
import type { CheckResult, MeasureResult, Prealloc } from "../block/driver.ts";
import { BlockError } from "../block/errors.ts";
import { type CacheMode, parseCacheMode } from "../block/open-flags.ts";
import type { OptionScalar } from "../block/options.ts";
import { amendImage } from "../jobs/amend.ts";
import { repairImage } from "../jobs/check.ts";
import { type CommitOptions, commitImage } from "../jobs/commit.ts";
import { CompareError, type CompareResult, compareImages } from "../jobs/compare.ts";
import { type CopyOptions, convert as convertImages } from "../jobs/convert.ts";
import type { BitmapOptions } from "../jobs/convert-bitmaps.ts";
import { createImage } from "../jobs/create.ts";
import { type ImageInfo, imageInfo } from "../jobs/info.ts";
import { type Inspection, inspectImage } from "../jobs/inspect.ts";
import { type MapEntry, type MapRange, mapImage } from "../jobs/map.ts";
import { measureImage } from "../jobs/measure.ts";
import { rebaseImage } from "../jobs/rebase.ts";
import { resizeImage } from "../jobs/resize.ts";
import type { CreatableFormat, DriverOptions, FormatOptions } from "./driver-options.ts";
import { type OpenOptions, openEnvironment, openWith, type Surroundings } from "./open.ts";

type ImageName = string | URL | DriverOptions;

/** An image for a job. One that is open stays open; another is opened with the job's options, and closed again. */
export type ImageSource = BlockBackend | ImageName;

/** How a job opens the images that are not open yet. The signal ends the job as well. */
export type JobOptions = Omit<OpenOptions, "writable" | "discard" | "detectZeroes">;

async function withImage<T>(
  image: ImageSource,
  open: (name: ImageName) => Promise<BlockBackend>,
  fn: (image: BlockBackend) => Promise<T>,
): Promise<T> {
  if (image instanceof BlockBackend) return fn(image);
  const opened = await open(image);
  let result: T;
  try {
    result = await fn(opened);
  } catch (error) {
    // The job's own error says more than one of closing.
    await opened.close().catch(() => {});
    throw error;
  }
  await opened.close();
  return result;
}

/** What an image says of itself. Its backing file need not be there. */
export function info(image: ImageSource, options: JobOptions = {}): Promise<ImageInfo> {
  const open = (name: ImageName) => openWith(name, { backing: false, ...options }, { noIo: true });
  return withImage(image, open, imageInfo);
}

export type InspectOptions = Pick<OpenOptions, "format" | "untrusted" | "onWarning" | "signal">;

/**
 * Whether an image from untrusted hands is safe to open, and why not. Nothing that it names is opened; `untrusted`
 * may set other limits. BlockError if the file can't be read.
 */
export function inspect(filename: string | URL, options: InspectOptions = {}): Promise<Inspection> {
  const { format, signal } = options;
  return inspectImage({
    filename: plainName(filename),
    format,
    signal,
    environment: openEnvironment(options),
  });
}

/**
 * The allocation map: runs of guest bytes with where they come from, in order and without gaps.
 *
 *     for await (const { start, bytes, data } of map("disk.qcow2")) ...
 */
export async function* map(
  image: ImageSource,
  options: JobOptions & MapRange = {},
): AsyncGenerator<MapEntry, void, undefined> {
  const opened = image instanceof BlockBackend ? undefined : await openWith(image, options, {});
  try {
    yield* mapImage(opened ?? (image as BlockBackend), options);
  } finally {
    await opened?.close();
  }
}

export interface CompareOptions extends JobOptions {
  /** Lengths and block status must be the same too. */
  readonly strict?: boolean | undefined;
  /** Gets the bytes done, and how many there are. */
  readonly onProgress?: ((doneBytes: number, totalBytes: number) => void) | undefined;
}

/** Whether two images show the same to the guest; where one is longer, the rest of it must be zeroes. */
export function compare(
  first: ImageSource,
  second: ImageSource,
  options: CompareOptions = {},
): Promise<CompareResult> {
  const { strict = false, onProgress, signal } = options;
  const open = (name: ImageName) => openWith(name, options, {});
  return withImage(first, open, (one) =>
    withImage(second, open, async (two) => {
      try {
        const given = { strict, signal, ...(onProgress && { onProgress }) };
        return await compareImages({ first: one, second: two, ...given });
      } catch (error) {
        if (!(error instanceof CompareError)) throw error;
        const { cause, offset } = error;
        const { filename } = (error.image === "first" ? one : two).node;
        throw BlockError.wrap(`Error while reading offset ${offset} of ${filename}`, cause);
      }
    }),
  );
}

export interface CheckImageOptions extends JobOptions {
  /** Gets each finding as a line, as qemu-img prints it. */
  readonly onFinding?: ((line: string) => void) | undefined;
  /** What is put right: space that is lost ("leaks"), or whatever can be. An image that is open must be writable. */
  readonly repair?: "leaks" | "all" | undefined;
}

/** Looks for errors in an image's tables, and repairs them. ENOTSUP: its format has nothing to check. */
export function check(image: ImageSource, options: CheckImageOptions = {}): Promise<CheckResult> {
  const { onFinding = () => {}, repair, signal } = options;
  const open = (name: ImageName) =>
    openWith(name, { ...options, writable: repair !== undefined }, { check: true });
  return withImage(image, open, (opened) =>
    repairImage(
      opened,
      { fixLeaks: repair !== undefined, fixErrors: repair === "all", report: onFinding },
      signal,
    ),
  );
}

/** A backing file by the name that the image is to keep: relative to the image. */
export interface BackingReference {
  readonly filename: string;
  readonly format: CreatableFormat | (string & {});
}

interface NewImageCommon {
  readonly backing?: BackingReference | undefined;
}

/** A new image: its format with that format's own options, and its backing file. */
export type NewImageOptions = FormatOptions & NewImageCommon;

export type CreateOptions = NewImageOptions & {
  /** Bytes; by default the backing file's. */
  readonly size?: number | undefined;
  /** The backing file is not looked at; a size is needed then. */
  readonly unsafeBacking?: boolean | undefined;
} & Surroundings;

/** Makes an image; what was in the file before is gone. BlockError with qemu-img's words. */
export async function create(filename: string | URL, options: CreateOptions): Promise<void> {
  const { format, size, backing, unsafeBacking = false } = options;
  await createImage({
    filename: plainName(filename),
    format,
    size,
    backingFile: backing?.filename,
    backingFormat: backing?.format,
    unsafeBacking,
    options: new Map(Object.entries(options.options ?? {})),
    environment: openEnvironment(options),
  });
}

/**
 * How many bytes a new image would take: with the content of `source`, or empty and of so many bytes. ENOTSUP: its
 * format does not say.
 *
 *     const { required } = await measure("disk.raw", { format: "qcow2" });
 */
export function measure(
  source: ImageSource | number,
  image: NewImageOptions,
  options: JobOptions = {},
): Promise<MeasureResult> {
  const { format, backing } = image;
  const given = new Map(Object.entries<OptionScalar>(image.options ?? {}));
  if (backing) given.set("backing_file", backing.filename).set("backing_fmt", backing.format);
  const request = { format, options: given, environment: openEnvironment(options), signal: options.signal };
  if (typeof source === "number") return measureImage({ ...request, source });
  const open = (name: ImageName) => openWith(name, options, {});
  return withImage(source, open, (opened) => measureImage({ ...request, source: opened }));
}

/** Where `convert` writes to: an image that is open and long enough, or one that it makes. */
export type ConvertTarget = BlockBackend | (NewImageOptions & { readonly filename: string | URL });

export interface ConvertOptions
  extends CopyOptions,
    BitmapOptions,
    Pick<Surroundings, "gate" | "untrusted" | "secrets"> {
  /** How sources are opened that are not open yet. */
  readonly source?: Omit<JobOptions, "gate" | "untrusted" | "onWarning" | "signal"> | undefined;
  /** Default: unsafe, for a half-written image is of no use anyway. */
  readonly cache?: CacheMode | undefined;
}

/**
 * Copies one image, or several laid end to end. Zeroes stay zeroes, holes stay holes. If it fails or is aborted, no
 * file is left that passes for the new image.
 */
export async function convert(
  source: ImageSource | readonly ImageSource[],
  target: ConvertTarget,
  options: ConvertOptions = {},
): Promise<void> {
  const environment = openEnvironment(options);
  const { signal } = options;
  const open = (name: ImageName) =>
    openWith(
      name,
      {
        secrets: options.secrets,
        ...options.source,
        gate: environment.gate,
        untrusted: options.untrusted,
        onWarning: environment.warn,
        signal,
      },
      { noShare: true },
    );
  const copy = (images: readonly BlockBackend[]) =>
    convertImages(images, convertTarget(target), { ...options, onWarning: environment.warn, environment });
  const openNext = (left: readonly ImageSource[], images: readonly BlockBackend[]): Promise<void> => {
    const [next, ...rest] = left;
    if (next === undefined) return copy(images);
    return withImage(next, open, (image) => openNext(rest, [...images, image]));
  };
  await openNext(Array.isArray(source) ? source : [source as ImageSource], []);
}

function convertTarget(target: ConvertTarget): Parameters<typeof convertImages>[1] {
  if (target instanceof BlockBackend) return target;
  const { filename, format, options, backing } = target;
  return {
    filename: plainName(filename),
    format,
    options,
    backingFile: backing?.filename,
    backingFormat: backing?.format,
  };
}

/**
 * Copies what an overlay has into its backing file, or one further down, which grows if it is shorter; then the
 * overlay is empty. An image that is open must be writable. If it fails or is aborted, the overlay reads as before.
 */
export function commit(image: ImageSource, options: JobOptions & CommitOptions = {}): Promise<void> {
  const open = (name: ImageName) => openWith(name, options, { readOnly: false });
  return withImage(image, open, (opened) => commitImage(opened, options));
}

export interface RebaseOptions extends JobOptions {
  /** Only the name is changed: old and new backing file read the same, or need not be there. */
  readonly unsafe?: boolean | undefined;
  /** How the new backing file is opened. Default: writeback. */
  readonly sourceCache?: CacheMode | undefined;
  /** Called with bytes done, and how many there are, after each piece (2 MiB at most) that had to be looked at. */
  readonly onProgress?: ((doneBytes: number, totalBytes: number) => void) | undefined;
}

/**
 * Gives an image another backing file, or none (undefined), and keeps what it reads as: what the new one has not is
 * copied into the image. An image that is open must be writable; it goes on over its old backing file until it is closed.
 */
export async function rebase(
  image: ImageSource,
  backing: BackingReference | undefined,
  options: RebaseOptions = {},
): Promise<void> {
  const { unsafe, sourceCache = "writeback", onProgress, signal } = options;
  const cache = parseCacheMode(sourceCache);
  if (!cache) throw new BlockError("EINVAL", `Invalid source cache option: ${sourceCache}`);
  const open = (name: ImageName) =>
    openWith(name, options, { readOnly: false, ...(unsafe && { noBacking: true }) });
  return withImage(image, open, (opened) =>
    rebaseImage(opened, {
      backingFile: backing?.filename,
      backingFormat: backing?.format,
      unsafe,
      sourceFlags: { direct: cache.direct, noFlush: cache.noFlush, forceShare: options.forceShare ?? false },
      environment: openEnvironment(options),
      onProgress,
      signal,
    }),
  );
}

export interface ResizeOptions extends JobOptions {
  /** How far new space is set aside. Default: off. */
  readonly preallocation?: Prealloc | undefined;
  /** The image may become smaller: what is behind its new end is lost. Else that is EINVAL. */
  readonly shrink?: boolean | undefined;
}

/** Makes an image `bytes` long, a multiple of 512 for qcow2. An image that is open must be writable. */
export function resize(image: ImageSource, bytes: number, options: ResizeOptions = {}): Promise<void> {
  const { preallocation = "off", shrink = false, signal } = options;
  const open = (name: ImageName) => openWith(name, options, { readOnly: false });
  return withImage(image, open, (opened) =>
    resizeImage(opened, { newSize: () => bytes, preallocation, shrink, signal }),
  );
}

export interface AmendOptions extends JobOptions {
  /** Also what makes old programs unable to read the image, or gives up its last key. */
  readonly force?: boolean | undefined;
  /** Gets how far the work has come, in units of its own, which may change on the way. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
}

/**
 * Changes options of an image that exists, those that `qemu-img amend -o help` lists:
 * `amend("disk.qcow2", { compat: "0.10" })`. An image that is open must be writable. ENOTSUP: its format has none.
 */
export function amend(
  image: ImageSource,
  changes: Readonly<Record<string, OptionScalar>>,
  options: AmendOptions = {},
): Promise<void> {
  const { force = false, onProgress = () => {}, signal } = options;
  const open = (name: ImageName) => openWith(name, options, { readOnly: false });
  return withImage(image, open, (opened) =>
    amendImage(opened, {
      options: new Map(Object.entries(changes)),
      force,
      environment: openEnvironment(options),
      onProgress,
      signal,
    }),
  );
}

function plainName(filename: string | URL): string {
  return typeof filename === "string" ? filename : fileURLToPath(filename);
}
