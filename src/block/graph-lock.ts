/**
 * The lock on the graph's edges: coroutines read, a change of the graph writes.  @qemu block/graph-lock.c
 *
 * Invariants:
 * 1. While a writer is in, no reader is; while readers are in, no writer is.
 * 2. A reader that arrives while a writer waits, waits behind it: writers are not starved.
 * 3. Nobody who reads may ask to write: the type `Coroutine<"none">` says it, an assertion holds it.
 */

import type { MainLoop } from "./aio-context.ts";
import type { Coroutine } from "./coroutine.ts";
import { assert } from "./errors.ts";

/** Proof that the write lock is held; every function that changes an edge wants one. */
export class GraphWriter {
  readonly kind = "graph-writer";
  live = true;
}

export class GraphLock {
  #readers = 0;
  #writer = false;
  #waiting: { readonly write: boolean; readonly wake: () => void }[] = [];

  get readers(): number {
    return this.#readers;
  }

  get isWriteLocked(): boolean {
    return this.#writer;
  }

  /** Enters as a reader at once, or says that it has to wait. */
  tryEnter(): boolean {
    if (this.#writer || this.#waiting.length > 0) return false;
    this.#readers++;
    return true;
  }

  /** @qemu bdrv_graph_co_rdlock */
  async enter(signal?: AbortSignal): Promise<void> {
    if (this.tryEnter()) return;
    signal?.throwIfAborted();
    await this.#wait(false, signal);
  }

  /** @qemu bdrv_graph_co_rdunlock */
  leave(): void {
    assert(this.#readers > 0, "graph lock: leave without enter");
    this.#readers--;
    this.#next();
  }

  /** Takes the write lock, after all readers have left.  @qemu bdrv_graph_wrlock */
  async write<T>(caller: Coroutine<"none"> | MainLoop, fn: (writer: GraphWriter) => Promise<T>): Promise<T> {
    assert(
      caller.kind === "main-loop" || caller.graph === "none",
      "graph lock: a coroutine that holds the read lock cannot write",
    );
    if (this.#writer || this.#readers > 0 || this.#waiting.length > 0) await this.#wait(true, undefined);
    else this.#writer = true;
    const writer = new GraphWriter();
    try {
      return await fn(writer);
    } finally {
      writer.live = false;
      this.#writer = false;
      this.#next();
    }
  }

  #wait(write: boolean, signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve, reject) => {
      const entry = {
        write,
        wake: () => {
          signal?.removeEventListener("abort", abort);
          resolve();
        },
      };
      const abort = () => {
        this.#waiting.splice(this.#waiting.indexOf(entry), 1);
        reject(signal?.reason);
        this.#next();
      };
      signal?.addEventListener("abort", abort, { once: true });
      this.#waiting.push(entry);
    });
  }

  /** Lets in who is first: one writer, or all readers up to the next writer. */
  #next(): void {
    while (!this.#writer) {
      const first = this.#waiting[0];
      if (!first || (first.write && this.#readers > 0)) return;
      this.#waiting.shift();
      if (first.write) this.#writer = true;
      else this.#readers++;
      first.wake();
    }
  }
}
