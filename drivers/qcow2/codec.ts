/**
 * Compressed clusters: raw deflate with a 12-bit window, or one zstd frame. Source: qcow2.txt, "Compressed Clusters
 * Descriptor"; RFC 1951; RFC 8878.
 *
 * 1. What is decompressed comes by whole sectors, so garbage follows the stream and is no error.
 * 2. A stream must fill the cluster; what it has beyond that is not looked at, as in QEMU. Output and memory are
 *    bounded by the cluster, whatever the stream says.
 */

import { BlockError } from "../../src/block/errors.ts";
import { deflate, inflateInto } from "../zlib-streams.ts";
import { type Inflater, openInflater } from "./inflate.ts";
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
 * The same for several clusters, which fill `output` in equal parts, on other threads where that can be: for a job
 * that has more under way. When it ends, however it does, nobody has `output` any more.
 */
export async function decompressInto(
  type: CompressionType,
  inputs: readonly Uint8Array[],
  output: Uint8Array,
): Promise<void> {
  await prepareCodec(type);
  if (type === "zstd" && (await zstd?.decompressInto?.(inputs, output))) return;
  const bytes = output.length / inputs.length;
  const ends = inputs.map(async (input, index) => {
    const part = output.subarray(index * bytes, (index + 1) * bytes);
    const isDone = type === "zlib" && (await inflateInto(input, part));
    if (!isDone) part.set(decompressNow(type, input, bytes));
  });
  for (const end of await Promise.allSettled(ends)) if (end.status === "rejected") throw end.reason;
}

/** `input` compressed, or undefined if that is not smaller than `input` itself.  @qemu qcow2_co_compress */
export async function compressAsync(
  type: CompressionType,
  input: Uint8Array,
): Promise<Uint8Array | undefined> {
  if (type === "zlib") return deflate(input);
  await prepareCodec(type);
  const output = await (zstd as Zstd).compress(input);
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
