/**
 * The VDI format of VirtualBox, version 1.1: a header, a map with a number for each block of 1 MiB, and the blocks.
 * Source: what VirtualBox and qemu-img write; the forum post "VDI file format" by A. Dunne and G. Blake.  @qemu block/vdi.c
 *
 * Invariants:
 * 1. A block gets its number and its content, which is written whole, with the lock held; the map names it afterwards.
 * 2. Before the map names a block, the header that counts it, and its content, are on the disk: whatever breaks off, no
 *    block can get the same number a second time.
 */

import type { BlockBackend } from "../src/block/backend.ts";
import type { BlockStatus } from "../src/block/block-status.ts";
import { breathe } from "../src/block/breathe.ts";
import type { BlockChild } from "../src/block/child.ts";
import { type Coroutine, graphRdlock } from "../src/block/coroutine.ts";
import { createFilled } from "../src/block/create.ts";
import type { CheckOptions, CheckResult, CreateRequest, FormatDriver } from "../src/block/driver.ts";
import { BlockError, toBlockError } from "../src/block/errors.ts";
import { type IoVector, iovConcat, iovFill, iovLength, iovSlice } from "../src/block/iov.ts";
import { bytes, type Infer, layout, mask64, u32 } from "../src/block/layout.ts";
import type { BlockNode } from "../src/block/node.ts";
import { SparseBits } from "../src/block/sparse-bits.ts";
import { alignUp, divideRoundUp, KiB, MiB, SECTOR_SIZE } from "../src/block/units.ts";
import { beforeLastCluster } from "./last-cluster.ts";
import { openFailed } from "./opening.ts";
import { PagedTable } from "./paged-table.ts";
import { Mutex } from "./qcow2/mutex.ts";

/** Numbers are little-endian. */
const Header = layout("little", {
  /** Says who made it. */
  text: bytes(64),
  signature: u32,
  /** 0x00010001: 1.1. */
  version: u32,
  headerSize: u32,
  /** `ImageType`. */
  imageType: u32,
  imageFlags: u32,
  description: bytes(256),
  /** Where the map is; a multiple of 512. */
  offsetMap: u32,
  /** Where block 0 is; a multiple of 512. */
  offsetData: u32,
  /** The geometry is not used. */
  cylinders: u32,
  heads: u32,
  sectors: u32,
  sectorSize: u32,
  unused1: u32,
  /** Virtual size in bytes. */
  diskSize: mask64,
  /** 1 MiB. */
  blockSize: u32,
  /** Bytes of a block's own before its content. */
  blockExtra: u32,
  /** Entries of the map. */
  blocksInImage: u32,
  /** The number of the next new block. */
  blocksAllocated: u32,
  uuidImage: bytes(16),
  uuidLastSnap: bytes(16),
  /** Those of the image that this one lies over: zeroes. */
  uuidLink: bytes(16),
  uuidParent: bytes(16),
  unused2: bytes(56),
});

type HeaderRecord = Infer<typeof Header>;

const SIGNATURE = 0xbeda107f;
const VERSION = 0x00010001;
const BLOCK_BYTES = MiB;
const ImageType = { Dynamic: 1, Static: 2 } as const;

/** Entries of the map from here on are no numbers of blocks. @qemu VDI_DISCARDED */
const DISCARDED = 0xfffffffe;
const UNALLOCATED = 0xffffffff;

/** @qemu VDI_BLOCKS_IN_IMAGE_MAX */
const MAX_BLOCKS = 0x1fffff80;
const MAX_DISK_BYTES = MAX_BLOCKS * BLOCK_BYTES;

const createOptions = {
  size: { type: "size", help: "Virtual disk size" },
  static: { type: "bool", default: "off", help: "VDI static (pre-allocated) image" },
} as const;

interface VdiState {
  readonly node: BlockNode;
  readonly file: BlockChild;
  readonly map: PagedTable;
  readonly offsetData: number;
  readonly isStatic: boolean;
  readonly blocks: number;
  blocksAllocated: number;
  readonly lock: Mutex;
}

