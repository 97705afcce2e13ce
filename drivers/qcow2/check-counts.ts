/**
 * References to clusters, counted from the tables, and their comparison with the refcounts in the file. Memory goes
 * by what is referred to within the file: pages of counters are made where a first reference falls.
 */

import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import type { CheckResult } from "../../src/block/driver.ts";
import { isZero } from "../../src/block/iov.ts";
import { type RefcountAccess, refcountAccess } from "./entries.ts";

export interface CountsOptions {
  readonly file: BlockChild;
  /** Bytes of the file. */
  readonly fileBytes: number;
  readonly clusterSize: number;
  readonly refcountBits: number;
  /** The refcount table as it is in the file. */
  readonly refcountTable: DataView;
  readonly result: CheckResult;
  readonly report: (line: string) => void;
}

/** Counters of one page, at most: 128 KiB of memory. */
const MAX_PAGE_CLUSTERS = 32768;

const UINT32_MAX = 0xffffffff;

export class ReferenceCounts {
  readonly #options: CountsOptions;
  readonly #access: RefcountAccess;
  /** Clusters that one refcount block counts. */
  readonly #blockClusters: number;
  readonly #pageClusters: number;
  /** Clusters of the file, and one more if something reaches into what would be the next. */
  #clusters: number;
  readonly #pages = new Map<number, Uint32Array>();
  #page: Uint32Array = new Uint32Array(0);
  #pageIndex = -1;
  /** Entries of the refcount table whose blocks can't be read. */
  readonly #lostBlocks = new Set<number>();
  #block: { readonly tableIndex: number; readonly bytes: Uint8Array } | undefined;

  constructor(options: CountsOptions) {
    const { clusterSize, refcountBits, fileBytes } = options;
    this.#options = options;
    this.#access = refcountAccess(Math.log2(refcountBits));
    this.#blockClusters = (clusterSize * 8) / refcountBits;
    this.#pageClusters = Math.min(this.#blockClusters, MAX_PAGE_CLUSTERS);
    this.#clusters = Math.ceil(fileBytes / clusterSize);
  }

