/** A gzip file (RFC 1952) read forward, from its start or from a seek point: members behind each other, with their checksums. */

import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { KiB } from "../../src/block/units.ts";
import {
  Inflater,
  type Input,
  MAX_MATCH_BYTES,
  MAX_STEP_BYTES,
  type Output,
  WINDOW_BYTES,
} from "./inflate.ts";

/** Where one can begin: between two blocks of a member. */
export interface SeekPoint {
  /** In what comes out. */
  readonly offset: number;
  /** Of the byte in the file in which the block starts, and how many of its bits are before it. */
  readonly fileOffset: number;
  readonly usedBits: number;
  /** What comes out before it, as far as references go back. */
  readonly window: Uint8Array;
  /** What has come out of this member. */
  readonly memberBytes: number;
  readonly crc: number;
}

const INPUT_BYTES = 256 * KiB;
/** Comes out at a time. */
const PIECE_BYTES = 128 * KiB;

const MAGIC = [0x1f, 0x8b, 8] as const;
const Flag = { HeaderCrc: 2, Extra: 4, Name: 8, Comment: 16, Reserved: 0xe0 } as const;

export class GzipStream {
  readonly #file: BlockChild;
  readonly #fileBytes: number;
  readonly #input: Input = { bytes: new Uint8Array(INPUT_BYTES + MAX_STEP_BYTES), at: 0, end: 0 };
  readonly #output: Output = {
    bytes: new Uint8Array(WINDOW_BYTES + PIECE_BYTES + MAX_MATCH_BYTES),
    at: 0,
    streamStart: 0,
    limit: 0,
  };
  /** Undefined: between two members. */
  #inflater: Inflater | undefined;
  /** In the file, of the input's end. */
  #read = 0;
  #members = 0;
  #crc = 0;
  /** In the output, what the checksum has not seen. */
  #unchecked = 0;
  /** In what comes out, of the output's `at`. */
  #offset = 0;
  /** In the output, where the piece begins that is being made. */
  #pieceStart = 0;
  /** The block that a seek point is at starts behind so many bits. */
  #pendingBits: number | undefined;
  /** What `next` gave and nobody has taken. */
  #rest: Uint8Array = new Uint8Array(0);
  /** Bytes behind the last member that are none: undefined before the end. */
  trailingBytes: number | undefined;

  constructor(file: BlockChild, fileBytes: number, from?: SeekPoint) {
    this.#file = file;
    this.#fileBytes = fileBytes;
    if (!from) return;
    this.#read = from.fileOffset;
    this.#offset = from.offset;
    this.#members = 1;
    this.#crc = from.crc;
    this.#output.bytes.set(from.window);
    this.#output.at = this.#unchecked = from.window.length;
    this.#output.streamStart = from.window.length - from.memberBytes;
    this.#pendingBits = from.usedBits;
  }

  /** Of the next byte that `read` gives. */
  get offset(): number {
    return this.#offset - this.#rest.length;
  }

  /** Fills `target`, or as much of it as there is; undefined: a number of bytes that are passed over. */
  async read(co: Coroutine<"read">, bytes: number, target?: Uint8Array): Promise<number> {
    let done = 0;
    while (done < bytes) {
      if (this.#rest.length === 0) this.#rest = (await this.next(co)) ?? this.#rest;
      const piece = this.#rest.subarray(0, bytes - done);
      if (piece.length === 0) break;
      target?.set(piece, done);
      this.#rest = this.#rest.subarray(piece.length);
      done += piece.length;
    }
    return done;
  }

  /** Some more of what comes out, good until the next call; undefined: that is all. `onBlock` is called where blocks start. */
  async next(co: Coroutine<"read">, onBlock?: () => void): Promise<Uint8Array | undefined> {
    const output = this.#output;
    this.#slide();
    const start = output.at;
    output.limit = start + PIECE_BYTES;
    while (output.at < output.limit) {
      if (!this.#inflater && !(await this.#startMember(co))) break;
      const inflater = this.#inflater as unknown as Inflater;
      while (output.at < output.limit && !inflater.isAtEnd) {
        if (inflater.isAtBlock) onBlock?.();
        await this.#advance(co, inflater);
      }
      if (inflater.isAtEnd) await this.#endMember(co, inflater);
      co.checkAborted();
    }
    this.#check();
    this.#offset += output.at - start;
    return output.at === start ? undefined : output.bytes.subarray(start, output.at);
  }

  /** How far it has come in what comes out, within a call of `onBlock`. */
  get position(): number {
    return this.#offset + this.#output.at - this.#pieceStart;
  }

  /** To be called by `onBlock`. */
  seekPoint(): SeekPoint {
    this.#check();
    const { bytes, at, streamStart } = this.#output;
    const memberBytes = at - streamStart;
    const unused = this.#inflater?.unusedBits ?? 0;
    const usedBits = (8 - (unused % 8)) % 8;
    return {
      offset: this.position,
      fileOffset: this.#read - (this.#input.end - this.#input.at) - Math.ceil(unused / 8),
      usedBits,
      window: bytes.slice(at - Math.min(memberBytes, WINDOW_BYTES), at),
      memberBytes,
      crc: this.#crc,
    };
  }

  /** Makes room: what references may go back to comes to the start. */
  #slide(): void {
    const output = this.#output;
    const by = Math.max(output.at - WINDOW_BYTES, 0);
    output.bytes.copyWithin(0, by, output.at);
    output.at -= by;
    output.streamStart -= by;
    this.#unchecked = this.#pieceStart = output.at;
  }

  async #advance(co: Coroutine<"read">, inflater: Inflater): Promise<void> {
    const [input, output] = [this.#input, this.#output];
    const isLast = await this.#fill(co);
    const before = [input.at, output.at];
    // Before the end the next step must have all it may want; at the end there are zeroes behind the last byte.
    inflater.run(isLast ? input.end + 4 : input.end - MAX_STEP_BYTES);
    const isStuck = before[0] === input.at && before[1] === output.at && !inflater.isAtBlock;
    if (isStuck || input.at - Math.floor(inflater.unusedBits / 8) > input.end) throw endsEarly();
  }

  /** Reads on where less is left than one step may take; true: there is no more in the file. */
  async #fill(co: Coroutine<"read">): Promise<boolean> {
    const input = this.#input;
    if (input.end - input.at <= MAX_STEP_BYTES && this.#read < this.#fileBytes) {
      input.bytes.copyWithin(0, input.at, input.end);
      input.end -= input.at;
      input.at = 0;
      const bytes = Math.min(INPUT_BYTES - input.end, this.#fileBytes - this.#read);
      await this.#file.pread(co, this.#read, input.bytes.subarray(input.end, input.end + bytes));
      this.#read += bytes;
      input.end += bytes;
      input.bytes.fill(0, input.end, input.end + MAX_STEP_BYTES);
    }
    return this.#read === this.#fileBytes;
  }

  async #byte(co: Coroutine<"read">): Promise<number> {
    const input = this.#input;
    if (input.at >= input.end) await this.#fill(co);
    if (input.at >= input.end) throw endsEarly();
    return input.bytes[input.at++] as number;
  }

  /** False: the file ends, or what follows is no member. */
  async #startMember(co: Coroutine<"read">): Promise<boolean> {
    if (this.trailingBytes !== undefined) return false;
    const input = this.#input;
    await this.#fill(co);
    if (this.#pendingBits !== undefined) {
      this.#inflater = new Inflater(input, this.#output, this.#pendingBits);
      this.#pendingBits = undefined;
      return true;
    }
    if (
      MAGIC.some((byte, index) => input.at + index >= input.end || input.bytes[input.at + index] !== byte)
    ) {
      if (this.#members === 0) throw new BlockError("EINVAL", "The file is not in gzip format");
      this.trailingBytes = this.#fileBytes - this.#read + input.end - input.at;
      return false;
    }
    input.at += MAGIC.length;
    const flags = await this.#byte(co);
    if (flags & Flag.Reserved)
      throw new BlockError("ENOTSUP", "The gzip header has flags that are not known");
    // Time, level and system.
    for (let count = 0; count < 6; count++) await this.#byte(co);
    if (flags & Flag.Extra) {
      const bytes = (await this.#byte(co)) + (await this.#byte(co)) * 256;
      for (let count = 0; count < bytes; count++) await this.#byte(co);
    }
    for (const text of [Flag.Name, Flag.Comment])
      if (flags & text) while ((await this.#byte(co)) !== 0) co.checkAborted();
    if (flags & Flag.HeaderCrc) for (let count = 0; count < 2; count++) await this.#byte(co);
    this.#members++;
    this.#crc = 0;
    this.#output.streamStart = this.#output.at;
    this.#inflater = new Inflater(input, this.#output);
    return true;
  }

  /** What came out must be what went in: its CRC-32, and its length as far as 32 bits have it. */
  async #endMember(co: Coroutine<"read">, inflater: Inflater): Promise<void> {
    inflater.finish();
    this.#inflater = undefined;
    this.#check();
    const trailer = new Uint8Array(8);
    for (const index of trailer.keys()) trailer[index] = await this.#byte(co);
    const view = new DataView(trailer.buffer);
    const memberBytes = this.#output.at - this.#output.streamStart;
    if (view.getUint32(0, true) !== this.#crc || view.getUint32(4, true) !== memberBytes % 2 ** 32)
      throw new BlockError("EIO", "The checksum of the compressed data is wrong");
  }

  /** Takes what came out since the last call into the checksum. */
  #check(): void {
    const { bytes, at } = this.#output;
    this.#crc = process.getBuiltinModule("node:zlib").crc32(bytes.subarray(this.#unchecked, at), this.#crc);
    this.#unchecked = at;
  }
}

function endsEarly(): BlockError {
  return new BlockError("EIO", "The compressed data ends early");
}
