/** The length of a node: how it is kept, asked and changed.  @qemu bdrv_refresh_total_sectors, bdrv_getlength */

import { type BlockChild, Perm } from "./child.ts";
import { assertGraphReadable, type Coroutine, coWrapperMixed } from "./coroutine.ts";
import { resizeBitmaps } from "./dirty-bitmap.ts";
import { type Prealloc, Req, type ReqFlags } from "./driver.ts";
import { assert, BlockError } from "./errors.ts";
import type { BlockNode } from "./node.ts";
import { divideRoundUp, GiB, MAX_LENGTH, SECTOR_SIZE } from "./units.ts";

/**
 * Sets the node's `totalSectors` anew. The driver's `getLength` (bytes) is asked where there is one, and its
 * answer, rounded up to sectors, replaces `hint`; a driver without it has what `hint` says, in sectors.
 * Errors leave the old value: ENOMEDIUM without a driver, EFBIG over the maximum length.
 * @qemu bdrv_co_refresh_total_sectors
 */
async function refreshTotalSectorsCo(co: Coroutine<"read">, node: BlockNode, hint: number): Promise<void> {
  assertGraphReadable(co);
  if (!node.isInserted) throw new BlockError("ENOMEDIUM", undefined, { node: node.nodeName });
  const bytes = node.ops.getLength ? await node.ops.getLength(co) : hint * SECTOR_SIZE;
  const sectors = divideRoundUp(bytes, SECTOR_SIZE);
  if (!(sectors * SECTOR_SIZE <= MAX_LENGTH))
    throw new BlockError("EFBIG", undefined, { node: node.nodeName });
  node.totalSectors = sectors;
  if (node.dirtyBitmaps.length > 0) resizeBitmaps(node);
}

/**
 * From a coroutine that holds the graph read lock: awaited directly. From the main loop: in a new coroutine under
 * the graph read lock, with the node's AioContext lock, which the caller must hold once, given up meanwhile.
 * @qemu bdrv_refresh_total_sectors
 */
export const refreshTotalSectors = coWrapperMixed(refreshTotalSectorsCo);

/** Bytes, always whole sectors.  @qemu bdrv_co_getlength */
export async function getLength(co: Coroutine<"read">, node: BlockNode): Promise<number> {
  if (!node.isInserted) throw new BlockError("ENOMEDIUM", undefined, { node: node.nodeName });
  if (node.hasVariableLength) await refreshTotalSectorsCo(co, node, node.totalSectors);
  return node.totalSectors * SECTOR_SIZE;
}

/** The longest that QEMU asks a driver for. What is over our own maximum is for drivers to refuse.  @qemu BDRV_MAX_LENGTH */
const MAX_TRUNCATE_BYTES = 2 ** 63 - GiB;

/** `truncateNode`, by an edge that may.  @qemu bdrv_co_truncate */
export async function truncate(
  co: Coroutine<"read">,
  { node, perm }: BlockChild,
  bytes: number,
  exact: boolean,
  prealloc: Prealloc,
  flags: ReqFlags,
): Promise<void> {
  assertGraphReadable(co);
  if (!node.isInserted) throw new BlockError("ENOMEDIUM");
  assert((perm.used & Perm.Resize) !== 0, `the edge to ${node.describe()} has no resize permission`);
  await truncateNode(co, node, bytes, exact, prealloc, flags);
}

/**
 * Changes the length to `bytes`. Space that is gained reads as zeroes where a backing file would show through;
 * what a driver can't do is ENOTSUP with qemu's words. For a driver that changes its own node.
 */
export async function truncateNode(
  co: Coroutine<"read">,
  node: BlockNode,
  bytes: number,
  exact: boolean,
  prealloc: Prealloc,
  flags: ReqFlags,
): Promise<void> {
  // As 64-bit numbers have it, from 2^63 on they are negative.
  if (bytes < 0 || bytes >= 2 ** 63) throw new BlockError("EINVAL", "Image size cannot be negative");
  if (bytes > MAX_TRUNCATE_BYTES)
    throw new BlockError("EFBIG", `offset(${BigInt(bytes)}) exceeds maximum(${BigInt(MAX_TRUNCATE_BYTES)})`);
  const oldBytes = await getLength(co, node);
  if (node.readOnly) throw new BlockError("EACCES", "Image is read-only");
  const grown = Math.max(bytes - oldBytes, 0);
  const request = node.tracker.begin(bytes - grown, grown, true);
  try {
    if (grown > 0) await node.tracker.makeSerialising(request, 1);
    let wanted = flags;
    // What was past the end of a longer backing file must not appear by growing.
    if (node.cow && (await node.cow.getLength(co)) > oldBytes && grown > 0) wanted |= Req.ZeroWrite;
    if (node.ops.truncate) await node.ops.truncate(co, bytes, exact, prealloc, wanted);
    else if (node.filtered) await node.filtered.truncate(co, bytes, exact, prealloc, wanted);
    else throw new BlockError("ENOTSUP", "Image format driver does not support resize");
    node.writeGeneration++;
    try {
      await refreshTotalSectors(co, node, divideRoundUp(bytes, SECTOR_SIZE));
    } catch (error) {
      throw BlockError.wrap("Could not refresh total sector count", error);
    }
  } finally {
    node.tracker.end(request);
  }
}
