/**
 * What an internal snapshot does to refcounts: each L1 table has a reference to all its L2 tables and, through each of
 * them, one to every cluster that those name.  @qemu qcow2_update_snapshot_refcount
 *
 * Invariants (all functions are called with the driver's lock held, and with no allocation under way):
 * 1. Where more than one table refers to a cluster, no entry in the file says "copied". The other way round does no
 *    harm: who finds the flag missing copies a cluster that need not have been.
 * 2. References are added before the table that has them is part of the image, and taken away after it is not.
 */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { signalCorruption } from "./corruption.ts";
import {
  COMPRESSED_HIGH,
  COPIED_HIGH,
  entryOffset,
  hex,
  parseCompressed,
  setEntry,
  tableOffset,
} from "./entries.ts";
import { MAX_REFCOUNT_TABLE_BYTES } from "./layout.ts";
import { getRefcount, peekRefcount, refblockEntries, updateRefcount } from "./refcount.ts";
import { addRefblock } from "./refcount-blocks.ts";
import { flushTables } from "./snapshot-table.ts";
import type { Qcow2State } from "./state.ts";

/** A walk over everything that an L1 table refers to. */
interface Walk {
  readonly addend: 1 | 0 | -1;
  /** Changes of refcounts made so far. The same tables give the same ones in the same order. */
  changes: number;
  /** The walk ends after so many. */
  readonly maxChanges: number;
}

/**
 * Adds one reference for all that `l1Table` refers to: all of it or, after an error, nothing, as far as undoing
 * succeeds. Flags follow, those of `l1Table` in place; true if some of those changed. All is on the disk afterwards.
 */
export async function addReferences(
  co: Coroutine<"read">,
  state: Qcow2State,
  l1Table: DataView,
): Promise<boolean> {
  const walk: Walk = { addend: 1, changes: 0, maxChanges: Infinity };
  const before = copyOf(l1Table);
  try {
    const changed = await walkL1(co, state, l1Table, walk);
    await flushTables(co, state);
    return changed;
  } catch (error) {
    await dropReferences(co, state, before, walk.changes).catch(ignoreBlockError);
    throw error;
  }
}

/** Takes one reference from all that `l1Table` refers to, and frees what has none left. */
export async function dropReferences(
  co: Coroutine<"read">,
  state: Qcow2State,
  l1Table: DataView,
  maxChanges: number = Infinity,
): Promise<void> {
  state.inflated.clear();
  state.inflatedGeneration++;
  await walkL1(co, state, copyOf(l1Table), { addend: -1, changes: 0, maxChanges });
  await flushTables(co, state);
}

/** Sets the flags by the refcounts as they are; true if flags of `l1Table` itself changed, which are the caller's to write. */
export async function refreshFlags(
  co: Coroutine<"read">,
  state: Qcow2State,
  l1Table: DataView,
): Promise<boolean> {
  const changed = await walkL1(co, state, l1Table, { addend: 0, changes: 0, maxChanges: Infinity });
  await flushTables(co, state);
  return changed;
}

function copyOf(table: DataView): DataView {
  return new DataView(new Uint8Array(table.buffer, table.byteOffset, table.byteLength).slice().buffer);
}

function ignoreBlockError(error: unknown): void {
  if (!(error instanceof BlockError)) throw error;
}

/** Works on `l1Table` in place; true if it was changed. */
async function walkL1(
  co: Coroutine<"read">,
  state: Qcow2State,
  l1Table: DataView,
  walk: Walk,
): Promise<boolean> {
  const { clusterSize, l2Cache } = state;
  let changed = false;
  for (let index = 0; index * 8 < l1Table.byteLength; index++) {
    const l2Offset = tableOffset(l1Table, index);
    if (l2Offset === 0) continue;
    if (l2Offset % clusterSize !== 0)
      throw await signalCorruption(
        co,
        state,
        `L2 table offset ${hex(l2Offset)} unaligned (L1 index: ${hex(index)})`,
      );
    for (let start = 0; start < clusterSize; start += l2Cache.tableBytes) {
      if (walk.changes >= walk.maxChanges) return changed;
      await walkSlice(co, state, l2Offset, start, walk);
    }
    await change(co, state, walk, l2Offset, clusterSize);
    const before = l1Table.getUint32(index * 8);
    setEntry(l1Table, index * 8, l2Offset, (await getRefcount(co, state, l2Offset / clusterSize)) === 1);
    changed ||= before !== l1Table.getUint32(index * 8);
  }
  return changed;
}

async function change(
  co: Coroutine<"read">,
  state: Qcow2State,
  walk: Walk,
  offset: number,
  bytes: number,
): Promise<void> {
  if (walk.addend === 0 || bytes === 0 || walk.changes >= walk.maxChanges) return;
  await checkCounted(co, state, offset, bytes);
  await updateRefcount(co, state, offset, bytes, walk.addend, "snapshot");
  walk.changes++;
}

