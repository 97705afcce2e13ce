/** Bochs's growing disks, read-only. Source: bochs's hdimage.h, "redolog".  @qemu block/bochs.c */

import type { BlockChild } from "../src/block/child.ts";
import type { Coroutine } from "../src/block/coroutine.ts";
import type { FormatDriver } from "../src/block/driver.ts";
import { BlockError } from "../src/block/errors.ts";
import { type IoVector, iovFill, iovLength, iovSlice } from "../src/block/iov.ts";
import { bytes, type Infer, layout, u32, u64 } from "../src/block/layout.ts";
import { divideRoundUp, isPowerOfTwo, MAX_LENGTH, MiB, SECTOR_SIZE } from "../src/block/units.ts";
import { readAtOpen } from "./opening.ts";
import { isBochs } from "./signatures.ts";

/** Little-endian, at the start of the file; all that follows it is zero up to 512 bytes. */
const Header = layout("little", {
  /** Told by the probe, as type and subtype are. */
  magic: bytes(32),
  type: bytes(16),
  subtype: bytes(16),
  version: u32,
  /** Bytes of the header: the catalog follows it. */
  header: u32,
  /** Entries of the catalog. */
  catalog: u32,
  /** Bytes of the bitmap before each extent. */
  bitmap: u32,
  /** Bytes of guest content of an extent. */
  extent: u32,
});

/** What comes after, by version: the size of the disk in bytes, which version 2 has aligned. */
const TailV1 = layout("little", { disk: u64 });
const TailV2 = layout("little", { reserved: u32, disk: u64 });

const VERSION_1 = 0x00010000;

const MAX_CATALOG_ENTRIES = 2 ** 20;
const MAX_EXTENT_BYTES = 8 * MiB;
/** A catalog entry of an extent that is not there. */
const NO_EXTENT = 0xffffffff;

export const bochs: FormatDriver = {
  formatName: "bochs",
  kind: "format",
  options: {},
  probe: isBochs,

  async open(co, { openFileChild, requireReadOnly, node }) {
    requireReadOnly();
    const file = await openFileChild(co);
    const state = await readAtOpen(co, file, (reader) => readTables(reader, file));
    node.totalSectors = state.totalSectors;
    return {
      pread: (co, offset, iov) => pread(co, state, offset, iov),
      limits: () => ({ requestAlignment: SECTOR_SIZE }),
    };
  },
};

interface State {
  readonly file: BlockChild;
  readonly totalSectors: number;
  /** Where extent 0 would start, in bytes. */
  readonly dataOffset: number;
  readonly extentBytes: number;
  /** Bytes that a bitmap takes in the file. */
  readonly bitmapBytes: number;
  /** Bytes from one extent, with its bitmap, to the next. */
  readonly strideBytes: number;
  readonly catalog: DataView;
  /** The bitmap that was last used. */
  bitmap: { readonly offset: number; readonly bits: Uint8Array } | undefined;
}

async function readTables(co: Coroutine<"read">, file: BlockChild): Promise<State> {
  const head = await file.preadBytes(co, 0, SECTOR_SIZE);
  const header = Header.read(head);
  if (!isBochs(head)) throw new BlockError("EINVAL", "Image not in Bochs format");
  if (header.catalog > MAX_CATALOG_ENTRIES) throw new BlockError("EFBIG", "Catalog size is too large");
  const catalog = await file.preadBytes(co, header.header, header.catalog * 4);
  const tail = header.version === VERSION_1 ? TailV1 : TailV2;
  const totalSectors = Math.floor(tail.read(head, Header.size).disk / SECTOR_SIZE);
  checkExtents(header, totalSectors);
  const bitmapBytes = blocksOf(header.bitmap) * SECTOR_SIZE;
  return {
    file,
    totalSectors,
    dataOffset: header.header + header.catalog * 4,
    extentBytes: header.extent,
    bitmapBytes,
    strideBytes: bitmapBytes + blocksOf(header.extent) * SECTOR_SIZE,
    catalog: new DataView(catalog.buffer, catalog.byteOffset, catalog.length),
    bitmap: undefined,
  };
}

function checkExtents({ extent, catalog }: Infer<typeof Header>, totalSectors: number): void {
  if (extent < SECTOR_SIZE) throw new BlockError("EINVAL", "Extent size must be at least 512");
  if (!isPowerOfTwo(extent)) throw new BlockError("EINVAL", `Extent size ${extent} is not a power of two`);
  if (extent > MAX_EXTENT_BYTES) throw new BlockError("EINVAL", `Extent size ${extent} is too large`);
  if (catalog < divideRoundUp(totalSectors, extent / SECTOR_SIZE))
    throw new BlockError("EINVAL", "Catalog size is too small for this disk size");
}

/** Sectors that hold `length` bytes, as qemu's unsigned arithmetic has it: none at all wrap around. */
function blocksOf(length: number): number {
  return 1 + Math.floor((length === 0 ? 2 ** 32 - 1 : length - 1) / SECTOR_SIZE);
}

async function pread(co: Coroutine<"read">, state: State, offset: number, iov: IoVector): Promise<void> {
  const length = iovLength(iov);
  for (let done = 0; done < length; ) {
    const run = await findRun(co, state, offset + done, length - done);
    const part = iovSlice(iov, done, done + run.bytes);
    if (run.hostOffset === undefined) iovFill(part, 0);
    else await state.file.pread(co, run.hostOffset, part);
    done += run.bytes;
  }
}

/** The sectors from `offset` on that are alike: there, and where, or not there. They end with their extent. */
async function findRun(
  co: Coroutine<"read">,
  state: State,
  offset: number,
  bytes: number,
): Promise<{ readonly bytes: number; readonly hostOffset: number | undefined }> {
  const { extentBytes, strideBytes, dataOffset, bitmapBytes } = state;
  const inExtent = offset % extentBytes;
  const end = Math.min(inExtent + bytes, extentBytes);
  const entry = state.catalog.getUint32(Math.floor(offset / extentBytes) * 4, true);
  if (entry === NO_EXTENT) return { bytes: end - inExtent, hostOffset: undefined };
  const bitmapOffset = dataOffset + entry * strideBytes;
  if (bitmapOffset > MAX_LENGTH - strideBytes) throw new BlockError("EIO");
  const bits = await loadBitmap(co, state, bitmapOffset);
  const isThere = (at: number) => {
    const sector = at / SECTOR_SIZE;
    return (((bits[sector >>> 3] as number) >>> (sector & 7)) & 1) === 1;
  };
  const wanted = isThere(inExtent);
  let at = inExtent + SECTOR_SIZE;
  while (at < end && isThere(at) === wanted) at += SECTOR_SIZE;
  return { bytes: at - inExtent, hostOffset: wanted ? bitmapOffset + bitmapBytes + inExtent : undefined };
}

/** As many bits as the extent has sectors, whatever the header says of the bitmap's length. */
async function loadBitmap(co: Coroutine<"read">, state: State, offset: number): Promise<Uint8Array> {
  if (state.bitmap?.offset !== offset) {
    const bits = await state.file.preadBytes(co, offset, divideRoundUp(state.extentBytes / SECTOR_SIZE, 8));
    state.bitmap = { offset, bits };
  }
  return state.bitmap.bits;
}
