/**
 * Compressed clusters: raw deflate with a 12-bit window, or one zstd frame. Source: qcow2.txt, "Compressed Clusters
 * Descriptor"; RFC 1951; RFC 8878.
 *
 * 1. What is decompressed comes by whole sectors, so garbage follows the stream and is no error.
 * 2. A stream must fill the cluster; what it has beyond that is not looked at, as in QEMU. Output and memory are
 *    bounded by the cluster, whatever the stream says.
 */

import { BlockError } from "../../src/block/errors.ts";
import { type Inflater, openInflater, zlib } from "./inflate.ts";
import type { CompressionType } from "./state.ts";
import { openZstd, type Zstd } from "./zstd.ts";

/** Loads what a type needs, so that `decompressNow` can be called; a second call costs nothing. */
export async function prepareCodec(type: CompressionType): Promise<void> {
  if (type === "zstd") zstd ??= await openZstd(loadNative);
  else inflater ??= openInflater(loadNative);
}

/**
 * The first `outputBytes` of what `input` holds, with no wait: for a read that needs this one cluster.
 * Throws EIO for a broken stream and for one that ends early. `prepareCodec` must have been awaited for zstd.
 */
export function decompressNow(type: CompressionType, input: Uint8Array, outputBytes: number): Uint8Array {
  if (type === "zlib") {
    inflater ??= openInflater(loadNative);
    return checked(inflater.inflate(input, outputBytes));
  }
  if (!zstd) throw new BlockError("EIO", "The zstd codec is not loaded");
  return checked(zstd.decompress(input, outputBytes));
}

/**
 * The same on another thread where that can be: for a job that has several clusters under way. Measured with zlib:
 * the CPU time a cluster is that of `decompressNow` within a tenth, so every free core is a gain. zstd has no thread of
 * its own to go to: it inflates faster than a thread could be asked.
 */
export async function decompressAsync(
  type: CompressionType,
  input: Uint8Array,
  outputBytes: number,
): Promise<Uint8Array> {
  await prepareCodec(type);
  if (type === "zstd") return decompressNow(type, input, outputBytes);
  const output = await inflateAsync(input, outputBytes);
  return output?.length === outputBytes ? output : decompressNow(type, input, outputBytes);
}

/** `input` compressed, or undefined if that is not smaller than `input` itself.  @qemu qcow2_co_compress */
export async function compressAsync(
  type: CompressionType,
  input: Uint8Array,
): Promise<Uint8Array | undefined> {
  let output: Uint8Array;
  if (type === "zstd") {
    await prepareCodec(type);
    output = await (zstd as Zstd).compress(input);
  } else {
    output = await deflateAsync(input);
  }
  return output.length < input.length ? output : undefined;
}

/** Forgets what is loaded; tests switch the native codecs off and on (environment variable BDRV_NO_NATIVE=1). */
export function resetCodecs(): void {
  inflater = undefined;
  zstd = undefined;
}

let inflater: Inflater | undefined;
let zstd: Zstd | undefined;

/** An optional dependency: undefined where it is missing or was built for another node. */
function loadNative(name: string): unknown {
  if (process.env["BDRV_NO_NATIVE"] === "1") return undefined;
  try {
    const { createRequire } = process.getBuiltinModule("node:module");
    return createRequire(import.meta.filename)(name);
  } catch {
    return undefined;
  }
}

function checked(output: Uint8Array | undefined): Uint8Array {
  if (!output) throw new BlockError("EIO");
  return output;
}

/** Undefined for a broken stream, and for one that holds more than asked: node reports that as an error. */
function inflateAsync(input: Uint8Array, outputBytes: number): Promise<Uint8Array | undefined> {
  const options = {
    chunkSize: Math.max(outputBytes, 64),
    maxOutputLength: outputBytes,
    finishFlush: zlib().constants.Z_SYNC_FLUSH,
  };
  return new Promise((resolve) => {
    zlib().inflateRaw(input, options, (error, output) => resolve(error ? undefined : output));
  });
}

/** Readers of the format have a 12-bit window, so a writer must not refer back further. */
function deflateAsync(input: Uint8Array): Promise<Uint8Array> {
  const options = { windowBits: 12, memLevel: 9, chunkSize: Math.max(input.length, 64) };
  return new Promise((resolve, reject) => {
    zlib().deflateRaw(input, options, (error, output) =>
      error ? reject(new BlockError("EIO", undefined, { cause: error })) : resolve(output),
    );
  });
}
