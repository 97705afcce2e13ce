/**
 * The part of a check that is about refcounts: the blocks that hold them, their comparison with the references that
 * were counted, and their correction.
 */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError, type Errno, strerror } from "../../src/block/errors.ts";
import { isZero } from "../../src/block/iov.ts";
import { isAligned, MAX_LENGTH } from "../../src/block/units.ts";
import type { Check } from "./check.ts";
import type { Counters } from "./check-counts.ts";
import { signalCorruption } from "./corruption.ts";
import { hex, tableOffset } from "./entries.ts";
import { getRefcount, refblockEntries, refcountsOf, setRefcount } from "./refcount.ts";
import type { Qcow2State } from "./state.ts";

/** What is to be put right. */
export interface Fixes {
  readonly leaks: boolean;
  readonly errors: boolean;
}

export const NO_FIXES: Fixes = { leaks: false, errors: false };

/** Farther out no file can be read; up to there all is zeroes.  @qemu BDRV_MAX_LENGTH */
const MAX_BLOCK_OFFSET = 2 ** 63 - 2 ** 30;

/** The refcounts as they are in the file. */
export class FileRefcounts {
  readonly #state: Qcow2State;
  /** Entries of the refcount table whose blocks can't be read, and why not. */
  readonly #lost = new Map<number, Errno>();
  #block: { readonly tableIndex: number; readonly bytes: Uint8Array } | undefined;

  constructor(state: Qcow2State) {
    this.#state = state;
  }

  /** What was read or found lost may have changed. */
  forget(): void {
    this.#lost.clear();
    this.#block = undefined;
  }

  get hasLost(): boolean {
    return this.#lost.size > 0;
  }

  /** Why a block can't be read; undefined: it can, or has not been tried. */
  whyLost(tableIndex: number): Errno | undefined {
    return this.#lost.get(tableIndex);
  }

