/** The table of internal snapshots: read with bounds, and written anew as a whole. Source: qcow2.txt, "Snapshots" */

import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { u32, u64 } from "../../src/block/layout.ts";
import { alignUp } from "../../src/block/units.ts";
import { checkOverlap } from "./corruption.ts";
import type { ParsedHeader } from "./header.ts";
import { textOf } from "./header-extensions.ts";
import {
  HeaderV2,
  MAX_SNAPSHOT_EXTRA_BYTES,
  MAX_SNAPSHOT_TABLE_BYTES,
  SnapshotExtra,
  SnapshotHeader,
} from "./layout.ts";
import { allocateClusters, freeClusters } from "./refcount.ts";
import type { Qcow2State, Snapshot } from "./state.ts";

/** The snapshot has no instruction count. */
export const NO_ICOUNT = 0xffff_ffff_ffff_ffffn;

export interface SnapshotTable {
  readonly snapshots: Snapshot[];
  /** Length of the table in the file. */
  readonly tableBytes: number;
  /** Entries, by index, that lack the disk size, which version 3 wants. */
  readonly incomplete: readonly number[];
  /** What was left out because it is too much. */
  readonly discarded: number;
}

/** Bytes that are read at once. */
const WINDOW_BYTES = 64 * 1024;

/** From the table's start to its end, with extra data that is left out. */
const MAX_TABLE_SPAN = 2 ** 31 - 1;

/** Entries start at multiples of this. */
const ENTRY_ALIGNMENT = 8;

/**
 * Reads the table that the header names. `onDiscard`: what is too much is left out, with a line that tells of it;
 * else it is an error.  @qemu qcow2_read_snapshots
 */
export async function readSnapshots(
  co: Coroutine<"read">,
  file: BlockChild,
  header: Pick<ParsedHeader, "snapshotsOffset" | "nbSnapshots" | "size">,
  onDiscard?: (line: string) => void,
): Promise<SnapshotTable> {
  const start = header.snapshotsOffset;
  let window: Uint8Array = new Uint8Array(0);
  let windowStart = start;
  const fetch = async (offset: number, bytes: number): Promise<Uint8Array> => {
    if (offset + bytes > windowStart + window.length) {
      windowStart = offset;
      // What is read ahead may be of no use, and then must do no harm.
      const ahead = await file.preadBytes(co, offset, Math.max(bytes, WINDOW_BYTES)).catch(ignoreFailure);
      try {
        window = ahead ?? (await file.preadBytes(co, offset, bytes));
      } catch (error) {
        throw BlockError.wrap("Failed to read snapshot table", error);
      }
    }
    return window.subarray(offset - windowStart, offset - windowStart + bytes);
  };
  const snapshots: Snapshot[] = [];
  const incomplete: number[] = [];
  let discarded = 0;
  let keptBytes = 0;
  let end = start;
  for (let index = 0; index < header.nbSnapshots; index++) {
    const offset = alignUp(end, ENTRY_ALIGNMENT);
    const record = SnapshotHeader.read(await fetch(offset, SnapshotHeader.size));
    const { extraDataSize, idSize, nameSize } = record;
    if (extraDataSize > MAX_SNAPSHOT_EXTRA_BYTES) {
      if (!onDiscard) throw tooMuchExtra(index);
      onDiscard(
        `Discarding too much extra metadata in snapshot table entry ${index} (${extraDataSize} > ${MAX_SNAPSHOT_EXTRA_BYTES})`,
      );
      discarded++;
    }
    const extraBytes = Math.min(extraDataSize, MAX_SNAPSHOT_EXTRA_BYTES);
    const next = offset + SnapshotHeader.size + extraDataSize + idSize + nameSize;
    keptBytes += SnapshotHeader.size + extraBytes + idSize + nameSize;
    if (next - start > MAX_TABLE_SPAN || keptBytes > MAX_SNAPSHOT_TABLE_BYTES) {
      const left = header.nbSnapshots - index;
      if (!onDiscard) throw tooBig(left);
      onDiscard(`Discarding ${left} overhanging snapshots (snapshot table is too big)`);
      discarded += left;
      break;
    }
    const extra = (await fetch(offset + SnapshotHeader.size, extraBytes)).slice();
    const names = (await fetch(next - idSize - nameSize, idSize + nameSize)).slice();
    end = next;
    if (extraDataSize < 16) incomplete.push(index);
    snapshots.push(makeSnapshot(record, extra, names, header.size));
  }
  return { snapshots, tableBytes: end - start, incomplete, discarded };
}

