/** One zlib stream (RFC 1950) of known length, for the read-only formats that are made of such. */

import { BlockError } from "../src/block/errors.ts";
import { zlib } from "./zlib-streams.ts";

/** Exactly `bytes` bytes; what is broken, shorter or longer is EIO. */
export function inflateZlib(input: Uint8Array, bytes: number): Uint8Array {
  let output: Uint8Array;
  try {
    output = zlib().inflateSync(input, { maxOutputLength: Math.max(bytes, 1) });
  } catch (error) {
    throw new BlockError("EIO", undefined, { cause: error });
  }
  if (output.length !== bytes) throw new BlockError("EIO");
  return output;
}
