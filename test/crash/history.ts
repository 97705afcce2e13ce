/**
 * What a run of random operations had done when: from it follows, for a cut after any entry of the disk's log, what each
 * byte of the guest may be. What was written before the last completed flush must be there; of what came after it each
 * byte is the old one or one that was asked for.
 */

import assert from "node:assert/strict";
import { noteChanges } from "../random-bitmaps.ts";
import type { Op, OpsTarget } from "../random-ops.ts";
import type { Disk } from "./disk.ts";

/** A step that may have changed something. */
interface Step {
  readonly op: Op;
  /** When it began and ended, counted in steps that begin or end, and in entries of the log. */
  readonly began: number;
  readonly loggedBefore: number;
  ended: number;
  loggedAfter: number;
  /** Where the guest may see another content: from `offset` on, any of these. Undefined: anything. */
  readonly offset: number;
  readonly bytes: number;
  candidates: readonly Uint8Array[] | undefined;
  /** What the image held when it began. */
  readonly before: Uint8Array;
  /** Lengths that the image may have from then on. */
  lengths: readonly number[];
}

/** A flush, or a closing. */
interface Flush {
  readonly began: number;
  readonly loggedAfter: number;
  readonly model: Uint8Array;
  readonly snapshots: ReadonlyMap<string, Uint8Array>;
}

/** What bitmaps must know that are found in a good state from then on. */
interface BitmapState {
  readonly logged: number;
  readonly changed: ReadonlyMap<string, Uint8Array>;
}

/** What may be found after a cut. */
export interface Outlook {
  readonly flush: Flush;
  /** Steps that began before the cut, and had not ended when the flush began. */
  readonly open: readonly Step[];
  /** Contents of all snapshots that there may be, by name. */
  readonly snapshots: ReadonlyMap<string, readonly Uint8Array[]>;
  /** Those of them that must be there. */
  readonly surely: ReadonlySet<string>;
  readonly bitmaps: BitmapState;
}

/** Close the image, so that all of it is on the disk when they have ended. */
const CLOSING: ReadonlySet<string> = new Set([
  "flush",
  "reopen",
  "bitmaps",
  "snapshots",
] satisfies Op["kind"][]);

export class History {
  readonly #disk: Disk;
  readonly #target: OpsTarget;
  readonly #steps: Step[] = [];
  readonly #flushes: Flush[] = [];
  readonly #bitmapStates: BitmapState[] = [];
  readonly #start: number;
  #clock = 0;

  /** `disk` holds the image as it is made, and nothing of that is still to be flushed. */
  constructor(disk: Disk, target: OpsTarget) {
    this.#disk = disk;
    this.#target = target;
    this.#start = disk.log.length;
    this.#noteFlush(this.#clock++, target.model.slice(), new Map());
    this.#noteBitmaps();
  }

  /** For `OpsTarget.observe`. */
  readonly observe = (op: Op): (() => void) => {
    const { model, snapshots = new Map<string, Uint8Array>() } = this.#target;
    const began = this.#clock++;
    const loggedBefore = this.#disk.log.length;
    const before = model.slice();
    const snapshotsBefore = new Map(snapshots);
    const isClosing = CLOSING.has(op.kind);
    if (isClosing && op.kind !== "flush") this.#noteBitmaps();
    const [offset, bytes] = rangeOf(op);
    const step: Step = {
      op,
      began,
      loggedBefore,
      ended: Number.POSITIVE_INFINITY,
      loggedAfter: Number.POSITIVE_INFINITY,
      offset,
      bytes,
      candidates: undefined,
      before,
      lengths: [before.length, lengthAfter(op, snapshots) ?? before.length],
    };
    this.#steps.push(step);
    return () => {
      step.ended = this.#clock++;
      step.loggedAfter = this.#disk.log.length;
      step.lengths = [before.length, this.#target.model.length];
      step.candidates = this.#candidatesOf(step);
      if (isClosing) this.#noteFlush(began, before, snapshotsBefore);
    };
  };

  #noteFlush(began: number, model: Uint8Array, snapshots: ReadonlyMap<string, Uint8Array>): void {
    this.#flushes.push({ began, loggedAfter: this.#disk.log.length, model, snapshots });
  }

