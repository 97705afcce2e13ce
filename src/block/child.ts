/**
 * An edge of the graph: how a parent (a node or a backend) uses a child node. All I/O of a driver goes through
 * its edges, so that the child sees with which permissions.  @qemu BdrvChild
 */

import { type BlockStatus, blockStatus } from "./block-status.ts";
import type { HostRange } from "./copy-range.ts";
import type { Coroutine } from "./coroutine.ts";
import type { DebugOps, Prealloc, ReqFlags } from "./driver.ts";
import * as io from "./io.ts";
import type { IoVector } from "./iov.ts";
import { getLength, truncate } from "./length.ts";
import type { BlockNode } from "./node.ts";

/** What a child is to its parent; an edge may have several.  @qemu BdrvChildRole */
export interface ChildRole {
  /** Holds guest data. */
  readonly data?: boolean;
  /** Holds the parent's own tables. */
  readonly metadata?: boolean;
  /** The parent is a filter and shows this child's content. */
  readonly filtered?: boolean;
  /** The backing file: read where the parent has nothing of its own. */
  readonly cow?: boolean;
  /** The one whose filename is the parent's. */
  readonly primary?: boolean;
  /** The parent's other children name it: the options that open the parent again do without it. */
  readonly implied?: boolean;
  /**
   * What the driver needs beyond that, or shares less: changes what follows from the rest. `parents` is what the
   * driver's own parents use and share.  @qemu bdrv_child_perm
   */
  readonly perm?: (pair: PermPair, parents: PermPair) => PermPair;
}

/** Permissions, a mask.  @qemu BLK_PERM_* */
export const Perm = {
  None: 0,
  /** Reads give a state that makes sense to the guest. */
  ConsistentRead: 1 << 0,
  Write: 1 << 1,
  /** Writes that leave what the guest sees as it is. */
  WriteUnchanged: 1 << 2,
  Resize: 1 << 3,
  All: 0b1111,
} as const;

const PERM_NAMES: readonly (readonly [number, string])[] = [
  [Perm.ConsistentRead, "consistent read"],
  [Perm.Write, "write"],
  [Perm.WriteUnchanged, "write unchanged"],
  [Perm.Resize, "resize"],
];

/** @qemu bdrv_perm_names */
export function permNames(mask: number): string {
  return PERM_NAMES.filter(([bit]) => mask & bit)
    .map(([, name]) => name)
    .join(", ");
}

/** Masks of `Perm`: what this edge uses, and what it lets other edges to the same node use. */
export interface PermPair {
  readonly used: number;
  readonly shared: number;
}

/** Whoever may hold an edge: a node or a backend. */
export interface ChildParent {
  /** For messages: "node 'x'", "block device 'y'".  */
  describe(): string;
  /** No new requests from here on; called for each drain of the child. */
  drainedBegin(): void;
  drainedEnd(): void;
  /** Requests that this parent has under way through the edge. */
  readonly requestsInFlight: number;
}

export class BlockChild {
  /** The key under which the parent has it: "file", "backing", "data-file", or "root" for a backend. */
  readonly name: string;
  readonly role: ChildRole;
  readonly parent: ChildParent;
  /** Changed only under the graph write lock, by `graph.ts`. */
  node: BlockNode;
  /** Changed only by `graph.ts`. */
  perm: PermPair;

  constructor(name: string, role: ChildRole, parent: ChildParent, node: BlockNode, perm: PermPair) {
    this.name = name;
    this.role = role;
    this.parent = parent;
    this.node = node;
    this.perm = perm;
  }

  /** Fills `iov` from `offset`; past the end of the node it reads zeroes.  @qemu bdrv_co_preadv */
  pread(co: Coroutine<"read">, offset: number, iov: IoVector, flags: ReqFlags = 0): Promise<void> {
    return io.pread(co, this, offset, iov, flags);
  }

  /** `bytes` from `offset`, in a new buffer. */
  async preadBytes(co: Coroutine<"read">, offset: number, bytes: number): Promise<Uint8Array> {
    const buffer = new Uint8Array(bytes);
    await io.pread(co, this, offset, buffer, 0);
    return buffer;
  }

  /** @qemu bdrv_co_pwritev */
  pwrite(co: Coroutine<"read">, offset: number, iov: IoVector, flags: ReqFlags = 0): Promise<void> {
    return io.pwrite(co, this, offset, iov, flags);
  }

  /** Like a write of a host file's bytes; ENOTSUP where the kernel can't copy them.  @qemu bdrv_co_copy_range_to */
  copyFrom(co: Coroutine<"read">, offset: number, range: HostRange): Promise<void> {
    return io.copyFrom(co, this, offset, range);
  }

  /** @qemu bdrv_co_pwrite_zeroes */
  pwriteZeroes(co: Coroutine<"read">, offset: number, bytes: number, flags: ReqFlags = 0): Promise<void> {
    return io.pwriteZeroes(co, this, offset, bytes, flags);
  }

  /** @qemu bdrv_co_pdiscard */
  pdiscard(co: Coroutine<"read">, offset: number, bytes: number): Promise<void> {
    return io.pdiscard(co, this, offset, bytes);
  }

  /** @qemu bdrv_co_flush */
  flush(co: Coroutine<"read">): Promise<void> {
    return io.flush(co, this.node);
  }

  /** @qemu bdrv_co_truncate */
  truncate(
    co: Coroutine<"read">,
    bytes: number,
    exact: boolean,
    prealloc: Prealloc = "off",
    flags: ReqFlags = 0,
  ): Promise<void> {
    return truncate(co, this, bytes, exact, prealloc, flags);
  }

  /** @qemu bdrv_co_getlength */
  getLength(co: Coroutine<"read">): Promise<number> {
    return getLength(co, this.node);
  }

  /** Of this node alone, not of its backing chain.  @qemu bdrv_co_block_status */
  blockStatus(co: Coroutine<"read">, wantZero: boolean, offset: number, bytes: number): Promise<BlockStatus> {
    return blockStatus(co, this.node, wantZero, offset, bytes);
  }

  /** Whether a write with WriteCompressed can work.  @qemu bdrv_supports_compressed_writes */
  get canCompress(): boolean {
    return this.node.canCompress;
  }

  /** Set where somebody listens to events: blkdebug.  @qemu BLKDBG_EVENT */
  get debug(): DebugOps | undefined {
    return this.node.ops.debug;
  }

  get formatName(): string {
    return this.node.driver.formatName;
  }
}
