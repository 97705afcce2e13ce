/**
 * Random operations on an image, several in flight at once, against a plain model in memory. The operations are
 * made from a seed beforehand, so that a run can be repeated and cut down; only their interleaving is up to the
 * machine.
 */

import assert from "node:assert/strict";
import type { BlockBackend } from "../src/block/backend.ts";
import { BlockError } from "../src/block/errors.ts";
import { type BitmapModel, verifyBitmaps } from "./random-bitmaps.ts";
import { type LoneKind, type LoneOp, type LoneRun, loneKinds, type Outlook } from "./random-lone-ops.ts";
import { type Random, random } from "./support/random.ts";

/** One step. Offsets and lengths are in bytes; `fill` is the seed of the content that is written. */
export type Op =
  | { readonly kind: "read" | "status" | "discard"; readonly offset: number; readonly bytes: number }
  | {
      readonly kind: "write";
      readonly offset: number;
      readonly bytes: number;
      readonly fill: number;
      readonly fua: boolean;
    }
  | { readonly kind: "compressed"; readonly offset: number; readonly bytes: number; readonly fill: number }
  | { readonly kind: "zeroes"; readonly offset: number; readonly bytes: number; readonly mayUnmap: boolean }
  /** Writes that overlap, started together: each byte must be of one of them. */
  | {
      readonly kind: "overlapping";
      readonly offset: number;
      readonly bytes: number;
      readonly fills: readonly number[];
    }
  | { readonly kind: "flush" | "reopen" | "verify" }
  | LoneOp;

/** What the image under test can do, and how large its pieces are. */
export interface OpsProfile {
  /** Length at the start, in bytes; a multiple of 512. */
  readonly size: number;
  /** Requests like to start and end around multiples of this. */
  readonly clusterSize: number;
  readonly compressed: boolean;
  /** So many clusters are written compressed at once; default 4. */
  readonly compressedClusters?: number;
  /** "grow": the format can't be cut down. */
  readonly resize: boolean | "grow";
  /** Internal snapshots; "overflow": refcounts are so narrow that one may be refused. */
  readonly snapshots?: boolean | "overflow";
  /** Dirty bitmaps that are stored. */
  readonly bitmaps?: boolean;
  /** Its refcounts may be damaged and repaired. */
  readonly repair?: boolean;
  /** Version 2 of qcow2: the size stays while there are snapshots. */
  readonly v2?: boolean;
  /** What the image has is committed to its backing file. */
  readonly commit?: boolean;
  /** Compressed writes run alone: who compresses takes its time, and the run would never be the same again. */
  readonly ordered?: boolean;
}

export interface OpsTarget {
  open(): Promise<BlockBackend>;
  /** The same image, only to be read; for images with snapshots. */
  openReadOnly?(): Promise<BlockBackend>;
  /** The same image, to be repaired. */
  openToCheck?(): Promise<BlockBackend>;
  /** The image's file, to be damaged. */
  readonly filename?: string;
  /** What the guest sees at the start; changed by the run to what it must see at the end. */
  model: Uint8Array;
  /** What lies below, as far as a discard may bring it back; absent: discarded ranges read as before or as zeroes. */
  below?: Uint8Array | undefined;
  /** Internal snapshots by their names: what each holds. Kept by the run. */
  readonly snapshots?: Map<string, Uint8Array>;
  /** Dirty bitmaps by their names: what each must know. Kept by the run. */
  readonly bitmaps?: Map<string, BitmapModel>;
  /** Is called when a step begins, and what it gives when it has worked and the model knows. */
  observe?: (op: Op) => () => void;
  /** Requests fail: whether the step that failed so is to be tried once more. */
  readonly mayFail?: (error: unknown) => boolean;
  /** The image was closed with an error: takes what it holds for the model's, if that may be. */
  readonly adopt?: (image: BlockBackend) => Promise<void>;
}

