/** Shows one partition of a disk, to be read and written within its bounds: `part:NUMBER:FILENAME`. QEMU has none. */

import { blockStatusAbove } from "../src/block/block-status.ts";
import { type BlockChild, Perm } from "../src/block/child.ts";
import { graphRdlock } from "../src/block/coroutine.ts";
import type { FilterDriver, NodeOps } from "../src/block/driver.ts";
import { BlockError } from "../src/block/errors.ts";
import type { Options } from "../src/block/options.ts";
import { SECTOR_SIZE } from "../src/block/units.ts";
import { findPartition } from "./partition-tables.ts";

const options = {
  /** As Linux counts: 1 to 4 are an MBR's own, 5 and up its logical ones. */
  number: { type: "number", strong: true },
  /** 512 or 4096: of the disk that the table was made for. */
  "sector-size": { type: "size", strong: true },
  /** The child by its filename, as `part:NUMBER:FILENAME` gives it. */
  "x-image": { type: "string" },
} as const;

export const partition: FilterDriver<typeof options> = {
  formatName: "partition",
  // Its child is not a filtered one, for the offsets differ: what is not defined here is not done.
  kind: "filter",
  prefix: "part",
  options,

  parseFilename(filename) {
    const match = /^part:([0-9]{1,9}):(.+)$/s.exec(filename);
    if (!match) throw new BlockError("EINVAL", "A partition is named as part:NUMBER:FILENAME");
    const parsed: Options = new Map();
    parsed.set("number", Number(match[1]));
    parsed.set("x-image", match[2] as string);
    return parsed;
  },

  filenameOf(node) {
    const disk = node.file?.node.exactFilename ?? "";
    const isPlain = disk !== "" && !node.ownOptions.has("sector-size");
    return isPlain ? `part:${node.ownOptions.get("number")}:${disk}` : "";
  },

  async open(co, { node, options: given, openChild, environment }) {
    const { number, "sector-size": sectorSize, "x-image": filename } = given;
    if (number === undefined) throw new BlockError("EINVAL", "Parameter 'number' is missing");
    if (number < 1) throw new BlockError("EINVAL", "Partitions are counted from 1");
    if (sectorSize !== undefined && sectorSize !== 512 && sectorSize !== 4096)
      throw new BlockError("EINVAL", "Parameter 'sector-size' expects 512 or 4096");
    const file = await openChild(
      co,
      "file",
      {
        data: true,
        primary: true,
        // The disk must not end elsewhere under us, and stays as long as it is.
        perm: ({ used, shared }) => ({ used: used & ~Perm.Resize, shared: shared & ~Perm.Resize }),
      },
      filename,
    );
    if (!file) throw new BlockError("EINVAL", 'A block device must be specified for "file"');
    const { offset: start, bytes } = await graphRdlock(co, async (reader) => {
      const disk = {
        file,
        offset: 0,
        bytes: await file.getLength(reader),
        sectorSize,
        warn: environment.warn,
      };
      return findPartition(reader, disk, number);
    });
    node.totalSectors = bytes / SECTOR_SIZE;
    return operations(file, start);
  },
};

function operations(file: BlockChild, start: number): NodeOps {
  return {
    supportedWriteFlags: file.node.supportedWriteFlags,
    supportedZeroFlags: file.node.supportedZeroFlags,
    pread: (co, offset, iov, flags) => file.pread(co, start + offset, iov, flags),
    pwrite: (co, offset, iov, flags) => file.pwrite(co, start + offset, iov, flags),
    pwriteZeroes: (co, offset, bytes, flags) => file.pwriteZeroes(co, start + offset, bytes, flags),
    pdiscard: (co, offset, bytes) => file.pdiscard(co, start + offset, bytes),
    copyFrom: (co, offset, range) => file.copyFrom(co, start + offset, range),
    async blockStatus(co, wantZero, offset, bytes) {
      // The disk may be an overlay, and a partition has no backing file of its own.
      const {
        depth: _,
        eof: __,
        ...status
      } = await blockStatusAbove(co, file.node, undefined, wantZero, start + offset, bytes);
      return { ...status, data: status.data || !status.zero, allocated: true };
    },
  };
}
