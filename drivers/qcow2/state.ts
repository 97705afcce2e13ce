/** The state of an open qcow2 node, which all files of the driver share. */

import type { BlockChild } from "../../src/block/child.ts";
import type { BlockNode } from "../../src/block/node.ts";
import type { OpenEnvironment } from "../../src/block/open.ts";
import { alignUp } from "../../src/block/units.ts";
import type { MetadataKind } from "./corruption.ts";
import type { ImageCrypto } from "./crypto.ts";
import type { Allocations, Transfers } from "./in-flight.ts";
import { type BitmapsRecord, type CryptoHeaderRecord, Incompatible } from "./layout.ts";
import type { Mutex } from "./mutex.ts";
import type { TableCache } from "./table-cache.ts";

/** An internal snapshot, with everything of its entry that must be written back. */
export interface Snapshot {
  l1TableOffset: number;
  l1Size: number;
  readonly id: string;
  readonly name: string;
  /** As they stand in the file, where they need not be text. */
  readonly idBytes: Uint8Array;
  readonly nameBytes: Uint8Array;
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
  /** The numbers of 64 bits as they stand in the file, if one is too large to be true: they are written back so. */
  readonly exact?: {
    readonly l1TableOffset: bigint;
    readonly vmStateSize: bigint;
    readonly diskSize: bigint;
  };
}

/** A header extension that we do not know, kept to be written back. */
export interface UnknownExtension {
  readonly type: number;
  readonly data: Uint8Array;
}

export type CompressionType = "zlib" | "zstd";

/** Why clusters become free: decides whether the file is told.  @qemu enum qcow2_discard_type */
export type DiscardType = "never" | "always" | "request" | "snapshot" | "other";

/** The clusters (by index in the file) that hold L2 tables and refcount blocks. */
export interface MetadataIndex {
  readonly l2Tables: Set<number>;
  readonly refblocks: Set<number>;
  /** L2 tables of snapshots; undefined: not read. */
  inactiveL2Tables: ReadonlySet<number> | undefined;
}

/** The state of an open node, for what works on an image from outside its operations. */
export const stateOf = new WeakMap<BlockNode, Qcow2State>();

export interface Qcow2State {
  readonly node: BlockNode;
  readonly environment: OpenEnvironment;
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
  refcountBits: number;
  compressionType: CompressionType;

  incompatibleFeatures: bigint;
  compatibleFeatures: bigint;
  autoclearFeatures: bigint;
  headerLength: number;
  /** Header bytes that we do not know, kept to be written back. */
  unknownHeader: Uint8Array;
  unknownExtensions: UnknownExtension[];
  /** `CryptMethod`. */
  cryptMethod: number;
  /** The clusters with the LUKS header. */
  cryptoHeader: CryptoHeaderRecord | undefined;
  /** Undefined: guest data is stored as it is. */
  readonly crypto: ImageCrypto | undefined;
  /** The name in the data file extension. */
  dataFileName: string | undefined;
  /** Where the bitmap directory is, while the image's bitmaps are known to be in step with its data. */
  bitmaps: BitmapsRecord | undefined;

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
  /** How many the header says there are, in an image that was opened to be checked, until the check has read them. */
  unreadSnapshots: number | undefined;

  /** Exchanged where options change. */
  l2Cache: TableCache;
  refcountCache: TableCache;
  /** Held by whoever reads or changes metadata over an await; never while guest data is moved. */
  readonly lock: Mutex;
  readonly transfers: Transfers;
  readonly allocations: Allocations;

  /** `dataFile` is another file than `file`. */
  readonly hasDataFile: boolean;
  /** Host offsets of clusters are multiples of this and below `maxHostOffset`, so that all kinds of entries hold them. */
  readonly maxHostOffset: number;
  /** Where the search for free clusters goes on: invariant 4 of refcount.ts. */
  freeClusterIndex: number;
  /** Where the next compressed cluster may start, within a cluster that has room; 0: in a new one. */
  freeByteOffset: number;
  /** Clusters (by index) that the file may still refer to, or that transfers may still use, though their refcount is 0. */
  readonly freed: Set<number>;
  /** Host ranges that the file is to be told of once they can't be needed any more. */
  discards: { readonly offset: number; readonly bytes: number }[];
  /** Old refcount tables, to be freed when the change that replaced them is through. */
  readonly retiredTables: { readonly offset: number; readonly bytes: number }[];
  passDiscard: Readonly<Record<DiscardType, boolean>>;
  /** Refcounts are only right when the image is closed; meanwhile it is marked dirty. */
  useLazyRefcounts: boolean;
  /** What writes are kept from hitting. */
  overlapChecks: ReadonlySet<MetadataKind>;
  /** Forgets tables that nobody uses. */
  cleaning: NodeJS.Timeout | undefined;
  /** Ends when the last compressed cluster that was asked to be written has its host bytes. */
  compressTurn: Promise<void>;
  /** Decompressed clusters, newest last, by their L2 entry as a string. */
  readonly inflated: Map<string, Uint8Array>;
  /** Counts freed compressed clusters: what was read before may be out of date. */
  inflatedGeneration: number;
  /** Built by the first write that needs it; to be set undefined when the tables are exchanged as a whole. */
  metadataIndex: MetadataIndex | undefined;
  /** A corruption was met: every further request is refused. */
  isBroken: boolean;
  /** A corruption was met while reading only, and told once. */
  isCorruptionReported: boolean;
  /** The file has holes in allocated clusters; undefined: not looked at yet. */
  metadataPreallocated: boolean | undefined;
}

/** Refcounts in the file may be wrong: they are made anew if the image is not closed properly. */
export function isDirty(state: Qcow2State): boolean {
  return (state.incompatibleFeatures & Incompatible.Dirty) !== 0n;
}

/** Guest bytes that one L2 table covers. */
export function l2Coverage(state: Qcow2State): number {
  return state.clusterSize * state.l2Entries;
}

/** Guest offset where saved machine state starts.  @qemu qcow2_vm_state_offset */
export function vmStateOffset(state: Qcow2State): number {
  return alignUp(state.size, l2Coverage(state));
}
