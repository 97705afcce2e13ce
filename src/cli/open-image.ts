/** Opens images from the command line's options, with qemu-img's words where that fails.  @qemu qemu-img.c: img_open */

import { BlockBackend } from "../block/backend.ts";
import { BlockError } from "../block/errors.ts";
import type { OpenEnvironment } from "../block/open.ts";
import { DEFAULT_FLAGS, type OpenFlags, parseCacheMode } from "../block/open-flags.ts";
import { type Options, parseKeyValues } from "../block/options.ts";
import { type CliContext, CommandError, ExitError } from "./command.ts";

export interface ImageOpenRequest {
  readonly filename: string;
  /** `filename` is `--image-opts` text. */
  readonly imageOpts: boolean;
  /** `-f`; undefined: the format is probed. */
  readonly format: string | undefined;
  /** What differs from a read-only open with the default cache mode. */
  readonly flags?: Partial<OpenFlags>;
  readonly writethrough?: boolean;
  readonly environment: OpenEnvironment;
}

/** The backend of an open image. A BlockError has "Could not open 'name': " before it. */
export async function openImage(request: ImageOpenRequest): Promise<BlockBackend> {
  const { filename, imageOpts, format, environment, writethrough = false } = request;
  let options: Options;
  if (imageOpts) {
    if (format !== undefined)
      throw new BlockError("EINVAL", "--image-opts and --format are mutually exclusive");
    options = parseKeyValues(filename, "file", environment.warn);
  } else options = new Map(format === undefined ? [] : [["driver", format]]);
  const flags = { ...DEFAULT_FLAGS, ...request.flags };
  try {
    const backend = await BlockBackend.open(
      { ...(imageOpts ? {} : { filename }), options, flags, environment },
      { writethrough },
    );
    if (flags.readOnly || !backend.node.readOnly) return backend;
    // By an option of its own, against what the command needs.
    await backend.close();
    throw new BlockError("EPERM", "Block node is read-only");
  } catch (error) {
    throw BlockError.wrap(`Could not open '${filename}'`, error);
  }
}

/** Opens an image, does the work, and closes it: see `thenClose`. */
export async function withImage<T>(
  request: Omit<ImageOpenRequest, "environment">,
  context: CliContext,
  work: (image: BlockBackend) => Promise<T>,
): Promise<T> {
  const image = await openImage({ ...request, environment: context.environment });
  return thenClose(image, context, () => work(image));
}

/**
 * Does the work and closes the image. What goes wrong is said before that: what the driver has to say while it closes
 * comes after, and that changes the exit code as little as in qemu-img.
 */
export async function thenClose<T>(
  image: BlockBackend,
  context: CliContext,
  work: () => Promise<T>,
): Promise<T> {
  const close = () =>
    image.close().catch((error: unknown) => {
      if (!(error instanceof BlockError)) throw error;
    });
  let result: T;
  try {
    result = await work();
  } catch (error) {
    try {
      throw new ExitError(context.fail(error));
    } finally {
      await close();
    }
  }
  await close();
  return result;
}

/** Flags for the value of `-T` (`kind` "source cache") or `-t`, where each command has its words.  @qemu bdrv_parse_cache_mode */
export function cacheFlags(
  name: string,
  kind: string,
  exitCode = 1,
): { readonly flags: Pick<OpenFlags, "direct" | "noFlush">; readonly writethrough: boolean } {
  const mode = parseCacheMode(name);
  if (!mode) throw new CommandError([`Invalid ${kind} option: ${name}`], exitCode);
  const { writethrough, ...flags } = mode;
  return { flags, writethrough };
}
