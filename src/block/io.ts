/**
 * Requests on a node: checked, aligned, tracked, split, and emulated or forwarded where the driver lacks the
 * operation.  @qemu block/io.c
 *
 * What is done for an operation that the driver does not have:
 *
 * | operation        | filter  | format, protocol                           |
 * | ---------------- | ------- | ------------------------------------------ |
 * | pread, pwrite    | forward | ENOTSUP                                    |
 * | pwriteCompressed | forward | ENOTSUP                                    |
 * | copyFrom         | forward, unless it has pwrite | ENOTSUP              |
 * | pwriteZeroes     | forward | zeroes are written, unless NoFallback      |
 * | FUA              | flush   | flush                                      |
 * | pdiscard         | forward | nothing: a discard is advice               |
 * | flush            | its children are flushed                             |
 * | truncate         | forward | ENOTSUP (`length.ts`)                      |
 * | blockStatus      | forward | data, allocated (`block-status.ts`)        |
 */

import { type BlockChild, Perm } from "./child.ts";
import { copyOnRead } from "./copy-on-read.ts";
import type { HostRange } from "./copy-range.ts";
import type { Coroutine } from "./coroutine.ts";
import { markDirty, resizeBitmaps } from "./dirty-bitmap.ts";
import { Req, type ReqFlags } from "./driver.ts";
import { assert, BlockError } from "./errors.ts";
import { type IoVector, iovConcat, iovFill, iovIsZero, iovLength, iovSlice } from "./iov.ts";
import { getLength } from "./length.ts";
import { BlockNode } from "./node.ts";
import type { TrackedRequest } from "./tracked-request.ts";
import { alignDown, alignUp, KiB, MAX_LENGTH, MAX_REQUEST_BYTES, MiB, SECTOR_SIZE } from "./units.ts";

/** The largest buffer of zeroes that stands in for a zero write. */
const MAX_ZERO_BUFFER = MiB;

/** @qemu bdrv_check_request32 */
function checkRequest(node: BlockNode, offset: number, bytes: number): void {
  checkRange(node, offset, bytes);
  if (bytes > MAX_REQUEST_BYTES) throw new BlockError("EIO", undefined, { node: node.nodeName, offset });
}

/** A request without a buffer may be of any length. */
function checkRange(node: BlockNode, offset: number, bytes: number): void {
  if (!node.isInserted) throw new BlockError("ENOMEDIUM", undefined, { node: node.nodeName });
  if (!(offset >= 0) || !(bytes >= 0) || offset > MAX_LENGTH - bytes)
    throw new BlockError("EIO", undefined, { node: node.nodeName, offset });
}

/** @qemu bdrv_co_preadv_part */
export async function pread(
  co: Coroutine<"read">,
  child: BlockChild,
  offset: number,
  iov: IoVector,
  flags: ReqFlags,
): Promise<void> {
  const { node } = child;
  const bytes = iovLength(iov);
  checkRequest(node, offset, bytes);
  assert(co.live, "a request needs the graph read lock");
  if (bytes === 0) return;
  if (!node.ops.pread) {
    // A filter's alignment is for what it writes: a read goes through as it is.
    if (!node.filtered) throw new BlockError("ENOTSUP", undefined, { node: node.nodeName });
    return node.filtered.pread(co, offset, iov, flags);
  }
  if (flags & Req.CopyOnRead) return copyOnRead(co, node, offset, iov);
  const alignment = node.limits.requestAlignment;
  const request = node.tracker.begin(offset, bytes, false);
  try {
    if (node.tracker.hasSerialising) await node.tracker.waitForOverlapping(request, co.signal);
    if (alignment === 1 || (offset % alignment === 0 && bytes % alignment === 0)) {
      await alignedPread(co, node, offset, bytes, iov, flags);
      return;
    }
    const start = alignDown(offset, alignment);
    const end = alignUp(offset + bytes, alignment);
    const head = new Uint8Array(offset - start);
    const tail = new Uint8Array(end - offset - bytes);
    await alignedPread(co, node, start, end - start, iovConcat(head, iov, tail), flags);
  } finally {
    node.tracker.end(request);
  }
}

