/**
 * Host clusters that are set aside for guest data to come. `metadata` maps guest clusters to what becomes a hole in
 * the file; `falloc` and `full` have the file reserve or write the space as well.  @qemu qcow2_co_truncate
 */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { type Prealloc, Req } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import { alignUp } from "../../src/block/units.ts";
import { writeData } from "./crypto.ts";
import { COMPRESSED_HIGH, COPIED_HIGH, entryOffset } from "./entries.ts";
import {
  beforeLink,
  ensureL2,
  exclusively,
  freeEntries,
  type RawEntry,
  readEntry,
  sliceFor,
  writeEntry,
} from "./l2.ts";
import { bitRange, sliceEntries } from "./mapping.ts";
import { pread } from "./read.ts";
import {
  allocateClusters,
  allocateClustersAt,
  freeClusters,
  lastUsed,
  refblockEntries,
  updateRefcount,
} from "./refcount.ts";
import { makeRefcountArea } from "./refcount-area.ts";
import { forEachRefcount } from "./refcount-width.ts";
import type { Qcow2State } from "./state.ts";

type SubclusterBits = Pick<RawEntry, "allocatedBits" | "zeroBits">;

const NO_BITS: SubclusterBits = { allocatedBits: 0, zeroBits: 0 };
const ALL_BITS = 0xffffffff;

/**
 * For the guest range [start, end), which the L1 table covers already. `hidesBacking`: a backing file is not to shine
 * through; where the space is only mapped, that is left to the caller.
 */
export async function preallocate(
  co: Coroutine<"read">,
  state: Qcow2State,
  start: number,
  end: number,
  mode: Prealloc,
  hidesBacking: boolean,
): Promise<void> {
  if (mode === "metadata" || state.hasDataFile) await mapAll(co, state, start, end, mode);
  else await setAside(co, state, start, end, mode, hidesBacking);
  state.metadataPreallocated = undefined;
}

/** @qemu preallocate_co */
async function mapAll(
  co: Coroutine<"read">,
  state: Qcow2State,
  start: number,
  end: number,
  mode: Prealloc,
): Promise<void> {
  const { clusterSize, subclusterSize, dataFile, allocations } = state;
  const fileMode = mode === "metadata" ? "off" : mode;
  const first = start - (start % clusterSize);
  const last = alignUp(end, clusterSize);
  const { allocation, headStart } = await exclusively(state, first, last, async () => {
    if (state.hasDataFile) await dataFile.truncate(co, alignUp(end, subclusterSize), false, fileMode);
    return { headStart: await startOfHead(co, state, start), allocation: allocations.begin(first, last) };
  });
  try {
    const head = await readHead(co, state, start, headStart);
    await mapClusters(co, state, head, first, end);
  } finally {
    allocation.finish();
  }
}

/** From where on a new cluster for `start` must get what the guest sees; `start` where the old one stays. */
async function startOfHead(co: Coroutine<"read">, state: Qcow2State, start: number): Promise<number> {
  const { clusterSize, subclusterSize, extendedL2 } = state;
  const first = start - (start % clusterSize);
  if (start === first) return start;
  await ensureL2(co, state, first);
  const { slice, index } = await sliceFor(co, state, first);
  const entry = readEntry(state, slice, index);
  if (!needsCluster(entry)) return start;
  const hasData = !extendedL2 || (entry.high & COMPRESSED_HIGH) !== 0 || entry.allocatedBits !== 0;
  return hasData ? first : start - (start % subclusterSize);
}

/** There is none that is the active image's alone. */
function needsCluster({ high }: RawEntry): boolean {
  return high < COPIED_HIGH || (high & COMPRESSED_HIGH) !== 0;
}

