/** Buffers of requests that `bdrv io` makes; long ones repeat a short one, so that memory stays bounded. */

import fs from "node:fs";
import { toBlockError } from "../../block/errors.ts";
import type { IoVector } from "../../block/iov.ts";
import { MiB } from "../../block/units.ts";

/** A request up to here has a buffer of its own. */
const MAX_PLAIN_BYTES = 16 * MiB;

/** `bytes` bytes of `pattern`. */
export function patternVector(pattern: number, bytes: number): IoVector {
  return repeatedVector(Buffer.alloc(Math.min(bytes, MAX_PLAIN_BYTES), pattern), bytes);
}

/** Room for a read whose bytes nobody looks at: parts of it may be the same memory. */
export function scratchVector(bytes: number): IoVector {
  return repeatedVector(Buffer.alloc(Math.min(bytes, MAX_PLAIN_BYTES)), bytes);
}

/** The content of a file, over and over.  @qemu qemu_io_alloc_from_file */
export function fileVector(filename: string, bytes: number): IoVector {
  return repeatedVector(readContent(filename, bytes), bytes);
}

function repeatedVector(unit: Uint8Array, bytes: number): IoVector {
  if (unit.length >= bytes) return unit.subarray(0, bytes);
  let long = unit;
  if (unit.length < MAX_PLAIN_BYTES) {
    // Whole repetitions, so that the next part goes on where this one ends.
    const repeats = Math.min(Math.ceil(bytes / unit.length), Math.floor(MAX_PLAIN_BYTES / unit.length));
    long = Buffer.alloc(repeats * unit.length, unit);
  }
  const parts: Uint8Array[] = [];
  for (let done = 0; done < bytes; done += long.length) parts.push(long.subarray(0, bytes - done));
  return parts.length === 1 ? (parts[0] as Uint8Array) : parts;
}

function readContent(filename: string, bytes: number): Uint8Array {
  const fault = (text: string) => new SourceFileFault(`${filename}: ${text}`);
  let fd: number | undefined;
  try {
    fd = fs.openSync(filename, "r");
    const buffer = Buffer.alloc(Math.min(bytes, Math.max(fs.fstatSync(fd).size, MiB)));
    let length = 0;
    while (length < buffer.length) {
      const got = fs.readSync(fd, buffer, length, buffer.length - length, null);
      if (got === 0) break;
      length += got;
    }
    if (length === 0) throw fault("file is empty");
    return buffer.subarray(0, length);
  } catch (error) {
    if (error instanceof SourceFileFault) throw error;
    throw fault(toBlockError(error).message);
  } finally {
    if (fd !== undefined) fs.closeSync(fd);
  }
}

/** What is wrong with the file of `write -s`: a line for stderr. */
export class SourceFileFault extends Error {}
