/**
 * What a gzip file holds, to be read anywhere: `gzip:FILENAME`. QEMU has none.
 *
 * The file is read through once when it is opened: nothing else says how long its content is, and all checksums are
 * looked at. On the way seek points are noted, with the 32 KiB of content that references go back to; a read goes on
 * from the one before it, or from where the last read ended. There are at most `MAX_POINTS` (32 MiB): when they are
 * used up, every other one goes, and they lie twice as far apart.
 */

import { breathe } from "../../src/block/breathe.ts";
import type { BlockChild } from "../../src/block/child.ts";
import { type Coroutine, graphRdlock } from "../../src/block/coroutine.ts";
import type { FilterDriver } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import { type IoVector, iovLength, iovParts, iovSlice, iovWrite } from "../../src/block/iov.ts";
import type { OpenEnvironment } from "../../src/block/open.ts";
import { KiB, MAX_LENGTH, MiB, SECTOR_SIZE } from "../../src/block/units.ts";
import { Mutex } from "../qcow2/mutex.ts";
import { GzipStream, type SeekPoint } from "./stream.ts";

const options = {
  /** The child by its filename, as `gzip:FILENAME` gives it. */
  "x-image": { type: "string" },
} as const;

const PREFIX = "gzip:";

const MAX_POINTS = 1024;
/** Content between two seek points, at least. */
const FIRST_SPACING_BYTES = MiB;
/** What is kept of the content, and how much of it. */
const CHUNK_BYTES = 128 * KiB;
const MAX_CHUNKS = 64;

export const gzip: FilterDriver<typeof options> = {
  formatName: "gzip",
  // Its child is not a filtered one: what is not defined here is not done.
  kind: "filter",
  prefix: "gzip",
  options,

  parseFilename: (filename) =>
    new Map([["x-image", filename.startsWith(PREFIX) ? filename.slice(PREFIX.length) : filename]]),

  filenameOf(node) {
    const file = node.file?.node.exactFilename ?? "";
    return file === "" ? "" : PREFIX + file;
  },

  async open(co, { node, options: { "x-image": filename }, openChild, requireReadOnly, environment }) {
    requireReadOnly();
    // As a format has its file: what it looks like is not probed.
    const file = await openChild(co, "file", { data: true, metadata: true, primary: true }, filename);
    if (!file) throw new BlockError("EINVAL", 'A block device must be specified for "file"');
    const index = await graphRdlock(co, (reader) => makeIndex(reader, file, environment));
    node.totalSectors = Math.ceil(index.bytes / SECTOR_SIZE);
    const content = new Content(file, index);
    return {
      pread: (co, offset, iov) => content.read(co, offset, iov),
      // No file has these bytes.
      blockStatus: async (_, _wantZero, _offset, bytes) => ({
        bytes,
        data: true,
        zero: false,
        allocated: true,
        compressed: true,
      }),
    };
  },
};

interface Index {
  readonly fileBytes: number;
  /** Of what comes out. */
  readonly bytes: number;
  /** In order; the start of the file is none. */
  readonly points: readonly SeekPoint[];
}

async function makeIndex(
  co: Coroutine<"read">,
  file: BlockChild,
  environment: OpenEnvironment,
): Promise<Index> {
  // A node's length is rounded up to sectors.
  const fileBytes = (await file.node.ops.getLength?.(co)) ?? (await file.getLength(co));
  const stream = new GzipStream(file, fileBytes);
  let points: SeekPoint[] = [];
  let spacing = FIRST_SPACING_BYTES;
  let nextOffset = spacing;
  const onBlock = () => {
    if (stream.position < nextOffset) return;
    if (points.length === MAX_POINTS) {
      points = points.filter((_, index) => index % 2 === 1);
      spacing *= 2;
    }
    points.push(stream.seekPoint());
    nextOffset = stream.position + spacing;
  };
  let bytes = 0;
  for (;;) {
    const piece = await stream.next(co, onBlock);
    if (!piece) break;
    bytes += piece.length;
    environment.guard?.decompress(piece.length);
    environment.guard?.checkTime();
    if (bytes > MAX_LENGTH) throw new BlockError("EFBIG");
    await breathe(environment.signal);
  }
  if (stream.trailingBytes)
    environment.warn(
      `'${file.node.filename}': ${stream.trailingBytes} bytes behind the compressed data are ignored`,
    );
  return { fileBytes, bytes, points };
}

/** What comes out, by chunks; those used last are kept. */
class Content {
  readonly #file: BlockChild;
  readonly #index: Index;
  readonly #chunks = new Map<number, Uint8Array>();
  /** One request at a time inflates. */
  readonly #lock = new Mutex();
  #stream: GzipStream | undefined;

  constructor(file: BlockChild, index: Index) {
    this.#file = file;
    this.#index = index;
  }

  async read(co: Coroutine<"read">, offset: number, iov: IoVector): Promise<void> {
    const bytes = iovLength(iov);
    for (let done = 0; done < bytes; ) {
      const number = Math.floor((offset + done) / CHUNK_BYTES);
      const inChunk = offset + done - number * CHUNK_BYTES;
      const piece = Math.min(CHUNK_BYTES - inChunk, bytes - done);
      const chunk = this.#chunks.get(number) ?? (await this.#lock.run(() => this.#load(co, number)));
      iovWrite(iovParts(iovSlice(iov, done, done + piece)), chunk.subarray(inChunk, inChunk + piece));
      done += piece;
      co.checkAborted();
    }
  }

  async #load(co: Coroutine<"read">, number: number): Promise<Uint8Array> {
    const known = this.#chunks.get(number);
    if (known) return known;
    const start = number * CHUNK_BYTES;
    const bytes = Math.min(CHUNK_BYTES, this.#index.bytes - start);
    // The last sector ends in zeroes.
    const chunk = new Uint8Array(CHUNK_BYTES);
    const stream = this.#streamTo(start);
    this.#stream = undefined;
    for (let left = start - stream.offset; left > 0; ) {
      const passed = await stream.read(co, Math.min(left, CHUNK_BYTES));
      // The file has changed since it was opened.
      if (passed === 0) throw new BlockError("EIO");
      left -= passed;
    }
    if ((await stream.read(co, bytes, chunk)) < bytes) throw new BlockError("EIO");
    // One that failed is not gone on with.
    this.#stream = stream;
    if (this.#chunks.size === MAX_CHUNKS) this.#chunks.delete(this.#chunks.keys().next().value as number);
    this.#chunks.set(number, chunk);
    return chunk;
  }

  /** A stream that is at `offset` or not far before it. */
  #streamTo(offset: number): GzipStream {
    const point = this.#index.points.findLast((one) => one.offset <= offset);
    const current = this.#stream;
    if (current && current.offset <= offset && current.offset >= (point?.offset ?? 0)) return current;
    return new GzipStream(this.#file, this.#index.fileBytes, point);
  }
}