/** Reads an aligned range: what lies past the end is zeroes; longer than the driver takes at once is split.  @qemu bdrv_aligned_preadv */
async function alignedPread(
  co: Coroutine<"read">,
  node: BlockNode,
  offset: number,
  bytes: number,
  iov: IoVector,
  flags: ReqFlags,
): Promise<void> {
  const { ops, limits } = node;
  // The read of a read-modify-write on a filter that only changes writes.
  if (!ops.pread && node.filtered) return node.filtered.pread(co, offset, iov, flags);
  assert(ops.pread !== undefined, "alignedPread needs a driver that reads");
  const length = node.knownBytes ?? (await getLength(co, node));
  const maxTransfer = limits.maxTransfer || MAX_REQUEST_BYTES;
  const readable = alignUp(Math.max(length - offset, 0), limits.requestAlignment);
  if (bytes <= readable && bytes <= maxTransfer) return ops.pread(co, offset, iov, flags);
  let done = 0;
  while (done < bytes && done < readable) {
    co.checkAborted();
    const piece = Math.min(bytes - done, readable - done, maxTransfer);
    await ops.pread(co, offset + done, iovSlice(iov, done, done + piece), flags);
    done += piece;
  }
  if (done < bytes) iovFill(iovSlice(iov, done, bytes), 0);
}

/** @qemu bdrv_co_pwritev_part */
export async function pwrite(
  co: Coroutine<"read">,
  child: BlockChild,
  offset: number,
  iov: IoVector,
  flags: ReqFlags,
): Promise<void> {
  const { node } = child;
  const bytes = iovLength(iov);
  checkRequest(node, offset, bytes);
  assertWritable(co, child, flags);
  const { ops } = node;
  if (flags & Req.WriteCompressed && ops.pwriteCompressed) {
    // Such a driver knows only whole clusters and the end of the image: it gets the request as it is.
    return tracked(co, node, offset, bytes, flags, () => ops.pwriteCompressed?.(co, offset, iov));
  }
  if (bytes === 0) return;
  if (!ops.pwrite && node.filtered)
    return forwarded(node, offset, bytes, node.filtered.pwrite(co, offset, iov, flags));
  if (node.flags.detectZeroes !== "off" && !(flags & Req.NoFallback) && iovIsZero(iov)) {
    const unmap = node.flags.detectZeroes === "unmap" ? Req.MayUnmap : 0;
    return pwriteZeroes(co, child, offset, bytes, flags | unmap);
  }
  const alignment = node.limits.requestAlignment;
  const isAligned = alignment === 1 || (offset % alignment === 0 && bytes % alignment === 0);
  const request = node.tracker.begin(offset, bytes, true);
  try {
    if (isAligned) {
      if (node.tracker.hasSerialising) await node.tracker.waitForOverlapping(request, co.signal);
      await alignedPwrite(co, node, offset, bytes, iov, flags);
    } else {
      await node.tracker.makeSerialising(request, alignment, co.signal);
      await unalignedPwrite(co, node, offset, bytes, iov, flags);
    }
  } finally {
    endWrite(node, request);
  }
}

/** Read-modify-write: the caller has made the request serialising. */
async function unalignedPwrite(
  co: Coroutine<"read">,
  node: BlockNode,
  offset: number,
  bytes: number,
  iov: IoVector,
  flags: ReqFlags,
): Promise<void> {
  const alignment = node.limits.requestAlignment;
  const start = alignDown(offset, alignment);
  const end = alignUp(offset + bytes, alignment);
  const headBytes = offset - start;
  const tailBytes = end - offset - bytes;
  let head: Uint8Array | undefined;
  if (headBytes > 0) {
    head = new Uint8Array(alignment);
    if (node.ops.debug) await node.ops.debug.event(co, "pwritev_rmw_head");
    await alignedPread(co, node, start, alignment, head, 0);
    if (node.ops.debug) await node.ops.debug.event(co, "pwritev_rmw_after_head");
  }
  let tail: Uint8Array | undefined;
  if (tailBytes > 0) {
    if (head && end - start === alignment) tail = head;
    else {
      tail = new Uint8Array(alignment);
      if (node.ops.debug) await node.ops.debug.event(co, "pwritev_rmw_tail");
      await alignedPread(co, node, end - alignment, alignment, tail, 0);
      if (node.ops.debug) await node.ops.debug.event(co, "pwritev_rmw_after_tail");
    }
  }
  const padded = iovConcat(
    head ? head.subarray(0, headBytes) : [],
    iov,
    tail ? tail.subarray(alignment - tailBytes) : [],
  );
  // What was only padded must not make the node longer; storage takes whole blocks, and grows as it needs.
  const length = node.totalSectors * SECTOR_SIZE;
  const isCut = node.driver.kind !== "protocol" && end > length;
  const writeEnd = isCut ? Math.max(length, offset + bytes) : end;
  await alignedPwrite(co, node, start, writeEnd - start, iovSlice(padded, 0, writeEnd - start), flags);
}

