/** Reading compressed clusters, through a small cache.  @qemu qcow2_co_preadv_compressed */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { type IoVector, iovLength, iovWrite } from "../../src/block/iov.ts";
import { MiB } from "../../src/block/units.ts";
import { decompressAsync, decompressNow } from "./codec.ts";
import { parseCompressed } from "./entries.ts";
import type { Mapping } from "./mapping.ts";
import type { Qcow2State } from "./state.ts";

/** Memory for clusters that have been decompressed for a part of them. One is always kept. */
const MAX_INFLATED_BYTES = 2 * MiB;

/**
 * Reads from `within` of a compressed cluster. `alone`: the request needs no other cluster, so that it is
 * decompressed here and now; else on another thread, beside others.
 */
export async function readCompressed(
  co: Coroutine<"read">,
  state: Qcow2State,
  { high, low }: Mapping,
  within: number,
  iov: IoVector,
  alone: boolean,
): Promise<void> {
  const key = `${high}:${low}`;
  const bytes = iovLength(iov);
  if (copyInflated(state, key, within, bytes, iov)) return;
  const { clusterSize, file, transfers } = state;
  const generation = state.inflatedGeneration;
  const extent = parseCompressed(high, low, state.clusterBits);
  const input = new Uint8Array(extent.bytes);
  const epoch = transfers.begin();
  try {
    if (file.debug) await file.debug.event(co, "read_compressed");
    await file.pread(co, extent.hostOffset, input);
  } finally {
    transfers.end(epoch);
  }
  // Others that read the same cluster meanwhile have perhaps decompressed it.
  if (generation === state.inflatedGeneration && copyInflated(state, key, within, bytes, iov)) return;
  state.environment.guard?.decompress(clusterSize);
  const output = alone
    ? decompressNow(state.compressionType, input, clusterSize)
    : await decompressAsync(state.compressionType, input, clusterSize);
  // Whoever reads whole clusters does not come back for the rest.
  if (bytes < clusterSize && generation === state.inflatedGeneration) remember(state, key, output);
  iovWrite(iov, output.subarray(within, within + bytes));
}

function copyInflated(state: Qcow2State, key: string, within: number, bytes: number, iov: IoVector): boolean {
  const known = state.inflated.get(key);
  if (!known) return false;
  iovWrite(iov, known.subarray(within, within + bytes));
  return true;
}

function remember(state: Qcow2State, key: string, output: Uint8Array): void {
  const { inflated, clusterSize } = state;
  while (inflated.size > 0 && (inflated.size + 1) * clusterSize > MAX_INFLATED_BYTES) {
    const [oldest] = inflated.keys();
    inflated.delete(oldest as string);
  }
  inflated.set(key, output);
}
