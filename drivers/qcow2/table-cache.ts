/**
 * A cache of tables of one size (slices of L2 tables, refcount blocks, pages of `PagedTable`) with write-back.
 * @qemu block/qcow2-cache.c
 *
 * Invariants:
 * 1. Never more than `capacity` tables are in memory.
 * 2. Before a changed table is written, the cache that this one depends on has been written and the file flushed;
 *    and with `dependsOnFlush` the data file has been flushed. Dependencies are never circular.
 * 3. Everything but `peek` is called with the driver's lock held. A table may be thrown out by any awaited call of
 *    the cache: whoever changes one does so right after `peek` or `load`, with no await between.
 */

import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { assert } from "../../src/block/errors.ts";
import { MAX_LENGTH } from "../../src/block/units.ts";

/** Changed ranges are widened to this many bytes, so that pages of the host are written whole. */
const WRITE_UNIT = 4096;

export class Table {
  /** Host offset in the file. */
  readonly offset: number;
  readonly view: DataView<ArrayBuffer>;
  /** Asked for since the last look for a victim. */
  referenced = true;
  /** Asked for since the last `dropUnused`. */
  recent = true;
  /** The changed bytes, [dirtyStart, dirtyEnd); none if the end is 0. */
  dirtyStart = 0;
  dirtyEnd = 0;

  constructor(offset: number, view: DataView<ArrayBuffer>) {
    this.offset = offset;
    this.view = view;
  }

  get isDirty(): boolean {
    return this.dirtyEnd > 0;
  }

  /** To be called right after a change of [start, end) of the view. */
  markDirty(start: number, end: number): void {
    this.dirtyStart = this.isDirty ? Math.min(this.dirtyStart, start) : start;
    this.dirtyEnd = Math.max(this.dirtyEnd, end);
  }
}

export interface TableCacheOptions {
  readonly file: BlockChild;
  /** Where the data lies that entries refer to, if that is another file. */
  readonly dataFile?: BlockChild;
  readonly tableBytes: number;
  /** What lies from here on in the file is not the tables': the last one may be shorter. */
  readonly end?: number;
  /** Tables that may be held. */
  readonly capacity: number;
  /** The blkdebug event of reading one, if there is any. */
  readonly loadEvent?: string;
  /** That of writing one. */
  readonly writeEvent?: string;
  /** Throws if a table must not be written there. */
  readonly checkWrite?: (co: Coroutine<"read">, offset: number, bytes: number) => Promise<void> | undefined;
}

export class TableCache {
  readonly tableBytes: number;
  readonly capacity: number;
  readonly #options: TableCacheOptions;
  /** In the order in which victims are looked for. */
  readonly #tables = new Map<number, Table>();
  #scanned: Table | undefined;
  #dependsOn: TableCache | undefined;
  /** The data file must be flushed before any table is written. */
  dependsOnFlush = false;

  constructor(options: TableCacheOptions) {
    assert(options.capacity >= 2, "a cache holds two tables at least");
    this.#options = options;
    this.tableBytes = options.tableBytes;
    this.capacity = options.capacity;
  }

  get size(): number {
    return this.#tables.size;
  }

