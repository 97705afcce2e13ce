/** Sends requests of one size to an image, so many at once, and takes the time.  @qemu img_bench */

import type { BlockBackend } from "../block/backend.ts";

export interface BenchRequest {
  readonly image: BlockBackend;
  /** How many requests there are, and how many of them are under way at once (at least 1). */
  readonly count: number;
  readonly depth: number;
  /** Of each request. */
  readonly bytes: number;
  /** Guest offset of the first request; each that follows lies `stepBytes` behind the one before, in a circle. */
  readonly offset: number;
  readonly stepBytes: number;
  /** The byte that is written; undefined: the requests read. */
  readonly pattern?: number | undefined;
  /** A flush is due whenever the number of requests that are left is a multiple of this; 0: never. */
  readonly flushInterval?: number | undefined;
  /** A flush does not wait for the requests that are under way. */
  readonly noDrain?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Runs the requests and gives the seconds that they took. The first error ends the run. */
export async function benchImage(request: BenchRequest): Promise<number> {
  const run = new BenchRun(request, await request.image.getLength());
  const begin = performance.now();
  await run.all();
  return (performance.now() - begin) / 1000;
}

/** One run: each slot sends its next request when its last one has ended. */
class BenchRun {
  readonly #request: BenchRequest;
  readonly #imageBytes: number;
  readonly #slots: readonly Uint8Array[];
  /** Requests that have not been sent. */
  #left: number;
  #offset: number;
  #failed = false;

  constructor(request: BenchRequest, imageBytes: number) {
    const { count, depth, bytes, offset, pattern = 0 } = request;
    this.#request = request;
    this.#imageBytes = imageBytes;
    this.#left = count;
    this.#offset = offset;
    const buffers = Buffer.alloc(Math.min(count, depth) * bytes, pattern);
    this.#slots = Array.from({ length: Math.min(count, depth) }, (_, slot) =>
      buffers.subarray(slot * bytes, (slot + 1) * bytes),
    );
  }

  async all(): Promise<void> {
    const { image, flushInterval = 0, noDrain = false, signal } = this.#request;
    const drains = flushInterval > 0 && !noDrain;
    while (this.#left > 0) {
      const until = drains ? Math.floor((this.#left - 1) / flushInterval) * flushInterval : 0;
      const ends = await Promise.allSettled(this.#slots.map((buffer) => this.#send(buffer, until)));
      for (const end of ends) if (end.status === "rejected") throw end.reason;
      if (drains) await image.flush(signal);
    }
  }

  /** Sends one request after the other until only `until` are left. */
  async #send(buffer: Uint8Array, until: number): Promise<void> {
    const { image, stepBytes, pattern, flushInterval = 0, noDrain = false, signal } = this.#request;
    const options = { signal };
    const flushes = flushInterval > 0 && noDrain;
    try {
      while (this.#left > until && !this.#failed) {
        const offset = this.#offset;
        this.#offset = this.#imageBytes > 0 ? (offset + stepBytes) % this.#imageBytes : offset;
        const isFlushDue = --this.#left % flushInterval === 0 && flushes;
        if (pattern === undefined) await image.readInto(offset, buffer, options);
        else await image.write(offset, buffer, options);
        if (isFlushDue) await image.flush(signal);
      }
    } catch (error) {
      this.#failed = true;
      throw error;
    }
  }
}