function ignoreFailure(error: unknown): undefined {
  if (!(error instanceof BlockError)) throw error;
}

function tooMuchExtra(index: number): BlockError {
  return new BlockError("EFBIG", `Too much extra metadata in snapshot table entry ${index}`, {
    hint: "You can force-remove this extra metadata with qemu-img check -r all",
  });
}

function tooBig(left: number): BlockError {
  return new BlockError("EFBIG", "Snapshot table is too big", {
    hint: `You can force-remove all ${left} overhanging snapshots with qemu-img check -r all`,
  });
}

/** `names`: id and name. Old entries lack some or all of the extra data. */
function makeSnapshot(
  record: ReturnType<typeof SnapshotHeader.read>,
  given: Uint8Array,
  names: Uint8Array,
  guestSize: number,
): Snapshot {
  const extraDataSize = given.length;
  const padded = new Uint8Array(SnapshotExtra.size);
  padded.set(given.subarray(0, Math.min(extraDataSize, SnapshotExtra.size)));
  const extra = SnapshotExtra.read(padded);
  const exact = {
    l1TableOffset: record.l1TableOffset,
    vmStateSize: extraDataSize >= 8 ? extra.vmStateSizeLarge : BigInt(record.vmStateSize),
    diskSize: extraDataSize >= 16 ? extra.diskSize : BigInt(guestSize),
  };
  const isExact = Object.values(exact).every((value) => value <= Number.MAX_SAFE_INTEGER);
  return {
    l1TableOffset: Number(exact.l1TableOffset),
    l1Size: record.l1Size,
    ...identity(cString(names.subarray(0, record.idSize)), cString(names.subarray(record.idSize))),
    dateSec: record.dateSec,
    dateNsec: record.dateNsec,
    vmClockNsec: record.vmClockNsec,
    vmStateSize: Number(exact.vmStateSize),
    diskSize: Number(exact.diskSize),
    icount: extraDataSize >= 24 ? extra.icount : NO_ICOUNT,
    unknownExtra: given.subarray(Math.min(extraDataSize, SnapshotExtra.size)),
    ...(isExact ? {} : { exact }),
  };
}

/** As bytes, which are written back as they are, and as text. */
export function identity(
  idBytes: Uint8Array,
  nameBytes: Uint8Array,
): Pick<Snapshot, "idBytes" | "nameBytes" | "id" | "name"> {
  return { idBytes, nameBytes, id: textOf(idBytes), name: textOf(nameBytes) };
}

/** Up to the first zero byte. */
function cString(bytes: Uint8Array): Uint8Array {
  const end = bytes.indexOf(0);
  return end < 0 ? bytes : bytes.subarray(0, end);
}

/**
 * Makes `snapshots` the image's: the new table is on the disk before the header names it, and the old one is freed
 * after that. Called with the driver's lock held. An error leaves the old table in place, and then `undo` is run;
 * if not even that can be told, nothing is freed, whichever table it may be.  @qemu qcow2_write_snapshots
 */
export async function writeSnapshots(
  co: Coroutine<"read">,
  state: Qcow2State,
  snapshots: Snapshot[],
  undo: () => Promise<void> = async () => {},
): Promise<void> {
  const { snapshotsOffset: oldOffset, snapshotTableBytes: oldBytes } = state;
  let table = { offset: 0, bytes: 0 };
  let isPointed = false;
  try {
    table = await writeTable(co, state, snapshots);
    isPointed = true;
    await writePointer(co, state, snapshots.length, table.offset);
  } catch (error) {
    if (isPointed && !(await restorePointer(co, state))) throw error;
    if (isPointed) await freeClusters(co, state, table.offset, table.bytes, "always");
    await undo();
    throw error;
  }
  state.snapshots = snapshots;
  state.snapshotsOffset = table.offset;
  state.snapshotTableBytes = table.bytes;
  // It may tell inactive tables from active ones.
  state.metadataIndex = undefined;
  await freeClusters(co, state, oldOffset, oldBytes, "snapshot");
}

