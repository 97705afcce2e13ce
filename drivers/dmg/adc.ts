/**
 * Apple Data Compression: runs of literal bytes, and copies of what came out before, with offsets of 10 or 16 bits.
 * Source: its description in "Demystifying the DMG File Format" and in the Multimedia Wiki ("Apple Data Compression").
 */

import { BlockError } from "../../src/block/errors.ts";

/** Exactly `bytes` bytes; what is broken, shorter or longer is EIO. */
export function decodeAdc(input: Uint8Array, bytes: number): Uint8Array {
  const output = new Uint8Array(bytes);
  let done = 0;
  for (let at = 0; at < input.length; ) {
    const code = input[at] as number;
    if (code >= 0x80) {
      const length = (code & 0x7f) + 1;
      if (at + 1 + length > input.length || done + length > bytes) throw new BlockError("EIO");
      output.set(input.subarray(at + 1, at + 1 + length), done);
      at += 1 + length;
      done += length;
      continue;
    }
    const isLong = code >= 0x40;
    if (at + (isLong ? 3 : 2) > input.length) throw new BlockError("EIO");
    const next = input[at + 1] as number;
    const length = isLong ? (code & 0x3f) + 4 : (code >>> 2) + 3;
    const distance = 1 + (isLong ? next * 256 + (input[at + 2] as number) : (code & 3) * 256 + next);
    if (distance > done || done + length > bytes) throw new BlockError("EIO");
    // Byte by byte: what is copied may be what this very copy has just put there.
    for (let end = done + length; done < end; done++) output[done] = output[done - distance] as number;
    at += isLong ? 3 : 2;
  }
  if (done !== bytes) throw new BlockError("EIO");
  return output;
}
