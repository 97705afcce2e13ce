/** Where the guest's data lies: the runs of an image and its backing files, one after the other.  @qemu img_map */

import type { BlockBackend } from "../block/backend.ts";
import { type BlockStatus, blockStatus } from "../block/block-status.ts";
import type { Coroutine } from "../block/coroutine.ts";
import { BlockError } from "../block/errors.ts";
import type { BlockNode } from "../block/node.ts";
import { skipFilters } from "./chain.ts";

/** A run of guest bytes of one kind. */
export interface MapEntry {
  /** Guest offset in bytes. */
  readonly start: number;
  readonly bytes: number;
  /** How many backing files down it is stored: 0 is the image itself. */
  readonly depth: number;
  /** Some layer has it, even if as zeroes only. */
  readonly present: boolean;
  /** Reads as zeroes. */
  readonly zero: boolean;
  /** Stored as data; with `zero` at once, it is a hole of the file that holds it. */
  readonly data: boolean;
  /** Stored compressed. */
  readonly compressed: boolean;
  /** Where in `filename` it lies; undefined: not plain in any file (compressed, encrypted). */
  readonly hostOffset: number | undefined;
  readonly filename: string | undefined;
}

export interface MapRange {
  /** Bytes; 0 by default. */
  readonly start?: number;
  /** By default up to the image's end. */
  readonly maxBytes?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Runs that follow each other and differ in nothing are one. */
export async function* mapImage(image: BlockBackend, range: MapRange = {}): AsyncGenerator<MapEntry, void> {
  const { start = 0, maxBytes = Number.POSITIVE_INFINITY, signal } = range;
  const end = Math.min(await image.getLength(), start + maxBytes);
  let current: MapEntry | undefined;
  for (let offset = start; offset < end; ) {
    const next = await image.run((co) => entryAt(co, image.node, offset, end - offset), signal);
    offset += next.bytes;
    if (current && canMerge(current, next)) current = { ...current, bytes: current.bytes + next.bytes };
    else {
      if (current) yield current;
      current = next;
    }
  }
  if (current) yield current;
}

/** The first layer that knows the range to be data or zero tells all about it.  @qemu get_block_status */
async function entryAt(
  co: Coroutine<"read">,
  node: BlockNode,
  offset: number,
  bytes: number,
): Promise<MapEntry> {
  let layer = skipFilters(node);
  let end = bytes;
  for (let depth = 0; ; depth++) {
    const status = await layerStatus(co, layer, offset, end);
    end = status.bytes;
    if (status.data || status.zero) return describe(status, offset, depth);
    const below = layer.cow?.node;
    if (!below) return describe({ bytes: end, data: false, zero: false, allocated: false }, offset, depth);
    layer = skipFilters(below);
  }
}

async function layerStatus(
  co: Coroutine<"read">,
  layer: BlockNode,
  offset: number,
  bytes: number,
): Promise<BlockStatus> {
  try {
    return await blockStatus(co, layer, true, offset, bytes);
  } catch (error) {
    throw BlockError.wrap("Could not read file metadata", error);
  }
}

function describe(status: BlockStatus, start: number, depth: number): MapEntry {
  return {
    start,
    bytes: status.bytes,
    depth,
    present: status.allocated,
    zero: status.zero,
    data: status.data,
    compressed: status.compressed ?? false,
    hostOffset: status.offset,
    filename: status.offset === undefined ? undefined : status.file?.filename,
  };
}

function canMerge(a: MapEntry, b: MapEntry): boolean {
  return (
    a.zero === b.zero &&
    a.data === b.data &&
    a.compressed === b.compressed &&
    a.present === b.present &&
    a.depth === b.depth &&
    a.filename === b.filename &&
    (a.hostOffset === undefined ? b.hostOffset === undefined : a.hostOffset + a.bytes === b.hostOffset)
  );
}
