/** Node streams and web streams of an image's guest content. None of them closes the image. */

import { Readable, Writable } from "node:stream";
import type { BlockBackend } from "../block/backend.ts";
import { type ContentRange, DEFAULT_CHUNK_BYTES, pieceBytes, readSparse, resolveRange } from "./content.ts";
import { ContentWriter, type WriteOptions } from "./content-writer.ts";

export interface ReadStreamOptions extends ContentRange {
  /** Most bytes that are read at once; a Node stream holds as many ready. Default: 1 MiB. */
  readonly highWaterMark?: number | undefined;
}

export interface WriteStreamOptions extends WriteOptions {
  /** Bytes that may wait to be written before the producer is told to pause. Default: 1 MiB. */
  readonly highWaterMark?: number | undefined;
}

/**
 * The guest content as a Node stream. Zeroes that the block status tells of are not read from the disk.
 * `destroy` and the signal end a read under way; "close" comes when none is.
 */
export function createReadStream(image: BlockBackend, options: ReadStreamOptions = {}): Readable {
  const { highWaterMark = DEFAULT_CHUNK_BYTES, signal } = options;
  const source = new ContentSource(image);
  const steps = new Steps();
  return new Readable({
    highWaterMark,
    ...(signal && { signal }),
    construct: (callback) => steps.run(() => source.open(options), callback),
    read() {
      const done = (error?: Error | null) => error && this.destroy(error);
      steps.run(async () => {
        const bytes = source.nextBytes(highWaterMark || DEFAULT_CHUNK_BYTES);
        if (bytes === 0) return void this.push(null);
        const chunk = Buffer.allocUnsafeSlow(bytes);
        await source.fill(chunk, steps.signal);
        this.push(chunk);
      }, done);
    },
    destroy: (error, callback) => steps.stop(() => callback(error)),
  });
}

/**
 * A Node stream that writes guest content from `start` on. Clusters of zeroes become zero writes. What is written
 * when it is destroyed, stays. ENOSPC: it is given more than the image is long.
 */
export function createWriteStream(image: BlockBackend, options: WriteStreamOptions = {}): Writable {
  const { highWaterMark = DEFAULT_CHUNK_BYTES, signal } = options;
  const steps = new Steps();
  let writer: ContentWriter | undefined;
  return new Writable({
    highWaterMark,
    ...(signal && { signal }),
    construct: (callback) =>
      steps.run(async () => {
        writer = await ContentWriter.open(image, options);
      }, callback),
    write: (chunk: Uint8Array, _, callback) => steps.run(() => writer?.write(chunk, steps.signal), callback),
    final: (callback) => steps.run(() => writer?.finish(steps.signal), callback),
    destroy: (error, callback) => steps.stop(() => callback(error)),
  });
}

/**
 * The guest content as a web stream of bytes, which a "byob" reader can read into its own buffers. It reads only
 * what is asked for. Zeroes that the block status tells of are not read from the disk.
 */
export function readable(image: BlockBackend, options: ReadStreamOptions = {}): ReadableStream<Uint8Array> {
  const { highWaterMark = DEFAULT_CHUNK_BYTES, signal } = options;
  const source = new ContentSource(image);
  const abort = new AbortController();
  return new ReadableStream({
    type: "bytes",
    autoAllocateChunkSize: highWaterMark || DEFAULT_CHUNK_BYTES,
    async start(controller) {
      follow(signal, abort, (reason) => controller.error(reason));
      await source.open(options);
    },
    async pull(controller: ReadableByteStreamController) {
      const request = controller.byobRequest;
      const view = request?.view;
      // With autoAllocateChunkSize and nothing read ahead, whoever asks brings a buffer.
      if (!request || !view) throw new TypeError("A pull without a buffer");
      const bytes = source.nextBytes(view.byteLength);
      await source.fill(new Uint8Array(view.buffer, view.byteOffset, bytes), abort.signal);
      abort.signal.throwIfAborted();
      if (bytes === 0) controller.close();
      request.respond(bytes);
      if (bytes > 0 && source.nextBytes(1) === 0) controller.close();
    },
    cancel: (reason) => abort.abort(reason),
  });
}

/** A web stream that writes guest content from `start` on, as `createWriteStream` does. It takes any view of bytes. */
export function writable(
  image: BlockBackend,
  options: WriteStreamOptions = {},
): WritableStream<ArrayBufferView | ArrayBuffer> {
  const { highWaterMark = DEFAULT_CHUNK_BYTES, signal } = options;
  const abort = new AbortController();
  let writer: ContentWriter | undefined;
  return new WritableStream<ArrayBufferView | ArrayBuffer>(
    {
      async start(controller) {
        follow(signal, abort, (reason) => controller.error(reason));
        // The sink's own abort is called only when the write under way has ended.
        const aborted = (controller as WritableController).signal;
        aborted.addEventListener("abort", () => abort.abort(aborted.reason));
        writer = await ContentWriter.open(image, options);
      },
      write: (chunk) => writer?.write(bytesOf(chunk), abort.signal),
      async close() {
        await writer?.finish(abort.signal);
        abort.abort();
      },
    },
    { highWaterMark, size: (chunk) => chunk?.byteLength ?? 0 },
  );
}

/** As Node has it since 18; @types/node 20 lacks the signal. */
interface WritableController extends WritableStreamDefaultController {
  readonly signal: AbortSignal;
}

/** The content of a range, taken in order. */
class ContentSource {
  readonly #image: BlockBackend;
  #offset = 0;
  #stop = 0;

  constructor(image: BlockBackend) {
    this.#image = image;
  }

  async open(range: ContentRange): Promise<void> {
    const { start, stop } = await resolveRange(this.#image, range);
    this.#offset = start;
    this.#stop = stop;
  }

  /** Bytes of the next piece; 0: the end. */
  nextBytes(max: number): number {
    return pieceBytes(this.#offset, this.#stop, max);
  }

  async fill(buffer: Uint8Array, signal: AbortSignal): Promise<void> {
    await readSparse(this.#image, this.#offset, buffer, signal);
    this.#offset += buffer.length;
  }
}

/** The asynchronous steps of a Node stream, of which one at a time is under way. */
class Steps {
  readonly #abort = new AbortController();
  #running: Promise<void> = Promise.resolve();

  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  /** Calls back when the step has ended, with its error. */
  run(step: () => Promise<void> | undefined, callback: (error?: Error | null) => void): void {
    const running = (async () => step())();
    this.#running = running.then(
      () => {},
      () => {},
    );
    running.then(() => callback(), callback);
  }

  /** Aborts the step that is under way, and calls back when it has ended. */
  stop(callback: () => void): void {
    this.#abort.abort();
    this.#running.then(callback, callback);
  }
}

/** Passes an abort of the user's signal on to the stream and its requests, until the stream's own ends them. */
function follow(
  signal: AbortSignal | undefined,
  abort: AbortController,
  onAbort: (reason: unknown) => void,
): void {
  if (!signal) return;
  signal.throwIfAborted();
  const stop = () => {
    onAbort(signal.reason);
    abort.abort(signal.reason);
  };
  signal.addEventListener("abort", stop, { once: true, signal: abort.signal });
}

function bytesOf(chunk: ArrayBufferView | ArrayBuffer): Uint8Array {
  if (chunk instanceof ArrayBuffer) return new Uint8Array(chunk);
  if (ArrayBuffer.isView(chunk)) return new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.byteLength);
  throw new TypeError("A chunk must be an ArrayBuffer or a view of one");
}
