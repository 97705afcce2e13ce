/** The records of VMDK files. Source: "Virtual Disk Format 1.1" (VMware technical note), and what ESX writes for seSparse. */

import { bytes, type Infer, layout, mask64, u8, u16, u32, u64 } from "../../src/block/layout.ts";

/** At the start of a hosted sparse extent; all its offsets and sizes are in sectors. */
export const SparseHeader = layout("little", {
  /** "KDMV" */
  magic: u32,
  /** 1 to 3. */
  version: u32,
  /** `HeaderFlag` */
  flags: u32,
  /** What the extent shows. */
  capacity: u64,
  /** Sectors of a grain. */
  grainSize: u64,
  /** The embedded descriptor; 0: none. */
  descriptorOffset: u64,
  descriptorSize: u64,
  /** Entries of a grain table; 512. */
  tableEntries: u32,
  /** The redundant grain directory. */
  backupDirectoryOffset: u64,
  /** The grain directory; all ones: the header is to be read from the footer. */
  directoryOffset: u64,
  /** Where data may start. */
  grainOffset: mask64,
  uncleanShutdown: u8,
  /** "\n \r\n": shows that a transfer as text has broken the file. */
  lineEnds: bytes(4),
  /** `Compression` */
  compression: u16,
});

export type SparseHeaderRecord = Infer<typeof SparseHeader>;

/** As numbers of little-endian files. */
export const Magic = { Hosted: 0x564d444b, Cowd: 0x44574f43 } as const;

export const HeaderFlag = {
  /** The line ends are there. */
  LineEnds: 1,
  BackupDirectory: 1 << 1,
  /** Entries of 1 stand for grains of zeroes. */
  ZeroGrain: 1 << 2,
  Compressed: 1 << 16,
  /** Compressed grains and tables have markers. */
  Markers: 1 << 17,
} as const;

export const Compression = { None: 0, Deflate: 1 } as const;

/** All ones, as a number that has lost its low bits. */
export const DIRECTORY_AT_END = 2 ** 64;

/** At the start of a COWD extent, ESX's sparse format; in sectors. */
export const CowdHeader = layout("little", {
  magic: u32,
  version: u32,
  flags: u32,
  capacity: u32,
  grainSize: u32,
  directoryOffset: u32,
  directoryEntries: u32,
  nextFree: u32,
  cylinders: u32,
  heads: u32,
  sectors: u32,
});

/** Entries of each grain table of a COWD extent. */
export const COWD_TABLE_ENTRIES = 4096;

/** Before a compressed grain. */
export const GrainMarker = layout("little", {
  /** The grain's first sector within the extent. */
  sector: u64,
  /** Bytes of compressed data, which follows at once. */
  size: u32,
});

/** A sector of its own before tables and the footer, and at the end of a stream: `size` is 0. */
export const Marker = layout("little", {
  sectors: u64,
  size: u32,
  /** `MarkerType` */
  type: u32,
});

export const MarkerType = { EndOfStream: 0, Footer: 3 } as const;

/** At the start of a seSparse extent; offsets and sizes in sectors. */
export const SeConstHeader = layout("little", {
  magic: mask64,
  version: mask64,
  capacity: u64,
  grainSize: mask64,
  tableSize: mask64,
  flags: mask64,
  reserved1: mask64,
  reserved2: mask64,
  reserved3: mask64,
  reserved4: mask64,
  volatileHeaderOffset: u64,
  volatileHeaderSize: u64,
  journalHeaderOffset: u64,
  journalHeaderSize: u64,
  journalOffset: u64,
  journalSize: u64,
  directoryOffset: u64,
  directorySize: u64,
  tablesOffset: u64,
  tablesSize: u64,
  freeBitmapOffset: u64,
  freeBitmapSize: u64,
  backmapOffset: u64,
  backmapSize: u64,
  grainsOffset: u64,
  grainsSize: u64,
  padding: bytes(304),
});

export type SeConstRecord = Infer<typeof SeConstHeader>;

export const SeVolatileHeader = layout("little", {
  magic: mask64,
  freeTableNumber: mask64,
  nextTransaction: mask64,
  replayJournal: mask64,
  padding: bytes(480),
});

/** One magic each for both headers, and the only version and sizes that there are. */
export const Se = {
  ConstMagic: 0xcafebaben,
  VolatileMagic: 0xcafecafen,
  Version: 0x0000000200000001n,
  /** Sectors. */
  GrainSize: 8n,
  /** Sectors: 4096 entries of 8 bytes. */
  TableSize: 64n,
} as const;

/** Largest grain that is accepted, in sectors, and entries of a directory and of a table.  @qemu vmdk_add_extent */
export const MAX_GRAIN_SECTORS = 0x200000;
export const MAX_DIRECTORY_ENTRIES = 32 * 1024 * 1024;
export const MAX_TABLE_ENTRIES = 512;

/** Compressed grains are unpacked as a whole; those of real images have 64 KiB. */
export const MAX_COMPRESSED_GRAIN_BYTES = 16 * 1024 * 1024;