/** @qemu bdrv_aligned_pwritev */
async function alignedPwrite(
  co: Coroutine<"read">,
  node: BlockNode,
  offset: number,
  bytes: number,
  iov: IoVector,
  flags: ReqFlags,
): Promise<void> {
  const maxTransfer = node.limits.maxTransfer || MAX_REQUEST_BYTES;
  if (node.ops.debug) await node.ops.debug.event(co, "pwritev");
  if (bytes <= maxTransfer) await driverPwrite(co, node, offset, iov, flags);
  else {
    for (let done = 0; done < bytes; ) {
      const piece = Math.min(bytes - done, maxTransfer);
      const isLast = done + piece === bytes;
      // One flush at the end makes all pieces stable.
      const pieceFlags = isLast ? flags : flags & ~Req.Fua;
      await driverPwrite(co, node, offset + done, iovSlice(iov, done, done + piece), pieceFlags);
      done += piece;
    }
  }
  if (node.ops.debug) await node.ops.debug.event(co, "pwritev_done");
  noteLength(node, offset + bytes);
}

/**
 * Counts the change for the next flush also when it fails, for a part may have been written, and before the flush
 * that stands in for FUA.  @qemu bdrv_driver_pwritev
 */
async function driverPwrite(
  co: Coroutine<"read">,
  node: BlockNode,
  offset: number,
  iov: IoVector,
  flags: ReqFlags,
): Promise<void> {
  const { ops } = node;
  // Only who has an operation of its own for it stores compressed; a filter that does more than forward has none.
  if (flags & Req.WriteCompressed || !ops.pwrite)
    throw new BlockError("ENOTSUP", undefined, { node: node.nodeName });
  const supported = node.supportedWriteFlags;
  try {
    await ops.pwrite(co, offset, iov, flags & supported);
  } finally {
    node.writeGeneration++;
  }
  if (flags & Req.Fua && !(supported & Req.Fua)) await flush(co, node);
}

/** Nothing is padded: what is not aligned is ENOTSUP too.  @qemu bdrv_co_copy_range_to */
export async function copyFrom(
  co: Coroutine<"read">,
  child: BlockChild,
  offset: number,
  range: HostRange,
): Promise<void> {
  const { node } = child;
  const { bytes } = range;
  checkRange(node, offset, bytes);
  assertWritable(co, child, 0);
  const { ops } = node;
  if (!ops.copyFrom && !ops.pwrite && node.filtered)
    return forwarded(node, offset, bytes, node.filtered.copyFrom(co, offset, range));
  const alignment = node.limits.requestAlignment;
  if (!ops.copyFrom || offset % alignment !== 0 || bytes % alignment !== 0)
    throw new BlockError("ENOTSUP", undefined, { node: node.nodeName });
  await tracked(co, node, offset, bytes, 0, () => ops.copyFrom?.(co, offset, range));
  noteLength(node, offset + bytes);
}

/** @qemu bdrv_co_pwrite_zeroes */
export async function pwriteZeroes(
  co: Coroutine<"read">,
  child: BlockChild,
  offset: number,
  bytes: number,
  flags: ReqFlags,
): Promise<void> {
  const { node } = child;
  checkRange(node, offset, bytes);
  assertWritable(co, child, flags);
  if (bytes === 0) return;
  // A filter that changes what a write is (compress) has pwrite; zero writes pass it all the same.
  if (!node.ops.pwriteZeroes && node.filtered)
    return forwarded(node, offset, bytes, node.filtered.pwriteZeroes(co, offset, bytes, flags));
  // Without leave to unmap, the blocks stay; but a backend's own request is taken at its word, as by QEMU.
  const mayUnmap = node.flags.unmap || !(child.parent instanceof BlockNode);
  const zeroFlags = (mayUnmap ? flags : flags & ~Req.MayUnmap) | Req.ZeroWrite;
  const alignment = node.limits.requestAlignment;
  const request = node.tracker.begin(offset, bytes, true);
  try {
    if (offset % alignment === 0 && bytes % alignment === 0) {
      if (node.tracker.hasSerialising) await node.tracker.waitForOverlapping(request, co.signal);
      await alignedZeroes(co, node, offset, bytes, zeroFlags);
    } else {
      if (flags & Req.NoFallback) throw new BlockError("ENOTSUP", undefined, { node: node.nodeName });
      await node.tracker.makeSerialising(request, alignment, co.signal);
      await unalignedZeroes(co, node, offset, bytes, zeroFlags);
    }
    noteLength(node, offset + bytes);
  } finally {
    endWrite(node, request);
  }
}

