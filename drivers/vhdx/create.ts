/** New VHDX images. Layout, as qemu-img's: headers, log, table, metadata, and from a margin behind them the blocks.  @qemu vhdx_co_create */

import { randomBytes } from "node:crypto";
import type { BlockBackend } from "../../src/block/backend.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { createFilled } from "../../src/block/create.ts";
import type { CreateRequest } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import type { OptionValues } from "../../src/block/options.ts";
import { alignUp, GiB, isPowerOfTwo, KiB, MiB, SECTOR_SIZE, TiB } from "../../src/block/units.ts";
import { batEntries } from "./bat.ts";
import { newGuid, serializeHeader } from "./headers.ts";
import {
  BlockState,
  CHUNK_SECTORS,
  checksumOf,
  FILE_SIGNATURE,
  FileFlag,
  Guid,
  HEADER_OFFSETS,
  type Header,
  ItemFlag,
  MAX_BLOCK_BYTES,
  MAX_DISK_BYTES,
  METADATA_SIGNATURE,
  MetadataEntry,
  MetadataTable,
  MIN_BLOCK_BYTES,
  NO_GUID,
  REGION_TABLE_OFFSETS,
  RegionEntry,
  RegionTable,
  Signature,
  TABLE_BYTES,
  UNIT_BYTES,
} from "./layout.ts";
import type { Region } from "./state.ts";

export const createOptions = {
  size: { type: "size", help: "Virtual disk size; max of 64TB." },
  log_size: { type: "size", default: "1048576", help: "Log size; min 1MB." },
  block_size: {
    type: "size",
    default: "0",
    help: "Block Size; min 1MB, max 256MB. 0 means auto-calculate based on image size.",
  },
  subformat: {
    type: "string",
    values: ["dynamic", "fixed"],
    refusal: "Parameter 'subformat' does not accept value '%s'",
    help: "VHDX format type, can be either 'dynamic' or 'fixed'. Default is 'dynamic'.",
  },
  block_state_zero: {
    type: "bool",
    help:
      "Force use of payload blocks of type 'ZERO'. Non-standard, but default.  " +
      "Do not set to 'off' when using 'qemu-img convert' with subformat=dynamic.",
  },
} as const;

/** What the options ask for, and where it goes. */
interface NewImage {
  readonly size: number;
  readonly blockSize: number;
  readonly isFixed: boolean;
  readonly hasZeroState: boolean;
  readonly log: Region;
  readonly bat: Region;
  readonly metadata: Region;
  /** Where the first block goes. */
  readonly dataOffset: number;
}

/** Behind the metadata, for whatever there may be. */
const MARGIN_BYTES = 4 * MiB;

/** Of a sector of the disk: QEMU makes no others. */
const CHUNK_BYTES = CHUNK_SECTORS * SECTOR_SIZE;

export async function create(
  co: Coroutine<"none">,
  request: CreateRequest<typeof createOptions>,
): Promise<void> {
  const image = planImage(request.options);
  await createFilled(co, request, (file) => writeImage(file, image));
}

function planImage(options: OptionValues<typeof createOptions>): NewImage {
  const size = alignUp(options.size ?? 0, SECTOR_SIZE);
  if (size > MAX_DISK_BYTES) throw invalid("Image size too large; max of 64TB");
  const logBytes = alignUp(options.log_size ?? UNIT_BYTES, UNIT_BYTES);
  if (logBytes >= 4 * GiB) throw invalid("Log size must be smaller than 4 GB");
  if (logBytes === 0) throw invalid("Log size must be a multiple of 1 MB");
  const wanted = alignUp(options.block_size ?? 0, UNIT_BYTES) || defaultBlockSize(size);
  const blockSize = Math.min(Math.max(wanted, MIN_BLOCK_BYTES), MAX_BLOCK_BYTES);
  if (!isPowerOfTwo(blockSize)) throw invalid("Block size must be a power of two");
  const log = { offset: UNIT_BYTES, bytes: logBytes };
  const batBytes = alignUp(batEntries(Math.ceil(size / blockSize), CHUNK_BYTES / blockSize) * 8, UNIT_BYTES);
  const bat = { offset: log.offset + log.bytes, bytes: batBytes };
  const metadata = { offset: bat.offset + bat.bytes, bytes: UNIT_BYTES };
  return {
    size,
    blockSize,
    isFixed: options.subformat === "fixed",
    hasZeroState: options.block_state_zero ?? true,
    log,
    bat,
    metadata,
    dataOffset: metadata.offset + metadata.bytes + MARGIN_BYTES,
  };
}

function invalid(message: string): BlockError {
  return new BlockError("EINVAL", message);
}

function defaultBlockSize(size: number): number {
  if (size > 32 * TiB) return 64 * MiB;
  if (size > 100 * GiB) return 32 * MiB;
  return size > GiB ? 16 * MiB : 8 * MiB;
}

