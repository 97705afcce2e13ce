/** Internal snapshots: their table, read with bounds, and a snapshot's content made what the guest sees. Source: qcow2.txt, "Snapshots" */

import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import type { SnapshotInfo } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import { isAligned } from "../../src/block/units.ts";
import type { ParsedHeader } from "./header.ts";
import { textOf } from "./header-extensions.ts";
import {
  MAX_L1_BYTES,
  MAX_SNAPSHOT_EXTRA_BYTES,
  MAX_SNAPSHOT_TABLE_BYTES,
  SnapshotExtra,
  SnapshotHeader,
} from "./layout.ts";
import type { Qcow2State, Snapshot } from "./state.ts";

/** The snapshot has no instruction count. */
const NO_ICOUNT = 0xffff_ffff_ffff_ffffn;

export interface SnapshotTable {
  readonly snapshots: Snapshot[];
  /** Length of the table in the file. */
  readonly tableBytes: number;
  /** Entries, by index, that lack the disk size, which version 3 wants. */
  readonly incomplete: readonly number[];
}

/** Bytes that are read at once. */
const WINDOW_BYTES = 64 * 1024;

/** Reads the table that the header names.  @qemu qcow2_read_snapshots */
export async function readSnapshots(
  co: Coroutine<"read">,
  file: BlockChild,
  header: Pick<ParsedHeader, "snapshotsOffset" | "nbSnapshots" | "size">,
): Promise<SnapshotTable> {
  const start = header.snapshotsOffset;
  let window: Uint8Array = new Uint8Array(0);
  let windowStart = start;
  const fetch = async (offset: number, bytes: number): Promise<Uint8Array> => {
    if (offset + bytes > windowStart + window.length) {
      windowStart = offset;
      try {
        window = await file.preadBytes(co, offset, Math.max(bytes, WINDOW_BYTES));
      } catch (error) {
        throw BlockError.wrap("Failed to read snapshot table", error);
      }
    }
    return window.subarray(offset - windowStart, offset - windowStart + bytes);
  };
  const snapshots: Snapshot[] = [];
  const incomplete: number[] = [];
  let offset = start;
  for (let index = 0; index < header.nbSnapshots; index++) {
    // Entries start at multiples of 8.
    offset = Math.ceil(offset / 8) * 8;
    const record = SnapshotHeader.read(await fetch(offset, SnapshotHeader.size));
    if (record.extraDataSize > MAX_SNAPSHOT_EXTRA_BYTES)
      throw new BlockError("EFBIG", `Too much extra metadata in snapshot table entry ${index}`, {
        hint: "You can force-remove this extra metadata with qemu-img check -r all",
      });
    const { extraDataSize, idSize, nameSize } = record;
    offset += SnapshotHeader.size;
    const rest = (await fetch(offset, extraDataSize + idSize + nameSize)).slice();
    offset += rest.length;
    if (offset - start > MAX_SNAPSHOT_TABLE_BYTES)
      throw new BlockError("EFBIG", "Snapshot table is too big", {
        hint: `You can force-remove all ${header.nbSnapshots - index} overhanging snapshots with qemu-img check -r all`,
      });
    if (extraDataSize < 16) incomplete.push(index);
    snapshots.push(makeSnapshot(record, rest, header.size));
  }
  return { snapshots, tableBytes: offset - start, incomplete };
}

/** `rest`: extra data, id and name. Old entries lack the extra data. */
function makeSnapshot(
  record: ReturnType<typeof SnapshotHeader.read>,
  rest: Uint8Array,
  guestSize: number,
): Snapshot {
  const { extraDataSize, idSize } = record;
  const padded = new Uint8Array(SnapshotExtra.size);
  padded.set(rest.subarray(0, Math.min(extraDataSize, SnapshotExtra.size)));
  const extra = SnapshotExtra.read(padded);
  return {
    l1TableOffset: record.l1TableOffset,
    l1Size: record.l1Size,
    id: textOf(rest.subarray(extraDataSize, extraDataSize + idSize)),
    name: textOf(rest.subarray(extraDataSize + idSize)),
    dateSec: record.dateSec,
    dateNsec: record.dateNsec,
    vmClockNsec: record.vmClockNsec,
    vmStateSize: extraDataSize >= 8 ? extra.vmStateSizeLarge : record.vmStateSize,
    diskSize: extraDataSize >= 16 ? extra.diskSize : guestSize,
    icount: extraDataSize >= 24 ? extra.icount : NO_ICOUNT,
    unknownExtra: rest.subarray(Math.min(extraDataSize, SnapshotExtra.size), extraDataSize),
  };
}

/** @qemu qcow2_snapshot_list */
export function listSnapshots({ snapshots }: Qcow2State): readonly SnapshotInfo[] {
  return snapshots.map(({ id, name, vmStateSize, dateSec, dateNsec, vmClockNsec, icount }) => ({
    id,
    name,
    vmStateSize,
    dateSec,
    dateNsec,
    vmClockNsec,
    ...(icount !== NO_ICOUNT && { icount }),
  }));
}

/**
 * Makes the snapshot's L1 table the active one, in memory only. The virtual size stays as it is.
 * The node must be read-only.  @qemu qcow2_snapshot_load_tmp
 */
export async function loadSnapshot(
  co: Coroutine<"read">,
  state: Qcow2State,
  wanted: { id?: string; name?: string },
): Promise<void> {
  if (!state.node.readOnly) throw new BlockError("EINVAL", "Device is not readonly");
  const snapshot = state.snapshots.find(
    ({ id, name }) => (wanted.id ?? id) === id && (wanted.name ?? name) === name,
  );
  if (!snapshot) throw new BlockError("ENOENT", "Can't find snapshot");
  const { l1TableOffset, l1Size } = snapshot;
  checkSnapshotL1(snapshot, state.clusterSize);
  const table = new Uint8Array(l1Size * 8);
  try {
    await state.file.pread(co, l1TableOffset, table);
  } catch (error) {
    throw BlockError.wrap("Failed to read l1 table for snapshot", error);
  }
  state.l1TableOffset = l1TableOffset;
  state.l1Size = l1Size;
  state.l1Table = new DataView(table.buffer);
}

/** The tables of snapshots are not looked at when the image is opened.  @qemu qcow2_validate_table */
function checkSnapshotL1({ l1TableOffset, l1Size }: Snapshot, clusterSize: number): void {
  if (l1Size * 8 > MAX_L1_BYTES) throw new BlockError("EFBIG", "Snapshot L1 table too large");
  if (!Number.isSafeInteger(l1TableOffset) || !isAligned(l1TableOffset, clusterSize))
    throw new BlockError("EINVAL", "Snapshot L1 table offset invalid");
}
