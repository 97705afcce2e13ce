/**
 * Refcounts of host clusters, and the search for free ones.  @qemu block/qcow2-refcount.c
 *
 * Invariants (all functions are called with the driver's lock held):
 * 1. A refcount that grows is in the file before any entry that refers to the cluster: whoever writes such an entry
 *    makes the L2 cache depend on the refcount cache, or flushes the latter.
 * 2. A refcount that falls reaches the file after the entry that referred to the cluster is gone from it: the refcount
 *    cache depends on the L2 cache then.
 * 3. A cluster in `freed` has refcount 0 but may still be referred to in the file, or be under transfer. It is used
 *    again, or given back to the file system, only after `settleFreed`.
 * 4. Clusters that are chosen but have no refcount yet lie below `freeClusterIndex`, so that refcount blocks and
 *    tables that are made meanwhile land behind them. What is freed by that is freed afterwards.
 */

import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { assert, BlockError } from "../../src/block/errors.ts";
import { isZero } from "../../src/block/iov.ts";
import { signalCorruption } from "./corruption.ts";
import { hex, type RefcountAccess, refcountAccess, tableOffset } from "./entries.ts";
import { addRefblock } from "./refcount-blocks.ts";
import type { DiscardType, Qcow2State } from "./state.ts";
import type { Table } from "./table-cache.ts";

/** Freed clusters that are remembered before they are settled. */
const MAX_FREED = 16 * 1024;

const accessors = [0, 1, 2, 3, 4, 5, 6].map(refcountAccess);

/** Reading and writing refcounts of the image's width. */
export function refcountsOf(state: Qcow2State): RefcountAccess {
  return accessors[Math.log2(state.refcountBits)] as RefcountAccess;
}

/** Refcounts that one block holds. */
export function refblockEntries(state: Qcow2State): number {
  return (state.clusterSize * 8) / state.refcountBits;
}

/** The refcount of a cluster; 0 where there is no block for it. */
export async function getRefcount(
  co: Coroutine<"read">,
  state: Qcow2State,
  clusterIndex: number,
): Promise<number> {
  if (peekRefblock(state, clusterIndex) === undefined) await loadRefblock(co, state, clusterIndex);
  return peekRefcount(state, clusterIndex) ?? 0;
}

/** The same where its block is in memory; else undefined. */
export function peekRefcount(state: Qcow2State, clusterIndex: number): number | undefined {
  const block = peekRefblock(state, clusterIndex);
  if (!block) return block === NO_BLOCK ? 0 : undefined;
  return refcountsOf(state).get(block.view, clusterIndex % refblockEntries(state));
}

const NO_BLOCK = null;

/** The block that has the cluster's refcount: null if there is none, undefined if it is not in memory. */
function peekRefblock(state: Qcow2State, clusterIndex: number): Table | typeof NO_BLOCK | undefined {
  const tableIndex = Math.floor(clusterIndex / refblockEntries(state));
  if (tableIndex * 8 >= state.refcountTable.byteLength) return NO_BLOCK;
  const offset = tableOffset(state.refcountTable, tableIndex);
  return offset === 0 ? NO_BLOCK : state.refcountCache.peek(offset);
}

async function loadRefblock(
  co: Coroutine<"read">,
  state: Qcow2State,
  clusterIndex: number,
): Promise<Table | typeof NO_BLOCK> {
  const tableIndex = Math.floor(clusterIndex / refblockEntries(state));
  if (tableIndex * 8 >= state.refcountTable.byteLength) return NO_BLOCK;
  const offset = tableOffset(state.refcountTable, tableIndex);
  if (offset === 0) return NO_BLOCK;
  if (offset % state.clusterSize !== 0) {
    throw await signalCorruption(
      co,
      state,
      `Refblock offset 0x${offset.toString(16)} unaligned (reftable index: ${hex(tableIndex)})`,
    );
  }
  return state.refcountCache.load(co, offset);
}

/**
 * How many of the first `clusters` are in use; it stops counting at `enough`. What has no refcounts, or only zeroes, is
 * passed over in blocks: a file may be a hole of any length.
 */
