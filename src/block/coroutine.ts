/**
 * A coroutine is one chain of awaited block-layer calls. It is passed explicitly, as the first parameter, and
 * carries the graph lock it holds as a type, the caller's AbortSignal and an identity.  @qemu qemu/coroutine.h
 */

import { type AioContext, aioWaitWhile, assertCanWait, type MainLoop } from "./aio-context.ts";
import { assert } from "./errors.ts";

/** What a coroutine holds of the graph lock. */
export type GraphHold = "none" | "read";

let created = 0;

export class Coroutine<L extends GraphHold = GraphHold> {
  readonly kind = "coroutine";
  /** A real discriminant: it is what makes `Coroutine<"none">` no `Coroutine<"read">`. */
  readonly graph: L;
  readonly context: AioContext;
  readonly signal: AbortSignal | undefined;
  /** The same for all views of one coroutine. */
  readonly id: number;
  /** False once the lock that this view stands for has been given up. */
  live = true;

  constructor(graph: L, context: AioContext, signal?: AbortSignal, id: number = ++created) {
    this.graph = graph;
    this.context = context;
    this.signal = signal;
    this.id = id;
  }

  /** Throws the signal's reason once it is aborted. Called where a request may stop with nothing half done. */
  checkAborted(): void {
    if (this.signal?.aborted) throw this.signal.reason;
  }
}

/** How many coroutines have been made so far; tests use it to show that a call made none. */
export function coroutinesCreated(): number {
  return created;
}

/** Holds for the run of `fn` the graph lock as a reader.  @qemu GRAPH_RDLOCK_GUARD */
export async function graphRdlock<T>(
  co: Coroutine<"none">,
  fn: (co: Coroutine<"read">) => Promise<T>,
): Promise<T> {
  const lock = co.context.graph;
  if (!lock.tryEnter()) await lock.enter(co.signal);
  const reader = new Coroutine("read", co.context, co.signal, co.id);
  try {
    return await fn(reader);
  } finally {
    reader.live = false;
    lock.leave();
  }
}

/** The rule of every function that walks the graph, checked at run time too. */
export function assertGraphReadable(co: Coroutine<"read">): void {
  assert(co.graph === "read" && co.live, "the caller must hold the graph read lock");
}

/** Runs `fn` as a new coroutine and polls for its end with the context's lock given up. */
async function enterAndPoll<T>(main: MainLoop, fn: (co: Coroutine<"none">) => Promise<T>): Promise<T> {
  let done = false;
  const promise = fn(new Coroutine("none", main.context)).finally(() => {
    done = true;
    main.context.kick();
  });
  // The poll below may throw only before it starts; an early rejection must not count as unhandled meanwhile.
  promise.catch(() => {});
  await aioWaitWhile(main, () => !done);
  return promise;
}

/** Makes of a coroutine function one for the main loop only; in a coroutine it throws.  @qemu co_wrapper */
export function coWrapper<A extends readonly unknown[], R>(
  fn: (co: Coroutine<"none">, ...args: A) => Promise<R>,
): (caller: MainLoop, ...args: A) => Promise<R> {
  return async (caller, ...args) => {
    assert(caller.kind === "main-loop", `${fn.name || "this function"} must not be called in a coroutine`);
    assertCanWait(caller, fn.name);
    return enterAndPoll(caller, (co) => fn(co, ...args));
  };
}

/**
 * Makes of a coroutine function one for both: a coroutine that holds the graph read lock calls `fn` directly;
 * from the main loop it runs in a new coroutine, under the graph read lock, and is polled for.
 * @qemu co_wrapper_mixed_bdrv_rdlock
 */
export function coWrapperMixed<A extends readonly unknown[], R>(
  fn: (co: Coroutine<"read">, ...args: A) => Promise<R>,
): (caller: Coroutine<"read"> | MainLoop, ...args: A) => Promise<R> {
  return async (caller, ...args) => {
    if (caller.kind === "coroutine") {
      assertGraphReadable(caller);
      return fn(caller, ...args);
    }
    assertCanWait(caller, fn.name);
    return enterAndPoll(caller, (co) => graphRdlock(co, (reader) => fn(reader, ...args)));
  };
}

/** The same for functions that must not hold the graph lock, because they change the graph.  @qemu co_wrapper_mixed */
export function coWrapperMixedUnlocked<A extends readonly unknown[], R>(
  fn: (co: Coroutine<"none">, ...args: A) => Promise<R>,
): (caller: Coroutine<"none"> | MainLoop, ...args: A) => Promise<R> {
  return async (caller, ...args) => {
    if (caller.kind === "coroutine") {
      assert(
        caller.graph === "none",
        `${fn.name || "this function"} must not be called with the graph lock held`,
      );
      return fn(caller, ...args);
    }
    assertCanWait(caller, fn.name);
    return enterAndPoll(caller, (co) => fn(co, ...args));
  };
}
