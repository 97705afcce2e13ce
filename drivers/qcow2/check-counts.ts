/**
 * References to clusters, counted from the tables. Memory goes by what is referred to within the file: pages of
 * counters are made where a first reference falls, in numbers as wide as the image's refcounts (up to 32 bits). An
 * image of 1 TiB with clusters of 64 KiB and refcounts of 16 bits takes 32 MiB.
 */

import type { CheckResult } from "../../src/block/driver.ts";
import type { RefcountAccess } from "./entries.ts";

export interface CountsOptions {
  /** Bytes of the file. */
  readonly fileBytes: number;
  readonly clusterSize: number;
  readonly access: RefcountAccess;
  /** Clusters that one refcount block counts. */
  readonly blockClusters: number;
  readonly result: CheckResult;
  readonly report: (line: string) => void;
}

export type Counters = Uint8Array | Uint16Array | Uint32Array;

/** Counters of one page, at most: 128 KiB of memory. */
const MAX_PAGE_CLUSTERS = 32768;

const UINT32_MAX = 0xffffffff;

export class ReferenceCounts {
  readonly #options: CountsOptions;
  readonly #makePage: () => Counters;
  /** A page never spans two refcount blocks. */
  readonly pageClusters: number;
  /** The largest count that is kept. */
  readonly max: number;
  #fileBytes: number;
  #clusters: number;
  readonly #pages = new Map<number, Counters>();
  #page: Counters = new Uint8Array(0);
  #pageIndex = -1;

  constructor(options: CountsOptions) {
    const { access, blockClusters, fileBytes } = options;
    this.#options = options;
    this.pageClusters = Math.min(blockClusters, MAX_PAGE_CLUSTERS);
    this.max = Math.min(access.max, UINT32_MAX);
    const Numbers = this.max <= 0xff ? Uint8Array : this.max <= 0xffff ? Uint16Array : Uint32Array;
    this.#makePage = () => new Numbers(this.pageClusters);
    this.#fileBytes = fileBytes;
    this.#clusters = Math.ceil(fileBytes / options.clusterSize);
  }

  get fileBytes(): number {
    return this.#fileBytes;
  }

  /** Clusters of the file, and one more if something reaches into what would be the next. */
  get clusters(): number {
    return this.#clusters;
  }

  /** The file has become longer. */
  grow(fileBytes: number): void {
    this.#fileBytes = fileBytes;
    this.#clusters = Math.max(this.#clusters, Math.ceil(fileBytes / this.#options.clusterSize));
  }

  /** Counting begins anew. */
  clear(): void {
    this.#pages.clear();
    this.#pageIndex = -1;
  }

  /**
   * Counts `weight` references to every cluster that [offset, offset + bytes) touches. The last cluster of the file
   * may be there in part; what is farther out is an error and is not counted. `hexOffset`: how the offset is told,
   * where the number is not exact.  @qemu qcow2_inc_refcounts_imrt
   */
  add(offset: number, bytes: number, weight = 1, hexOffset?: string): void {
    const { clusterSize } = this.#options;
    if (bytes === 0) return;
    if (offset + bytes - this.#fileBytes >= clusterSize) {
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

  /**
   * Counts one reference to each of `count` clusters in a row from `first` on, and the next ones likewise: the usual
   * case of `add`, for clusters within the file. Gives how many were counted, up to the end of a page or to one whose
   * count is at its limit.
   */
  addRun(first: number, count: number): number {
    const page = this.#pageOf(first);
    const from = first % this.pageClusters;
    const to = Math.min(from + count, this.pageClusters);
    const { max } = this;
    let index = from;
    for (; index < to; index++) {
      const references = page[index] as number;
      if (references >= max) break;
      page[index] = references + 1;
    }
    return index - from;
  }

  /** How many of `count` clusters in a row from `first` on have exactly one reference, up to the end of a page. */
  singles(first: number, count: number): number {
    const page = this.#pages.get(Math.floor(first / this.pageClusters));
    if (!page) return 0;
    const from = first % this.pageClusters;
    const to = Math.min(from + count, this.pageClusters);
    let index = from;
    while (index < to && page[index] === 1) index++;
    return index - from;
  }

  #addCluster(cluster: number, weight: number): void {
    const page = this.#pageOf(cluster);
    const index = cluster % this.pageClusters;
    const count = (page[index] as number) + weight;
    page[index] = Math.min(count, this.max);
    if (cluster >= this.#clusters) this.#clusters = cluster + 1;
    const { max } = this.#options.access;
    if (count <= max) return;
    this.#corruption(
      `ERROR: overflow cluster offset=0x${(cluster * this.#options.clusterSize).toString(16)}\n` +
        "Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean copy if the image cannot be opened for writing",
      count - max,
    );
  }

  #pageOf(cluster: number): Counters {
    const index = Math.floor(cluster / this.pageClusters);
    if (index === this.#pageIndex) return this.#page;
    let page = this.#pages.get(index);
    if (!page) {
      page = this.#makePage();
      this.#pages.set(index, page);
    }
    this.#page = page;
    this.#pageIndex = index;
    return page;
  }

  #corruption(line: string, times: number): void {
    this.#options.report(line);
    this.#options.result.corruptions += times;
  }

  /** The counters of clusters from `index * pageClusters` on; undefined: all are 0. */
  page(index: number): Counters | undefined {
    return this.#pages.get(index);
  }

  pageIndices(): number[] {
    return [...this.#pages.keys()].sort((a, b) => a - b);
  }

  /** The count of a cluster whose page there is. */
  peek(cluster: number): number | undefined {
    const index = Math.floor(cluster / this.pageClusters);
    if (index !== this.#pageIndex) {
      const page = this.#pages.get(index);
      if (!page) return undefined;
      this.#page = page;
      this.#pageIndex = index;
    }
    return this.#page[cluster % this.pageClusters];
  }

  /** `count` clusters in a row, from `from` on, that nothing refers to; they may lie behind the end of the file. */
  findFree(count: number, from: number): number {
    let run = 0;
    for (let cluster = from; ; cluster++) {
      run = (this.peek(cluster) ?? 0) === 0 ? run + 1 : 0;
      if (run === count) return cluster - count + 1;
    }
  }

  /** Clusters that were chosen are referred to once, or are free again (0). */
  set(first: number, count: number, references: 0 | 1): void {
    for (let cluster = first; cluster < first + count; cluster++)
      this.#pageOf(cluster)[cluster % this.pageClusters] = references;
    this.#clusters = Math.max(this.#clusters, first + count);
  }
}
