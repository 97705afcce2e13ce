/**
 * Looks for errors: counts every reference to every cluster, compares with the refcounts, and looks whether the
 * entries' "copied" flags agree. The lines it reports are qemu-img's.  @qemu qcow2_co_check
 *
 * An L2 table that several L1 tables share, as snapshots do, is read once: further references to it are added up and
 * its own are counted with that weight. One with findings is walked again, so that they are told as often as in QEMU,
 * but not without limit.
 */

import type { Coroutine } from "../../src/block/coroutine.ts";
import type { CheckOptions, CheckResult } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import { isAligned, SECTOR_SIZE } from "../../src/block/units.ts";
import { readBitmapDirectory } from "./bitmap.ts";
import { checkCopiedFlags } from "./check-copied.ts";
import { ReferenceCounts } from "./check-counts.ts";
import { countL2, hexEntry, type L2Figures, type L2Visit, MAX_REPEATED_WALKS } from "./check-l2.ts";
import { compareRefcounts, countBlocks, FileRefcounts, type Fixes, NO_FIXES } from "./check-refcounts.ts";
import { checkSnapshotTable, fixSnapshotTable } from "./check-snapshots.ts";
import { entryOffset } from "./entries.ts";
import { updateHeader } from "./header.ts";
import { exclusively } from "./l2.ts";
import { Incompatible, MAX_L1_BYTES } from "./layout.ts";
import { rebuildRefcounts } from "./rebuild.ts";
import { refblockEntries, refcountsOf, settleFreed } from "./refcount.ts";
import { exactNumbers } from "./snapshot-table.ts";
import type { Qcow2State, Snapshot } from "./state.ts";

/** What the walks share. */
export interface Check {
  readonly state: Qcow2State;
  readonly options: CheckOptions;
  readonly result: CheckResult;
  readonly counts: ReferenceCounts;
  readonly refcounts: FileRefcounts;
  /** For one L2 table at a time. */
  readonly l2Buffer: Uint8Array<ArrayBuffer>;
  /** L2 tables by offset. */
  readonly tables: Map<number, WalkedTable>;
  /** Refcounts can't be put right one by one. */
  needsRebuild: boolean;
  /** Check errors that were refcounts which can't be read. */
  lostRefcounts: number;
}

/** An L2 table that has been walked. */
interface WalkedTable {
  readonly figures: L2Figures;
  walks: number;
  /** References that have been met and not walked. */
  skipped: number;
}

const NO_CLUSTERS = { allocatedClusters: 0, fragmentedClusters: 0, compressedClusters: 0 };

/** @qemu qcow2_co_check */
export function check(co: Coroutine<"read">, state: Qcow2State, options: CheckOptions): Promise<CheckResult> {
  if ((options.fixLeaks || options.fixErrors) && state.node.readOnly)
    return Promise.reject(new BlockError("EPERM", "Block node is read-only"));
  // A write that is under way has clusters that no table names yet.
  return exclusively(state, 0, Number.POSITIVE_INFINITY, () => checkLocked(co, state, options));
}

/**
 * Called with the driver's lock held, while nothing is being allocated. `atOpen`: refcounts that can't be read are
 * errors to the end; else they are none any more once they have been made anew.
 */
async function checkLocked(
  co: Coroutine<"read">,
  state: Qcow2State,
  options: CheckOptions,
  atOpen = false,
): Promise<CheckResult> {
  const result: CheckResult = {
    corruptions: 0,
    leaks: 0,
    checkErrors: 0,
    corruptionsFixed: 0,
    leaksFixed: 0,
    imageEndOffset: 0,
    totalClusters: Math.ceil((state.node.totalSectors * SECTOR_SIZE) / state.clusterSize),
    ...NO_CLUSTERS,
  };
  const repairs = options.fixLeaks || options.fixErrors;
  await settleCaches(co, state);
  const run = await begin(co, state, options, result);
  const faults = await checkSnapshotTable(co, run);
  await checkRefcounts(co, run, atOpen);
  await checkCopiedFlags(co, run);
  if (faults > 0 && options.fixErrors) {
    await fixSnapshotTable(co, run);
    result.corruptionsFixed += faults;
  } else result.corruptions += faults;
  if (!repairs || state.isBroken) return result;
  await settleCaches(co, state);
  state.l2Cache.clear();
  if (result.leaksFixed > 0 || result.corruptionsFixed > 0) await state.file.flush(co);
  if (result.checkErrors === 0 && result.corruptions === 0) await markClean(co, state);
  return result;
}

/** Brings refcounts up to date that were left behind, before anything is written.  @qemu qcow2_do_open */
export async function repairDirty(co: Coroutine<"read">, state: Qcow2State): Promise<void> {
  const { message, warn } = state.environment;
  const report = message ?? warn;
  try {
    const options = { fixLeaks: true, fixErrors: true, report };
    const { checkErrors } = await checkLocked(co, state, options, true);
    if (checkErrors > 0) throw new BlockError("EIO");
  } catch (error) {
    throw BlockError.wrap("Could not repair dirty image", error);
  }
}

