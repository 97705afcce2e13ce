/**
 * A table of numbers of 4 or 8 bytes that lies in one piece in a file (a block allocation table, a block map), of which
 * a bounded number of pages is in memory, the least used ones leaving first.
 *
 * How to use it:
 * - Read: `table.peek(index) ?? (await table.get(co, index))`. The former needs no wait and answers from memory only.
 * - Change: `await table.set(co, index, value)`, and `await table.write(co)` where the request ends: it hands the changed
 *   parts of pages to the file, in the order in which they lie there. A page that must leave earlier is written earlier.
 * - Order: set `dependsOnFlush` before `set` where the file must be flushed (the data, the header) before any changed
 *   entry may be written; `flush` writes and makes the file stable.
 * - What fails stays changed and is written by the next `write`.
 *
 * Calls may come at any time, side by side; one entry that two requests change is their driver's matter.
 */

import type { BlockChild } from "../src/block/child.ts";
import type { Coroutine } from "../src/block/coroutine.ts";
import { assert } from "../src/block/errors.ts";
import { KiB } from "../src/block/units.ts";
import { Mutex } from "./qcow2/mutex.ts";
import { type Table, TableCache } from "./qcow2/table-cache.ts";

/** Read at a time, from the table's start on. */
const PAGE_BYTES = 16 * KiB;

/** 1 MiB: what a driver may hold of a table of any size. */
const MAX_PAGES = 64;

export interface PagedTableOptions {
  readonly file: BlockChild;
  /** Where entry 0 lies in the file. */
  readonly offset: number;
  /** The driver has checked that they lie where numbers can tell; past the end of the file they read as 0. */
  readonly entries: number;
  readonly entryBytes: 4 | 8;
  readonly littleEndian: boolean;
  /** Pages in memory; 64 of 16 KiB. */
  readonly maxPages?: number;
  /** The blkdebug events of reading and of writing a page, if there are any. */
  readonly loadEvent?: string;
  readonly writeEvent?: string;
}

export class PagedTable {
  readonly entries: number;
  readonly #entryBytes: 4 | 8;
  readonly #littleEndian: boolean;
  readonly #offset: number;
  readonly #cache: TableCache;
  /** The cache wants its calls one after the other. */
  readonly #lock = new Mutex();

  constructor(options: PagedTableOptions) {
    const { offset, entries, entryBytes, maxPages = MAX_PAGES } = options;
    this.entries = entries;
    this.#entryBytes = entryBytes;
    this.#littleEndian = options.littleEndian;
    this.#offset = offset;
    const end = offset + entries * entryBytes;
    this.#cache = new TableCache({ ...options, tableBytes: PAGE_BYTES, capacity: maxPages, end });
  }

  /** The file must be flushed before any entry that was changed is written. */
  set dependsOnFlush(value: boolean) {
    this.#cache.dependsOnFlush = value;
  }

  get hasDirty(): boolean {
    return this.#cache.hasDirty;
  }

  /** The entry if its page is in memory. Of 8 bytes: exact below 2^53. */
  peek(index: number): number | undefined {
    assert(index >= 0 && index < this.entries, "an entry outside of the table");
    const at = index * this.#entryBytes;
    const page = this.#cache.peek(this.#pageOffset(at));
    return page && this.#read(page, at % PAGE_BYTES);
  }

  async get(co: Coroutine<"read">, index: number): Promise<number> {
    const at = index * this.#entryBytes;
    const known = this.peek(index);
    if (known !== undefined) return known;
    return this.#lock.run(async () => {
      const page = await this.#cache.load(co, this.#pageOffset(at));
      return this.#read(page, at % PAGE_BYTES);
    });
  }

  /** In memory; `write` brings it to the file. */
  set(co: Coroutine<"read">, index: number, value: number): Promise<void> {
    assert(index >= 0 && index < this.entries, "an entry outside of the table");
    const at = index * this.#entryBytes;
    return this.#lock.run(async () => {
      const page = await this.#cache.load(co, this.#pageOffset(at));
      const within = at % PAGE_BYTES;
      this.#write(page.view, within, value);
      page.markDirty(within, within + this.#entryBytes);
    });
  }

  /** Hands all that was changed to the file. */
  write(co: Coroutine<"read">): Promise<void> {
    return this.#lock.run(() => this.#cache.write(co));
  }

  /** The same, and makes the file stable. */
  flush(co: Coroutine<"read">): Promise<void> {
    return this.#lock.run(() => this.#cache.flush(co));
  }

  #pageOffset(at: number): number {
    return this.#offset + at - (at % PAGE_BYTES);
  }

  #read({ view }: Table, at: number): number {
    const first = view.getUint32(at, this.#littleEndian);
    if (this.#entryBytes === 4) return first;
    const second = view.getUint32(at + 4, this.#littleEndian);
    return this.#littleEndian ? second * 2 ** 32 + first : first * 2 ** 32 + second;
  }

  #write(view: DataView, at: number, value: number): void {
    const low = value % 2 ** 32;
    if (this.#entryBytes === 4) {
      view.setUint32(at, value, this.#littleEndian);
      return;
    }
    const high = (value - low) / 2 ** 32;
    view.setUint32(at, this.#littleEndian ? low : high, this.#littleEndian);
    view.setUint32(at + 4, this.#littleEndian ? high : low, this.#littleEndian);
  }
}
