/**
 * Growth of the refcount structures: a block where there is none yet, and a larger table.  @qemu alloc_refcount_block
 *
 * A block or table is written and its own refcount is in the file before anything points to it. A block that covers
 * itself brings its refcount with it.
 */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { u32, u64 } from "../../src/block/layout.ts";
import { checkOverlap, noteMoved, signalCorruption } from "./corruption.ts";
import { setEntry, tableOffset } from "./entries.ts";
import { HeaderV2, MAX_REFCOUNT_TABLE_BYTES } from "./layout.ts";
import { changeRefcounts, findFreeClusters, freeClusters, refblockEntries, refcountsOf } from "./refcount.ts";
import type { Qcow2State } from "./state.ts";
import type { Table } from "./table-cache.ts";

/** Makes the block for entry `tableIndex` of the refcount table, growing the table where it must. */
export async function addRefblock(
  co: Coroutine<"read">,
  state: Qcow2State,
  tableIndex: number,
): Promise<Table> {
  const { file, clusterSize, refcountCache } = state;
  if (tableIndex * 8 >= state.refcountTable.byteLength) await growRefcountTable(co, state, tableIndex);
  const entries = refblockEntries(state);
  const own = await findFreeClusters(co, state, 1);
  const offset = own * clusterSize;
  if (own === 0)
    throw await signalCorruption(co, state, "Preventing invalid allocation of refcount block at offset 0");
  const content = new Uint8Array(clusterSize);
  const coversItself = Math.floor(own / entries) === tableIndex;
  if (coversItself) refcountsOf(state).set(new DataView(content.buffer), own % entries, 1);
  else {
    await changeRefcounts(co, state, offset, clusterSize, 1, "never");
    await refcountCache.flush(co);
  }
  // That may have made this very block, on the way to where it is itself.
  const made = tableOffset(state.refcountTable, tableIndex);
  if (made !== 0) {
    await freeClusters(co, state, offset, clusterSize, "never");
    return refcountCache.load(co, made);
  }
  if (file.debug) await file.debug.event(co, "refblock_alloc_write");
  if (file.debug) await file.debug.event(co, "refblock_update_part");
  await checkOverlap(co, state, offset, clusterSize);
  await file.pwrite(co, offset, content);
  await file.flush(co);
  if (file.debug) await file.debug.event(co, "refblock_alloc_hookup");
  const entry = new DataView(new ArrayBuffer(8));
  setEntry(entry, 0, offset, false);
  await file.pwrite(co, state.refcountTableOffset + tableIndex * 8, new Uint8Array(entry.buffer));
  setEntry(state.refcountTable, tableIndex * 8, offset, false);
  noteMoved(state, "refblocks", 0, offset);
  return refcountCache.put(co, offset, content);
}

/**
 * Moves the refcount table to a larger one that has entry `neededIndex`, in an area of its own behind everything that
 * the old one covers, with the blocks for that area.  @qemu qcow2_refcount_area
 */
async function growRefcountTable(
  co: Coroutine<"read">,
  state: Qcow2State,
  neededIndex: number,
): Promise<void> {
  const { file, clusterSize } = state;
  const entries = refblockEntries(state);
  const oldEntries = state.refcountTable.byteLength / 8;
  // Behind the clusters that are chosen and have no refcount yet: invariant 4 of refcount.ts.
  const areaIndex = Math.max(oldEntries, Math.ceil(state.freeClusterIndex / entries));
  const { tableClusters, blocks } = sizeArea(state, Math.max(neededIndex, areaIndex), entries);
  if (tableClusters * clusterSize > MAX_REFCOUNT_TABLE_BYTES) throw new BlockError("EFBIG");
  const areaOffset = areaIndex * entries * clusterSize;
  const tableStart = areaOffset + blocks * clusterSize;
  const areaClusters = blocks + tableClusters;
  if (areaOffset + areaClusters * clusterSize > state.maxHostOffset) throw new BlockError("EFBIG");

  const table = new DataView(new ArrayBuffer(tableClusters * clusterSize));
  new Uint8Array(table.buffer).set(
    new Uint8Array(state.refcountTable.buffer, state.refcountTable.byteOffset, oldEntries * 8),
  );
  if (file.debug) await file.debug.event(co, "refblock_alloc_write_blocks");
  const { set } = refcountsOf(state);
  for (let block = 0; block < blocks; block++) {
    const content = new Uint8Array(clusterSize);
    const view = new DataView(content.buffer);
    const used = Math.min(areaClusters - block * entries, entries);
    for (let index = 0; index < used; index++) set(view, index, 1);
    await file.pwrite(co, areaOffset + block * clusterSize, content);
    setEntry(table, (areaIndex + block) * 8, areaOffset + block * clusterSize, false);
  }
  if (file.debug) await file.debug.event(co, "refblock_alloc_write_table");
  await file.pwrite(co, tableStart, new Uint8Array(table.buffer));
  await file.flush(co);
  await switchRefcountTable(co, state, table, tableStart);
}

/** Makes a table that has been written, and is stable, the image's. */
export async function switchRefcountTable(
  co: Coroutine<"read">,
  state: Qcow2State,
  table: DataView<ArrayBuffer>,
  hostOffset: number,
): Promise<void> {
  const { file, clusterSize } = state;
  const tableClusters = table.byteLength / clusterSize;
  if (file.debug) await file.debug.event(co, "refblock_alloc_switch_table");
  const pointer = new Uint8Array(12);
  const view = new DataView(pointer.buffer);
  u64.write(view, 0, hostOffset, false);
  u32.write(view, 8, tableClusters, false);
  await file.pwrite(co, HeaderV2.offsetOf.refcountTableOffset, pointer);
  await file.flush(co);

  state.retiredTables.push({
    offset: state.refcountTableOffset,
    bytes: state.refcountTableClusters * clusterSize,
  });
  state.refcountTable = table;
  state.refcountTableOffset = hostOffset;
  state.refcountTableClusters = tableClusters;
  state.metadataIndex = undefined;
}

/** Clusters of the new table (half as large again as needed) and blocks that cover the area, found by going round. */
function sizeArea(
  state: Qcow2State,
  lastIndex: number,
  entries: number,
): { readonly tableClusters: number; readonly blocks: number } {
  let blocks = 1;
  for (;;) {
    const needed = lastIndex + 1 + blocks;
    const wanted = Math.max(Math.min(needed * 1.5, MAX_REFCOUNT_TABLE_BYTES / 8), needed);
    const tableClusters = Math.ceil((Math.ceil(wanted) * 8) / state.clusterSize);
    const covering = Math.ceil((blocks + tableClusters) / entries);
    if (covering <= blocks) return { tableClusters, blocks };
    blocks = covering;
  }
}