/** The signature comes last: without it there is no image. */
async function writeImage(file: BlockBackend, image: NewImage): Promise<void> {
  await file.truncate(image.dataOffset + (image.isFixed ? image.size : 0));
  const header = newHeader(image);
  for (const [index, offset] of HEADER_OFFSETS.entries())
    await file.write(
      offset,
      serializeHeader({ ...header, sequenceNumber: header.sequenceNumber + BigInt(index) }),
    );
  const regions = regionTable(image);
  for (const offset of REGION_TABLE_OFFSETS) await file.write(offset, regions);
  if (image.hasZeroState || image.isFixed) await writeBat(file, image);
  await file.write(image.metadata.offset, metadataTable());
  await file.write(image.metadata.offset + TABLE_BYTES, metadataItems(image));
  const identifier = Buffer.alloc(TABLE_BYTES);
  identifier.write(FILE_SIGNATURE, "latin1");
  identifier.write(CREATOR, FILE_SIGNATURE.length, "utf16le");
  await file.write(0, identifier);
}

/** Whose word for the format this is. */
const CREATOR = "QEMU v7.2.22";

function newHeader({ log }: NewImage): Header {
  return {
    signature: 0,
    checksum: 0,
    sequenceNumber: BigInt(randomBytes(4).readUInt32LE()),
    fileWriteGuid: newGuid(),
    dataWriteGuid: newGuid(),
    logGuid: NO_GUID,
    logVersion: 0,
    version: 1,
    logLength: log.bytes,
    logOffset: log.offset,
  };
}

function regionTable({ bat, metadata }: NewImage): Uint8Array {
  const table = new Uint8Array(TABLE_BYTES);
  const regions = [
    { guid: Guid.Bat, ...bat },
    { guid: Guid.Metadata, ...metadata },
  ];
  RegionTable.write({ signature: Signature.Region, checksum: 0, entryCount: 2, reserved: 0 }, table);
  for (const [index, { guid, offset, bytes }] of regions.entries())
    RegionEntry.write(
      { guid: Buffer.from(guid, "hex"), fileOffset: offset, length: bytes, required: 0 },
      table,
      RegionTable.size + index * RegionEntry.size,
    );
  new DataView(table.buffer).setUint32(RegionTable.offsetOf.checksum, checksumOf(table), true);
  return table;
}

/** In pieces: the table of a large disk with small blocks is large. Entries of blocks of bits stay zero. */
async function writeBat(file: BlockBackend, image: NewImage): Promise<void> {
  const { size, blockSize, bat, dataOffset } = image;
  const ratio = CHUNK_BYTES / blockSize;
  const blocks = Math.ceil(size / blockSize);
  const entries = batEntries(blocks, ratio);
  const pieceEntries = 8 * KiB;
  for (let first = 0; blocks > 0 && first < entries; first += pieceEntries) {
    const count = Math.min(pieceEntries, entries - first);
    const view = new DataView(new ArrayBuffer(count * 8));
    for (let n = 0; n < count; n++) {
      const index = first + n;
      if (index % (ratio + 1) === ratio) continue;
      const block = index - Math.floor(index / (ratio + 1));
      const place = dataOffset + block * blockSize;
      const entry = image.hasZeroState ? BlockState.Zero : place + BlockState.FullyPresent;
      view.setUint32(n * 8, entry % 2 ** 32, true);
      view.setUint32(n * 8 + 4, Math.floor(entry / 2 ** 32), true);
    }
    await file.write(bat.offset + first * 8, new Uint8Array(view.buffer));
  }
}

/** Each item with its offset in the region and its length. */
const ITEMS = [
  { guid: Guid.FileParameters, offset: 0, length: 8, flags: ItemFlag.Required },
  { guid: Guid.VirtualDiskSize, offset: 8, length: 8, flags: ItemFlag.Required | ItemFlag.VirtualDisk },
  { guid: Guid.Page83Data, offset: 16, length: 16, flags: ItemFlag.Required | ItemFlag.VirtualDisk },
  { guid: Guid.LogicalSectorSize, offset: 32, length: 4, flags: ItemFlag.Required | ItemFlag.VirtualDisk },
  { guid: Guid.PhysicalSectorSize, offset: 36, length: 4, flags: ItemFlag.Required | ItemFlag.VirtualDisk },
] as const;

function metadataTable(): Uint8Array {
  const table = new Uint8Array(MetadataTable.size + ITEMS.length * MetadataEntry.size);
  const signature = Buffer.from(METADATA_SIGNATURE, "latin1");
  MetadataTable.write({ signature, reserved: 0, entryCount: ITEMS.length, reserved2: NO_GUID }, table);
  for (const [index, { guid, offset, length, flags }] of ITEMS.entries())
    MetadataEntry.write(
      { itemId: Buffer.from(guid, "hex"), offset: TABLE_BYTES + offset, length, flags, reserved: 0 },
      table,
      MetadataTable.size + index * MetadataEntry.size,
    );
  return table;
}

function metadataItems({ size, blockSize, isFixed }: NewImage): Uint8Array {
  const items = Buffer.alloc(40);
  items.writeUInt32LE(blockSize, 0);
  items.writeUInt32LE(isFixed ? FileFlag.LeaveBlocksAllocated : 0, 4);
  items.writeBigUInt64LE(BigInt(size), 8);
  items.set(newGuid(), 16);
  items.writeUInt32LE(SECTOR_SIZE, 32);
  items.writeUInt32LE(SECTOR_SIZE, 36);
  return items;
}
