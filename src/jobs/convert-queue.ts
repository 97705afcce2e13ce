/** What keeps a job's requests in order, in bounds and within a rate. */

import { setTimeout as sleep } from "node:timers/promises";

/** Lets one after the other pass, in the order of numbers from 0 on. */
export class Turnstile {
  #next = 0;
  #isOpen = false;
  readonly #waiting = new Map<number, () => void>();

  /** Resolves when all numbers below `index` have passed, or when order has become pointless. */
  async enter(index: number): Promise<void> {
    if (index === this.#next || this.#isOpen) return;
    await new Promise<void>((resolve) => this.#waiting.set(index, resolve));
  }

  /** `index` has passed. */
  leave(index: number): void {
    if (index !== this.#next) return;
    this.#next++;
    this.#wake(this.#next);
  }

  /** Wakes all: the job has failed. */
  open(): void {
    this.#isOpen = true;
    for (const index of this.#waiting.keys()) this.#wake(index);
  }

  #wake(index: number): void {
    const resolve = this.#waiting.get(index);
    this.#waiting.delete(index);
    resolve?.();
  }
}

/** At most so many at once; who must wait is let in in the order of arrival. */
export class Limiter {
  #free: number;
  readonly #most: number;
  readonly #waiting: (() => void)[] = [];
  readonly #watching: (() => void)[] = [];

  constructor(most: number) {
    this.#free = most;
    this.#most = most;
  }

  async acquire(): Promise<void> {
    if (this.#free > 0) this.#free--;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  release(): void {
    const next = this.#waiting.shift();
    if (next) return next();
    this.#free++;
    if (this.#free === this.#most) for (const wake of this.#watching.splice(0)) wake();
  }

  /** Resolves when nobody is in. */
  async idle(): Promise<void> {
    while (this.#free < this.#most) await new Promise<void>((resolve) => this.#watching.push(resolve));
  }
}

/** Holds a stream of bytes down to a rate.  @qemu blk_set_io_limits */
export class Throttle {
  readonly #bytesPerSecond: number;
  /** When what has been let through so far may have been sent, in ms. */
  #dueAt = 0;

  constructor(bytesPerSecond: number) {
    this.#bytesPerSecond = bytesPerSecond;
  }

  /** Resolves when `bytes` more may go; a tenth of a second's worth may go ahead of its time. */
  async pass(bytes: number, signal: AbortSignal | undefined): Promise<void> {
    const now = performance.now();
    const wait = this.#dueAt - now - 100;
    this.#dueAt = Math.max(this.#dueAt, now) + (bytes / this.#bytesPerSecond) * 1000;
    if (wait <= 0) return;
    // The timer's own AbortError says nothing; the signal's reason is what is thrown everywhere.
    await sleep(wait, undefined, signal ? { signal } : {}).catch(() => signal?.throwIfAborted());
  }
}
