/** Reading and writing guest data.  @qemu vhdx_co_readv, vhdx_co_writev */

import type { BlockStatus } from "../../src/block/block-status.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { type IoVector, iovFill, iovLength, iovSlice } from "../../src/block/iov.ts";
import { alignUp, MiB } from "../../src/block/units.ts";
import { batIndex, bitmapIndex, entryOf, placeOf, stateBits } from "./bat.ts";
import { markChanged } from "./headers.ts";
import { BITMAP_PRESENT, BlockState, hex, UNIT_BYTES } from "./layout.ts";
import { writeEntry } from "./log.ts";
import { type Parent, stateOf, type VhdxState } from "./state.ts";

/** Part of a request that lies in one place. */
interface Run {
  readonly bytes: number;
  readonly kind: "here" | "zero" | "below";
  /** Of what is here. */
  readonly hostOffset: number;
}

export async function pread(
  co: Coroutine<"read">,
  state: VhdxState,
  guestOffset: number,
  iov: IoVector,
): Promise<void> {
  const bytes = iovLength(iov);
  for (let done = 0; done < bytes; ) {
    co.checkAborted();
    const run = await lookUp(co, state, guestOffset + done, bytes - done);
    const piece = iovSlice(iov, done, done + run.bytes);
    if (run.kind === "here") await state.file.pread(co, run.hostOffset, piece);
    else if (run.kind === "below") await readBelow(co, state, guestOffset + done, piece);
    else iovFill(piece, 0);
    done += run.bytes;
  }
}

/** Who comes first has the first places: a request that needs any has the lock until its end. */
export async function pwrite(
  co: Coroutine<"read">,
  state: VhdxState,
  guestOffset: number,
  iov: IoVector,
): Promise<void> {
  const { geometry, bat } = state;
  const { blockSize } = geometry;
  const last = Math.floor((guestOffset + iovLength(iov) - 1) / blockSize);
  for (let block = Math.floor(guestOffset / blockSize); block <= last; block++) {
    const entry = state.isMarked ? bat.peek(batIndex(geometry, block)) : undefined;
    if (entry !== undefined && stateBits(entry) === BlockState.FullyPresent) continue;
    return state.lock.run(async () => {
      await markChanged(co, state);
      await writePieces(co, state, guestOffset, iov);
    });
  }
  await writePieces(co, state, guestOffset, iov);
}

/** Of images with a parent only: QEMU calls all of the others data. */
export async function blockStatus(
  co: Coroutine<"read">,
  state: VhdxState,
  guestOffset: number,
  bytes: number,
): Promise<BlockStatus> {
  const first = await lookUp(co, state, guestOffset, bytes);
  const status = { bytes: first.bytes, data: false, zero: false, allocated: false };
  if (first.kind === "below") return status;
  if (first.kind === "zero") return { ...status, zero: true, allocated: true };
  return { ...status, data: true, allocated: true, offset: first.hostOffset, file: state.file.node };
}

async function lookUp(
  co: Coroutine<"read">,
  state: VhdxState,
  guestOffset: number,
  wantedBytes: number,
  isLocked = false,
): Promise<Run> {
  const { geometry, parent } = state;
  const { blockSize } = geometry;
  const block = Math.floor(guestOffset / blockSize);
  const within = guestOffset % blockSize;
  const bytes = Math.min(wantedBytes, blockSize - within);
  const entry = await entryOf(co, state, batIndex(geometry, block));
  const hostOffset = placeOf(entry) + within;
  switch (stateBits(entry)) {
    case BlockState.FullyPresent:
      return { bytes, kind: "here", hostOffset };
    case BlockState.NotPresent:
      return { bytes, kind: parent ? "below" : "zero", hostOffset };
    case BlockState.Undefined:
    case BlockState.Zero:
    case BlockState.Unmapped:
    case BlockState.UnmappedOld:
      return { bytes, kind: "zero", hostOffset };
    case BlockState.PartiallyPresent:
      if (parent) return lookUpSectors(co, state, parent, { block, within, bytes, hostOffset, isLocked });
  }
  throw new BlockError("EIO");
}

/** Bytes of a block of bits that are read at a time. */
export const BITMAP_PIECE_BYTES = 4096;

/** A range of a block of which only some sectors are here. */
interface SectorRange {
  readonly block: number;
  readonly within: number;
  readonly bytes: number;
  readonly hostOffset: number;
  /** The caller has the lock. */
  readonly isLocked: boolean;
}

