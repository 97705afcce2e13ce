/**
 * Zero writes and discards: only entries change, no data moves.  @qemu qcow2_subcluster_zeroize, qcow2_cluster_discard
 *
 * What a cluster becomes (version 3; version 2 has no zero entries, so that a discard over a backing file is refused
 * and a zero write without one is a discard):
 *
 * | was                     | zero write              | zero write, may unmap | discard                       |
 * | ----------------------- | ----------------------- | --------------------- | ----------------------------- |
 * | plain                   | zero, keeps its cluster | zero, cluster freed   | zero, cluster freed           |
 * | zero with a cluster     | the same                | zero, cluster freed   | zero, cluster freed           |
 * | compressed              | zero, data freed        | zero, data freed      | zero, data freed              |
 * | unallocated             | zero                    | zero                  | zero over a backing file only |
 */

import { blockStatusAbove } from "../../src/block/block-status.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { Req, type ReqFlags } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import { alignUp, SECTOR_SIZE } from "../../src/block/units.ts";
import { checkUsable } from "./corruption.ts";
import { COMPRESSED_HIGH, ZERO_LOW } from "./entries.ts";
import {
  ensureL2,
  exclusively,
  freeEntries,
  hasHostData,
  type RawEntry,
  readEntry,
  sameEntry,
  sliceFor,
  writeEntry,
} from "./l2.ts";
import { Autoclear } from "./layout.ts";
import { bitRange, sliceEntries } from "./mapping.ts";
import type { DiscardType, Qcow2State } from "./state.ts";

/** Entries that are changed before the lock is given up and taken again. */
const MAX_ENTRIES_AT_ONCE = 64 * 1024;

/** What an entry becomes; it comes back as it is where nothing changes. */
type Change = (entry: RawEntry, guestOffset: number) => RawEntry;

/** @qemu qcow2_co_pwrite_zeroes */
export async function pwriteZeroes(
  co: Coroutine<"read">,
  state: Qcow2State,
  guestOffset: number,
  bytes: number,
  flags: ReqFlags,
): Promise<void> {
  checkUsable(state);
  const { subclusterSize } = state;
  const end = guestOffset + bytes;
  const length = state.node.totalSectors * SECTOR_SIZE;
  const head = guestOffset % subclusterSize;
  const tail = end === length || end % subclusterSize === 0 ? 0 : subclusterSize - (end % subclusterSize);
  if (head === 0 && tail === 0) return zeroize(co, state, guestOffset, end, flags);
  // Part of a subcluster: only if the rest of it reads as zeroes anyway.
  if (head + bytes + tail > subclusterSize) throw new BlockError("ENOTSUP");
  const start = guestOffset - head;
  if (!(await readsZero(co, state, start, head)) || !(await readsZero(co, state, end, tail)))
    throw new BlockError("ENOTSUP");
  // The rest of the subcluster is left alone in the file: somebody may be writing there.
  if (isDataFileRaw(state)) await zeroData(co, state, guestOffset, end, flags);
  return zeroize(co, state, start, Math.min(start + subclusterSize, Math.max(length, end)), flags, true);
}

async function readsZero(
  co: Coroutine<"read">,
  state: Qcow2State,
  guestOffset: number,
  bytes: number,
): Promise<boolean> {
  const end = Math.min(guestOffset + bytes, state.node.totalSectors * SECTOR_SIZE);
  // Zeroes of several kinds may follow each other: of a hole, of what no layer has, behind the end of a backing file.
  for (let at = guestOffset; at < end; ) {
    const status = await statusOf(co, state, at, end - at);
    if (!status?.zero) return false;
    at += status.bytes;
  }
  return true;
}

/** Undefined: it can't be known, which the write that is tried then has to deal with. */
async function statusOf(co: Coroutine<"read">, state: Qcow2State, guestOffset: number, bytes: number) {
  try {
    return await blockStatusAbove(co, state.node, undefined, true, guestOffset, bytes);
  } catch (error) {
    if (error instanceof BlockError) return undefined;
    throw error;
  }
}

/**
 * Makes [start, end) read as zeroes. Both are multiples of the subcluster, or `end` is the end of the image.
 * `unlessData`: refused with ENOTSUP where the subclusters have data, which may have come a moment ago.
 * @qemu qcow2_subcluster_zeroize
 */
export async function zeroize(
  co: Coroutine<"read">,
  state: Qcow2State,
  start: number,
  end: number,
  flags: ReqFlags,
  unlessData = false,
): Promise<void> {
  if (isDataFileRaw(state) && !unlessData) await zeroData(co, state, start, end, flags);
  if (state.version < 3) {
    if (state.node.backing) throw new BlockError("ENOTSUP");
    if (unlessData) return changeEntries(co, state, start, end, "request", refuseData(state));
    return discardRange(co, state, start, end, "request", false);
  }
  const { clusterSize, subclusterSize } = state;
  const zeroWhole: Change = (entry) => {
    const isCompressed = (entry.high & COMPRESSED_HIGH) !== 0;
    const frees = isCompressed || ((flags & Req.MayUnmap) !== 0 && hasHostData(state, entry));
    const high = frees ? 0 : entry.high;
    const low = frees ? 0 : entry.low;
    if (state.extendedL2) return { high, low, zeroBits: 0xffffffff, allocatedBits: 0 };
    return { high, low: (low | ZERO_LOW) >>> 0, zeroBits: 0, allocatedBits: 0 };
  };
  const length = state.node.totalSectors * SECTOR_SIZE;
  const change: Change = (entry, guestOffset) => {
    const from = Math.max(start - guestOffset, 0);
    // At the end of the image the last cluster is zero as a whole.
    const isLast = from === 0 && end >= length;
    const to = isLast ? clusterSize : Math.min(alignUp(end - guestOffset, subclusterSize), clusterSize);
    if (unlessData && holdsData(state, entry, from / subclusterSize)) throw new BlockError("ENOTSUP");
    if (from === 0 && to === clusterSize) return zeroWhole(entry, guestOffset);
    if (entry.high & COMPRESSED_HIGH) throw new BlockError("ENOTSUP");
    const range = bitRange(from / subclusterSize, to / subclusterSize);
    return {
      high: entry.high,
      low: entry.low,
      zeroBits: (entry.zeroBits | range) >>> 0,
      allocatedBits: (entry.allocatedBits & ~range) >>> 0,
    };
  };
  await changeEntries(co, state, start, end, "request", change);
}