/** How many operations are under way at most. */
const DEPTH = 8;

/** The longest request; larger than the largest cluster would take too long. */
const MAX_BYTES = 384 * 1024;

export function makeOps(seed: number, count: number, profile: OpsProfile): Op[] {
  const dice = random(seed);
  const ops: Op[] = [];
  const outlook: Outlook = { size: profile.size, snapshots: new Map() };
  while (ops.length < count) ops.push(makeOp(dice, profile, outlook));
  return ops;
}

function makeOp(dice: Random, profile: OpsProfile, outlook: Outlook): Op {
  const lone = makeLone(dice, profile, outlook);
  if (lone) return lone;
  const { size } = outlook;
  const choice = dice.below(96);
  const range = makeRange(dice, profile, size);
  const fill = dice.below(2 ** 31);
  if (choice < 34) return { kind: "write", ...range, fill, fua: dice.chance(0.05) };
  if (choice < 50) return { kind: "read", ...range };
  if (choice < 62) return { kind: "zeroes", ...range, mayUnmap: dice.chance(0.5) };
  if (choice < 72) return { kind: "discard", ...range };
  if (choice < 82 && profile.compressed)
    return { kind: "compressed", ...makeClusters(dice, profile, size), fill };
  if (choice < 86) return { kind: "status", ...range };
  if (choice < 89) {
    const fills = Array.from({ length: dice.between(2, 4) }, () => dice.below(2 ** 31));
    return { kind: "overlapping", ...range, fills };
  }
  if (choice < 93) return { kind: "flush" };
  if (choice < 95) return { kind: "reopen" };
  return { kind: "verify" };
}

/** Each kind of step that runs alone comes up in so many of a hundred steps as it says. */
function makeLone(dice: Random, profile: OpsProfile, outlook: Outlook): LoneOp | undefined {
  let choice = dice.below(100);
  for (const { percent, isFor, make } of Object.values(loneKinds)) {
    if (!isFor(profile)) continue;
    if (choice < percent) return make(dice, profile, outlook);
    choice -= percent;
  }
  return undefined;
}

/** Mostly small, often at the edges of clusters, seldom over several. */
function makeRange(
  dice: Random,
  { clusterSize }: OpsProfile,
  size: number,
): { offset: number; bytes: number } {
  if (size === 0) return { offset: 0, bytes: 0 };
  const unit = dice.pick([1, 512, 4096, clusterSize, clusterSize]);
  const near = (limit: number) => {
    const at = dice.below(Math.floor(limit / unit) + 1) * unit;
    return dice.chance(0.2) ? at + dice.between(-3, 3) : at;
  };
  const offset = Math.min(Math.max(near(size), 0), size - 1);
  const most = Math.min(size - offset, dice.chance(0.7) ? Math.min(2 * clusterSize, 65536) : MAX_BYTES);
  return { offset, bytes: Math.min(Math.max(near(most), 1), size - offset) };
}

/** Whole clusters; the last of the image may be cut. */
function makeClusters(
  dice: Random,
  { clusterSize, compressedClusters = 4 }: OpsProfile,
  size: number,
): { offset: number; bytes: number } {
  const clusters = Math.ceil(size / clusterSize);
  if (clusters === 0) return { offset: 0, bytes: 0 };
  const offset = dice.below(clusters) * clusterSize;
  const most = Math.max(1, Math.floor(MAX_BYTES / clusterSize));
  const bytes = dice.between(1, Math.min(most, compressedClusters)) * clusterSize;
  return { offset, bytes: Math.min(bytes, size - offset) };
}

/** Content by its seed: random, one byte repeated, sparse, or zeroes. */
function content(fill: number, bytes: number): Uint8Array {
  const dice = random(fill);
  const choice = dice.below(10);
  if (choice < 4) return dice.bytes(bytes);
  const buffer = new Uint8Array(bytes);
  if (choice < 8) return buffer.fill(dice.between(1, 255));
  if (choice < 9) for (let at = dice.below(512); at < bytes; at += 512) buffer[at] = dice.between(1, 255);
  return buffer;
}