export const vdi: FormatDriver<Record<never, never>, typeof createOptions> = {
  formatName: "vdi",
  kind: "format",
  options: {},
  createOptions,
  create,

  async open(co, { node, openFileChild }) {
    const file = await openFileChild(co);
    const header = await graphRdlock(co, (reader) => readHeader(reader, file));
    node.totalSectors = checkHeader(header) / SECTOR_SIZE;
    const { offsetMap: offset, blocksInImage: blocks, blocksAllocated, offsetData, imageType } = header;
    const map = new PagedTable({ file, offset, entries: blocks, entryBytes: 4, littleEndian: true });
    const isStatic = imageType === ImageType.Static;
    const state = { node, file, map, offsetData, isStatic, blocks, blocksAllocated, lock: new Mutex() };
    return {
      pread: (co, offset, iov) => pread(co, state, offset, iov),
      pwrite: (co, offset, iov) => pwrite(co, state, offset, iov),
      blockStatus: (co, _wantZero, offset, bytes) => blockStatus(co, state, offset, bytes),
      flushToOs: (co) => map.write(co),
      hasZeroInit: () => !isStatic || (file.node.ops.hasZeroInit?.() ?? false),
      getInfo: async () => ({ clusterSize: BLOCK_BYTES }),
      check: (co, options) => check(co, state, options),
      // Nothing lies below that could show.
      makeEmpty: async () => {},
      reopen: async () => ({ commit: () => {}, abort: () => {} }),
    };
  },
};

async function readHeader(co: Coroutine<"read">, file: BlockChild): Promise<HeaderRecord> {
  try {
    return Header.read(await file.preadBytes(co, 0, Header.size));
  } catch (error) {
    throw openFailed(file, toBlockError(error).errno);
  }
}

/** The virtual size in bytes, if all is as it must be.  @qemu vdi_open */
function checkHeader(header: HeaderRecord): number {
  checkDiskSize(header.diskSize);
  const diskBytes = alignUp(Number(header.diskSize), SECTOR_SIZE);
  const { signature, version, offsetMap, offsetData, sectorSize, blockSize, blocksInImage } = header;
  if (signature !== SIGNATURE)
    throw new BlockError("EINVAL", `Image not in VDI format (bad signature ${hex(signature, 8)})`);
  const refuse = (what: string) => {
    throw new BlockError("ENOTSUP", `unsupported VDI image (${what})`);
  };
  if (version !== VERSION) refuse(`version ${Math.floor(version / 0x10000)}.${version % 0x10000}`);
  if (offsetMap % SECTOR_SIZE !== 0) refuse(`unaligned block map offset 0x${hex(offsetMap)}`);
  if (offsetData % SECTOR_SIZE !== 0) refuse(`unaligned data offset 0x${hex(offsetData)}`);
  if (sectorSize !== SECTOR_SIZE) refuse(`sector size ${sectorSize} is not ${SECTOR_SIZE}`);
  if (blockSize !== BLOCK_BYTES) refuse(`block size ${blockSize} is not ${BLOCK_BYTES}`);
  const room = blocksInImage * BLOCK_BYTES;
  if (diskBytes > room) refuse(`disk size ${diskBytes}, image bitmap has room for ${room}`);
  if (header.uuidLink.some((byte) => byte !== 0)) refuse("non-NULL link UUID");
  if (header.uuidParent.some((byte) => byte !== 0)) refuse("non-NULL parent UUID");
  if (blocksInImage > MAX_BLOCKS) refuse(`too many blocks ${blocksInImage}, max is ${MAX_BLOCKS}`);
  // QEMU does not look, and would read such blocks shifted.
  if (header.blockExtra !== 0) refuse(`${header.blockExtra} extra bytes a block`);
  return diskBytes;
}

function checkDiskSize(bytes: bigint): void {
  if (bytes > BigInt(MAX_DISK_BYTES))
    throw new BlockError(
      "ENOTSUP",
      `Unsupported VDI image size (size is 0x${bytes.toString(16)}, max supported is 0x${hex(MAX_DISK_BYTES)})`,
    );
}

function hex(value: number, digits = 1): string {
  return value.toString(16).padStart(digits, "0");
}

/** A guest range that lies in one piece in the file, or has no blocks (`hostOffset` is undefined). */
interface Run {
  readonly bytes: number;
  readonly hostOffset: number | undefined;
}

/** Entries that are looked at for one run. */
const MAX_RUN_BLOCKS = 4096;

/** As far as the map is in memory; undefined: its first entry is not. */
function peekRun({ map, offsetData }: VdiState, offset: number, bytes: number): Run | undefined {
  const within = offset % BLOCK_BYTES;
  const index = (offset - within) / BLOCK_BYTES;
  const first = map.peek(index);
  if (first === undefined) return undefined;
  const isAllocated = first < DISCARDED;
  const wanted = Math.min(divideRoundUp(within + bytes, BLOCK_BYTES), MAX_RUN_BLOCKS);
  let blocks = 1;
  for (; blocks < wanted; blocks++) {
    const next = map.peek(index + blocks);
    if (next === undefined || (isAllocated ? next !== first + blocks : next < DISCARDED)) break;
  }
  return {
    bytes: Math.min(blocks * BLOCK_BYTES - within, bytes),
    hostOffset: isAllocated ? offsetData + first * BLOCK_BYTES + within : undefined,
  };
}

