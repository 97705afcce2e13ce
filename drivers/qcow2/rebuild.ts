/**
 * Makes the refcount table and all its blocks anew, from the references that were counted.
 * Source: qcow2.txt, "Host cluster management"
 *
 * Everything is written into clusters that nothing refers to, so the old structures stay as they are until the header
 * names the new table: who cuts in before that finds the image as it was.
 */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { u32, u64 } from "../../src/block/layout.ts";
import { alignUp } from "../../src/block/units.ts";
import type { Check } from "./check.ts";
import { checkOverlap } from "./corruption.ts";
import { setEntry } from "./entries.ts";
import { HeaderV2, MAX_REFCOUNT_TABLE_BYTES } from "./layout.ts";
import { refblockEntries, refcountsOf } from "./refcount.ts";

/** Entries of the longest table. */
const MAX_BLOCKS = MAX_REFCOUNT_TABLE_BYTES / 8;

/** The new table while it is made. */
interface NewTable {
  /** Offset of each block by its index. */
  readonly blocks: Map<number, number>;
  /** A multiple of what a cluster holds. */
  entries: number;
}

/** @qemu rebuild_refcount_structure */
export async function rebuildRefcounts(co: Coroutine<"read">, run: Check): Promise<void> {
  const { state, counts } = run;
  const { clusterSize } = state;
  const made: NewTable = { blocks: new Map(), entries: 0 };
  await writeBlocks(co, run, made, 0, counts.clusters);
  let first = 0;
  let clusters = 0;
  // A table has a refcount too: where that asks for more blocks, it may have to be longer and lie elsewhere.
  for (let entries = 0; entries !== made.entries; ) {
    counts.set(first, clusters, 0);
    entries = made.entries;
    clusters = (entries * 8) / clusterSize;
    first = counts.findFree(clusters, 0);
    counts.set(first, clusters, 1);
    await writeBlocks(co, run, made, first, first + clusters);
  }
  const table = new DataView(new ArrayBuffer(clusters * clusterSize));
  for (const [index, offset] of made.blocks) setEntry(table, index * 8, offset, false);
  const content = new Uint8Array(table.buffer);
  await telling(run, "ERROR writing reftable", writeFree(co, run, first * clusterSize, content));
  await state.file.flush(co);
  await telling(run, "ERROR setting reftable", switchTable(co, run, first * clusterSize, clusters));
  state.refcountTable = table;
  state.refcountTableOffset = first * clusterSize;
  state.refcountTableClusters = clusters;
  state.refcountCache.clear();
  state.metadataIndex = undefined;
  state.freeClusterIndex = 0;
}

/**
 * Writes each block that has references to clusters of [start, end) to count; one that is there is written again. A
 * new block goes to the first free cluster that neither it nor an earlier one precedes, so that none that has been
 * written changes by it.  @qemu rebuild_refcounts_write_refblocks
 */
async function writeBlocks(
  co: Coroutine<"read">,
  run: Check,
  made: NewTable,
  start: number,
  end: number,
): Promise<void> {
  const { state, counts } = run;
  const { clusterSize } = state;
  const entries = refblockEntries(state);
  let firstFree = 0;
  let stop = end;
  for (let index = Math.floor(start / entries); index * entries < stop; index++) {
    // A file may be a hole of any length, and no table counts that far.
    if (index >= MAX_BLOCKS) return refuseInUse(run, index);
    if (!isInUse(run, index)) continue;
    co.checkAborted();
    let offset = made.blocks.get(index);
    if (offset === undefined) {
      const cluster = counts.findFree(1, Math.max(firstFree, index * entries));
      counts.set(cluster, 1, 1);
      firstFree = cluster + 1;
      stop = Math.max(stop, firstFree);
      offset = cluster * clusterSize;
      made.blocks.set(index, offset);
      made.entries = Math.max(made.entries, alignUp((index + 1) * 8, clusterSize) / 8);
      if (made.entries * 8 > MAX_REFCOUNT_TABLE_BYTES) throw new BlockError("EFBIG");
    }
    const content = blockContent(run, index);
    await telling(run, "ERROR writing refblock", writeFree(co, run, offset, content));
  }
}

/**
 * What is free may still be the place of a table that lies behind the end of a file that was cut off. The old refcount
 * structures are no matter: what they take is counted, as far as it can be true.
 */
async function writeFree(
  co: Coroutine<"read">,
  { state }: Check,
  offset: number,
  content: Uint8Array,
): Promise<void> {
  await checkOverlap(co, state, offset, content.length, "refcount table", "refcount block");
  await state.file.pwrite(co, offset, content);
}

/** The pages of the counts that a block's refcounts come from. */
function pagesOf({ state, counts }: Check, blockIndex: number) {
  const perBlock = refblockEntries(state) / counts.pageClusters;
  return Array.from({ length: perBlock }, (_, page) => counts.page(blockIndex * perBlock + page));
}

/** No block from `first` on may have references to count. */
function refuseInUse(run: Check, first: number): void {
  const perBlock = refblockEntries(run.state) / run.counts.pageClusters;
  const blocks = run.counts.pageIndices().map((page) => Math.floor(page / perBlock));
  if (blocks.some((index) => index >= first && isInUse(run, index))) throw new BlockError("EFBIG");
}

function isInUse(run: Check, blockIndex: number): boolean {
  return pagesOf(run, blockIndex).some((page) => page?.some((references) => references > 0));
}

function blockContent(run: Check, blockIndex: number): Uint8Array {
  const content = new Uint8Array(run.state.clusterSize);
  const view = new DataView(content.buffer);
  const { set } = refcountsOf(run.state);
  for (const [pageIndex, page] of pagesOf(run, blockIndex).entries())
    page?.forEach((references, index) => {
      if (references > 0) set(view, pageIndex * run.counts.pageClusters + index, references);
    });
  return content;
}

/** The header names the new table from now on. */
async function switchTable(
  co: Coroutine<"read">,
  { state }: Check,
  tableOffset: number,
  clusters: number,
): Promise<void> {
  const pointer = new Uint8Array(12);
  const view = new DataView(pointer.buffer);
  u64.write(view, 0, tableOffset, false);
  u32.write(view, 8, clusters, false);
  await state.file.pwrite(co, HeaderV2.offsetOf.refcountTableOffset, pointer);
  await state.file.flush(co);
}

async function telling(
  { state: { environment } }: Check,
  failure: string,
  work: Promise<void>,
): Promise<void> {
  try {
    await work;
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    (environment.error ?? environment.warn)(`${failure}: ${error.message}`);
    throw new BlockError(error.errno, undefined, { cause: error });
  }
}
