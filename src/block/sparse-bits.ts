/**
 * A long row of bits in pages that are made where the first bit is set: what is all clear, or all set, costs next to
 * nothing.  @qemu util/hbitmap.c
 */

import { isZero } from "./iov.ts";

/** 4 KiB each; bit k of a page is bit k % 8, from the lowest, of byte k / 8. */
const PAGE_BYTES = 4096;
const PAGE_BITS = PAGE_BYTES * 8;

/** Stands for every page whose bits are all set. Never written to. */
const FULL: Uint8Array = new Uint8Array(PAGE_BYTES).fill(0xff);

/** Bits [start, end), which may be of any length. */
export interface BitRange {
  readonly start: number;
  readonly end: number;
}

export class SparseBits {
  readonly #pages = new Map<number, Uint8Array>();
  /** The pages' indices in order; undefined: to be found anew. */
  #order: number[] | undefined;

  get isEmpty(): boolean {
    return this.nextSet(0) === undefined;
  }

  set(start: number, end: number): void {
    for (const { index, from, to } of pieces(start, end)) {
      const page = this.#pages.get(index);
      if (page === FULL) continue;
      if (to - from === PAGE_BITS) this.#put(index, FULL);
      else fill(page ?? this.#put(index, new Uint8Array(PAGE_BYTES)), from, to, true);
    }
  }

  clear(start: number, end: number): void {
    const order = this.#indices();
    for (let at = positionAfter(order, Math.floor(start / PAGE_BITS) - 1); at < order.length; at++) {
      const index = order[at] as number;
      const from = Math.max(start - index * PAGE_BITS, 0);
      const to = Math.min(end - index * PAGE_BITS, PAGE_BITS);
      if (to <= from) return;
      const page = this.#pages.get(index) as Uint8Array;
      if (to - from === PAGE_BITS) this.#drop(index);
      else fill(page === FULL ? this.#put(index, FULL.slice()) : page, from, to, false);
    }
  }

  /** The first set bit from `from` on. */
  nextSet(from: number): number | undefined {
    const first = Math.floor(from / PAGE_BITS);
    const found = this.#nextSetIn(first, from - first * PAGE_BITS);
    if (found !== undefined) return found;
    const order = this.#indices();
    for (let at = positionAfter(order, first); at < order.length; at++) {
      const bit = this.#nextSetIn(order[at] as number, 0);
      if (bit !== undefined) return bit;
    }
    return undefined;
  }

  #nextSetIn(index: number, from: number): number | undefined {
    const page = this.#pages.get(index);
    if (!page) return undefined;
    if (page === FULL) return index * PAGE_BITS + from;
    const bit = find(page, from, 0x00);
    return bit === undefined ? undefined : index * PAGE_BITS + bit;
  }

  /** The first clear bit from `from` on, or `end`. */
  nextClear(from: number, end: number): number {
    for (const { index, from: start, to } of pieces(from, end)) {
      const page = this.#pages.get(index);
      if (page === FULL) continue;
      const bit = page ? find(page, start, 0xff) : start;
      if (bit !== undefined && bit < to) return index * PAGE_BITS + bit;
    }
    return end;
  }

  /** The runs of set bits below `end`, in order. */
  *runs(end: number): Generator<BitRange, void> {
    for (let start = this.nextSet(0); start !== undefined && start < end; start = this.nextSet(start)) {
      const runEnd = this.nextClear(start, end);
      yield { start, end: runEnd };
      start = runEnd;
    }
  }

  /** Copies bits from `start`, a multiple of 8, into `target`. */
  read(start: number, target: Uint8Array): void {
    for (const { index, from, to, done } of pieces(start, start + target.length * 8)) {
      const page = this.#pages.get(index);
      if (page) target.set(page.subarray(from / 8, to / 8), done / 8);
      else target.fill(0, done / 8, (done + to - from) / 8);
    }
  }

  /** Sets every bit from `start`, a multiple of 8, that is set in `source`. */
  or(start: number, source: Uint8Array): void {
    for (const { index, from, to, done } of pieces(start, start + source.length * 8)) {
      const page = this.#pages.get(index);
      if (page === FULL) continue;
      const part = source.subarray(done / 8, (done + to - from) / 8);
      if (isZero(part)) continue;
      if (part.length === PAGE_BYTES && Buffer.compare(part, FULL) === 0) {
        this.#put(index, FULL);
        continue;
      }
      const own = page ?? this.#put(index, new Uint8Array(PAGE_BYTES));
      for (let at = 0; at < part.length; at++)
        own[from / 8 + at] = (own[from / 8 + at] as number) | (part[at] as number);
    }
  }

  #put(index: number, page: Uint8Array): Uint8Array {
    if (!this.#pages.has(index)) this.#order = undefined;
    this.#pages.set(index, page);
    return page;
  }

  #drop(index: number): void {
    this.#pages.delete(index);
    this.#order = undefined;
  }

  #indices(): readonly number[] {
    this.#order ??= [...this.#pages.keys()].sort((a, b) => a - b);
    return this.#order;
  }
}

/** Where the first number over `value` stands. */
function positionAfter(order: readonly number[], value: number): number {
  let low = 0;
  for (let high = order.length; low < high; ) {
    const middle = (low + high) >>> 1;
    if ((order[middle] as number) <= value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Bits [start, end) by page: [from, to) within it, `done` bits after `start`. */
function* pieces(
  start: number,
  end: number,
): Generator<{ readonly index: number; readonly from: number; readonly to: number; readonly done: number }> {
  for (let bit = start; bit < end; ) {
    const index = Math.floor(bit / PAGE_BITS);
    const from = bit - index * PAGE_BITS;
    const to = Math.min(PAGE_BITS, from + end - bit);
    yield { index, from, to, done: bit - start };
    bit += to - from;
  }
}

function fill(page: Uint8Array, from: number, to: number, value: boolean): void {
  const first = from >>> 3;
  const last = (to - 1) >>> 3;
  const headMask = (0xff << (from & 7)) & 0xff;
  const tailMask = 0xff >>> (7 - ((to - 1) & 7));
  const apply = (at: number, mask: number) => {
    const byte = page[at] as number;
    page[at] = value ? byte | mask : byte & ~mask;
  };
  if (first === last) return apply(first, headMask & tailMask);
  apply(first, headMask);
  page.fill(value ? 0xff : 0, first + 1, last);
  apply(last, tailMask);
}

/** The first bit from `from` on that is not as in `skipped`, a byte of eight equal bits. */
function find(page: Uint8Array, from: number, skipped: number): number | undefined {
  let at = from >>> 3;
  let differing = ((page[at] as number) ^ skipped) & (0xff << (from & 7));
  while (differing === 0) {
    if (++at === PAGE_BYTES) return undefined;
    differing = (page[at] as number) ^ skipped;
  }
  return at * 8 + (31 - Math.clz32(differing & -differing));
}
