/**
 * Dirty bitmaps of a node: which granules have been written to since the bitmap was made or cleared.
 * @qemu block/dirty-bitmap.c, block/monitor/bitmap-qmp-cmds.c
 *
 * Bits are set when a request ends, whether it failed or not: who clears a bitmap while a write is under way finds
 * the write in it afterwards.
 */

import type { Coroutine } from "./coroutine.ts";
import { BlockError } from "./errors.ts";
import type { BlockNode } from "./node.ts";
import { SparseBits } from "./sparse-bits.ts";
import { isPowerOfTwo, KiB, SECTOR_SIZE } from "./units.ts";

/** A run of dirty bytes, whole granules but for the end of the image. */
export interface DirtyExtent {
  readonly offset: number;
  readonly bytes: number;
}

/** How a bitmap is to be made. */
export interface NewBitmap {
  /** Bytes that one bit stands for, a power of two from 512. Default: the cluster size, within 4 KiB and 64 KiB. */
  readonly granularity?: number | undefined;
  /** Stored in the image when it is closed, and there again when it is opened. */
  readonly persistent?: boolean | undefined;
  /** Writes don't mark it until it is enabled. */
  readonly disabled?: boolean | undefined;
}

/** @qemu BDRV_BITMAP_MAX_NAME_SIZE */
const MAX_NAME_BYTES = 1023;
/** So many bits take 512 MiB: no bitmap may have more when it is made. */
const MAX_BITMAP_BITS = 2 ** 32;
/** @qemu bdrv_get_default_bitmap_granularity */
const MIN_DEFAULT_GRANULARITY = 4 * KiB;
const MAX_DEFAULT_GRANULARITY = 64 * KiB;

export class DirtyBitmap {
  /** Unique on its node. */
  readonly name: string;
  readonly granularity: number;
  /** Writes are marked. */
  enabled = true;
  persistent = false;
  /** The image can't be written, so neither can its stored bitmaps. */
  readOnly = false;
  /** Was in use when the image was last left: its bits mean nothing, and are not even loaded. */
  inconsistent = false;
  #bytes: number;
  #bits = new SparseBits();

  constructor(name: string, granularity: number, bytes: number) {
    this.name = name;
    this.granularity = granularity;
    this.#bytes = bytes;
  }