/**
 * Runs the operations. Ends with an error at the first wrong byte; `target.model` is what the image holds after a
 * run without. The image is closed in either case.
 */
export async function runOps(target: OpsTarget, ops: readonly Op[], profile: OpsProfile): Promise<void> {
  const run = new Run(target, await target.open(), profile);
  try {
    for (const [index, op] of ops.entries()) await run.start(op, index);
    await run.start({ kind: "verify" }, ops.length);
  } finally {
    await run.close();
  }
}

interface UnderWay {
  readonly start: number;
  readonly end: number;
  readonly done: Promise<void>;
}

class Run implements LoneRun {
  readonly profile: OpsProfile;
  readonly target: OpsTarget;
  #image: BlockBackend;
  readonly #underWay = new Set<UnderWay>();
  #failed: { readonly error: unknown } | undefined;

  constructor(target: OpsTarget, image: BlockBackend, profile: OpsProfile) {
    this.target = target;
    this.profile = profile;
    this.#image = image;
  }

  get image(): BlockBackend {
    return this.#image;
  }

  /** Starts the step as soon as nothing that overlaps it is under way. */
  async start(op: Op, index: number): Promise<void> {
    const { model } = this.target;
    if (isLone(op) || op.kind === "reopen" || op.kind === "verify") {
      await this.drain();
      return this.#alone(op).catch((error: unknown) => fail(op, index, error));
    }
    const isOrdered = op.kind === "compressed" && this.profile.ordered;
    switch (op.kind) {
      case "flush":
        return this.#launch(op, index, 0, 0);
      case "read":
      case "status":
      case "discard":
      case "write":
      case "compressed":
      case "zeroes":
      case "overlapping":
        // Cut down, a run may lack the truncate that made room for this.
        if (op.bytes === 0 || op.offset + op.bytes > model.length) return;
        if (isOrdered) await this.drain();
        await this.#launch(op, index, op.offset, op.offset + op.bytes);
        if (isOrdered) await this.drain();
    }
  }

  async #launch(op: Exclude<Op, LoneOp>, index: number, start: number, end: number): Promise<void> {
    for (;;) {
      const inTheWay = [...this.#underWay].find((other) => other.start < end && start < other.end);
      if (inTheWay) await inTheWay.done;
      else if (this.#underWay.size >= DEPTH) await Promise.race([...this.#underWay].map(({ done }) => done));
      else break;
    }
    this.#throwFailure();
    const ended = this.target.observe?.(op);
    const done = this.#retried(() => this.#perform(op)).then(
      () => {
        this.#underWay.delete(entry);
        ended?.();
      },
      (error: unknown) => {
        this.#underWay.delete(entry);
        try {
          fail(op, index, error);
        } catch (described) {
          this.#failed ??= { error: described };
        }
      },
    );
    const entry: UnderWay = { start, end, done };
    this.#underWay.add(entry);
  }

  #throwFailure(): void {
    if (this.#failed) throw this.#failed.error;
  }

  async drain(): Promise<void> {
    while (this.#underWay.size > 0) await Promise.all([...this.#underWay].map(({ done }) => done));
    this.#throwFailure();
  }

  async #alone(op: Op): Promise<void> {
    const ended = this.target.observe?.(op);
    if (op.kind === "reopen") await this.closed();
    else if (isLone(op)) await this.#retried(() => (loneKinds[op.kind] as LoneKind<LoneOp>).run(this, op));
    else await this.#retried(() => this.verify());
    ended?.();
  }