/** What is looked at is the file. */
async function settleCaches(co: Coroutine<"read">, state: Qcow2State): Promise<void> {
  await state.l2Cache.write(co);
  await state.refcountCache.write(co);
  await settleFreed(co, state);
}

async function begin(
  co: Coroutine<"read">,
  state: Qcow2State,
  options: CheckOptions,
  result: CheckResult,
): Promise<Check> {
  const fileBytes = await state.file.getLength(co);
  const { clusterSize } = state;
  const counts = new ReferenceCounts({
    fileBytes,
    clusterSize,
    access: refcountsOf(state),
    blockClusters: refblockEntries(state),
    result,
    report: options.report,
  });
  const refcounts = new FileRefcounts(state);
  return {
    state,
    options,
    result,
    counts,
    refcounts,
    l2Buffer: new Uint8Array(clusterSize),
    tables: new Map(),
    needsRebuild: false,
    lostRefcounts: 0,
  };
}

/** Repaired as a whole, the image is neither dirty nor corrupt.  @qemu qcow2_mark_clean, qcow2_mark_consistent */
async function markClean(co: Coroutine<"read">, state: Qcow2State): Promise<void> {
  const clean = state.incompatibleFeatures & ~(Incompatible.Dirty | Incompatible.Corrupt);
  if (clean === state.incompatibleFeatures) return;
  await state.file.flush(co);
  state.incompatibleFeatures = clean;
  await updateHeader(co, state);
}

/** @qemu qcow2_check_refcounts */
async function checkRefcounts(co: Coroutine<"read">, run: Check, atOpen: boolean): Promise<void> {
  const { state, options, result } = run;
  const { fixLeaks, fixErrors } = options;
  const fixes: Fixes = { leaks: fixLeaks, errors: fixErrors };
  const repairs = fixLeaks || fixErrors;
  await countReferences(co, run, fixErrors);
  const counted = { ...result };
  let last = await compareRefcounts(co, run, NO_FIXES, repairs);
  if (run.needsRebuild && fixErrors) {
    last = await rebuild(co, run, fixLeaks);
    if (!atOpen) forgetLost(run);
  } else if (run.needsRebuild && repairs) {
    options.report("ERROR need to rebuild refcount structures");
    throw new BlockError("EIO");
  } else if (repairs && (result.leaks > 0 || result.corruptions > 0)) {
    // What the first comparison found, the second finds again.
    Object.assign(result, counted);
    last = await compareRefcounts(co, run, fixes, false);
  }
  result.imageEndOffset = (last + 1) * state.clusterSize;
}

/** What made the node unusable is gone. */
function forgetLost(run: Check): void {
  const { state, result } = run;
  result.checkErrors -= run.lostRefcounts;
  run.lostRefcounts = 0;
  state.isBroken = false;
  state.isCorruptionReported = false;
}

/** The new structures take the place of the old ones, which are leaks then. */
async function rebuild(co: Coroutine<"read">, run: Check, fixLeaks: boolean): Promise<number> {
  const { state, counts, options, result } = run;
  const { corruptions, leaks } = result;
  options.report("Rebuilding refcount structure");
  await rebuildRefcounts(co, run);
  Object.assign(result, { corruptions: 0, leaks: 0, ...NO_CLUSTERS });
  run.needsRebuild = false;
  run.refcounts.forget();
  counts.clear();
  counts.grow(await state.file.getLength(co));
  await countReferences(co, run, false);
  const counted = { ...result };
  const last = await compareRefcounts(co, run, { leaks: fixLeaks, errors: false }, false);
  if (run.needsRebuild) options.report("ERROR rebuilt refcount structure is still broken");
  if (fixLeaks) Object.assign(result, counted);
  result.corruptionsFixed += Math.max(corruptions - result.corruptions, 0);
  result.leaksFixed += Math.max(leaks - result.leaks, 0);
  return last;
}

/** @qemu calculate_refcounts */
async function countReferences(co: Coroutine<"read">, run: Check, fix: boolean): Promise<void> {
  const { state, counts, options, result } = run;
  counts.add(0, state.clusterSize);
  counts.add(state.l1TableOffset, state.l1Size * 8);
  await countL1(co, run, state.l1Table, { isActive: true, fix });
  if (state.hasDataFile && state.snapshots.length > 0) {
    options.report(`ERROR ${state.snapshots.length} snapshots in image with data file`);
    result.corruptions++;
  }
  for (const snapshot of state.snapshots) await countSnapshot(co, run, snapshot, fix);
  await countSkipped(co, run);
  counts.add(state.snapshotsOffset, state.snapshotTableBytes);
  if (state.cryptoHeader) counts.add(state.cryptoHeader.offset, state.cryptoHeader.length);
  await countBitmaps(co, run);
  counts.add(state.refcountTableOffset, state.refcountTableClusters * state.clusterSize);
  await countBlocks(co, run, fix);
}

