/** Reading compressed clusters, through a small cache.  @qemu qcow2_co_preadv_compressed */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { type IoVector, iovLength, iovWrite } from "../../src/block/iov.ts";
import { KiB, MiB } from "../../src/block/units.ts";
import { KeptPool } from "../../src/platform/kept-pool.ts";
import { decompressInto, decompressNow } from "./codec.ts";
import { type CompressedExtent, parseCompressed } from "./entries.ts";
import { Kind, type Mapping, peekMapping } from "./mapping.ts";
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
  let output: Uint8Array;
  if (alone) output = decompressNow(state.compressionType, input, clusterSize);
  else {
    if (iov instanceof Uint8Array && bytes === clusterSize)
      return decompressInto(state.compressionType, [input], iov);
    output = Buffer.allocUnsafeSlow(clusterSize);
    await decompressInto(state.compressionType, [input], output);
  }
  // Whoever reads whole clusters does not come back for the rest.
  if (bytes < clusterSize && generation === state.inflatedGeneration) remember(state, key, output);
  iovWrite(iov, output.subarray(within, within + bytes));
}

/** Clusters that are read and decompressed as one job, since a thread is asked for each. */
const MAX_RUN_BYTES = 512 * KiB;

/**
 * The whole clusters from `guestOffset` on whose compressed bytes lie together, in any order: who wrote them side by side
 * has mixed them.
 */
export function compressedRun(state: Qcow2State, guestOffset: number, bytes: number): CompressedExtent[] {
  const { clusterSize, clusterBits, file } = state;
  const run: CompressedExtent[] = [];
  if (guestOffset % clusterSize !== 0 || file.debug) return run;
  const end = guestOffset + Math.min(bytes, MAX_RUN_BYTES);
  let hostStart = Number.POSITIVE_INFINITY;
  let hostEnd = 0;
  let hostBytes = 0;
  for (let at = guestOffset; at + clusterSize <= end; at += clusterSize) {
    const mapping = peekMapping(state, at, clusterSize);
    if (mapping?.kind !== Kind.Compressed) break;
    const extent = parseCompressed(mapping.high, mapping.low, clusterBits);
    hostStart = Math.min(hostStart, extent.hostOffset);
    hostEnd = Math.max(hostEnd, extent.hostOffset + extent.bytes);
    hostBytes += extent.bytes;
    // What lies between them is read too.
    if (hostEnd - hostStart > Math.min(2 * hostBytes, 2 * MAX_RUN_BYTES)) break;
    run.push(extent);
  }
  return run;
}

/** Memory for what is read of runs: fresh memory costs a page fault for every 4 KiB. */
const scratch = new KeptPool(8, () => Buffer.allocUnsafeSlow(2 * MAX_RUN_BYTES));

/** Reads a run into `iov`, each cluster decompressed beside the others. */
export function readCompressedRun(
  co: Coroutine<"read">,
  state: Qcow2State,
  run: readonly CompressedExtent[],
  iov: IoVector,
): Promise<void> {
  // The clusters are in use from here on, whether there is memory already or not.
  const epoch = state.transfers.begin();
  return scratch
    .use((memory) => readRun(co, state, run, iov, memory))
    .finally(() => state.transfers.end(epoch));
}

async function readRun(
  co: Coroutine<"read">,
  state: Qcow2State,
  run: readonly CompressedExtent[],
  iov: IoVector,
  memory: Uint8Array,
): Promise<void> {
  const { compressionType, clusterSize, file } = state;
  const start = Math.min(...run.map((extent) => extent.hostOffset));
  const end = Math.max(...run.map((extent) => extent.hostOffset + extent.bytes));
  const input = memory.subarray(0, end - start);
  await file.pread(co, start, input);
  state.environment.guard?.decompress(run.length * clusterSize);
  const inputs = run.map(({ hostOffset, bytes }) =>
    input.subarray(hostOffset - start, hostOffset - start + bytes),
  );
  const output = iov instanceof Uint8Array ? iov : Buffer.allocUnsafeSlow(run.length * clusterSize);
  await decompressInto(compressionType, inputs, output);
  if (output !== iov) iovWrite(iov, output);
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
