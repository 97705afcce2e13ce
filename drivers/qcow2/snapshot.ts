/**
 * Internal snapshots: listed, shown, taken, applied and deleted.  @qemu block/qcow2-snapshot.c
 *
 * Invariants:
 * 1. A snapshot stands in the table while, and only while, all that it refers to has its reference (and then no entry
 *    in the file says that a cluster is the active image's alone): snapshot-refcounts.ts.
 * 2. An error leaves the image as it was, but for leaks where undoing fails too. Once the change has been made, what
 *    goes wrong while clusters are freed only leaks them.
 */

import type { Coroutine } from "../../src/block/coroutine.ts";
import type { NewSnapshot, SnapshotInfo, SnapshotRef } from "../../src/block/driver.ts";
import { BlockError, strerror } from "../../src/block/errors.ts";
import { truncateNode } from "../../src/block/length.ts";
import { alignUp, isAligned, SECTOR_SIZE } from "../../src/block/units.ts";
import { checkOverlap } from "./corruption.ts";
import { textOf } from "./header-extensions.ts";
import { exclusively, growL1 } from "./l2.ts";
import { MAX_L1_BYTES, MAX_SNAPSHOTS } from "./layout.ts";
import { allocateClusters, freeClusters } from "./refcount.ts";
import { addReferences, dropReferences, refreshFlags } from "./snapshot-refcounts.ts";
import { identity, NO_ICOUNT, writeSnapshots } from "./snapshot-table.ts";
import { type Qcow2State, type Snapshot, vmStateOffset } from "./state.ts";
import { discardRange } from "./zero.ts";

/** Longest id and name in bytes that QEMU shows or makes. */
const MAX_ID_BYTES = 127;
const MAX_NAME_BYTES = 255;

/** @qemu qcow2_snapshot_list */
export function listSnapshots({ snapshots }: Qcow2State): readonly SnapshotInfo[] {
  return snapshots.map(({ idBytes, nameBytes, vmStateSize, dateSec, dateNsec, vmClockNsec, icount }) => ({
    id: textOf(idBytes.subarray(0, MAX_ID_BYTES)),
    name: textOf(nameBytes.subarray(0, MAX_NAME_BYTES)),
    vmStateSize,
    dateSec,
    dateNsec,
    vmClockNsec,
    ...(icount !== NO_ICOUNT && { icount }),
  }));
}

/** @qemu find_snapshot_by_id_and_name */
function findByIdAndName({ snapshots }: Qcow2State, wanted: SnapshotRef): Snapshot | undefined {
  return snapshots.find(({ id, name }) => (wanted.id ?? id) === id && (wanted.name ?? name) === name);
}

/**
 * Makes the snapshot's L1 table the active one, in memory only. The virtual size stays as it is.
 * The node must be read-only.  @qemu qcow2_snapshot_load_tmp
 */
export async function loadSnapshot(
  co: Coroutine<"read">,
  state: Qcow2State,
  wanted: SnapshotRef,
): Promise<void> {
  if (!state.node.readOnly) throw new BlockError("EINVAL", "Device is not readonly");
  const snapshot = findByIdAndName(state, wanted);
  if (!snapshot) throw new BlockError("ENOENT", "Can't find snapshot");
  let table: DataView<ArrayBuffer>;
  checkSnapshotL1(snapshot, state.clusterSize);
  try {
    table = await readSnapshotL1(co, state, snapshot);
  } catch (error) {
    throw BlockError.wrap("Failed to read l1 table for snapshot", error);
  }
  state.l1TableOffset = snapshot.l1TableOffset;
  state.l1Size = snapshot.l1Size;
  state.l1Table = table;
  state.metadataIndex = undefined;
}

/** The tables of snapshots are not looked at when the image is opened.  @qemu qcow2_validate_table */
export function checkSnapshotL1({ l1TableOffset, l1Size }: Snapshot, clusterSize: number): void {
  if (l1Size * 8 > MAX_L1_BYTES) throw new BlockError("EFBIG", "Snapshot L1 table too large");
  if (!Number.isSafeInteger(l1TableOffset) || !isAligned(l1TableOffset, clusterSize))
    throw new BlockError("EINVAL", "Snapshot L1 table offset invalid");
}

/** `checkSnapshotL1` has been called. */
export async function readSnapshotL1(
  co: Coroutine<"read">,
  state: Qcow2State,
  { l1TableOffset, l1Size }: Snapshot,
): Promise<DataView<ArrayBuffer>> {
  const table = new Uint8Array(l1Size * 8);
  await state.file.pread(co, l1TableOffset, table);
  return new DataView(table.buffer);
}

