/**
 * Compares what two images show to the guest. It goes by block status: what both know to be zero is not read, and of
 * what one knows to be zero only the other is.  @qemu img_compare
 *
 * The plan (which ranges, and what to read of each) runs ahead of the reads by a few windows, so that a disk has
 * requests in flight; answers are taken in the plan's order.
 */

import type { BlockBackend } from "../block/backend.ts";
import { blockStatusAbove, type ChainStatus } from "../block/block-status.ts";
import { BlockError } from "../block/errors.ts";
import { isZero } from "../block/iov.ts";
import { MiB, SECTOR_SIZE } from "../block/units.ts";

/** Bytes that one step reads at most of each image.  @qemu IO_BUF_SIZE */
const WINDOW_BYTES = 2 * MiB;

/** Windows whose reads are under way; each has two buffers. */
const WINDOWS_IN_FLIGHT = 3;

export interface CompareRequest {
  readonly first: BlockBackend;
  readonly second: BlockBackend;
  /** Lengths and block status must be the same too. */
  readonly strict?: boolean;
  /** The images' lengths differ, and the rest of the longer one is looked at now. */
  readonly onLengthsDiffer?: () => void;
  /** Bytes done and in all. */
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
  readonly signal?: AbortSignal | undefined;
}

/** `offset` is the guest offset in bytes of the first sector, or run, that differs. */
export type CompareResult =
  | { readonly same: true }
  | { readonly same: false; readonly reason: "length" }
  | { readonly same: false; readonly reason: "content" | "status"; readonly offset: number };

/** An image could not be asked or read. */
export class CompareError extends Error {
  readonly step: "status" | "read";
  readonly image: "first" | "second";
  readonly offset: number;
  override readonly cause: BlockError;

  constructor(step: "status" | "read", image: "first" | "second", offset: number, cause: BlockError) {
    super(cause.message);
    this.step = step;
    this.image = image;
    this.offset = offset;
    this.cause = cause;
  }
}

type Which = "first" | "second";

/** One step of the plan. A `skip` is known to be equal. */
interface Step {
  readonly kind: "skip" | "both" | Which | "status-differs";
  readonly offset: number;
  readonly bytes: number;
}

/** Throws CompareError; an abort throws the signal's reason. */
export async function compareImages(request: CompareRequest): Promise<CompareResult> {
  const { first, second, strict = false, onProgress, signal } = request;
  const lengths = [await first.getLength(), await second.getLength()] as const;
  const [common, total] = [Math.min(...lengths), Math.max(...lengths)];
  if (strict && common !== total) return { same: false, reason: "length" };
  const progress = (done: number) => onProgress?.(done, total);
  const run = (steps: AsyncIterable<Step>) => runSteps(steps, first, second, progress, signal);
  const differs = await run(planBoth(first, second, common, strict, signal));
  if (differs) return differs;
  if (common !== total) {
    request.onLengthsDiffer?.();
    const longer = lengths[0] > lengths[1] ? "first" : "second";
    const tail = await run(planTail(longer === "first" ? first : second, longer, common, total, signal));
    if (tail) return tail;
  }
  return { same: true };
}

/** Answers about one image's block status that holds for a range, asked anew where it ends. */
class StatusCursor {
  readonly #image: BlockBackend;
  readonly #which: Which;
  readonly #signal: AbortSignal | undefined;
  #status: ChainStatus | undefined;
  #end = 0;

  constructor(image: BlockBackend, which: Which, signal: AbortSignal | undefined) {
    this.#image = image;
    this.#which = which;
    this.#signal = signal;
  }

