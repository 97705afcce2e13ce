/**
 * The tables of a sparse extent: a directory of grain tables, and a second copy of both where the format has one.
 * Entries of 32 bits count sectors; those of seSparse have 64 bits and count grains.
 *
 * 1. Before an entry that was changed is written, the file is flushed: what it refers to is there.
 * 2. A new table is in the file, empty, before the directory names it.
 */

import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { SECTOR_SIZE } from "../../src/block/units.ts";
import { PagedTable } from "../paged-table.ts";
import { Mutex } from "../qcow2/mutex.ts";
import { TableCache } from "../qcow2/table-cache.ts";

/** What an entry says of its grain. */
export type Grain =
  | { readonly kind: "none" | "zero" | "invalid" }
  | { readonly kind: "data"; readonly hostOffset: number };

const NONE: Grain = { kind: "none" };
const ZERO: Grain = { kind: "zero" };
const INVALID: Grain = { kind: "invalid" };

/** The entry that stands for zeroes.  @qemu VMDK_GTE_ZEROED */
export const ZEROED = 1;

/** 1 MiB of the usual tables. */
const MAX_CACHED_BYTES = 1024 * 1024;

export interface GrainTablesOptions {
  readonly file: BlockChild;
  /** In bytes, as all offsets here. */
  readonly directoryOffset: number;
  readonly directoryEntries: number;
  readonly backupDirectoryOffset?: number | undefined;
  readonly tableEntries: number;
  readonly hasZeroGrains: boolean;
  /** In an seSparse extent: where tables and grains begin, and the size of the latter. */
  readonly seSparse?: {
    readonly tablesOffset: number;
    readonly grainsOffset: number;
    readonly grainBytes: number;
  };
}

export class GrainTables {
  readonly #options: GrainTablesOptions;
  readonly #directory: PagedTable;
  readonly #backup: PagedTable | undefined;
  readonly #tables: TableCache;
  /** The cache wants its calls one after the other. */
  readonly #lock = new Mutex();

