/**
 * Zstandard by the system's libzstd, on the thread pool. Most Linux systems have it, because their package managers
 * need it; no package of npm offers it on threads without a compiler.
 */

import os from "node:os";
import { KeptPool } from "./kept-pool.ts";
import { type Call, type Koffi, loadKoffi } from "./posix-linux.ts";

/** Many blocks at a time. An answer of undefined: the input is broken, or the output too small. */
export interface LibZstd {
  /** One frame with all of `input`; gives its bytes. */
  readonly compress: (input: Uint8Array, output: Uint8Array, level: number) => Promise<number | undefined>;
  /** Of whole frames and nothing else; gives the bytes that they hold. */
  readonly decompress: (input: Uint8Array, output: Uint8Array) => Promise<number | undefined>;
}

/** Undefined where there is no such library, or none is wanted. */
export function openLibZstd(): LibZstd | undefined {
  if (process.env["BDRV_NO_FFI"] === "1" || process.platform !== "linux") return undefined;
  try {
    const koffi = loadKoffi();
    const lib = koffi.load("libzstd.so.1");
    // size_t, of which an error is one of the last 120 values: read as signed they are negative.
    const compress = lib.func("ZSTD_compressCCtx", "int64_t", [...BUFFERS, "int"]);
    const decompress = lib.func("ZSTD_decompressDCtx", "int64_t", BUFFERS);
    const createCompressor = lib.func("ZSTD_createCCtx", "int64_t", []);
    const createDecompressor = lib.func("ZSTD_createDCtx", "int64_t", []);
    const compressors = new KeptPool(MAX_COMPRESSORS, () => createCompressor());
    const decompressors = new KeptPool(MAX_DECOMPRESSORS, () => createDecompressor());
    return {
      compress: (input, output, level) =>
        compressors.use((context) => call(koffi, compress, context, input, output, [level])),
      decompress: (input, output) =>
        decompressors.use((context) => call(koffi, decompress, context, input, output, [])),
    };
  } catch {
    return undefined;
  }
}

/**
 * Contexts for compression, of some hundred KiB: one for each core, and one whose work waits in the pool. More would
 * push each other out of the cores' caches: 8 take 30 % more time than 3.
 */
const MAX_COMPRESSORS = os.availableParallelism() + 1;
/** Small ones, with work enough for the pool while this thread is busy. */
const MAX_DECOMPRESSORS = 8;

/** Context, output and its size, input and its size: pointers as numbers. */
const BUFFERS = ["int64_t", "int64_t", "int64_t", "int64_t", "int64_t"];

/** Buffers whose addresses other threads have. */
const inUse = new Set<readonly Uint8Array[]>();

function call(
  koffi: Koffi,
  fn: Call,
  context: number,
  input: Uint8Array,
  output: Uint8Array,
  more: readonly number[],
): Promise<number | undefined> {
  const buffers = [output, input];
  const places = buffers.flatMap((buffer) => [koffi.address(buffer), buffer.length]);
  inUse.add(buffers);
  return new Promise((resolve) => {
    fn.async(context, ...places, ...more, (error: Error | null, result: number) => {
      inUse.delete(buffers);
      resolve(error || result < 0 ? undefined : result);
    });
  });
}