/** Maps what has no cluster of its own from `first` to that with `end`. */
async function mapClusters(
  co: Coroutine<"read">,
  state: Qcow2State,
  head: Head,
  first: number,
  end: number,
): Promise<void> {
  const { clusterSize, subclusterSize } = state;
  const last = alignUp(end, clusterSize);
  /** Where what comes next would go on with what is before it. */
  let following: number | undefined;
  for (let at = first; at < last; ) {
    co.checkAborted();
    await state.lock.run(async () => {
      await ensureL2(co, state, at);
      const { slice, index } = await sliceFor(co, state, at);
      const { high, low } = readEntry(state, slice, index);
      const most = Math.min((last - at) / clusterSize, sliceEntries(state) - index);
      let count = 0;
      while (count < most && needsCluster(readEntry(state, slice, index + count))) count++;
      if (count === 0) {
        following = entryOffset(high, low) + clusterSize;
        at += clusterSize;
        return;
      }
      const wanted = count * clusterSize;
      // The file need not have what is behind the end of the image.
      const surplus = at + wanted === last ? last - alignUp(end, subclusterSize) : 0;
      const { host, run } = state.hasDataFile
        ? { host: at, run: wanted }
        : await allocate(co, state, wanted, following, surplus);
      following = run > 0 ? host + run : undefined;
      if (run === 0) return;
      const data = at === first ? headBits(state, head) : 0;
      if (data !== 0) await writeHead(co, state, head, host + (head.guestOffset - at));
      if (state.crypto && end < at + run) await writeTail(co, state, end, host + (end - at));
      await link(co, state, at, host, run / clusterSize, (before, isFirst) =>
        withData(before.high & COMPRESSED_HIGH ? NO_BITS : before, isFirst ? data : 0),
      );
      at += run;
    });
  }
}

/** What the guest sees before the old end of the image in the cluster that has it. */
interface Head {
  readonly guestOffset: number;
  readonly bytes: Uint8Array;
}

async function readHead(
  co: Coroutine<"read">,
  state: Qcow2State,
  start: number,
  from: number,
): Promise<Head> {
  const bytes = new Uint8Array(start - from);
  if (bytes.length > 0) await pread(co, state, from, bytes);
  return { guestOffset: from, bytes };
}

async function writeHead(
  co: Coroutine<"read">,
  state: Qcow2State,
  { guestOffset, bytes }: Head,
  hostOffset: number,
): Promise<void> {
  await writeData(co, state, guestOffset, hostOffset, bytes);
  state.l2Cache.dependsOnFlush = true;
}

/** What is behind the end of an encrypted image reads as zeroes if the image grows again: holes in the file would not. */
async function writeTail(
  co: Coroutine<"read">,
  state: Qcow2State,
  end: number,
  hostOffset: number,
): Promise<void> {
  const tail = new Uint8Array(alignUp(end, state.subclusterSize) - end);
  if (tail.length > 0) await writeData(co, state, end, hostOffset, tail);
}

/** The subclusters that it has something of. */
function headBits({ clusterSize, subclusterSize }: Qcow2State, { guestOffset, bytes }: Head): number {
  if (bytes.length === 0) return 0;
  const from = guestOffset % clusterSize;
  return bitRange(Math.floor(from / subclusterSize), Math.ceil((from + bytes.length) / subclusterSize));
}

/**
 * At `wanted`, where that is given, what is free there, maybe nothing; else all in a row. The file gets as long as that,
 * but for the last `surplus` bytes.
 */
async function allocate(
  co: Coroutine<"read">,
  state: Qcow2State,
  bytes: number,
  wanted: number | undefined,
  surplus: number,
): Promise<{ readonly host: number; readonly run: number }> {
  const { file, clusterSize } = state;
  let host = wanted;
  let run = bytes;
  if (host === undefined) host = await allocateClusters(co, state, bytes, "data cluster");
  else run = (await allocateClustersAt(co, state, host, bytes / clusterSize)) * clusterSize;
  if (run === 0) return { host, run };
  const end = host + run - (run === bytes ? surplus : 0);
  try {
    const length = await file.getLength(co);
    // What was used before would show what it held.
    const used = Math.min(length - host, run);
    if (used > 0) await file.pwriteZeroes(co, host, used, Req.MayUnmap);
    if (end > length) await file.truncate(co, end, false);
  } catch (error) {
    await freeClusters(co, state, host, run, "other");
    throw error;
  }
  state.l2Cache.dependsOnFlush = true;
  return { host, run };
}

