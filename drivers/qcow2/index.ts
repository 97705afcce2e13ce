/** The qcow2 format.  @qemu block/qcow2.c */

import type { Coroutine } from "../../src/block/coroutine.ts";
import {
  type FormatDriver,
  type NodeOps,
  type ReopenAction,
  type ReopenRequest,
  Req,
} from "../../src/block/driver.ts";
import { SECTOR_SIZE } from "../../src/block/units.ts";
import { amend, amendOptions } from "./amend.ts";
import { checkNewBitmap, removeStoredBitmap } from "./bitmap-store.ts";
import { blockStatus } from "./block-status.ts";
import { check } from "./check.ts";
import { pwriteCompressed } from "./compressed.ts";
import { create } from "./create.ts";
import { type CreateOptions, createOptions } from "./create-options.ts";
import { changeBackingFile } from "./header.ts";
import { inactivate, reopenReadOnly, reopenWritable, writeCaches } from "./inactivate.ts";
import { specificInfo } from "./info.ts";
import { isDirty } from "./l2.ts";
import { QCOW2_MAGIC } from "./layout.ts";
import { makeEmpty } from "./make-empty.ts";
import { measure } from "./measure.ts";
import { openState } from "./open.ts";
import { pread } from "./read.ts";
import { truncate } from "./resize.ts";
import { prepareOptions } from "./runtime.ts";
import { options } from "./runtime-options.ts";
import { createSnapshot, deleteSnapshot, gotoSnapshot, listSnapshots, loadSnapshot } from "./snapshot.ts";
import { type Qcow2State, stateOf } from "./state.ts";
import { loadVmState, saveVmState, vmStateOffset } from "./vm-state.ts";
import { pwrite } from "./write.ts";
import { pdiscard, pwriteZeroes } from "./zero.ts";

export const qcow2: FormatDriver<typeof options, CreateOptions> = {
  formatName: "qcow2",
  kind: "format",
  options,
  createOptions,
  amendOptions,
  supportsBacking: true,
  supportsCompression: true,
  probe(head) {
    if (head.length < 8) return 0;
    const view = new DataView(head.buffer, head.byteOffset, head.length);
    return view.getUint32(0) === QCOW2_MAGIC && view.getUint32(4) >= 2 ? 100 : 0;
  },

  create,
  measure,

  async open(co, opening) {
    const state = await openState(co, opening);
    stateOf.set(opening.node, state);
    return nodeOps(state);
  },
};

function nodeOps(state: Qcow2State): NodeOps {
  const { node } = state;
  return {
    supportedWriteFlags: 0,
    // Version 2 has no entries for zeroes.
    get supportedZeroFlags() {
      return state.version >= 3 ? Req.MayUnmap | Req.NoFallback : 0;
    },
    pread: (co, offset, iov) => pread(co, state, offset, iov),
    pwrite: (co, offset, iov, flags) =>
      flags & Req.WriteCompressed ? pwriteCompressed(co, state, offset, iov) : pwrite(co, state, offset, iov),
    pwriteCompressed: (co, offset, iov) => pwriteCompressed(co, state, offset, iov),
    // What is stored encrypted must come by here.
    ...(state.crypto ? {} : { copyFrom: (co, offset, range) => pwrite(co, state, offset, range) }),
    pwriteZeroes: (co, offset, bytes, flags) => pwriteZeroes(co, state, offset, bytes, flags),
    pdiscard: (co, offset, bytes) => pdiscard(co, state, offset, bytes),
    blockStatus: (co, wantZero, offset, bytes) => blockStatus(co, state, wantZero, offset, bytes),
    truncate: (co, bytes, exact, prealloc, flags) => truncate(co, state, bytes, exact, prealloc, flags),
    flushToOs: (co) => state.lock.run(() => writeCaches(co, state)),
    limits: () => ({
      ...(state.crypto && { requestAlignment: SECTOR_SIZE }),
      pwriteZeroesAlignment: state.subclusterSize,
      pdiscardAlignment: state.clusterSize,
    }),
    // The first cluster of a preallocated image is allocated; then it is as zero as the file is.
    hasZeroInit: () =>
      node.totalSectors === 0 || state.l1Table.byteLength === 0 || state.l1Table.getBigUint64(0) === 0n
        ? true
        : !state.crypto && (state.dataFile.node.ops.hasZeroInit?.() ?? false),
    getInfo: async () => ({
      clusterSize: state.clusterSize,
      subclusterSize: state.subclusterSize,
      vmStateOffset: vmStateOffset(state),
      isDirty: isDirty(state),
    }),
    check: (co, wanted) => check(co, state, wanted),
    getSpecificInfo: (co) => specificInfo(co, state),
    listSnapshots: async () => listSnapshots(state),
    loadSnapshot: (co, wanted) => state.lock.run(() => loadSnapshot(co, state, wanted)),
    createSnapshot: (co, wanted) => createSnapshot(co, state, wanted),
    gotoSnapshot: (co, wanted) => gotoSnapshot(co, state, wanted),
    deleteSnapshot: (co, wanted) => deleteSnapshot(co, state, wanted),
    loadVmState: (co, offset, iov) => loadVmState(co, state, offset, iov),
    saveVmState: (co, offset, iov) => saveVmState(co, state, offset, iov),
    amend: (co, request) => amend(co, state, request),
    makeEmpty: (co) => makeEmpty(co, state),
    changeBackingFile: (co, name, format) => state.lock.run(() => changeBackingFile(co, state, name, format)),
    supportsBitmaps: () => state.version >= 3,
    checkNewBitmap: async (_, name, granularity) => checkNewBitmap(state, name, granularity),
    removeStoredBitmap: (co, name) => state.lock.run(() => removeStoredBitmap(co, state, name)),
    reopen: (co, request) => reopen(co, state, request),
    async close(co) {
      clearInterval(state.cleaning);
      if (!node.readOnly && !state.isBroken) await inactivate(co, state);
    },
  };
}

/** Options come into force with the mode, or not at all. */
async function reopen(
  co: Coroutine<"none">,
  state: Qcow2State,
  { readOnly, options: given }: ReopenRequest,
): Promise<ReopenAction> {
  const { node } = state;
  const putInForce = await prepareOptions(co, state, given, node.flags.unmap);
  if (readOnly === node.readOnly) return { commit: putInForce, abort: () => {} };
  const action = await (readOnly ? reopenReadOnly(co, state) : reopenWritable(state));
  return {
    ...action,
    commit: () => {
      putInForce();
      action.commit();
    },
  };
}