/** Writes the entries into clusters of their own and makes them stable; an empty table takes none. */
async function writeTable(
  co: Coroutine<"read">,
  state: Qcow2State,
  snapshots: readonly Snapshot[],
): Promise<{ readonly offset: number; readonly bytes: number }> {
  let bytes = 0;
  for (const snapshot of snapshots) bytes = alignUp(bytes, ENTRY_ALIGNMENT) + entryBytes(snapshot);
  if (bytes > MAX_SNAPSHOT_TABLE_BYTES) throw new BlockError("EFBIG");
  const { file } = state;
  if (bytes === 0) {
    // Nothing to be done; QEMU does it all the same.
    if (file.debug) await file.debug.event(co, "cluster_alloc");
    await flushTables(co, state);
    return { offset: 0, bytes: 0 };
  }
  const offset = await allocateClusters(co, state, bytes, "snapshot table");
  try {
    await flushTables(co, state);
    await checkOverlap(co, state, offset, bytes);
    let at = offset;
    for (const snapshot of snapshots) {
      // What lies between entries is left as it is, as in QEMU.
      at = alignUp(at, ENTRY_ALIGNMENT);
      const entry = makeEntry(snapshot);
      await file.pwrite(co, at, entry);
      at += entry.length;
    }
    await file.flush(co);
  } catch (error) {
    await freeClusters(co, state, offset, bytes, "always");
    throw error;
  }
  return { offset, bytes };
}

/** Puts all that is changed in the caches on the disk.  @qemu bdrv_flush */
export async function flushTables(co: Coroutine<"read">, state: Qcow2State): Promise<void> {
  const { debug } = state.file;
  if (debug) await debug.event(co, "flush_to_os");
  await state.l2Cache.write(co);
  await state.refcountCache.write(co);
  await state.file.flush(co);
}

function entryBytes({ unknownExtra, idBytes, nameBytes }: Snapshot): number {
  return SnapshotHeader.size + SnapshotExtra.size + unknownExtra.length + idBytes.length + nameBytes.length;
}

function makeEntry(snapshot: Snapshot): Uint8Array {
  const { icount, unknownExtra, idBytes, nameBytes } = snapshot;
  const { l1TableOffset, vmStateSize, diskSize } = exactNumbers(snapshot);
  const header = SnapshotHeader.write({
    l1TableOffset,
    l1Size: snapshot.l1Size,
    idSize: idBytes.length,
    nameSize: nameBytes.length,
    dateSec: snapshot.dateSec,
    dateNsec: snapshot.dateNsec,
    vmClockNsec: snapshot.vmClockNsec,
    // Who knows only this field is not to restore a part of the state.
    vmStateSize: vmStateSize < 2 ** 32 ? Number(vmStateSize) : 0,
    extraDataSize: SnapshotExtra.size + unknownExtra.length,
  });
  const extra = SnapshotExtra.write({ vmStateSizeLarge: vmStateSize, diskSize, icount });
  return Buffer.concat([header, extra, unknownExtra, idBytes, nameBytes]);
}

/** As they stand in the file, also where they are too large to be true. */
export function exactNumbers({ exact, l1TableOffset, vmStateSize, diskSize }: Snapshot) {
  if (exact) return exact;
  return {
    l1TableOffset: BigInt(l1TableOffset),
    vmStateSize: BigInt(vmStateSize),
    diskSize: BigInt(diskSize),
  };
}

async function writePointer(
  co: Coroutine<"read">,
  state: Qcow2State,
  count: number,
  offset: number,
): Promise<void> {
  const pointer = new Uint8Array(12);
  const view = new DataView(pointer.buffer);
  u32.write(view, 0, count, false);
  u64.write(view, 4, offset, false);
  await state.file.pwrite(co, HeaderV2.offsetOf.nbSnapshots, pointer);
  await state.file.flush(co);
}

/** A write that failed may still have reached the disk: it is undone. False if that fails too. */
async function restorePointer(co: Coroutine<"read">, state: Qcow2State): Promise<boolean> {
  try {
    await writePointer(co, state, state.snapshots.length, state.snapshotsOffset);
    return true;
  } catch (error) {
    if (error instanceof BlockError) return false;
    throw error;
  }
}
