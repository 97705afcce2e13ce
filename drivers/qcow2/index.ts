/** The qcow2 format. What not every image needs is loaded when it is asked for.  @qemu block/qcow2.c */

import { type FormatDriver, type NodeOps, Req } from "../../src/block/driver.ts";
import { lazily } from "../../src/block/lazy.ts";
import { SECTOR_SIZE } from "../../src/block/units.ts";
import { isQcow2 } from "../signatures.ts";
import { amendOptions, type CreateOptions, createOptions } from "./create-options.ts";
import { openState } from "./open.ts";
import { options } from "./runtime-options.ts";
import { isDirty, type Qcow2State, stateOf, vmStateOffset } from "./state.ts";

const amending = lazily(() => import("./amend.ts"));
const checking = lazily(() => import("./check.ts"));
const compressing = lazily(() => import("./compressed.ts"));
const creating = lazily(() => import("./create.ts"));
const describing = lazily(() => import("./info.ts"));
const emptying = lazily(() => import("./make-empty.ts"));
const headers = lazily(() => import("./header.ts"));
const leaving = lazily(() => import("./inactivate.ts"));
const measuring = lazily(() => import("./measure.ts"));
const reading = lazily(() => import("./read.ts"));
const reopening = lazily(() => import("./reopen.ts"));
const resizing = lazily(() => import("./resize.ts"));
const snapshots = lazily(() => import("./snapshot.ts"));
const status = lazily(() => import("./block-status.ts"));
const storedBitmaps = lazily(() => import("./bitmap-store.ts"));
const vmState = lazily(() => import("./vm-state.ts"));
const writing = lazily(() => import("./write.ts"));
const zeroing = lazily(() => import("./zero.ts"));

export const qcow2: FormatDriver<typeof options, CreateOptions> = {
  formatName: "qcow2",
  kind: "format",
  options,
  createOptions,
  amendOptions,
  supportsBacking: true,
  supportsCompression: true,
  probe: isQcow2,

  create: (co, request) => creating(({ create }) => create(co, request)),
  measure: (request) => measuring(({ measure }) => measure(request)),

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
    pread: (co, offset, iov) => reading(({ pread }) => pread(co, state, offset, iov)),
    ...changingOps(state),
    blockStatus: (co, wantZero, offset, bytes) =>
      status(({ blockStatus }) => blockStatus(co, state, wantZero, offset, bytes)),
    flushToOs: (co) => state.lock.run(() => leaving(({ writeCaches }) => writeCaches(co, state))),
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
    check: (co, wanted) => checking(({ check }) => check(co, state, wanted)),
    getSpecificInfo: (co) => describing(({ specificInfo }) => specificInfo(co, state)),
    ...snapshotOps(state),
    supportsBitmaps: () => state.version >= 3,
    checkNewBitmap: (_, name, granularity) =>
      storedBitmaps(async ({ checkNewBitmap }) => checkNewBitmap(state, name, granularity)),
    removeStoredBitmap: (co, name) =>
      state.lock.run(() => storedBitmaps(({ removeStoredBitmap }) => removeStoredBitmap(co, state, name))),
    reopen: (co, request) => reopening(({ reopen }) => reopen(co, state, request)),
    async close(co) {
      clearInterval(state.cleaning);
      if (!node.readOnly && !state.isBroken) await leaving(({ inactivate }) => inactivate(co, state));
    },
  };
}

/** What changes the image. */
function changingOps(state: Qcow2State) {
  return {
    pwrite: (co, offset, iov, flags) =>
      flags & Req.WriteCompressed
        ? compressing(({ pwriteCompressed }) => pwriteCompressed(co, state, offset, iov))
        : writing(({ pwrite }) => pwrite(co, state, offset, iov)),
    pwriteCompressed: (co, offset, iov) =>
      compressing(({ pwriteCompressed }) => pwriteCompressed(co, state, offset, iov)),
    // What is stored encrypted must come by here.
    ...(state.crypto
      ? {}
      : { copyFrom: (co, offset, range) => writing(({ pwrite }) => pwrite(co, state, offset, range)) }),
    pwriteZeroes: (co, offset, bytes, flags) =>
      zeroing(({ pwriteZeroes }) => pwriteZeroes(co, state, offset, bytes, flags)),
    pdiscard: (co, offset, bytes) => zeroing(({ pdiscard }) => pdiscard(co, state, offset, bytes)),
    truncate: (co, bytes, exact, prealloc, flags) =>
      resizing(({ truncate }) => truncate(co, state, bytes, exact, prealloc, flags)),
    amend: (co, request) => amending(({ amend }) => amend(co, state, request)),
    makeEmpty: (co) => emptying(({ makeEmpty }) => makeEmpty(co, state)),
    changeBackingFile: (co, name, format) =>
      state.lock.run(() => headers(({ changeBackingFile }) => changeBackingFile(co, state, name, format))),
  } satisfies Partial<NodeOps>;
}

function snapshotOps(state: Qcow2State) {
  return {
    listSnapshots: async () =>
      state.snapshots.length === 0 ? [] : snapshots(async ({ listSnapshots }) => listSnapshots(state)),
    loadSnapshot: (co, wanted) =>
      state.lock.run(() => snapshots(({ loadSnapshot }) => loadSnapshot(co, state, wanted))),
    createSnapshot: (co, wanted) => snapshots(({ createSnapshot }) => createSnapshot(co, state, wanted)),
    gotoSnapshot: (co, wanted) => snapshots(({ gotoSnapshot }) => gotoSnapshot(co, state, wanted)),
    deleteSnapshot: (co, wanted) => snapshots(({ deleteSnapshot }) => deleteSnapshot(co, state, wanted)),
    loadVmState: (co, offset, iov) => vmState(({ loadVmState }) => loadVmState(co, state, offset, iov)),
    saveVmState: (co, offset, iov) => vmState(({ saveVmState }) => saveVmState(co, state, offset, iov)),
  } satisfies Partial<NodeOps>;
}