export async function countUsed(
  co: Coroutine<"read">,
  state: Qcow2State,
  clusters: number,
  enough: number,
): Promise<number> {
  const { get } = refcountsOf(state);
  const blockClusters = refblockEntries(state);
  const end = Math.min(clusters, (state.refcountTable.byteLength / 8) * blockClusters);
  let count = 0;
  for (let first = 0; first < end && count < enough; first += blockClusters) {
    const view = (peekRefblock(state, first) ?? (await loadRefblock(co, state, first)))?.view;
    if (!view || isZero(new Uint8Array(view.buffer, view.byteOffset, view.byteLength))) continue;
    for (let index = 0; index < Math.min(blockClusters, end - first) && count < enough; index++)
      if (get(view, index) > 0) count++;
  }
  return count;
}

/** The last of the first `clusters` that is in use, found as `countUsed` counts; 0 if none is.  @qemu qcow2_get_last_cluster */
export async function lastUsed(co: Coroutine<"read">, state: Qcow2State, clusters: number): Promise<number> {
  const { get } = refcountsOf(state);
  const blockClusters = refblockEntries(state);
  let last = Math.min(clusters, (state.refcountTable.byteLength / 8) * blockClusters) - 1;
  while (last > 0) {
    const first = last - (last % blockClusters);
    const view = (peekRefblock(state, first) ?? (await loadRefblock(co, state, first)))?.view;
    if (!view || isZero(new Uint8Array(view.buffer, view.byteOffset, view.byteLength))) {
      last = first - 1;
      continue;
    }
    for (; last >= first; last--) if (get(view, last % blockClusters) > 0) return last;
  }
  return Math.max(last, 0);
}

/**
 * Adds 1 to, or takes 1 from, the refcount of every cluster that [offset, offset + bytes) touches. All or nothing,
 * as far as undoing succeeds.  @qemu update_refcount
 */
export async function updateRefcount(
  co: Coroutine<"read">,
  state: Qcow2State,
  offset: number,
  bytes: number,
  addend: 1 | -1,
  discard: DiscardType,
): Promise<void> {
  await changeRefcounts(co, state, offset, bytes, addend, discard);
  for (let table = state.retiredTables.pop(); table; table = state.retiredTables.pop())
    await freeClusters(co, state, table.offset, table.bytes, "other");
  if (state.freed.size > MAX_FREED) await settleFreed(co, state);
}

/** The same with any addend, within such a change: what else it frees stays for later. */
export async function changeRefcounts(
  co: Coroutine<"read">,
  state: Qcow2State,
  offset: number,
  bytes: number,
  addend: number,
  discard: DiscardType,
): Promise<void> {
  if (bytes === 0) return;
  if (addend < 0) await state.refcountCache.setDependency(co, state.l2Cache);
  const first = Math.floor(offset / state.clusterSize);
  const last = Math.floor((offset + bytes - 1) / state.clusterSize);
  let index = first;
  try {
    while (index <= last) index = await changeBlock(co, state, index, last, addend, discard);
  } catch (error) {
    for (let undone = first; undone < index; )
      undone = await changeBlock(co, state, undone, index - 1, -addend, "never").catch(() => index);
    throw error;
  }
}

/** Changes those of them that one refcount block has, all or none: gives the index behind them. */
async function changeBlock(
  co: Coroutine<"read">,
  state: Qcow2State,
  first: number,
  last: number,
  addend: number,
  discard: DiscardType,
): Promise<number> {
  const { get, set, max } = refcountsOf(state);
  const entries = refblockEntries(state);
  const { debug } = state.file;
  // Also where there is a block: QEMU's names are those of its functions, which look for one first.
  if (debug) await debug.event(co, "refblock_alloc");
  let block = peekRefblock(state, first);
  if (debug && block !== NO_BLOCK) await debug.event(co, "refblock_load");
  if (block === undefined) block = await loadRefblock(co, state, first);
  if (block === NO_BLOCK) {
    if (addend < 0) throw new BlockError("EINVAL");
    block = await addRefblock(co, state, Math.floor(first / entries));
    // There QEMU begins the search anew.
    if (debug) await debug.event(co, "refblock_alloc");
    if (debug) await debug.event(co, "refblock_load");
  }
  const { view } = block;
  const start = first % entries;
  const blockStart = first - start;
  const end = Math.min(last + 1 - blockStart, entries);
  for (let position = start; position < end; position++) {
    const refcount = get(view, position) + addend;
    if (refcount < 0 || refcount > max) throw new BlockError("EINVAL");
  }
  for (let position = start; position < end; position++) {
    const refcount = get(view, position) + addend;
    set(view, position, refcount);
    if (refcount === 0) noteFreed(state, blockStart + position, discard);
  }
  block.markDirty(Math.floor((start * state.refcountBits) / 8), Math.ceil((end * state.refcountBits) / 8));
  return blockStart + end;
}

