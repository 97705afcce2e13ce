/**
 * Raw inflate of one cluster, synchronously.
 *
 * Measured on node 20 with 64 KiB clusters of program code (compressed to 0.45), microseconds a cluster, MB/s of one
 * core: zlib-sync 133 (490), node's inflateRawSync 129 (510; 113 with a chunk of the cluster's size), a handle of
 * node's kept and reset 105 (620). zlib-sync 0.1.10 never frees a stream's state: 5.6 KiB are lost with each. So it
 * serves the first reads of a process, and node's handle goes on from there.
 */

import { inflateNow } from "../zlib-streams.ts";

export interface Inflater {
  /** Which one the next cluster goes through. */
  readonly name: () => "zlib-sync" | "node";
  /** The first `outputBytes` of the stream; undefined if it is broken or ends early. */
  readonly inflate: (input: Uint8Array, outputBytes: number) => Uint8Array | undefined;
}

/** The part of zlib-sync that is used. */
interface ZlibSync {
  readonly Inflate: new (options: {
    windowBits: number;
    chunkSize: number;
  }) => {
    push(input: Uint8Array, flush: number): void;
    readonly err: number;
    readonly result: Uint8Array | null;
  };
  readonly Z_FINISH: number;
  readonly Z_STREAM_END: number;
}

/** Streams that zlib-sync may lose the state of: 6 MiB of memory. */
const MAX_ZLIB_SYNC_STREAMS = 1024;

/** Deflate makes at most 1032 bytes of one; zlib-sync takes memory for all that a stream holds. */
const MAX_ZLIB_SYNC_INPUT = 128 * 1024;

export function openInflater(loadNative: (name: string) => unknown): Inflater {
  const native = loadNative("zlib-sync") as ZlibSync | undefined;
  let streams = native ? 0 : MAX_ZLIB_SYNC_STREAMS;
  return {
    name: () => (streams < MAX_ZLIB_SYNC_STREAMS ? "zlib-sync" : "node"),
    inflate(input, outputBytes) {
      if (!native || streams >= MAX_ZLIB_SYNC_STREAMS || input.length > MAX_ZLIB_SYNC_INPUT)
        return node(input, outputBytes);
      streams++;
      const stream = new native.Inflate({ windowBits: -15, chunkSize: outputBytes });
      stream.push(input, native.Z_FINISH);
      // It has one flaw besides: with its input used up it does not ask for the rest of the output.
      if (stream.err !== native.Z_STREAM_END || !stream.result) return node(input, outputBytes);
      return stream.result.length === outputBytes ? stream.result : cut(stream.result, outputBytes);
    },
  };
}

function cut(output: Uint8Array, outputBytes: number): Uint8Array | undefined {
  return output.length < outputBytes ? undefined : output.subarray(0, outputBytes);
}

function node(input: Uint8Array, outputBytes: number): Uint8Array | undefined {
  const output = Buffer.allocUnsafeSlow(outputBytes);
  return inflateNow(input, output) ? output : undefined;
}
