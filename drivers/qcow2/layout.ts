/** The records of a qcow2 file.  Source: qcow2.txt ("The QCOW2 image format", version 2 and 3), sections by their titles. */

import { bytes, type Infer, layout, mask64, u8, u16, u32, u64 } from "../../src/block/layout.ts";

/** "QFI\xfb" */
export const QCOW2_MAGIC = 0x514649fb;

/** Section "Header", bytes 0 to 71: all there is in version 2. */
export const HeaderV2 = layout("big", {
  magic: u32,
  /** 2 or 3. */
  version: u32,
  /** Offset into the file of the backing file name, which is not null-terminated; 0: none. */
  backingFileOffset: u64,
  /** Bytes of that name: at most 1023. */
  backingFileSize: u32,
  /** Cluster size is 1 << this: 9 to 21. */
  clusterBits: u32,
  /** Virtual size in bytes. */
  size: u64,
  /** 0 none, 1 AES, 2 LUKS. */
  cryptMethod: u32,
  /** Entries of the active L1 table. */
  l1Size: u32,
  /** Cluster-aligned. */
  l1TableOffset: u64,
  /** Cluster-aligned. */
  refcountTableOffset: u64,
  refcountTableClusters: u32,
  nbSnapshots: u32,
  /** Cluster-aligned. */
  snapshotsOffset: u64,
});

/** Bytes 72 to 103, in version 3. */
export const HeaderV3 = layout("big", {
  /** Bits an opener must know: `Incompatible`. */
  incompatibleFeatures: mask64,
  compatibleFeatures: mask64,
  autoclearFeatures: mask64,
  /** Refcounts are 1 << this bits wide: 0 to 6. */
  refcountOrder: u32,
  /** Bytes of the header: 104 or more, a multiple of 8. Extensions start there. */
  headerLength: u32,
});

/** Byte 104, where headerLength is over 104. */
export const HeaderAdditional = layout("big", {
  /** 0 zlib (deflate), 1 zstd. */
  compressionType: u8,
  padding: bytes(7),
});

/** Section "Header extensions"; data follows, padded to a multiple of 8. */
export const ExtensionHeader = layout("big", { type: u32, length: u32 });

export const ExtensionType = {
  End: 0,
  BackingFormat: 0xe2792aca,
  FeatureNames: 0x6803f857,
  Bitmaps: 0x23852875,
  CryptoHeader: 0x0537be77,
  DataFile: 0x44415441,
} as const;

/** Section "Feature name table". */
export const FeatureName = layout("big", {
  /** 0 incompatible, 1 compatible, 2 autoclear. */
  type: u8,
  bit: u8,
  /** Padded with zeroes. */
  name: bytes(46),
});

/** Section "Full disk encryption header pointer". */
export const CryptoHeader = layout("big", {
  /** Where the LUKS header and its key slots are; cluster-aligned. */
  offset: u64,
  /** Bytes of them. */
  length: u64,
});

export type CryptoHeaderRecord = Infer<typeof CryptoHeader>;

/** The header's cryptMethod. */
export const CryptMethod = { None: 0, Aes: 1, Luks: 2 } as const;

/** Section "Bitmaps extension". */
export const BitmapsExtension = layout("big", {
  nbBitmaps: u32,
  reserved: u32,
  /** Bytes of the bitmap directory. */
  directorySize: u64,
  /** Cluster-aligned. */
  directoryOffset: u64,
});

/** Section "Bitmap directory": the fixed part of an entry; extra data and name follow, padded to a multiple of 8. */
export const BitmapDirectoryEntry = layout("big", {
  /** Cluster-aligned. */
  tableOffset: u64,
  /** Entries of the bitmap table. */
  tableSize: u32,
  /** `BitmapFlag`. */
  flags: u32,
  /** 1: dirty tracking bitmap. */
  type: u8,
  granularityBits: u8,
  nameSize: u16,
  extraDataSize: u32,
});

export const BitmapFlag = {
  /** Was not saved: not to be relied on. */
  InUse: 1,
  /** Enabled: tracks all changes from when the image is opened for writing. */
  Auto: 2,
} as const;

export const Incompatible = {
  Dirty: 1n << 0n,
  Corrupt: 1n << 1n,
  DataFile: 1n << 2n,
  CompressionType: 1n << 3n,
  ExtendedL2: 1n << 4n,
} as const;

export const Compatible = { LazyRefcounts: 1n << 0n } as const;

export const Autoclear = { Bitmaps: 1n << 0n, DataFileRaw: 1n << 1n } as const;

/** Section "Snapshots": the fixed part of an entry; extra data, id and name follow, padded to a multiple of 8. */
export const SnapshotHeader = layout("big", {
  l1TableOffset: mask64,
  l1Size: u32,
  idSize: u16,
  nameSize: u16,
  dateSec: u32,
  dateNsec: u32,
  vmClockNsec: mask64,
  vmStateSize: u32,
  extraDataSize: u32,
});

/**
 * The extra data of a snapshot, as far as it is known: version 3 wants the first 16 bytes. Nothing checks the numbers
 * before they are used, and what makes no sense is written back as it is.
 */
export const SnapshotExtra = layout("big", {
  vmStateSizeLarge: mask64,
  diskSize: mask64,
  icount: mask64,
});

export type HeaderV2Record = Infer<typeof HeaderV2>;
export type HeaderV3Record = Infer<typeof HeaderV3>;
export type BitmapsRecord = Infer<typeof BitmapsExtension>;

/** Largest tables that are accepted.  @qemu QCOW_MAX_L1_SIZE, QCOW_MAX_REFTABLE_SIZE, QCOW_MAX_SNAPSHOTS */
export const MAX_L1_BYTES = 32 * 1024 * 1024;
export const MAX_REFCOUNT_TABLE_BYTES = 8 * 1024 * 1024;
export const MAX_SNAPSHOTS = 65536;
export const MAX_SNAPSHOT_EXTRA_BYTES = 1024;
export const MAX_SNAPSHOT_TABLE_BYTES = 1024 * MAX_SNAPSHOTS;
export const MIN_CLUSTER_BITS = 9;
export const MAX_CLUSTER_BITS = 21;
export const MAX_BACKING_NAME_BYTES = 1023;
/** @qemu QCOW2_MAX_BITMAPS, QCOW2_MAX_BITMAP_DIRECTORY_SIZE */
export const MAX_BITMAPS = 65535;
export const MAX_BITMAP_DIRECTORY_BYTES = 1024 * MAX_BITMAPS;
