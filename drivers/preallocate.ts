/** Lets a file grow by large steps ahead of the writes that need it, and cuts the rest off at the end.  @qemu block/preallocate.c */

import { Perm } from "../src/block/child.ts";
import { type Coroutine, graphRdlock } from "../src/block/coroutine.ts";
import { type FilterDriver, Req } from "../src/block/driver.ts";
import { BlockError } from "../src/block/errors.ts";
import { iovLength } from "../src/block/iov.ts";
import { alignUp, isAligned, MiB, SECTOR_SIZE } from "../src/block/units.ts";

const options = {
  /** The file's length is a multiple of this while it is open; 1 MiB by default. */
  "prealloc-align": { type: "size", changeable: true },
  /** How far ahead of a write space is set aside; 128 MiB by default. */
  "prealloc-size": { type: "size", changeable: true },
} as const;

export const preallocate: FilterDriver<typeof options> = {
  formatName: "preallocate",
  kind: "filter",
  options,

  async open(co, { node, options: given, openFileChild }) {
    const { "prealloc-align": align = MiB, "prealloc-size": size = 128 * MiB } = given;
    if (!isAligned(align, SECTOR_SIZE))
      throw new BlockError(
        "EINVAL",
        `prealloc-align parameter of preallocate filter is not aligned to ${SECTOR_SIZE}`,
      );
    /** What is shown as the length; from `dataEnd` to `fileEnd` there are zeroes. Unknown before the first write. */
    let dataEnd: number | undefined;
    let fileEnd = 0;
    const isAhead = () => dataEnd !== undefined && fileEnd > dataEnd;
    const toCutOff = Perm.Write | Perm.Resize;
    const file = await openFileChild(co, {
      filtered: true,
      primary: true,
      // Nobody else may move the end while it is not where it seems to be; at the end, the rest is cut off.
      perm: ({ used, shared }) =>
        (used & toCutOff) === toCutOff || isAhead()
          ? { used: used | toCutOff, shared: shared & ~toCutOff }
          : { used, shared },
    });

    const grow = async (co: Coroutine<"read">, end: number): Promise<void> => {
      if (dataEnd === undefined) dataEnd = fileEnd = await file.getLength(co);
      if (end <= dataEnd) return;
      dataEnd = end;
      if (end <= fileEnd) return;
      const wanted = alignUp(end + size, Math.max(align, SECTOR_SIZE));
      const from = fileEnd;
      fileEnd = wanted;
      try {
        await file.pwriteZeroes(co, from, wanted - from, Req.NoFallback);
      } catch (error) {
        if (!(error instanceof BlockError)) throw error;
        // Not ahead, then: the write itself makes the file as long as it needs.
        fileEnd = Math.max(from, end);
      }
    };
    const cutOff = async (co: Coroutine<"read">): Promise<void> => {
      if (dataEnd === undefined || !isAhead()) return;
      await file.truncate(co, dataEnd, true);
      fileEnd = dataEnd;
    };
    const release = (co: Coroutine<"none">) => graphRdlock(co, cutOff);

    return {
      supportedWriteFlags: file.node.supportedWriteFlags | Req.WriteUnchanged,
      supportedZeroFlags: file.node.supportedZeroFlags | Req.WriteUnchanged,
      getLength: async (co) => dataEnd ?? file.getLength(co),
      async pwrite(co, offset, iov, flags) {
        await grow(co, offset + iovLength(iov));
        await file.pwrite(co, offset, iov, flags);
      },
      async pwriteZeroes(co, offset, bytes, flags) {
        await grow(co, offset + bytes);
        await file.pwriteZeroes(co, offset, bytes, flags);
      },
      async truncate(co, bytes, exact, prealloc, flags) {
        await cutOff(co);
        await file.truncate(co, bytes, exact, prealloc, flags);
        if (dataEnd !== undefined) dataEnd = fileEnd = bytes;
      },
      async reopen(co, { readOnly }) {
        if (readOnly && !node.readOnly) await release(co);
        dataEnd = readOnly ? undefined : dataEnd;
        return { commit: () => {}, abort: () => {} };
      },
      close: release,
    };
  },
};
