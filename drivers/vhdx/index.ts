/** The VHDX format of Hyper-V: fixed, dynamic and differencing images.  @qemu block/vhdx.c */

import type { FormatDriver } from "../../src/block/driver.ts";
import { blockStatus, pread, pwrite } from "./blocks.ts";
import { check } from "./check.ts";
import { create, createOptions } from "./create.ts";
import { settleHeaders } from "./headers.ts";
import { openState } from "./open.ts";
import { stateOf } from "./state.ts";

export const vhdx: FormatDriver<Record<never, never>, typeof createOptions> = {
  formatName: "vhdx",
  kind: "format",
  options: {},
  createOptions,
  supportsBacking: true,
  create,

  async open(co, opening) {
    const state = await openState(co, opening);
    stateOf.set(opening.node, state);
    const { file, geometry } = state;
    return {
      pread: (co, offset, iov) => pread(co, state, offset, iov),
      pwrite: (co, offset, iov) => pwrite(co, state, offset, iov),
      ...(state.parent && {
        blockStatus: (co, _wantZero, offset, bytes) => blockStatus(co, state, offset, bytes),
      }),
      flushToOs: (co) => state.lock.run(() => settleHeaders(co, state)),
      limits: () => ({ requestAlignment: geometry.sectorSize }),
      hasZeroInit: () => !state.hasBlocks || (file.node.ops.hasZeroInit?.() ?? false),
      getInfo: async () => ({ clusterSize: geometry.blockSize }),
      check: (co) => check(co, state),
      reopen: async () => ({ commit: () => {}, abort: () => {} }),
    };
  },
};
