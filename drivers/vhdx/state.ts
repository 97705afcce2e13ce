/**
 * What an open VHDX is.
 *
 * Invariants:
 * 1. A block's place never changes and is never given up: who has found an entry may use it without the lock.
 * 2. An entry is changed under the lock, by way of the log: the data and the log's entry are stable before a header names
 *    the log, the header before the table is touched, the table before a header says that the log is empty again.
 * 3. At every moment one of both headers is stable and whole; where they differ, the other one is brought up at a flush.
 */

import type { BlockChild } from "../../src/block/child.ts";
import type { BlockNode } from "../../src/block/node.ts";
import type { OpenEnvironment } from "../../src/block/open.ts";
import type { PagedTable } from "../paged-table.ts";
import type { Mutex } from "../qcow2/mutex.ts";
import type { TableCache } from "../qcow2/table-cache.ts";
import type { Header } from "./layout.ts";

/** A part of the file that has its use. */
export interface Region {
  readonly offset: number;
  readonly bytes: number;
}

/** What the metadata say. */
export interface Geometry {
  /** Bytes of a payload block, a power of two. */
  readonly blockSize: number;
  /** Bytes of the disk. */
  readonly diskSize: number;
  /** 512 or 4096: the least that is read or written. */
  readonly sectorSize: number;
  /** Payload blocks between two blocks of bits. */
  readonly chunkRatio: number;
  readonly blocks: number;
  /** Entries of the table, those of blocks of bits among them. */
  readonly entries: number;
}

export interface VhdxState {
  readonly node: BlockNode;
  readonly file: BlockChild;
  readonly environment: OpenEnvironment;
  readonly geometry: Geometry;
  headers: Headers;
  readonly log: Region;
  /** The log, the table and the metadata, those that were found last first. */
  readonly regions: readonly Region[];
  readonly batOffset: number;
  readonly bat: PagedTable;
  readonly lock: Mutex;
  /** Where in the log the next entry goes. */
  logPosition: number;
  logSequence: bigint;
  /** Set when the image has been marked as changed since it was opened. */
  isMarked: boolean;
  readonly wasReplayed: boolean;
  /** Some block had its place when the image was opened. */
  hasBlocks: boolean;
  readonly parent: Parent | undefined;
}

export interface Headers {
  /** The one in force. */
  readonly current: Header;
  /** Which of both places it has. */
  readonly slot: 0 | 1;
  /** The other one may not be the same. */
  readonly differ: boolean;
}

export interface Parent {
  /** `dataWriteGuid` of the parent, in hexadecimal digits; there may be two that will do. */
  readonly linkage: readonly string[];
  isChecked: boolean;
  /** Pieces of blocks of bits by host offset; used under the lock but for `peek`. */
  readonly bitmaps: TableCache;
}

/** So that a child can ask whether its parent is the one it was made of. */
export const stateOf = new WeakMap<BlockNode, VhdxState>();