async function mapRun(co: Coroutine<"read">, state: VdiState, offset: number, bytes: number): Promise<Run> {
  co.checkAborted();
  for (;;) {
    const run = peekRun(state, offset, bytes);
    if (run) return run;
    await state.map.get(co, Math.floor(offset / BLOCK_BYTES));
  }
}

async function pread(co: Coroutine<"read">, state: VdiState, offset: number, iov: IoVector): Promise<void> {
  const bytes = iovLength(iov);
  for (let done = 0; done < bytes; ) {
    const run = await mapRun(co, state, offset + done, bytes - done);
    const part = iovSlice(iov, done, done + run.bytes);
    if (run.hostOffset === undefined) iovFill(part, 0);
    else await state.file.pread(co, run.hostOffset, part);
    done += run.bytes;
  }
}

/** What is there and known goes to its place at once; all else in the order of the calls, so that blocks lie in it. */
function pwrite(co: Coroutine<"read">, state: VdiState, offset: number, iov: IoVector): Promise<void> {
  const bytes = iovLength(iov);
  const run = peekRun(state, offset, bytes);
  if (run?.hostOffset !== undefined && run.bytes === bytes) return state.file.pwrite(co, run.hostOffset, iov);
  return state.lock.run(async () => {
    for (let done = 0; done < bytes; ) {
      const run = await mapRun(co, state, offset + done, bytes - done);
      const part = iovSlice(iov, done, done + run.bytes);
      if (run.hostOffset === undefined) done += await allocate(co, state, offset + done, part);
      else {
        await state.file.pwrite(co, run.hostOffset, part);
        done += run.bytes;
      }
    }
  });
}

/** Gives blocks their numbers, with the content of `iov` in them and zeroes around; how many bytes of it were written. */
async function allocate(
  co: Coroutine<"read">,
  state: VdiState,
  offset: number,
  iov: IoVector,
): Promise<number> {
  const head = offset % BLOCK_BYTES;
  const { number, blocks } = await freeNumbers(co, state, divideRoundUp(head + iovLength(iov), BLOCK_BYTES));
  const bytes = Math.min(iovLength(iov), blocks * BLOCK_BYTES - head);
  const tail = new Uint8Array(blocks * BLOCK_BYTES - head - bytes);
  const content = iovConcat(new Uint8Array(head), iovSlice(iov, 0, bytes), tail);
  await state.file.pwrite(co, state.offsetData + number * BLOCK_BYTES, content);
  if (number + blocks > state.blocksAllocated) {
    await writeBlocksAllocated(co, state.file, number + blocks);
    state.blocksAllocated = number + blocks;
  }
  state.map.dependsOnFlush = true;
  const first = (offset - head) / BLOCK_BYTES;
  for (let block = 0; block < blocks; block++) await state.map.set(co, first + block, number + block);
  await state.map.write(co);
  return bytes;
}

/** The next numbers; where they have run out, one that a power cut has left without a place in the map. */
async function freeNumbers(
  co: Coroutine<"read">,
  { map, blocks: blocksInImage, blocksAllocated }: VdiState,
  blocks: number,
): Promise<{ readonly number: number; readonly blocks: number }> {
  const left = blocksInImage - blocksAllocated;
  if (left > 0) return { number: blocksAllocated, blocks: Math.min(blocks, left) };
  const used = new SparseBits();
  for (let index = 0; index < blocksInImage; index++) {
    if (index % ENTRIES_A_BREATH === 0) await breathe(co.signal);
    const number = map.peek(index) ?? (await map.get(co, index));
    if (number < DISCARDED) used.set(number, number + 1);
  }
  const number = used.nextClear(0, blocksInImage);
  if (number === blocksInImage) throw new BlockError("ENOSPC");
  return { number, blocks: 1 };
}

async function writeBlocksAllocated(co: Coroutine<"read">, file: BlockChild, count: number): Promise<void> {
  const field = new Uint8Array(4);
  new DataView(field.buffer).setUint32(0, count, true);
  await file.pwrite(co, Header.offsetOf.blocksAllocated, field);
}

async function blockStatus(
  co: Coroutine<"read">,
  state: VdiState,
  offset: number,
  bytes: number,
): Promise<BlockStatus> {
  const run = await mapRun(co, state, offset, beforeLastCluster(state.node, BLOCK_BYTES, offset, bytes));
  if (run.hostOffset === undefined) return { bytes: run.bytes, data: false, zero: true, allocated: true };
  const place = { offset: run.hostOffset, file: state.file.node };
  const recurse = state.isStatic && { recurse: true };
  return { bytes: run.bytes, data: true, zero: false, allocated: true, ...place, ...recurse };
}