/** Takes a snapshot of the active content.  @qemu qcow2_snapshot_create */
export async function createSnapshot(
  co: Coroutine<"read">,
  state: Qcow2State,
  wanted: NewSnapshot,
): Promise<void> {
  if (state.snapshots.length >= MAX_SNAPSHOTS) throw new BlockError("EFBIG");
  if (state.hasDataFile) throw new BlockError("ENOTSUP");
  await exclusively(state, 0, Infinity, async () => {
    const snapshot: Snapshot = {
      l1TableOffset: await copyL1(co, state),
      l1Size: state.l1Size,
      ...identity(Buffer.from(freshId(state)), Buffer.from(wanted.name).subarray(0, MAX_NAME_BYTES)),
      dateSec: wanted.dateSec,
      dateNsec: wanted.dateNsec,
      vmClockNsec: wanted.vmClockNsec,
      vmStateSize: wanted.vmStateSize,
      diskSize: state.node.totalSectors * SECTOR_SIZE,
      icount: wanted.icount ?? NO_ICOUNT,
      unknownExtra: new Uint8Array(0),
    };
    // What fails here leaks the copy, as in QEMU: scripts show what check says of it.
    const shared = copyActiveL1(state);
    const changed = await addReferences(co, state, shared);
    if (changed) await writeActiveL1(co, state, shared, () => dropReferences(co, state, shared));
    await writeSnapshots(co, state, [...state.snapshots, snapshot], async () => {
      await dropReferences(co, state, shared);
      await refreshActive(co, state);
      await freeClusters(co, state, snapshot.l1TableOffset, snapshot.l1Size * 8, "always");
    });
  });
  if (wanted.vmStateSize === 0) return;
  // That is the snapshot's from now on; left here, it would be copied cluster by cluster for the next one.
  const start = vmStateOffset(state);
  const end = start + alignUp(wanted.vmStateSize, state.clusterSize);
  await discardRange(co, state, start, end, "never", false);
}

/** One more than the largest number that an id begins with.  @qemu find_new_snapshot_id */
function freshId({ snapshots }: Qcow2State): string {
  const most = 2n ** 64n - 1n;
  let max = 0n;
  for (const { id } of snapshots) {
    const [, sign, digits] = /^[ \t-\r]*([+-]?)(\d+)/.exec(id) ?? [];
    if (digits === undefined) continue;
    const number = BigInt(digits) > most ? most : BigInt(digits);
    const value = BigInt.asUintN(64, sign === "-" ? -number : number);
    if (value > max) max = value;
  }
  return String(BigInt.asUintN(64, max + 1n));
}

/** Copies the active L1 table, flags and all, to clusters of its own: their host offset. */
async function copyL1(co: Coroutine<"read">, state: Qcow2State): Promise<number> {
  const bytes = state.l1Size * 8;
  const offset = await allocateClusters(co, state, bytes, "L1 table");
  try {
    await checkOverlap(co, state, offset, bytes);
    await state.file.pwrite(co, offset, activeL1(state));
    return offset;
  } catch (error) {
    await freeClusters(co, state, offset, bytes, "always");
    throw error;
  }
}

function activeL1({ l1Table, l1Size }: Qcow2State): Uint8Array<ArrayBuffer> {
  return new Uint8Array(l1Table.buffer, l1Table.byteOffset, l1Size * 8);
}

function copyActiveL1(state: Qcow2State): DataView<ArrayBuffer> {
  return new DataView(activeL1(state).slice().buffer);
}

/**
 * Puts `table` in the place of the active L1 table, on the disk and here. An error leaves the old one there, and then
 * `undo` is run; if that can't be told, nothing more is done.
 */
async function writeActiveL1(
  co: Coroutine<"read">,
  state: Qcow2State,
  table: DataView<ArrayBuffer>,
  undo: () => Promise<void> = async () => {},
): Promise<void> {
  const { file, l1TableOffset } = state;
  const write = async (content: Uint8Array) => {
    await file.pwrite(co, l1TableOffset, content);
    await file.flush(co);
  };
  try {
    await write(new Uint8Array(table.buffer));
  } catch (error) {
    const isBack = await succeeds(write(activeL1(state)));
    if (isBack) await succeeds(undo());
    throw error;
  }
  activeL1(state).set(new Uint8Array(table.buffer));
  state.metadataIndex = undefined;
}

/** Makes the flags of all active tables right again after references have gone. */
export async function refreshActive(co: Coroutine<"read">, state: Qcow2State): Promise<void> {
  const table = copyActiveL1(state);
  if (await refreshFlags(co, state, table)) await writeActiveL1(co, state, table);
}