function holdsData(state: Qcow2State, entry: RawEntry, subcluster: number): boolean {
  if (entry.high & COMPRESSED_HIGH) return true;
  if (state.extendedL2) return ((entry.allocatedBits >>> subcluster) & 1) === 1;
  return hasHostData(state, entry) && !(entry.low & ZERO_LOW);
}

/** Leaves entries as they are, and refuses those that have data: for version 2, where the others read as zeroes. */
function refuseData(state: Qcow2State): Change {
  return (entry) => {
    if (holdsData(state, entry, 0)) throw new BlockError("ENOTSUP");
    return entry;
  };
}

function zeroData(
  co: Coroutine<"read">,
  { dataFile }: Qcow2State,
  start: number,
  end: number,
  flags: ReqFlags,
): Promise<void> {
  return dataFile.pwriteZeroes(co, start, end - start, flags & Req.MayUnmap);
}

function isDataFileRaw(state: Qcow2State): boolean {
  return state.hasDataFile && (state.autoclearFeatures & Autoclear.DataFileRaw) !== 0n;
}

/** @qemu qcow2_co_pdiscard */
export async function pdiscard(
  co: Coroutine<"read">,
  state: Qcow2State,
  guestOffset: number,
  bytes: number,
): Promise<void> {
  checkUsable(state);
  // Without zero entries the backing file would come to light.
  if (state.version < 3 && state.node.backing) throw new BlockError("ENOTSUP");
  const { clusterSize } = state;
  const end = guestOffset + bytes;
  const isWhole =
    guestOffset % clusterSize === 0 &&
    (bytes % clusterSize === 0 || end === state.node.totalSectors * SECTOR_SIZE);
  if (!isWhole) throw new BlockError("ENOTSUP");
  await discardRange(co, state, guestOffset, end, "request", false);
}

/**
 * Frees the clusters of [start, end), given in whole clusters. `full`: nothing of them stays, as behind the new end
 * of an image that shrinks; else they read as zeroes. L2 tables are made where there are none, as in QEMU.
 */
export function discardRange(
  co: Coroutine<"read">,
  state: Qcow2State,
  start: number,
  end: number,
  discard: DiscardType,
  full: boolean,
): Promise<void> {
  const nothing: RawEntry = { high: 0, low: 0, zeroBits: 0, allocatedBits: 0 };
  const zero: RawEntry = state.extendedL2
    ? { ...nothing, zeroBits: 0xffffffff }
    : { ...nothing, low: state.version >= 3 ? ZERO_LOW : 0 };
  const change: Change = (entry) => {
    if (full) return nothing;
    return state.node.backing || hasHostData(state, entry) ? zero : entry;
  };
  return changeEntries(co, state, start, end, discard, change);
}

/** Applies `change` to every entry of the range, with no allocation under way in it, and frees what falls out of use. */
async function changeEntries(
  co: Coroutine<"read">,
  state: Qcow2State,
  start: number,
  end: number,
  discard: DiscardType,
  change: Change,
): Promise<void> {
  const { clusterSize } = state;
  const step = MAX_ENTRIES_AT_ONCE * clusterSize;
  for (let from = start - (start % clusterSize); from < end; from += step) {
    const to = Math.min(from + step, end);
    await exclusively(state, from, to, async () => {
      for (let at = from; at < to; ) at = await changeSlice(co, state, at, to, discard, change);
    });
  }
}

/** The part of one slice; where the next begins. */
async function changeSlice(
  co: Coroutine<"read">,
  state: Qcow2State,
  at: number,
  end: number,
  discard: DiscardType,
  change: Change,
): Promise<number> {
  const { clusterSize } = state;
  await ensureL2(co, state, at);
  const { slice, index } = await sliceFor(co, state, at);
  const entries = Math.min(sliceEntries(state) - index, Math.ceil((end - at) / clusterSize));
  const before: RawEntry[] = [];
  for (let done = 0; done < entries; done++) before.push(readEntry(state, slice, index + done));
  // All of them first: a change that is refused leaves the slice as it was.
  const after = before.map((entry, done) => change(entry, at + done * clusterSize));
  const old: RawEntry[] = [];
  for (const [done, entry] of before.entries()) {
    const changed = after[done] as RawEntry;
    if (sameEntry(entry, changed)) continue;
    writeEntry(state, slice, index + done, changed);
    if (changed.high === 0 && changed.low <= 1) old.push(entry);
  }
  await freeEntries(co, state, old, discard);
  return at + entries * clusterSize;
}
