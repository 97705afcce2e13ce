/**
 * The records of a UDIF disk image: a trailer ("koly") at the end of the file; tables of chunks ("mish"), which lie in a
 * resource fork or, in base64, in a property list. Big-endian. Source: J. Reverse's "Demystifying the DMG File Format".
 */

import { bytes, layout, u32, u64 } from "../../src/block/layout.ts";

/** The trailer. */
export const Koly = layout("big", {
  magic: u32,
  version: u32,
  headerSize: u32,
  flags: u32,
  runningDataForkOffset: u64,
  /** Added to the offsets of all chunks. */
  dataForkOffset: u64,
  dataForkLength: u64,
  resourceForkOffset: u64,
  /** 0: the tables are in the property list. */
  resourceForkLength: u64,
  segment: bytes(24),
  dataChecksum: bytes(136),
  plistOffset: u64,
  plistLength: u64,
  reserved: bytes(120),
  checksum: bytes(136),
  imageVariant: u32,
  /** Virtual size. */
  sectorCount: u64,
  end: bytes(12),
});

export const KOLY_MAGIC = 0x6b6f6c79;

/** A table of chunks, of one partition. Its entries follow. */
export const Mish = layout("big", {
  magic: u32,
  version: u32,
  /** Added to the sectors of its chunks. */
  firstSector: u64,
  sectorCount: u64,
  /** Added to the offsets of its chunks. */
  dataOffset: u64,
  rest: bytes(172),
});

export const MISH_MAGIC = 0x6d697368;

export const Chunk = layout("big", {
  /** `ChunkType`. */
  type: u32,
  comment: u32,
  sector: u64,
  sectors: u64,
  /** In the file, in bytes. */
  offset: u64,
  /** Bytes in the file. */
  length: u64,
});

export const ChunkType = {
  Zero: 0,
  Raw: 1,
  /** Nobody has ever written there: zeroes too. */
  Ignore: 2,
  Adc: 0x80000004,
  Zlib: 0x80000005,
  Bzip2: 0x80000006,
  Lzfse: 0x80000007,
  Lzma: 0x80000008,
  Comment: 0x7ffffffe,
  End: 0xffffffff,
} as const;