  /** The block as it is in the file, zeroes where there is none; undefined if it can't be read. */
  async block(co: Coroutine<"read">, tableIndex: number, fileBytes: number): Promise<Uint8Array | undefined> {
    if (this.#block?.tableIndex === tableIndex) return this.#block.bytes;
    if (this.#lost.has(tableIndex)) return undefined;
    const { file, clusterSize } = this.#state;
    const offset = blockOffset(this.#state, tableIndex);
    if (!isAligned(offset, clusterSize)) {
      this.#lost.set(tableIndex, "EIO");
      const text = `Refblock offset 0x${offset.toString(16)} unaligned (reftable index: ${hex(tableIndex)})`;
      await signalCorruption(co, this.#state, text);
      return undefined;
    }
    try {
      if (offset > MAX_BLOCK_OFFSET) throw new BlockError("EIO");
      const bytes =
        offset === 0 || offset >= fileBytes
          ? new Uint8Array(clusterSize)
          : await file.preadBytes(co, offset, clusterSize);
      this.#block = { tableIndex, bytes };
      return bytes;
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      this.#lost.set(tableIndex, error.errno);
      return undefined;
    }
  }
}

/** Here all 64 bits of an entry count but the 9 lowest. */
function blockOffset({ refcountTable }: Qcow2State, tableIndex: number): number {
  if (tableIndex * 8 >= refcountTable.byteLength) return 0;
  const low = refcountTable.getUint32(tableIndex * 8 + 4);
  return refcountTable.getUint32(tableIndex * 8) * 2 ** 32 + (low - (low % 512));
}

/** Counts the refcount blocks themselves. One outside the file gets room, if that is to be.  @qemu check_refblocks */
export async function countBlocks(co: Coroutine<"read">, run: Check, mayGrow: boolean): Promise<void> {
  const { state, counts, result, options } = run;
  const { clusterSize, refcountTable } = state;
  const complain = (line: string) => {
    options.report(line);
    result.corruptions++;
  };
  for (let index = 0; index * 8 < refcountTable.byteLength; index++) {
    const low = refcountTable.getUint32(index * 8 + 4);
    const offset = blockOffset(state, index);
    if (offset === 0 && low === 0) continue;
    if ((low & 0x1ff) !== 0) {
      complain(`ERROR refcount table entry ${index} has reserved bits set`);
      run.needsRebuild = true;
    } else if (!isAligned(offset, clusterSize)) {
      complain(`ERROR refcount block ${index} is not cluster aligned; refcount table entry corrupted`);
      run.needsRebuild = true;
    } else if (offset / clusterSize >= counts.clusters) {
      complain(`${mayGrow ? "Repairing" : "ERROR"} refcount block ${index} is outside image`);
      if (mayGrow) await makeRoom(co, run, offset);
    } else {
      counts.add(offset, clusterSize);
      const references = counts.peek(offset / clusterSize) ?? 0;
      if (references === 1) continue;
      complain(`ERROR refcount block ${index} refcount=${references}`);
      run.needsRebuild = true;
    }
  }
}

/** Makes the file so long that the block at `offset` lies within. */
async function makeRoom(co: Coroutine<"read">, run: Check, offset: number): Promise<void> {
  const { state, counts, result, options } = run;
  try {
    if (offset >= MAX_INT64 - state.clusterSize) throw new BlockError("EINVAL");
    await lengthen(co, state, offset + state.clusterSize);
    counts.grow(await state.file.getLength(co));
    result.corruptions--;
    result.corruptionsFixed++;
    counts.add(offset, state.clusterSize);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    run.needsRebuild = true;
    options.report(`ERROR could not resize image: ${strerror(error.errno)}`);
  }
}

const MAX_INT64 = 2 ** 63;

async function lengthen(
  co: Coroutine<"read">,
  { file, environment }: Qcow2State,
  bytes: number,
): Promise<void> {
  try {
    if (bytes > MAX_LENGTH) throw new BlockError("EFBIG", "Could not resize file: File too large");
    await file.truncate(co, bytes, false, "off");
  } catch (error) {
    if (error instanceof BlockError) (environment.error ?? environment.warn)(error.message);
    throw error;
  }
}

/**
 * Compares every cluster's count with its refcount in the file. Gives the last cluster that is used by either.
 * `keepCounts`: else the counts become the refcounts, so that memory need not hold both.  @qemu compare_refcounts
 */
export async function compareRefcounts(
  co: Coroutine<"read">,
  run: Check,
  fixes: Fixes,
  keepCounts: boolean,
): Promise<number> {
  const { state, counts } = run;
  const blockClusters = refblockEntries(state);
  const tableIndices = new Set<number>();
  for (let index = 0; index * 8 < state.refcountTable.byteLength; index++)
    if (blockOffset(state, index) !== 0) tableIndices.add(index);
  for (const page of counts.pageIndices())
    tableIndices.add(Math.floor((page * counts.pageClusters) / blockClusters));
  const comparison = new Comparison(run, fixes, keepCounts);
  let highest = 0;
  for (const index of [...tableIndices].sort((a, b) => a - b)) {
    if (index * blockClusters >= counts.clusters) break;
    co.checkAborted();
    highest = Math.max(highest, await comparison.compareBlock(co, index));
  }
  return highest;
}

interface Difference {
  readonly refcount: number;
  /** The same, exact to the last bit. */
  readonly told: number | bigint;
  readonly count: number;
}

class Comparison {
  readonly #run: Check;
  readonly #fixes: Fixes;
  readonly #keepCounts: boolean;

  constructor(run: Check, fixes: Fixes, keepCounts: boolean) {
    this.#run = run;
    this.#fixes = fixes;
    this.#keepCounts = keepCounts;
  }

  async compareBlock(co: Coroutine<"read">, tableIndex: number): Promise<number> {
    const { state, counts, refcounts } = this.#run;
    const blockClusters = refblockEntries(state);
    const start = tableIndex * blockClusters;
    const end = Math.min(start + blockClusters, counts.clusters);
    const block = await refcounts.block(co, tableIndex, counts.fileBytes);
    if (!block) {
      this.#reportLost(start, end, refcounts.whyLost(tableIndex) ?? "EIO");
      return 0;
    }
    let highest = 0;
    const { pageClusters } = counts;
    const pageBytes = (pageClusters * state.refcountBits) / 8;
    for (let first = start; first < end; first += pageClusters) {
      const pageAt = ((first - start) / pageClusters) * pageBytes;
      const bytes = block.subarray(pageAt, pageAt + pageBytes);
      const page = counts.page(first / pageClusters);
      if (!page && isZero(bytes)) continue;
      const last = await this.#comparePage(co, page, bytes, first, Math.min(end - first, pageClusters));
      highest = Math.max(highest, last);
    }
    return highest;
  }

  async #comparePage(
    co: Coroutine<"read">,
    page: Counters | undefined,
    bytes: Uint8Array,
    first: number,
    clusters: number,
  ): Promise<number> {
    if (page && isSame(page, bytes, clusters)) return Math.max(first + lastUsed(page, clusters), 0);
    const { get } = refcountsOf(this.#run.state);
    const { max } = this.#run.counts;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    const isWide = this.#run.state.refcountBits === 64;
    let highest = 0;
    for (let index = 0; index < clusters; index++) {
      const refcount = get(view, index);
      const count = page ? (page[index] as number) : 0;
      if (refcount === 0 && count === 0) continue;
      highest = first + index;
      if (refcount === count) continue;
      const told = isWide ? view.getBigUint64(index * 8) : refcount;
      if (await this.#settle(co, first + index, { refcount, told, count })) continue;
      if (page && !this.#keepCounts) page[index] = Math.min(refcount, max);
    }
    return highest;
  }

  /** Tells of a difference; true if it is no more. */
  async #settle(
    co: Coroutine<"read">,
    cluster: number,
    { refcount, told, count }: Difference,
  ): Promise<boolean> {
    const { state, result, options } = this.#run;
    const isLeak = refcount > count;
    if (refcount === 0) this.#run.needsRebuild = true;
    const isFixed = refcount !== 0 && (isLeak ? this.#fixes.leaks : this.#fixes.errors);
    const verdict = isFixed ? "Repairing" : isLeak ? "Leaked" : "ERROR";
    options.report(`${verdict} cluster ${cluster} refcount=${told} reference=${count}`);
    if (isFixed) {
      try {
        await setRefcount(co, state, cluster, count);
        if (isLeak) result.leaksFixed++;
        else result.corruptionsFixed++;
        return true;
      } catch (error) {
        if (!(error instanceof BlockError)) throw error;
      }
    }
    if (isLeak) result.leaks++;
    else result.corruptions++;
    return false;
  }

  #reportLost(start: number, end: number, errno: Errno): void {
    const { options, result } = this.#run;
    for (let cluster = start; cluster < end; cluster++)
      options.report(`Can't get refcount for cluster ${cluster}: ${strerror(errno)}`);
    result.checkErrors += end - start;
    this.#run.lostRefcounts += end - start;
  }
}

/** Whether the counters stand in the block just so; false also where that can't be told at a glance. */
function isSame(page: Counters, block: Uint8Array, clusters: number): boolean {
  const bytes = clusters * page.BYTES_PER_ELEMENT;
  if (block.length !== page.byteLength) return false;
  const swapped = Buffer.from(page.buffer.slice(page.byteOffset, page.byteOffset + bytes));
  if (page.BYTES_PER_ELEMENT === 2) swapped.swap16();
  if (page.BYTES_PER_ELEMENT === 4) swapped.swap32();
  return swapped.equals(block.subarray(0, bytes));
}

/** Relative to the page's first cluster; minus infinity where there is none. */
function lastUsed(page: Counters, clusters: number): number {
  for (let index = clusters - 1; index >= 0; index--) if (page[index] !== 0) return index;
  return Number.NEGATIVE_INFINITY;
}

/** The refcount that a cluster has, after `compareRefcounts` without `keepCounts`; undefined if it can't be had. */
export async function refcountOf(
  co: Coroutine<"read">,
  run: Check,
  cluster: number,
): Promise<number | bigint | undefined> {
  const known = peekRefcount(run, cluster);
  if (known !== undefined) return known;
  const tableIndex = Math.floor(cluster / refblockEntries(run.state));
  if (!(await run.refcounts.block(co, tableIndex, run.counts.fileBytes))) return undefined;
  try {
    const refcount = await getRefcount(co, run.state, cluster);
    return Number.isSafeInteger(refcount) ? refcount : exactRefcount(run.state, cluster);
  } catch (error) {
    if (error instanceof BlockError) return undefined;
    throw error;
  }
}

/** Of 64 bits, in a block that is in memory. */
function exactRefcount(state: Qcow2State, cluster: number): bigint | undefined {
  const entries = refblockEntries(state);
  const block = state.refcountCache.peek(tableOffset(state.refcountTable, Math.floor(cluster / entries)));
  return block?.view.getBigUint64((cluster % entries) * 8);
}

/** The same where it is in memory: for almost every cluster that was counted. */
export function peekRefcount({ counts, refcounts }: Check, cluster: number): number | undefined {
  if (refcounts.hasLost || cluster >= counts.clusters) return undefined;
  const known = counts.peek(cluster);
  // The highest count that is kept stands for all above, too.
  return known === undefined || known < counts.max ? known : undefined;
}
