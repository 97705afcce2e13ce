/**
 * Giving up all of an image's content, so that its backing file shows through.  @qemu qcow2_make_empty
 *
 * The fast way makes the file what it was when it was created. In between refcounts are wrong: the image is marked
 * dirty meanwhile, so that whoever opens it after a cut builds them anew. The L1 table is emptied first of all: from
 * then on nothing refers to what is overwritten.
 */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { u32, u64 } from "../../src/block/layout.ts";
import { alignUp, SECTOR_SIZE } from "../../src/block/units.ts";
import { checkUsable, writeIncompatible } from "./corruption.ts";
import { setEntry } from "./entries.ts";
import { updateHeader } from "./header.ts";
import { exclusively } from "./l2.ts";
import { HeaderV2, Incompatible } from "./layout.ts";
import { changeRefcounts, refblockEntries, settleFreed } from "./refcount.ts";
import type { Qcow2State } from "./state.ts";
import { discardRange } from "./zero.ts";

export async function makeEmpty(co: Coroutine<"read">, state: Qcow2State): Promise<void> {
  checkUsable(state);
  if (canReset(state)) return exclusively(state, 0, Number.POSITIVE_INFINITY, () => reset(co, state));
  const end = alignUp(state.node.totalSectors * SECTOR_SIZE, state.clusterSize);
  await discardRange(co, state, 0, end, "snapshot", true);
}

/** Only where there is nothing but guest data and tables, and those of an empty image have their refcounts in one block. */
function canReset(state: Qcow2State): boolean {
  return (
    state.version >= 3 &&
    state.snapshots.length === 0 &&
    state.bitmaps === undefined &&
    state.cryptoHeader === undefined &&
    !state.hasDataFile &&
    3 + l1Clusters(state) <= refblockEntries(state)
  );
}

function l1Clusters(state: Qcow2State): number {
  return Math.ceil((state.l1Size * 8) / state.clusterSize);
}

async function reset(co: Coroutine<"read">, state: Qcow2State): Promise<void> {
  const { file, clusterSize } = state;
  await state.l2Cache.flush(co);
  await state.refcountCache.flush(co);
  await settleFreed(co, state);
  state.incompatibleFeatures |= Incompatible.Dirty;
  await writeIncompatible(co, state);
  await clearL1(co, state);
  try {
    await rebuildTables(co, state);
    await file.truncate(co, (3 + l1Clusters(state)) * clusterSize, false);
    state.incompatibleFeatures &= ~Incompatible.Dirty;
    // All of the header, as QEMU writes it when an image becomes clean.
    await updateHeader(co, state);
    await file.flush(co);
  } catch (error) {
    // The refcounts can't be relied on: the image stays marked dirty, and is not used any more.
    state.isBroken = true;
    throw error;
  }
}

async function clearL1(co: Coroutine<"read">, state: Qcow2State): Promise<void> {
  const { file, l1Table, l1TableOffset, clusterSize } = state;
  if (file.debug) await file.debug.event(co, "l1_update");
  await file.pwriteZeroes(co, l1TableOffset, l1Clusters(state) * clusterSize);
  await file.flush(co);
  new Uint8Array(l1Table.buffer, l1Table.byteOffset, l1Table.byteLength).fill(0);
  state.l2Cache.clear();
  state.inflated.clear();
  state.inflatedGeneration++;
  await state.transfers.barrier();
}

/** Header, refcount table, its only block and the L1 table follow each other, as in a new image. */
async function rebuildTables(co: Coroutine<"read">, state: Qcow2State): Promise<void> {
  const { file, clusterSize } = state;
  const clusters = 3 + l1Clusters(state);
  const [tableAt, blockAt, l1At] = [clusterSize, 2 * clusterSize, 3 * clusterSize] as const;
  if (file.debug) await file.debug.event(co, "empty_image_prepare");
  await file.pwriteZeroes(co, tableAt, (clusters - 1) * clusterSize);
  await file.flush(co);

  if (file.debug) await file.debug.event(co, "l1_update");
  if (file.debug) await file.debug.event(co, "reftable_update");
  // The three fields are neighbours: one write exchanges both tables.
  const pointers = new Uint8Array(20);
  const view = new DataView(pointers.buffer);
  u64.write(view, 0, l1At, false);
  u64.write(view, 8, tableAt, false);
  u32.write(view, 16, 1, false);
  await file.pwrite(co, HeaderV2.offsetOf.l1TableOffset, pointers);
  await file.flush(co);
  state.l1TableOffset = l1At;
  state.refcountTableOffset = tableAt;
  state.refcountTableClusters = 1;
  state.refcountTable = new DataView(new ArrayBuffer(clusterSize));
  state.freeClusterIndex = 0;
  state.freeByteOffset = 0;
  state.metadataIndex = undefined;
  state.metadataPreallocated = undefined;

  const entry = new DataView(new ArrayBuffer(8));
  setEntry(entry, 0, blockAt, false);
  await file.pwrite(co, tableAt, new Uint8Array(entry.buffer));
  await file.flush(co);
  setEntry(state.refcountTable, 0, blockAt, false);
  state.refcountCache.clear();
  await state.refcountCache.put(co, blockAt, new Uint8Array(clusterSize));
  if (file.debug) await file.debug.event(co, "cluster_alloc");
  await changeRefcounts(co, state, 0, clusters * clusterSize, 1, "never");
  await state.refcountCache.flush(co);
}
