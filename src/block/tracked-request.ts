/**
 * Requests under way on one node. A serialising request (a read-modify-write) and any other that overlaps it run
 * one after the other; all others run side by side.  @qemu BdrvTrackedRequest
 */

import { abortable } from "./abort.ts";
import type { AioContext } from "./aio-context.ts";

export class TrackedRequest {
  /** The range that others are compared with; a serialising request's is widened to its alignment. */
  start: number;
  end: number;
  readonly isWrite: boolean;
  serialising = false;
  /** Whom this one waits for: a cycle of waits is never entered. */
  waitingFor: TrackedRequest | undefined;
  /** Wakes those who wait for the end of this one; made by the first who waits. */
  done: (() => void) | undefined;
  ended: Promise<void> | undefined;

  constructor(offset: number, bytes: number, isWrite: boolean) {
    this.start = offset;
    this.end = offset + bytes;
    this.isWrite = isWrite;
  }
}

export class RequestTracker {
  readonly #context: AioContext;
  readonly #requests = new Set<TrackedRequest>();
  #serialising = 0;

  constructor(context: AioContext) {
    this.#context = context;
  }

  get inFlight(): number {
    return this.#requests.size;
  }

  /** Whether anything waits for serialising requests at all: the quick way out for all others. */
  get hasSerialising(): boolean {
    return this.#serialising > 0;
  }

  begin(offset: number, bytes: number, isWrite: boolean): TrackedRequest {
    const request = new TrackedRequest(offset, bytes, isWrite);
    this.#requests.add(request);
    return request;
  }

  end(request: TrackedRequest): void {
    this.#requests.delete(request);
    if (request.serialising) this.#serialising--;
    request.done?.();
    if (this.#requests.size === 0) this.#context.kick();
  }

  /** Widens the request to `alignment` and makes every overlapping one wait for it.  @qemu bdrv_make_request_serialising */
  async makeSerialising(request: TrackedRequest, alignment: number, signal?: AbortSignal): Promise<void> {
    request.start -= request.start % alignment;
    const rest = request.end % alignment;
    if (rest !== 0) request.end += alignment - rest;
    if (!request.serialising) {
      request.serialising = true;
      this.#serialising++;
    }
    await this.waitForOverlapping(request, signal);
  }

  /** Waits until no overlapping request is under way of which one of the two is serialising.  @qemu bdrv_wait_serialising_requests */
  async waitForOverlapping(request: TrackedRequest, signal?: AbortSignal): Promise<void> {
    for (let other = this.#conflict(request); other; other = this.#conflict(request)) {
      const waited = other;
      waited.ended ??= new Promise((resolve) => {
        waited.done = resolve;
      });
      request.waitingFor = waited;
      await abortable(waited.ended, signal);
      request.waitingFor = undefined;
    }
  }

  #conflict(request: TrackedRequest): TrackedRequest | undefined {
    if (this.#serialising === 0) return undefined;
    for (const other of this.#requests) {
      if (other === request || !(request.serialising || other.serialising)) continue;
      if (other.start >= request.end || request.start >= other.end) continue;
      // Two that wait for each other would wait for ever: whoever came to wait first is waited past.
      if (other.waitingFor === undefined) return other;
    }
    return undefined;
  }
}
