/** The format extension: dirty bitmaps that are stored with an image, for who only reads it.  @qemu block/parallels-ext.c */

import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { createBitmap } from "../../src/block/dirty-bitmap.ts";
import { BlockError } from "../../src/block/errors.ts";
import type { BlockNode } from "../../src/block/node.ts";
import { alignUp, isPowerOfTwo, MAX_LENGTH, SECTOR_SIZE } from "../../src/block/units.ts";
import { ALL_ONES, ALL_ZEROES, BITMAP_MAGIC, Bitmap, EXTENSION_MAGIC, Extension, Feature } from "./layout.ts";

const ENTRY_BYTES = 8;
/** More bits than this take too much memory: 128 MiB. */
const MAX_BITS = 2 ** 30;

interface Source {
  readonly node: BlockNode;
  readonly file: BlockChild;
  readonly clusterSize: number;
  /** Bytes of the file that are there: entries that point behind them are zeroes. */
  readonly sectors: bigint;
}

/** Makes the bitmaps of the extension at `offset` (bytes) bitmaps of the node.  @qemu parallels_read_format_extension */
export async function loadExtension(co: Coroutine<"read">, source: Source, offset: number): Promise<void> {
  const { file, clusterSize } = source;
  if (offset > MAX_LENGTH) throw new BlockError("EINVAL", "Failed to read Format Extension cluster");
  let cluster: Uint8Array;
  try {
    cluster = await file.preadBytes(co, offset, clusterSize);
  } catch (error) {
    throw BlockError.wrap("Failed to read Format Extension cluster", error);
  }
  const { magic, checksum } = Extension.read(cluster);
  if (magic !== EXTENSION_MAGIC)
    throw new BlockError(
      "EINVAL",
      `Wrong parallels Format Extension magic: 0x${magic.toString(16)}, expected: 0x${EXTENSION_MAGIC.toString(16)}`,
    );
  const { createHash } = process.getBuiltinModule("node:crypto");
  const features = cluster.subarray(Extension.size);
  if (Buffer.compare(createHash("md5").update(features).digest(), checksum) !== 0)
    throw new BlockError(
      "EINVAL",
      "Wrong checksum in Format Extension header. Format extension is corrupted.",
    );
  await loadFeatures(co, source, features);
}

async function loadFeatures(co: Coroutine<"read">, source: Source, area: Uint8Array): Promise<void> {
  const made = source.node.dirtyBitmaps.length;
  try {
    for (let at = 0; ; ) {
      const left = area.length - at;
      // The end need not be a whole header.
      if (left < Feature.size && left >= 8 && area.subarray(at).every((byte) => byte === 0)) return;
      if (left < Feature.size)
        throw new BlockError(
          "EINVAL",
          `Can not read feature header, as remaining bytes (${left}) in Format Extension is less than Feature header size (${Feature.size})`,
        );
      const { magic, flags, dataSize } = Feature.read(area, at);
      if (magic === 0n) return;
      if (flags !== 0n) throw new BlockError("EINVAL", "Flags for extension feature are unsupported");
      at += Feature.size;
      if (dataSize > area.length - at)
        throw new BlockError("EINVAL", "Feature data_size exceedes Format Extension cluster");
      if (magic !== BITMAP_MAGIC) throw new BlockError("EINVAL", `Unknown feature: 0x${magic.toString(16)}`);
      await loadBitmap(co, source, area.subarray(at, at + dataSize));
      at = Math.min(alignUp(at + dataSize, 8), area.length);
    }
  } catch (error) {
    // All or none of them.
    source.node.dirtyBitmaps.splice(0, source.node.dirtyBitmaps.length - made);
    throw error;
  }
}

/** @qemu parallels_load_bitmap */
async function loadBitmap(co: Coroutine<"read">, source: Source, data: Uint8Array): Promise<void> {
  const { node, file, clusterSize } = source;
  if (data.length < Bitmap.size)
    throw new BlockError(
      "EINVAL",
      `Too small Bitmap Feature area in Parallels Format Extension: ${data.length} bytes, expected at least ${Bitmap.size} bytes`,
    );
  const { sectors, id, granularity, l1Entries } = Bitmap.read(data);
  if (sectors !== source.sectors)
    throw new BlockError(
      "EINVAL",
      `Bitmap size (in sectors) ${BigInt.asIntN(64, sectors)} differs from disk size in sectors ${source.sectors}`,
    );
  if (l1Entries * ENTRY_BYTES > data.length - Bitmap.size)
    throw new BlockError("EINVAL", "Bitmaps feature corrupted: l1 table exceeds extension data_size");
  if (!isPowerOfTwo(granularity) || granularity * SECTOR_SIZE >= 2 ** 32)
    throw new BlockError("EINVAL", `Bitmap granularity of ${granularity} sectors is not supported`);
  const bitmap = createBitmap(node, uuidText(id), granularity * SECTOR_SIZE);
  const expected = Math.ceil(Math.ceil(bitmap.bitCount / 8) / clusterSize);
  if (l1Entries !== expected)
    throw new BlockError(
      "EINVAL",
      `Bitmap table size ${l1Entries} does not correspond to bitmap size and cluster size. Expected ${expected}`,
    );
  if (bitmap.bitCount > MAX_BITS) throw new BlockError("ENOMEM");
  const clusterBits = clusterSize * 8;
  const view = new DataView(data.buffer, data.byteOffset + Bitmap.size, l1Entries * ENTRY_BYTES);
  for (let index = 0; index < l1Entries; index++) {
    const sector = Number(view.getBigUint64(index * ENTRY_BYTES, true));
    if (sector === ALL_ZEROES) continue;
    const firstBit = index * clusterBits;
    if (sector === ALL_ONES) bitmap.set(firstBit * bitmap.granularity, clusterBits * bitmap.granularity);
    else bitmap.deserialize(firstBit, await readBits(co, file, sector * SECTOR_SIZE, clusterSize));
  }
  bitmap.enabled = false;
  bitmap.readOnly = true;
}

async function readBits(
  co: Coroutine<"read">,
  file: BlockChild,
  offset: number,
  bytes: number,
): Promise<Uint8Array> {
  co.checkAborted();
  if (offset > MAX_LENGTH) return new Uint8Array(bytes);
  try {
    return await file.preadBytes(co, offset, bytes);
  } catch (error) {
    throw BlockError.wrap("Failed to read bitmap data cluster", error);
  }
}

function uuidText(id: Uint8Array): string {
  return Buffer.from(id)
    .toString("hex")
    .replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}