/** Whose sectors they are: the run of those from `within` on that are all here, or all the parent's. */
async function lookUpSectors(
  co: Coroutine<"read">,
  state: VhdxState,
  parent: Parent,
  { block, within, bytes, hostOffset, isLocked }: SectorRange,
): Promise<Run> {
  const { geometry } = state;
  const { sectorSize, blockSize, chunkRatio } = geometry;
  const entry = await entryOf(co, state, bitmapIndex(geometry, block));
  if (stateBits(entry) !== BITMAP_PRESENT) throw new BlockError("EIO");
  const chunkSector = ((block % chunkRatio) * blockSize + within) / sectorSize;
  const pieceSectors = BITMAP_PIECE_BYTES * 8;
  const piece = placeOf(entry) + Math.floor(chunkSector / pieceSectors) * BITMAP_PIECE_BYTES;
  const load = () => parent.bitmaps.load(co, piece);
  const { view } = parent.bitmaps.peek(piece) ?? (await (isLocked ? load() : state.lock.run(load)));
  const start = chunkSector % pieceSectors;
  const end = Math.min(start + bytes / sectorSize, pieceSectors);
  const isHere = bitOf(view, start);
  let sector = start + 1;
  while (sector < end && bitOf(view, sector) === isHere) sector++;
  return { bytes: (sector - start) * sectorSize, kind: isHere ? "here" : "below", hostOffset };
}

/** The first of a byte is its lowest bit. */
function bitOf(view: DataView, sector: number): boolean {
  return ((view.getUint8(Math.floor(sector / 8)) >> (sector % 8)) & 1) === 1;
}

async function readBelow(
  co: Coroutine<"read">,
  { node, parent }: VhdxState,
  guestOffset: number,
  iov: IoVector,
): Promise<void> {
  const { backing } = node;
  if (!parent || !backing) return iovFill(iov, 0);
  if (!parent.isChecked) checkParent(node, parent);
  await backing.pread(co, guestOffset, iov);
}

/** Another image than the one that the child was made of would give content that nobody ever wrote. */
function checkParent({ filename, backing, childrenOverridden }: VhdxState["node"], parent: Parent): void {
  const known = backing && stateOf.get(backing.node);
  const isSame = known === undefined || parent.linkage.includes(hex(known.headers.current.dataWriteGuid));
  if (!isSame && !childrenOverridden)
    throw new BlockError(
      "EINVAL",
      `'${backing?.node.filename}' is not the parent that '${filename}' was made of, or has been changed since`,
    );
  parent.isChecked = true;
}

/** Under the lock unless all blocks are the image's own. */
async function writePieces(
  co: Coroutine<"read">,
  state: VhdxState,
  guestOffset: number,
  iov: IoVector,
): Promise<void> {
  const { geometry, file } = state;
  const { blockSize } = geometry;
  const bytes = iovLength(iov);
  for (let done = 0; done < bytes; ) {
    co.checkAborted();
    const at = guestOffset + done;
    const within = at % blockSize;
    const piece = iovSlice(iov, done, Math.min(bytes, done + blockSize - within));
    const index = batIndex(geometry, Math.floor(at / blockSize));
    const entry = await entryOf(co, state, index);
    if (stateBits(entry) === BlockState.FullyPresent) await file.pwrite(co, placeOf(entry) + within, piece);
    else await fillBlock(co, state, index, entry, at, piece);
    done += iovLength(piece);
  }
}

/**
 * Makes the whole block the image's own: in a new place at the end of the file, or in the one that it has in part; what
 * is not written comes from the parent. Under the lock.
 */
async function fillBlock(
  co: Coroutine<"read">,
  state: VhdxState,
  index: number,
  entry: number,
  guestOffset: number,
  iov: IoVector,
): Promise<void> {
  const { geometry, file, parent } = state;
  const { blockSize } = geometry;
  const blockState = stateBits(entry);
  const isPartial = blockState === BlockState.PartiallyPresent;
  if (blockState === 4 || (isPartial && !parent)) throw new BlockError("EIO");
  const place = isPartial ? placeOf(entry) : alignUp(await file.getLength(co), UNIT_BYTES);
  if (!isPartial) await file.truncate(co, place + blockSize, false);
  const within = guestOffset % blockSize;
  if (isPartial || (parent && blockState === BlockState.NotPresent)) {
    const start = guestOffset - within;
    const end = Math.min(start + blockSize, geometry.diskSize);
    await copyBelow(co, state, place - start, start, guestOffset);
    await copyBelow(co, state, place - start, guestOffset + iovLength(iov), end);
  }
  await file.pwrite(co, place + within, iov);
  await writeEntry(co, state, index, BlockState.FullyPresent, place);
  state.hasBlocks = true;
}

/** Writes what the parent has of [start, end), all of one block, to the same place of it here. Under the lock. */
async function copyBelow(
  co: Coroutine<"read">,
  state: VhdxState,
  hostDelta: number,
  start: number,
  end: number,
): Promise<void> {
  for (let at = start; at < end; ) {
    co.checkAborted();
    const run = await lookUp(co, state, at, Math.min(end - at, MiB), true);
    if (run.kind === "below") {
      const buffer = new Uint8Array(run.bytes);
      await readBelow(co, state, at, buffer);
      await state.file.pwrite(co, at + hostDelta, buffer);
    }
    at += run.bytes;
  }
}
