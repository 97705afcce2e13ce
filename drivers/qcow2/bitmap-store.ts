/**
 * Persistent bitmaps of the node go into the image when it is closed or becomes read-only.
 * @qemu qcow2_store_persistent_dirty_bitmaps
 *
 * Invariants (all functions are called with the driver's lock held):
 * 1. The directory that the header names, its tables and their clusters are not written to again: new ones are
 *    complete and counted on the disk before the header names them, and only then the old ones are freed.
 * 2. Whatever fails before that leaves the old directory, whose bitmaps are marked as in use: they are lost, not wrong.
 */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { checkBitmap, type DirtyBitmap } from "../../src/block/dirty-bitmap.ts";
import { BlockError } from "../../src/block/errors.ts";
import { SECTOR_SIZE } from "../../src/block/units.ts";
import {
  ALL_ONES,
  dataClusters,
  directoryBytes,
  directoryEntryBytes,
  MAX_NAME_BYTES,
  MAX_STORED_BYTES,
  readBitmapDirectory,
  readBitmapTable,
  type StoredBitmap,
  serializeDirectory,
} from "./bitmap.ts";
import { checkOverlap, signalCorruption } from "./corruption.ts";
import { updateHeader } from "./header.ts";
import {
  Autoclear,
  BitmapFlag,
  type BitmapsRecord,
  MAX_BITMAP_DIRECTORY_BYTES,
  MAX_BITMAPS,
} from "./layout.ts";
import { allocateClusters, freeClusters } from "./refcount.ts";
import type { Qcow2State } from "./state.ts";

/** Where a bitmap's bits are. */
type Table = Pick<StoredBitmap, "tableOffset" | "tableSize">;

/** Stores all bitmaps that are to be kept. Those that are inconsistent stay in the image as they are. */
export async function storeBitmaps(co: Coroutine<"read">, state: Qcow2State): Promise<void> {
  const kept = state.node.dirtyBitmaps.filter(
    ({ persistent, inconsistent, readOnly }) => persistent && !inconsistent && !readOnly,
  );
  if (kept.length === 0) return;
  const stored = state.bitmaps ? await readBitmapDirectory(co, state, state.bitmaps) : [];
  for (const bitmap of kept) checkStorable(state, bitmap, stored);
  const byName = new Map(kept.map((bitmap) => [bitmap.name, bitmap]));
  const written: StoredBitmap[] = [];
  const listed: StoredBitmap[] = [];
  let replaced: StoredBitmap[];
  try {
    const write = async (bitmap: DirtyBitmap, nameBytes: Uint8Array): Promise<StoredBitmap> => {
      const entry = await writeBitmap(co, state, bitmap, nameBytes);
      written.push(entry);
      return entry;
    };
    for (const entry of stored) {
      const bitmap = byName.get(entry.name);
      listed.push(bitmap ? await write(bitmap, entry.nameBytes) : entry);
      byName.delete(entry.name);
    }
    for (const bitmap of byName.values()) listed.push(await write(bitmap, Buffer.from(bitmap.name)));
    replaced = stored.filter((entry) => !listed.includes(entry));
    await replaceDirectory(co, state, listed);
  } catch (error) {
    if (!(error instanceof HeaderLostError)) for (const entry of written) await freeBitmap(co, state, entry);
    throw error;
  }
  // In the order in which qemu frees them: that of the node's bitmaps, the newest first.
  const order = kept.map(({ name }) => name);
  replaced.sort((a, b) => order.indexOf(a.name) - order.indexOf(b.name));
  for (const entry of replaced) await freeBitmap(co, state, entry);
}

function checkStorable({ node }: Qcow2State, bitmap: DirtyBitmap, stored: readonly StoredBitmap[]): void {
  const { name, granularity } = bitmap;
  try {
    checkConstraints(name, granularity, node.totalSectors * SECTOR_SIZE);
  } catch (error) {
    throw BlockError.wrap(`Bitmap '${name}' doesn't satisfy the constraints`, error);
  }
  const known = stored.find((entry) => entry.name === name);
  if (known && (known.flags & BitmapFlag.InUse) === 0)
    throw new BlockError("EINVAL", `Bitmap '${name}' already exists in the image`);
}

/** @qemu check_constraints_on_bitmap */
function checkConstraints(name: string, granularity: number, imageBytes: number): void {
  if (granularity > 2 ** 31) throw new BlockError("EINVAL", `Granularity exceeds maximum (${2 ** 31} bytes)`);
  if (Math.ceil(imageBytes / granularity) > MAX_STORED_BYTES * 8)
    throw new BlockError("EINVAL", "Too much space will be occupied by the bitmap. Use larger granularity");
  if (Buffer.byteLength(name) > MAX_NAME_BYTES)
    throw new BlockError("EINVAL", `Name length exceeds maximum (${MAX_NAME_BYTES} characters)`);
}

