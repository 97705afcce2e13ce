/**
 * The records of an expandable Parallels image: a header, a table of cluster numbers (BAT), clusters. Little-endian.
 * Source: QEMU's docs/interop/parallels.txt.
 */

import { bytes, type Infer, layout, mask64, u32, u64 } from "../../src/block/layout.ts";

/** At the start of the file; the BAT follows. */
export const Header = layout("little", {
  /** `OLD_MAGIC` or `EXT_MAGIC`, 16 characters. */
  magic: bytes(16),
  /** 2. */
  version: u32,
  /** The geometry is not used, but for `tracks`. */
  heads: u32,
  cylinders: u32,
  /** Sectors of a cluster. */
  tracks: u32,
  batEntries: u32,
  /** Virtual size in sectors; with the old magic only the low half counts. */
  sectors: mask64,
  /** `IN_USE` while somebody writes. */
  inUse: u32,
  /** Sector of the first cluster; 0: right behind the BAT. */
  dataOffset: u32,
  flags: u32,
  /** Sector of the format extension; 0: there is none. */
  extensionOffset: u64,
});

export type HeaderRecord = Infer<typeof Header>;

/** BAT entries are sectors of the file. */
export const OLD_MAGIC = "WithoutFreeSpace";
/** BAT entries are clusters of the file. */
export const EXT_MAGIC = "WithouFreSpacExt";

export const VERSION = 2;
export const IN_USE = 0x746f6e59;

export const BAT_OFFSET = Header.size;
export const BAT_ENTRY_BYTES = 4;

/** One cluster; the features follow, up to one whose magic is 0. */
export const Extension = layout("little", {
  magic: mask64,
  /** MD5 of all that follows in the cluster. */
  checksum: bytes(16),
});

export const EXTENSION_MAGIC = 0xab234cef23dcea87n;

/** Before each feature, whose data is padded to 8 bytes. */
export const Feature = layout("little", {
  magic: mask64,
  flags: mask64,
  /** Bytes. */
  dataSize: u32,
  unused: u32,
});

export const BITMAP_MAGIC = 0x20385fae252cb34an;

/** The bitmap feature; as many entries of 8 bytes as `l1Entries` says follow. */
export const Bitmap = layout("little", {
  /** Of the disk, in sectors. */
  sectors: mask64,
  id: bytes(16),
  /** In sectors. */
  granularity: u32,
  l1Entries: u32,
});

/** An entry is the sector of a cluster of bits, or one of these for a cluster that is all the same. */
export const ALL_ZEROES = 0;
export const ALL_ONES = 1;