  #noteBitmaps(): void {
    const { model, bitmaps } = this.#target;
    const changed = new Map<string, Uint8Array>();
    for (const [name, bitmap] of bitmaps ?? []) {
      noteChanges(bitmap, model);
      changed.set(name, bitmap.changed.slice());
    }
    this.#bitmapStates.push({ logged: this.#disk.log.length, changed });
  }

  #candidatesOf({ op, offset, bytes, before }: Step): readonly Uint8Array[] | undefined {
    const end = Math.min(offset + bytes, Math.max(before.length, this.#target.model.length));
    const cut = (from: Uint8Array) => {
      const piece = new Uint8Array(end - offset);
      piece.set(from.subarray(offset, Math.min(end, from.length)));
      return piece;
    };
    if (op.kind === "overlapping") return undefined;
    const all = [cut(before), cut(this.#target.model)];
    if (op.kind === "write" || op.kind === "zeroes" || op.kind === "snapshot") return all;
    // What is behind the end of a smaller snapshot is given up before its content comes.
    if (op.kind === "goto" || op.kind === "truncate")
      return [...all, cut(before.subarray(0, this.#target.model.length))];
    // Compressed writes begin with a discard where something is in the way.
    const { below } = this.#target;
    return [...all, new Uint8Array(end - offset), ...(below ? [cut(below)] : [])];
  }

  /** What may be found when the first `logged` entries of the log have been issued, and no more. */
  at(logged: number): Outlook {
    const flush = this.#flushes.findLast((each) => each.loggedAfter <= logged);
    const bitmaps = this.#bitmapStates.findLast((each) => each.logged <= logged);
    assert.ok(flush && bitmaps && logged >= this.#start);
    const open = this.#steps.filter((step) => step.ended > flush.began && step.loggedBefore <= logged);
    const snapshots = new Map<string, readonly Uint8Array[]>();
    for (const [name, content] of flush.snapshots) snapshots.set(name, [content]);
    const surely = new Set(flush.snapshots.keys());
    for (const { op, before } of open) {
      if (op.kind === "delete") surely.delete(op.name);
      if (op.kind === "snapshot") snapshots.set(op.name, [...(snapshots.get(op.name) ?? []), before]);
    }
    return { flush, open, snapshots, surely, bitmaps };
  }
}

function rangeOf(op: Op): readonly [number, number] {
  if (op.kind === "flush" || op.kind === "read" || op.kind === "status") return [0, 0];
  if ("offset" in op) return [op.offset, op.bytes];
  if (op.kind === "truncate" || op.kind === "goto" || op.kind === "snapshot")
    return [0, Number.MAX_SAFE_INTEGER];
  return [0, 0];
}

/** Of the image when the step has worked; undefined: as before. */
function lengthAfter(op: Op, snapshots: ReadonlyMap<string, Uint8Array>): number | undefined {
  if (op.kind === "truncate") return op.bytes;
  return op.kind === "goto" ? snapshots.get(op.name)?.length : undefined;
}

/** Throws if `found` can't be what the guest sees after the cut. */
export function checkContent(found: Uint8Array, { flush, open }: Outlook): void {
  const lengths = new Set([flush.model.length, ...open.flatMap((step) => step.lengths)]);
  assert.ok(
    lengths.has(found.length),
    `the length is ${found.length}, and not one of ${[...lengths].join(", ")}`,
  );
  explain(found, flush.model, open, "");
}

/** A snapshot may hold what the guest had written and not flushed when it was taken, or not. */
export function checkSnapshot(name: string, found: Uint8Array, { flush, open, snapshots }: Outlook): void {
  const contents = snapshots.get(name);
  assert.ok(contents, `the snapshot '${name}' can't be there`);
  const shortest = (content: Uint8Array) => Math.min(content.length, found.length);
  const isExact = contents.some(
    (content) =>
      Buffer.compare(content.subarray(0, shortest(content)), found.subarray(0, shortest(content))) === 0,
  );
  if (isExact) return;
  assert.ok(!flush.snapshots.has(name), `the snapshot '${name}' holds something else`);
  explain(found, flush.model, open, `snapshot '${name}': `);
}

function explain(found: Uint8Array, model: Uint8Array, open: readonly Step[], what: string): void {
  const base = new Uint8Array(found.length);
  base.set(model.subarray(0, found.length));
  if (Buffer.compare(found, base) === 0) return;
  const rest = base.slice();
  for (const step of open)
    if (step.candidates === undefined)
      rest.set(found.subarray(step.offset, step.offset + step.bytes), step.offset);
  for (let at = 0; at < found.length; at++) {
    if (found[at] === rest[at]) continue;
    const mayBe = open.some(
      ({ offset, candidates }) =>
        at >= offset && candidates?.some((content) => content[at - offset] === found[at]),
    );
    if (mayBe) continue;
    throw new assert.AssertionError({
      message: `${what}byte ${at} is 0x${found[at]?.toString(16)}; flushed was 0x${base[at]?.toString(16)}, ${describe(at, open)}`,
    });
  }
}

function describe(at: number, open: readonly Step[]): string {
  const over = open.filter(({ offset, bytes }) => bytes > 0 && at >= offset && at < offset + bytes);
  if (over.length === 0) return "and nobody has asked for a change";
  const texts = over.map(({ op, offset, candidates }) => {
    const values = candidates?.map((content) => `0x${(content[at - offset] ?? 0).toString(16)}`);
    return `${op.kind} (${values?.join(" or ")})`;
  });
  return `since then: ${texts.join(", ")}`;
}
