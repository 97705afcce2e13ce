/** Reads that leave what they read from a backing file in the image.  @qemu bdrv_co_do_copy_on_readv */

import { blockStatus } from "./block-status.ts";
import type { Coroutine } from "./coroutine.ts";
import { Req } from "./driver.ts";
import { BlockError } from "./errors.ts";
import { driverInfo } from "./info.ts";
import { type IoVector, iovLength, iovSlice, iovWrite, isZero } from "./iov.ts";
import type { BlockNode } from "./node.ts";
import { alignDown, alignUp, MiB } from "./units.ts";

/** The most that is copied at once; what of it is all zeroes is written as zeroes.  @qemu MAX_BOUNCE_BUFFER */
const MAX_COPY_BYTES = 16 * MiB;

/**
 * Fills `iov` from `offset`, and gives the clusters that it touches content of their own where they have none. The
 * driver is asked directly: the core would wait for the request that all of this is.
 */
export async function copyOnRead(
  co: Coroutine<"read">,
  node: BlockNode,
  offset: number,
  iov: IoVector,
): Promise<void> {
  const end = offset + iovLength(iov);
  const cluster = Math.max((await driverInfo(co, node))?.clusterSize ?? 0, node.limits.requestAlignment);
  const start = alignDown(offset, cluster);
  const alignedEnd = alignUp(end, cluster);
  // No write may come between the look at what is below and its copy.
  const request = node.tracker.begin(start, alignedEnd - start, true);
  try {
    await node.tracker.makeSerialising(request, cluster, co.signal);
    for (let at = start; at < alignedEnd; ) {
      co.checkAborted();
      const status = await blockStatus(co, node, false, at, Math.min(alignedEnd - at, MAX_COPY_BYTES));
      // Behind the end of the image there are zeroes, and nothing is copied.
      const bytes = status.bytes || alignedEnd - at;
      const buffer = new Uint8Array(bytes);
      if (status.bytes > 0) {
        await driverRead(co, node, at, buffer);
        if (!status.allocated) await store(co, node, at, buffer);
      }
      const from = Math.max(at, offset);
      const to = Math.min(at + bytes, end);
      if (from < to) iovWrite(iovSlice(iov, from - offset, to - offset), buffer.subarray(from - at, to - at));
      at += bytes;
    }
  } finally {
    node.tracker.end(request);
  }
}

async function driverRead(
  co: Coroutine<"read">,
  { ops, nodeName }: BlockNode,
  offset: number,
  buffer: Uint8Array,
): Promise<void> {
  if (!ops.pread) throw new BlockError("ENOTSUP", undefined, { node: nodeName });
  await ops.pread(co, offset, buffer, 0);
}

async function store(
  co: Coroutine<"read">,
  node: BlockNode,
  offset: number,
  buffer: Uint8Array,
): Promise<void> {
  const { ops } = node;
  if (!ops.pwrite) throw new BlockError("ENOTSUP", undefined, { node: node.nodeName });
  if (ops.debug) await ops.debug.event(co, "cor_write");
  node.writeGeneration++;
  if (ops.pwriteZeroes && isZero(buffer)) {
    try {
      await ops.pwriteZeroes(co, offset, buffer.length, Req.WriteUnchanged & node.supportedZeroFlags);
      return;
    } catch (error) {
      if (!(error instanceof BlockError) || error.errno !== "ENOTSUP") throw error;
    }
  }
  await ops.pwrite(co, offset, buffer, Req.WriteUnchanged & node.supportedWriteFlags);
}
