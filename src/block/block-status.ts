/** What a driver answers about a range, and the answer for a node and its chain.  @qemu bdrv_block_status */

import type { Coroutine } from "./coroutine.ts";
import { BlockError } from "./errors.ts";
import { getLength } from "./length.ts";
import type { BlockNode } from "./node.ts";
import { alignDown, alignUp } from "./units.ts";

export interface BlockStatus {
  /** How far the answer holds, from the asked offset. */
  readonly bytes: number;
  /** The content may differ from zero. */
  readonly data: boolean;
  /** The content reads as zeroes. */
  readonly zero: boolean;
  /** The content is determined by this node, not by its backing file. */
  readonly allocated: boolean;
  /** Stored compressed. */
  readonly compressed?: boolean;
  /** Where the bytes lie, plain, in `file`: host offset of the first one. */
  readonly offset?: number;
  readonly file?: BlockNode;
  /** Ask `file` at `offset` instead: it knows better.  @qemu BDRV_BLOCK_RAW */
  readonly raw?: boolean;
  /** `file` may know of zeroes in here that this node does not.  @qemu BDRV_BLOCK_RECURSE */
  readonly recurse?: boolean;
  /** The range reaches the end of the node. */
  readonly eof?: boolean;
}

/** What is found without a driver's answer: all of it data. */
function unknownStatus(node: BlockNode, offset: number, bytes: number): BlockStatus {
  const plain = { bytes, data: true, zero: false, allocated: true };
  return node.driver.kind === "protocol" ? { ...plain, offset, file: node } : plain;
}

/**
 * The status of [offset, offset + n) with 0 < n <= bytes, of this node without its backing file. `wantZero`: zeroes
 * in the layers below are looked for too. Past the end: `eof`, 0 bytes.  @qemu bdrv_co_block_status
 */
export async function blockStatus(
  co: Coroutine<"read">,
  node: BlockNode,
  wantZero: boolean,
  offset: number,
  bytes: number,
): Promise<BlockStatus> {
  const length = await getLength(co, node);
  if (offset >= length) return { bytes: 0, data: false, zero: true, allocated: false, eof: true };
  if (bytes === 0) return { bytes: 0, data: false, zero: false, allocated: false };
  const asked = Math.min(bytes, length - offset);
  const answer = await driverStatus(co, node, wantZero, offset, asked);
  let status = answer;
  if (answer.raw && answer.file) {
    status = await blockStatus(co, answer.file, wantZero, answer.offset as number, answer.bytes);
  } else if (node.filtered && !node.ops.blockStatus) {
    status = await blockStatus(co, node.filtered.node, wantZero, offset, answer.bytes);
  } else {
    status = await withBackingZeroes(co, node, wantZero, offset, answer);
    if (wantZero && status.recurse && status.data && !status.zero && status.offset !== undefined)
      status = await withZeroesBelow(co, status);
  }
  if (status.bytes === 0)
    status = { ...status, bytes: answer.bytes, zero: true, data: false, allocated: answer.allocated };
  const eof = offset + status.bytes === length;
  return eof === (status.eof ?? false) ? status : { ...status, eof };
}

/** Asks the driver on its own alignment, and cuts the answer to what was asked. */
async function driverStatus(
  co: Coroutine<"read">,
  node: BlockNode,
  wantZero: boolean,
  offset: number,
  bytes: number,
): Promise<BlockStatus> {
  if (!node.ops.blockStatus) return unknownStatus(node, offset, bytes);
  const alignment = node.limits.requestAlignment;
  const start = alignDown(offset, alignment);
  const answer = await node.ops.blockStatus(co, wantZero, start, alignUp(offset + bytes, alignment) - start);
  const skipped = offset - start;
  if (answer.bytes <= skipped)
    throw new BlockError(
      "EIO",
      `driver '${node.driver.formatName}' gave no block status at offset ${offset}`,
    );
  return {
    ...answer,
    bytes: Math.min(answer.bytes - skipped, bytes),
    ...(answer.offset !== undefined && { offset: answer.offset + skipped }),
  };
}

/** What this node leaves open reads as zeroes where there is no backing file, or behind the end of a shorter one. */
async function withBackingZeroes(
  co: Coroutine<"read">,
  node: BlockNode,
  wantZero: boolean,
  offset: number,
  status: BlockStatus,
): Promise<BlockStatus> {
  if (status.data || status.zero) return status.allocated ? status : { ...status, allocated: true };
  if (status.allocated || node.driver.kind !== "format" || !node.driver.supportsBacking) return status;
  if (!node.cow) return { ...status, zero: true };
  if (!wantZero) return status;
  const backingLength = await node.cow.getLength(co);
  return offset >= backingLength ? { ...status, zero: true } : status;
}

/** Data of a format may be a hole of the file it lies in. */
async function withZeroesBelow(co: Coroutine<"read">, status: BlockStatus): Promise<BlockStatus> {
  const below = await blockStatus(co, status.file as BlockNode, true, status.offset as number, status.bytes);
  // Past the end of a truncated file, reads give zeroes.
  if (below.eof && (below.bytes === 0 || below.zero)) return { ...status, zero: true };
  return { ...status, bytes: below.bytes, zero: below.zero };
}

/** A status of a chain, and how many layers down it was found: 0 is the node itself. */
export interface ChainStatus extends BlockStatus {
  readonly depth: number;
}

/**
 * The status of what the guest sees, from `node` down its filters and backing files to `base`, exclusive
 * (undefined: all of them).  @qemu bdrv_co_common_block_status_above
 */
export async function blockStatusAbove(
  co: Coroutine<"read">,
  node: BlockNode,
  base: BlockNode | undefined,
  wantZero: boolean,
  offset: number,
  bytes: number,
): Promise<ChainStatus> {
  let end = bytes;
  let eofOf: number | undefined;
  let depth = 0;
  for (let layer: BlockNode | undefined = node; layer && layer !== base; layer = layer.filterOrCow?.node) {
    const status = await blockStatus(co, layer, wantZero, offset, end);
    if (layer === node && (status.bytes === 0 || status.eof)) eofOf = offset + status.bytes;
    if (status.bytes === 0 && layer !== node) {
      // Behind the end of a shorter backing file: zeroes, which this layer determines.
      return {
        bytes: end,
        data: false,
        zero: true,
        allocated: true,
        depth,
        ...(eofOf === offset + end && { eof: true }),
      };
    }
    if (status.bytes === 0 || status.allocated) {
      const { eof: _, ...rest } = status;
      return { ...rest, depth, ...(eofOf === offset + status.bytes && { eof: true }) };
    }
    end = status.bytes;
    if (!layer.filterOrCow || layer.filterOrCow.node === base) {
      return {
        bytes: end,
        data: false,
        zero: status.zero,
        allocated: false,
        depth,
        ...(eofOf === offset + end && { eof: true }),
      };
    }
    // A filter is no layer of its own.
    if (!layer.filtered) depth++;
  }
  return { bytes: end, data: false, zero: false, allocated: false, depth };
}
