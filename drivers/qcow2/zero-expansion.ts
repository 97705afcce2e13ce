/**
 * Zero clusters, which version 2 has no entries for, become data or nothing, in the L2 tables of the active image and
 * of its snapshots.  @qemu qcow2_expand_zero_clusters
 *
 * | was                                 | without a backing file | with one              |
 * | ----------------------------------- | ---------------------- | --------------------- |
 * | zero without a cluster              | nothing                | a new cluster, zeroed |
 * | zero with a cluster of this table's | the cluster, zeroed    | the cluster, zeroed   |
 * | zero with one that others have too  | nothing                | a new cluster, zeroed |
 *
 * The last row differs from QEMU 7.2, which zeroes the data of the snapshot that shares the cluster.
 *
 * Invariants (called with the driver's lock held):
 * 1. Zeroes and refcounts are on the disk before the table that refers to them.
 * 2. References that a table gives up are taken from the refcounts after the table without them is on the disk.
 */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { checkOverlap, signalCorruption } from "./corruption.ts";
import { writeData } from "./crypto.ts";
import { COMPRESSED_HIGH, entryOffset, hex, setEntry, tableOffset, ZERO_LOW } from "./entries.ts";
import { allocateClusters, changeRefcounts, freeClusters, getRefcount } from "./refcount.ts";
import type { OnProgress } from "./refcount-width.ts";
import { checkSnapshotL1, readSnapshotL1, refreshActive } from "./snapshot.ts";
import { l2Coverage, type Qcow2State } from "./state.ts";

/** An L2 table, whole. */
interface L2Table {
  readonly hostOffset: number;
  readonly view: DataView<ArrayBuffer>;
  readonly isActive: boolean;
  /** Guest offset of the first entry. */
  readonly guestStart: number;
}

/** The image is none with extended L2 entries or a data file. True if it has compressed clusters. */
export async function expandZeroClusters(
  co: Coroutine<"read">,
  state: Qcow2State,
  onProgress: OnProgress,
): Promise<boolean> {
  let gaveUp = false;
  let hasCompressed = false;
  await walkTables(co, state, onProgress, async (table) => {
    gaveUp = (await expandTable(co, state, table)) || gaveUp;
    hasCompressed ||= holdsCompressed(table);
  });
  // What was shared may be the active image's alone now.
  if (gaveUp) await refreshActive(co, state);
  return hasCompressed;
}

function holdsCompressed({ view }: L2Table): boolean {
  for (let at = 0; at < view.byteLength; at += 8) if (view.getUint32(at) & COMPRESSED_HIGH) return true;
  return false;
}

/** Visits the L2 tables of the active image and of the snapshots. */
async function walkTables(
  co: Coroutine<"read">,
  state: Qcow2State,
  onProgress: OnProgress,
  visit: (table: L2Table) => Promise<void>,
): Promise<void> {
  const { clusterSize, snapshots, file } = state;
  await state.l2Cache.write(co);
  const total = snapshots.reduce((sum, { l1Size }) => sum + l1Size, state.l1Size);
  let done = 0;
  for (const snapshot of [undefined, ...snapshots]) {
    if (snapshot) checkSnapshotL1(snapshot, clusterSize);
    const l1Table = snapshot ? await readSnapshotL1(co, state, snapshot) : state.l1Table;
    const l1Size = snapshot?.l1Size ?? state.l1Size;
    for (let index = 0; index < l1Size; index++) {
      co.checkAborted();
      const hostOffset = tableOffset(l1Table, index);
      if (hostOffset % clusterSize !== 0)
        throw await signalCorruption(
          co,
          state,
          `L2 table offset ${hex(hostOffset)} unaligned (L1 index: ${hex(index)})`,
        );
      if (hostOffset > 0) {
        const { buffer } = await file.preadBytes(co, hostOffset, clusterSize);
        const view = new DataView(buffer as ArrayBuffer);
        await visit({ hostOffset, view, isActive: !snapshot, guestStart: index * l2Coverage(state) });
      }
      done++;
      onProgress(done, total);
    }
  }
}

/** True if the table has given up clusters that others still have. */
async function expandTable(co: Coroutine<"read">, state: Qcow2State, table: L2Table): Promise<boolean> {
  const { clusterSize } = state;
  const { view, hostOffset } = table;
  /** Each table that points here counts for every cluster in it. */
  const users = await getRefcount(co, state, hostOffset / clusterSize);
  const taken: number[] = [];
  const givenUp: number[] = [];
  let changed = false;
  try {
    for (let index = 0; index < state.l2Entries; index++) {
      const high = view.getUint32(index * 8);
      const low = view.getUint32(index * 8 + 4);
      if (high & COMPRESSED_HIGH || !(low & ZERO_LOW)) continue;
      changed = true;
      const old = await checkedOffset(co, state, table, index, entryOffset(high, low));
      const isOwn = old > 0 && (await getRefcount(co, state, old / clusterSize)) === users;
      if (old > 0 && !isOwn) givenUp.push(old);
      let offset = isOwn ? old : 0;
      if (offset === 0 && state.node.backing) {
        offset = await allocateClusters(co, state, clusterSize, "cluster");
        await changeRefcounts(co, state, offset, clusterSize, users - 1, "never");
        taken.push(offset);
      }
      if (offset > 0) await writeZeroes(co, state, table.guestStart + index * clusterSize, offset);
      setEntry(view, index * 8, offset, offset > 0 && users === 1);
    }
    if (changed) await state.refcountCache.flush(co);
  } catch (error) {
    for (const offset of taken)
      for (let left = users; left > 0; left--) await freeClusters(co, state, offset, clusterSize, "other");
    throw error;
  }
  // A write that fails may have reached the disk all the same: then the clusters are better lost than used twice.
  if (changed) await writeL2(co, state, table, users);
  for (const offset of givenUp) await changeRefcounts(co, state, offset, clusterSize, -users, "other");
  return givenUp.length > 0;
}

async function checkedOffset(
  co: Coroutine<"read">,
  state: Qcow2State,
  { hostOffset }: L2Table,
  index: number,
  offset: number,
): Promise<number> {
  if (offset % state.clusterSize === 0) return offset;
  throw await signalCorruption(
    co,
    state,
    `Cluster allocation offset ${hex(offset)} unaligned (L2 offset: ${hex(hostOffset)}, L2 index: ${hex(index)})`,
  );
}

async function writeZeroes(
  co: Coroutine<"read">,
  state: Qcow2State,
  guestOffset: number,
  hostOffset: number,
): Promise<void> {
  const { clusterSize, file } = state;
  await checkOverlap(co, state, hostOffset, clusterSize);
  if (state.crypto) await writeData(co, state, guestOffset, hostOffset, new Uint8Array(clusterSize));
  else await file.pwriteZeroes(co, hostOffset, clusterSize);
}

/** Invariant 1: the refcounts are on the disk, and with the flush before the write so are the zeroes. */
async function writeL2(
  co: Coroutine<"read">,
  state: Qcow2State,
  { hostOffset, view, isActive }: L2Table,
  users: number,
): Promise<void> {
  const { file, clusterSize } = state;
  await file.flush(co);
  // A table that both have is of two kinds.
  if (users === 1)
    await checkOverlap(
      co,
      state,
      hostOffset,
      clusterSize,
      isActive ? "active L2 table" : "inactive L2 table",
    );
  await file.pwrite(co, hostOffset, new Uint8Array(view.buffer));
  state.l2Cache.drop(hostOffset, clusterSize);
  await file.flush(co);
}
