/** The VHD format of Virtual PC and Hyper-V, which QEMU calls vpc: fixed, dynamic and differencing images.  @qemu block/vpc.c */

import type { FormatDriver, NodeOps } from "../../src/block/driver.ts";
import { SECTOR_SIZE } from "../../src/block/units.ts";
import { blockStatus, pread, pwrite, writeTables } from "./blocks.ts";
import { create, createOptions } from "./create.ts";
import { openState, options } from "./open.ts";
import { stateOf, type VpcState } from "./state.ts";

export const vpc: FormatDriver<typeof options, typeof createOptions> = {
  formatName: "vpc",
  kind: "format",
  options,
  createOptions,
  supportsBacking: true,
  create,

  async open(co, opening) {
    const state = await openState(co, opening);
    stateOf.set(opening.node, state);
    return {
      ...(state.blocks ? blockOps(state, state.blocks) : fixedOps(state)),
      limits: () => ({ requestAlignment: SECTOR_SIZE }),
      reopen: async () => ({ commit: () => {}, abort: () => {} }),
    };
  },
};

function fixedOps({ file }: VpcState): NodeOps {
  return {
    pread: (co, offset, iov) => file.pread(co, offset, iov),
    pwrite: (co, offset, iov) => file.pwrite(co, offset, iov),
    // The file may have holes where the image has zeroes.
    blockStatus: async (_, _wantZero, offset, bytes) => ({
      bytes,
      data: true,
      zero: false,
      allocated: true,
      offset,
      file: file.node,
      recurse: true,
    }),
    hasZeroInit: () => file.node.ops.hasZeroInit?.() ?? false,
    getInfo: async () => ({}),
  };
}

function blockOps(state: VpcState, blocks: NonNullable<VpcState["blocks"]>): NodeOps {
  return {
    pread: (co, offset, iov) => pread(co, state, blocks, offset, iov),
    pwrite: (co, offset, iov) => pwrite(co, state, blocks, offset, iov),
    blockStatus: (co, _wantZero, offset, bytes) => blockStatus(co, state, blocks, offset, bytes),
    flushToOs: (co) => writeTables(co, blocks),
    hasZeroInit: () => true,
    getInfo: async () => ({ clusterSize: blocks.blockSize }),
  };
}
