/**
 * Refcounts of another width: new blocks and a new table beside the old ones, and then one write of the header that
 * says which count.  @qemu qcow2_change_refcount_order
 *
 * The clusters of the new structures are taken from the old ones, which may need further blocks for that; what is
 * taken must be counted by the new ones too. So the old refcounts are walked over until nothing more is needed, and
 * once again to be written in the new width.
 */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { alignUp } from "../../src/block/units.ts";
import { checkOverlap } from "./corruption.ts";
import { hex, refcountAccess, setEntry, tableOffset } from "./entries.ts";
import { updateHeader } from "./header.ts";
import { MAX_REFCOUNT_TABLE_BYTES } from "./layout.ts";
import {
  allocateClusters,
  freeClusters,
  getRefcount,
  refblockEntries,
  refcountsOf,
  settleFreed,
} from "./refcount.ts";
import type { Qcow2State } from "./state.ts";

/** Gets how far the work has come, in units of its own. */
export type OnProgress = (done: number, total: number) => void;

/** The structures in the new width. */
interface Successor {
  readonly bits: number;
  /** Clusters that one block counts. */
  readonly blockEntries: number;
  /** Host offset of each block by its index; where all refcounts are 0 there is none. */
  readonly blocks: Map<number, number>;
  tableOffset: number;
  tableBytes: number;
}

/** Called with the lock held. An error leaves the image as it was. */
export async function changeRefcountWidth(
  co: Coroutine<"read">,
  state: Qcow2State,
  bits: number,
  onProgress: OnProgress,
): Promise<void> {
  const blockEntries = (state.clusterSize * 8) / bits;
  const next: Successor = { bits, blockEntries, blocks: new Map(), tableOffset: 0, tableBytes: 0 };
  const entries = state.refcountTable.byteLength / 8;
  let walks: number;
  try {
    walks = await allocate(co, state, next, onProgress);
    const report: OnProgress = (done, total) => onProgress(walks * total + done, (walks + 1) * total);
    await walkOver(co, state, next, report, (index) => writeBlock(co, state, next, index));
    await writeTable(co, state, next);
    await state.refcountCache.flush(co);
    await settleFreed(co, state);
  } catch (error) {
    await freeStructures(co, state, next.blocks.values(), next);
    throw error;
  }
  await activate(co, state, next);
  onProgress((walks + 1) * entries, (walks + 1) * entries);
}

/** Finds clusters for blocks and table; how many walks it took. */
async function allocate(
  co: Coroutine<"read">,
  state: Qcow2State,
  next: Successor,
  onProgress: OnProgress,
): Promise<number> {
  const { blocks } = next;
  for (let walk = 0; ; walk++) {
    const before = blocks.size;
    // One that allocates, one that finds nothing to do, and one that writes: three at least.
    const walks = Math.max(walk + 2, 3);
    const report: OnProgress = (done, total) => onProgress(walk * total + done, walks * total);
    await walkOver(co, state, next, report, async (index) => {
      if (!blocks.has(index) && (await needsBlock(co, state, next, index)))
        blocks.set(index, await allocateBlock(co, state, index));
    });
    if (blocks.size === before) return walk + 1;
    await allocateTable(co, state, next);
  }
}

/** Visits each new block's range in which the old table has a block. */
async function walkOver(
  co: Coroutine<"read">,
  state: Qcow2State,
  { blockEntries }: Successor,
  onProgress: OnProgress,
  visit: (blockIndex: number) => Promise<void>,
): Promise<void> {
  const oldEntries = refblockEntries(state);
  const visitNext = async () => {
    if (isCounted(state, block * blockEntries, blockEntries)) await visit(block);
    block++;
  };
  let block = 0;
  // The old table may grow on the way.
  for (let index = 0; index * 8 < state.refcountTable.byteLength; index++) {
    onProgress(index, state.refcountTable.byteLength / 8);
    co.checkAborted();
    while ((block + 1) * blockEntries <= (index + 1) * oldEntries) await visitNext();
  }
  await visitNext();
}

/** Whether the old table has a block for any of the clusters. */
function isCounted(state: Qcow2State, first: number, count: number): boolean {
  const { refcountTable } = state;
  const entries = refblockEntries(state);
  const last = Math.min(Math.floor((first + count - 1) / entries), refcountTable.byteLength / 8 - 1);
  for (let index = Math.floor(first / entries); index <= last; index++)
    if (tableOffset(refcountTable, index) !== 0) return true;
  return false;
}

/** Calls `fn` with every cluster of the range that has a refcount. */
export async function forEachRefcount(
  co: Coroutine<"read">,
  state: Qcow2State,
  first: number,
  count: number,
  fn: (cluster: number, refcount: number) => void,
): Promise<void> {
  const { get } = refcountsOf(state);
  const entries = refblockEntries(state);
  for (let at = first; at < first + count; ) {
    const end = Math.min(at - (at % entries) + entries, first + count);
    if (isCounted(state, at, 1)) {
      // The offset is checked on the way.
      await getRefcount(co, state, at);
      const { view } = await state.refcountCache.load(
        co,
        tableOffset(state.refcountTable, Math.floor(at / entries)),
      );
      for (; at < end; at++) {
        const refcount = get(view, at % entries);
        if (refcount > 0) fn(at, refcount);
      }
    }
    at = end;
  }
}

