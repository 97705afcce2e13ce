/** The image that a conversion makes: found out to be possible, created, opened, and taken away again if the conversion fails. */

import { BlockBackend } from "../block/backend.ts";
import { loadDriver } from "../block/driver.ts";
import { BlockError } from "../block/errors.ts";
import type { BlockNode } from "../block/node.ts";
import { findProtocol, type OpenEnvironment } from "../block/open.ts";
import { DEFAULT_FLAGS } from "../block/open-flags.ts";
import { type OptionScalar, type Options, type OptionTable, takeOptions } from "../block/options.ts";
import { checkOptions, createImage, createOptionTable, setBackingOptions } from "./create.ts";
import { type FileIdentity, identifyFile } from "./staging.ts";

/** An image that is to be created. */
export interface NewImage {
  readonly filename: string;
  /** Default: raw. */
  readonly format?: string | undefined;
  /** The driver's create options by their names, as values or as text ("64k", "on"). The size is the sources'. */
  readonly options?: Readonly<Record<string, OptionScalar>> | undefined;
  /** Goes before the option `backing_file`. What a source leaves to its own backing file is left to this one. */
  readonly backingFile?: string | undefined;
  /** Needed with a backing file; before the option `backing_fmt`. */
  readonly backingFormat?: string | undefined;
}

/** A target that can be created, as far as that is known without touching anything. */
export interface TargetPlan {
  readonly filename: string;
  readonly format: string;
  /** Of the format and of the protocol, checked; with `size` in bytes. */
  readonly options: Options;
  readonly hasBacking: boolean;
}

export interface TargetChecks {
  readonly compress: boolean;
  readonly sourceCount: number;
  readonly sizeBytes: number;
}

/** Finds the drivers and reads the options; refuses what can't be done before a file is touched. */
export async function planTarget(image: NewImage, checks: TargetChecks): Promise<TargetPlan> {
  const { filename, format = "raw" } = image;
  const table = await createOptionTable(format, filename);
  const options: Options = new Map(Object.entries(image.options ?? {}));
  checkOptions(table, options);
  setBackingOptions(table, options, format, image);
  checkBacking(options, checks.sourceCount);
  if (checks.compress) await checkCompression(format, table, options);
  options.set("size", checks.sizeBytes);
  return { filename, format, options, hasBacking: options.has("backing_file") };
}

function checkBacking(options: Options, sourceCount: number): void {
  if (!options.has("backing_file")) return;
  if (sourceCount > 1)
    throw new BlockError(
      "EINVAL",
      "Having a backing file for the target makes no sense when concatenating multiple input images",
    );
  if (!options.has("backing_fmt"))
    throw new BlockError("EINVAL", "Use of backing file requires explicit backing format");
}

async function checkCompression(format: string, table: OptionTable, options: Options): Promise<void> {
  const driver = await loadDriver(format);
  if (driver?.kind !== "format" || !driver.supportsCompression)
    throw new BlockError("ENOTSUP", "Compression not supported for this file format");
  const values: Readonly<Record<string, unknown>> = takeOptions(table, new Map(options));
  if (values["encryption"] === true || values["encrypt.format"] !== undefined)
    throw new BlockError("ENOTSUP", "Compression and encryption not supported at the same time");
  if ((values["preallocation"] ?? "off") !== "off")
    throw new BlockError("ENOTSUP", "Compression and preallocation not supported at the same time");
}

/** Throws if the target is a file that is read, in the words of the lock that qemu-img fails to get. */
export function refuseTargetOf(
  sources: readonly BlockBackend[],
  filename: string,
  wrap: (error: BlockError) => BlockError,
): void {
  const protocol = findProtocol(filename);
  if (protocol.formatName !== "file") return;
  const before = identifyFile(String(protocol.parseFilename?.(filename).get("filename") ?? filename));
  if (!before) return;
  for (const { node } of sources)
    for (const file of hostFiles(node, true))
      if (file.dev === before.dev && file.ino === before.ino) throw wrap(lockedError(before.path));
}

/** Throws if a target that exists is also read by the conversion. */
export function refuseSharedFiles(
  sources: readonly BlockBackend[],
  target: BlockBackend,
  name: string,
): void {
  const written = hostFiles(target.node, false);
  for (const { node } of sources) {
    for (const file of hostFiles(node, true)) {
      const same = written.find(({ dev, ino }) => dev === file.dev && ino === file.ino);
      if (same) throw BlockError.wrap(`Could not open '${name}'`, lockedError(same.path));
    }
  }
}

function lockedError(path: string): BlockError {
  return new BlockError("EAGAIN", 'Failed to get "write" lock', {
    hint: `Is another process using the image [${path}]?`,
  });
}

/** The regular files that a node stands on. */
export function hostFiles(node: BlockNode, withBacking: boolean): FileIdentity[] {
  if (node.driver.kind === "protocol" && node.driver.formatName === "file") {
    const file = identifyFile(node.exactFilename);
    return file ? [file] : [];
  }
  return [...node.children.values()]
    .filter((edge) => withBacking || !edge.role.cow)
    .flatMap((edge) => hostFiles(edge.node, withBacking));
}

/** Creates the image of a plan. Its backing file is opened with the image itself, not before. */
export async function createTarget(plan: TargetPlan, environment: OpenEnvironment): Promise<void> {
  const { filename, format, options } = plan;
  try {
    await createImage({ filename, format, options, unsafeBacking: true, environment });
  } catch (error) {
    // What `create` makes of a file that gets too large is not said here.
    const isTooLarge = error instanceof BlockError && error.errno === "EFBIG" && error.cause !== undefined;
    throw BlockError.wrap(`${filename}: error while converting ${format}`, isTooLarge ? error.cause : error);
  }
}

/** Opens what was created, to be filled. */
export async function openTarget(
  plan: TargetPlan,
  { writethrough, direct, noFlush }: { writethrough: boolean; direct: boolean; noFlush: boolean },
  unmap: boolean,
  environment: OpenEnvironment,
): Promise<BlockBackend> {
  const flags = { ...DEFAULT_FLAGS, readOnly: false, unmap, direct, noFlush };
  const options: Options = new Map([["driver", plan.format]]);
  // An encrypted image needs its secret to be opened as well.  @qemu img_add_key_secrets
  for (const [key, value] of plan.options)
    if (/^(encrypt\..*)?key-secret$/.test(key)) options.set(key, value);
  try {
    return await BlockBackend.open(
      { filename: plan.filename, options, flags, environment },
      { writethrough },
    );
  } catch (error) {
    throw BlockError.wrap(`Could not open '${plan.filename}'`, error);
  }
}
