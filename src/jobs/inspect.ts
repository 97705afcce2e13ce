/**
 * What a service wants to know of an image before it takes it: format, features, every file that it names, and whether
 * it is safe to open. Nothing that the image names is opened, and the guard's limits hold.
 */

import { BlockBackend } from "../block/backend.ts";
import type { CheckResult, InfoValue } from "../block/driver.ts";
import { BlockError } from "../block/errors.ts";
import { isAbsolute, protocolPrefix } from "../block/filename.ts";
import { Guard } from "../block/guard.ts";
import type { NamedReference, OpenEnvironment } from "../block/open.ts";
import { DEFAULT_FLAGS, type OpenFlags } from "../block/open-flags.ts";
import { isJsonFilename, type Options } from "../block/options.ts";
import { matchFormats, PROBE_BYTES } from "../block/probe.ts";
import { MAX_LENGTH } from "../block/units.ts";
import { checkImage } from "./check.ts";
import { imageInfo } from "./info.ts";

/** Something about an image that a person would want to know. */
export interface Anomaly {
  /** Stable, for programs. */
  readonly code:
    | "unreadable"
    | "over-limit"
    | "ambiguous-format"
    | "external-reference"
    | "odd-name"
    | "corrupt"
    | "leaks"
    | "dirty"
    | "expansion"
    | "trailing-data"
    | "snapshots"
    | "warning";
  /** A reason not to open it. */
  readonly unsafe: boolean;
  readonly message: string;
}

export interface Inspection {
  readonly filename: string;
  /** The one that was told, or that its first bytes say. */
  readonly format: string;
  /** All formats that would take the file for theirs, by its start or its end. */
  readonly formats: readonly string[];
  readonly fileBytes: number;
  /** This and what follows is there if the image could be opened. */
  readonly virtualBytes?: number | undefined;
  readonly clusterBytes?: number | undefined;
  readonly encrypted?: boolean | undefined;
  readonly snapshots?: number | undefined;
  /** As `info` has it. */
  readonly features?: { readonly [key: string]: InfoValue } | undefined;
  readonly references: readonly NamedReference[];
  /** Undefined: the format has nothing to check, or it can't be. */
  readonly check?: CheckResult | undefined;
  readonly anomalies: readonly Anomaly[];
  readonly safe: boolean;
}

export interface InspectOptions {
  readonly filename: string;
  /** Default: what the file's first bytes say. */
  readonly format?: string | undefined;
  /** Its gate is not asked: in place of all that the image names there are zeroes. */
  readonly environment: OpenEnvironment;
  readonly signal?: AbortSignal | undefined;
}

/** BlockError if the file itself can't be read; whatever is wrong with the image in it is an anomaly. */
export async function inspectImage(options: InspectOptions): Promise<Inspection> {
  const { filename, environment, signal } = options;
  if (isJsonFilename(filename)) throw new BlockError("EINVAL", "The name of a file is expected");
  const finds = new Finds(environment);
  const { fileBytes, formats, guessed } = await lookAtFile(filename, finds.environment);
  const format = options.format ?? guessed;
  for (const other of formats)
    if (other !== format) finds.unsafe("ambiguous-format", `Others may take the image for ${other}`);
  const image: Image = { filename, format, fileBytes, signal };
  const details = await describe(image, finds);
  const check = details && (await look(image, finds, details.clusterBytes));
  for (const reference of finds.references) judgeReference(reference, finds);
  return {
    filename,
    format,
    formats,
    fileBytes,
    ...details,
    references: finds.references,
    check,
    anomalies: finds.anomalies,
    safe: !finds.anomalies.some(({ unsafe }) => unsafe),
  };
}

interface Image {
  readonly filename: string;
  readonly format: string;
  readonly fileBytes: number;
  readonly signal: AbortSignal | undefined;
}

/** What has been found so far, and the environment that finds it. */
class Finds {
  readonly references: NamedReference[] = [];
  readonly anomalies: Anomaly[] = [];
  readonly environment: OpenEnvironment;

  constructor(base: OpenEnvironment) {
    const note = (reference: NamedReference) => {
      const isKnown = ({ kind, filename }: NamedReference) =>
        kind === reference.kind && filename === reference.filename;
      if (!this.references.some(isKnown)) this.references.push(reference);
    };
    this.environment = {
      ...base,
      guard: base.guard ?? new Guard(),
      onReference: note,
      gate: async ({ kind, filename }) => {
        // A driver that told of its references has told of this one under the name that the image has for it.
        if (!this.references.some((each) => each.kind === kind)) note({ kind, filename });
        return STAND_IN;
      },
      warn: (message) => this.note("warning", message),
      message: (line) => this.note("warning", line),
    };
  }

  unsafe(code: Anomaly["code"], message: string): void {
    this.#add({ code, unsafe: true, message });
  }

  note(code: Anomaly["code"], message: string): void {
    this.#add({ code, unsafe: false, message });
  }

  /** What kept the image from being opened or read. */
  failure(error: unknown): void {
    if (!(error instanceof BlockError)) throw error;
    const isLimit = error.errno === "EFBIG" || error.errno === "ETIMEDOUT";
    this.unsafe(isLimit ? "over-limit" : "unreadable", error.message);
  }

  /** The image is opened twice. */
  #add(anomaly: Anomaly): void {
    if (!this.anomalies.some(({ message }) => message === anomaly.message)) this.anomalies.push(anomaly);
  }
}

/** In place of a file that the image names. */
const STAND_IN = { driver: "null-co", size: MAX_LENGTH, "read-zeroes": true };

