/**
 * The part of a check that looks at "copied" flags: they must be set exactly where the refcount is 1. Only the active
 * tables have them. Source: qcow2.txt, "Cluster mapping"
 */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import type { Check } from "./check.ts";
import { hexEntry, isMapped, MAX_REPEATED_WALKS, readL2 } from "./check-l2.ts";
import { peekRefcount, refcountOf } from "./check-refcounts.ts";
import { checkOverlap } from "./corruption.ts";
import { COMPRESSED_HIGH, COPIED_HIGH, entryOffset, plainRun } from "./entries.ts";
import { putL1Entry } from "./l2.ts";

/** @qemu QCOW_OFLAG_COPIED */
const COPIED = 1n << 63n;

/** Refcounts that can't be read have been told of before.  @qemu check_oflag_copied */
export async function checkCopiedFlags(co: Coroutine<"read">, run: Check): Promise<void> {
  const { state, counts, options, result } = run;
  const { l1Table, clusterSize } = state;
  const fix = mayFix(run);
  /** Findings and walks of each L2 table, since several L1 entries may name the same. */
  const walked = new Map<number, { findings: number; walks: number }>();
  for (let index = 0; index < state.l1Size; index++) {
    const high = l1Table.getUint32(index * 8);
    const low = l1Table.getUint32(index * 8 + 4);
    const offset = entryOffset(high, low);
    if (offset === 0) continue;
    co.checkAborted();
    const refcount = await refcountOf(co, run, Math.floor(offset / clusterSize));
    // Where the refcounts can't be read there is nothing to compare with.
    if (refcount === undefined) continue;
    if ((refcount === 1) !== high >= COPIED_HIGH) {
      result.corruptions++;
      options.report(
        `${fix ? "Repairing" : "ERROR"} OFLAG_COPIED L2 cluster: l1_index=${index} l1_entry=${hexEntry(high, low)} refcount=${refcount}`,
      );
      if (fix) await fixL1Entry(co, run, index, refcount === 1);
    }
    if (offset >= counts.fileBytes) continue;
    const known = walked.get(offset) ?? { findings: 0, walks: 0 };
    if (known.walks > 0 && (known.findings === 0 || known.walks >= MAX_REPEATED_WALKS)) {
      result.corruptions += known.findings;
      continue;
    }
    const before = result.corruptions;
    await checkEntries(co, run, offset, fix);
    walked.set(offset, { findings: result.corruptions - before, walks: known.walks + 1 });
  }
}

/** Where only leaks are to be fixed, flags are put right if nothing else is wrong: then they are sure to be. */
function mayFix({ options, result }: Check): boolean {
  if (options.fixErrors) return true;
  return options.fixLeaks && result.checkErrors === 0 && result.corruptions === 0 && result.leaks === 0;
}

async function fixL1Entry(
  co: Coroutine<"read">,
  { state, result }: Check,
  index: number,
  copied: boolean,
): Promise<void> {
  const entry = new DataView(new ArrayBuffer(8));
  const value = state.l1Table.getBigUint64(index * 8);
  entry.setBigUint64(0, copied ? value | COPIED : value & ~COPIED);
  try {
    await putL1Entry(co, state, index, entry);
  } catch (error) {
    result.checkErrors++;
    throw error;
  }
  result.corruptions--;
  result.corruptionsFixed++;
}

async function checkEntries(co: Coroutine<"read">, run: Check, offset: number, fix: boolean): Promise<void> {
  const { state, options, result } = run;
  const { clusterSize, l2EntryBytes, hasDataFile } = state;
  const table = await readL2(co, run, offset);
  let changes = 0;
  let closeLookUntil = 0;
  for (let at = 0; at < table.byteLength; at += l2EntryBytes) {
    if (at >= closeLookUntil) {
      const { entries, right } = plainSingles(run, table, at);
      closeLookUntil = at + entries * l2EntryBytes;
      at += right * l2EntryBytes;
      if (at >= table.byteLength) break;
    }
    const high = table.getUint32(at);
    const low = table.getUint32(at + 4);
    if ((high === 0 && low === 0) || (high & COMPRESSED_HIGH) !== 0 || !isMapped(run, high, low)) continue;
    const cluster = Math.floor(entryOffset(high, low) / clusterSize);
    // Nothing is counted in a data file: each cluster has one user.
    const refcount = hasDataFile ? 1 : (peekRefcount(run, cluster) ?? (await refcountOf(co, run, cluster)));
    if (refcount === undefined || (refcount === 1) === high >= COPIED_HIGH) continue;
    options.report(
      `${fix ? "Repairing" : "ERROR"} OFLAG_COPIED data cluster: l2_entry=${hexEntry(high, low)} refcount=${refcount}`,
    );
    result.corruptions++;
    if (!fix) continue;
    table.setUint32(at, refcount === 1 ? (high | COPIED_HIGH) >>> 0 : high & ~COPIED_HIGH);
    changes++;
  }
  if (changes === 0) return;
  await writeTable(co, run, offset, table);
  result.corruptions -= changes;
  result.corruptionsFixed += changes;
}

/** How many entries from there on look as most do, and how many of them, from the first on, are right. */
function plainSingles(run: Check, table: DataView, at: number): { entries: number; right: number } {
  const { state, counts, refcounts } = run;
  const { clusterSize, l2Entries, extendedL2, hasDataFile } = state;
  // A limit of 1 stands for all above, too.
  if (extendedL2 || hasDataFile || refcounts.hasLost || counts.max === 1) return { entries: 0, right: 0 };
  const entries = plainRun(table, at / 8, l2Entries, clusterSize);
  const cluster = entryOffset(table.getUint32(at), table.getUint32(at + 4)) / clusterSize;
  const within = Math.min(entries, counts.clusters - cluster);
  let right = 0;
  while (right < within) {
    const singles = counts.singles(cluster + right, within - right);
    if (singles === 0) break;
    right += singles;
  }
  return { entries, right };
}

async function writeTable(
  co: Coroutine<"read">,
  { state, options, result }: Check,
  offset: number,
  table: DataView<ArrayBuffer>,
): Promise<void> {
  let failure = "ERROR: Could not write L2 table; metadata overlap check failed";
  try {
    await checkOverlap(co, state, offset, state.clusterSize, "active L2 table");
    failure = "ERROR: Could not write L2 table";
    await state.file.pwrite(co, offset, new Uint8Array(table.buffer, table.byteOffset, table.byteLength));
  } catch (error) {
    if (error instanceof BlockError) {
      options.report(`${failure}: ${error.message}`);
      result.checkErrors++;
    }
    throw error;
  }
}
