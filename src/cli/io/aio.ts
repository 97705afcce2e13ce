/**
 * Requests that go on beside the commands. Their ends are printed only while a command waits, as in qemu-io, whose
 * event loop runs then; so `aio_read` and `length` print in the order length, read.  @qemu qemu-io-cmds.c: aio_read_done
 *
 * Those that have ended at once are printed the latest first, failed ones before reads before writes: so qemu's list
 * of finished work is walked. (Reads before writes: it is only that they take less long there.) The others follow in
 * the order in which they ended.
 */

import { abortable } from "../../block/abort.ts";

const RANKS = { failed: 0, read: 1, write: 2, late: 3 } as const;

interface Ended {
  readonly rank: number;
  readonly order: number;
  readonly print: () => void;
}

/** How an asynchronous request ended, and what prints that. */
export interface AioOutcome {
  readonly failed: boolean;
  readonly print: () => void;
}

export class AioQueue {
  readonly #signal: AbortSignal;
  #inFlight = 0;
  #endings = 0;
  #ended: Ended[] = [];
  /** How many commands wait just now. */
  #polling = 0;
  /** What a request threw that is no outcome: a bug of ours. */
  #broken: { readonly error: unknown } | undefined;
  #wake: (() => void) | undefined;

  constructor(signal: AbortSignal) {
    this.#signal = signal;
  }

  /** Takes charge of a request that has been started. Comes back when what can be done at once is done. */
  async add(kind: "read" | "write", request: Promise<AioOutcome>): Promise<void> {
    this.#inFlight++;
    let isLate = false;
    const settled = () => {
      this.#inFlight--;
      if (this.#polling > 0) this.#print();
      this.#wake?.();
    };
    request.then(
      ({ failed, print }) => {
        const order = this.#endings++;
        const early = { rank: failed ? RANKS.failed : RANKS[kind], order: -order, print };
        this.#ended.push(isLate ? { rank: RANKS.late, order, print } : early);
        settled();
      },
      (error: unknown) => {
        this.#broken = { error };
        settled();
      },
    );
    await nextTurn();
    isLate = true;
  }

  /**
   * Waits for `work`; requests that end meanwhile are printed. What ends at once has not waited: an error by then
   * leaves the others for later, unless `always`.
   */
  async poll<T>(work: Promise<T>, always = false): Promise<T> {
    let waits = false;
    const turn = setImmediate(() => {
      waits = true;
      this.#polling++;
      this.#print();
    });
    try {
      const answer = await abortable(work, this.#signal);
      // What was begun before it has nearly always ended before it, too.
      if (this.#inFlight > 0) await this.#nextEnd();
      this.#print();
      return answer;
    } catch (error) {
      if (always) this.#print();
      throw error;
    } finally {
      clearImmediate(turn);
      if (waits) this.#polling--;
      this.#throwIfBroken();
    }
  }

  /** Waits until none is under way, and prints them.  @qemu blk_drain_all */
  async drain(): Promise<void> {
    while (this.#inFlight > 0) {
      // Those that end close together are printed together. A request that is held up must not keep the others.
      await this.#nextEnd();
      this.#print();
    }
    this.#print();
    this.#throwIfBroken();
  }

  #print(): void {
    const ended = this.#ended.sort((a, b) => a.rank - b.rank || a.order - b.order);
    this.#ended = [];
    for (const { print } of ended) print();
  }

  #throwIfBroken(): void {
    if (!this.#broken) return;
    const { error } = this.#broken;
    this.#broken = undefined;
    throw error;
  }

  /** Until all have ended, but no longer than `GATHER_MS`. */
  async #nextEnd(): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const gathered = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, GATHER_MS);
      this.#wake = () => {
        if (this.#inFlight === 0) resolve();
      };
    });
    try {
      await abortable(gathered, this.#signal);
    } finally {
      clearTimeout(timer);
      this.#wake = undefined;
    }
  }
}

const GATHER_MS = 10;

function nextTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
