/** The state of an open qcow2 node, which all files of the driver share. */

import type { BlockChild } from "../../src/block/child.ts";
import type { BlockNode } from "../../src/block/node.ts";
import type { Mutex } from "./mutex.ts";
import type { TableCache } from "./table-cache.ts";

/** An internal snapshot, with everything of its entry that must be written back. */
export interface Snapshot {
  l1TableOffset: number;
  l1Size: number;
  id: string;
  name: string;
  dateSec: number;
  dateNsec: number;
  vmClockNsec: bigint;
  vmStateSize: number;
  /** Guest bytes when it was taken. */
  diskSize: number;
  /** All ones: none. */
  icount: bigint;
  /** What is behind the extra data that we know. */
  unknownExtra: Uint8Array;
}

/** A header extension that we do not know, kept to be written back. */
export interface UnknownExtension {
  readonly type: number;
  readonly data: Uint8Array;
}

export type CompressionType = "zlib" | "zstd";

export interface Qcow2State {
  readonly node: BlockNode;
  /** Metadata, and data unless there is an external data file. */
  readonly file: BlockChild;
  /** Where guest data lies: `file` itself, or the external data file. */
  readonly dataFile: BlockChild;

  version: number;
  readonly clusterBits: number;
  readonly clusterSize: number;
  /** Bytes of an L2 entry: 16 with extended L2, else 8. */
  readonly l2EntryBytes: number;
  /** Entries of an L2 table. */
  readonly l2Entries: number;
  readonly extendedL2: boolean;
  /** 32 with extended L2, else 1. */
  readonly subclusters: number;
  readonly subclusterSize: number;
  readonly refcountBits: number;
  readonly compressionType: CompressionType;

  incompatibleFeatures: bigint;
  compatibleFeatures: bigint;
  autoclearFeatures: bigint;
  headerLength: number;
  /** Header bytes that we do not know, kept to be written back. */
  unknownHeader: Uint8Array;
  unknownExtensions: UnknownExtension[];
  /** The name in the data file extension. */
  dataFileName: string | undefined;

  /** Virtual size in bytes. */
  size: number;
  l1TableOffset: number;
  /** The active L1 table as read: raw 64-bit entries, two u32 each, big-endian in the file. */
  l1Table: DataView<ArrayBuffer>;
  /** Entries in use of `l1Table`. */
  l1Size: number;

  refcountTableOffset: number;
  refcountTable: DataView<ArrayBuffer>;
  /** Clusters that the refcount table takes. */
  refcountTableClusters: number;

  snapshotsOffset: number;
  snapshotTableBytes: number;
  snapshots: Snapshot[];

  readonly l2Cache: TableCache;
  readonly refcountCache: TableCache;
  /** Held by whoever reads or changes metadata over an await; never while guest data is moved. */
  readonly lock: Mutex;
}