  constructor(options: GrainTablesOptions) {
    this.#options = options;
    const { file, directoryOffset, directoryEntries, backupDirectoryOffset, tableEntries, seSparse } =
      options;
    const directoryAt = (offset: number) =>
      new PagedTable({
        file,
        offset,
        // Two halves an entry: 64 bits are more than a number holds.
        entries: directoryEntries * (seSparse ? 2 : 1),
        entryBytes: 4,
        littleEndian: true,
      });
    this.#directory = directoryAt(directoryOffset);
    this.#backup = backupDirectoryOffset === undefined ? undefined : directoryAt(backupDirectoryOffset);
    const tableBytes = tableEntries * (seSparse ? 8 : 4);
    this.#tables = new TableCache({
      file,
      tableBytes,
      capacity: Math.max(Math.floor(MAX_CACHED_BYTES / tableBytes), 16),
      loadEvent: "l2_load",
      writeEvent: "l2_update",
    });
  }

  /** Reads what every request needs; an error tells which of both directories can't be read. */
  async open(
    co: Coroutine<"read">,
    fail: (which: "l1" | "l1 backup", cause: unknown) => Error,
  ): Promise<void> {
    if (this.#options.directoryEntries === 0) return;
    await this.#directory.get(co, 0).catch((cause: unknown) => {
      throw fail("l1", cause);
    });
    await this.#backup?.get(co, 0).catch((cause: unknown) => {
      throw fail("l1 backup", cause);
    });
  }

  get tableEntries(): number {
    return this.#options.tableEntries;
  }

  /** The entry of a grain by its index in the extent; undefined: its table is not in memory. */
  peek(index: number): Grain | undefined {
    const { tableEntries, directoryEntries } = this.#options;
    const within = index % tableEntries;
    const tableIndex = (index - within) / tableEntries;
    if (tableIndex >= directoryEntries) return INVALID;
    const offset = this.#tableOffset(this.#directory, tableIndex);
    if (offset === undefined) return undefined;
    if (offset === "none") return NONE;
    if (offset === "invalid") return INVALID;
    const table = this.#tables.peek(offset);
    return table && this.#parse(table.view, within);
  }

  /** Grains from `index` on that have nothing because their table is not there; 1 where it is. */
  emptySpan(index: number): number {
    const { tableEntries } = this.#options;
    const within = index % tableEntries;
    const isMissing = this.#tableOffset(this.#directory, (index - within) / tableEntries) === "none";
    return isMissing ? tableEntries - within : 1;
  }

  /** Brings into memory what `peek` has missed. */
  async load(co: Coroutine<"read">, index: number): Promise<void> {
    const { tableEntries, seSparse } = this.#options;
    const tableIndex = Math.floor(index / tableEntries);
    await this.#directory.get(co, tableIndex * (seSparse ? 2 : 1));
    const offset = this.#tableOffset(this.#directory, tableIndex);
    if (typeof offset !== "number") return;
    await this.#lock.run(() => this.#tables.load(co, offset));
  }

  #tableOffset(directory: PagedTable, tableIndex: number): number | "none" | "invalid" | undefined {
    const { tableEntries, seSparse } = this.#options;
    if (!seSparse) {
      const sector = directory.peek(tableIndex);
      return sector === 0 ? "none" : sector && sector * SECTOR_SIZE;
    }
    const low = directory.peek(tableIndex * 2);
    const high = directory.peek(tableIndex * 2 + 1);
    if (low === undefined || high === undefined) return undefined;
    if (low === 0 && high === 0) return "none";
    return high === 0x10000000 ? seSparse.tablesOffset + low * tableEntries * 8 : "invalid";
  }

  #parse(view: DataView, within: number): Grain {
    const { seSparse, hasZeroGrains } = this.#options;
    if (!seSparse) {
      const sector = view.getUint32(within * 4, true);
      if (sector === 0) return NONE;
      if (sector === ZEROED && hasZeroGrains) return ZERO;
      return { kind: "data", hostOffset: sector * SECTOR_SIZE };
    }
    const low = view.getUint32(within * 8, true);
    const high = view.getUint32(within * 8 + 4, true);
    const type = Math.floor(high / 2 ** 28);
    if (type === 0) return low === 0 && high === 0 ? NONE : INVALID;
    // Unmapped by the guest, or written with zeroes.
    if (type === 1 || type === 2) return ZERO;
    if (type !== 3) return INVALID;
    // The low 12 bits of the number stand above the other 48.
    const above = Math.floor(high / 2 ** 16) % 2 ** 12;
    const grain = ((high % 2 ** 16) * 2 ** 32 + low) * 2 ** 12 + above;
    const hostOffset = seSparse.grainsOffset + grain * seSparse.grainBytes;
    return Number.isSafeInteger(hostOffset) ? { kind: "data", hostOffset } : INVALID;
  }

  /** Whether the directory has no table yet for a grain, so that `addTable` must be called before `set`. */
  async lacksTable(co: Coroutine<"read">, index: number): Promise<boolean> {
    const tableIndex = Math.floor(index / this.#options.tableEntries);
    return (await this.#directory.get(co, tableIndex)) === 0;
  }

  /** Bytes that a new table takes, with its second copy. */
  get newTableBytes(): number {
    return this.#tables.tableBytes * (this.#backup ? 2 : 1);
  }

  /** Puts an empty table at `hostOffset`, and its copy behind it. */
  async addTable(co: Coroutine<"read">, index: number, hostOffset: number): Promise<void> {
    const tableIndex = Math.floor(index / this.#options.tableEntries);
    const { file } = this.#options;
    const { tableBytes } = this.#tables;
    await file.pwrite(co, hostOffset, new Uint8Array(this.newTableBytes));
    await file.flush(co);
    if (this.#backup) {
      await this.#backup.set(co, tableIndex, (hostOffset + tableBytes) / SECTOR_SIZE);
      await this.#backup.write(co);
    }
    await this.#directory.set(co, tableIndex, hostOffset / SECTOR_SIZE);
    await this.#directory.write(co);
  }

  /** Sets entries from that of grain `index` on, all in one table; `entries` are sectors. `write` brings them to the file. */
  async set(co: Coroutine<"read">, index: number, entries: readonly number[]): Promise<void> {
    const within = index % this.#options.tableEntries;
    const tableIndex = Math.floor(index / this.#options.tableEntries);
    for (const directory of [this.#directory, this.#backup]) {
      if (!directory) continue;
      await directory.get(co, tableIndex);
      const offset = this.#tableOffset(directory, tableIndex);
      if (typeof offset !== "number") continue;
      await this.#lock.run(async () => {
        const table = await this.#tables.load(co, offset);
        // Zeroes have nothing that must be there first.
        if (entries.some((entry) => entry !== ZEROED)) this.#tables.dependsOnFlush = true;
        for (const [i, entry] of entries.entries()) table.view.setUint32((within + i) * 4, entry, true);
        table.markDirty(within * 4, (within + entries.length) * 4);
      });
    }
  }

  /** Hands changed tables to the file. */
  write(co: Coroutine<"read">): Promise<void> {
    return this.#lock.run(() => this.#tables.write(co));
  }
}