/** @qemu check_refcounts_l1 */
async function countL1(
  co: Coroutine<"read">,
  run: Check,
  table: DataView,
  visit: Omit<L2Visit, "weight">,
): Promise<void> {
  const { counts, result, options, state } = run;
  for (let at = 0; at < table.byteLength; at += 8) {
    const high = table.getUint32(at);
    const low = table.getUint32(at + 4);
    if (high === 0 && low === 0) continue;
    if ((high & 0x7f000000) !== 0 || (low & 0x1ff) !== 0) {
      options.report(`ERROR found L1 entry with reserved bits set: ${hexEntry(high, low)}`);
      result.corruptions++;
    }
    const offset = entryOffset(high, low);
    counts.add(offset, state.clusterSize);
    if (!isAligned(offset, state.clusterSize)) {
      options.report(
        `ERROR l2_offset=${offset.toString(16)}: Table is not cluster aligned; L1 entry corrupted`,
      );
      result.corruptions++;
    }
    const { allocated, fragmented, compressed } = await visitL2(co, run, offset, visit);
    if (!visit.isActive) continue;
    result.allocatedClusters = (result.allocatedClusters ?? 0) + allocated;
    result.fragmentedClusters = (result.fragmentedClusters ?? 0) + fragmented;
    result.compressedClusters = (result.compressedClusters ?? 0) + compressed;
  }
}

/** Counts what the table refers to, now or, if that would tell nothing new, at the end. */
async function visitL2(
  co: Coroutine<"read">,
  run: Check,
  offset: number,
  visit: Omit<L2Visit, "weight">,
): Promise<L2Figures> {
  co.checkAborted();
  const known = run.tables.get(offset);
  if (known && (known.figures.findings === 0 || known.walks >= MAX_REPEATED_WALKS)) {
    known.skipped++;
    return known.figures;
  }
  const figures = await countL2(co, run, offset, { ...visit, weight: 1 });
  if (known) known.walks++;
  else run.tables.set(offset, { figures, walks: 1, skipped: 0 });
  return figures;
}

async function countSkipped(co: Coroutine<"read">, run: Check): Promise<void> {
  for (const [offset, { skipped }] of run.tables) {
    co.checkAborted();
    if (skipped > 0) await countL2(co, run, offset, { weight: skipped, fix: false, isActive: false });
  }
  run.tables.clear();
}

async function countSnapshot(
  co: Coroutine<"read">,
  run: Check,
  snapshot: Snapshot,
  fix: boolean,
): Promise<void> {
  const { state, counts, options, result } = run;
  const { id, name, l1TableOffset, l1Size } = snapshot;
  const refuse = (what: string) => {
    options.report(`ERROR snapshot ${id} (${name}) ${what}; snapshot table entry corrupted`);
    result.corruptions++;
  };
  const exact = exactNumbers(snapshot).l1TableOffset;
  if (exact % BigInt(state.clusterSize) !== 0n)
    return refuse(`l1_offset=0x${exact.toString(16)}: L1 table is not cluster aligned`);
  if (l1Size * 8 > MAX_L1_BYTES) return refuse(`l1_size=0x${l1Size.toString(16)}: L1 table is too large`);
  counts.add(l1TableOffset, l1Size * 8);
  if (l1TableOffset >= counts.fileBytes) return;
  const table = new Uint8Array(l1Size * 8);
  try {
    await state.file.pread(co, l1TableOffset, table);
  } catch (error) {
    options.report("ERROR: I/O error in check_refcounts_l1");
    result.checkErrors++;
    throw error;
  }
  await countL1(co, run, new DataView(table.buffer), { isActive: false, fix });
}

/** @qemu qcow2_check_bitmaps_refcounts */
async function countBitmaps(co: Coroutine<"read">, run: Check): Promise<void> {
  const { state, counts } = run;
  if (!state.bitmaps) return;
  counts.add(state.bitmaps.directoryOffset, state.bitmaps.directorySize);
  for (const { tableOffset, tableSize } of await readBitmapDirectory(co, state, state.bitmaps)) {
    counts.add(tableOffset, tableSize * 8);
    if (tableOffset >= counts.fileBytes) continue;
    const bytes = await state.file.preadBytes(co, tableOffset, tableSize * 8);
    const table = new DataView(bytes.buffer);
    for (let at = 0; at < table.byteLength; at += 8) {
      const high = table.getUint32(at);
      const low = table.getUint32(at + 4);
      const offset = entryOffset(high, low);
      // Bit 0 says what all bits are where there is no cluster.
      const reserved = (high & 0xff000000) !== 0 || (low & (offset === 0 ? 0x1fe : 0x1ff)) !== 0;
      if (reserved || !isAligned(offset, state.clusterSize)) throw new BlockError("EINVAL");
      if (offset !== 0) counts.add(offset, state.clusterSize);
    }
  }
}
