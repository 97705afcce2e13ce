/** An image of version 2 becomes one of version 3, and back.  @qemu qcow2_upgrade, qcow2_downgrade */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { SECTOR_SIZE } from "../../src/block/units.ts";
import { updateHeader } from "./header.ts";
import { markClean } from "./inactivate.ts";
import { Incompatible } from "./layout.ts";
import type { OnProgress } from "./refcount-width.ts";
import { readSnapshots, writeSnapshots } from "./snapshot-table.ts";
import type { Qcow2State } from "./state.ts";
import { expandZeroClusters } from "./zero-expansion.ts";

/** Called with the lock held. */
export async function upgrade(
  co: Coroutine<"read">,
  state: Qcow2State,
  onProgress: OnProgress,
): Promise<void> {
  onProgress(0, 2);
  const { snapshotsOffset, snapshots, size } = state;
  const table = { snapshotsOffset, nbSnapshots: snapshots.length, size };
  const { incomplete } = await readSnapshots(co, state.file, table);
  // Version 3 wants the size of the disk in each entry, and so it is written.
  if (incomplete.length > 0) await writeSnapshots(co, state, snapshots);
  onProgress(1, 2);
  await changeHeader(co, state, { version: 3 });
  onProgress(2, 2);
}

/** Called with the lock held. What can't be said in version 2 is refused. */
export async function downgrade(
  co: Coroutine<"read">,
  state: Qcow2State,
  onProgress: OnProgress,
): Promise<void> {
  await checkDowngrade(co, state);
  let hasCompressed: boolean;
  try {
    hasCompressed = await expandZeroClusters(co, state, onProgress);
  } catch (error) {
    throw BlockError.wrap("Failed to turn zero into data clusters", error);
  }
  if (hasCompressed && state.compressionType === "zstd")
    throw refusal("Cannot downgrade an image with zstd compression type and existing compressed clusters");
  await changeHeader(co, state, {
    version: 2,
    incompatibleFeatures: 0n,
    compatibleFeatures: 0n,
    autoclearFeatures: 0n,
    compressionType: "zlib",
    useLazyRefcounts: false,
  });
}

async function checkDowngrade(co: Coroutine<"read">, state: Qcow2State): Promise<void> {
  if (state.refcountBits !== 16) throw refusal("compat=0.10 requires refcount_bits=16");
  if (state.hasDataFile) throw refusal("Cannot downgrade an image with a data file");
  const diskSize = state.node.totalSectors * SECTOR_SIZE;
  // Version 2 has room for neither in a snapshot.
  if (state.snapshots.some((snapshot) => snapshot.vmStateSize !== 0 || snapshot.diskSize !== diskSize))
    throw refusal("Internal snapshots prevent downgrade of image");
  try {
    await markClean(co, state);
  } catch (error) {
    throw BlockError.wrap("Failed to make the image clean", error);
  }
  const kept = state.incompatibleFeatures & ~Incompatible.CompressionType;
  if (kept !== 0n)
    throw refusal(`Cannot downgrade an image with incompatible features 0x${kept.toString(16)} set`);
}

function refusal(message: string): BlockError {
  return new BlockError("ENOTSUP", message);
}

type HeaderValues = Partial<
  Pick<
    Qcow2State,
    | "version"
    | "incompatibleFeatures"
    | "compatibleFeatures"
    | "autoclearFeatures"
    | "compressionType"
    | "useLazyRefcounts"
    | "dataFileName"
  >
>;

/** Puts what the header is to say into state and file, or leaves both as they were. */
export async function changeHeader(
  co: Coroutine<"read">,
  state: Qcow2State,
  values: HeaderValues,
): Promise<void> {
  const keys = Object.keys(values) as (keyof HeaderValues)[];
  const before = Object.fromEntries(keys.map((key) => [key, state[key]]));
  Object.assign(state, values);
  try {
    await updateHeader(co, state);
  } catch (error) {
    Object.assign(state, before);
    throw BlockError.wrap("Failed to update the image header", error);
  }
}
