/** Lets a job's reads run ahead of its writes: what a plan says is loaded side by side, and taken in the plan's order. */

/**
 * Yields what `load` makes of each item, in order; up to `depth` items are being loaded or wait to be taken. When it
 * ends, however it does, no load is under way any more.
 */
export async function* readAhead<T, R>(
  items: AsyncIterator<T, void>,
  load: (item: T) => Promise<R>,
  depth: number,
): AsyncGenerator<R, void, undefined> {
  const queue: { readonly loaded: Promise<R> }[] = [];
  let planFailure: { readonly error: unknown } | undefined;
  let ended = false;
  try {
    for (;;) {
      while (!ended && queue.length < depth) {
        try {
          const next = await items.next();
          ended = next.done ?? false;
          if (next.done) break;
          const loaded = load(next.value);
          // An earlier one may fail first; this failure is then nobody's to handle.
          loaded.catch(() => {});
          queue.push({ loaded });
        } catch (error) {
          // What the plan could not find out comes after what it knew before.
          ended = true;
          planFailure = { error };
        }
      }
      const first = queue[0];
      if (!first) break;
      const result = await first.loaded;
      queue.shift();
      yield result;
    }
    if (planFailure) throw planFailure.error;
  } finally {
    await Promise.allSettled(queue.map(({ loaded }) => loaded));
    await items.return?.();
  }
}

/** Buffers that are used again: a fresh one costs a page fault for every 4 KiB. */
export class BufferPool {
  readonly #bytes: number;
  readonly #free: Buffer[] = [];

  /** Of `bytes` bytes each. */
  constructor(bytes: number) {
    this.#bytes = bytes;
  }

  take(): Buffer {
    return this.#free.pop() ?? Buffer.allocUnsafeSlow(this.#bytes);
  }

  /** Nobody uses them any more. */
  give(buffers: Iterable<Buffer>): void {
    this.#free.push(...buffers);
  }
}
