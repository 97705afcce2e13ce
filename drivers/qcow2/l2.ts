/**
 * The tables on the way to an entry, for whoever is about to change it: L2 tables are made or made the active
 * image's own, the L1 table grows, entries are set and what they referred to is freed.  @qemu block/qcow2-cluster.c
 *
 * Invariants (all functions but `exclusively` are called with the driver's lock held):
 * 1. A new L2 table, with its refcount, is on the disk before the L1 entry points to it; a new L1 table before the
 *    header does.
 * 2. Of two users of an L2 table (a snapshot is the other) neither changes it: it is copied first.
 * 3. The refcount of a cluster is in the file before an entry that refers to it, or the header says that the image is
 *    dirty (lazy refcounts).
 */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { u32, u64 } from "../../src/block/layout.ts";
import { checkOverlap, checkUsable, noteMoved, signalCorruption, writeIncompatible } from "./corruption.ts";
import {
  COMPRESSED_HIGH,
  entryOffset,
  hex,
  isCopied,
  parseCompressed,
  setEntry,
  tableOffset,
} from "./entries.ts";
import { HeaderV2, Incompatible, MAX_L1_BYTES } from "./layout.ts";
import { placeOf } from "./mapping.ts";
import { allocateClusters, freeClusters, passDiscard } from "./refcount.ts";
import { type DiscardType, isDirty, l2Coverage, type Qcow2State } from "./state.ts";
import type { Table } from "./table-cache.ts";

/** Runs `fn` with the lock held and no allocation under way in the guest range. Undefined bounds: no matter. */
export async function exclusively<T>(
  state: Qcow2State,
  start: number,
  end: number,
  fn: () => Promise<T>,
): Promise<T> {
  for (;;) {
    const waiting = state.lock.acquire();
    if (waiting) await waiting;
    const other = state.allocations.overlapping(start, end);
    if (!other) {
      try {
        checkUsable(state);
        return await fn();
      } finally {
        state.lock.release();
      }
    }
    state.lock.release();
    await other.ended;
  }
}

/**
 * To be called before an entry gets a new cluster. With lazy refcounts the image is dirty from then on: refcounts need
 * not be on the disk any more. Without, they come before the entry.  @qemu qcow2_mark_dirty, qcow2_need_accurate_refcounts
 */
export async function beforeLink(co: Coroutine<"read">, state: Qcow2State): Promise<void> {
  if (state.useLazyRefcounts && !isDirty(state)) {
    state.incompatibleFeatures |= Incompatible.Dirty;
    try {
      await writeIncompatible(co, state);
    } catch (error) {
      state.incompatibleFeatures &= ~Incompatible.Dirty;
      throw error;
    }
  }
  if (!isDirty(state)) await state.l2Cache.setDependency(co, state.refcountCache);
}

/** Makes sure that there is an L2 table for the guest offset and that only the active image uses it.  @qemu get_cluster_table */
export async function ensureL2(co: Coroutine<"read">, state: Qcow2State, guestOffset: number): Promise<void> {
  const l1Index = Math.floor(guestOffset / l2Coverage(state));
  if (l1Index >= state.l1Size) await growL1(co, state, l1Index + 1, false);
  const old = tableOffset(state.l1Table, l1Index);
  if (old % state.clusterSize !== 0)
    throw await signalCorruption(
      co,
      state,
      `L2 table offset ${hex(old)} unaligned (L1 index: ${hex(l1Index)})`,
    );
  if (old !== 0 && isCopied(state.l1Table, l1Index)) return;
  const { clusterSize } = state;
  const offset = await allocateClusters(co, state, clusterSize, "L2 table");
  let isWritten = false;
  try {
    await state.refcountCache.flush(co);
    await makeTable(co, state, old, offset);
    isWritten = true;
    await writeL1Entry(co, state, l1Index, offset);
  } catch (error) {
    if (!isWritten || (await restoreL1Entry(co, state, l1Index)))
      await freeClusters(co, state, offset, clusterSize, "other");
    throw error;
  }
  noteMoved(state, "l2Tables", old, offset);
  if (old !== 0) await freeClusters(co, state, old, clusterSize, "other");
}

