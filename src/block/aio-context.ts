/**
 * AioContext: the home of one graph of nodes. It has a lock that the main loop holds while it works on those
 * nodes, and it is where code outside a coroutine waits for coroutines to get on.  @qemu include/block/aio.h
 *
 * Invariants:
 * 1. At most one MainLoop token of a context is in force; it may be acquired again only by its holder.
 * 2. A token that waits in `aioWaitWhile` is not in force until the wait is over.
 * 3. Whoever changes a state that somebody may wait for calls `kick()` after the change.
 */

import { assert } from "./errors.ts";
import { GraphLock } from "./graph-lock.ts";
import type { BlockNode } from "./node.ts";

export class AioContext {
  readonly name: string;
  /** Guards the edges between the nodes of this context.  @qemu graph-lock.h */
  readonly graph: GraphLock;
  /** The nodes of this context by their names. */
  readonly nodes = new Map<string, BlockNode>();
  #holder: MainLoop | undefined;
  #queue: (() => void)[] = [];
  #kicked: (() => void)[] = [];

  constructor(name: string) {
    this.name = name;
    this.graph = new GraphLock();
  }

  /**
   * Takes the lock. Recursive by token: the holder passes its own token and gets it back, one level deeper;
   * every acquire needs its release.  @qemu aio_context_acquire
   */
  async acquire(held?: MainLoop): Promise<MainLoop> {
    if (held) {
      assert(
        held.context === this && held.isHeld,
        `acquire: that token does not hold AioContext '${this.name}'`,
      );
      held.depth++;
      return held;
    }
    const main = new MainLoop(this);
    await this.take(main);
    return main;
  }

  /** Runs `fn` with the lock held, and releases it however `fn` ends. */
  async run<T>(fn: (main: MainLoop) => Promise<T>): Promise<T> {
    const main = await this.acquire();
    try {
      return await fn(main);
    } finally {
      main.release();
    }
  }

  holds(main: MainLoop): boolean {
    return this.#holder === main;
  }

  /** Wakes everyone who waits for a condition on this context, to look again.  @qemu aio_wait_kick */
  kick(): void {
    if (this.#kicked.length === 0) return;
    const woken = this.#kicked;
    this.#kicked = [];
    for (const wake of woken) wake();
  }

  /** Resolves at the next kick. */
  nextKick(): Promise<void> {
    return new Promise((resolve) => this.#kicked.push(resolve));
  }

  /** Only for MainLoop and aioWaitWhile. The lock passes in order of arrival. */
  async take(main: MainLoop): Promise<void> {
    if (this.#holder) await new Promise<void>((resolve) => this.#queue.push(resolve));
    this.#holder = main;
  }

  /** Only for MainLoop and aioWaitWhile. */
  give(main: MainLoop): void {
    assert(this.#holder === main, `release: that token does not hold AioContext '${this.name}'`);
    const next = this.#queue.shift();
    // The lock stays taken while it passes on, so that a newcomer can't slip in before the woken one runs.
    this.#holder = next ? PASSING : undefined;
    next?.();
  }
}

/** Code outside any coroutine that holds the lock of an AioContext. Got from `AioContext.acquire`. */
export class MainLoop {
  readonly kind = "main-loop";
  readonly context: AioContext;
  /** How many acquires are open. */
  depth = 1;

  constructor(context: AioContext) {
    this.context = context;
  }

  get isHeld(): boolean {
    return this.depth > 0 && this.context.holds(this);
  }

  /** @qemu aio_context_release */
  release(): void {
    assert(this.isHeld, `release: that token does not hold AioContext '${this.context.name}'`);
    this.depth--;
    if (this.depth === 0) this.context.give(this);
  }
}

/**
 * Waits until `condition` is false; it is looked at again after each kick of the context. The context's lock is
 * given up meanwhile, for the coroutine that is waited for may need whoever holds it next. Not held, or held
 * more than once (an outer holder relies on it), it throws at once: in QEMU that is a deadlock.
 * @qemu AIO_WAIT_WHILE
 */
export async function aioWaitWhile(held: MainLoop, condition: () => boolean): Promise<void> {
  const { context } = held;
  assertCanWait(held, "aioWaitWhile");
  while (condition()) {
    const kicked = context.nextKick();
    context.give(held);
    await kicked;
    await context.take(held);
  }
}

/** The rule of everything that polls from the main loop, checked at the top of each such function. */
export function assertCanWait(held: MainLoop, who: string): void {
  const { context } = held;
  assert(held.isHeld, `${who}: the caller must hold the lock of AioContext '${context.name}'`);
  assert(
    held.depth === 1,
    `${who}: the lock of AioContext '${context.name}' is held ${held.depth} times; it can be given up only when held once`,
  );
}

/** Where nodes live when the caller names no context.  @qemu qemu_get_aio_context */
export const mainContext = new AioContext("main");

/** Stands for the next in the queue, who has been woken and not run yet. */
const PASSING = new MainLoop(mainContext);