/** Makes the refcount of a cluster that has one another; its references are known.  @qemu update_refcount */
export async function setRefcount(
  co: Coroutine<"read">,
  state: Qcow2State,
  clusterIndex: number,
  refcount: number,
): Promise<void> {
  await state.refcountCache.setDependency(co, state.l2Cache);
  const block = peekRefblock(state, clusterIndex) ?? (await loadRefblock(co, state, clusterIndex));
  if (block === NO_BLOCK) throw new BlockError("EINVAL");
  const index = clusterIndex % refblockEntries(state);
  refcountsOf(state).set(block.view, index, refcount);
  const bits = state.refcountBits;
  block.markDirty(Math.floor((index * bits) / 8), Math.ceil(((index + 1) * bits) / 8));
  if (refcount === 0) noteFreed(state, clusterIndex, "always");
}

/** A cluster is not counted any more. */
export function noteFreed(state: Qcow2State, clusterIndex: number, discard: DiscardType): void {
  const offset = clusterIndex * state.clusterSize;
  state.freeClusterIndex = Math.min(state.freeClusterIndex, clusterIndex);
  state.freed.add(clusterIndex);
  if (Math.floor(state.freeByteOffset / state.clusterSize) === clusterIndex) state.freeByteOffset = 0;
  state.l2Cache.drop(offset, state.clusterSize);
  state.refcountCache.drop(offset, state.clusterSize);
  if (!state.passDiscard[discard]) return;
  const last = state.discards.at(-1);
  if (last && last.offset + last.bytes === offset)
    state.discards[state.discards.length - 1] = {
      offset: last.offset,
      bytes: last.bytes + state.clusterSize,
    };
  else state.discards.push({ offset, bytes: state.clusterSize });
}

/**
 * Makes what was freed usable again: the entries that referred to it are gone from the disk, and no transfer touches
 * it. The file is told what it need not keep.
 */
export async function settleFreed(co: Coroutine<"read">, state: Qcow2State): Promise<void> {
  if (state.freed.size === 0) return;
  await state.l2Cache.flush(co);
  await state.transfers.barrier();
  state.freed.clear();
  const { discards } = state;
  state.discards = [];
  for (const { offset, bytes } of discards) await passDiscard(co, state.file, offset, bytes);
}

/** Tells a file what it need not keep; nothing has been put there since it was freed. A failure loses space only. */
export async function passDiscard(
  co: Coroutine<"read">,
  file: BlockChild,
  offset: number,
  bytes: number,
): Promise<void> {
  try {
    await file.pdiscard(co, offset, bytes);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
  }
}

/** `count` free clusters in a row: the index of the first. They get no refcount yet.  @qemu alloc_clusters_noref */
export async function findFreeClusters(
  co: Coroutine<"read">,
  state: Qcow2State,
  count: number,
): Promise<number> {
  const { get } = refcountsOf(state);
  const entries = refblockEntries(state);
  const end = Math.floor(state.maxHostOffset / state.clusterSize);
  let index = state.freeClusterIndex;
  let run = 0;
  let needsSettling = false;
  while (run < count) {
    if (index >= end) throw new BlockError("EFBIG");
    let block = peekRefblock(state, index);
    if (block === undefined) block = await loadRefblock(co, state, index);
    const blockEnd = Math.min(index - (index % entries) + entries, end);
    for (; index < blockEnd && run < count; index++) {
      if (block !== NO_BLOCK && get(block.view, index % entries) !== 0) {
        run = 0;
        needsSettling = false;
      } else {
        run++;
        needsSettling ||= state.freed.size > 0 && state.freed.has(index);
      }
    }
  }
  state.freeClusterIndex = index;
  if (needsSettling) await settleFreed(co, state);
  return index - count;
}

/**
 * `bytes` in whole clusters that follow each other, each with refcount 1: host offset of the first. It is 0, the
 * header's place, only in a broken image and without `what`: then the caller's overlap check is to find that out.
 * @qemu qcow2_alloc_clusters
 */
