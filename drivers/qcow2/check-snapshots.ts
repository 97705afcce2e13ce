/** The part of a check that is about the snapshot table: an image that is opened to be checked has not read it yet. */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { u32, u64 } from "../../src/block/layout.ts";
import { isAligned } from "../../src/block/units.ts";
import type { Check } from "./check.ts";
import { HeaderV2, MAX_SNAPSHOTS } from "./layout.ts";
import { readSnapshots, writeSnapshots } from "./snapshot-table.ts";
import type { Qcow2State } from "./state.ts";

interface Pointer {
  nbSnapshots: number;
  readonly snapshotsOffset: number;
}

/**
 * Reads the table anew. Gives how many faults it has of those that `fixSnapshotTable` takes away.
 * @qemu qcow2_check_read_snapshot_table
 */
export async function checkSnapshotTable(co: Coroutine<"read">, run: Check): Promise<number> {
  const { state, options } = run;
  const onDiscard = options.fixErrors ? options.report : undefined;
  const pointer = await readPointer(co, run);
  const surplus = onDiscard ? Math.max(pointer.nbSnapshots - MAX_SNAPSHOTS, 0) : 0;
  if (surplus > 0) {
    onDiscard?.(`Discarding ${surplus} overhanging snapshots`);
    pointer.nbSnapshots = MAX_SNAPSHOTS;
  }
  const table = await told(state, "ERROR ", async () => {
    checkPointer(pointer, state.clusterSize);
    return readTable(co, state, pointer, onDiscard);
  });
  state.snapshotsOffset = pointer.snapshotsOffset;
  state.snapshots = table.snapshots;
  state.unreadSnapshots = undefined;
  state.snapshotTableBytes = table.tableBytes;
  state.metadataIndex = undefined;
  if (surplus > 0) await dropSurplus(co, run, surplus);
  const faults = table.discarded;
  if (state.version < 3) return faults;
  for (const index of table.incomplete)
    options.report(
      `${options.fixErrors ? "Repairing" : "ERROR"} snapshot table entry ${index} is incomplete`,
    );
  return faults + table.incomplete.length;
}

async function readPointer(co: Coroutine<"read">, { state, options }: Check): Promise<Pointer> {
  try {
    const bytes = await state.file.preadBytes(co, HeaderV2.offsetOf.nbSnapshots, 12);
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    return { nbSnapshots: u32.read(view, 0, false), snapshotsOffset: u64.read(view, 4, false) };
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    options.report(`ERROR failed to read the snapshot table pointer from the image header: ${error.message}`);
    throw error;
  }
}

/** What is behind the last entry that may be needs no more than that the header leaves it out. */
async function dropSurplus(co: Coroutine<"read">, run: Check, surplus: number): Promise<void> {
  const { state, options, result } = run;
  const count = new Uint8Array(4);
  u32.write(new DataView(count.buffer), 0, state.snapshots.length, false);
  try {
    await state.file.pwrite(co, HeaderV2.offsetOf.nbSnapshots, count);
    await state.file.flush(co);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    result.checkErrors++;
    options.report(`ERROR failed to update the snapshot count in the image header: ${error.message}`);
    throw error;
  }
  result.corruptionsFixed += surplus;
}

/** @qemu qcow2_validate_table */
function checkPointer({ nbSnapshots, snapshotsOffset }: Pointer, clusterSize: number): void {
  if (nbSnapshots > MAX_SNAPSHOTS)
    throw new BlockError("EFBIG", "snapshot table too large", {
      hint: `You can force-remove all ${nbSnapshots - MAX_SNAPSHOTS} overhanging snapshots with qemu-img check -r all`,
    });
  if (!Number.isSafeInteger(snapshotsOffset) || !isAligned(snapshotsOffset, clusterSize))
    throw new BlockError("EINVAL", "snapshot table offset invalid");
}

async function readTable(
  co: Coroutine<"read">,
  { file, size }: Qcow2State,
  pointer: Pointer,
  onDiscard: ((line: string) => void) | undefined,
) {
  try {
    return await readSnapshots(co, file, { ...pointer, size }, onDiscard);
  } catch (error) {
    throw BlockError.wrap("failed to read the snapshot table", error);
  }
}

/** An error is told here, in full; what goes on is what sort it is. */
async function told<T>({ environment }: Qcow2State, prefix: string, fn: () => Promise<T>): Promise<T> {
  try {
    return await fn();
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    const { error: tell, message, warn } = environment;
    (tell ?? warn)(`${prefix}${error.message}`);
    if (error.hint !== undefined) (message ?? warn)(error.hint);
    throw new BlockError(error.errno, undefined, { cause: error });
  }
}

/** Writes the table anew, complete and no longer than it may be.  @qemu qcow2_check_fix_snapshot_table */
export async function fixSnapshotTable(co: Coroutine<"read">, run: Check): Promise<void> {
  const { state, options } = run;
  try {
    await writeSnapshots(co, state, state.snapshots);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    run.result.checkErrors++;
    options.report(`ERROR failed to update snapshot table: ${error.message}`);
    throw error;
  }
}
