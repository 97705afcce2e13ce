/** What is read from a backing file stays in the image (`-C`).  @qemu bdrv_co_do_copy_on_readv */

import { blockStatus } from "../../block/block-status.ts";
import type { Coroutine } from "../../block/coroutine.ts";
import { BlockError } from "../../block/errors.ts";
import { isZero } from "../../block/iov.ts";
import type { BlockNode } from "../../block/node.ts";
import { alignDown, alignUp, MiB } from "../../block/units.ts";

/** The most that is copied at once; what of it is all zeroes is written as zeroes.  @qemu MAX_BOUNCE_BUFFER */
const MAX_COPY_BYTES = 16 * MiB;

/** Gives the clusters of the range, which has just been read, content of their own. */
export async function copyOnRead(
  co: Coroutine<"read">,
  node: BlockNode,
  offset: number,
  bytes: number,
): Promise<void> {
  if (bytes === 0) return;
  const geometry = await node.ops.getInfo?.(co);
  const cluster = Math.max(geometry?.clusterSize ?? 0, node.limits.requestAlignment);
  const start = alignDown(offset, cluster);
  const end = Math.min(alignUp(offset + bytes, cluster), await node.getLength(co));
  // No write may come between the look at what is below and its copy.
  const request = node.tracker.begin(start, end - start, true);
  try {
    await node.tracker.makeSerialising(request, cluster, co.signal);
    for (let at = start; at < end; ) {
      co.checkAborted();
      const status = await blockStatus(co, node, false, at, Math.min(end - at, MAX_COPY_BYTES));
      if (status.bytes === 0) break;
      if (!status.allocated) await copy(co, node, at, status.bytes);
      at += status.bytes;
    }
  } finally {
    node.tracker.end(request);
  }
}

/** The driver is asked directly: the core would wait for the request that this is a part of. */
async function copy(co: Coroutine<"read">, node: BlockNode, offset: number, bytes: number): Promise<void> {
  const { ops } = node;
  if (!ops.pread || !ops.pwrite) throw new BlockError("ENOTSUP", undefined, { node: node.nodeName });
  const buffer = new Uint8Array(bytes);
  await ops.pread(co, offset, buffer, 0);
  node.writeGeneration++;
  if (ops.pwriteZeroes && isZero(buffer)) await ops.pwriteZeroes(co, offset, bytes, 0);
  else await ops.pwrite(co, offset, buffer, 0);
}
