/** Dirty bitmaps in an image: their directory and their tables, read with bounds and laid out. Source: qcow2.txt, "Bitmaps" */

import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import type { DirtyBitmap } from "../../src/block/dirty-bitmap.ts";
import { BlockError } from "../../src/block/errors.ts";
import { alignUp, divideRoundUp, isAligned } from "../../src/block/units.ts";
import { entryOffset } from "./entries.ts";
import { textOf } from "./header-extensions.ts";
import { BitmapDirectoryEntry, BitmapFlag, type BitmapsRecord } from "./layout.ts";

export interface StoredBitmap {
  readonly name: string;
  /** As it stands in the directory, where it need not be text. */
  readonly nameBytes: Uint8Array;
  readonly tableOffset: number;
  /** Entries of the bitmap table, 8 bytes each. */
  readonly tableSize: number;
  /** A mask of `BitmapFlag`. */
  readonly flags: number;
  /** A bit stands for 1 << this bytes. */
  readonly granularityBits: number;
}

/** @qemu BME_MAX_NAME_SIZE, BME_MAX_TABLE_SIZE, BME_MAX_PHYS_SIZE, BME_MIN_GRANULARITY_BITS, BME_MAX_GRANULARITY_BITS */
export const MAX_NAME_BYTES = 1023;
const MAX_BITMAP_TABLE_SIZE = 0x8000000;
export const MAX_STORED_BYTES = 0x20000000;
const MIN_GRANULARITY_BITS = 9;
const MAX_GRANULARITY_BITS = 31;
/** The only type there is: a dirty tracking bitmap. */
const DIRTY_TRACKING = 1;

/** What must be known of the image. */
export interface BitmapImage {
  readonly file: BlockChild;
  readonly clusterSize: number;
  /** Virtual size in bytes. */
  readonly size: number;
}

/** Reads and checks the whole directory. `record`'s numbers have been bounded with the header.  @qemu bitmap_list_load */
export async function readBitmapDirectory(
  co: Coroutine<"read">,
  image: BitmapImage,
  record: BitmapsRecord,
): Promise<StoredBitmap[]> {
  if (record.directorySize === 0) throw invalid("Requested bitmap directory size is zero");
  let directory: Uint8Array;
  try {
    directory = await image.file.preadBytes(co, record.directoryOffset, record.directorySize);
  } catch (error) {
    throw BlockError.wrap("Failed to read bitmap directory", error);
  }
  const bitmaps: StoredBitmap[] = [];
  for (let at = 0; at < directory.length; ) {
    if (directory.length - at < BitmapDirectoryEntry.size) throw broken();
    const entry = BitmapDirectoryEntry.read(directory, at);
    const { nameSize, extraDataSize } = entry;
    // In 32 bits, as qemu has it: a length that wraps is extra data, which is refused in any case.
    const next = at + ((BitmapDirectoryEntry.size + extraDataSize + nameSize + 7) & ~7);
    if (next > directory.length) throw broken();
    if (bitmaps.length === record.nbBitmaps)
      throw invalid("More bitmaps found than specified in header extension");
    if (extraDataSize !== 0) throw invalid("Bitmap extra data is not supported");
    const nameAt = at + BitmapDirectoryEntry.size;
    const nameBytes = upToZero(directory.subarray(nameAt, nameAt + nameSize));
    const name = textOf(nameBytes);
    if (!isEntryValid(entry, image)) throw invalid(`Bitmap '${name}' doesn't satisfy the constraints`);
    const { tableOffset, tableSize, flags, granularityBits } = entry;
    bitmaps.push({ name, nameBytes, tableOffset, tableSize, flags, granularityBits });
    at = next;
  }
  if (bitmaps.length < record.nbBitmaps)
    throw invalid("Less bitmaps found than specified in header extension");
  return bitmaps;
}

type Entry = ReturnType<typeof BitmapDirectoryEntry.read>;

