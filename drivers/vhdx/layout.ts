/** The records of a VHDX file, all little-endian. Source: Microsoft, [MS-VHDX] Virtual Hard Disk v2 File Format. */

import { bytes, type Infer, layout, mask64, u16, u32, u64 } from "../../src/block/layout.ts";
import { KiB, MiB, TiB } from "../../src/block/units.ts";
import { crc32c } from "./crc32c.ts";

/** "vhdxfile", at the start of the file. */
export const FILE_SIGNATURE = "vhdxfile";

/** Regions, the log and blocks lie at multiples of this. */
export const UNIT_BYTES = MiB;

/** 2.2.2: where both headers are, and how much of each counts. */
export const HEADER_OFFSETS = [64 * KiB, 128 * KiB] as const;
export const HEADER_BYTES = 4 * KiB;

/** 2.2.3: where both copies of the region table are. */
export const REGION_TABLE_OFFSETS = [192 * KiB, 256 * KiB] as const;
export const TABLE_BYTES = 64 * KiB;

/** Of regions and of metadata items. */
export const MAX_TABLE_ENTRIES = 2047;

/** 2.2.2: one of both headers is in force, the one with the higher sequence number. */
export const Header = layout("little", {
  /** "head" */
  signature: u32,
  checksum: u32,
  sequenceNumber: mask64,
  /** Changes when the file is written to for the first time after it was opened. */
  fileWriteGuid: bytes(16),
  /** Changes when what the guest sees is written to: a child knows its parent by it. */
  dataWriteGuid: bytes(16),
  /** Of the log's entries that count; zero: the log is empty. */
  logGuid: bytes(16),
  logVersion: u16,
  version: u16,
  logLength: u32,
  logOffset: u64,
});
export type Header = Infer<typeof Header>;

/** 2.2.3 */
export const RegionTable = layout("little", {
  /** "regi" */
  signature: u32,
  checksum: u32,
  entryCount: u32,
  reserved: u32,
});

export const RegionEntry = layout("little", {
  guid: bytes(16),
  fileOffset: u64,
  length: u32,
  /** Bit 0: who does not know it must not open the file. */
  required: u32,
});

/** 2.6 */
export const MetadataTable = layout("little", {
  signature: bytes(8),
  reserved: u16,
  entryCount: u16,
  reserved2: bytes(20),
});

export const MetadataEntry = layout("little", {
  itemId: bytes(16),
  /** From the start of the region. */
  offset: u32,
  length: u32,
  flags: u32,
  reserved: u32,
});

/** Bits of a metadata entry's flags. */
export const ItemFlag = { VirtualDisk: 2, Required: 4 } as const;

/** Bits of the file parameters' flags. */
export const FileFlag = { LeaveBlocksAllocated: 1, HasParent: 2 } as const;

/** 2.3.1.1 */
export const LogEntry = layout("little", {
  /** "loge" */
  signature: u32,
  checksum: u32,
  entryLength: u32,
  /** Where in the log the sequence begins that this entry ends. */
  tail: u32,
  sequenceNumber: mask64,
  descriptorCount: u32,
  reserved: u32,
  logGuid: bytes(16),
  /** The file was as long at least when the entry was written. */
  flushedFileOffset: u64,
  lastFileOffset: u64,
});
export type LogEntry = Infer<typeof LogEntry>;

/** 2.3.1.2, 2.3.1.3: of zeroes ("zero") or of one sector of data ("desc"). */
export const LogDescriptor = layout("little", {
  signature: u32,
  /** The last 4 bytes of the sector, whose place in the log is taken. */
  trailingBytes: bytes(4),
  /** The first 8 bytes of the sector; of zeroes: how many. */
  leading: bytes(8),
  fileOffset: u64,
  sequenceNumber: mask64,
});

/** 2.3.1.4: what a data sector begins with; its end has the lower half of the sequence number. */
export const LogData = layout("little", {
  /** "data" */
  signature: u32,
  sequenceHigh: u32,
});

export const LOG_SECTOR_BYTES = 4 * KiB;

/** As numbers, little-endian. */
export const Signature = {
  Header: 0x64616568,
  Region: 0x69676572,
  LogEntry: 0x65676f6c,
  LogZero: 0x6f72657a,
  LogDescriptor: 0x63736564,
  LogData: 0x61746164,
} as const;

export const METADATA_SIGNATURE = "metadata";

/** As hexadecimal digits of the bytes in the file. */
export const Guid = {
  Bat: "6677c22d23f600429d64115e9bfd4a08",
  Metadata: "06a27c8b90479a4bb8fe575f050f886e",
  FileParameters: "3767a1ca36fa434db3b633f0aa44e76b",
  VirtualDiskSize: "2442a52f1bcd7648b2115dbed83bf4b8",
  Page83Data: "ab12cabee6b2234593efc309e000c746",
  LogicalSectorSize: "1dbf41816fa90947ba47f233a8faab5f",
  PhysicalSectorSize: "c748a3cd5d4471449cc9e9885251c556",
  ParentLocator: "2d5fd3a80bb34d45abf7d3d84834ab0c",
  VhdxParentLocator: "b7ef4ab09ed1814ab78925b8e9445913",
} as const;

export const NO_GUID = new Uint8Array(16);

/** 2.5.1.1: states of payload blocks; the low three bits of an entry. */
export const BlockState = {
  NotPresent: 0,
  Undefined: 1,
  Zero: 2,
  Unmapped: 3,
  /** As version 0.95 had it. */
  UnmappedOld: 5,
  FullyPresent: 6,
  PartiallyPresent: 7,
} as const;

/** Of a block of the sectors' bits. */
export const BITMAP_PRESENT = 6;

export const MIN_BLOCK_BYTES = MiB;
export const MAX_BLOCK_BYTES = 256 * MiB;
export const MAX_DISK_BYTES = 64 * TiB;

/** Sectors whose bits one block of bits has: blocks with so many sectors are a chunk. */
export const CHUNK_SECTORS = 2 ** 23;

/** Of a record whose checksum lies at `offset`, and counts as zero. */
export function checksumOf(record: Uint8Array, offset = 4): number {
  const crc = crc32c(ZEROES, crc32c(record.subarray(0, offset)));
  return crc32c(record.subarray(offset + 4), crc);
}

const ZEROES = new Uint8Array(4);

export function hex(guid: Uint8Array): string {
  return Buffer.from(guid.buffer, guid.byteOffset, guid.length).toString("hex");
}
