/** Saved machine state, which formats keep behind the end of the disk.  @qemu bdrv_co_readv_vmstate */

import type { Coroutine } from "./coroutine.ts";
import { BlockError } from "./errors.ts";
import { type IoVector, iovLength } from "./iov.ts";
import type { BlockNode } from "./node.ts";
import { MAX_LENGTH } from "./units.ts";

/** Fills `iov` from `offset` of the saved state; what was never saved reads as zeroes. */
export async function loadVmState(
  co: Coroutine<"read">,
  node: BlockNode,
  offset: number,
  iov: IoVector,
): Promise<void> {
  checkRange(offset, iov);
  const { ops, primary } = node;
  if (ops.loadVmState) return ops.loadVmState(co, offset, iov);
  if (!primary) throw new BlockError("ENOTSUP");
  return loadVmState(co, primary.node, offset, iov);
}

/** @qemu bdrv_co_writev_vmstate */
export async function saveVmState(
  co: Coroutine<"read">,
  node: BlockNode,
  offset: number,
  iov: IoVector,
): Promise<void> {
  checkRange(offset, iov);
  const { ops, primary } = node;
  if (!ops.saveVmState) {
    if (!primary) throw new BlockError("ENOTSUP");
    return saveVmState(co, primary.node, offset, iov);
  }
  if (node.readOnly) throw new BlockError("EPERM", undefined, { node: node.nodeName });
  return ops.saveVmState(co, offset, iov);
}

function checkRange(offset: number, iov: IoVector): void {
  if (!(offset >= 0) || offset > MAX_LENGTH - iovLength(iov)) throw new BlockError("EFBIG");
}