  /** Bytes of the node that it covers: all of them. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Bits that the node takes. */
  get bitCount(): number {
    return Math.ceil(this.#bytes / this.granularity);
  }

  get isEmpty(): boolean {
    return this.#bits.isEmpty;
  }

  /** What of the range lies behind the end is left out.  @qemu bdrv_set_dirty_bitmap */
  set(offset: number, bytes: number): void {
    const end = Math.min(offset + bytes, this.#bytes);
    if (end <= offset) return;
    this.#bits.set(Math.floor(offset / this.granularity), Math.ceil(end / this.granularity));
  }

  /** Clears whole granules: the range begins at one, and ends at one or at the end of all.  @qemu bdrv_reset_dirty_bitmap */
  reset(offset: number, bytes: number): void {
    const end = Math.min(offset + bytes, this.#bytes);
    if (end <= offset) return;
    this.#bits.clear(Math.floor(offset / this.granularity), Math.ceil(end / this.granularity));
  }

  /** @qemu bdrv_clear_dirty_bitmap */
  clear(): void {
    this.#bits = new SparseBits();
  }

  /** @qemu bdrv_dirty_bitmap_get */
  isDirty(offset: number): boolean {
    const bit = Math.floor(offset / this.granularity);
    return this.#bits.nextSet(bit) === bit;
  }

  /** The first run of dirty bytes that reaches behind `offset`, which cuts it.  @qemu bdrv_dirty_bitmap_next_dirty_area */
  nextExtent(offset: number, end = this.#bytes): DirtyExtent | undefined {
    const { granularity } = this;
    const bit = this.#bits.nextSet(Math.floor(offset / granularity));
    const limit = Math.min(end, this.#bytes);
    if (bit === undefined || bit * granularity >= limit || offset >= limit) return undefined;
    const start = Math.max(bit * granularity, offset);
    const bitEnd = this.#bits.nextClear(bit, Math.ceil(limit / granularity));
    return { offset: start, bytes: Math.min(bitEnd * granularity, limit) - start };
  }

  /** Bytes in dirty granules.  @qemu bdrv_get_dirty_count */
  get dirtyBytes(): number {
    let bytes = 0;
    for (const { start, end } of this.#bits.runs(this.bitCount))
      bytes += Math.min(end * this.granularity, this.#bytes) - start * this.granularity;
    return bytes;
  }

  /** What is gained is clean, and what is cut off is clean when it comes back.  @qemu bdrv_dirty_bitmap_truncate */
  truncate(bytes: number): void {
    const oldBits = this.bitCount;
    this.#bytes = bytes;
    if (this.bitCount < oldBits) this.#bits.clear(this.bitCount, oldBits);
  }

  /** Marks what is dirty in `source`, which covers as many bytes.  @qemu hbitmap_merge */
  add(source: DirtyBitmap): void {
    for (let run = source.nextExtent(0); run; run = source.nextExtent(run.offset + run.bytes))
      this.set(run.offset, run.bytes);
  }

  /** Copies bits from `firstBit`, a multiple of 8, into `target`: the form in which images store them.  @qemu hbitmap_serialize_part */
  serialize(firstBit: number, target: Uint8Array): void {
    this.#bits.read(firstBit, target);
  }

  /** Sets the bits that `source` has; those behind the end are of no account.  @qemu hbitmap_deserialize_part */
  deserialize(firstBit: number, source: Uint8Array): void {
    this.#bits.or(firstBit, source);
    this.#bits.clear(this.bitCount, firstBit + source.length * 8);
  }

  /** The first bit that is set from `firstBit` on, below `bitCount`. */
  nextBit(firstBit: number): number | undefined {
    return this.#bits.nextSet(firstBit);
  }
}

/** To be called when a request that may have changed the range ends.  @qemu bdrv_set_dirty */
export function markDirty(node: BlockNode, offset: number, bytes: number): void {
  for (const bitmap of node.dirtyBitmaps) if (bitmap.enabled) bitmap.set(offset, bytes);
}

/** To be called when the node's length has changed. */
export function resizeBitmaps(node: BlockNode): void {
  for (const bitmap of node.dirtyBitmaps) bitmap.truncate(node.totalSectors * SECTOR_SIZE);
}

/** @qemu bdrv_find_dirty_bitmap */
export function findBitmap(node: BlockNode, name: string): DirtyBitmap | undefined {
  return node.dirtyBitmaps.find((bitmap) => bitmap.name === name);
}

/** The newest comes first.  @qemu bdrv_create_dirty_bitmap */
export function createBitmap(node: BlockNode, name: string, granularity: number): DirtyBitmap {
  if (findBitmap(node, name)) throw new BlockError("EINVAL", `Bitmap already exists: ${name}`);
  if (Buffer.byteLength(name) > MAX_NAME_BYTES)
    throw new BlockError("EINVAL", `Bitmap name too long: ${name}`);
  const bitmap = new DirtyBitmap(name, granularity, node.totalSectors * SECTOR_SIZE);
  node.dirtyBitmaps.unshift(bitmap);
  return bitmap;
}

/** @qemu bdrv_release_dirty_bitmap */
function releaseBitmap(node: BlockNode, bitmap: DirtyBitmap): void {
  const index = node.dirtyBitmaps.indexOf(bitmap);
  if (index >= 0) node.dirtyBitmaps.splice(index, 1);
}

/** Throws if it can't be used, or not for writing.  @qemu bdrv_dirty_bitmap_check */
export function checkBitmap(bitmap: DirtyBitmap, use: "read" | "write"): void {
  const { name } = bitmap;
  if (use === "write" && bitmap.readOnly)
    throw new BlockError("EINVAL", `Bitmap '${name}' is readonly and cannot be modified`);
  if (bitmap.inconsistent)
    throw new BlockError("EINVAL", `Bitmap '${name}' is inconsistent and cannot be used`, {
      hint: "Try block-dirty-bitmap-remove to delete this bitmap from disk",
    });
}

function lookUp(node: BlockNode, name: string): DirtyBitmap {
  const bitmap = findBitmap(node, name);
  if (!bitmap) throw new BlockError("ENOENT", `Dirty bitmap '${name}' not found`);
  return bitmap;
}

/** The bitmap of that name, if it can be used so.  @qemu block_dirty_bitmap_lookup */
export function bitmapFor(node: BlockNode, name: string, use: "read" | "write"): DirtyBitmap {
  const bitmap = lookUp(node, name);
  checkBitmap(bitmap, use);
  return bitmap;
}

/** @qemu qmp_block_dirty_bitmap_add */
export async function addBitmap(
  co: Coroutine<"read">,
  node: BlockNode,
  name: string,
  { granularity, persistent = false, disabled = false }: NewBitmap,
): Promise<void> {
  if (name === "") throw new BlockError("EINVAL", "Bitmap name cannot be empty");
  const size = granularity ?? (await defaultGranularity(co, node));
  if (!isPowerOfTwo(size) || size < SECTOR_SIZE)
    throw new BlockError("EINVAL", "Granularity must be power of 2 and at least 512");
  if (persistent) await checkStorable(co, node, name, size);
  if (Math.ceil((node.totalSectors * SECTOR_SIZE) / size) > MAX_BITMAP_BITS)
    throw new BlockError("EINVAL", "Too much space will be occupied by the bitmap. Use larger granularity");
  const bitmap = createBitmap(node, name, size);
  bitmap.persistent = persistent;
  bitmap.enabled = !disabled;
}

/** @qemu bdrv_can_store_new_dirty_bitmap */
async function checkStorable(
  co: Coroutine<"read">,
  node: BlockNode,
  name: string,
  granularity: number,
): Promise<void> {
  if (!node.ops.checkNewBitmap)
    throw BlockError.wrap(`Can't store persistent bitmaps to ${node.nodeName}`, new BlockError("ENOTSUP"));
  try {
    await node.ops.checkNewBitmap(co, name, granularity);
  } catch (error) {
    throw BlockError.wrap(`Can't make bitmap '${name}' persistent in '${node.nodeName}'`, error);
  }
}

async function defaultGranularity(co: Coroutine<"read">, node: BlockNode): Promise<number> {
  const clusterSize = (await node.ops.getInfo?.(co))?.clusterSize;
  if (!clusterSize) return MAX_DEFAULT_GRANULARITY;
  return Math.min(Math.max(clusterSize, MIN_DEFAULT_GRANULARITY), MAX_DEFAULT_GRANULARITY);
}

/** Removes it from the image too. One that is inconsistent can only be removed.  @qemu qmp_block_dirty_bitmap_remove */
export async function removeBitmap(co: Coroutine<"read">, node: BlockNode, name: string): Promise<void> {
  const bitmap = lookUp(node, name);
  if (bitmap.readOnly) checkBitmap(bitmap, "write");
  if (bitmap.persistent) await node.ops.removeStoredBitmap?.(co, name);
  releaseBitmap(node, bitmap);
}

/** All or nothing; the node may be among the sources.  @qemu qmp_block_dirty_bitmap_merge */
export function mergeBitmaps(
  node: BlockNode,
  name: string,
  sources: readonly { readonly node: BlockNode; readonly name: string }[],
): void {
  const target = lookUp(node, name);
  const merged = new DirtyBitmap("", target.granularity, target.bytes);
  for (const source of sources) {
    const from = lookUp(source.node, source.name);
    checkMergeable(merged, from);
    merged.add(from);
  }
  checkMergeable(target, merged);
  target.add(merged);
}

/** @qemu bdrv_merge_dirty_bitmap */
function checkMergeable(target: DirtyBitmap, source: DirtyBitmap): void {
  checkBitmap(target, "write");
  checkBitmap(source, "read");
  if (target.bytes !== source.bytes)
    throw new BlockError(
      "EINVAL",
      `Bitmaps are of different sizes (destination size is ${target.bytes}, source size is ${source.bytes}) and can't be merged`,
    );
}