/** Writes the unaligned head and tail by read-modify-write, and what is between as a zero write.  @qemu bdrv_co_do_zero_pwritev */
async function unalignedZeroes(
  co: Coroutine<"read">,
  node: BlockNode,
  offset: number,
  bytes: number,
  flags: ReqFlags,
): Promise<void> {
  const alignment = node.limits.requestAlignment;
  const end = offset + bytes;
  const middle = Math.min(alignUp(offset, alignment), end);
  const middleEnd = Math.max(alignDown(end, alignment), middle);
  const dataFlags = flags & ~(Req.ZeroWrite | Req.MayUnmap);
  if (middle > offset) {
    const zeroes = new Uint8Array(middle - offset);
    await unalignedPwrite(co, node, offset, zeroes.length, zeroes, dataFlags);
  }
  if (middleEnd > middle) await alignedZeroes(co, node, middle, middleEnd - middle, flags);
  if (end > middleEnd) {
    const zeroes = new Uint8Array(end - middleEnd);
    await unalignedPwrite(co, node, middleEnd, zeroes.length, zeroes, dataFlags);
  }
}

/** @qemu bdrv_co_do_pwrite_zeroes */
async function alignedZeroes(
  co: Coroutine<"read">,
  node: BlockNode,
  offset: number,
  bytes: number,
  flags: ReqFlags,
): Promise<void> {
  const { limits, ops } = node;
  const supported = node.supportedZeroFlags;
  if (flags & Req.NoFallback && !(supported & Req.NoFallback))
    throw new BlockError("ENOTSUP", undefined, { node: node.nodeName });
  const alignment = Math.max(limits.pwriteZeroesAlignment, limits.requestAlignment);
  const max = limits.maxPwriteZeroes || Math.max(alignDown(MAX_REQUEST_BYTES, alignment), alignment);
  let needsFlush = false;
  if (node.ops.debug) await node.ops.debug.event(co, "pwritev_zero");
  for (const piece of alignedPieces(offset, bytes, alignment, max)) {
    try {
      if (!ops.pwriteZeroes) throw new BlockError("ENOTSUP");
      try {
        await ops.pwriteZeroes(co, piece.offset, piece.bytes, flags & supported);
      } finally {
        node.writeGeneration++;
      }
      needsFlush ||= (flags & Req.Fua) !== 0 && !(supported & Req.Fua);
    } catch (error) {
      if (!(error instanceof BlockError) || error.errno !== "ENOTSUP" || flags & Req.NoFallback) throw error;
      await writeZeroBuffer(
        co,
        node,
        piece.offset,
        piece.bytes,
        flags & ~(Req.ZeroWrite | Req.MayUnmap | Req.Fua),
      );
      needsFlush ||= (flags & Req.Fua) !== 0;
    }
  }
  if (needsFlush) await flush(co, node);
  if (node.ops.debug) await node.ops.debug.event(co, "pwritev_done");
}

/** Zeroes for a driver that has no zero write, in one buffer that all pieces share. */
async function writeZeroBuffer(
  co: Coroutine<"read">,
  node: BlockNode,
  offset: number,
  bytes: number,
  flags: ReqFlags,
): Promise<void> {
  const max = Math.min(node.limits.maxTransfer || MAX_ZERO_BUFFER, MAX_ZERO_BUFFER);
  const zeroes = new Uint8Array(Math.min(bytes, Math.max(max, 64 * KiB, node.limits.requestAlignment)));
  for (let done = 0; done < bytes; ) {
    const piece = Math.min(bytes - done, zeroes.length);
    await driverPwrite(co, node, offset + done, iovSlice(zeroes, 0, piece), flags);
    done += piece;
  }
}

/** Cuts a range so that every piece but an unaligned head and tail is aligned, and none is over `max`. */
function* alignedPieces(
  offset: number,
  bytes: number,
  alignment: number,
  max: number,
): Generator<{ readonly offset: number; readonly bytes: number }> {
  const end = offset + bytes;
  while (offset < end) {
    const head = offset % alignment;
    let piece = Math.min(end - offset, max);
    if (head > 0) piece = Math.min(piece, alignment - head);
    else if (piece > alignment) piece = alignDown(piece, alignment);
    yield { offset, bytes: piece };
    offset += piece;
  }
}