/** Makes the snapshot's content, and size, the active one's.  @qemu qcow2_snapshot_goto */
export async function gotoSnapshot(
  co: Coroutine<"read">,
  state: Qcow2State,
  wanted: SnapshotRef,
): Promise<void> {
  if (state.hasDataFile) throw new BlockError("ENOTSUP");
  const snapshot = findByIdAndName(state, wanted);
  if (!snapshot) throw new BlockError("ENOENT");
  await reported(state, async () => checkSnapshotL1(snapshot, state.clusterSize));
  // First what may well fail: what is discarded by a smaller size does not come back.
  const table = await exclusively(state, 0, Infinity, () => shareSnapshot(co, state, snapshot));
  try {
    await reported(state, async () => {
      if (snapshot.diskSize !== state.node.totalSectors * SECTOR_SIZE)
        await truncateNode(co, state.node, snapshot.diskSize, true, "off", 0);
    });
  } catch (error) {
    await succeeds(exclusively(state, 0, Infinity, () => dropReferences(co, state, table)));
    throw error;
  }
  await exclusively(state, 0, Infinity, () => switchL1(co, state, table));
}

/** Gives all that the snapshot refers to a reference more: its L1 table, for the active one to become. */
async function shareSnapshot(
  co: Coroutine<"read">,
  state: Qcow2State,
  snapshot: Snapshot,
): Promise<DataView<ArrayBuffer>> {
  const table = await readSnapshotL1(co, state, snapshot);
  if (!(await addReferences(co, state, table))) return table;
  try {
    await state.file.pwrite(co, snapshot.l1TableOffset, new Uint8Array(table.buffer));
  } catch (error) {
    await succeeds(dropReferences(co, state, table));
    throw error;
  }
  return table;
}

/** Puts the shared table in the place of the active one, and takes the references of the latter away. */
async function switchL1(
  co: Coroutine<"read">,
  state: Qcow2State,
  table: DataView<ArrayBuffer>,
): Promise<void> {
  const undo = () => dropReferences(co, state, table);
  try {
    await growL1(co, state, table.byteLength / 8, true);
    await checkOverlap(co, state, state.l1TableOffset, state.l1Size * 8, "active L1 table");
  } catch (error) {
    await succeeds(undo());
    throw error;
  }
  const old = copyActiveL1(state);
  const padded = new Uint8Array(old.byteLength);
  padded.set(new Uint8Array(table.buffer));
  await writeActiveL1(co, state, new DataView(padded.buffer), undo);
  await dropReferences(co, state, old);
  await refreshActive(co, state);
}

/** Deletes the snapshot that has both the id and the name, as far as they are given.  @qemu qcow2_snapshot_delete */
export async function deleteSnapshot(
  co: Coroutine<"read">,
  state: Qcow2State,
  wanted: SnapshotRef,
): Promise<void> {
  if (state.hasDataFile) throw new BlockError("ENOTSUP");
  await exclusively(state, 0, Infinity, async () => {
    const snapshot = findByIdAndName(state, wanted);
    if (!snapshot) throw new BlockError("ENOENT", "Can't find the snapshot");
    checkSnapshotL1(snapshot, state.clusterSize);
    const table = await step("Failed to free the cluster and L1 table", () =>
      readSnapshotL1(co, state, snapshot),
    );
    await step("Failed to remove snapshot from snapshot list", async () => {
      await writeSnapshots(
        co,
        state,
        state.snapshots.filter((other) => other !== snapshot),
      );
    });
    await step("Failed to free the cluster and L1 table", () => dropReferences(co, state, table));
    await freeClusters(co, state, snapshot.l1TableOffset, table.byteLength, "snapshot");
    await step("Failed to update snapshot status in disk", () => refreshActive(co, state));
  });
}

/** What goes wrong in `fn` is told by its errno.  @qemu error_setg_errno */
async function step<T>(prefix: string, fn: () => Promise<T>): Promise<T> {
  try {
    return await fn();
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new BlockError(error.errno, `${prefix}: ${strerror(error.errno)}`, { cause: error });
  }
}

/** Tells the message of what goes wrong in `fn` by itself, and throws only its errno.  @qemu error_report_err */
async function reported(state: Qcow2State, fn: () => Promise<void>): Promise<void> {
  try {
    await fn();
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    const { error: report, warn } = state.environment;
    (report ?? warn)(error.message);
    throw new BlockError(error.errno, undefined, { cause: error });
  }
}

/** False if it fails for a reason that is not ours: the error that led here counts more. */
async function succeeds(attempt: Promise<unknown>): Promise<boolean> {
  try {
    await attempt;
    return true;
  } catch (error) {
    if (error instanceof BlockError) return false;
    throw error;
  }
}
