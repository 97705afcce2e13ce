/** Makes every write a compressed write.  @qemu block/filter-compress.c */

import { graphRdlock } from "../src/block/coroutine.ts";
import { type FilterDriver, Req } from "../src/block/driver.ts";
import { BlockError } from "../src/block/errors.ts";
import { driverInfo } from "../src/block/info.ts";

export const compress: FilterDriver = {
  formatName: "compress",
  kind: "filter",
  options: {},

  async open(co, { openFileChild }) {
    const file = await openFileChild(co);
    if (!file.canCompress)
      throw new BlockError(
        "ENOTSUP",
        `Compression is not supported for underlying format: ${file.formatName}`,
      );
    const info = await graphRdlock(co, (reader) => driverInfo(reader, file.node));
    return {
      supportedWriteFlags: Req.WriteUnchanged | (Req.Fua & file.node.supportedWriteFlags),
      supportedZeroFlags:
        Req.WriteUnchanged | ((Req.Fua | Req.MayUnmap | Req.NoFallback) & file.node.supportedZeroFlags),
      getLength: (co) => file.getLength(co),
      pwrite: (co, offset, iov, flags) => file.pwrite(co, offset, iov, flags | Req.WriteCompressed),
      // Zeroes stay zeroes where they are whole clusters; the core makes a compressed write of the rest.
      pwriteZeroes: (co, offset, bytes, flags) => file.pwriteZeroes(co, offset, bytes, flags),
      // A compressed write is a whole cluster.
      limits: () => (info?.clusterSize ? { requestAlignment: info.clusterSize } : {}),
    };
  },
};
