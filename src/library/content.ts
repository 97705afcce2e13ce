/** Reading an image's guest content in order, where zeroes that the block status tells of are never read. */

import type { BlockBackend } from "../block/backend.ts";
import { BlockError } from "../block/errors.ts";
import { MiB } from "../block/units.ts";

/** Which part of the guest content, and how. */
export interface ContentRange {
  /** Offset of the first byte. Default: 0. */
  readonly start?: number | undefined;
  /** Offset of the last byte, inclusive as in `fs.createReadStream`. Default: the image's last. */
  readonly end?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A piece of guest content: data, or zeroes that nobody need look at. */
export interface ContentExtent {
  /** Guest offset of the first byte. */
  readonly offset: number;
  readonly bytes: number;
  /** As long as `bytes` says, and the receiver's to keep; undefined: all zeroes. */
  readonly data: Uint8Array | undefined;
}

export interface ExtentOptions extends ContentRange {
  /** Most bytes of data in one extent; zeroes may go on for longer. Default: 1 MiB. */
  readonly maxDataBytes?: number | undefined;
}

/** Most bytes that are read at once, and held, where the user does not say. */
export const DEFAULT_CHUNK_BYTES = MiB;

/** Where a range starts, and the offset behind its last byte. RangeError: it is not within the image. */
export async function resolveRange(
  image: BlockBackend,
  { start = 0, end }: ContentRange,
): Promise<{ readonly start: number; readonly stop: number }> {
  const length = await image.getLength();
  const stop = end === undefined ? length : end + 1;
  if (
    !Number.isSafeInteger(start) ||
    !Number.isSafeInteger(stop) ||
    start < 0 ||
    start > stop ||
    stop > length
  )
    throw new RangeError(`The range from ${start} to ${stop - 1} is not within the image's ${length} bytes`);
  return { start, stop };
}

/** How far a piece goes that starts at `offset`: up to the next multiple of `bytes`, so that later ones are aligned. */
export function pieceBytes(offset: number, stop: number, bytes: number): number {
  return Math.min(bytes - (offset % bytes), stop - offset);
}

/**
 * The guest content as extents in order and without gaps: data, and zeroes by their length only. What is written
 * meanwhile may be seen or not. Memory: one piece of data.
 */
export async function* readExtents(
  image: BlockBackend,
  options: ExtentOptions = {},
): AsyncGenerator<ContentExtent, void, undefined> {
  const { signal, maxDataBytes = DEFAULT_CHUNK_BYTES } = options;
  if (!Number.isSafeInteger(maxDataBytes) || maxDataBytes < 1)
    throw new RangeError(`maxDataBytes must be a whole number from 1 on, not ${maxDataBytes}`);
  const { start, stop } = await resolveRange(image, options);
  /** Where the zeroes begin that have been found so far. */
  let zeroes = start;
  for (let offset = start; offset < stop; ) {
    const status = await statusWithin(image, offset, stop - offset, signal);
    if (status.zero) {
      offset += status.bytes;
      continue;
    }
    if (zeroes < offset) yield { offset: zeroes, bytes: offset - zeroes, data: undefined };
    const bytes = Math.min(status.bytes, pieceBytes(offset, stop, maxDataBytes));
    yield { offset, bytes, data: await image.read(offset, bytes, { signal }) };
    offset += bytes;
    zeroes = offset;
  }
  if (zeroes < stop) yield { offset: zeroes, bytes: stop - zeroes, data: undefined };
}

/** Fills `buffer` with the guest content from `offset`; known zeroes are filled in, not read. */
export async function readSparse(
  image: BlockBackend,
  offset: number,
  buffer: Uint8Array,
  signal: AbortSignal | undefined,
): Promise<void> {
  for (let done = 0; done < buffer.length; ) {
    const { zero, bytes } = await statusWithin(image, offset + done, buffer.length - done, signal);
    const part = buffer.subarray(done, done + bytes);
    if (zero) part.fill(0);
    else await image.readInto(offset + done, part, { signal });
    done += bytes;
  }
}

async function statusWithin(
  image: BlockBackend,
  offset: number,
  bytes: number,
  signal: AbortSignal | undefined,
): Promise<{ readonly zero: boolean; readonly bytes: number }> {
  const status = await image.blockStatus(offset, bytes, signal);
  // The range was within the image when it was resolved: somebody has made the image shorter.
  if (status.bytes === 0) throw new BlockError("EIO", undefined, { offset });
  return { zero: status.zero, bytes: Math.min(status.bytes, bytes) };
}