const ENTRIES_A_BREATH = 65536;

/** @qemu vdi_co_check */
async function check(co: Coroutine<"read">, state: VdiState, options: CheckOptions): Promise<CheckResult> {
  if (options.fixErrors || options.fixLeaks) throw new BlockError("ENOTSUP");
  const { map, blocks, blocksAllocated } = state;
  const used = new SparseBits();
  let corruptions = 0;
  let allocated = 0;
  const found = (line: string) => {
    corruptions++;
    options.report(`ERROR: ${line}`);
  };
  for (let index = 0; index < blocks; index++) {
    if (index % ENTRIES_A_BREATH === 0) await breathe(co.signal);
    const number = map.peek(index) ?? (await map.get(co, index));
    if (number >= DISCARDED) continue;
    if (number >= blocks) {
      found(`block index ${index} too large, is ${number}`);
      continue;
    }
    allocated++;
    if (used.nextClear(number, number + 1) > number) found(`block index ${number} also used by ${number}`);
    used.set(number, number + 1);
  }
  if (allocated !== blocksAllocated)
    found(`allocated blocks mismatch, is ${allocated}, should be ${blocksAllocated}`);
  return { corruptions, leaks: 0, checkErrors: 0, corruptionsFixed: 0, leaksFixed: 0, imageEndOffset: 0 };
}

/** The map comes before the header is written: until then the file is no image.  @qemu vdi_co_do_create */
async function create(co: Coroutine<"none">, request: CreateRequest<typeof createOptions>): Promise<void> {
  const { size = 0, static: isStatic = false } = request.options;
  const diskBytes = alignUp(size, SECTOR_SIZE);
  checkDiskSize(BigInt(diskBytes));
  await createFilled(co, request, (file) => writeImage(file, diskBytes, isStatic));
}

async function writeImage(file: BlockBackend, diskBytes: number, isStatic: boolean): Promise<void> {
  const blocks = divideRoundUp(diskBytes, BLOCK_BYTES);
  const offsetMap = Header.size;
  const mapBytes = alignUp(blocks * 4, SECTOR_SIZE);
  const offsetData = offsetMap + mapBytes;
  for (let at = 0; at < mapBytes; at += MAP_PIECE_BYTES)
    await file.write(offsetMap + at, newMap(at, Math.min(mapBytes - at, MAP_PIECE_BYTES), blocks, isStatic));
  if (isStatic) await file.truncate(offsetData + blocks * BLOCK_BYTES);
  const none = new Uint8Array(0);
  await file.write(
    0,
    Header.write({
      text: Buffer.from("<<< QEMU VM Virtual Disk Image >>>\n"),
      signature: SIGNATURE,
      version: VERSION,
      headerSize: 0x180,
      imageType: isStatic ? ImageType.Static : ImageType.Dynamic,
      imageFlags: 0,
      description: none,
      offsetMap,
      offsetData,
      cylinders: 0,
      heads: 0,
      sectors: 0,
      sectorSize: SECTOR_SIZE,
      unused1: 0,
      diskSize: BigInt(diskBytes),
      blockSize: BLOCK_BYTES,
      blockExtra: 0,
      blocksInImage: blocks,
      blocksAllocated: isStatic ? blocks : 0,
      uuidImage: newUuid(),
      uuidLastSnap: newUuid(),
      uuidLink: none,
      uuidParent: none,
      unused2: none,
    }),
  );
}

const MAP_PIECE_BYTES = 256 * KiB;

/** The part of a new map from byte `at` on; behind its entries there are zeroes up to a whole sector. */
function newMap(at: number, length: number, blocks: number, isStatic: boolean): Uint8Array {
  const view = new DataView(new ArrayBuffer(length));
  const first = at / 4;
  const entries = Math.min(length / 4, blocks - first);
  for (let index = 0; index < entries; index++)
    view.setUint32(index * 4, isStatic ? first + index : UNALLOCATED, true);
  return new Uint8Array(view.buffer);
}

/** Of version 4, its first three parts little-endian.  @qemu qemu_uuid_generate, qemu_uuid_bswap */
function newUuid(): Uint8Array {
  const uuid = crypto.getRandomValues(new Uint8Array(16));
  uuid[7] = ((uuid[7] as number) % 16) + 0x40;
  uuid[8] = ((uuid[8] as number) % 64) + 0x80;
  return uuid;
}
