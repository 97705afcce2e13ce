/**
 * Zstandard for one cluster: the native zstd-napi, node's own (22.15 and later), or WebAssembly; and beside that the
 * system's libzstd on other threads. Source: RFC 8878.
 *
 * All take exactly one frame and fail on what follows it, so the end of the frame is found by its block headers
 * first. Measured on 64 KiB clusters of program code, MB/s of one core, in / out: zstd-napi 250 / 1220, node 24's own
 * 270 / 602, WebAssembly 143 / 487; libzstd on two cores 350 / 1840.
 */

import { availableParallelism } from "node:os";
import { BlockError } from "../../src/block/errors.ts";
import { type LibZstd, openLibZstd } from "../../src/platform/libzstd.ts";
import { zlib } from "../zlib-streams.ts";

export interface Zstd {
  readonly name: "zstd-napi" | "node" | "wasm";
  /** A frame with all of `input`. */
  readonly compress: (input: Uint8Array) => Promise<Uint8Array>;
  /** The first `outputBytes` of the frames in `input`; undefined if they are broken or give less. */
  readonly decompress: (input: Uint8Array, outputBytes: number) => Uint8Array | undefined;
  /** Fills `output` with equal parts from all `inputs`, on another thread; false: `decompress` must do or refuse it. */
  readonly decompressInto?: (inputs: readonly Uint8Array[], output: Uint8Array) => Promise<boolean>;
}

/** Decodes exactly one frame into at most `outputBytes`; throws if that does not go. */
type DecodeFrame = (frame: Uint8Array, outputBytes: number) => Uint8Array;

/** The library's default, and what QEMU uses.  @qemu ZSTD_CLEVEL_DEFAULT */
const LEVEL = 3;

/** The best that is there. */
export async function openZstd(loadNative: (name: string) => unknown): Promise<Zstd> {
  const codec = openNapi(loadNative) ?? openNode() ?? (await openWasm());
  return withThreads(codec);
}

/** What the system's library can do beside this thread. */
function withThreads(codec: Zstd): Zstd {
  const lib = process.env["BDRV_NO_NATIVE"] === "1" ? undefined : openLibZstd();
  if (!lib) return codec;
  const compressor = new SharedCompressor(codec, lib);
  return {
    ...codec,
    compress: (input) => compressor.compress(input),
    async decompressInto(inputs, output) {
      const frames = joinFrames(inputs, output.length / inputs.length);
      return frames !== undefined && (await lib.decompress(frames, output)) === output.length;
    },
  };
}

/** Compresses on the thread pool, and what waits for that on this thread: a turn through the pool costs half a cluster. */
class SharedCompressor {
  readonly #codec: Zstd;
  readonly #lib: LibZstd;
  readonly #waiting: { readonly input: Uint8Array; readonly done: (output: Promise<Uint8Array>) => void }[] =
    [];
  #free = availableParallelism();
  #helps = false;

  constructor(codec: Zstd, lib: LibZstd) {
    this.#codec = codec;
    this.#lib = lib;
  }

  compress(input: Uint8Array): Promise<Uint8Array> {
    return new Promise((done) => {
      this.#waiting.push({ input, done });
      this.#start();
    });
  }