/** Writes a new table at `offset`: a copy of the one at `old`, or an empty one where that is 0. */
async function makeTable(
  co: Coroutine<"read">,
  { l2Cache, file, clusterSize }: Qcow2State,
  old: number,
  offset: number,
): Promise<void> {
  for (let start = 0; start < clusterSize; start += l2Cache.tableBytes) {
    const content = new Uint8Array(l2Cache.tableBytes);
    if (old !== 0) {
      if (file.debug) await file.debug.event(co, "l2_alloc_cow_read");
      const { view } = await l2Cache.load(co, old + start);
      content.set(new Uint8Array(view.buffer, view.byteOffset, view.byteLength));
    }
    if (file.debug) await file.debug.event(co, "l2_alloc_write");
    (await l2Cache.put(co, offset + start, content)).markDirty(0, content.length);
  }
  await l2Cache.flush(co);
}

async function writeL1Entry(
  co: Coroutine<"read">,
  state: Qcow2State,
  l1Index: number,
  l2Offset: number,
): Promise<void> {
  const entry = new DataView(new ArrayBuffer(8));
  setEntry(entry, 0, l2Offset, true);
  await putL1Entry(co, state, l1Index, entry);
}

/** Sets an entry as it stands, in the file and then in memory.  @qemu qcow2_write_l1_entry */
export async function putL1Entry(
  co: Coroutine<"read">,
  state: Qcow2State,
  l1Index: number,
  entry: DataView<ArrayBuffer>,
): Promise<void> {
  const { file, l1Table, l1TableOffset } = state;
  const position = l1TableOffset + l1Index * 8;
  await checkOverlap(co, state, position, 8, "active L1 table");
  if (file.debug) await file.debug.event(co, "l1_update");
  await file.pwrite(co, position, new Uint8Array(entry.buffer));
  l1Table.setBigUint64(l1Index * 8, entry.getBigUint64(0));
}

/** A write that failed may still have reached the disk: unless it can be undone, the table is better lost than used twice. */
async function restoreL1Entry(co: Coroutine<"read">, state: Qcow2State, l1Index: number): Promise<boolean> {
  const { l1Table, l1TableOffset, file } = state;
  const at = l1Index * 8;
  try {
    await file.pwrite(co, l1TableOffset + at, new Uint8Array(l1Table.buffer, l1Table.byteOffset + at, 8));
    return true;
  } catch (error) {
    if (error instanceof BlockError) return false;
    throw error;
  }
}

/** Moves the L1 table to a larger one. Not `exact`: with room for more growth.  @qemu qcow2_grow_l1_table */
export async function growL1(
  co: Coroutine<"read">,
  state: Qcow2State,
  minEntries: number,
  exact: boolean,
): Promise<void> {
  if (minEntries <= state.l1Size) return;
  let entries = minEntries;
  if (!exact)
    for (entries = Math.max(state.l1Size, 1); entries < minEntries; ) entries = Math.ceil(entries * 1.5);
  if (entries * 8 > MAX_L1_BYTES) throw new BlockError("EFBIG");
  const { file } = state;
  const bytes = entries * 8;
  const content = new Uint8Array(bytes);
  content.set(new Uint8Array(state.l1Table.buffer, state.l1Table.byteOffset, state.l1Size * 8));
  if (file.debug) await file.debug.event(co, "l1_grow_alloc_table");
  const offset = await allocateClusters(co, state, bytes, "L1 table");
  let isActivated = false;
  try {
    await state.refcountCache.flush(co);
    await checkOverlap(co, state, offset, bytes);
    if (file.debug) await file.debug.event(co, "l1_grow_write_table");
    await file.pwrite(co, offset, content);
    await file.flush(co);
    if (file.debug) await file.debug.event(co, "l1_grow_activate_table");
    isActivated = true;
    await writeL1Pointer(co, state, entries, offset);
    await file.flush(co);
  } catch (error) {
    if (!isActivated || (await restoreL1Pointer(co, state)))
      await freeClusters(co, state, offset, bytes, "other");
    throw error;
  }
  const oldOffset = state.l1TableOffset;
  const oldBytes = state.l1Size * 8;
  state.l1Table = new DataView(content.buffer);
  state.l1TableOffset = offset;
  state.l1Size = entries;
  await freeClusters(co, state, oldOffset, oldBytes, "other");
}

/** Size and place of the L1 table, in the header. */
function writeL1Pointer(
  co: Coroutine<"read">,
  { file }: Qcow2State,
  entries: number,
  hostOffset: number,
): Promise<void> {
  const pointer = new Uint8Array(12);
  const view = new DataView(pointer.buffer);
  u32.write(view, 0, entries, false);
  u64.write(view, 4, hostOffset, false);
  return file.pwrite(co, HeaderV2.offsetOf.l1Size, pointer);
}