  get hasDirty(): boolean {
    for (const table of this.#tables.values()) if (table.isDirty) return true;
    return false;
  }

  /** The table at `offset` if it is in memory. */
  peek(offset: number): Table | undefined {
    const table = this.#tables.get(offset);
    if (table) table.referenced = table.recent = true;
    return table;
  }

  /** The table at `offset`, read from the file where it is not in memory. */
  async load(co: Coroutine<"read">, offset: number): Promise<Table> {
    const cached = this.peek(offset);
    if (cached) return cached;
    if (this.#tables.size >= this.capacity) await this.#makeRoom(co);
    return this.#read(co, offset);
  }

  /**
   * The same for whoever passes over all tables of an image that nobody writes to: the one that was loaded so before
   * gives its memory. To touch new memory costs more than to read the table.
   */
  async scan(co: Coroutine<"read">, offset: number): Promise<Table> {
    const cached = this.peek(offset);
    if (cached) return cached;
    const last = this.#scanned;
    this.#scanned = undefined;
    const isOurs = last !== undefined && this.#tables.get(last.offset) === last && !last.isDirty;
    if (isOurs) this.#tables.delete(last.offset);
    else if (this.#tables.size >= this.capacity) await this.#makeRoom(co);
    const table = await this.#read(co, offset, isOurs ? last.view : undefined);
    this.#scanned = table;
    return table;
  }

  async #read(co: Coroutine<"read">, offset: number, into?: DataView<ArrayBuffer>): Promise<Table> {
    const { file, loadEvent, end = Number.POSITIVE_INFINITY } = this.#options;
    const bytes = Math.min(this.tableBytes, end - offset);
    const buffer =
      into?.byteLength === bytes
        ? new Uint8Array(into.buffer, into.byteOffset, bytes)
        : new Uint8Array(bytes);
    if (offset > MAX_LENGTH) buffer.fill(0);
    if (file.debug && loadEvent !== undefined) await file.debug.event(co, loadEvent);
    // Where no file has anything a table is empty: such an image is damaged.
    if (offset <= MAX_LENGTH) await file.pread(co, offset, buffer);
    return this.#insert(offset, buffer);
  }

  /** Takes a table whose content is known; it replaces what is cached for `offset`. */
  async put(co: Coroutine<"read">, offset: number, content: Uint8Array<ArrayBuffer>): Promise<Table> {
    assert(content.length === this.tableBytes, "a table of another size");
    this.#tables.delete(offset);
    if (this.#tables.size >= this.capacity) await this.#makeRoom(co);
    return this.#insert(offset, content);
  }

  #insert(offset: number, content: Uint8Array<ArrayBuffer>): Table {
    const table = new Table(offset, new DataView(content.buffer, content.byteOffset, content.length));
    this.#tables.set(offset, table);
    return table;
  }

  /** Forgets tables in [offset, offset + bytes), changed or not: their clusters are no longer in use. */
  drop(offset: number, bytes: number): void {
    for (let at = offset; at < offset + bytes; at += this.tableBytes) this.#tables.delete(at);
  }

  /** Forgets everything: the file has been changed by other means. */
  clear(): void {
    assert(!this.hasDirty, "changed tables would be lost");
    this.#tables.clear();
  }

  /** Forgets what nobody asked for since the last call.  @qemu qcow2_cache_clean_unused */
  dropUnused(): void {
    for (const [offset, table] of this.#tables) {
      if (!table.recent && !table.isDirty) this.#tables.delete(offset);
      table.recent = false;
    }
  }

  /** Second chance: the first that was not asked for since it was last passed. */
  async #makeRoom(co: Coroutine<"read">): Promise<void> {
    for (const [offset, table] of this.#tables) {
      if (table.referenced) {
        table.referenced = false;
        this.#tables.delete(offset);
        this.#tables.set(offset, table);
        continue;
      }
      if (table.isDirty) {
        await this.#settleDependencies(co);
        await this.#writeTable(co, table);
      }
      this.#tables.delete(offset);
      return;
    }
    assert(false, "tables that are put back come round again");
  }

  /** From now on `other` reaches the file, and the disk, before anything changed here does.  @qemu qcow2_cache_set_dependency */
  async setDependency(co: Coroutine<"read">, other: TableCache): Promise<void> {
    if (other.#dependsOn) await other.#settleDependencies(co);
    if (this.#dependsOn && this.#dependsOn !== other) await this.#settleDependencies(co);
    this.#dependsOn = other;
  }

  async #settleDependencies(co: Coroutine<"read">): Promise<void> {
    const { file, dataFile = file } = this.#options;
    if (this.#dependsOn) {
      await this.#dependsOn.flush(co);
      this.#dependsOn = undefined;
      if (dataFile === file) this.dependsOnFlush = false;
    }
    if (this.dependsOnFlush) {
      await dataFile.flush(co);
      this.dependsOnFlush = false;
    }
  }

  /** Hands every changed table to the file. What fails stays changed.  @qemu qcow2_cache_write */
  async write(co: Coroutine<"read">): Promise<void> {
    const dirty = [...this.#tables.values()].filter((table) => table.isDirty);
    if (dirty.length === 0) return;
    await this.#settleDependencies(co);
    for (const table of dirty.sort((a, b) => a.offset - b.offset)) await this.#writeTable(co, table);
  }

  /** The same, and makes the file stable.  @qemu qcow2_cache_flush */
  async flush(co: Coroutine<"read">): Promise<void> {
    await this.write(co);
    await this.#options.file.flush(co);
  }

  async #writeTable(co: Coroutine<"read">, table: Table): Promise<void> {
    const { file, checkWrite, writeEvent } = this.#options;
    const start = table.dirtyStart - (table.dirtyStart % WRITE_UNIT);
    const { view } = table;
    const end = Math.min(Math.ceil(table.dirtyEnd / WRITE_UNIT) * WRITE_UNIT, view.byteLength);
    await checkWrite?.(co, table.offset + start, end - start);
    if (file.debug && writeEvent !== undefined) await file.debug.event(co, writeEvent);
    await file.pwrite(
      co,
      table.offset + start,
      new Uint8Array(view.buffer, view.byteOffset + start, end - start),
    );
    table.dirtyStart = table.dirtyEnd = 0;
  }
}