/** All data clusters in a row at the end of the file, behind the refcount structures that count them. */
async function setAside(
  co: Coroutine<"read">,
  state: Qcow2State,
  start: number,
  end: number,
  mode: Prealloc,
  hidesBacking: boolean,
): Promise<void> {
  const { clusterSize, allocations } = state;
  const first = start - (start % clusterSize);
  const last = alignUp(end, clusterSize);
  const { host, allocation } = await exclusively(state, first, last, async () => {
    return {
      host: await reserve(co, state, (last - first) / clusterSize, mode),
      allocation: allocations.begin(first, last),
    };
  });
  let at = first;
  try {
    // The new clusters begin with what the first one has of the old image.
    const head = await readHead(co, state, start, first);
    if (head.bytes.length > 0) await writeHead(co, state, head, host);
    const bitsAfter = (before: RawEntry): SubclusterBits => {
      // What has no bits of its own, and is there only in the copy.
      if (before.high & COMPRESSED_HIGH) return withData(NO_BITS, headBits(state, head));
      return hidesBacking ? withData(before, ALL_BITS) : before;
    };
    while (at < last) {
      co.checkAborted();
      const clusters = Math.min((last - at) / clusterSize, sliceEntries(state) - indexInSlice(state, at));
      await state.lock.run(async () => {
        await ensureL2(co, state, at);
        await link(co, state, at, host + (at - first), clusters, bitsAfter);
      });
      at += clusters * clusterSize;
    }
    await state.file.flush(co);
  } catch (error) {
    await state.lock.run(() => freeClusters(co, state, host + (at - first), last - at, "other"));
    throw error;
  } finally {
    allocation.finish();
  }
}

/** Subclusters that are data now; those that were stay so, and hold zeroes. */
function withData({ allocatedBits, zeroBits }: SubclusterBits, data: number): SubclusterBits {
  return { allocatedBits: (allocatedBits | data) >>> 0, zeroBits: (zeroBits & ~data) >>> 0 };
}

function indexInSlice(state: Qcow2State, guestOffset: number): number {
  return Math.floor(guestOffset / state.clusterSize) % sliceEntries(state);
}

/** Behind the last cluster in use, which may not be written yet and lie behind the end of the file. */
async function firstBehind(co: Coroutine<"read">, state: Qcow2State): Promise<number> {
  const { file, clusterSize, refcountTable } = state;
  const fileEnd = Math.ceil((await file.getLength(co)) / clusterSize);
  const counted = (refcountTable.byteLength / 8) * refblockEntries(state);
  let end = 0;
  await forEachRefcount(co, state, fileEnd, Math.max(counted - fileEnd, 0), (cluster) => {
    end = cluster + 1;
  });
  return end > 0 ? end : (await lastUsed(co, state, fileEnd)) + 1;
}

/** Has the file set space aside for `count` clusters, which get their refcounts: host offset of the first. */
async function reserve(
  co: Coroutine<"read">,
  state: Qcow2State,
  count: number,
  mode: Prealloc,
): Promise<number> {
  const { clusterSize, file, l2Entries } = state;
  // L2 tables that may be needed, and one more where the range begins within one.
  const tables = Math.ceil(count / l2Entries) + 1;
  let first: number;
  try {
    first = await makeRefcountArea(co, state, await firstBehind(co, state), count + tables);
  } catch (error) {
    throw BlockError.wrap("Failed to resize refcount structures", error);
  }
  const start = first * clusterSize;
  const end = start + count * clusterSize;
  const length = await file.getLength(co);
  try {
    if (end > length) await file.truncate(co, end, false, mode);
    // What was used before would show what it held.
    if (start < length) await file.pwriteZeroes(co, start, Math.min(length, end) - start);
  } catch (error) {
    throw BlockError.wrap("Failed to resize underlying file", error);
  }
  await updateRefcount(co, state, first * clusterSize, count * clusterSize, 1, "never");
  return first * clusterSize;
}

/** Maps clusters of one slice, with the bits that follow from those before. What was mapped there is freed. */
async function link(
  co: Coroutine<"read">,
  state: Qcow2State,
  guestOffset: number,
  hostOffset: number,
  clusters: number,
  bitsAfter: (before: RawEntry, isFirst: boolean) => SubclusterBits,
): Promise<void> {
  const { clusterSize, extendedL2 } = state;
  if (!state.hasDataFile) await beforeLink(co, state);
  const { slice, index } = await sliceFor(co, state, guestOffset);
  const old: RawEntry[] = [];
  for (let cluster = 0; cluster < clusters; cluster++) {
    const before = readEntry(state, slice, index + cluster);
    old.push(before);
    const { allocatedBits, zeroBits } = extendedL2 ? bitsAfter(before, cluster === 0) : NO_BITS;
    const host = hostOffset + cluster * clusterSize;
    writeEntry(state, slice, index + cluster, {
      high: (Math.floor(host / 2 ** 32) | COPIED_HIGH) >>> 0,
      low: host % 2 ** 32,
      allocatedBits,
      zeroBits,
    });
  }
  if (!state.hasDataFile) await freeEntries(co, state, old, "never");
}
