/**
 * What is to be copied: the sources laid end to end, and the pieces that their block status makes of them.
 * @qemu convert_iteration_sectors
 */

import type { BlockBackend } from "../block/backend.ts";
import { blockStatusAbove } from "../block/block-status.ts";
import { breathe } from "../block/breathe.ts";
import { hostRanges, type SourceRange } from "../block/copy-range.ts";
import { BlockError, strerror, toBlockError } from "../block/errors.ts";
import { alignDown, alignUp, MiB, SECTOR_SIZE } from "../block/units.ts";
import { skipFilters } from "./chain.ts";

/** `inherited`: the source leaves it to its backing file, and so may the target. */
export type PieceKind = "data" | "zero" | "inherited";

interface Extent {
  readonly kind: PieceKind;
  readonly start: number;
  end: number;
  /** Where the extents end that it was joined from. */
  ends: number[];
}

/** A part of the guest's bytes that one worker copies. */
export interface Piece {
  readonly kind: PieceKind;
  readonly offset: number;
  readonly bytes: number;
  /** The offset that an error names: qemu-img copies up to 2 MiB at once, from the start of an extent. */
  readonly reportOffset: number;
  /** Where extents of the source end in it. */
  readonly extentEnds: readonly number[];
  /** Counts the pieces that are handed out. */
  readonly index: number;
}

/** The largest buffer of qemu-img's convert.  @qemu IO_BUF_SIZE */
export const QEMU_PIECE_BYTES = 2 * MiB;

/** Zero writes are cut so that progress shows and an abort is heard. */
const MAX_ZERO_PIECE = 256 * MiB;

/** One source, and which of the joined bytes it has. */
interface SourcePart {
  readonly backend: BlockBackend;
  readonly start: number;
  readonly end: number;
}

/** Several images that are read as one. */
export class SourceList {
  readonly length: number;
  readonly #parts: readonly SourcePart[];

  private constructor(parts: readonly SourcePart[]) {
    this.#parts = parts;
    this.length = parts.at(-1)?.end ?? 0;
  }

  static async of(backends: readonly BlockBackend[]): Promise<SourceList> {
    const parts = [];
    let start = 0;
    for (const backend of backends) {
      const end = start + (await backend.getLength());
      parts.push({ backend, start, end });
      start = end;
    }
    return new SourceList(parts);
  }

  /** Whether a source ends at `offset`. */
  isEnd(offset: number): boolean {
    return this.#parts.some(({ end }) => end === offset);
  }

  /** Fills `buffer` with the guest's bytes from `offset`, from as many sources as it takes. */
  async readInto(offset: number, buffer: Uint8Array, signal: AbortSignal | undefined): Promise<void> {
    const stop = offset + buffer.length;
    for (const { backend, start, end } of this.#parts) {
      if (end <= offset || start >= stop) continue;
      const from = Math.max(start, offset);
      const part = buffer.subarray(from - offset, Math.min(end, stop) - offset);
      await backend.readInto(from - start, part, { signal });
    }
  }

  /** Where bytes that one source has lie in files of the host; ENOTSUP where not all of them do. */
  hostRanges(
    offset: number,
    bytes: number,
    signal: AbortSignal | undefined,
  ): Promise<readonly SourceRange[]> {
    const { backend, start } = this.#partAt(offset);
    return backend.run((co) => hostRanges(co, backend.node, offset - start, bytes), signal);
  }

  #partAt(offset: number): SourcePart {
    const part = this.#parts.find(({ end }) => offset < end);
    if (!part) throw new RangeError(`offset ${offset} is past the end of the sources`);
    return part;
  }

  /** What holds from `offset` on, for at most `bytes`. `topOnly`: the first layer alone decides what is inherited. */
  async status(
    offset: number,
    bytes: number,
    topOnly: boolean,
    signal: AbortSignal | undefined,
  ): Promise<{ readonly bytes: number; readonly zero: boolean; readonly data: boolean }> {
    const { backend, start, end } = this.#partAt(offset);
    const asked = Math.min(bytes, end - offset);
    return backend.run((co) => {
      const base = topOnly ? skipFilters(backend.node).cow?.node : undefined;
      return blockStatusAbove(co, backend.node, base, true, offset - start, asked);
    }, signal);
  }
}

export interface PlanOptions {
  /** Pieces of data start and end on multiples of this, but for the end of all: the target's cluster, to compress. */
  readonly alignmentBytes: number;
  /** At most so much data in a piece; a multiple of the alignment. */
  readonly pieceBytes: number;
  /** Data is cut where qemu-img cuts it. */
  readonly cutsLikeQemu: boolean;
  /** Zeroes are copied like data: the target is to be allocated in full. */
  readonly zeroIsData: boolean;
  /** Nothing need be done for zeroes. */
  readonly skipZeroes: boolean;
  /** What a source leaves to its backing file is inherited. */
  readonly keepBacking: boolean;
  /** With `keepBacking`: from this offset on the target reads as zeroes as it is. */
  readonly backingEnd: number;
  /** Goes on after a failed block status: such a range is copied as data. */
  readonly salvage: boolean;
  readonly warn: (message: string) => void;
  readonly signal: AbortSignal | undefined;
}

/** Hands out the pieces in guest order. The calls of `next` must not overlap. */
export class CopyPlan {
  readonly #source: SourceList;
  readonly #options: PlanOptions;
  /** How far the sources have been asked. */
  #position = 0;
  /** Asked, not handed out. */
  #ahead: Extent | undefined;
  /** Rest of the extent that pieces are cut from. */
  #current: Extent | undefined;
  /** Where the pieces are that an error is to name. */
  #reportStart = 0;
  #index = 0;