  #start(): void {
    while (this.#free > 0) {
      const next = this.#waiting.shift();
      if (!next) return;
      this.#free--;
      next.done(this.#beside(next.input));
    }
    if (this.#helps || this.#waiting.length === 0) return;
    this.#helps = true;
    setImmediate(() => {
      this.#helps = false;
      const next = this.#waiting.shift();
      if (next) next.done(this.#codec.compress(next.input));
      this.#start();
    });
  }

  async #beside(input: Uint8Array): Promise<Uint8Array> {
    const output = Buffer.allocUnsafeSlow(input.length);
    const bytes = await this.#lib.compress(input, output, LEVEL);
    this.#free++;
    this.#start();
    // What does not fit does not get smaller, which is all that anybody wants to know.
    return bytes === undefined ? input : output.subarray(0, bytes);
  }
}

/** The frames of all inputs behind each other, if each is one that says it holds `contentBytes`. */
function joinFrames(inputs: readonly Uint8Array[], contentBytes: number): Uint8Array | undefined {
  const frames: Uint8Array[] = [];
  for (const input of inputs) {
    const frame = findFrame(input, 0);
    if (frame?.contentBytes !== contentBytes || frame.skippable) return undefined;
    frames.push(input.subarray(0, frame.end));
  }
  const [first] = frames;
  const isRow = frames.every(({ buffer, byteOffset }, index) => {
    const before = frames[index - 1];
    return !before || (before.buffer === buffer && before.byteOffset + before.length === byteOffset);
  });
  if (!first || !isRow) return Buffer.concat(frames);
  const bytes = frames.reduce((sum, frame) => sum + frame.length, 0);
  return new Uint8Array(first.buffer, first.byteOffset, bytes);
}

interface Napi {
  readonly CCtx: new () => { compress(target: Uint8Array, source: Uint8Array, level: number): number };
  readonly DCtx: new () => { decompress(target: Uint8Array, source: Uint8Array): number };
  readonly compressBound: (bytes: number) => number;
}

export function openNapi(loadNative: (name: string) => unknown): Zstd | undefined {
  const binding = loadNative("zstd-napi/binding") as Napi | undefined;
  if (!binding) return undefined;
  const compressor = new binding.CCtx();
  const decompressor = new binding.DCtx();
  let scratch = new Uint8Array(0);
  return {
    name: "zstd-napi",
    async compress(input) {
      const bound = binding.compressBound(input.length);
      if (scratch.length < bound) scratch = new Uint8Array(bound);
      return scratch.slice(0, compressor.compress(scratch, input, LEVEL));
    },
    decompress: (input, outputBytes) =>
      decodeFrames(input, outputBytes, (frame, bytes) => {
        const target = new Uint8Array(bytes);
        return target.subarray(0, decompressor.decompress(target, frame));
      }),
  };
}

/** Not yet in the types of the oldest node that we support. */
interface NodeZstd {
  readonly zstdDecompressSync?: (input: Uint8Array, options: { maxOutputLength: number }) => Uint8Array;
  readonly zstdCompress?: (
    input: Uint8Array,
    callback: (error: Error | null, output: Uint8Array) => void,
  ) => void;
}

export function openNode(): Zstd | undefined {
  const { zstdDecompressSync, zstdCompress } = zlib() as unknown as NodeZstd;
  if (!zstdDecompressSync || !zstdCompress) return undefined;
  return {
    name: "node",
    compress: (input) =>
      new Promise((resolve, reject) => {
        zstdCompress(input, (error, output) =>
          error ? reject(new BlockError("EIO", undefined, { cause: error })) : resolve(output),
        );
      }),
    decompress: (input, outputBytes) =>
      decodeFrames(input, outputBytes, (frame, bytes) =>
        zstdDecompressSync(frame, { maxOutputLength: bytes }),
      ),
  };
}

let wasm: Promise<typeof import("@bokuweb/zstd-wasm")> | undefined;

/** Once in a process: a second `init` puts new memory under functions that keep to the old. */
async function initWasm() {
  const module = await import("@bokuweb/zstd-wasm");
  await module.init();
  return module;
}

export async function openWasm(): Promise<Zstd> {
  wasm ??= initWasm();
  const { compress, decompress } = await wasm;
  return {
    name: "wasm",
    compress: async (input) => compress(input, LEVEL),
    decompress: (input, outputBytes) =>
      decodeFrames(input, outputBytes, (frame, bytes) => decompress(frame, { defaultHeapSize: bytes })),
  };
}

/** A cluster is one frame as a rule, but may be several. */
function decodeFrames(input: Uint8Array, outputBytes: number, decode: DecodeFrame): Uint8Array | undefined {
  const parts: Uint8Array[] = [];
  let have = 0;
  for (let at = 0; have < outputBytes; ) {
    const frame = findFrame(input, at);
    // A decoder may take memory by the size that the frame tells of itself.
    if (!frame || (frame.contentBytes ?? 0) > outputBytes - have) return undefined;
    if (!frame.skippable) {
      try {
        const part = decode(input.subarray(at, frame.end), outputBytes - have);
        if (part.length === outputBytes) return part;
        parts.push(part);
        have += part.length;
      } catch {
        return undefined;
      }
    }
    at = frame.end;
  }
  return have === outputBytes ? Buffer.concat(parts) : undefined;
}

export interface Frame {
  /** Offset of the first byte behind the frame. */
  readonly end: number;
  readonly skippable: boolean;
  /** What the frame says of its decompressed size; undefined: nothing. */
  readonly contentBytes: number | undefined;
}

const MAGIC = 0xfd2fb528;
const SKIPPABLE_MAGIC = 0x184d2a5;

/** The frame at `start`, by its header and block headers alone; undefined if there is no whole one. RFC 8878, section 3.1 */
export function findFrame(input: Uint8Array, start: number): Frame | undefined {
  const view = new DataView(input.buffer, input.byteOffset, input.length);
  if (start + 8 > input.length) return undefined;
  const magic = view.getUint32(start, true);
  if (magic >>> 4 === SKIPPABLE_MAGIC) {
    const end = start + 8 + view.getUint32(start + 4, true);
    return end <= input.length ? { end, skippable: true, contentBytes: undefined } : undefined;
  }
  if (magic !== MAGIC) return undefined;
  const descriptor = view.getUint8(start + 4);
  const singleSegment = (descriptor & 0x20) !== 0;
  const sizeFlag = descriptor >>> 6;
  const sizeBytes = sizeFlag === 0 ? (singleSegment ? 1 : 0) : 1 << sizeFlag;
  const sizeAt = start + 5 + (singleSegment ? 0 : 1) + ([0, 1, 2, 4][descriptor & 3] as number);
  if (sizeAt + sizeBytes > input.length) return undefined;
  const contentBytes = readContentBytes(view, sizeAt, sizeBytes);
  let at = sizeAt + sizeBytes;
  for (let last = false; !last; ) {
    if (at + 3 > input.length) return undefined;
    const header = view.getUint16(at, true) + view.getUint8(at + 2) * 2 ** 16;
    last = (header & 1) !== 0;
    const type = (header >>> 1) & 3;
    if (type === 3) return undefined;
    at += 3 + (type === 1 ? 1 : header >>> 3);
  }
  if ((descriptor & 4) !== 0) at += 4;
  return at <= input.length ? { end: at, skippable: false, contentBytes } : undefined;
}

function readContentBytes(view: DataView, at: number, bytes: number): number | undefined {
  switch (bytes) {
    case 0:
      return undefined;
    case 1:
      return view.getUint8(at);
    case 2:
      return view.getUint16(at, true) + 256;
    case 4:
      return view.getUint32(at, true);
    default:
      return view.getUint32(at, true) + view.getUint32(at + 4, true) * 2 ** 32;
  }
}