/** @qemu check_dir_entry */
function isEntryValid(entry: Entry, { clusterSize, size }: BitmapImage): boolean {
  const { tableOffset, tableSize, flags, type, granularityBits, nameSize } = entry;
  const isPlaced = tableSize > 0 && tableOffset > 0 && isAligned(tableOffset, clusterSize);
  const isBounded = tableSize <= MAX_BITMAP_TABLE_SIZE;
  const isKnown = type === DIRTY_TRACKING && (flags & ~(BitmapFlag.InUse | BitmapFlag.Auto)) === 0;
  const isNamed = nameSize <= MAX_NAME_BYTES;
  if (!isPlaced || !isBounded || !isKnown || !isNamed) return false;
  if (granularityBits < MIN_GRANULARITY_BITS || granularityBits > MAX_GRANULARITY_BITS) return false;
  const storedBytes = tableSize * clusterSize;
  if (storedBytes > MAX_STORED_BYTES) return false;
  // One that is in use may be out of step with a size that has changed since.
  return (flags & BitmapFlag.InUse) !== 0 || size <= storedBytes * 8 * 2 ** granularityBits;
}

function upToZero(bytes: Uint8Array): Uint8Array {
  const end = bytes.indexOf(0);
  return bytes.slice(0, end < 0 ? bytes.length : end);
}

/** Bytes that an entry takes for a name of so many.  @qemu calc_dir_entry_size */
export function directoryEntryBytes(nameBytes: number): number {
  return alignUp(BitmapDirectoryEntry.size + nameBytes, 8);
}

export function directoryBytes(bitmaps: readonly StoredBitmap[]): number {
  return bitmaps.reduce((sum, { nameBytes }) => sum + directoryEntryBytes(nameBytes.length), 0);
}

export function serializeDirectory(bitmaps: readonly StoredBitmap[]): Uint8Array {
  const directory = new Uint8Array(directoryBytes(bitmaps));
  let at = 0;
  for (const { nameBytes, tableOffset, tableSize, flags, granularityBits } of bitmaps) {
    const nameSize = nameBytes.length;
    const entry = {
      tableOffset,
      tableSize,
      flags,
      granularityBits,
      nameSize,
      type: DIRTY_TRACKING,
      extraDataSize: 0,
    };
    BitmapDirectoryEntry.write(entry, directory, at);
    directory.set(nameBytes, at + BitmapDirectoryEntry.size);
    at += directoryEntryBytes(nameSize);
  }
  return directory;
}

/** Clusters that the bits take in the file.  @qemu size_to_clusters of bdrv_dirty_bitmap_serialization_size */
export function dataClusters(bitmap: DirtyBitmap, clusterSize: number): number {
  return divideRoundUp(bitmap.bitCount, clusterSize * 8);
}

/** In place of a host offset: there is no cluster, and all its bits are set. 0: none, all are clear. */
export const ALL_ONES = 1;

/**
 * Reads a bitmap table, whose size the directory's check has bounded: a host offset for each cluster of bits, or 0,
 * or ALL_ONES. EINVAL if an entry makes no sense.  @qemu bitmap_table_load
 */
export async function readBitmapTable(
  co: Coroutine<"read">,
  { file, clusterSize }: Pick<BitmapImage, "file" | "clusterSize">,
  { tableOffset, tableSize }: Pick<StoredBitmap, "tableOffset" | "tableSize">,
): Promise<Float64Array> {
  const bytes = await file.preadBytes(co, tableOffset, tableSize * 8);
  const table = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  return Float64Array.from({ length: tableSize }, (_, index) => {
    const high = table.getUint32(index * 8);
    const low = table.getUint32(index * 8 + 4);
    const offset = entryOffset(high, low);
    const reserved = (high & 0xff000000) !== 0 || (low & (offset === 0 ? 0x1fe : 0x1ff)) !== 0;
    if (reserved || !isAligned(offset, clusterSize)) throw new BlockError("EINVAL");
    return offset === 0 && (low & 1) !== 0 ? ALL_ONES : offset;
  });
}

function broken(): BlockError {
  return invalid("Broken bitmap directory");
}

function invalid(message: string): BlockError {
  return new BlockError("EINVAL", message);
}
