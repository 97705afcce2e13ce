/** Writing compressed clusters.  @qemu qcow2_co_pwritev_compressed_part */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { type IoVector, iovFlatten, iovLength, iovSlice } from "../../src/block/iov.ts";
import { MiB, SECTOR_SIZE } from "../../src/block/units.ts";
import { compressAsync } from "./codec.ts";
import { checkOverlap, checkUsable } from "./corruption.ts";
import { compressedEntry } from "./entries.ts";
import { type Allocation, runPieces } from "./in-flight.ts";
import { ensureL2, exclusively, freeEntries, hasHostData, readEntry, sliceFor, writeEntry } from "./l2.ts";
import { allocateBytes, freeClusters } from "./refcount.ts";
import type { Qcow2State } from "./state.ts";
import { pwrite } from "./write.ts";

/** Clusters that are compressed side by side and written as one: each write costs its turns and locks. */
const MAX_GROUP_BYTES = MiB;

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
  const { clusterSize, file } = state;
  if (guestOffset % clusterSize !== 0) throw new BlockError("EINVAL");
  if (bytes % clusterSize !== 0 && guestOffset + bytes !== state.node.totalSectors * SECTOR_SIZE)
    throw new BlockError("EINVAL");
  // Who listens to events hears of each cluster.
  const groupBytes = file.debug ? clusterSize : Math.max(MAX_GROUP_BYTES, clusterSize);
  if (bytes <= groupBytes) return writeGroup(co, state, guestOffset, iov);
  return runPieces(async (pieces) => {
    for (let done = 0; done < bytes && !pieces.failed; done += groupBytes) {
      const piece = iovSlice(iov, done, Math.min(done + groupBytes, bytes));
      const full = pieces.add(writeGroup(co, state, guestOffset + done, piece));
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
async function writeGroup(
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
  const stored: Promise<void>[] = [];
  let refused: number | undefined;
  try {
    const clusters = await compressClusters(state, guestOffset, iov);
    await previous;
    for (let first = 0; first < clusters.length; ) {
      const { offset, given, output } = clusters[first] as Cluster;
      if (!output) {
        await pwrite(co, state, offset, given);
        first++;
        continue;
      }
      const end = clusters.findIndex((cluster, index) => index > first && !cluster.output);
      const run = clusters.slice(first, end < 0 ? undefined : end);
      const reserved = await reserve(co, state, run);
      stored.push(store(co, state, reserved));
      // It is awaited below; until then its failure must not count as unhandled.
      stored.at(-1)?.catch(() => {});
      refused ??= reserved.refused;
      first += run.length;
    }
  } catch (error) {
    throw atCluster(error, guestOffset);
  } finally {
    pass();
    await Promise.allSettled(stored);
  }
  await Promise.all(stored);
  if (refused !== undefined) throw new BlockError("EIO", undefined, { offset: refused });
}

/** One cluster of a write. */
interface Cluster {
  /** In the guest. */
  readonly offset: number;
  readonly given: Uint8Array;
  /** Undefined: that would not be smaller. */
  readonly output: Uint8Array | undefined;
}

async function compressClusters(
  { clusterSize, compressionType }: Qcow2State,
  guestOffset: number,
  iov: IoVector,
): Promise<Cluster[]> {
  const all = iovFlatten(iov);
  const parts: Uint8Array[] = [];
  for (let at = 0; at < all.length; at += clusterSize) parts.push(all.subarray(at, at + clusterSize));
  const outputs = await Promise.allSettled(
    parts.map((given) => {
      if (given.length === clusterSize) return compressAsync(compressionType, given);
      // The guest's end is within the cluster.
      const padded = new Uint8Array(clusterSize);
      padded.set(given);
      return compressAsync(compressionType, padded);
    }),
  );
  return parts.map((given, index) => {
    const result = outputs[index] as PromiseSettledResult<Uint8Array | undefined>;
    if (result.status === "rejected") throw result.reason;
    return { offset: guestOffset + index * clusterSize, given, output: result.value };
  });
}

/** A compressed cluster that has got host bytes. */
interface Place {
  readonly guestOffset: number;
  readonly hostOffset: number;
  readonly output: Uint8Array;
}

interface Reserved {
  readonly allocation: Allocation;
  /** In guest order. */
  readonly places: readonly Place[];
  /** Guest offset of the first cluster that has something already: the others are written, as by QEMU. */
  readonly refused: number | undefined;
}

/** Host bytes for clusters, which must not have anything yet: compression can't overwrite. */
function reserve(co: Coroutine<"read">, state: Qcow2State, run: readonly Cluster[]): Promise<Reserved> {
  const start = (run[0] as Cluster).offset;
  const end = start + run.length * state.clusterSize;
  return exclusively(state, start, end, async () => {
    const places: Place[] = [];
    let refused: number | undefined;
    try {
      for (const { offset: guestOffset, output } of run) {
        if (!output) continue;
        await ensureL2(co, state, guestOffset);
        const { slice, index } = await sliceFor(co, state, guestOffset);
        if (hasHostData(state, readEntry(state, slice, index))) {
          refused ??= guestOffset;
          continue;
        }
        places.push({ guestOffset, hostOffset: await allocateBytes(co, state, output.length), output });
        // QEMU sets the entry here, before there is any data.
        if (state.file.debug) await state.file.debug.event(co, "l2_update_compressed");
      }
      return { allocation: state.allocations.begin(start, end), places, refused };
    } catch (error) {
      for (const { hostOffset, output } of places)
        await freeClusters(co, state, hostOffset, output.length, "other");
      throw error;
    }
  });
}

/** Writes what lies in a row as one, and sets the entries. */
async function store(
  co: Coroutine<"read">,
  state: Qcow2State,
  { allocation, places }: Reserved,
): Promise<void> {
  const unlinked = new Set(places);
  try {
    for (let first = 0; first < places.length; ) {
      const { hostOffset } = places[first] as Place;
      const row: Uint8Array[] = [];
      let end = hostOffset;
      for (let next = places[first]; next?.hostOffset === end; next = places[first + row.length]) {
        row.push(next.output);
        end += next.output.length;
      }
      first += row.length;
      await checkOverlap(co, state, hostOffset, end - hostOffset);
      if (state.file.debug) await state.file.debug.event(co, "write_compressed");
      await state.file.pwrite(co, hostOffset, iovFlatten(row));
    }
    await link(co, state, unlinked);
  } catch (error) {
    await state.lock.run(async () => {
      for (const { hostOffset, output } of unlinked)
        await freeClusters(co, state, hostOffset, output.length, "other");
    });
    throw atCluster(error, allocation.start);
  } finally {
    allocation.finish();
  }
}

/** With the guest offset where it happened, for those who write more than a cluster at once. */
function atCluster(error: unknown, offset: number): unknown {
  if (!(error instanceof BlockError)) return error;
  return new BlockError(error.errno, error.message, { cause: error, offset });
}

/** Takes out of `unlinked` what the tables refer to. */
function link(co: Coroutine<"read">, state: Qcow2State, unlinked: Set<Place>): Promise<void> {
  return state.lock.run(async () => {
    checkUsable(state);
    for (const place of unlinked) {
      const { guestOffset, hostOffset, output } = place;
      await ensureL2(co, state, guestOffset);
      await state.l2Cache.setDependency(co, state.refcountCache);
      const { slice, index } = await sliceFor(co, state, guestOffset);
      const old = readEntry(state, slice, index);
      const [high, low] = compressedEntry(hostOffset, output.length, state.clusterBits);
      writeEntry(state, slice, index, { high, low, zeroBits: 0, allocatedBits: 0 });
      unlinked.delete(place);
      if (state.node.backing || old.low !== 0 || old.high !== 0) state.l2Cache.dependsOnFlush = true;
      await freeEntries(co, state, [old], "other");
    }
  });
}
