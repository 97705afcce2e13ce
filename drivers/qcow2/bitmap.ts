/** The bitmap directory: names and places of the dirty bitmaps that are stored in an image. Source: qcow2.txt, "Bitmaps" */

import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { isAligned } from "../../src/block/units.ts";
import { textOf } from "./header-extensions.ts";
import { BitmapDirectoryEntry, BitmapFlag, type BitmapsRecord } from "./layout.ts";

export interface StoredBitmap {
  readonly name: string;
  readonly tableOffset: number;
  /** Entries of the bitmap table, 8 bytes each. */
  readonly tableSize: number;
  /** A mask of `BitmapFlag`. */
  readonly flags: number;
  /** A bit stands for 1 << this bytes. */
  readonly granularityBits: number;
}

/** @qemu BME_MAX_NAME_SIZE, BME_MAX_TABLE_SIZE, BME_MAX_PHYS_SIZE, BME_MIN_GRANULARITY_BITS, BME_MAX_GRANULARITY_BITS */
const MAX_NAME_BYTES = 1023;
const MAX_BITMAP_TABLE_SIZE = 0x8000000;
const MAX_STORED_BYTES = 0x20000000;
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
    const bytes = BitmapDirectoryEntry.size + extraDataSize + nameSize;
    const next = at + Math.ceil(bytes / 8) * 8;
    if (next > directory.length) throw broken();
    if (bitmaps.length === record.nbBitmaps)
      throw invalid("More bitmaps found than specified in header extension");
    if (extraDataSize !== 0) throw invalid("Bitmap extra data is not supported");
    const nameAt = at + BitmapDirectoryEntry.size;
    const name = textOf(directory.subarray(nameAt, nameAt + nameSize));
    if (!isEntryValid(entry, image)) throw invalid(`Bitmap '${name}' doesn't satisfy the constraints`);
    const { tableOffset, tableSize, flags, granularityBits } = entry;
    bitmaps.push({ name, tableOffset, tableSize, flags, granularityBits });
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
  const isBounded = tableSize <= MAX_BITMAP_TABLE_SIZE && Number.isSafeInteger(tableOffset);
  const isKnown = type === DIRTY_TRACKING && (flags & ~(BitmapFlag.InUse | BitmapFlag.Auto)) === 0;
  const isNamed = nameSize <= MAX_NAME_BYTES;
  if (!isPlaced || !isBounded || !isKnown || !isNamed) return false;
  if (granularityBits < MIN_GRANULARITY_BITS || granularityBits > MAX_GRANULARITY_BITS) return false;
  const storedBytes = tableSize * clusterSize;
  if (storedBytes > MAX_STORED_BYTES) return false;
  // One that is in use may be out of step with a size that has changed since.
  return (flags & BitmapFlag.InUse) !== 0 || size <= storedBytes * 8 * 2 ** granularityBits;
}

function broken(): BlockError {
  return invalid("Broken bitmap directory");
}

function invalid(message: string): BlockError {
  return new BlockError("EINVAL", message);
}
