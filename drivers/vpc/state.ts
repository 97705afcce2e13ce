/**
 * What an open VHD is.
 *
 * Invariants of an image with blocks:
 * 1. A block's place never changes and is never given up: who has found an entry may use it without the lock.
 * 2. An entry is set under the lock, and written only when the file is stable with the block's bitmap and the footer
 *    behind it: a power cut leaves at most a block that nobody refers to, whose bytes are zeroed before it is used.
 * 3. In a differencing image a sector's bit is written only when its data is on the disk.
 */

import type { BlockChild } from "../../src/block/child.ts";
import type { BlockNode } from "../../src/block/node.ts";
import type { PagedTable } from "../paged-table.ts";
import type { Mutex } from "../qcow2/mutex.ts";
import type { TableCache } from "../qcow2/table-cache.ts";
import type { Footer } from "./layout.ts";

export interface VpcState {
  readonly node: BlockNode;
  readonly file: BlockChild;
  readonly footer: Footer;
  /** Undefined: a fixed image, whose content lies in the file as it is. */
  readonly blocks: Blocks | undefined;
}

export interface Blocks {
  /** In bytes, without the bitmap; a power of two. */
  readonly blockSize: number;
  /** In bytes, whole sectors: the bitmap lies before the block's data. */
  readonly bitmapBytes: number;
  /** Each entry is the sector where the bitmap lies. */
  readonly table: PagedTable;
  /** As it lies at the end of the file and at its start. */
  readonly footerBytes: Uint8Array;
  readonly lock: Mutex;
  /** Where the next block goes, bitmap first: host offset. */
  freeOffset: number;
  /** Up to here the file may hold bytes that are not zero. */
  usedEnd: number;
  /** Host offset of the bitmap that was set last: sectors of all of its block count as written.  @qemu last_bitmap_offset */
  lastBitmap: number;
  /** Undefined: all that a block holds is the image's. */
  readonly differencing: Differencing | undefined;
}

export interface Differencing {
  /** Of the parent's footer. */
  readonly parentUniqueId: Uint8Array;
  parentChecked: boolean;
  /** The bitmaps of blocks, by host offset; used under the lock but for `peek`. */
  readonly bitmaps: TableCache;
  /** XenServer's map: a bit for each block whose sectors are all here. */
  readonly batmap: Uint8Array | undefined;
}

/** So that a child can ask whether its parent is the one it was made of. */
export const stateOf = new WeakMap<BlockNode, VpcState>();