async function needsBlock(
  co: Coroutine<"read">,
  state: Qcow2State,
  { bits, blockEntries }: Successor,
  index: number,
): Promise<boolean> {
  const { max } = refcountAccess(Math.log2(bits));
  let isNeeded = false;
  await forEachRefcount(co, state, index * blockEntries, blockEntries, (cluster, refcount) => {
    isNeeded = true;
    if (refcount > max)
      throw new BlockError(
        "EINVAL",
        `Cannot decrease refcount entry width to ${bits} bits: Cluster at offset ` +
          `${hex(cluster * state.clusterSize)} has a refcount of ${refcount}`,
      );
  });
  return isNeeded;
}

async function allocateBlock(co: Coroutine<"read">, state: Qcow2State, index: number): Promise<number> {
  if ((index + 1) * 8 > MAX_REFCOUNT_TABLE_BYTES)
    throw new BlockError(
      "ENOTSUP",
      "This operation would make the refcount table grow beyond the maximum size supported by QEMU, aborting",
    );
  try {
    return await allocateClusters(co, state, state.clusterSize, "refcount block");
  } catch (error) {
    throw BlockError.wrap("Failed to allocate refblock", error);
  }
}

/** A table that is long enough, in place of the one of the walk before. */
async function allocateTable(co: Coroutine<"read">, state: Qcow2State, next: Successor): Promise<void> {
  const { tableOffset: oldOffset, tableBytes: oldBytes } = next;
  let lastIndex = 0;
  for (const index of next.blocks.keys()) lastIndex = Math.max(lastIndex, index);
  const bytes = alignUp((lastIndex + 1) * 8, state.clusterSize);
  next.tableBytes = 0;
  await freeClusters(co, state, oldOffset, oldBytes, "never");
  try {
    next.tableOffset = await allocateClusters(co, state, bytes, "refcount table");
  } catch (error) {
    throw BlockError.wrap("Failed to allocate the new reftable", error);
  }
  next.tableBytes = bytes;
}

async function writeBlock(
  co: Coroutine<"read">,
  state: Qcow2State,
  { bits, blockEntries, blocks }: Successor,
  index: number,
): Promise<void> {
  const offset = blocks.get(index);
  if (offset === undefined) return;
  const { set } = refcountAccess(Math.log2(bits));
  const content = new DataView(new ArrayBuffer(state.clusterSize));
  await forEachRefcount(co, state, index * blockEntries, blockEntries, (cluster, refcount) =>
    set(content, cluster % blockEntries, refcount),
  );
  await writeStructure(co, state, offset, content, "Failed to write refblock");
}

async function writeTable(co: Coroutine<"read">, state: Qcow2State, next: Successor): Promise<void> {
  await writeStructure(co, state, next.tableOffset, tableOf(next), "Failed to write the new reftable");
  await state.file.flush(co);
}

function tableOf({ blocks, tableBytes }: Successor): DataView<ArrayBuffer> {
  const table = new DataView(new ArrayBuffer(tableBytes));
  for (const [index, offset] of blocks) setEntry(table, index * 8, offset, false);
  return table;
}

async function writeStructure(
  co: Coroutine<"read">,
  state: Qcow2State,
  offset: number,
  content: DataView<ArrayBuffer>,
  failure: string,
): Promise<void> {
  try {
    await checkOverlap(co, state, offset, content.byteLength);
    await state.file.pwrite(co, offset, new Uint8Array(content.buffer));
  } catch (error) {
    throw BlockError.wrap(failure, error);
  }
}

/** From here on the new structures count, and the old ones are free. */
async function activate(co: Coroutine<"read">, state: Qcow2State, next: Successor): Promise<void> {
  const { refcountBits, refcountTable, refcountTableOffset, refcountTableClusters } = state;
  const old = { refcountBits, refcountTable, refcountTableOffset, refcountTableClusters };
  const oldBlocks: number[] = [];
  for (let index = 0; index * 8 < refcountTable.byteLength; index++) {
    const offset = tableOffset(refcountTable, index);
    if (offset !== 0) oldBlocks.push(offset);
  }
  const use = async (structures: typeof old) => {
    Object.assign(state, structures);
    await updateHeader(co, state);
    await state.file.flush(co);
  };
  try {
    await use({
      refcountBits: next.bits,
      refcountTable: tableOf(next),
      refcountTableOffset: next.tableOffset,
      refcountTableClusters: next.tableBytes / state.clusterSize,
    });
  } catch (error) {
    try {
      await use(old);
    } catch {
      // Which of them counts can't be told: nothing more is to be changed.
      state.isBroken = true;
      throw error;
    }
    await freeStructures(co, state, next.blocks.values(), next);
    throw BlockError.wrap("Failed to update the qcow2 header", error);
  }
  state.refcountCache.clear();
  state.metadataIndex = undefined;
  await freeStructures(co, state, oldBlocks, {
    tableOffset: refcountTableOffset,
    tableBytes: refcountTableClusters * state.clusterSize,
  });
  await state.refcountCache.flush(co);
}

async function freeStructures(
  co: Coroutine<"read">,
  state: Qcow2State,
  blocks: Iterable<number>,
  table: Pick<Successor, "tableOffset" | "tableBytes">,
): Promise<void> {
  for (const offset of blocks) await freeClusters(co, state, offset, state.clusterSize, "other");
  await freeClusters(co, state, table.tableOffset, table.tableBytes, "other");
}
