/** The state of an open VMDK node: the extents that its content lies in, one after the other. */

import type { BlockChild } from "../../src/block/child.ts";
import type { BlockNode } from "../../src/block/node.ts";
import type { OpenEnvironment } from "../../src/block/open.ts";
import type { Mutex } from "../qcow2/mutex.ts";
import type { ExtentLine } from "./descriptor.ts";
import type { GrainTables } from "./grain-tables.ts";

interface ExtentCommon {
  /** Guest bytes: [start, end). */
  readonly start: number;
  readonly end: number;
  readonly access: ExtentLine["access"];
  /** As the descriptor has it; "" where there is none of its own. */
  readonly type: string;
}

/** The guest's bytes are those of the file from `hostOffset` on. */
export interface FlatExtent extends ExtentCommon {
  readonly kind: "flat";
  readonly file: BlockChild;
  readonly hostOffset: number;
}

/** Nothing but zeroes. */
export interface ZeroExtent extends ExtentCommon {
  readonly kind: "zero";
}

/** Grains, which tables find.  @qemu VmdkExtent */
export interface SparseExtent extends ExtentCommon {
  readonly kind: "sparse";
  readonly file: BlockChild;
  readonly grainBytes: number;
  readonly tables: GrainTables;
  readonly isCompressed: boolean;
  /** Compressed grains have markers. */
  readonly hasMarkers: boolean;
  /** Grains can be marked as zeroes. */
  readonly hasZeroGrains: boolean;
  /** Where the next new grain comes. */
  nextHostOffset: number;
  /** The header that a stream has at its end, which is to stand at the start before anything comes behind that end. */
  endHeader: Uint8Array | undefined;
}

export type Extent = FlatExtent | ZeroExtent | SparseExtent;

export interface VmdkState {
  readonly node: BlockNode;
  readonly environment: OpenEnvironment;
  /** Has the descriptor. */
  readonly file: BlockChild;
  /** In the order of the guest's bytes, with no gaps. */
  readonly extents: readonly Extent[];
  readonly createType: string;
  readonly descriptorOffset: number;
  /** Bytes of the part of the descriptor that has the identities. */
  readonly descriptorWindow: number;
  cid: number;
  readonly parentCid: number;
  /** The backing file is known to be the one that is meant. */
  isParentChecked: boolean;
  /** Something was written since the image was opened. */
  isCidNew: boolean;
  /** Why it can't be written; undefined: it can. */
  readonly readOnlyReason: string | undefined;
  /** Ends when those who were called before have the lock, or need it no more: for those who pack first. */
  turn: Promise<void>;
  /** Held while grains are allocated. */
  readonly lock: Mutex;
  /** The last compressed grain that was unpacked for a part of it. */
  unpacked:
    | { readonly extent: SparseExtent; readonly grain: number; readonly content: Uint8Array }
    | undefined;
}

/** The state of an open node, for an overlay that asks for its identity. */
export const stateOf = new WeakMap<BlockNode, VmdkState>();

/** The extent that has the guest's byte at `offset`, which is below the end. */
export function extentAt({ extents }: VmdkState, offset: number): Extent {
  let low = 0;
  let high = extents.length - 1;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if (offset < (extents[middle] as Extent).end) high = middle;
    else low = middle + 1;
  }
  return extents[low] as Extent;
}
