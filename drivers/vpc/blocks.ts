/** Reading and writing an image that has blocks: dynamic ones, and differencing ones with their parent.  @qemu vpc_co_preadv, vpc_co_pwritev */

import type { BlockStatus } from "../../src/block/block-status.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { type IoVector, iovFill, iovLength, iovSlice } from "../../src/block/iov.ts";
import { SECTOR_SIZE } from "../../src/block/units.ts";
import type { Table } from "../qcow2/table-cache.ts";
import { FOOTER_BYTES, UNUSED } from "./layout.ts";
import { type Blocks, type Differencing, stateOf, type VpcState } from "./state.ts";

export async function pread(
  co: Coroutine<"read">,
  state: VpcState,
  blocks: Blocks,
  guestOffset: number,
  iov: IoVector,
): Promise<void> {
  const bytes = iovLength(iov);
  for (let done = 0; done < bytes; ) {
    co.checkAborted();
    const run = await lookUp(co, blocks, guestOffset + done, bytes - done);
    const piece = iovSlice(iov, done, done + run.bytes);
    if (run.hostOffset !== undefined) await state.file.pread(co, run.hostOffset, piece);
    else await readBelow(co, state, blocks, guestOffset + done, piece);
    done += run.bytes;
  }
}

export async function pwrite(
  co: Coroutine<"read">,
  state: VpcState,
  blocks: Blocks,
  guestOffset: number,
  iov: IoVector,
): Promise<void> {
  const { blockSize, bitmapBytes, table } = blocks;
  const bytes = iovLength(iov);
  await ensurePlaces(co, state, blocks, guestOffset, bytes);
  for (let done = 0; done < bytes; ) {
    co.checkAborted();
    const at = guestOffset + done;
    const within = at % blockSize;
    const piece = iovSlice(iov, done, Math.min(bytes, done + blockSize - within));
    const bitmap = (await entryOf(co, blocks, Math.floor(at / blockSize))) * SECTOR_SIZE;
    await state.file.pwrite(co, bitmap + bitmapBytes + within, piece);
    if (blocks.differencing || blocks.lastBitmap !== bitmap)
      await blocks.lock.run(() => noteSectors(co, state, blocks, bitmap, within, iovLength(piece)));
    done += iovLength(piece);
  }
  if (table.hasDirty && !blocks.differencing) await table.write(co);
}

/** Who comes first has the first places: all blocks of a request get theirs at once, before those of the next. */
async function ensurePlaces(
  co: Coroutine<"read">,
  state: VpcState,
  blocks: Blocks,
  guestOffset: number,
  bytes: number,
): Promise<void> {
  const { blockSize, table } = blocks;
  const first = Math.floor(guestOffset / blockSize);
  const last = Math.floor((guestOffset + bytes - 1) / blockSize);
  const isMissing = (index: number) => (table.peek(index) ?? UNUSED) === UNUSED;
  for (let index = first; index <= last; index++) {
    if (!isMissing(index)) continue;
    return blocks.lock.run(async () => {
      for (let next = index; next <= last; next++) {
        co.checkAborted();
        await allocate(co, state, blocks, next);
      }
    });
  }
}

/** Runs end with a block; what has no place in the file is joined over blocks.  @qemu vpc_co_block_status */
export async function blockStatus(
  co: Coroutine<"read">,
  state: VpcState,
  blocks: Blocks,
  guestOffset: number,
  bytes: number,
): Promise<BlockStatus> {
  const first = await lookUp(co, blocks, guestOffset, bytes);
  if (first.hostOffset !== undefined)
    return {
      bytes: first.bytes,
      data: true,
      zero: false,
      allocated: true,
      offset: first.hostOffset,
      file: state.file.node,
    };
  let run = first.bytes;
  // A large image is told in steps, so that an answer comes in good time.
  for (let steps = 0; run < bytes && steps < MAX_STEPS; steps++) {
    const next = await lookUp(co, blocks, guestOffset + run, bytes - run);
    if (next.hostOffset !== undefined) break;
    run += next.bytes;
  }
  return { bytes: run, data: false, zero: !blocks.differencing, allocated: false };
}

/** Of 2 MiB each in most images. */
const MAX_STEPS = 65536;

/** Writes what only memory knows; afterwards the file needs a flush.  @qemu bdrv_co_flush_to_os */
export async function writeTables(co: Coroutine<"read">, blocks: Blocks): Promise<void> {
  const { differencing, lock, table } = blocks;
  if (differencing) await lock.run(() => differencing.bitmaps.write(co));
  await table.write(co);
}

/** Part of a request that is here, or is not, as a whole. */
interface Run {
  readonly bytes: number;
  /** Undefined: the parent's, or zeroes. */
  readonly hostOffset: number | undefined;
}

async function entryOf(co: Coroutine<"read">, { table }: Blocks, index: number): Promise<number> {
  return table.peek(index) ?? (await table.get(co, index));
}

