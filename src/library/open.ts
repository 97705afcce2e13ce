/** `open`: an image by its name or by typed options, for users of the library. */

import { fileURLToPath } from "node:url";
import { AioContext } from "../block/aio-context.ts";
import { BlockBackend } from "../block/backend.ts";
import { BlockError } from "../block/errors.ts";
import { Guard, type Limits } from "../block/guard.ts";
import { type OpenEnvironment, type OpenGate, openGate } from "../block/open.ts";
import { type CacheMode, DEFAULT_FLAGS, type OpenFlags, parseCacheMode } from "../block/open-flags.ts";
import { flattenOptions, type NestedOptions, type Options } from "../block/options.ts";
import { loadSnapshot } from "../jobs/convert.ts";
import type { DriverOptions } from "./driver-options.ts";

export interface OpenOptions {
  /** Name of the format; without it the format is probed, which a guest that wrote the image can steer. */
  readonly format?: string | undefined;
  /** Default: false. */
  readonly writable?: boolean | undefined;
  /** False: the backing file is left alone, and what lies in it reads as zeroes. Default: true. */
  readonly backing?: boolean | undefined;
  /** qemu-img's cache modes. Default: writeback. */
  readonly cache?: CacheMode | undefined;
  /** Whether discards reach the storage. Default: unmap, as in qemu-io. */
  readonly discard?: "ignore" | "unmap" | undefined;
  /** Whether data that is all zeroes is written as zeroes. Default: off. */
  readonly detectZeroes?: "off" | "on" | "unmap" | undefined;
  /** Others may have the image open, and even write to it. Only for reading. Default: false. */
  readonly forceShare?: boolean | undefined;
  /** Shows this internal snapshot, by its id or else its name, in place of the current state. Only for reading. */
  readonly snapshot?: string | undefined;
  /** Ends the wait: what was opened by then is closed again. */
  readonly signal?: AbortSignal | undefined;
  /** Asked for every file that the image names. Default: all are followed, as by qemu-img; see `denyAll`. */
  readonly gate?: OpenGate | undefined;
  /**
   * The image comes from untrusted hands: `format` must be given, files that it names are refused unless the gate
   * gives other nodes for them, symbolic links don't lead out of its directory, and limits hold (true: `DEFAULT_LIMITS`).
   * Default: false.
   */
  readonly untrusted?: boolean | Partial<Limits> | undefined;
  /**
   * Passphrases by the ids under which options name them (`"key-secret": "key0"`); text is taken as UTF-8.
   * qemu-img's `--object secret`.
   */
  readonly secrets?: Readonly<Record<string, string | Uint8Array>> | undefined;
  /** Gets the text of a warning. Default: `process.emitWarning`. */
  readonly onWarning?: ((message: string) => void) | undefined;
  /** Where the nodes live: images of one context can use each other's nodes by name. Default: a new one. */
  readonly context?: AioContext | undefined;
}

/** What of the options every job takes that opens something. */
export type Surroundings = Pick<OpenOptions, "gate" | "untrusted" | "onWarning" | "secrets">;

/** A gate for images from untrusted hands: refuses every file that an image names. */
export const denyAll: OpenGate = async ({ kind, filename }) => {
  throw new BlockError("EACCES", `The ${kind} '${filename}' that the image names must not be opened`);
};

/**
 * Opens an image. A string is a filename as qemu-img takes it: with a protocol's prefix, or `json:{...}`; options
 * say the same with types. Close it when done: `await using image = await open("disk.qcow2")`.
 *
 * Errors: BlockError, with qemu's words.
 */
export function open(image: string | URL | DriverOptions, options: OpenOptions = {}): Promise<BlockBackend> {
  return openWith(image, options, {});
}

/** As `open`; `extra` are flags that only jobs set. */
export async function openWith(
  image: string | URL | DriverOptions,
  options: OpenOptions,
  extra: Partial<OpenFlags>,
): Promise<BlockBackend> {
  const { signal } = options;
  signal?.throwIfAborted();
  const cache = parseCacheMode(options.cache ?? "writeback");
  if (!cache) throw new BlockError("EINVAL", `Invalid cache option: ${options.cache}`);
  const flags: OpenFlags = {
    ...DEFAULT_FLAGS,
    readOnly: !options.writable,
    noBacking: options.backing === false,
    forceShare: options.forceShare ?? false,
    direct: cache.direct,
    noFlush: cache.noFlush,
    unmap: options.discard !== "ignore",
    detectZeroes: options.detectZeroes ?? "off",
    ...extra,
  };
  const backend = await BlockBackend.open(
    { ...splitName(image, options.format), flags, environment: openEnvironment(options) },
    { writethrough: cache.writethrough },
    options.context ?? new AioContext("image"),
  );
  try {
    if (options.snapshot !== undefined) await loadSnapshot(backend, { idOrName: options.snapshot });
    signal?.throwIfAborted();
    return backend;
  } catch (error) {
    await backend.close();
    throw error;
  }
}

/** The surroundings that a job or `open` gives to the block layer, from a user's choices. */
export function openEnvironment({
  gate = openGate,
  untrusted = false,
  onWarning,
  secrets = {},
}: Surroundings): OpenEnvironment {
  const secret = (id: string) => {
    const data = Object.hasOwn(secrets, id) ? secrets[id] : undefined;
    return data === undefined ? undefined : { data: Buffer.from(data) };
  };
  const tell = onWarning ?? emitWarning;
  const warn = (message: string, hint?: string) => tell(hint === undefined ? message : `${message}\n${hint}`);
  // Lines for stderr that bring their own prefix: who gets warnings need not be told that it is one.
  const message = (line: string) => warn(line.replace(/^WARNING: /, ""));
  const guard = untrusted ? new Guard(untrusted === true ? {} : untrusted) : undefined;
  return { gate, guard, warn, message, secret };
}

function emitWarning(message: string): void {
  process.emitWarning(message, { type: "BlockWarning" });
}

function splitName(
  image: string | URL | DriverOptions,
  format: string | undefined,
): { readonly filename: string | undefined; readonly options: Options } {
  const isName = typeof image === "string" || image instanceof URL;
  // Every option is a scalar or nested options; an interface just has no index signature to say so.
  const options: Options = isName ? new Map() : flattenOptions(image as object as NestedOptions);
  if (format !== undefined) {
    if (options.has("driver"))
      throw new BlockError("EINVAL", "Cannot specify both 'driver' and 'format' options");
    options.set("driver", format);
  }
  if (!isName) return { filename: undefined, options };
  return { filename: typeof image === "string" ? image : fileURLToPath(image), options };
}
