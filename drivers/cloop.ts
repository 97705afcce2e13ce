/** Compressed loop images, version 2, read-only. Source: the cloop kernel module's compressed_loop.h.  @qemu block/cloop.c */

import type { BlockChild } from "../src/block/child.ts";
import type { Coroutine } from "../src/block/coroutine.ts";
import type { FormatDriver } from "../src/block/driver.ts";
import { BlockError } from "../src/block/errors.ts";
import { type IoVector, iovLength, iovParts, iovSlice, iovWrite } from "../src/block/iov.ts";
import { layout, u32, u64 } from "../src/block/layout.ts";
import type { OpenEnvironment } from "../src/block/open.ts";
import { MAX_LENGTH, MiB, SECTOR_SIZE } from "../src/block/units.ts";
import { inflateZlib } from "./inflate.ts";
import { readAtOpen } from "./opening.ts";
import { Mutex } from "./qcow2/mutex.ts";
import { isCloop } from "./signatures.ts";

/** Big-endian, behind a shell script that mounts the image. */
const HEADER_OFFSET = 128;
const Header = layout("big", {
  /** Bytes of guest content of a block. */
  blockSize: u32,
  blocks: u32,
});
/** Where each block starts in the file, and last where they end. */
const OFFSETS_OFFSET = HEADER_OFFSET + Header.size;
const Offset = layout("big", { value: u64 });

const MAX_BLOCK_BYTES = 64 * MiB;
const MAX_COMPRESSED_BYTES = 2 * MAX_BLOCK_BYTES;
const MAX_OFFSETS_BYTES = 512 * MiB;
/** What fits into a 32-bit count of bytes. */
const MAX_BLOCKS = 2 ** 29 - 1;
/** The table is looked over in pieces. */
const PIECE_BYTES = 64 * 1024;

interface State {
  readonly file: BlockChild;
  readonly environment: OpenEnvironment;
  readonly blockSize: number;
  readonly blocks: number;
  /** The block that was last read. */
  current: { readonly index: number; readonly content: Uint8Array } | undefined;
  /** One block at a time is read and inflated: they may be large. */
  readonly lock: Mutex;
}

export const cloop: FormatDriver = {
  formatName: "cloop",
  kind: "format",
  options: {},
  probe: isCloop,

  async open(co, { openFileChild, requireReadOnly, node, environment }) {
    requireReadOnly();
    const file = await openFileChild(co);
    const state = await readAtOpen(co, file, (reader) => readHeader(reader, file, environment));
    node.totalSectors = (state.blocks * state.blockSize) / SECTOR_SIZE;
    return {
      pread: (co, offset, iov) => state.lock.run(() => pread(co, state, offset, iov)),
      limits: () => ({ requestAlignment: SECTOR_SIZE }),
    };
  },
};

async function readHeader(
  co: Coroutine<"read">,
  file: BlockChild,
  environment: OpenEnvironment,
): Promise<State> {
  const { blockSize, blocks } = Header.read(await file.preadBytes(co, HEADER_OFFSET, Header.size));
  if (blockSize === 0) throw new BlockError("EINVAL", "block_size cannot be zero");
  if (blockSize % SECTOR_SIZE !== 0)
    throw new BlockError("EINVAL", `block_size ${blockSize} must be a multiple of ${SECTOR_SIZE}`);
  if (blockSize > MAX_BLOCK_BYTES)
    throw new BlockError("EINVAL", `block_size ${blockSize} must be ${MAX_BLOCK_BYTES / MiB} MB or less`);
  if (blocks > MAX_BLOCKS) throw new BlockError("EINVAL", `n_blocks ${blocks} must be ${MAX_BLOCKS} or less`);
  if ((blocks + 1) * Offset.size > MAX_OFFSETS_BYTES)
    throw new BlockError("EINVAL", "image requires too many offsets, try increasing block size");
  await checkOffsets(co, file, blocks);
  return { file, environment, blockSize, blocks, current: undefined, lock: new Mutex() };
}

/** Each offset is at or behind the one before, and no block too long. */
async function checkOffsets(co: Coroutine<"read">, file: BlockChild, blocks: number): Promise<void> {
  const tableBytes = (blocks + 1) * Offset.size;
  const fileBytes = await file.getLength(co);
  let last = 0;
  for (let at = 0; at < tableBytes; at += PIECE_BYTES) {
    const piece = await file.preadBytes(co, OFFSETS_OFFSET + at, Math.min(PIECE_BYTES, tableBytes - at));
    for (let inPiece = 0; inPiece < piece.length; inPiece += Offset.size) {
      const index = (at + inPiece) / Offset.size;
      const { value } = Offset.read(piece, inPiece);
      if (index > 0) checkOffset(index, value, last);
      last = value;
    }
    co.checkAborted();
    // Behind the end of the file all is zero: looked at once, it is known.
    if (OFFSETS_OFFSET + at >= fileBytes) return;
  }
}

function checkOffset(index: number, offset: number, last: number): void {
  if (offset < last)
    throw new BlockError(
      "EINVAL",
      `offsets not monotonically increasing at index ${index}, image file is corrupt`,
    );
  if (offset - last > MAX_COMPRESSED_BYTES)
    throw new BlockError("EINVAL", `invalid compressed block size at index ${index}, image file is corrupt`);
}

async function pread(co: Coroutine<"read">, state: State, offset: number, iov: IoVector): Promise<void> {
  const { blockSize } = state;
  const bytes = iovLength(iov);
  for (let done = 0; done < bytes; ) {
    const inBlock = (offset + done) % blockSize;
    const piece = Math.min(blockSize - inBlock, bytes - done);
    const content = await loadBlock(co, state, Math.floor((offset + done) / blockSize));
    iovWrite(iovParts(iovSlice(iov, done, done + piece)), content.subarray(inBlock, inBlock + piece));
    done += piece;
    co.checkAborted();
  }
}

async function loadBlock(co: Coroutine<"read">, state: State, index: number): Promise<Uint8Array> {
  const { file, environment, blockSize } = state;
  if (state.current?.index === index) return state.current.content;
  const pair = await file.preadBytes(co, OFFSETS_OFFSET + index * Offset.size, 2 * Offset.size);
  const start = Offset.read(pair).value;
  const end = Offset.read(pair, Offset.size).value;
  // The file may have changed since it was opened.
  if (end > MAX_LENGTH || end < start || end - start > MAX_COMPRESSED_BYTES) throw new BlockError("EIO");
  environment.guard?.decompress(blockSize);
  const content = inflateZlib(await file.preadBytes(co, start, end - start), blockSize);
  state.current = { index, content };
  return content;
}
