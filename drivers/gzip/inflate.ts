/**
 * Inflate (RFC 1951) that says where blocks start, to the bit, and can go on from there: what node's zlib can't.
 * It works on buffers that its caller fills and empties, and keeps no history of its own.
 */

import { BlockError } from "../../src/block/errors.ts";

/** How far a reference goes back at most. */
export const WINDOW_BYTES = 32 * 1024;
/** One symbol makes no more. */
export const MAX_MATCH_BYTES = 258;
/** The longest that one step reads: the header of a block with its code lengths. */
export const MAX_STEP_BYTES = 1024;

/** Compressed bytes; behind `end` are `MAX_STEP_BYTES` that may be read by mistake. */
export interface Input {
  readonly bytes: Uint8Array;
  /** Of the next byte. */
  at: number;
  end: number;
}

/** What came out; the last `WINDOW_BYTES` before `at` must still be there, as far as the stream has had them. */
export interface Output {
  readonly bytes: Uint8Array;
  at: number;
  /** Where the stream began: it may be before the buffer. */
  streamStart: number;
  /** Nothing is begun from here on; `MAX_MATCH_BYTES` more must have room. */
  limit: number;
}

/** Codes by the next bits of the stream: symbol times 16 plus length in bits; 0: there is no such code. */
interface CodeTable {
  readonly entries: Uint16Array;
  readonly mask: number;
}

const MAX_CODE_BITS = 15;
const END_OF_BLOCK = 256;
/** Lengths and distances that symbols stand for, and how many bits more each has. */
const LENGTHS = ranges(
  3,
  [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0],
);
LENGTHS.base[28] = MAX_MATCH_BYTES;
const DISTANCES = ranges(
  1,
  Array.from({ length: 30 }, (_, symbol) => Math.max((symbol >> 1) - 1, 0)),
);
/** In which order the lengths of the codes for code lengths stand. */
const ORDER = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15] as const;

function ranges(start: number, extra: readonly number[]) {
  const base = new Uint16Array(extra.length);
  let next = start;
  for (const [symbol, bits] of extra.entries()) {
    base[symbol] = next;
    next += 2 ** bits;
  }
  return { base, extra: Uint8Array.from(extra) };
}

type Block =
  | { readonly kind: "stored"; left: number }
  | { readonly kind: "codes"; readonly literals: CodeTable; readonly distances: CodeTable };

export class Inflater {
  readonly #input: Input;
  readonly #output: Output;
  /** Bits that have been taken out of the input and not been used. */
  #hold = 0;
  #holdBits = 0;
  #block: Block | undefined;
  #isLast = false;

  /** `usedBits`: of the input's first byte, which the block before this one has. */
  constructor(input: Input, output: Output, usedBits = 0) {
    this.#input = input;
    this.#output = output;
    this.#take(usedBits);
  }

  /** Between two blocks. */
  get isAtBlock(): boolean {
    return this.#block === undefined;
  }

  /** The last block has ended. What follows the stream starts at the input's next byte, once `finish` was called. */
  get isAtEnd(): boolean {
    return this.#isLast && this.#block === undefined;
  }

  /** Bits of the input before its next byte that have not been used. */
  get unusedBits(): number {
    return this.#holdBits;
  }

  /** Gives back the bytes that were taken ahead. */
  finish(): void {
    this.#input.at -= this.#holdBits >>> 3;
    this.#hold = 0;
    this.#holdBits = 0;
  }

  /** Goes on to the end of a block, or the output's limit, or as far as the input surely reaches (`until`). */
  run(until: number): void {
    const block = (this.#block ??= this.#readBlockHeader());
    if (block.kind === "stored") this.#copyStored(block);
    else this.#decode(block.literals, block.distances, until);
  }

  #take(bits: number): number {
    const { bytes } = this.#input;
    while (this.#holdBits < bits) {
      this.#hold |= (bytes[this.#input.at++] as number) << this.#holdBits;
      this.#holdBits += 8;
    }
    const value = this.#hold & ((1 << bits) - 1);
    this.#hold >>>= bits;
    this.#holdBits -= bits;
    return value;
  }

  #readBlockHeader(): Block {
    this.#isLast = this.#take(1) === 1;
    switch (this.#take(2)) {
      case 0: {
        this.finish();
        const left = this.#take(16);
        if (this.#take(16) !== (left ^ 0xffff)) throw broken();
        return { kind: "stored", left };
      }
      case 1:
        return fixedCodes();
      case 2:
        return this.#readCodes();
      default:
        throw broken();
    }
  }