/** As for an entry: unless the old pointer is there for sure, the new table is better lost than used twice. */
async function restoreL1Pointer(co: Coroutine<"read">, state: Qcow2State): Promise<boolean> {
  try {
    await writeL1Pointer(co, state, state.l1Size, state.l1TableOffset);
    return true;
  } catch (error) {
    if (error instanceof BlockError) return false;
    throw error;
  }
}

/** The slice with the entry for a guest offset, to be changed before the next await. `ensureL2` has been called. */
export async function sliceFor(
  co: Coroutine<"read">,
  state: Qcow2State,
  guestOffset: number,
): Promise<{ readonly slice: Table; readonly index: number }> {
  const l2Offset = tableOffset(state.l1Table, Math.floor(guestOffset / l2Coverage(state)));
  const { sliceOffset, index } = placeOf(state, l2Offset, guestOffset);
  return { slice: await state.l2Cache.load(co, sliceOffset), index };
}

/** The entry at `index` of a slice, as it stands there. */
export interface RawEntry {
  readonly high: number;
  readonly low: number;
  /** With extended L2; else 0. */
  readonly zeroBits: number;
  readonly allocatedBits: number;
}

export function readEntry(state: Qcow2State, slice: Table, index: number): RawEntry {
  const at = index * state.l2EntryBytes;
  const { view } = slice;
  return {
    high: view.getUint32(at),
    low: view.getUint32(at + 4),
    zeroBits: state.extendedL2 ? view.getUint32(at + 8) : 0,
    allocatedBits: state.extendedL2 ? view.getUint32(at + 12) : 0,
  };
}

export function writeEntry(state: Qcow2State, slice: Table, index: number, entry: RawEntry): void {
  const at = index * state.l2EntryBytes;
  const { view } = slice;
  view.setUint32(at, entry.high);
  view.setUint32(at + 4, entry.low);
  if (state.extendedL2) {
    view.setUint32(at + 8, entry.zeroBits);
    view.setUint32(at + 12, entry.allocatedBits);
  }
  slice.markDirty(at, at + state.l2EntryBytes);
}

export function sameEntry(a: RawEntry, b: RawEntry): boolean {
  return (
    a.high === b.high && a.low === b.low && a.zeroBits === b.zeroBits && a.allocatedBits === b.allocatedBits
  );
}

/** Whether the entry has a host cluster of its own, or compressed data. */
export function hasHostData(state: Qcow2State, { high, low }: RawEntry): boolean {
  if (high & COMPRESSED_HIGH) return true;
  return entryOffset(high, low) > 0 || (state.hasDataFile && high >= 0x80000000);
}

/** Frees what entries referred to that are gone from the tables: neighbours in one go.  @qemu qcow2_free_any_cluster */
export async function freeEntries(
  co: Coroutine<"read">,
  state: Qcow2State,
  entries: readonly RawEntry[],
  discard: DiscardType,
): Promise<void> {
  let start = 0;
  let end = 0;
  const flushRun = async () => {
    if (end > start) await release(co, state, start, end - start, discard);
  };
  for (const entry of entries) {
    if (!hasHostData(state, entry)) continue;
    const { high, low } = entry;
    if (high & COMPRESSED_HIGH) {
      if (state.hasDataFile) continue;
      const extent = parseCompressed(high, low, state.clusterBits);
      state.inflated.delete(`${high}:${low}`);
      state.inflatedGeneration++;
      await freeClusters(co, state, extent.hostOffset, extent.bytes, discard);
      continue;
    }
    const offset = entryOffset(high, low);
    if (offset % state.clusterSize !== 0) {
      await signalCorruption(co, state, `Cannot free unaligned cluster ${hex(offset)}`, false);
      continue;
    }
    if (offset !== end) {
      await flushRun();
      start = offset;
    }
    end = offset + state.clusterSize;
  }
  await flushRun();
}

async function release(
  co: Coroutine<"read">,
  state: Qcow2State,
  offset: number,
  bytes: number,
  discard: DiscardType,
): Promise<void> {
  if (!state.hasDataFile) return freeClusters(co, state, offset, bytes, discard);
  if (!state.passDiscard[discard]) return;
  // Nothing else is ever put there, but a transfer that is under way must find what it looks for.
  await state.transfers.barrier();
  await passDiscard(co, state.dataFile, offset, bytes);
}