async function lookUp(
  co: Coroutine<"read">,
  blocks: Blocks,
  guestOffset: number,
  wantedBytes: number,
): Promise<Run> {
  const { blockSize, bitmapBytes, differencing } = blocks;
  const within = guestOffset % blockSize;
  const bytes = Math.min(wantedBytes, blockSize - within);
  const index = Math.floor(guestOffset / blockSize);
  const entry = await entryOf(co, blocks, index);
  if (entry === UNUSED) return { bytes, hostOffset: undefined };
  const bitmap = entry * SECTOR_SIZE;
  const hostOffset = bitmap + bitmapBytes + within;
  if (!differencing || isWhole(differencing, index)) return { bytes, hostOffset };
  const { view } =
    differencing.bitmaps.peek(bitmap) ?? (await blocks.lock.run(() => differencing.bitmaps.load(co, bitmap)));
  const start = within / SECTOR_SIZE;
  const end = start + bytes / SECTOR_SIZE;
  const isHere = bitOf(view, start);
  let sector = start + 1;
  while (sector < end && bitOf(view, sector) === isHere) sector++;
  return { bytes: (sector - start) * SECTOR_SIZE, hostOffset: isHere ? hostOffset : undefined };
}

function isWhole({ batmap }: Differencing, index: number): boolean {
  return ((batmap?.[Math.floor(index / 8)] ?? 0) & bitMask(index)) !== 0;
}

/** The first of a byte is its highest bit. */
function bitMask(index: number): number {
  return 0x80 >> (index % 8);
}

function bitOf(view: DataView, sector: number): boolean {
  return (view.getUint8(Math.floor(sector / 8)) & bitMask(sector)) !== 0;
}

async function readBelow(
  co: Coroutine<"read">,
  { node }: VpcState,
  { differencing }: Blocks,
  guestOffset: number,
  iov: IoVector,
): Promise<void> {
  const { backing } = node;
  if (!differencing || !backing) return iovFill(iov, 0);
  if (!differencing.parentChecked) checkParent(node.filename, backing.node.filename, node, differencing);
  await backing.pread(co, guestOffset, iov);
}

/** Another image than the one that the child was made of would give content that nobody ever wrote. */
function checkParent(
  child: string,
  parent: string,
  { backing, childrenOverridden }: VpcState["node"],
  differencing: Differencing,
): void {
  const known = backing && stateOf.get(backing.node);
  const isSame =
    known === undefined || Buffer.compare(known.footer.uniqueId, differencing.parentUniqueId) === 0;
  if (!isSame && !childrenOverridden)
    throw new BlockError("EINVAL", `'${parent}' is not the parent that '${child}' was made of`);
  differencing.parentChecked = true;
}

/** Gives a block its place: behind all others, the footer behind it again. Under the lock.  @qemu alloc_block */
async function allocate(
  co: Coroutine<"read">,
  { file }: VpcState,
  blocks: Blocks,
  index: number,
): Promise<void> {
  const { blockSize, bitmapBytes, table, footerBytes, freeOffset, differencing } = blocks;
  if ((await entryOf(co, blocks, index)) !== UNUSED) return;
  const entry = freeOffset / SECTOR_SIZE;
  const dataStart = freeOffset + bitmapBytes;
  const end = dataStart + blockSize;
  if (entry >= UNUSED) throw new BlockError("EFBIG");
  // The footer first: if there is no room for it, nothing has changed.
  await file.pwrite(co, end, footerBytes);
  const staleEnd = Math.min(blocks.usedEnd, end);
  if (staleEnd > dataStart) await file.pwriteZeroes(co, dataStart, staleEnd - dataStart);
  blocks.usedEnd = Math.max(blocks.usedEnd, end + FOOTER_BYTES);
  await file.pwrite(co, freeOffset, new Uint8Array(bitmapBytes).fill(differencing ? 0 : 0xff));
  if (!differencing) blocks.lastBitmap = freeOffset;
  blocks.freeOffset = end;
  table.dependsOnFlush = true;
  await table.set(co, index, entry);
}

/** Says in the block's bitmap that the sectors have been written. Under the lock. */
async function noteSectors(
  co: Coroutine<"read">,
  { file }: VpcState,
  blocks: Blocks,
  bitmap: number,
  within: number,
  bytes: number,
): Promise<void> {
  const { differencing, bitmapBytes } = blocks;
  if (differencing) {
    differencing.bitmaps.dependsOnFlush = true;
    const table = differencing.bitmaps.peek(bitmap) ?? (await differencing.bitmaps.load(co, bitmap));
    setBits(table, within / SECTOR_SIZE, (within + bytes) / SECTOR_SIZE);
  } else {
    await file.pwrite(co, bitmap, new Uint8Array(bitmapBytes).fill(0xff));
    blocks.lastBitmap = bitmap;
  }
}

function setBits(table: Table, start: number, end: number): void {
  const { view } = table;
  for (let sector = start; sector < end; sector++) {
    const at = Math.floor(sector / 8);
    const byte = view.getUint8(at);
    if ((byte & bitMask(sector)) !== 0) continue;
    view.setUint8(at, byte | bitMask(sector));
    table.markDirty(at, at + 1);
  }
}