  /** The status at `offset`, and how many bytes of it are left. */
  async at(offset: number, limit: number): Promise<{ readonly status: ChainStatus; readonly left: number }> {
    if (this.#status === undefined || offset >= this.#end) {
      const { node } = this.#image;
      try {
        this.#status = await this.#image.run(
          (co) => blockStatusAbove(co, node, undefined, true, offset, limit - offset),
          this.#signal,
        );
      } catch (error) {
        if (!(error instanceof BlockError)) throw error;
        throw new CompareError("status", this.#which, offset, error);
      }
      this.#end = offset + this.#status.bytes;
    }
    return { status: this.#status, left: this.#end - offset };
  }
}

async function* planBoth(
  first: BlockBackend,
  second: BlockBackend,
  end: number,
  strict: boolean,
  signal: AbortSignal | undefined,
): AsyncGenerator<Step, void> {
  // Each image is asked up to its own end: the answer says whether that was reached.
  const limits = [await first.getLength(), await second.getLength()] as const;
  const a = new StatusCursor(first, "first", signal);
  const b = new StatusCursor(second, "second", signal);
  for (let offset = 0; offset < end; ) {
    const { status: one, left: oneLeft } = await a.at(offset, limits[0]);
    const { status: two, left: twoLeft } = await b.at(offset, limits[1]);
    let bytes = Math.min(oneLeft, twoLeft, end - offset);
    if (strict && statusKey(one) !== statusKey(two)) {
      yield { kind: "status-differs", offset, bytes };
      return;
    }
    const kind = planKind(one, two);
    if (kind !== "skip") bytes = Math.min(bytes, WINDOW_BYTES);
    yield { kind, offset, bytes };
    offset += bytes;
  }
}

function planKind(one: ChainStatus, two: ChainStatus): Step["kind"] {
  // Unallocated down to the last layer reads as zeroes.
  const oneIsZero = one.zero || !one.allocated;
  const twoIsZero = two.zero || !two.allocated;
  if (oneIsZero) return twoIsZero ? "skip" : "second";
  return twoIsZero ? "first" : "both";
}

/** All that strict mode compares of a status. */
function statusKey({ data, zero, allocated, offset, eof }: ChainStatus): string {
  return [data, zero, allocated, offset !== undefined, eof ?? false].join();
}

async function* planTail(
  image: BlockBackend,
  which: Which,
  start: number,
  end: number,
  signal: AbortSignal | undefined,
): AsyncGenerator<Step, void> {
  const cursor = new StatusCursor(image, which, signal);
  for (let offset = start; offset < end; ) {
    const { status, left } = await cursor.at(offset, end);
    const isZeroes = status.zero || !status.allocated;
    const bytes = isZeroes ? left : Math.min(left, WINDOW_BYTES);
    yield { kind: isZeroes ? "skip" : which, offset, bytes };
    offset += bytes;
  }
}

/** A step whose reads are under way. */
interface Pending {
  readonly step: Step;
  readonly difference: Promise<CompareResult | undefined>;
  readonly buffers: readonly Uint8Array[];
}

/** The first difference, or undefined. However it ends, no read is under way any more. */
async function runSteps(
  steps: AsyncIterable<Step>,
  first: BlockBackend,
  second: BlockBackend,
  onProgress: (doneBytes: number) => void,
  signal: AbortSignal | undefined,
): Promise<CompareResult | undefined> {
  const queue: Pending[] = [];
  const free: Uint8Array[] = [];
  const settle = async () => {
    const { step, difference, buffers } = queue[0] as Pending;
    const result = await difference;
    queue.shift();
    free.push(...buffers);
    if (!result) onProgress(step.offset + step.bytes);
    return result;
  };
  const read = async (which: Which, step: Step, buffer: Uint8Array): Promise<Uint8Array> => {
    const window = buffer.subarray(0, step.bytes);
    try {
      await (which === "first" ? first : second).readInto(step.offset, window, { signal });
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      throw new CompareError("read", which, step.offset, error);
    }
    return window;
  };
  try {
    for await (const step of steps) {
      while (queue.length >= WINDOWS_IN_FLIGHT) {
        const result = await settle();
        if (result) return result;
      }
      const needed = step.kind === "both" ? 2 : step.kind === "first" || step.kind === "second" ? 1 : 0;
      const buffers = Array.from({ length: needed }, () => free.pop() ?? Buffer.allocUnsafe(WINDOW_BYTES));
      const difference = runStep(step, buffers, read);
      // An earlier step may fail first; this failure is then nobody's to handle.
      difference.catch(() => {});
      queue.push({ step, difference, buffers });
    }
    while (queue.length > 0) {
      const result = await settle();
      if (result) return result;
    }
    return undefined;
  } catch (error) {
    // What the plan could not find out comes after a difference in what went before.
    if (error instanceof CompareError && error.step === "status")
      while (queue.length > 0) {
        const result = await settle();
        if (result) return result;
      }
    throw error;
  } finally {
    await Promise.allSettled(queue.map(({ difference }) => difference));
  }
}

async function runStep(
  { kind, offset, ...step }: Step,
  [one, two]: readonly Uint8Array[],
  read: (which: Which, step: Step, buffer: Uint8Array) => Promise<Uint8Array>,
): Promise<CompareResult | undefined> {
  const whole: Step = { kind, offset, ...step };
  let at: number | undefined;
  if (kind === "status-differs") return { same: false, reason: "status", offset };
  if (kind === "both") {
    const [a, b] = await Promise.all([
      read("first", whole, one as Uint8Array),
      read("second", whole, two as Uint8Array),
    ]);
    at = firstDifference(a, b);
  } else if (kind !== "skip") at = firstNonZero(await read(kind, whole, one as Uint8Array));
  return at === undefined ? undefined : { same: false, reason: "content", offset: offset + at };
}

/** Offset of the first sector that differs. */
function firstDifference(a: Uint8Array, b: Uint8Array): number | undefined {
  if (Buffer.compare(a, b) === 0) return undefined;
  let start = 0;
  // Halving finds it with a few compares; the loop ends inside one sector.
  let end = a.length;
  while (end - start > SECTOR_SIZE) {
    const middle = start + Math.ceil((end - start) / 2 / SECTOR_SIZE) * SECTOR_SIZE;
    if (Buffer.compare(a.subarray(start, middle), b.subarray(start, middle)) === 0) start = middle;
    else end = middle;
  }
  return start;
}

/** Offset of the first sector that has a byte other than zero. */
function firstNonZero(buffer: Uint8Array): number | undefined {
  if (isZero(buffer)) return undefined;
  for (let start = 0; ; start += SECTOR_SIZE)
    if (!isZero(buffer.subarray(start, start + SECTOR_SIZE))) return start;
}
