/**
 * Counts what an image's tables refer to, from its bytes alone: an opinion of our own beside `check`'s and qemu-img's,
 * quick enough to be asked thousands of times. For images without compressed clusters, bitmaps and data files.
 */

import assert from "node:assert/strict";

const OFFSET_MASK = 0x00fffffffffffe00n;
const COPIED = 1n << 63n;

class Tables {
  readonly #bytes: DataView;
  readonly clusterSize: number;
  readonly references = new Map<number, number>();
  readonly #entryBytes: number;
  readonly #refcountBits: number;

  constructor(data: Uint8Array) {
    this.#bytes = new DataView(data.buffer, data.byteOffset, data.length);
    this.clusterSize = 2 ** this.u32(20);
    const isV3 = this.u32(4) === 3;
    this.#entryBytes = isV3 && (this.u64(72) & 16n) !== 0n ? 16 : 8;
    this.#refcountBits = isV3 ? 2 ** this.u32(96) : 16;
    assert.ok(this.#refcountBits >= 8, "narrow refcounts are not read");
  }

  /** What lies behind the end of the file is zero. */
  u32(at: number): number {
    return at + 4 <= this.#bytes.byteLength ? this.#bytes.getUint32(at) : 0;
  }

  u64(at: number): bigint {
    return at + 8 <= this.#bytes.byteLength ? this.#bytes.getBigUint64(at) : 0n;
  }

  add(offset: number, bytes: number): void {
    if (bytes === 0) return;
    const last = Math.floor((offset + bytes - 1) / this.clusterSize);
    for (let index = Math.floor(offset / this.clusterSize); index <= last; index++)
      this.references.set(index, (this.references.get(index) ?? 0) + 1);
  }

  entries(
    offset: number,
    count: number,
    entryBytes = 8,
  ): { readonly host: number; readonly copied: boolean }[] {
    const all = Array.from({ length: count }, (_, index) => this.u64(offset + index * entryBytes));
    return all.map((entry) => ({ host: Number(entry & OFFSET_MASK), copied: (entry & COPIED) !== 0n }));
  }

  l2(offset: number) {
    return this.entries(offset, this.clusterSize / this.#entryBytes, this.#entryBytes);
  }

  addL1(offset: number, count: number): void {
    this.add(offset, count * 8);
    for (const { host: l2Offset } of this.entries(offset, count)) {
      if (l2Offset === 0) continue;
      this.add(l2Offset, this.clusterSize);
      for (const { host } of this.l2(l2Offset)) if (host !== 0) this.add(host, this.clusterSize);
    }
  }

  addSnapshots(): void {
    const start = Number(this.u64(64));
    let at = start;
    for (let left = this.u32(60); left > 0; left--) {
      at = Math.ceil(at / 8) * 8;
      this.addL1(Number(this.u64(at)), this.u32(at + 8));
      const names = this.u32(at + 12);
      at += 40 + this.u32(at + 36) + Math.floor(names / 65536) + (names % 65536);
    }
    this.add(start, at - start);
  }

  refcount(cluster: number): number {
    const perBlock = (this.clusterSize * 8) / this.#refcountBits;
    const tableOffset = Number(this.u64(48));
    const block = Number(this.u64(tableOffset + Math.floor(cluster / perBlock) * 8));
    if (block === 0) return 0;
    const at = block + ((cluster % perBlock) * this.#refcountBits) / 8;
    if (this.#refcountBits === 64) return Number(this.u64(at));
    if (this.#refcountBits === 32) return this.u32(at);
    return this.#refcountBits === 8 ? this.#bytes.getUint8(at) : this.#bytes.getUint16(at);
  }

  addRefcounts(): void {
    const tableOffset = Number(this.u64(48));
    const tableBytes = this.u32(56) * this.clusterSize;
    this.add(tableOffset, tableBytes);
    for (const { host } of this.entries(tableOffset, tableBytes / 8))
      if (host !== 0) this.add(host, this.clusterSize);
  }
}

/**
 * Fails where a cluster has fewer refcounts than references, or where the active tables call a cluster their own that
 * a snapshot has too.
 */
export function checkReferences(data: Uint8Array, what: string): void {
  const tables = new Tables(data);
  const { references, clusterSize } = tables;
  const l1Offset = Number(tables.u64(40));
  const l1Size = tables.u32(36);
  tables.add(0, clusterSize);
  tables.addL1(l1Offset, l1Size);
  tables.addSnapshots();
  tables.addRefcounts();
  for (const [cluster, count] of references)
    assert.ok(tables.refcount(cluster) >= count, `${what}: cluster ${cluster} is used ${count} times`);
  const checkOwn = ({ host, copied }: { readonly host: number; readonly copied: boolean }) => {
    const count = references.get(host / clusterSize) ?? 0;
    assert.ok(
      !copied || host === 0 || count === 1,
      `${what}: the cluster at ${host} is not the active image's alone`,
    );
  };
  for (const entry of tables.entries(l1Offset, l1Size)) {
    checkOwn(entry);
    if (entry.host !== 0) tables.l2(entry.host).forEach(checkOwn);
  }
}