/**
 * What is in use has a refcount, and a block that holds it. Where there is none the image is wrong, and QEMU makes the
 * block before it gives up.
 */
async function checkCounted(
  co: Coroutine<"read">,
  state: Qcow2State,
  offset: number,
  bytes: number,
): Promise<void> {
  const blockBytes = refblockEntries(state) * state.clusterSize;
  const last = Math.floor((offset + bytes - 1) / blockBytes);
  for (let index = Math.floor(offset / blockBytes); index <= last; index++) {
    if (index * 8 >= MAX_REFCOUNT_TABLE_BYTES) throw new BlockError("EFBIG");
    const isCovered = index * 8 < state.refcountTable.byteLength;
    if (isCovered && tableOffset(state.refcountTable, index) !== 0) continue;
    await addRefblock(co, state, index);
    throw new BlockError("EAGAIN");
  }
}

/** The slice from byte `start` of the L2 table at `l2Offset`. */
async function walkSlice(
  co: Coroutine<"read">,
  state: Qcow2State,
  l2Offset: number,
  start: number,
  walk: Walk,
): Promise<void> {
  const { l2Cache, l2EntryBytes } = state;
  // What is read here stays right while the lock is held, but to be changed the slice must be in the cache.
  const { view } = await l2Cache.load(co, l2Offset + start);
  await checkAlignment(co, state, view, l2Offset, start);
  if (walk.addend !== 0) await changeClusters(co, state, view, walk);
  const wrong = await wrongFlags(co, state, view);
  if (wrong.length === 0) return;
  if (walk.addend > 0) await l2Cache.setDependency(co, state.refcountCache);
  const slice = await l2Cache.load(co, l2Offset + start);
  for (const at of wrong) {
    slice.view.setUint32(at, (slice.view.getUint32(at) ^ COPIED_HIGH) >>> 0);
    slice.markDirty(at, at + l2EntryBytes);
  }
}

/** Host offset of the cluster that the entry at `at` has for itself; 0: none, or compressed data. */
function clusterAt(view: DataView, at: number): number {
  const high = view.getUint32(at);
  return high & COMPRESSED_HIGH ? 0 : entryOffset(high, view.getUint32(at + 4));
}

async function checkAlignment(
  co: Coroutine<"read">,
  state: Qcow2State,
  view: DataView,
  l2Offset: number,
  start: number,
): Promise<void> {
  const { clusterSize, l2EntryBytes } = state;
  for (let at = 0; at < view.byteLength; at += l2EntryBytes) {
    const hostOffset = clusterAt(view, at);
    if (hostOffset % clusterSize === 0) continue;
    const place = `(L2 offset: ${hex(l2Offset)}, L2 index: ${hex((start + at) / l2EntryBytes)})`;
    throw await signalCorruption(
      co,
      state,
      `Cluster allocation offset ${hex(hostOffset)} unaligned ${place}`,
    );
  }
}

/** Clusters that follow each other are changed in one go. */
async function changeClusters(
  co: Coroutine<"read">,
  state: Qcow2State,
  view: DataView,
  walk: Walk,
): Promise<void> {
  const { clusterSize, clusterBits, l2EntryBytes } = state;
  let start = 0;
  let end = 0;
  for (let at = 0; at < view.byteLength; at += l2EntryBytes) {
    const high = view.getUint32(at);
    if (high & COMPRESSED_HIGH) {
      const extent = parseCompressed(high, view.getUint32(at + 4), clusterBits);
      await change(co, state, walk, extent.hostOffset, extent.bytes);
    }
    const hostOffset = clusterAt(view, at);
    if (hostOffset === 0) continue;
    if (hostOffset !== end) {
      await change(co, state, walk, start, end - start);
      start = hostOffset;
    }
    end = hostOffset + clusterSize;
  }
  await change(co, state, walk, start, end - start);
}

/** Positions of the entries whose flag does not say whether their cluster has just the one reference. */
async function wrongFlags(co: Coroutine<"read">, state: Qcow2State, view: DataView): Promise<number[]> {
  const { clusterSize, l2EntryBytes } = state;
  const wrong: number[] = [];
  for (let at = 0; at < view.byteLength; at += l2EntryBytes) {
    const cluster = clusterAt(view, at) / clusterSize;
    const copied =
      cluster > 0 && (peekRefcount(state, cluster) ?? (await getRefcount(co, state, cluster))) === 1;
    if (copied !== view.getUint32(at) >= COPIED_HIGH) wrong.push(at);
  }
  return wrong;
}
