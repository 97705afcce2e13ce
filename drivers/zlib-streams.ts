/**
 * Raw deflate and inflate of single blocks on the thread pool, by streams of node's zlib that are kept and reset.
 *
 * A stream made anew for each block, as zlib's functions make it, costs 100 us of this thread and of memory: measured
 * on two cores with 64 KiB of program code, MB/s: deflate 90, with kept streams 138; inflate 363 and 980. Where a
 * version of node has other internals, those functions it is.
 */

import { KeptPool } from "../src/platform/kept-pool.ts";

/** Loaded when it is needed: that takes 2 ms, which a command that only looks at an image does without. */
export const zlib = () => process.getBuiltinModule("node:zlib");

/** The native part of a stream of node:zlib. */
interface Handle {
  init(
    windowBits: number,
    level: number,
    memoryLevel: number,
    strategy: number,
    state: Uint32Array,
    done: () => void,
    dictionary: undefined,
  ): void;
  reset(): void;
  /** Calls what `init` was given, or `onerror`. */
  write(flush: number, ...buffers: Buffers): void;
  writeSync(flush: number, ...buffers: Buffers): void;
  onerror: () => void;
}

type Buffers = [
  input: Uint8Array,
  inputOffset: number,
  inputBytes: number,
  output: Uint8Array,
  outputOffset: number,
  outputBytes: number,
];

type HandleType = new (mode: number) => Handle;

/** Parameters of a kind of stream, as zlib knows them. */
interface Kind {
  readonly mode: number;
  readonly windowBits: number;
  readonly memoryLevel: number;
  readonly flush: number;
}

const { Z_SYNC_FLUSH, Z_FINISH } = { Z_SYNC_FLUSH: 2, Z_FINISH: 4 };
const INFLATE: Kind = { mode: 6, windowBits: 15, memoryLevel: 8, flush: Z_SYNC_FLUSH };
/** Readers of qcow2 have a 12-bit window, so a writer must not refer back further. */
const DEFLATE: Kind = { mode: 5, windowBits: 12, memoryLevel: 9, flush: Z_FINISH };
const DEFAULT_LEVEL = 6;

/** Streams of a kind that work at once, and are kept: two cores have enough with eight. */
const MAX_STREAMS = 8;

/** One native stream, for one block at a time. */
class KeptStream {
  readonly #handle: Handle;
  readonly #flush: number;
  /** Bytes left of the output, and of the input. */
  readonly #state = new Uint32Array(2);
  /** Keeps the buffers while another thread has their addresses. */
  #busy: { readonly buffers: Buffers; readonly end: (left: number | undefined) => void } | undefined;

  constructor(type: HandleType, { mode, windowBits, memoryLevel, flush }: Kind) {
    this.#handle = new type(mode);
    this.#flush = flush;
    this.#handle.onerror = () => this.#end(undefined);
    const done = () => this.#end(this.#state[0]);
    this.#handle.init(windowBits, DEFAULT_LEVEL, memoryLevel, 0, this.#state, done, undefined);
  }

  #end(left: number | undefined): void {
    const { end } = this.#busy ?? {};
    this.#busy = undefined;
    end?.(left);
  }

  /** The bytes that `output` has left, or undefined: the stream is broken. */
  run(input: Uint8Array, output: Uint8Array): Promise<number | undefined> {
    return new Promise((end) => {
      this.#busy = { buffers: [input, 0, input.length, output, 0, output.length], end };
      this.#handle.reset();
      this.#handle.write(this.#flush, ...this.#busy.buffers);
    });
  }

  /** The same at once. */
  runNow(input: Uint8Array, output: Uint8Array): number | undefined {
    let failed = false;
    this.#busy = {
      buffers: [input, 0, input.length, output, 0, output.length],
      end: () => {
        failed = true;
      },
    };
    this.#handle.reset();
    this.#handle.writeSync(this.#flush, ...this.#busy.buffers);
    this.#busy = undefined;
    return failed ? undefined : this.#state[0];
  }
}

/** Fills `output` with the first bytes of the stream in `input`; false if it is broken or ends early. */
export async function inflateInto(input: Uint8Array, output: Uint8Array): Promise<boolean> {
  const pool = pools()?.inflate;
  if (pool) return (await pool.use((stream) => stream.run(input, output))) === 0;
  const options = {
    chunkSize: Math.max(output.length, 64),
    maxOutputLength: output.length,
    finishFlush: Z_SYNC_FLUSH,
  };
  return new Promise((resolve) => {
    zlib().inflateRaw(input, options, (error, content) => {
      if (!error) output.set(content);
      resolve(!error && content.length === output.length);
    });
  });
}

/** The same at once, on this thread. */
export function inflateNow(input: Uint8Array, output: Uint8Array): boolean {
  const stream = pools()?.now;
  if (stream) return stream.runNow(input, output) === 0;
  // In pieces, since `inflateRawSync` throws away what it has when there is more than it may give.
  const chunkSize = Math.max(output.length, 64);
  try {
    const options = { finishFlush: Z_SYNC_FLUSH, chunkSize, maxOutputLength: 2 * output.length };
    const content = zlib().inflateRawSync(input, options);
    output.set(content.subarray(0, output.length));
    return content.length >= output.length;
  } catch {
    return false;
  }
}

/** `input` as one stream with a 12-bit window, or undefined if that is not smaller than `input` itself. */
export async function deflate(input: Uint8Array): Promise<Uint8Array | undefined> {
  const pool = pools()?.deflate;
  if (pool) {
    const output = Buffer.allocUnsafeSlow(input.length);
    const left = await pool.use((stream) => stream.run(input, output));
    // A full output may not be all of it.
    return left ? output.subarray(0, output.length - left) : undefined;
  }
  const { windowBits, memoryLevel: memLevel } = DEFLATE;
  return new Promise((resolve) => {
    zlib().deflateRaw(
      input,
      { windowBits, memLevel, chunkSize: Math.max(input.length, 64) },
      (error, output) => resolve(!error && output.length < input.length ? output : undefined),
    );
  });
}

interface Pools {
  /** For this thread. */
  readonly now: KeptStream;
  readonly inflate: KeptPool<KeptStream>;
  readonly deflate: KeptPool<KeptStream>;
}

/** Null: this node's streams are made in another way. */
let made: Pools | null | undefined;

function pools(): Pools | undefined {
  made ??= makePools() ?? null;
  return made ?? undefined;
}

/** Nothing says what the internals are, so they are tried out: there and back, and what is broken. */
function makePools(): Pools | undefined {
  try {
    const stream = zlib().createInflateRaw() as unknown as { readonly _handle?: { constructor: HandleType } };
    const type = stream._handle?.constructor;
    if (!type) return undefined;
    const sample = new Uint8Array(64).fill(7);
    const packed = new Uint8Array(64);
    const left = new KeptStream(type, DEFLATE).runNow(sample, packed);
    const inflater = new KeptStream(type, INFLATE);
    const output = new Uint8Array(64);
    if (!left || inflater.runNow(packed, output) !== 0 || !output.every((byte) => byte === 7))
      return undefined;
    if (inflater.runNow(new Uint8Array(64).fill(0xff), output) !== undefined) return undefined;
    const pool = (kind: Kind) => new KeptPool(MAX_STREAMS, () => new KeptStream(type, kind));
    return { now: inflater, inflate: pool(INFLATE), deflate: pool(DEFLATE) };
  } catch {
    return undefined;
  }
}