/** @qemu qcow2_co_can_store_new_dirty_bitmap */
export function checkNewBitmap({ node, version }: Qcow2State, name: string, granularity: number): void {
  if (version < 3) throw new BlockError("ENOTSUP", "Cannot store dirty bitmaps in qcow2 v2 files");
  checkConstraints(name, granularity, node.totalSectors * SECTOR_SIZE);
  const kept = node.dirtyBitmaps.filter(({ persistent }) => persistent);
  if (kept.length >= MAX_BITMAPS)
    throw new BlockError("EINVAL", "Maximum number of persistent bitmaps is already reached");
  const names = [name, ...kept.map((bitmap) => bitmap.name)];
  const bytes = names.reduce((sum, each) => sum + directoryEntryBytes(Buffer.byteLength(each)), 0);
  if (bytes > MAX_BITMAP_DIRECTORY_BYTES)
    throw new BlockError("EINVAL", "Not enough space in the bitmap directory");
}

/** Bitmaps that can't change with the size would be out of step with it.  @qemu qcow2_truncate_bitmaps_check */
export function checkBitmapsForResize({ node }: Qcow2State): void {
  for (const bitmap of [...node.dirtyBitmaps].reverse()) if (bitmap.persistent) checkBitmap(bitmap, "write");
}

/** Writes bits and table; nothing in the file names them yet.  @qemu store_bitmap */
async function writeBitmap(
  co: Coroutine<"read">,
  state: Qcow2State,
  bitmap: DirtyBitmap,
  nameBytes: Uint8Array,
): Promise<StoredBitmap> {
  const tableSize = dataClusters(bitmap, state.clusterSize);
  // What qemu says of a bitmap of an empty image.
  if (tableSize === 0) throw new BlockError("ENOMEM", "No memory");
  const offsets = new Float64Array(tableSize);
  try {
    await writeBits(co, state, bitmap, offsets);
    const table = new DataView(new ArrayBuffer(tableSize * 8));
    for (const [index, offset] of offsets.entries()) setOffset(table, index, offset);
    const tableOffset = await allocate(co, state, bitmap, table.byteLength);
    try {
      await write(co, state, bitmap, tableOffset, new Uint8Array(table.buffer));
    } catch (error) {
      await freeClusters(co, state, tableOffset, table.byteLength, "other");
      throw error;
    }
    const flags = bitmap.enabled ? BitmapFlag.Auto : 0;
    return {
      name: bitmap.name,
      nameBytes,
      tableOffset,
      tableSize,
      flags,
      granularityBits: Math.log2(bitmap.granularity),
    };
  } catch (error) {
    await freeData(co, state, offsets);
    throw error;
  }
}

function setOffset(table: DataView, index: number, offset: number): void {
  table.setUint32(index * 8, Math.floor(offset / 2 ** 32));
  table.setUint32(index * 8 + 4, offset % 2 ** 32);
}

/** Only clusters with dirty bits are written; `offsets` gets where.  @qemu store_bitmap_data */
async function writeBits(
  co: Coroutine<"read">,
  state: Qcow2State,
  bitmap: DirtyBitmap,
  offsets: Float64Array,
): Promise<void> {
  const { clusterSize } = state;
  const clusterBits = clusterSize * 8;
  const buffer = new Uint8Array(clusterSize);
  for (let bit = bitmap.nextBit(0); bit !== undefined; ) {
    const index = Math.floor(bit / clusterBits);
    const offset = await allocate(co, state, bitmap, clusterSize);
    offsets[index] = offset;
    bitmap.serialize(index * clusterBits, buffer);
    await write(co, state, bitmap, offset, buffer);
    bit = bitmap.nextBit((index + 1) * clusterBits);
  }
}

async function allocate(
  co: Coroutine<"read">,
  state: Qcow2State,
  { name }: DirtyBitmap,
  bytes: number,
): Promise<number> {
  try {
    return await allocateClusters(co, state, bytes);
  } catch (error) {
    throw BlockError.wrap(`Failed to allocate clusters for bitmap '${name}'`, error);
  }
}

async function write(
  co: Coroutine<"read">,
  state: Qcow2State,
  { name }: DirtyBitmap,
  offset: number,
  data: Uint8Array,
): Promise<void> {
  try {
    await refuseOverlap(co, state, offset, data.length);
  } catch (error) {
    throw BlockError.wrap("Qcow2 overlap check failed", error);
  }
  try {
    await state.file.pwrite(co, offset, data);
  } catch (error) {
    throw BlockError.wrap(`Failed to write bitmap '${name}' to file`, error);
  }
}

/** The header is never written over, not even where nothing is checked. */
async function refuseOverlap(
  co: Coroutine<"read">,
  state: Qcow2State,
  offset: number,
  bytes: number,
): Promise<void> {
  await checkOverlap(co, state, offset, bytes);
  if (offset === 0)
    throw await signalCorruption(co, state, "Preventing invalid allocation of bitmap cluster at offset 0");
}