export async function allocateClusters(
  co: Coroutine<"read">,
  state: Qcow2State,
  bytes: number,
  what?: string,
): Promise<number> {
  const { file, clusterSize } = state;
  if (file.debug) await file.debug.event(co, "cluster_alloc");
  const first = await findFreeClusters(co, state, Math.ceil(bytes / clusterSize));
  const isForbidden = first === 0 && what !== undefined;
  // Where writes are not checked there is nothing else that would keep refcounts from the header.
  if (isForbidden && !state.overlapChecks.has("qcow2_header"))
    throw await signalCorruption(co, state, atOffset0(what));
  await updateRefcount(co, state, first * clusterSize, bytes, 1, "never");
  if (isForbidden) throw await signalCorruption(co, state, atOffset0(what));
  return first * clusterSize;
}

/**
 * Up to `count` clusters from `hostOffset` on, each with refcount 1: how many there were before the first one in use.
 * @qemu qcow2_alloc_clusters_at
 */
export async function allocateClustersAt(
  co: Coroutine<"read">,
  state: Qcow2State,
  hostOffset: number,
  count: number,
): Promise<number> {
  const { clusterSize } = state;
  const first = hostOffset / clusterSize;
  const most = Math.min(count, Math.floor(state.maxHostOffset / clusterSize) - first);
  const entries = refblockEntries(state);
  let free = 0;
  while (free < most && (await getRefcount(co, state, first + free)) === 0) {
    const tableIndex = Math.floor((first + free) / entries);
    const hasBlock = tableIndex * 8 < state.refcountTable.byteLength;
    if (hasBlock && tableOffset(state.refcountTable, tableIndex) !== 0) free++;
    else {
      // QEMU has counted those before it already when it finds that there is no block: it is put behind them.
      await changeRefcounts(co, state, hostOffset, free * clusterSize, 1, "never");
      try {
        await addRefblock(co, state, tableIndex);
      } finally {
        await changeRefcounts(co, state, hostOffset, free * clusterSize, -1, "never");
      }
      // It may be just here.
      free = 0;
    }
  }
  if (free === 0) return 0;
  for (let index = first; index < first + free; index++) {
    if (!state.freed.has(index)) continue;
    await settleFreed(co, state);
    break;
  }
  await updateRefcount(co, state, hostOffset, free * clusterSize, 1, "never");
  return free;
}

/** Only for some is this an error by itself; the others are kept from being written over the header. */
function atOffset0(what: string): string {
  return what === "L2 table" || what === "refcount block"
    ? `Preventing invalid allocation of ${what} at offset 0`
    : "Preventing invalid write on metadata (overlaps with qcow2_header)";
}

/**
 * `bytes` (a cluster at most) behind the last ones that were given so: compressed clusters share host clusters.
 * @qemu qcow2_alloc_bytes
 */
export async function allocateBytes(
  co: Coroutine<"read">,
  state: Qcow2State,
  bytes: number,
): Promise<number> {
  const { file, clusterSize } = state;
  assert(bytes > 0 && bytes <= clusterSize, "compressed data is a cluster at most");
  if (file.debug) await file.debug.event(co, "cluster_alloc_bytes");
  let offset = state.freeByteOffset;
  if (offset > 0) {
    const refcount = await getRefcount(co, state, Math.floor(offset / clusterSize));
    if (refcount === refcountsOf(state).max) offset = 0;
  }
  const room = offset > 0 ? clusterSize - (offset % clusterSize) : 0;
  if (room < bytes) {
    const fresh = (await findFreeClusters(co, state, 1)) * clusterSize;
    if (fresh === 0)
      throw await signalCorruption(
        co,
        state,
        "Preventing invalid allocation of compressed cluster at offset 0",
      );
    // A cluster right behind the last one goes on with it.
    if (offset === 0 || offset + room !== fresh) offset = fresh;
  }
  try {
    await updateRefcount(co, state, offset, bytes, 1, "never");
  } catch (error) {
    state.freeByteOffset = 0;
    throw error;
  }
  const next = offset + bytes;
  state.freeByteOffset = next % clusterSize === 0 ? 0 : next;
  return offset;
}

/** Takes one reference from each cluster of the range. A failure leaks them, which is no reason to fail.  @qemu qcow2_free_clusters */
export async function freeClusters(
  co: Coroutine<"read">,
  state: Qcow2State,
  offset: number,
  bytes: number,
  discard: DiscardType,
): Promise<void> {
  const { file } = state;
  if (file.debug) await file.debug.event(co, "cluster_free");
  try {
    await updateRefcount(co, state, offset, bytes, -1, discard);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    const { message, warn } = state.environment;
    (message ?? warn)(`qcow2_free_clusters failed: ${error.message}`);
  }
}
