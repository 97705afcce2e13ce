/**
 * The anti-forensic splitter: a key is spread over so much random data that it is gone if any part of that is.
 * Source: LUKS On-Disk Format Specification 1.2, section 2.4.  @qemu crypto/afsplit.c
 */

import { hash as digestOf, randomBytes } from "node:crypto";
import { HASH_BYTES, type HashName } from "./algorithms.ts";

/** `stripes` times the key's length, all of it needed to get the key back. */
export function afSplit(hash: HashName, key: Uint8Array, stripes: number): Uint8Array {
  const split: Uint8Array = randomBytes(key.length * stripes);
  const last = split.subarray(key.length * (stripes - 1));
  last.set(condense(hash, split, key.length, stripes));
  xor(last, key);
  return split;
}

/** The key out of what `afSplit` made of it. */
export function afMerge(hash: HashName, split: Uint8Array, keyBytes: number, stripes: number): Uint8Array {
  const key = condense(hash, split, keyBytes, stripes);
  xor(key, split.subarray(keyBytes * (stripes - 1), keyBytes * stripes));
  return key;
}

/** All stripes but the last, each mixed into those before. */
function condense(hash: HashName, split: Uint8Array, keyBytes: number, stripes: number): Uint8Array {
  let block: Uint8Array = new Uint8Array(keyBytes);
  for (let stripe = 0; stripe < stripes - 1; stripe++) {
    xor(block, split.subarray(stripe * keyBytes, (stripe + 1) * keyBytes));
    block = diffuse(hash, block);
  }
  return block;
}

/** Each piece of a digest's length becomes the digest of its number and itself. */
function diffuse(hash: HashName, block: Uint8Array): Uint8Array {
  const output = new Uint8Array(block.length);
  const pieceBytes = HASH_BYTES[hash];
  const input = new Uint8Array(4 + pieceBytes);
  const number = new DataView(input.buffer);
  for (let at = 0; at < block.length; at += pieceBytes) {
    const piece = block.subarray(at, at + pieceBytes);
    number.setUint32(0, at / pieceBytes);
    input.set(piece, 4);
    const digest = digestOf(hash, input.subarray(0, 4 + piece.length), "buffer");
    output.set(digest.subarray(0, piece.length), at);
  }
  return output;
}

function xor(target: Uint8Array, other: Uint8Array): void {
  for (let at = 0; at < target.length; at++) target[at] = (target[at] as number) ^ (other[at] as number);
}
