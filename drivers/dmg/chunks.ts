/** The chunks of an image, from all of its tables, by their sectors. */

import { MiB, SECTOR_SIZE } from "../../src/block/units.ts";
import { Chunk, ChunkType, MISH_MAGIC, Mish } from "./layout.ts";

/** What a chunk may hold, and take in the file: it is read and made as a whole. */
const MAX_CHUNK_BYTES = 64 * MiB;
const MAX_CHUNK_SECTORS = MAX_CHUNK_BYTES / SECTOR_SIZE;

/** Shorter tables, without a single chunk, are passed over, as all else that is no table. */
const MIN_TABLE_BYTES = Mish.size + Chunk.size;

export interface ChunkRecord {
  readonly type: number;
  readonly sector: number;
  readonly sectors: number;
  /** In the file, in bytes. */
  readonly offset: number;
  readonly length: number;
}

/** What is said of it is not the reason that is given for the image not being opened: QEMU tells both. */
export class ChunkTooLarge extends Error {}

/** Columns: type, sector, sectors, offset, length. */
const COLUMNS = 5;

export class ChunkTable {
  #cells = new Float64Array(0);
  #count = 0;
  /** Types that are no chunks of content, nor comments. */
  readonly unknownTypes = new Set<number>();
  readonly #isKnown: (type: number) => boolean;
  #last = 0;

  /** `isKnown`: whether chunks of a type are content, whether they can be read or not. */
  constructor(isKnown: (type: number) => boolean) {
    this.#isKnown = isKnown;
  }

  get size(): number {
    return this.#count;
  }

  /** Takes in one table ("mish"); what is none is passed over.  @qemu dmg_read_mish_block */
  add(table: Uint8Array, dataForkOffset: number): void {
    if (table.length < MIN_TABLE_BYTES) return;
    const { magic, firstSector, dataOffset } = Mish.read(table);
    if (magic !== MISH_MAGIC) return;
    const first = this.#count;
    for (let at = Mish.size; at + Chunk.size <= table.length; at += Chunk.size) {
      const chunk = Chunk.read(table, at);
      const { type, sectors, length } = chunk;
      if (!this.#isKnown(type)) {
        if (type !== ChunkType.Comment && type !== ChunkType.End) this.unknownTypes.add(type);
        continue;
      }
      const isZero = type === ChunkType.Zero || type === ChunkType.Ignore;
      const index = this.#count - first;
      if (!isZero && sectors > MAX_CHUNK_SECTORS)
        throw new ChunkTooLarge(
          `sector count ${BigInt(sectors)} for chunk ${index} is larger than max (${MAX_CHUNK_SECTORS})`,
        );
      if (length > MAX_CHUNK_BYTES)
        throw new ChunkTooLarge(
          `length ${BigInt(length)} for chunk ${index} is larger than max (${MAX_CHUNK_BYTES})`,
        );
      const offset = dataForkOffset + dataOffset + chunk.offset;
      this.#push([type, firstSector + chunk.sector, sectors, offset, length]);
    }
  }

  #push(row: readonly number[]): void {
    const at = this.#count * COLUMNS;
    if (at === this.#cells.length) {
      const cells = new Float64Array(Math.max(at * 2, 64 * COLUMNS));
      cells.set(this.#cells);
      this.#cells = cells;
    }
    this.#cells.set(row, at);
    this.#count++;
  }

  /** Puts the chunks in the order of their sectors, which well-made images have them in. */
  sort(): void {
    const rows = Array.from({ length: this.#count }, (_, row) => row);
    const sectorOf = (row: number) => this.#cells[row * COLUMNS + 1] as number;
    if (rows.every((row) => row === 0 || sectorOf(row - 1) <= sectorOf(row))) return;
    rows.sort((a, b) => sectorOf(a) - sectorOf(b));
    const cells = new Float64Array(this.#count * COLUMNS);
    for (const [to, from] of rows.entries())
      cells.set(this.#cells.subarray(from * COLUMNS, (from + 1) * COLUMNS), to * COLUMNS);
    this.#cells = cells;
  }

  /** The chunk that holds a sector; undefined: none does.  @qemu search_chunk */
  find(sector: number): ChunkRecord | undefined {
    const last = this.#at(this.#last);
    if (last && sector >= last.sector && sector < last.sector + last.sectors) return last;
    let low = 0;
    let high = this.#count;
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      if ((this.#cells[middle * COLUMNS + 1] as number) <= sector) low = middle + 1;
      else high = middle;
    }
    // Empty chunks may stand between the one that begins at or before the sector and the sector.
    for (let row = low - 1; row >= 0 && row >= low - MAX_EMPTY; row--) {
      const chunk = this.#at(row) as ChunkRecord;
      if (sector < chunk.sector + chunk.sectors) {
        this.#last = row;
        return chunk;
      }
    }
    return undefined;
  }

  #at(row: number): ChunkRecord | undefined {
    if (row >= this.#count) return undefined;
    const [type, sector, sectors, offset, length] = this.#cells.subarray(row * COLUMNS, (row + 1) * COLUMNS);
    return { type, sector, sectors, offset, length } as ChunkRecord;
  }
}

const MAX_EMPTY = 16;