  #readCodes(): Block {
    const literalCount = this.#take(5) + 257;
    const distanceCount = this.#take(5) + 1;
    const orderCount = this.#take(4) + 4;
    if (literalCount > 286 || distanceCount > 30) throw broken();
    const orderLengths = new Uint8Array(ORDER.length);
    for (const symbol of ORDER.slice(0, orderCount)) orderLengths[symbol] = this.#take(3);
    const table = makeTable(orderLengths);
    const lengths = new Uint8Array(literalCount + distanceCount);
    for (let at = 0; at < lengths.length; ) {
      const symbol = this.#takeSymbol(table);
      if (symbol < 16) {
        lengths[at++] = symbol;
        continue;
      }
      if (symbol === 16 && at === 0) throw broken();
      const value = symbol === 16 ? (lengths[at - 1] as number) : 0;
      const count =
        symbol === 16 ? 3 + this.#take(2) : symbol === 17 ? 3 + this.#take(3) : 11 + this.#take(7);
      if (at + count > lengths.length) throw broken();
      lengths.fill(value, at, at + count);
      at += count;
    }
    // Without its end a block would go on for ever.
    if (lengths[END_OF_BLOCK] === 0) throw broken();
    return {
      kind: "codes",
      literals: makeTable(lengths.subarray(0, literalCount)),
      distances: makeTable(lengths.subarray(literalCount)),
    };
  }

  #takeSymbol({ entries, mask }: CodeTable): number {
    while (this.#holdBits < MAX_CODE_BITS) {
      this.#hold |= (this.#input.bytes[this.#input.at++] as number) << this.#holdBits;
      this.#holdBits += 8;
    }
    const entry = entries[this.#hold & mask] as number;
    if (entry === 0) throw broken();
    this.#hold >>>= entry & 15;
    this.#holdBits -= entry & 15;
    return entry >>> 4;
  }

  #copyStored(block: { left: number }): void {
    const [input, output] = [this.#input, this.#output];
    // What was taken ahead for the lengths ends with them.
    const bytes = Math.min(block.left, input.end - input.at, output.limit - output.at);
    if (bytes < 0) throw broken();
    output.bytes.set(input.bytes.subarray(input.at, input.at + bytes), output.at);
    input.at += bytes;
    output.at += bytes;
    block.left -= bytes;
    if (block.left === 0) this.#block = undefined;
  }

  /** All state is in local variables here: 3 times as fast. */
  #decode(literals: CodeTable, distances: CodeTable, until: number): void {
    const [input, output] = [this.#input, this.#output];
    const [source, target] = [input.bytes, output.bytes];
    const { entries: literalEntries, mask: literalMask } = literals;
    const { entries: distanceEntries, mask: distanceMask } = distances;
    let [hold, holdBits, from, to] = [this.#hold, this.#holdBits, input.at, output.at];
    const { limit, streamStart } = output;
    while (from < until && to < limit) {
      for (; holdBits <= 24; holdBits += 8) hold |= (source[from++] as number) << holdBits;
      const entry = literalEntries[hold & literalMask] as number;
      if (entry === 0) throw broken();
      hold >>>= entry & 15;
      holdBits -= entry & 15;
      const symbol = entry >>> 4;
      if (symbol < END_OF_BLOCK) {
        target[to++] = symbol;
        continue;
      }
      if (symbol === END_OF_BLOCK) {
        this.#block = undefined;
        break;
      }
      if (symbol > 285) throw broken();
      const lengthExtra = LENGTHS.extra[symbol - 257] as number;
      const length = (LENGTHS.base[symbol - 257] as number) + (hold & ((1 << lengthExtra) - 1));
      hold >>>= lengthExtra;
      holdBits -= lengthExtra;
      for (; holdBits <= 24; holdBits += 8) hold |= (source[from++] as number) << holdBits;
      const distanceEntry = distanceEntries[hold & distanceMask] as number;
      const distanceSymbol = distanceEntry >>> 4;
      if (distanceEntry === 0 || distanceSymbol > 29) throw broken();
      hold >>>= distanceEntry & 15;
      holdBits -= distanceEntry & 15;
      for (; holdBits <= 24; holdBits += 8) hold |= (source[from++] as number) << holdBits;
      const distanceExtra = DISTANCES.extra[distanceSymbol] as number;
      const distance = (DISTANCES.base[distanceSymbol] as number) + (hold & ((1 << distanceExtra) - 1));
      hold >>>= distanceExtra;
      holdBits -= distanceExtra;
      if (distance > to - streamStart) throw broken();
      for (const end = to + length; to < end; to++) target[to] = target[to - distance] as number;
    }
    [this.#hold, this.#holdBits, input.at, output.at] = [hold, holdBits, from, to];
  }
}

let fixed: Block | undefined;

function fixedCodes(): Block {
  if (fixed) return fixed;
  const lengths = new Uint8Array(288).fill(8).fill(9, 144, 256).fill(7, 256, 280);
  fixed = { kind: "codes", literals: makeTable(lengths), distances: makeTable(new Uint8Array(32).fill(5)) };
  return fixed;
}

/** Codes of one length go up with their symbols, and shorter ones are before longer ones. RFC 1951, section 3.2.2 */
function makeTable(lengths: Uint8Array): CodeTable {
  const longest = lengths.reduce((max, length) => Math.max(max, length), 0);
  const counts = new Uint16Array(MAX_CODE_BITS + 1);
  for (const length of lengths) if (length > 0) counts[length] = (counts[length] as number) + 1;
  const next = new Uint32Array(MAX_CODE_BITS + 2);
  for (let bits = 1; bits <= MAX_CODE_BITS; bits++)
    next[bits + 1] = ((next[bits] as number) + (counts[bits] as number)) * 2;
  // More codes than there are: some would be the start of others.
  if ((next[longest + 1] as number) > 2 ** (longest + 1)) throw broken();
  const entries = new Uint16Array(2 ** longest);
  for (const [symbol, length] of lengths.entries()) {
    if (length === 0) continue;
    const code = next[length] as number;
    next[length] = code + 1;
    for (let at = reverse(code, length); at < entries.length; at += 2 ** length)
      entries[at] = symbol * 16 + length;
  }
  return { entries, mask: entries.length - 1 };
}

/** Codes stand in the stream with their highest bit first. */
function reverse(code: number, bits: number): number {
  let reversed = 0;
  for (let bit = 0; bit < bits; bit++) reversed |= ((code >>> bit) & 1) << (bits - 1 - bit);
  return reversed;
}

function broken(): BlockError {
  return new BlockError("EIO", "The compressed data is damaged");
}
