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
import { ReferenceCounts } from "./check-counts.ts";
import { checkCopiedFlags, countL2, hexEntry, type L2Figures, MAX_REPEATED_WALKS } from "./check-l2.ts";
import { entryOffset } from "./entries.ts";
import { MAX_L1_BYTES } from "./layout.ts";
import { readSnapshots } from "./snapshot.ts";
import type { Qcow2State, Snapshot } from "./state.ts";

/** What the walks share. */
export interface Check {
  readonly state: Qcow2State;
  readonly options: CheckOptions;
  readonly result: CheckResult;
  readonly counts: ReferenceCounts;
  readonly fileBytes: number;
  /** L2 tables by offset. */
  readonly tables: Map<number, WalkedTable>;
}

/** An L2 table that has been walked. */
interface WalkedTable {
  readonly figures: L2Figures;
  walks: number;
  /** References that have been met and not walked. */
  skipped: number;
}

export async function check(
  co: Coroutine<"read">,
  state: Qcow2State,
  options: CheckOptions,
): Promise<CheckResult> {
  if (options.fixLeaks || options.fixErrors)
    throw new BlockError("ENOTSUP", "Repairing qcow2 images is not supported yet");
  const result: CheckResult = {
    corruptions: 0,
    leaks: 0,
    checkErrors: 0,
    corruptionsFixed: 0,
    leaksFixed: 0,
    imageEndOffset: 0,
    totalClusters: Math.ceil((state.node.totalSectors * SECTOR_SIZE) / state.clusterSize),
    allocatedClusters: 0,
    fragmentedClusters: 0,
    compressedClusters: 0,
  };
  return state.lock.run(async () => {
    // What is looked at is the file.
    await state.l2Cache.write(co);
    await state.refcountCache.write(co);
    const fileBytes = await state.file.getLength(co);
    const { file, clusterSize, refcountBits, refcountTable } = state;
    const { report } = options;
    const counts = new ReferenceCounts({
      file,
      fileBytes,
      clusterSize,
      refcountBits,
      refcountTable,
      result,
      report,
    });
    const run: Check = { state, options, result, counts, fileBytes, tables: new Map() };
    await countReferences(co, run);
    await counts.compare(co);
    await checkCopiedFlags(co, run);
    return result;
  });
}

/** @qemu calculate_refcounts */
async function countReferences(co: Coroutine<"read">, run: Check): Promise<void> {
  const { state, counts } = run;
  await checkSnapshotTable(co, run);
  counts.add(0, state.clusterSize);
  counts.add(state.l1TableOffset, state.l1Size * 8);
  await countL1(co, run, state.l1Table, true);
  for (const snapshot of state.snapshots) await countSnapshot(co, run, snapshot);
  await countSkipped(co, run);
  counts.add(state.snapshotsOffset, state.snapshotTableBytes);
  await countBitmaps(co, run);
  counts.add(state.refcountTableOffset, state.refcountTableClusters * state.clusterSize);
  counts.addBlocks();
}

/** Version 3 wants the disk size in every entry.  @qemu qcow2_check_read_snapshot_table */
async function checkSnapshotTable(co: Coroutine<"read">, { state, options, result }: Check): Promise<void> {
  if (state.snapshots.length === 0) return;
  const { file, snapshotsOffset, snapshots, size } = state;
  const { incomplete } = await readSnapshots(co, file, {
    snapshotsOffset,
    nbSnapshots: snapshots.length,
    size,
  });
  if (state.version < 3) return;
  for (const index of incomplete) {
    options.report(`ERROR snapshot table entry ${index} is incomplete`);
    result.corruptions++;
  }
}

/** @qemu check_refcounts_l1 */
async function countL1(co: Coroutine<"read">, run: Check, table: DataView, isActive: boolean): Promise<void> {
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
    const { allocated, fragmented, compressed } = await visitL2(co, run, offset);
    if (!isActive) continue;
    result.allocatedClusters = (result.allocatedClusters ?? 0) + allocated;
    result.fragmentedClusters = (result.fragmentedClusters ?? 0) + fragmented;
    result.compressedClusters = (result.compressedClusters ?? 0) + compressed;
  }
}

/** Counts what the table refers to, now or, if that would tell nothing new, at the end. */
async function visitL2(co: Coroutine<"read">, run: Check, offset: number): Promise<L2Figures> {
  co.checkAborted();
  const known = run.tables.get(offset);
  if (known && (known.figures.findings === 0 || known.walks >= MAX_REPEATED_WALKS)) {
    known.skipped++;
    return known.figures;
  }
  const figures = await countL2(co, run, offset, 1);
  if (known) known.walks++;
  else run.tables.set(offset, { figures, walks: 1, skipped: 0 });
  return figures;
}

async function countSkipped(co: Coroutine<"read">, run: Check): Promise<void> {
  for (const [offset, { skipped }] of run.tables) {
    co.checkAborted();
    if (skipped > 0) await countL2(co, run, offset, skipped);
  }
  run.tables.clear();
}

async function countSnapshot(co: Coroutine<"read">, run: Check, snapshot: Snapshot): Promise<void> {
  const { state, counts, options, result } = run;
  const { id, name, l1TableOffset, l1Size } = snapshot;
  const refuse = (what: string) => {
    options.report(`ERROR snapshot ${id} (${name}) ${what}; snapshot table entry corrupted`);
    result.corruptions++;
  };
  if (!isAligned(l1TableOffset, state.clusterSize))
    return refuse(`l1_offset=0x${l1TableOffset.toString(16)}: L1 table is not cluster aligned`);
  if (l1Size * 8 > MAX_L1_BYTES) return refuse(`l1_size=0x${l1Size.toString(16)}: L1 table is too large`);
  counts.add(l1TableOffset, l1Size * 8);
  if (l1TableOffset >= run.fileBytes) return;
  const table = await state.file.preadBytes(co, l1TableOffset, l1Size * 8);
  await countL1(co, run, new DataView(table.buffer), false);
}

/** @qemu qcow2_check_bitmaps_refcounts */
async function countBitmaps(co: Coroutine<"read">, run: Check): Promise<void> {
  const { state, counts } = run;
  if (!state.bitmaps) return;
  counts.add(state.bitmaps.directoryOffset, state.bitmaps.directorySize);
  for (const { tableOffset, tableSize } of await readBitmapDirectory(co, state, state.bitmaps)) {
    counts.add(tableOffset, tableSize * 8);
    if (tableOffset >= run.fileBytes) continue;
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
