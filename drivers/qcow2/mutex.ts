/** A lock for code that awaits while it changes shared state: first come, first served.  @qemu CoMutex */

import { assert } from "../../src/block/errors.ts";

export class Mutex {
  #held = false;
  readonly #queue: (() => void)[] = [];

  get isHeld(): boolean {
    return this.#held;
  }

  /** Undefined: taken at once, with no need to await. */
  acquire(): Promise<void> | undefined {
    if (!this.#held) {
      this.#held = true;
      return undefined;
    }
    return new Promise((resolve) => this.#queue.push(resolve));
  }

  /** The lock stays held while it passes to the next in the queue, so that a newcomer can't slip in. */
  release(): void {
    assert(this.#held, "release of a lock that nobody holds");
    const next = this.#queue.shift();
    if (next) next();
    else this.#held = false;
  }

  async run<T>(fn: () => Promise<T> | T): Promise<T> {
    const waiting = this.acquire();
    if (waiting) await waiting;
    try {
      return await fn();
    } finally {
      this.release();
    }
  }
}
