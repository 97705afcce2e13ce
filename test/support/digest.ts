/** The SHA-256 of an image's guest content, with a check on the way that block status and reads agree. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import type { BlockBackend } from "../../src/block/backend.ts";

const PIECE_BYTES = 2 ** 20;
/** From this length on, what block status calls zero is believed: reading it all would take minutes. */
const READ_ALL_BYTES = 2 ** 28;

/** Reads everything in pieces, each within one extent of the block status. */
export async function contentDigest(image: BlockBackend): Promise<string> {
  const hash = createHash("sha256");
  const length = await image.getLength();
  const zeroes = Buffer.alloc(PIECE_BYTES);
  const buffer = Buffer.alloc(PIECE_BYTES);
  for (let offset = 0; offset < length; ) {
    const status = await image.blockStatus(offset, length - offset);
    assert.ok(status.bytes > 0, `block status at ${offset} gives an empty range`);
    const end = Math.min(length, offset + status.bytes);
    for (; offset < end; offset += PIECE_BYTES) {
      const bytes = Math.min(PIECE_BYTES, end - offset);
      const piece = buffer.subarray(0, bytes);
      if (status.zero && length >= READ_ALL_BYTES) {
        hash.update(zeroes.subarray(0, bytes));
        continue;
      }
      // What the read does not fill must not pass for zeroes.
      piece.fill(0xa5);
      await image.readInto(offset, piece);
      if (status.zero)
        assert.ok(
          piece.equals(zeroes.subarray(0, bytes)),
          `zero by status, but not by reading: at ${offset}`,
        );
      hash.update(piece);
    }
    offset = end;
  }
  return hash.digest("hex");
}
