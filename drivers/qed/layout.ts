/** The header of a QED file, and what makes its numbers good ones.  Source: QEMU's docs/interop/qed_spec.txt. */

import { type Infer, layout, mask64, u32, u64 } from "../../src/block/layout.ts";
import { isPowerOfTwo, KiB, MiB, SECTOR_SIZE } from "../../src/block/units.ts";

/** "QED\0" */
export const QED_MAGIC = 0x00444551;

/** Numbers are little-endian. */
export const Header = layout("little", {
  magic: u32,
  /** In bytes. */
  clusterSize: u32,
  /** Of the L1 table and of each L2 table, in clusters. */
  tableSize: u32,
  /** In clusters. */
  headerSize: u32,
  /** `Feature`: an opener must know them all. */
  features: mask64,
  compatFeatures: mask64,
  /** Bits that whoever does not know them must clear. */
  autoclearFeatures: mask64,
  /** In bytes, as are those that follow. */
  l1TableOffset: u64,
  imageSize: u64,
  backingFilenameOffset: u32,
  backingFilenameSize: u32,
});

export type HeaderRecord = Infer<typeof Header>;

export const Feature = {
  /** The image has a backing file. */
  BackingFile: 1n << 0n,
  /** Tables may be out of step with the file. */
  NeedCheck: 1n << 1n,
  /** The backing file is raw: its content is not to be probed. */
  BackingFormatNoProbe: 1n << 2n,
} as const;

export const KNOWN_FEATURES = Feature.BackingFile | Feature.NeedCheck | Feature.BackingFormatNoProbe;

export const MIN_CLUSTER_BYTES = 4 * KiB;
export const MAX_CLUSTER_BYTES = 64 * MiB;
export const DEFAULT_CLUSTER_BYTES = 64 * KiB;
export const MAX_TABLE_CLUSTERS = 16;
export const DEFAULT_TABLE_CLUSTERS = 4;

/** In an L2 table: reads as zeroes. 0: is the backing file's. Else it is the offset of a cluster. */
export const ZERO_CLUSTER = 1;

/** Bytes of an entry of both kinds of tables. */
export const ENTRY_BYTES = 8;

export function isClusterSize(bytes: number): boolean {
  return bytes >= MIN_CLUSTER_BYTES && bytes <= MAX_CLUSTER_BYTES && isPowerOfTwo(bytes);
}

export function isTableSize(clusters: number): boolean {
  return clusters >= 1 && clusters <= MAX_TABLE_CLUSTERS && isPowerOfTwo(clusters);
}

/**
 * What two levels of tables can name: a power of two, and 0 from 2^64 on, for QEMU counts with 64 bits and so takes no
 * size for such tables.  @qemu qed_max_image_size
 */
export function maxImageBytes(clusterSize: number, tableSize: number): number {
  const entries = (tableSize * clusterSize) / ENTRY_BYTES;
  const bytes = entries * entries * clusterSize;
  return bytes >= 2 ** 64 ? 0 : bytes;
}

/** @qemu qed_is_image_size_valid */
export function isImageSize(bytes: number, clusterSize: number, tableSize: number): boolean {
  return bytes % SECTOR_SIZE === 0 && bytes <= maxImageBytes(clusterSize, tableSize);
}