  async #retried(step: () => Promise<void>): Promise<void> {
    for (;;) {
      try {
        return await step();
      } catch (error) {
        if (!this.target.mayFail?.(error)) throw error;
      }
    }
  }

  async closed(fn: () => Promise<void> = async () => {}): Promise<void> {
    const { target } = this;
    let isWhole = true;
    if (this.#image.isOpen)
      await this.#image.close().catch((error: unknown) => {
        if (!target.mayFail?.(error)) throw error;
        isWhole = false;
      });
    try {
      await fn();
    } finally {
      await this.#retried(async () => {
        this.#image = await target.open();
      });
    }
    if (!isWhole) await this.#retried(async () => target.adopt?.(this.#image));
  }

  async #perform(op: Exclude<Op, LoneOp>): Promise<void> {
    const { model } = this.target;
    switch (op.kind) {
      case "read":
        return expectSame(
          await this.#image.read(op.offset, op.bytes),
          model.subarray(op.offset, op.offset + op.bytes),
          op.offset,
        );
      case "write": {
        const data = content(op.fill, op.bytes);
        await this.#image.write(op.offset, data, { fua: op.fua });
        model.set(data, op.offset);
        return;
      }
      case "compressed":
        return this.#compressed(op.offset, content(op.fill, op.bytes));
      case "zeroes":
        await this.#image.writeZeroes(op.offset, op.bytes, { mayUnmap: op.mayUnmap });
        model.fill(0, op.offset, op.offset + op.bytes);
        return;
      case "discard":
        await this.#image.discard(op.offset, op.bytes);
        return this.#adoptDiscarded(op.offset, op.bytes);
      case "overlapping":
        return this.#overlapping(op.offset, op.bytes, op.fills);
      case "status":
        return this.#status(op.offset, op.bytes);
      case "flush":
        return this.#image.flush();
      case "reopen":
      case "verify":
        assert.fail(`'${op.kind}' runs alone`);
    }
  }

  /**
   * A cluster that has its place in the file already is not written compressed: EIO, as qemu, unless the data does
   * not get smaller. Discarded, it must be.
   */
  async #compressed(offset: number, data: Uint8Array): Promise<void> {
    const { model } = this.target;
    if (await this.#hasPlace(offset, data.length)) {
      const error = await this.#image
        .write(offset, data, { compressed: true })
        .catch((reason: unknown) => reason);
      if (error !== undefined && this.target.mayFail?.(error)) throw error;
      if (error instanceof BlockError) assert.equal(error.errno, "EIO");
      else assert.equal(error, undefined);
      const isFine = (byte: number, i: number) =>
        byte === data[i] || (error !== undefined && byte === model[offset + i]);
      await this.#adopt(offset, data.length, isFine, "a compressed write");
      await this.#image.discard(offset, data.length);
      await this.#adoptDiscarded(offset, data.length);
      if (await this.#hasPlace(offset, data.length)) return;
    }
    await this.#image.write(offset, data, { compressed: true });
    model.set(data, offset);
  }

  /** Whether a cluster of the range lies in the image itself. */
  async #hasPlace(offset: number, bytes: number): Promise<boolean> {
    for (let at = offset; at < offset + bytes; ) {
      const status = await this.#image.blockStatus(at, offset + bytes - at);
      if (status.depth === 0 && (status.offset !== undefined || status.compressed)) return true;
      at += status.bytes;
    }
    return false;
  }

  /** What a discarded byte reads as is open: as before, zero, or what lies below; but from now on it stays so. */
  async #adoptDiscarded(offset: number, bytes: number): Promise<void> {
    const { model, below } = this.target;
    const isFine = (byte: number, i: number) =>
      byte === 0 || byte === model[offset + i] || byte === below?.[offset + i];
    await this.#adopt(offset, bytes, isFine, "a discard");
  }

  /** Reads the range, checks each byte, and takes it for the model's. */
  async #adopt(
    offset: number,
    bytes: number,
    isFine: (byte: number, index: number) => boolean,
    after: string,
  ): Promise<void> {
    const now = await this.#image.read(offset, bytes);
    const wrong = now.findIndex((byte, i) => !isFine(byte, i));
    assert.equal(
      wrong,
      -1,
      `offset ${offset + wrong}: 0x${now[wrong]?.toString(16)} can't be after ${after}`,
    );
    this.target.model.set(now, offset);
  }

  /** The first write is of the whole range, each other of a part of it. */
  async #overlapping(offset: number, bytes: number, fills: readonly number[]): Promise<void> {
    const writes = fills.map((fill, n) => {
      const start = n === 0 ? 0 : random(fill).below(bytes);
      return { start, data: content(fill, bytes - start) };
    });
    await Promise.all(writes.map(({ start, data }) => this.#image.write(offset + start, data)));
    const isFine = (byte: number, i: number) =>
      writes.some(({ start, data }) => i >= start && data[i - start] === byte);
    await this.#adopt(offset, bytes, isFine, "writes that overlap");
  }

  /** Block status covers the range, and what it calls zero is. */
  async #status(offset: number, bytes: number): Promise<void> {
    const { model } = this.target;
    for (let at = offset; at < offset + bytes; ) {
      const status = await this.#image.blockStatus(at, offset + bytes - at);
      assert.ok(
        status.bytes > 0 && status.bytes <= offset + bytes - at,
        `status of ${status.bytes} bytes at ${at}`,
      );
      if (status.zero) {
        const wrong = model.subarray(at, at + status.bytes).findIndex((byte) => byte !== 0);
        assert.ok(wrong < 0, `offset ${at + wrong} is said to be zero, and is not`);
      }
      at += status.bytes;
    }
  }

  async verify(): Promise<void> {
    const { model } = this.target;
    assert.equal(await this.#image.getLength(), model.length, "length");
    const step = 2 ** 20;
    for (let at = 0; at < model.length; at += step) {
      const bytes = Math.min(step, model.length - at);
      expectSame(await this.#image.read(at, bytes), model.subarray(at, at + bytes), at);
    }
    await this.#status(0, model.length);
    await verifyBitmaps(this.#image, this.target);
  }

  async close(): Promise<void> {
    await Promise.all([...this.#underWay].map(({ done }) => done));
    await this.#image.close();
  }
}

function isLone(op: Op): op is LoneOp {
  return Object.hasOwn(loneKinds, op.kind);
}

function expectSame(got: Uint8Array, wanted: Uint8Array, offset: number): void {
  if (Buffer.compare(got, wanted) === 0) return;
  const at = got.findIndex((byte, i) => byte !== wanted[i]);
  const last = got.findLastIndex((byte, i) => byte !== wanted[i]);
  throw new assert.AssertionError({
    message:
      `offset ${offset + at}: 0x${got[at]?.toString(16)}, must be 0x${wanted[at]?.toString(16)} ` +
      `(wrong up to ${offset + last}, of ${offset} + ${got.length})`,
  });
}

function fail(op: Op, index: number, error: unknown): never {
  throw new Error(
    `step ${index} ${JSON.stringify(op)}: ${error instanceof Error ? error.message : String(error)}`,
    {
      cause: error,
    },
  );
}

/**
 * The shortest list with which `fails` still holds that leaving out pieces finds, ever smaller ones.
 * A failure that needs luck with the interleaving shrinks less.
 */
export async function shrinkOps(
  ops: readonly Op[],
  fails: (ops: readonly Op[]) => Promise<boolean>,
): Promise<readonly Op[]> {
  let shortest = ops;
  for (let piece = Math.ceil(ops.length / 2); piece >= 1; piece = piece === 1 ? 0 : Math.ceil(piece / 2)) {
    for (let at = 0; at < shortest.length; ) {
      const shorter = [...shortest.slice(0, at), ...shortest.slice(at + piece)];
      if (shorter.length > 0 && (await fails(shorter))) shortest = shorter;
      else at += piece;
    }
  }
  return shortest;
}
