/** The VMDK format of VMware's products.  @qemu block/vmdk.c */

import type { Coroutine } from "../../src/block/coroutine.ts";
import type {
  CheckOptions,
  CheckResult,
  DriverInfo,
  FormatDriver,
  InfoValue,
  NodeOps,
  SpecificInfo,
} from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import { SECTOR_SIZE } from "../../src/block/units.ts";
import { type CreateOptions, create, createOptions } from "./create.ts";
import { blockStatus, findRun } from "./mapping.ts";
import { openState } from "./open.ts";
import { pread } from "./read.ts";
import type { Extent, SparseExtent, VmdkState } from "./state.ts";
import { pwrite, pwriteCompressed, pwriteZeroes } from "./write.ts";

export const vmdk: FormatDriver<Record<never, never>, CreateOptions> = {
  formatName: "vmdk",
  kind: "format",
  options: {},
  createOptions,
  supportsBacking: true,
  supportsCompression: true,
  create,
  open: async (co, opening) => nodeOps(await openState(co, opening)),
};

function nodeOps(state: VmdkState): NodeOps {
  const { extents } = state;
  const sparse = extents.filter((extent): extent is SparseExtent => extent.kind === "sparse");
  return {
    pread: (co, offset, iov) => pread(co, state, offset, iov),
    pwrite: (co, offset, iov) => pwrite(co, state, offset, iov),
    pwriteCompressed: (co, offset, iov) => pwriteCompressed(co, state, offset, iov),
    pwriteZeroes: (co, offset, bytes) => pwriteZeroes(co, state, offset, bytes),
    blockStatus: (co, _wantZero, offset, bytes) => blockStatus(co, state, offset, bytes),
    limits: () => ({ pwriteZeroesAlignment: Math.max(0, ...sparse.map(({ grainBytes }) => grainBytes)) }),
    async flushToOs(co) {
      for (const { tables } of sparse) await tables.write(co);
    },
    hasZeroInit: () =>
      extents.every((extent) => extent.kind !== "flat" || (extent.file.node.ops.hasZeroInit?.() ?? false)),
    getInfo: async () => driverInfo(extents),
    getSpecificInfo: async () => specificInfo(state),
    check: (co, options) => check(co, state, options),
    async reopen(_, { readOnly }) {
      if (!readOnly && state.readOnlyReason !== undefined)
        throw new BlockError("EACCES", state.readOnlyReason);
      return { commit: () => {}, abort: () => {} };
    },
  };
}

/** Undefined: extents differ.  @qemu vmdk_get_info */
function driverInfo(extents: readonly Extent[]): DriverInfo | undefined {
  const [first, ...others] = extents.map((extent) => ({
    clusterSize: extent.kind === "sparse" ? extent.grainBytes : 0,
    needsCompressedWrites: extent.kind === "sparse" && extent.isCompressed,
  }));
  const isOne = others.every(
    ({ clusterSize, needsCompressedWrites }) =>
      clusterSize === first?.clusterSize && needsCompressedWrites === first.needsCompressedWrites,
  );
  return isOne ? first : undefined;
}

/** @qemu vmdk_get_specific_info */
function specificInfo({ cid, parentCid, createType, extents }: VmdkState): SpecificInfo {
  return {
    type: "vmdk",
    data: { cid, "parent-cid": parentCid, "create-type": createType, extents: extents.map(extentInfo) },
  };
}

/** @qemu vmdk_get_extent_info */
function extentInfo(extent: Extent): InfoValue {
  const isSparse = extent.kind === "sparse";
  return {
    ...(isSparse && extent.isCompressed && { compressed: true }),
    "virtual-size": extent.end - extent.start,
    ...(extent.kind !== "zero" && { filename: extent.file.node.filename }),
    ...(isSparse && { "cluster-size": extent.grainBytes }),
    format: extent.type,
  };
}

/** Ends at the first finding.  @qemu vmdk_check */
async function check(co: Coroutine<"read">, state: VmdkState, options: CheckOptions): Promise<CheckResult> {
  if (options.fixErrors || options.fixLeaks) throw new BlockError("ENOTSUP");
  const { extents, node } = state;
  const length = node.totalSectors * SECTOR_SIZE;
  const fileLengths = new Map<Extent, number>();
  for (const extent of extents)
    if (extent.kind === "sparse") fileLengths.set(extent, await extent.file.getLength(co));
  const refuse = (message: string): never => {
    options.report(`ERROR: ${message}`);
    throw new BlockError("EINVAL");
  };
  for (let offset = 0; offset < length; ) {
    const run = await findRun(co, state, offset, length - offset).catch((error: unknown) => {
      if (!(error instanceof BlockError)) throw error;
      return refuse(`could not get cluster_offset for sector ${offset / SECTOR_SIZE}`);
    });
    if (run.kind === "data" || run.kind === "compressed") {
      const { extent } = run;
      const room = (fileLengths.get(extent) as number) - run.hostOffset;
      // The first grain of the run that begins behind the end.
      const grains = Math.max(Math.ceil(room / extent.grainBytes), 0);
      const bad = offset + grains * extent.grainBytes;
      if (bad < offset + run.bytes) refuse(`cluster offset for sector ${bad / SECTOR_SIZE} points after EOF`);
    }
    offset += run.bytes;
  }
  return { corruptions: 0, leaks: 0, checkErrors: 0, corruptionsFixed: 0, leaksFixed: 0, imageEndOffset: 0 };
}