/** The header could not be written: which directory the file names is not known. */
class HeaderLostError extends BlockError {}

/** Puts a directory of `bitmaps` in the place of the old one, or none.  @qemu update_ext_dirty_bitmaps */
async function replaceDirectory(
  co: Coroutine<"read">,
  state: Qcow2State,
  bitmaps: readonly StoredBitmap[],
): Promise<void> {
  const old = { bitmaps: state.bitmaps, autoclearFeatures: state.autoclearFeatures };
  const failed = (error: unknown) => BlockError.wrap("Failed to update bitmap extension", error);
  let record: BitmapsRecord | undefined;
  try {
    if (bitmaps.length > 0) record = await writeDirectory(co, state, bitmaps);
    await state.l2Cache.write(co);
    await state.refcountCache.flush(co);
    await state.file.flush(co);
  } catch (error) {
    if (record) await freeClusters(co, state, record.directoryOffset, record.directorySize, "other");
    throw failed(error);
  }
  try {
    // The extension may lie across sectors, of which a power cut may leave one: it does not count until all is there.
    state.autoclearFeatures &= ~Autoclear.Bitmaps;
    if (old.bitmaps) await writeHeader(co, state);
    state.bitmaps = record;
    await writeHeader(co, state);
    if (record) {
      state.autoclearFeatures |= Autoclear.Bitmaps;
      await writeHeader(co, state);
    }
  } catch (error) {
    Object.assign(state, old);
    await undoHeader(co, state, failed(error));
    if (record) await freeClusters(co, state, record.directoryOffset, record.directorySize, "other");
    throw failed(error);
  }
  if (old.bitmaps)
    await freeClusters(co, state, old.bitmaps.directoryOffset, old.bitmaps.directorySize, "other");
}

/** @qemu update_header_sync */
async function writeHeader(co: Coroutine<"read">, state: Qcow2State): Promise<void> {
  await updateHeader(co, state);
  await state.file.flush(co);
}

/** A write that failed may still have reached the disk. If it can't be undone, nothing more may change: the bitmaps there could be taken for right. */
async function undoHeader(co: Coroutine<"read">, state: Qcow2State, failure: BlockError): Promise<void> {
  try {
    await writeHeader(co, state);
  } catch {
    state.isBroken = true;
    throw new HeaderLostError(failure.errno, failure.message, { cause: failure });
  }
}

/** @qemu bitmap_list_store */
async function writeDirectory(
  co: Coroutine<"read">,
  state: Qcow2State,
  bitmaps: readonly StoredBitmap[],
): Promise<BitmapsRecord> {
  const directorySize = directoryBytes(bitmaps);
  if (bitmaps.length > MAX_BITMAPS) throw new BlockError("EINVAL", "Too many persistent bitmaps");
  if (directorySize > MAX_BITMAP_DIRECTORY_BYTES)
    throw new BlockError("EINVAL", "Bitmap directory is too large");
  const directoryOffset = await allocateClusters(co, state, directorySize);
  try {
    await refuseOverlap(co, state, directoryOffset, directorySize);
    await state.file.pwrite(co, directoryOffset, serializeDirectory(bitmaps));
  } catch (error) {
    await freeClusters(co, state, directoryOffset, directorySize, "other");
    throw error;
  }
  return { nbBitmaps: bitmaps.length, reserved: 0, directorySize, directoryOffset };
}

/** Takes a bitmap out of the image; the others stay as they are there. One that is not there is no error.  @qemu qcow2_co_remove_persistent_dirty_bitmap */
export async function removeStoredBitmap(
  co: Coroutine<"read">,
  state: Qcow2State,
  name: string,
): Promise<void> {
  if (!state.bitmaps) return;
  const stored = await readBitmapDirectory(co, state, state.bitmaps);
  const entry = stored.find((each) => each.name === name);
  if (!entry) return;
  await replaceDirectory(
    co,
    state,
    stored.filter((each) => each !== entry),
  );
  await freeBitmap(co, state, entry);
}

/** A table that makes no sense is leaked: which clusters it meant can't be known.  @qemu free_bitmap_clusters */
async function freeBitmap(co: Coroutine<"read">, state: Qcow2State, table: Table): Promise<void> {
  let offsets: Float64Array;
  try {
    offsets = await readBitmapTable(co, state, table);
  } catch (error) {
    if (error instanceof BlockError) return;
    throw error;
  }
  await freeData(co, state, offsets);
  await freeClusters(co, state, table.tableOffset, table.tableSize * 8, "other");
}

async function freeData(co: Coroutine<"read">, state: Qcow2State, offsets: Float64Array): Promise<void> {
  for (const offset of offsets)
    if (offset !== 0 && offset !== ALL_ONES)
      await freeClusters(co, state, offset, state.clusterSize, "always");
}
