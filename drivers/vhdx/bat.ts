/** The block allocation table: which entry is a block's, and whether the entries can be true.  @qemu vhdx_check_bat_entries */

import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { MiB } from "../../src/block/units.ts";
import { BlockState, UNIT_BYTES } from "./layout.ts";
import { findOverlap } from "./regions.ts";
import type { Geometry, Region, VhdxState } from "./state.ts";

/** After each chunk's payload blocks comes the entry of the block with their sectors' bits. */
export function batIndex({ chunkRatio }: Geometry, block: number): number {
  return block + Math.floor(block / chunkRatio);
}

export function bitmapIndex({ chunkRatio }: Geometry, block: number): number {
  return Math.floor(block / chunkRatio) * (chunkRatio + 1) + chunkRatio;
}

/** Of an image with no parent. For no block at all QEMU counts one less than none, in 32 bits. */
export function batEntries(blocks: number, chunkRatio: number): number {
  return blocks + Math.floor(((blocks - 1) >>> 0) / chunkRatio);
}

export function stateBits(entry: number): number {
  return entry % 8;
}

/** Where a block lies: the upper 44 bits of its entry, in MiB. */
export function placeOf(entry: number): number {
  return entry - (entry % UNIT_BYTES);
}

export async function entryOf(co: Coroutine<"read">, { bat }: VhdxState, index: number): Promise<number> {
  return bat.peek(index) ?? (await bat.get(co, index));
}

export interface BatScan {
  readonly bad: number;
  readonly hasBlocks: boolean;
}

/** Looks at all entries; `tell` gets each fault and says whether to go on. Parts of the table that are holes are not read. */
export async function scanBat(
  co: Coroutine<"read">,
  file: BlockChild,
  geometry: Geometry,
  { batOffset, regions, hasParent }: ScanOptions,
  tell: (message: string) => boolean,
): Promise<BatScan> {
  const fileBytes = await file.getLength(co);
  const end = Math.min(batOffset + geometry.entries * 8, fileBytes);
  let bad = 0;
  let hasBlocks = false;
  for (let at = batOffset; at < end; ) {
    co.checkAborted();
    const status = await file.blockStatus(co, true, at, end - at);
    const bytes = Math.min(status.bytes - (status.bytes % 8) || end - at, end - at, status.zero ? end : MiB);
    if (!status.zero) {
      const view = new DataView((await file.preadBytes(co, at, bytes)).buffer);
      const first = (at - batOffset) / 8;
      for (let within = 0; within + 8 <= bytes; within += 8) {
        const state = view.getUint8(within) & 7;
        const isChecked =
          state === BlockState.FullyPresent || (hasParent && state === BlockState.PartiallyPresent);
        if (!isChecked) continue;
        hasBlocks = true;
        const entry = { index: first + within / 8, value: view.getBigUint64(within, true) };
        for (const message of faultsOf(entry, geometry, regions, fileBytes)) {
          bad++;
          if (!tell(message)) return { bad, hasBlocks };
        }
      }
    }
    at += bytes;
  }
  return { bad, hasBlocks };
}

interface ScanOptions {
  readonly batOffset: number;
  readonly regions: readonly Region[];
  readonly hasParent: boolean;
}

function* faultsOf(
  { index, value }: { readonly index: number; readonly value: bigint },
  geometry: Geometry,
  regions: readonly Region[],
  fileBytes: number,
): Generator<string> {
  const blockBytes = bytesOf(geometry, index);
  const start = value - (value % BigInt(UNIT_BYTES));
  const end = start + BigInt(blockBytes);
  const tail = `points after end of file (${fileBytes}). Image has probably been truncated.`;
  if (start > 2n ** 63n - 1n - BigInt(geometry.blockSize)) yield `VHDX BAT entry ${index} offset overflow.`;
  if (start >= BigInt(fileBytes)) yield `VHDX BAT entry ${index} start offset ${start} ${tail}`;
  else if (end > BigInt(fileBytes)) yield `VHDX BAT entry ${index} end offset ${end - 1n} ${tail}`;
  const overlap = findOverlap(regions, { offset: Number(start), bytes: blockBytes });
  if (overlap) yield overlap;
}

/** What an entry's block must have in the file: the disk may end within its last one. */
function bytesOf({ chunkRatio, blockSize, diskSize, blocks }: Geometry, index: number): number {
  if (index % (chunkRatio + 1) === chunkRatio) return UNIT_BYTES;
  const block = index - Math.floor(index / (chunkRatio + 1));
  return block === blocks - 1 ? diskSize - block * blockSize : blockSize;
}
