/** Keeps what is read from a backing file in the image above it.  @qemu block/copy-on-read.c */

import { Perm } from "../src/block/child.ts";
import { type FilterDriver, Req } from "../src/block/driver.ts";
import { BlockError } from "../src/block/errors.ts";

const options = {
  /** The node name of the lowest layer from which data is copied. */
  bottom: { type: "string" },
} as const;

export const copyOnRead: FilterDriver<typeof options> = {
  formatName: "copy-on-read",
  kind: "filter",
  options,

  async open(co, { node, options: { bottom }, openFileChild }) {
    const file = await openFileChild(co, {
      filtered: true,
      primary: true,
      perm: ({ used, shared }) => ({ used: used | Perm.WriteUnchanged, shared }),
    });
    if (bottom !== undefined && !node.context.nodes.has(bottom))
      throw new BlockError("EINVAL", `Bottom node '${bottom}' not found`);
    return {
      supportedWriteFlags: Req.WriteUnchanged | (Req.Fua & file.node.supportedWriteFlags),
      supportedZeroFlags:
        Req.WriteUnchanged | ((Req.Fua | Req.MayUnmap | Req.NoFallback) & file.node.supportedZeroFlags),
      getLength: (co) => file.getLength(co),
      pread: (co, offset, iov, flags) => file.pread(co, offset, iov, flags | Req.CopyOnRead),
    };
  },
};