/** @qemu bdrv_co_pdiscard */
export async function pdiscard(
  co: Coroutine<"read">,
  child: BlockChild,
  offset: number,
  bytes: number,
): Promise<void> {
  const { node } = child;
  checkRange(node, offset, bytes);
  assertWritable(co, child, 0);
  const { ops, limits } = node;
  if (bytes === 0 || !node.flags.unmap) return;
  if (!ops.pdiscard) {
    if (node.filtered) await forwarded(node, offset, bytes, node.filtered.pdiscard(co, offset, bytes));
    return;
  }
  const alignment = Math.max(limits.pdiscardAlignment, limits.requestAlignment);
  const max = limits.maxPdiscard || Math.max(alignDown(MAX_REQUEST_BYTES, alignment), alignment);
  await tracked(co, node, offset, bytes, 0, async () => {
    for (const piece of alignedPieces(offset, bytes, alignment, max)) {
      try {
        await ops.pdiscard?.(co, piece.offset, piece.bytes);
      } catch (error) {
        // Advice that can't be taken is no error.
        if (!(error instanceof BlockError) || error.errno !== "ENOTSUP") throw error;
      }
    }
  });
}

/**
 * Makes all writes that ended before it stable, here and below. Left out where nothing was written since the last
 * one; with cache.no-flush only caches are handed down. Flushes of one node run one after the other.
 * @qemu bdrv_co_flush
 */
export async function flush(co: Coroutine<"read">, node: BlockNode): Promise<void> {
  if (!node.isInserted || node.readOnly) return;
  const generation = node.writeGeneration;
  while (node.flushing) await node.flushing;
  let done: () => void = () => {};
  node.flushing = new Promise((resolve) => {
    done = resolve;
  });
  try {
    if (node.ops.flush) await node.ops.flush(co);
    else await flushParts(co, node, generation);
  } finally {
    node.flushing = undefined;
    done();
  }
}

async function flushParts(co: Coroutine<"read">, node: BlockNode, generation: number): Promise<void> {
  // What listens to flushes lies below the node that is flushed.
  const debug = node.primary?.debug;
  if (debug) await debug.event(co, "flush_to_os");
  await node.ops.flushToOs?.(co);
  if (!node.flags.noFlush && node.flushedGeneration < generation) {
    if (debug) await debug.event(co, "flush_to_disk");
    await node.ops.flushToDisk?.(co);
    node.flushedGeneration = Math.max(node.flushedGeneration, generation);
  }
  let failed: unknown;
  for (const edge of node.children.values()) {
    if (!(edge.perm.used & (Perm.Write | Perm.WriteUnchanged))) continue;
    try {
      await edge.flush(co);
    } catch (error) {
      failed ??= error;
    }
  }
  if (failed !== undefined) throw failed;
}

function assertWritable(co: Coroutine<"read">, child: BlockChild, flags: ReqFlags): void {
  const { node } = child;
  assert(co.live, "a request needs the graph read lock");
  if (node.readOnly) throw new BlockError("EPERM", undefined, { node: node.nodeName });
  const needed = flags & Req.WriteUnchanged ? Perm.Write | Perm.WriteUnchanged : Perm.Write;
  assert((child.perm.used & needed) !== 0, `the edge to ${node.describe()} has no write permission`);
}

/** Lets the length grow with a write past the end.  @qemu bdrv_co_write_req_finish */
function noteLength(node: BlockNode, end: number): void {
  const sectors = Math.ceil(end / SECTOR_SIZE);
  if (sectors <= node.totalSectors) return;
  node.totalSectors = sectors;
  if (node.dirtyBitmaps.length > 0) resizeBitmaps(node);
}

/** Whether it failed or not: a part may have been written.  @qemu bdrv_co_write_req_finish */
function endWrite(node: BlockNode, request: TrackedRequest): void {
  if (node.dirtyBitmaps.length > 0) markDirty(node, request.start, request.end - request.start);
  node.tracker.end(request);
}

/** A write that goes through a filter as it is: the filter's own bitmaps see it too. */
async function forwarded(node: BlockNode, offset: number, bytes: number, done: Promise<void>): Promise<void> {
  try {
    await done;
  } finally {
    if (node.dirtyBitmaps.length > 0) markDirty(node, offset, bytes);
  }
}

/** Runs `fn` as a write request of the node: seen by drains, and after serialising ones that overlap. */
async function tracked(
  co: Coroutine<"read">,
  node: BlockNode,
  offset: number,
  bytes: number,
  flags: ReqFlags,
  fn: () => Promise<void> | undefined,
): Promise<void> {
  const request = node.tracker.begin(offset, bytes, true);
  try {
    if (node.tracker.hasSerialising) await node.tracker.waitForOverlapping(request, co.signal);
    try {
      await fn();
    } finally {
      node.writeGeneration++;
    }
    if (flags & Req.Fua) await flush(co, node);
  } finally {
    endWrite(node, request);
  }
}
