/** Looks for entries that can't be and for clusters that nothing refers to, and clears the former.  @qemu block/qed-check.c */

import { breathe } from "../../src/block/breathe.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import type { CheckResult } from "../../src/block/driver.ts";
import { SparseBits } from "../../src/block/sparse-bits.ts";
import { ENTRY_BYTES, Feature, ZERO_CLUSTER } from "./layout.ts";
import {
  isClusterOffset,
  isTableOffset,
  type QedState,
  readEntry,
  SLICE_BYTES,
  writeHeader,
} from "./state.ts";

/** What a check goes along with. */
interface Walk {
  readonly co: Coroutine<"read">;
  readonly state: QedState;
  readonly fix: boolean;
  readonly used: SparseBits;
  readonly result: {
    -readonly [K in
      | "corruptions"
      | "corruptionsFixed"
      | "leaks"
      | "allocatedClusters"
      | "fragmentedClusters"]: number;
  };
}

/** Leaks are told and not put right: QED frees no clusters.  @qemu qed_check */
export function check(co: Coroutine<"read">, state: QedState, fix: boolean): Promise<CheckResult> {
  return state.lock.run(async () => {
    const { header, clusterSize } = state;
    const result = {
      corruptions: 0,
      corruptionsFixed: 0,
      leaks: 0,
      allocatedClusters: 0,
      fragmentedClusters: 0,
    };
    const walk: Walk = { co, state, fix, used: new SparseBits(), result };
    markUsed(walk, header.l1TableOffset, header.tableSize);
    await checkL1(walk);
    countLeaks(walk);
    if (fix) await markClean(walk);
    return {
      ...result,
      checkErrors: 0,
      leaksFixed: 0,
      imageEndOffset: 0,
      totalClusters: Math.ceil(header.imageSize / clusterSize),
    };
  });
}

async function checkL1(walk: Walk): Promise<void> {
  const { co, state, fix, result } = walk;
  const { l1, header } = state;
  for (let index = 0; index < l1.entries; index++) {
    if (index % ENTRIES_A_BREATH === 0) await breathe(co.signal);
    const offset = l1.peek(index) ?? (await l1.get(co, index));
    if (offset === 0) continue;
    if (isTableOffset(state, offset)) {
      markUsed(walk, offset, header.tableSize);
      await checkL2(walk, offset);
    } else if (fix) {
      await l1.set(co, index, 0);
      result.corruptionsFixed++;
    } else result.corruptions++;
  }
  if (fix) await l1.write(co);
}

const ENTRIES_A_BREATH = 65536;

function checkL2(walk: Walk, tableOffset: number): Promise<void> {
  const { co, state, fix, result } = walk;
  const { l2Cache, tableLock, tableBytes, clusterSize } = state;
  return tableLock.run(async () => {
    let last = 0;
    for (let start = 0; start < tableBytes; start += SLICE_BYTES) {
      await breathe(co.signal);
      const slice = await l2Cache.load(co, tableOffset + start);
      for (let at = 0; at < SLICE_BYTES; at += ENTRY_BYTES) {
        const offset = readEntry(slice.view, at);
        if (offset <= ZERO_CLUSTER) continue;
        result.allocatedClusters++;
        if (last !== 0 && last + clusterSize !== offset) result.fragmentedClusters++;
        last = offset;
        if (isClusterOffset(state, offset)) markUsed(walk, offset, 1);
        else if (fix) {
          slice.view.setBigUint64(at, 0n);
          slice.markDirty(at, at + ENTRY_BYTES);
          result.corruptionsFixed++;
        } else result.corruptions++;
      }
    }
    if (fix) await l2Cache.write(co);
  });
}

/** A cluster that two refer to is wrong for good.  @qemu qed_set_used_clusters */
function markUsed({ state: { clusterSize }, used, result }: Walk, offset: number, clusters: number): void {
  const first = Math.floor(offset / clusterSize);
  for (let cluster = first; cluster < first + clusters; cluster++)
    if (used.nextClear(cluster, cluster + 1) > cluster) result.corruptions++;
  used.set(first, first + clusters);
}

function countLeaks({ state: { header, fileEnd, clusterSize }, used, result }: Walk): void {
  const end = Math.floor(fileEnd / clusterSize);
  for (let at = header.headerSize; at < end; ) {
    const clear = used.nextClear(at, end);
    const set = Math.min(used.nextSet(clear) ?? end, end);
    result.leaks += set - clear;
    at = set;
  }
}

/** @qemu qed_check_mark_clean */
async function markClean({ co, state, result }: Walk): Promise<void> {
  const { header, file } = state;
  if (result.corruptions > 0 || (header.features & Feature.NeedCheck) === 0n) return;
  await file.flush(co);
  header.features &= ~Feature.NeedCheck;
  await writeHeader(co, state);
}
