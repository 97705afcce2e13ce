/** Refcount structures of the right size: made for space that is about to be set aside, dropped where all is free. */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { checkOverlap, noteMoved } from "./corruption.ts";
import { setEntry, tableOffset } from "./entries.ts";
import { MAX_REFCOUNT_TABLE_BYTES } from "./layout.ts";
import {
  changeRefcounts,
  freeClusters,
  noteFreed,
  refblockEntries,
  refcountsOf,
  settleFreed,
} from "./refcount.ts";
import { switchRefcountTable } from "./refcount-blocks.ts";
import { forEachRefcount } from "./refcount-width.ts";
import type { Qcow2State } from "./state.ts";

/** Where the structures lie: new blocks, then the table, then what they count beside themselves. In clusters. */
interface Area {
  readonly first: number;
  /** Indices in the refcount table. */
  readonly newBlocks: readonly number[];
  readonly tableClusters: number;
}

/**
 * Moves the refcount table to where space is about to be set aside, with the blocks that count that space: so nothing
 * need be made on the way while it is put to use.  @qemu qcow2_refcount_area
 *
 * Gives the first cluster behind the structures, from which `count` clusters on have blocks; these clusters still
 * have refcount 0. `first`: behind all clusters in use. Called with the lock held.
 */
export async function makeRefcountArea(
  co: Coroutine<"read">,
  state: Qcow2State,
  first: number,
  count: number,
): Promise<number> {
  const area = planArea(state, first, count);
  const { newBlocks, tableClusters } = area;
  const tableStart = first + newBlocks.length;
  const end = tableStart + tableClusters;
  if (tableClusters * state.clusterSize > MAX_REFCOUNT_TABLE_BYTES) throw new BlockError("EFBIG");
  if ((end + count) * state.clusterSize > state.maxHostOffset) throw new BlockError("EFBIG");
  const table = await writeArea(co, state, area);
  await switchRefcountTable(co, state, table, tableStart * state.clusterSize);
  return end;
}

/** New blocks count themselves and the table too: what is needed is found by going round. */
function planArea(state: Qcow2State, first: number, count: number): Area {
  const { refcountTable, clusterSize } = state;
  const entries = refblockEntries(state);
  const oldLength = refcountTable.byteLength / 8;
  let lastUsed = oldLength - 1;
  while (lastUsed > 0 && tableOffset(refcountTable, lastUsed) === 0) lastUsed--;
  let newBlocks: number[] = [];
  let tableClusters = 0;
  for (;;) {
    const clusters = newBlocks.length + tableClusters + count;
    const last = Math.floor((first + clusters - 1) / entries);
    const missing: number[] = [];
    for (let index = Math.floor(first / entries); index <= last; index++)
      if (index >= oldLength || tableOffset(refcountTable, index) === 0) missing.push(index);
    const wanted = Math.ceil(((Math.max(last, lastUsed) + 1) * 8) / clusterSize);
    if (missing.length <= newBlocks.length && wanted <= tableClusters)
      return { first, newBlocks, tableClusters };
    newBlocks = missing.length > newBlocks.length ? missing : newBlocks;
    tableClusters = Math.max(tableClusters, wanted);
  }
}

/** Everything but the header, which still names the old table. */
async function writeArea(
  co: Coroutine<"read">,
  state: Qcow2State,
  { first, newBlocks, tableClusters }: Area,
): Promise<DataView<ArrayBuffer>> {
  const { file, clusterSize, refcountTable } = state;
  const entries = refblockEntries(state);
  const bytes = (newBlocks.length + tableClusters) * clusterSize;
  await checkOverlap(co, state, first * clusterSize, bytes);
  const table = new DataView(new ArrayBuffer(tableClusters * clusterSize));
  const kept = Math.min(refcountTable.byteLength, table.byteLength);
  new Uint8Array(table.buffer).set(new Uint8Array(refcountTable.buffer, refcountTable.byteOffset, kept));
  const { set } = refcountsOf(state);
  const end = first + newBlocks.length + tableClusters;
  if (file.debug) await file.debug.event(co, "refblock_alloc_write_blocks");
  for (const [order, index] of newBlocks.entries()) {
    const offset = (first + order) * clusterSize;
    const block = new DataView(new ArrayBuffer(clusterSize));
    const start = Math.max(first, index * entries);
    for (let at = start; at < Math.min(end, (index + 1) * entries); at++) set(block, at % entries, 1);
    await file.pwrite(co, offset, new Uint8Array(block.buffer));
    setEntry(table, index * 8, offset, false);
  }
  await countByOldBlocks(co, state, first, end);
  if (file.debug) await file.debug.event(co, "refblock_alloc_write_table");
  await file.pwrite(co, (end - tableClusters) * clusterSize, new Uint8Array(table.buffer));
  await file.flush(co);
  return table;
}

/** Those clusters of [first, end) for which there are blocks already. */
async function countByOldBlocks(
  co: Coroutine<"read">,
  state: Qcow2State,
  first: number,
  end: number,
): Promise<void> {
  const { refcountTable, clusterSize } = state;
  const entries = refblockEntries(state);
  for (let at = first; at < end; ) {
    const index = Math.floor(at / entries);
    const next = Math.min((index + 1) * entries, end);
    if (index * 8 < refcountTable.byteLength && tableOffset(refcountTable, index) !== 0)
      await changeRefcounts(co, state, at * clusterSize, (next - at) * clusterSize, 1, "never");
    at = next;
  }
  await state.refcountCache.flush(co);
}

/** Gives up blocks that count nothing but, maybe, themselves. Called with the lock held.  @qemu qcow2_shrink_reftable */
export async function dropUnusedRefblocks(co: Coroutine<"read">, state: Qcow2State): Promise<void> {
  const { file, refcountTable, refcountTableOffset, refcountCache, clusterSize } = state;
  const entries = refblockEntries(state);
  const table = new DataView(new Uint8Array(refcountTable.buffer).slice().buffer);
  const unused: { readonly index: number; readonly offset: number }[] = [];
  for (let index = 0; index * 8 < table.byteLength; index++) {
    const offset = tableOffset(table, index);
    if (offset === 0 || !(await isUnused(co, state, index, offset))) continue;
    unused.push({ index, offset });
    setEntry(table, index * 8, 0, false);
  }
  if (unused.length === 0) return;
  await file.pwrite(co, refcountTableOffset, new Uint8Array(table.buffer));
  await file.flush(co);
  state.refcountTable = table;
  for (const { index, offset } of unused) {
    const own = offset / clusterSize;
    noteMoved(state, "refblocks", offset, 0);
    refcountCache.drop(offset, clusterSize);
    if (Math.floor(own / entries) === index) noteFreed(state, own, "always");
    else await freeClusters(co, state, offset, clusterSize, "always");
  }
  await refcountCache.flush(co);
  await settleFreed(co, state);
}

async function isUnused(
  co: Coroutine<"read">,
  state: Qcow2State,
  index: number,
  offset: number,
): Promise<boolean> {
  const entries = refblockEntries(state);
  const own = offset / state.clusterSize;
  let isFree = true;
  await forEachRefcount(co, state, index * entries, entries, (cluster) => {
    isFree &&= cluster === own;
  });
  return isFree;
}
