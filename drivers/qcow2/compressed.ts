/** Writing compressed clusters.  @qemu qcow2_co_pwritev_compressed_part */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { type IoVector, iovFlatten, iovLength, iovSlice } from "../../src/block/iov.ts";
import { SECTOR_SIZE } from "../../src/block/units.ts";
import { compressAsync } from "./codec.ts";
import { checkOverlap, checkUsable } from "./corruption.ts";
import { compressedEntry } from "./entries.ts";
import { type Allocation, runPieces } from "./in-flight.ts";
import { ensureL2, exclusively, freeEntries, hasHostData, readEntry, sliceFor, writeEntry } from "./l2.ts";
import { allocateBytes, freeClusters } from "./refcount.ts";
import type { Qcow2State } from "./state.ts";
import { pwrite } from "./write.ts";

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
