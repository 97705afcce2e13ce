/** What the kernel can copy by itself, from host file to host file, so that the bytes need not come by here.  @qemu bdrv_co_copy_range */

import { blockStatusAbove } from "./block-status.ts";
import type { Coroutine } from "./coroutine.ts";
import { BlockError } from "./errors.ts";
import type { BlockNode } from "./node.ts";

/** Bytes of an open file of the host. */
export interface HostRange {
  readonly fd: number;
  /** In the file, in bytes. */
  readonly offset: number;
  readonly bytes: number;
}

/** A part of guest content: where it lies, or that it is zeroes. */
export type SourceRange = HostRange | { readonly fd?: never; readonly bytes: number };

/**
 * Where the guest's bytes lie, in order. ENOTSUP: not all of them lie plainly in files, and somebody must read them.
 * The answer holds as long as nobody writes to the node.
 */
export async function hostRanges(
  co: Coroutine<"read">,
  node: BlockNode,
  offset: number,
  bytes: number,
): Promise<readonly SourceRange[]> {
  if (!node.readOnly) throw new BlockError("ENOTSUP");
  const ranges: SourceRange[] = [];
  for (let done = 0; done < bytes; ) {
    const status = await blockStatusAbove(co, node, undefined, false, offset + done, bytes - done);
    const fd = status.file?.ops.descriptor?.();
    if (status.zero && !status.data) ranges.push({ bytes: status.bytes });
    else if (status.data && fd !== undefined && status.offset !== undefined)
      ranges.push({ fd, offset: status.offset, bytes: status.bytes });
    else throw new BlockError("ENOTSUP");
    done += status.bytes;
  }
  return ranges;
}
