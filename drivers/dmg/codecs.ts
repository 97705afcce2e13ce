/** What chunks are compressed with, each loaded when it is first needed. */

import { BlockError } from "../../src/block/errors.ts";
import { inflateZlib } from "../inflate.ts";
import { decodeAdc } from "./adc.ts";
import { ChunkType } from "./layout.ts";

/** Gives exactly `bytes` bytes; what is broken, shorter or longer is EIO. */
export type Decode = (input: Uint8Array, bytes: number) => Promise<Uint8Array> | Uint8Array;

/** The part of seek-bzip that is used. */
interface Bunzip {
  decode(input: Uint8Array, output: { writeByte(byte: number): void }, multistream: boolean): void;
}

/** The part of xz-decompress that is used. */
interface Xz {
  readonly XzReadableStream: new (input: ReadableStream<Uint8Array>) => ReadableStream<Uint8Array>;
}

/** Undefined: there is no such codec here. */
export function findCodec(type: number): Decode | undefined {
  switch (type) {
    case ChunkType.Adc:
      return decodeAdc;
    case ChunkType.Zlib:
      return inflateZlib;
    case ChunkType.Bzip2: {
      const bunzip = load("seek-bzip") as Bunzip | undefined;
      return bunzip && ((input, bytes) => bunzip2(bunzip, input, bytes));
    }
    case ChunkType.Lzma: {
      const xz = load("xz-decompress") as Xz | undefined;
      return xz && ((input, bytes) => unxz(xz, input, bytes));
    }
    default:
      return undefined;
  }
}

/** Undefined: it is not installed. */
function load(name: string): unknown {
  try {
    const { createRequire } = process.getBuiltinModule("node:module");
    return createRequire(import.meta.filename)(name);
  } catch {
    return undefined;
  }
}

function bunzip2(bunzip: Bunzip, input: Uint8Array, bytes: number): Uint8Array {
  const output = new Uint8Array(bytes);
  let done = 0;
  const writeByte = (byte: number) => {
    // Whatever more there is, it is not made.
    if (done === bytes) throw new BlockError("EIO");
    output[done++] = byte;
  };
  try {
    bunzip.decode(Buffer.from(input), { writeByte }, false);
  } catch (error) {
    throw new BlockError("EIO", undefined, { cause: error });
  }
  if (done !== bytes) throw new BlockError("EIO");
  return output;
}

async function unxz({ XzReadableStream }: Xz, input: Uint8Array, bytes: number): Promise<Uint8Array> {
  const output = new Uint8Array(bytes);
  let done = 0;
  try {
    const stream = new XzReadableStream(new Blob([Buffer.from(input)]).stream());
    for await (const piece of stream) {
      if (done + piece.length > bytes) throw new BlockError("EIO");
      output.set(piece, done);
      done += piece.length;
    }
  } catch (error) {
    throw new BlockError("EIO", undefined, { cause: error });
  }
  if (done !== bytes) throw new BlockError("EIO");
  return output;
}