/** Which formats the file has the marks of: at its start, and at its end, where some have theirs. */
async function lookAtFile(
  filename: string,
  environment: OpenEnvironment,
): Promise<{ fileBytes: number; formats: string[]; guessed: string }> {
  const file = await BlockBackend.open({
    filename,
    options: new Map(),
    flags: DEFAULT_FLAGS,
    environment,
    protocol: true,
  });
  try {
    // Not in whole sectors.
    const fileBytes = await file.run(
      async (co, { node }) => (await node.ops.getLength?.(co)) ?? node.getLength(co),
    );
    const bytes = Math.min(fileBytes, PROBE_BYTES);
    const edge = (offset: number) => file.run((co, root) => root.preadBytes(co, offset, bytes));
    const atStart = matchFormats(await edge(0), filename);
    const atEnd = matchFormats(await edge(fileBytes - bytes), "");
    const marked = [...atStart, ...atEnd].filter(({ score }) => score > RAW_SCORE);
    return {
      fileBytes,
      formats: [...new Set(marked.map(({ formatName }) => formatName))],
      guessed: atStart[0]?.formatName ?? "raw",
    };
  } finally {
    await file.close();
  }
}

/** What any file is worth to the raw format. */
const RAW_SCORE = 1;

async function withImage<T>(
  { filename, format }: Image,
  { environment }: Finds,
  flags: Partial<OpenFlags>,
  work: (image: BlockBackend) => Promise<T>,
): Promise<T> {
  const options: Options = new Map([["driver", format]]);
  const image = await BlockBackend.open({
    filename,
    options,
    flags: { ...DEFAULT_FLAGS, noBacking: true, noIo: true, ...flags },
    environment,
  });
  try {
    return await work(image);
  } finally {
    await image.close();
  }
}

/** What the image says of itself; undefined if it can't be opened. */
async function describe(image: Image, finds: Finds) {
  try {
    return await withImage(image, finds, {}, async (opened) => {
      const { virtualBytes, clusterBytes, encrypted, snapshots, specific, dirty, ...backing } =
        await imageInfo(opened);
      if (dirty) finds.note("dirty", "The image was not closed properly");
      if (specific?.data["corrupt"] === true) finds.unsafe("corrupt", "The image is marked as corrupt");
      if (snapshots.length > 0)
        finds.note(
          "snapshots",
          `The image holds ${snapshots.length} internal snapshots, which may hold other data`,
        );
      if (backing.backingFilename !== undefined && backing.backingFormat === undefined)
        finds.unsafe("ambiguous-format", "The format of the backing file is not told: others may guess it");
      return { virtualBytes, clusterBytes, encrypted, snapshots: snapshots.length, features: specific?.data };
    });
  } catch (error) {
    finds.failure(error);
    return undefined;
  }
}

/** Lines of a check that are kept. */
const MAX_LINES = 20;

/** So much more data than there are bytes in the file is worth a word. */
const NOTABLE_EXPANSION = 100;

async function look(
  image: Image,
  finds: Finds,
  clusterBytes: number | undefined,
): Promise<CheckResult | undefined> {
  const lines: string[] = [];
  const report = (line: string) => {
    // They may be millions.
    finds.environment.guard?.checkTime();
    if (lines.length < MAX_LINES) lines.push(line);
  };
  try {
    return await withImage(image, finds, { check: true }, async (opened) => {
      if (!opened.node.ops.check) return undefined;
      const result = await checkImage(opened, { fixLeaks: false, fixErrors: false, report }, image.signal);
      judgeCheck(result, image, finds, clusterBytes ?? 0, lines);
      return result;
    });
  } catch (error) {
    finds.failure(error);
    return undefined;
  }
}

function judgeCheck(
  result: CheckResult,
  { fileBytes }: Image,
  finds: Finds,
  clusterBytes: number,
  lines: readonly string[],
): void {
  const { corruptions, checkErrors, leaks, imageEndOffset, allocatedClusters = 0 } = result;
  if (corruptions > 0 || checkErrors > 0)
    finds.unsafe(
      "corrupt",
      [`The check found ${corruptions} errors, and ${checkErrors} of its own`, ...lines].join("\n"),
    );
  if (leaks > 0) finds.note("leaks", `${leaks} clusters are not in use`);
  if (imageEndOffset > 0 && fileBytes - imageEndOffset >= Math.max(clusterBytes, 1))
    finds.note("trailing-data", `${fileBytes - imageEndOffset} bytes lie behind the end of the image`);
  const allocatedBytes = allocatedClusters * clusterBytes;
  if (allocatedBytes > fileBytes * NOTABLE_EXPANSION)
    finds.note("expansion", `${allocatedBytes} bytes of data come out of a file of ${fileBytes} bytes`);
}

function judgeReference({ kind, filename, format }: NamedReference, finds: Finds): void {
  const as = format === undefined ? "" : ` (${format})`;
  finds.unsafe("external-reference", `The image names the ${kind} '${filename}'${as}`);
  if (isJsonFilename(filename))
    finds.unsafe("odd-name", `The ${kind} is a list of options, which may name anything`);
  else if (protocolPrefix(filename) !== undefined)
    finds.unsafe("odd-name", `The ${kind} has a protocol: '${protocolPrefix(filename)}'`);
  else if (isAbsolute(filename)) finds.unsafe("odd-name", `The ${kind} is an absolute name`);
  else if (filename.split("/").includes(".."))
    finds.unsafe("odd-name", `The ${kind} is in another directory`);
  if (/\p{Cc}/u.test(filename)) finds.unsafe("odd-name", `The name of the ${kind} has control characters`);
}