  /**
   * Counts `weight` references to every cluster that [offset, offset + bytes) touches. The last cluster of the file
   * may be there in part; what is farther out is an error and is not counted. `hexOffset`: how the offset is told,
   * where the number is not exact.  @qemu qcow2_inc_refcounts_imrt
   */
  add(offset: number, bytes: number, weight = 1, hexOffset?: string): void {
    const { clusterSize, fileBytes } = this.#options;
    if (bytes === 0) return;
    if (offset + bytes - fileBytes >= clusterSize) {
      this.#corruption(
        `ERROR: counting reference for region exceeding the end of the file by one cluster or more: offset 0x${hexOffset ?? offset.toString(16)} size 0x${bytes.toString(16)}`,
        weight,
      );
      return;
    }
    const last = Math.floor((offset + bytes - 1) / clusterSize);
    for (let cluster = Math.floor(offset / clusterSize); cluster <= last; cluster++)
      this.#addCluster(cluster, weight);
  }

  #addCluster(cluster: number, weight: number): void {
    const page = this.#pageOf(cluster);
    const index = cluster % this.#pageClusters;
    const count = (page[index] as number) + weight;
    const max = Math.min(this.#access.max, UINT32_MAX);
    page[index] = Math.min(count, max);
    if (cluster >= this.#clusters) this.#clusters = cluster + 1;
    if (count <= this.#access.max) return;
    this.#corruption(
      `ERROR: overflow cluster offset=0x${(cluster * this.#options.clusterSize).toString(16)}\n` +
        "Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean copy if the image cannot be opened for writing",
      count - this.#access.max,
    );
  }

  #pageOf(cluster: number): Uint32Array {
    const index = Math.floor(cluster / this.#pageClusters);
    if (index === this.#pageIndex) return this.#page;
    let page = this.#pages.get(index);
    if (!page) {
      page = new Uint32Array(this.#pageClusters);
      this.#pages.set(index, page);
    }
    this.#page = page;
    this.#pageIndex = index;
    return page;
  }

  #corruption(line: string, times = 1): void {
    this.#options.report(line);
    this.#options.result.corruptions += times;
  }

  /** Counts the refcount blocks themselves.  @qemu check_refblocks */
  addBlocks(): void {
    const { clusterSize, refcountTable } = this.#options;
    for (let index = 0; index * 8 < refcountTable.byteLength; index++) {
      const low = refcountTable.getUint32(index * 8 + 4);
      const offset = this.#blockOffset(index);
      if (offset === 0 && low === 0) continue;
      if ((low & 0x1ff) !== 0) this.#corruption(`ERROR refcount table entry ${index} has reserved bits set`);
      else if (offset % clusterSize !== 0)
        this.#corruption(
          `ERROR refcount block ${index} is not cluster aligned; refcount table entry corrupted`,
        );
      else if (offset / clusterSize >= this.#clusters)
        this.#corruption(`ERROR refcount block ${index} is outside image`);
      else {
        this.add(offset, clusterSize);
        const cluster = offset / clusterSize;
        const count = this.#pageOf(cluster)[cluster % this.#pageClusters] as number;
        if (count !== 1) this.#corruption(`ERROR refcount block ${index} refcount=${count}`);
      }
    }
  }

  /** Here all 64 bits count but the 9 lowest. */
  #blockOffset(tableIndex: number): number {
    const { refcountTable } = this.#options;
    const low = refcountTable.getUint32(tableIndex * 8 + 4);
    return refcountTable.getUint32(tableIndex * 8) * 2 ** 32 + (low - (low % 512));
  }

  /**
   * Compares every cluster's count with the refcount in the file, and from then on holds the latter: memory need not
   * hold both. Finds the end of the image on the way.  @qemu compare_refcounts
   */
  async compare(co: Coroutine<"read">): Promise<void> {
    const { refcountTable, result, clusterSize } = this.#options;
    const tableIndices = new Set<number>();
    for (let index = 0; index * 8 < refcountTable.byteLength; index++)
      if (this.#blockOffset(index) !== 0) tableIndices.add(index);
    for (const page of this.#pages.keys())
      tableIndices.add(Math.floor((page * this.#pageClusters) / this.#blockClusters));
    let highest = 0;
    for (const index of [...tableIndices].sort((a, b) => a - b)) {
      if (index * this.#blockClusters >= this.#clusters) break;
      co.checkAborted();
      highest = Math.max(highest, await this.#compareBlock(co, index));
    }
    result.imageEndOffset = (highest + 1) * clusterSize;
  }

  /** Gives the last cluster that is used, by count or by refcount; 0 if there is none. */
  async #compareBlock(co: Coroutine<"read">, tableIndex: number): Promise<number> {
    const start = tableIndex * this.#blockClusters;
    const end = Math.min(start + this.#blockClusters, this.#clusters);
    const block = await this.#loadBlock(co, tableIndex);
    if (!block) {
      this.#reportLost(tableIndex, start, end);
      return 0;
    }
    let highest = 0;
    const pageBytes = (this.#pageClusters * this.#options.refcountBits) / 8;
    for (let first = start; first < end; first += this.#pageClusters) {
      const pageAt = ((first - start) / this.#pageClusters) * pageBytes;
      const refcounts = block.subarray(pageAt, pageAt + pageBytes);
      const page = this.#pages.get(first / this.#pageClusters);
      if (!page && isZero(refcounts)) continue;
      const counts = page ?? new Uint32Array(this.#pageClusters);
      highest = Math.max(
        highest,
        this.#comparePage(counts, refcounts, first, Math.min(end - first, this.#pageClusters)),
      );
    }
    return highest;
  }

  #comparePage(counts: Uint32Array, refcounts: Uint8Array, first: number, clusters: number): number {
    const { report, result } = this.#options;
    const { get } = this.#access;
    const view = new DataView(refcounts.buffer, refcounts.byteOffset, refcounts.length);
    let highest = 0;
    for (let index = 0; index < clusters; index++) {
      const refcount = get(view, index);
      const count = counts[index] as number;
      if (refcount === 0 && count === 0) continue;
      highest = first + index;
      if (refcount === count) continue;
      const isLeak = refcount > count;
      if (isLeak) result.leaks++;
      else result.corruptions++;
      report(
        `${isLeak ? "Leaked" : "ERROR"} cluster ${first + index} refcount=${BigInt(refcount)} reference=${count}`,
      );
      counts[index] = Math.min(refcount, UINT32_MAX);
    }
    return highest;
  }

  #reportLost(tableIndex: number, start: number, end: number): void {
    const { report, result } = this.#options;
    if (this.#lostBlocks.size === 0)
      report(
        `qcow2: Image is corrupt: Refblock offset 0x${this.#blockOffset(tableIndex).toString(16)} unaligned (reftable index: ${tableIndex === 0 ? 0 : `0x${tableIndex.toString(16)}`}); further non-fatal corruption events will be suppressed`,
      );
    this.#lostBlocks.add(tableIndex);
    for (let cluster = start; cluster < end; cluster++)
      report(`Can't get refcount for cluster ${cluster}: Input/output error`);
    result.checkErrors += end - start;
  }

  /** The block as it is in the file, zeroes where there is none; undefined if its place is nonsense. */
  async #loadBlock(co: Coroutine<"read">, tableIndex: number): Promise<Uint8Array | undefined> {
    if (this.#block?.tableIndex === tableIndex) return this.#block.bytes;
    const { file, clusterSize, refcountTable, fileBytes } = this.#options;
    const offset = tableIndex * 8 < refcountTable.byteLength ? this.#blockOffset(tableIndex) : 0;
    if (offset % clusterSize !== 0) return undefined;
    const bytes =
      offset === 0 || offset >= fileBytes
        ? new Uint8Array(clusterSize)
        : await file.preadBytes(co, offset, clusterSize);
    this.#block = { tableIndex, bytes };
    return bytes;
  }

  /** The refcount in the file, after `compare`; undefined if it can't be had. Far fewer ask than are counted. */
  async refcount(co: Coroutine<"read">, cluster: number): Promise<number | undefined> {
    const tableIndex = Math.floor(cluster / this.#blockClusters);
    if (this.#lostBlocks.has(tableIndex)) return undefined;
    const known = this.peekRefcount(cluster);
    if (known !== undefined) return known;
    const block = await this.#loadBlock(co, tableIndex);
    if (!block) return undefined;
    return this.#access.get(new DataView(block.buffer, block.byteOffset), cluster % this.#blockClusters);
  }

  /** The same where it is in memory: for every cluster that was counted. */
  peekRefcount(cluster: number): number | undefined {
    if (this.#lostBlocks.size > 0 || cluster >= this.#clusters) return undefined;
    const index = Math.floor(cluster / this.#pageClusters);
    if (index !== this.#pageIndex) {
      const page = this.#pages.get(index);
      if (!page) return undefined;
      this.#page = page;
      this.#pageIndex = index;
    }
    return this.#page[cluster % this.#pageClusters];
  }
}
