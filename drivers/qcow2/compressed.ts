/** Compressed clusters: reading them through a small cache, and writing them.  @qemu qcow2_co_pwritev_compressed_part */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { type IoVector, iovFlatten, iovLength, iovSlice, iovWrite } from "../../src/block/iov.ts";
import { MiB, SECTOR_SIZE } from "../../src/block/units.ts";
import { compressAsync, decompressAsync, decompressNow } from "./codec.ts";
import { checkOverlap, checkUsable } from "./corruption.ts";
import { compressedEntry, parseCompressed } from "./entries.ts";
import { type Allocation, runPieces } from "./in-flight.ts";
import { ensureL2, exclusively, freeEntries, hasHostData, readEntry, sliceFor, writeEntry } from "./l2.ts";
import type { Mapping } from "./mapping.ts";
import { allocateBytes, freeClusters } from "./refcount.ts";
import type { Qcow2State } from "./state.ts";
import { pwrite } from "./write.ts";

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

/** Writes whole clusters compressed; what does not get smaller is written as it is. An empty write ends them. */
export async function pwriteCompressed(
  co: Coroutine<"read">,
  state: Qcow2State,
  guestOffset: number,
  iov: IoVector,
): Promise<void> {
  checkUsable(state);
  if (state.hasDataFile) throw new BlockError("ENOTSUP");
  const bytes = iovLength(iov);
  if (bytes === 0) return alignFile(co, state);
  const { clusterSize } = state;
  if (guestOffset % clusterSize !== 0) throw new BlockError("EINVAL");
  if (bytes % clusterSize !== 0 && guestOffset + bytes !== state.node.totalSectors * SECTOR_SIZE)
    throw new BlockError("EINVAL");
  if (bytes <= clusterSize) return writeCluster(co, state, guestOffset, iov);
  return runPieces(async (pieces) => {
    for (let done = 0; done < bytes && !pieces.failed; done += clusterSize) {
      const piece = iovSlice(iov, done, Math.min(done + clusterSize, bytes));
      const full = pieces.add(writeCluster(co, state, guestOffset + done, piece));
      if (full) await full;
    }
  });
}

/** Readers take whole sectors: the last compressed cluster must not end in the middle of one. */
function alignFile(co: Coroutine<"read">, state: Qcow2State): Promise<void> {
  return state.lock.run(async () => {
    const { file } = state;
    await file.truncate(co, await file.getLength(co), false);
  });
}

/** Compresses beside others, but takes host bytes in the order of the calls: the same writes make the same file. */
async function writeCluster(
  co: Coroutine<"read">,
  state: Qcow2State,
  guestOffset: number,
  iov: IoVector,
): Promise<void> {
  const previous = state.compressTurn;
  let pass: () => void = () => {};
  state.compressTurn = new Promise((resolve) => {
    pass = resolve;
  });
  try {
    await writeInTurn(co, state, guestOffset, iov, previous, pass);
  } finally {
    pass();
  }
}

async function writeInTurn(
  co: Coroutine<"read">,
  state: Qcow2State,
  guestOffset: number,
  iov: IoVector,
  previous: Promise<void>,
  pass: () => void,
): Promise<void> {
  const { clusterSize } = state;
  const given = iovFlatten(iov);
  let input = given;
  if (given.length < clusterSize) {
    // The guest's end is within the cluster.
    input = new Uint8Array(clusterSize);
    input.set(given);
  }
  const output = await compressAsync(state.compressionType, input);
  await previous;
  if (!output) return pwrite(co, state, guestOffset, given);
  const { allocation, hostOffset } = await reserve(co, state, guestOffset, output.length);
  pass();
  try {
    await checkOverlap(co, state, hostOffset, output.length);
    if (state.file.debug) await state.file.debug.event(co, "write_compressed");
    await state.file.pwrite(co, hostOffset, output);
    await link(co, state, guestOffset, hostOffset, output.length);
  } catch (error) {
    await state.lock.run(() => freeClusters(co, state, hostOffset, output.length, "other"));
    throw error;
  } finally {
    allocation.finish();
  }
}

/** Host bytes for the cluster, which must not have anything yet: compression can't overwrite. */
function reserve(
  co: Coroutine<"read">,
  state: Qcow2State,
  guestOffset: number,
  bytes: number,
): Promise<{ readonly allocation: Allocation; readonly hostOffset: number }> {
  const end = guestOffset + state.clusterSize;
  return exclusively(state, guestOffset, end, async () => {
    await ensureL2(co, state, guestOffset);
    const { slice, index } = await sliceFor(co, state, guestOffset);
    if (hasHostData(state, readEntry(state, slice, index))) throw new BlockError("EIO");
    const hostOffset = await allocateBytes(co, state, bytes);
    // QEMU sets the entry here, before there is any data.
    if (state.file.debug) await state.file.debug.event(co, "l2_update_compressed");
    return { allocation: state.allocations.begin(guestOffset, end), hostOffset };
  });
}

function link(
  co: Coroutine<"read">,
  state: Qcow2State,
  guestOffset: number,
  hostOffset: number,
  bytes: number,
): Promise<void> {
  return state.lock.run(async () => {
    checkUsable(state);
    await ensureL2(co, state, guestOffset);
    await state.l2Cache.setDependency(co, state.refcountCache);
    const { slice, index } = await sliceFor(co, state, guestOffset);
    const old = readEntry(state, slice, index);
    const [high, low] = compressedEntry(hostOffset, bytes, state.clusterBits);
    writeEntry(state, slice, index, { high, low, zeroBits: 0, allocatedBits: 0 });
    if (state.node.backing || old.low !== 0 || old.high !== 0) state.l2Cache.dependsOnFlush = true;
    await freeEntries(co, state, [old], "other");
  });
}