  constructor(source: SourceList, options: PlanOptions) {
    this.#source = source;
    this.#options = options;
  }

  /** Bytes in all pieces that will be handed out: the plan is made once, and thrown away. */
  async total(): Promise<number> {
    const dry = new CopyPlan(this.#source, this.#options);
    let total = 0;
    for (let piece = await dry.next(); piece; piece = await dry.next()) total += piece.bytes;
    return total;
  }

  /** The next piece that must be written; undefined: no more. */
  async next(): Promise<Piece | undefined> {
    for (;;) {
      const extent = (this.#current ??= await this.#nextJoined());
      if (!extent) return undefined;
      const { kind, start, end, ends } = extent;
      if (this.#isSkipped(kind)) {
        this.#current = undefined;
        continue;
      }
      const stop = Math.min(end, kind === "data" ? this.#dataLimit(extent) : start + MAX_ZERO_PIECE);
      const extentEnds = ends.filter((at) => at <= stop);
      this.#current =
        stop < end ? { kind, start: stop, end, ends: ends.slice(extentEnds.length) } : undefined;
      const reportOffset = start - ((start - this.#reportStart) % QEMU_PIECE_BYTES);
      this.#reportStart = extentEnds.at(-1) ?? this.#reportStart;
      return { kind, offset: start, bytes: stop - start, reportOffset, extentEnds, index: this.#index++ };
    }
  }

  #dataLimit({ start, ends }: Extent): number {
    const { pieceBytes, cutsLikeQemu } = this.#options;
    if (!cutsLikeQemu) return alignDown(start, pieceBytes) + pieceBytes;
    const step = start - ((start - this.#reportStart) % QEMU_PIECE_BYTES) + QEMU_PIECE_BYTES;
    return Math.min(step, ends[0] ?? step);
  }

  #isSkipped(kind: PieceKind): boolean {
    return kind === "inherited" || (kind === "zero" && this.#options.skipZeroes);
  }

  /** The next extent, joined with those of its kind behind it: far enough that a piece of data may be full. */
  async #nextJoined(): Promise<Extent | undefined> {
    const extent = this.#ahead ?? (await this.#nextExtent());
    this.#ahead = undefined;
    if (!extent) return undefined;
    const enough = this.#options.pieceBytes * 2;
    while (extent.kind !== "data" || extent.end - extent.start < enough) {
      // qemu-img starts its pieces anew with each source.
      if (extent.kind === "data" && this.#source.isEnd(extent.end)) break;
      const behind = await this.#nextExtent();
      if (!behind) break;
      if (behind.kind !== extent.kind) {
        this.#ahead = behind;
        break;
      }
      extent.end = behind.end;
      if (!this.#isSkipped(extent.kind)) extent.ends.push(behind.end);
      if (this.#isDone(extent)) break;
    }
    this.#reportStart = extent.start;
    return extent;
  }

  /** A zero write has a largest size too; what is skipped goes on to its end. */
  #isDone({ kind, start, end }: Extent): boolean {
    return kind === "zero" && !this.#options.skipZeroes && end - start >= MAX_ZERO_PIECE;
  }

  /** An extent on the target's alignment: a unit that is not of one kind is data. */
  async #nextExtent(): Promise<Extent | undefined> {
    const { alignmentBytes } = this.#options;
    const { length } = this.#source;
    const start = this.#position;
    if (start >= length) return undefined;
    let { kind, end } = await this.#ask(start);
    if (alignmentBytes > 1 && end < length && end % alignmentBytes !== 0) {
      if (kind !== "data" && end - start > alignmentBytes) end = alignDown(end, alignmentBytes);
      else {
        kind = await this.#kindOfUnit(kind, end, Math.min(alignUp(end, alignmentBytes), length));
        end = Math.min(alignUp(end, alignmentBytes), length);
      }
    }
    this.#position = end;
    return { kind, start, end, ends: [end] };
  }

  /** What a unit is that begins as `kind` up to `at`. */
  async #kindOfUnit(kind: PieceKind, at: number, end: number): Promise<PieceKind> {
    for (let from = at; kind !== "data" && from < end; ) {
      const next = await this.#ask(from);
      if (next.kind !== kind) return "data";
      from = next.end;
    }
    return kind;
  }

  async #ask(offset: number): Promise<{ readonly kind: PieceKind; readonly end: number }> {
    const { keepBacking, backingEnd, zeroIsData, signal } = this.#options;
    await breathe(signal);
    let bytes = this.#source.length - offset;
    if (keepBacking && offset < backingEnd) bytes = Math.min(bytes, backingEnd - offset);
    const status = await this.#statusOf(offset, bytes);
    const end = offset + status.bytes;
    if (status.zero) {
      if (keepBacking && offset >= backingEnd) return { kind: "inherited", end };
      return { kind: zeroIsData ? "data" : "zero", end };
    }
    return { kind: status.data || !keepBacking ? "data" : "inherited", end };
  }

  /** Asks for less and less where it fails and all that can be saved is to be saved. */
  async #statusOf(offset: number, bytes: number): ReturnType<SourceList["status"]> {
    const { keepBacking, salvage, signal, warn } = this.#options;
    for (let asked = bytes; ; ) {
      try {
        return await this.#source.status(offset, asked, keepBacking, signal);
      } catch (error) {
        const { errno } = toBlockError(error);
        const message = `error while reading block status at offset ${offset}: ${strerror(errno)}`;
        if (!salvage) throw new BlockError(errno, message, { cause: error, offset });
        if (asked <= SECTOR_SIZE) {
          warn(message);
          return { bytes: asked, data: true, zero: false };
        }
        asked = alignUp(asked / 2, SECTOR_SIZE);
      }
    }
  }
}
