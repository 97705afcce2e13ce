/** Things that are costly to make, of which each serves one user at a time: they are kept for the next one. */

export class KeptPool<T> {
  readonly #make: () => T;
  readonly #most: number;
  readonly #free: T[] = [];
  readonly #waiting: ((thing: T) => void)[] = [];
  #made = 0;

  /** At most `most` are made; who finds none free waits for one, in the order of arrival. */
  constructor(most: number, make: () => T) {
    this.#most = most;
    this.#make = make;
  }

  async use<R>(fn: (thing: T) => Promise<R>): Promise<R> {
    const thing = this.#isEmpty
      ? await new Promise<T>((resolve) => this.#waiting.push(resolve))
      : this.#take();
    try {
      return await fn(thing);
    } finally {
      const next = this.#waiting.shift();
      if (next) next(thing);
      else this.#free.push(thing);
    }
  }

  get #isEmpty(): boolean {
    return this.#free.length === 0 && this.#made === this.#most;
  }

  #take(): T {
    if (this.#free.length > 0) return this.#free.pop() as T;
    const thing = this.#make();
    this.#made++;
    return thing;
  }
}
