/** The header of a qcow file, version 1.  Source: the QCOW image format of QEMU 0.8, as its images have it. */

import { type Infer, layout, u8, u16, u32, u64 } from "../../src/block/layout.ts";

/** "QFI\xfb" */
export const QCOW_MAGIC = 0x514649fb;
export const QCOW_VERSION = 1;

/** Numbers are big-endian. */
export const Header = layout("big", {
  magic: u32,
  version: u32,
  /** Where the name of the backing file is; 0: there is none. */
  backingFileOffset: u64,
  backingFileSize: u32,
  /** Not used. */
  mtime: u32,
  /** Virtual size in bytes. */
  size: u64,
  /** Cluster size is 1 << this: 9 to 16. */
  clusterBits: u8,
  /** An L2 table has 1 << this entries: 6 to 13. */
  l2Bits: u8,
  padding: u16,
  /** 0 none, 1 AES. */
  cryptMethod: u32,
  l1TableOffset: u64,
});

export type HeaderRecord = Infer<typeof Header>;

export const CryptMethod = { None: 0, Aes: 1 } as const;

/** In the upper half of an L2 entry. What is below it up to the offset is the length in bytes. */
export const COMPRESSED_HIGH = 0x80000000;

/** Bytes of an entry of both kinds of tables. */
export const ENTRY_BYTES = 8;

export function l1EntriesFor(
  size: number,
  { clusterBits, l2Bits }: Pick<HeaderRecord, "clusterBits" | "l2Bits">,
): number {
  return Math.ceil(size / 2 ** (clusterBits + l2Bits));
}
