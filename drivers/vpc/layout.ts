/** The records of a VHD file: footer and dynamic header. Source: Microsoft, Virtual Hard Disk Image Format Specification 1.0. */

import { bytes, type Infer, layout, u8, u16, u32, u64 } from "../../src/block/layout.ts";
import { GiB, MiB } from "../../src/block/units.ts";

/** Latin-1 "conectix". */
export const FOOTER_COOKIE = "conectix";
export const HEADER_COOKIE = "cxsparse";
/** Of the map that XenServer's tools put behind the table: which blocks have all their sectors. */
export const BATMAP_COOKIE = "tdbatmap";

export const FOOTER_BYTES = 512;

/** "Hard Disk Footer Format": at the end of the file, and of all but fixed images also at its start. Big-endian. */
export const Footer = layout("big", {
  cookie: bytes(8),
  /** Bit 1 is reserved and always set. */
  features: u32,
  /** 1.0. */
  version: u32,
  /** Where the dynamic header lies; all ones in a fixed image. */
  dataOffset: u64,
  /** Seconds since the year 2000 began. */
  timestamp: u32,
  creatorApplication: bytes(4),
  creatorVersion: u32,
  creatorHostOs: bytes(4),
  originalSize: u64,
  /** Bytes of the disk; but see `sizeOf` for who means what by it. */
  currentSize: u64,
  cylinders: u16,
  heads: u8,
  sectorsPerTrack: u8,
  diskType: u32,
  /** See `checksumOf`. */
  checksum: u32,
  uniqueId: bytes(16),
  savedState: u8,
  reserved: bytes(427),
});

export type Footer = Infer<typeof Footer>;

export const DiskType = { Fixed: 2, Dynamic: 3, Differencing: 4 } as const;

/** Of the eight entries of the header's locator table: where a name of the parent is stored. */
export const ParentLocator = layout("big", {
  /** "W2ru", "W2ku", "MacX", ... */
  platformCode: bytes(4),
  /** Room for the name: in sectors or in bytes, by whom the image was made. */
  dataSpace: u32,
  /** Bytes of the name. */
  dataLength: u32,
  reserved: u32,
  dataOffset: u64,
});

export const PARENT_LOCATORS = 8;

/** "Dynamic Disk Header Format". */
export const DynamicHeader = layout("big", {
  cookie: bytes(8),
  /** All ones. */
  dataOffset: u64,
  tableOffset: u64,
  /** 1.0. */
  headerVersion: u32,
  /** Entries of the block allocation table. */
  maxTableEntries: u32,
  /** Bytes of a block without its sector bitmap; a power of two. */
  blockSize: u32,
  checksum: u32,
  /** `uniqueId` of the parent's footer. */
  parentUniqueId: bytes(16),
  parentTimestamp: u32,
  reserved: u32,
  /** UTF-16, big-endian. */
  parentUnicodeName: bytes(512),
  parentLocators: bytes(PARENT_LOCATORS * ParentLocator.size),
  reserved2: bytes(256),
});

export type DynamicHeader = Infer<typeof DynamicHeader>;

/** The start of XenServer's map, behind the table. */
export const Batmap = layout("big", {
  cookie: bytes(8),
  offset: u64,
  sectors: u32,
  version: u32,
  checksum: u32,
});

/** An entry of the block allocation table, in sectors, of a block that has no place in the file. */
export const UNUSED = 0xffffffff;

/** What VPC and Hyper-V take: all that such an image can be, in bytes.  @qemu VHD_MAX_SECTORS */
export const MAX_DISK_BYTES = 2040 * GiB;

/** Blocks are of 2 MiB where anybody makes them; so many entries serve for blocks of 128 KiB. */
export const MAX_TABLE_BYTES = 64 * MiB;

/** The ones' complement of the sum of all bytes; those of the checksum itself, if it is among them, do not count.  @qemu vpc_checksum */
export function checksumOf(record: Uint8Array, checksumOffset = record.length): number {
  let sum = 0;
  for (const byte of record) sum += byte;
  for (const byte of record.subarray(checksumOffset, checksumOffset + 4)) sum -= byte;
  return ~sum >>> 0;
}

export function text(field: Uint8Array): string {
  return Buffer.from(field.buffer, field.byteOffset, field.length).toString("latin1");
}
