/**
 * Stored bitmaps become bitmaps of the node when the image is opened, and are marked as in use while it can be
 * written.  @qemu qcow2_load_dirty_bitmaps
 *
 * Invariant: what a bitmap that is not marked "in use" says of the image is right. So the mark is on the disk before
 * the first request can change the image, and goes away only with a directory that has the bits as they are then.
 */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { createBitmap, type DirtyBitmap, findBitmap } from "../../src/block/dirty-bitmap.ts";
import { BlockError } from "../../src/block/errors.ts";
import { MiB } from "../../src/block/units.ts";
import {
  ALL_ONES,
  dataClusters,
  readBitmapDirectory,
  readBitmapTable,
  type StoredBitmap,
  serializeDirectory,
} from "./bitmap.ts";
import { updateHeader } from "./header.ts";
import { Autoclear, BitmapFlag, type BitmapsRecord } from "./layout.ts";
import type { Qcow2State } from "./state.ts";

/** What tables and bits of all bitmaps may take: those of a small file may all refer to the same clusters. */
const MAX_LOADED_BYTES = 2048 * MiB;
/** Bits that are all set take less memory than they would in the file, but some. */
const ALL_ONES_SHARE = 1 / 64;

/** Throws if the image's bitmaps make no sense: who wants them must not take them for clean. */
export async function loadBitmaps(
  co: Coroutine<"read">,
  state: Qcow2State,
  directory: BitmapsRecord,
): Promise<void> {
  const { node } = state;
  const stored = await readBitmapDirectory(co, state, directory);
  const room = { bytes: MAX_LOADED_BYTES };
  for (const entry of stored) {
    const bitmap = await loadBitmap(co, state, entry, room);
    bitmap.persistent = true;
    bitmap.enabled = (entry.flags & BitmapFlag.Auto) !== 0 && !bitmap.inconsistent;
    bitmap.readOnly = node.readOnly;
  }
  if (!node.readOnly) await markInUse(co, state, stored);
}

/** @qemu load_bitmap */
async function loadBitmap(
  co: Coroutine<"read">,
  state: Qcow2State,
  entry: StoredBitmap,
  room: { bytes: number },
): Promise<DirtyBitmap> {
  const { node } = state;
  const { name, granularityBits } = entry;
  if ((entry.flags & BitmapFlag.InUse) !== 0) {
    const bitmap = createBitmap(node, name, 2 ** granularityBits);
    bitmap.inconsistent = true;
    return bitmap;
  }
  let table: Float64Array;
  try {
    table = await readBitmapTable(co, state, entry);
  } catch (error) {
    throw BlockError.wrap(`Could not read bitmap_table table from image for bitmap '${name}'`, error);
  }
  const bitmap = createBitmap(node, name, 2 ** granularityBits);
  try {
    room.bytes -= table.byteLength + memoryFor(table, state.clusterSize);
    if (room.bytes < 0) throw new BlockError("ENOMEM");
    await loadBits(co, state, bitmap, table);
  } catch (error) {
    throw BlockError.wrap(`Could not read bitmap '${name}' from image`, error);
  }
  return bitmap;
}

function memoryFor(table: Float64Array, clusterSize: number): number {
  let bytes = 0;
  for (const offset of table) {
    if (offset === ALL_ONES) bytes += clusterSize * ALL_ONES_SHARE;
    else if (offset !== 0) bytes += clusterSize;
  }
  return bytes;
}

/** @qemu load_bitmap_data */
async function loadBits(
  co: Coroutine<"read">,
  { file, clusterSize }: Qcow2State,
  bitmap: DirtyBitmap,
  table: Float64Array,
): Promise<void> {
  if (table.length !== dataClusters(bitmap, clusterSize)) throw new BlockError("EINVAL");
  const clusterBits = clusterSize * 8;
  for (const [index, offset] of table.entries()) {
    if (offset === 0) continue;
    co.checkAborted();
    if (offset === ALL_ONES)
      bitmap.set(index * clusterBits * bitmap.granularity, clusterBits * bitmap.granularity);
    else bitmap.deserialize(index * clusterBits, await file.preadBytes(co, offset, clusterSize));
  }
}

/** Marks all in the file's directory, where it is. It is not to be trusted meanwhile.  @qemu update_ext_dirty_bitmaps_in_place */
async function markInUse(
  co: Coroutine<"read">,
  state: Qcow2State,
  stored: readonly StoredBitmap[],
): Promise<void> {
  const { file, bitmaps: record } = state;
  if (!record || stored.every(({ flags }) => (flags & BitmapFlag.InUse) !== 0)) return;
  const directory = serializeDirectory(
    stored.map((entry) => ({ ...entry, flags: entry.flags | BitmapFlag.InUse })),
  );
  try {
    // A cut name makes it shorter than it was; what is behind would be read as more of it.
    if (directory.length !== record.directorySize) throw new BlockError("EINVAL");
    state.autoclearFeatures &= ~Autoclear.Bitmaps;
    await updateHeader(co, state);
    await file.flush(co);
    await file.pwrite(co, record.directoryOffset, directory);
    await file.flush(co);
    state.autoclearFeatures |= Autoclear.Bitmaps;
    await updateHeader(co, state);
    await file.flush(co);
  } catch (error) {
    throw BlockError.wrap("Can't update bitmap directory", error);
  }
}

/** For an image that was only read, and can be written from here on.  @qemu qcow2_reopen_bitmaps_rw */
export async function makeBitmapsWritable(co: Coroutine<"read">, state: Qcow2State): Promise<void> {
  const { node } = state;
  if (state.bitmaps) {
    const stored = await readBitmapDirectory(co, state, state.bitmaps);
    for (const { name, flags } of stored) {
      const isInUse = (flags & BitmapFlag.InUse) !== 0;
      if (findBitmap(node, name)?.inconsistent !== isInUse)
        throw new BlockError("EINVAL", `Unexpected bitmap '${name}' in image '${node.filename}'`);
    }
    await markInUse(co, state, stored);
  }
  for (const bitmap of node.dirtyBitmaps) bitmap.readOnly = false;
}
