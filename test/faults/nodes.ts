/**
 * Requests to the image's file fail while random operations run on the image: the error comes out by its name, the step
 * works when it is tried again, nothing hangs, no node stays open, and no content is lost that the image had taken.
 */

import assert from "node:assert/strict";
import { EVENTS } from "../../drivers/blkdebug-rules.ts";
import type { BlockBackend } from "../../src/block/backend.ts";
import { BlockError, type Errno, errnoNumber } from "../../src/block/errors.ts";
import type { NestedOptions } from "../../src/block/options.ts";
import { copyFiles, Disk, type Entry, tear, useDisk } from "../crash/disk.ts";
import { checkContent, History } from "../crash/history.ts";
import { makeChain, openLayer, readAll, topProfile } from "../crash/image.ts";
import { checkLayer, inspect, openRepaired } from "../crash/inspect.ts";
import type { Variant } from "../crash/variants.ts";
import { makeOps, type Op, type OpsTarget, runOps } from "../random-ops.ts";
import { type Random, random } from "../support/random.ts";

/** What goes wrong, from which request on. */
interface Fault {
  readonly kind: (typeof KINDS)[number];
  readonly errno: Errno;
  readonly at: number;
  /** For blkdebug, which throws on what drivers tell of their work. */
  readonly rules?: readonly NestedOptions[];
}

const KINDS = ["once", "torn", "blkdebug", "burst", "vanish"] as const;
const ERRORS: readonly Errno[] = ["EIO", "ENOSPC", "EAGAIN", "EDQUOT", "ENOMEM"];

/** Requests that fail in a row. */
const BURST = 3;

/** So long nothing may take, on the slowest machine. */
const HANGS_AFTER_MS = 120_000;

export interface FaultSettings {
  readonly steps: number;
  /** How many requests, spread over the run, fail in turn; each is a run of its own. */
  readonly faults: number;
}

/** As many errors as there are rules, at events of QEMU's, for requests of one sort or of all. */
function makeRules(dice: Random): readonly NestedOptions[] {
  return Array.from({ length: dice.between(1, 3) }, () => ({
    event: dice.pick([...EVENTS]),
    once: "on",
    immediately: dice.pick(["on", "off"]),
    ...(dice.chance(0.5) && { iotype: dice.pick(["read", "write", "flush", "write-zeroes"]) }),
  }));
}

/** How many faults were tried. Throws at the first that is not borne. */
export async function nodeFaults(variant: Variant, seed: number, settings: FaultSettings): Promise<number> {
  let disk = new Disk();
  const ends: (() => void)[] = [];
  useDisk({ after: (end) => ends.push(end) }, () => disk);
  try {
    const start = await makeChain(variant, seed);
    const files = copyFiles(disk.files);
    // Bitmaps are given up when they can't be stored: their own tests fail each of their requests.
    const profile = { ...topProfile(variant), bitmaps: false };
    const ops = makeOps(seed, settings.steps, profile);
    const attempt = async (fault: Fault | undefined) => {
      disk = new Disk(copyFiles(files));
      return new Attempt(variant, disk, start, fault, random(seed + (fault?.at ?? 0))).run(ops);
    };
    const requests = await attempt(undefined);
    const dice = random(seed);
    for (let count = 0; count < settings.faults; count++) {
      const fault: Fault = {
        kind: KINDS[count % KINDS.length] ?? "once",
        errno: dice.pick(ERRORS),
        at: dice.between(1, requests),
        rules: makeRules(dice),
      };
      await attempt(fault).catch((error: unknown) => {
        const what = `request ${fault.at} of ${requests}, ${fault.kind}, ${fault.errno}`;
        throw new Error(`${what}: ${error instanceof Error ? error.message : String(error)}`, {
          cause: error,
        });
      });
    }
    return settings.faults;
  } finally {
    for (const end of ends) end();
  }
}

/** One run with one fault. */
class Attempt {
  readonly #variant: Variant;
  readonly #disk: Disk;
  readonly #target: OpsTarget;
  readonly #history: History;
  readonly #fault: Fault | undefined;
  readonly #dice: Random;
  #requests = 0;
  /** Errors that went out, and that a step has not answered for yet. */
  #thrown = 0;
  #armed = true;

  constructor(variant: Variant, disk: Disk, start: OpsTarget, fault: Fault | undefined, dice: Random) {
    this.#variant = variant;
    this.#disk = disk;
    this.#fault = fault;
    this.#dice = dice;
    this.#target = {
      ...start,
      model: start.model.slice(),
      snapshots: new Map(),
      bitmaps: new Map(),
      open: () => this.#open(),
      mayFail: (error) => this.#mayFail(error),
      adopt: (image) => this.#adopt(image),
    };
    this.#history = new History(disk, this.#target);
    this.#target.observe = this.#history.observe;
    disk.hook = (entry) => this.#request(entry);
  }

  /** With blkdebug most opened nodes have rules; where the open fails by them, another one works. */
  async #open(): Promise<BlockBackend> {
    const { rules = [], errno = "EIO", kind } = this.#fault ?? {};
    const top = this.#variant.layers.length - 1;
    const plain = () => openLayer(this.#variant, top, { readOnly: false });
    if (kind !== "blkdebug" || this.#dice.chance(0.2)) return plain();
    this.#thrown += rules.length;
    const injected = rules.map((rule) => ({ ...rule, errno: errnoNumber(errno) }));
    try {
      return await openLayer(this.#variant, top, { readOnly: false }, (image) => ({
        driver: "blkdebug",
        image,
        "inject-error": injected,
      }));
    } catch (error) {
      if (!this.#mayFail(error)) throw error;
      assert.equal(this.#disk.openNodes, 0, "nodes that are still open");
      return plain();
    }
  }

  /** How many requests there were. */
  async run(ops: readonly Op[]): Promise<number> {
    const profile = { ...topProfile(this.#variant), bitmaps: false };
    const error = await inTime(runOps(this.#target, ops, profile)).then(
      () => undefined,
      (reason: unknown) => reason ?? new Error("no reason"),
    );
    // Else it comes of the closing at the end, when no step is left to be tried again.
    if (error !== undefined && !this.#isOurs(error)) throw error;
    assert.equal(this.#disk.openNodes, 0, "nodes that are still open");
    this.#armed = false;
    if (error === undefined) await this.#checkAll();
    else
      await inTime(
        inspect(this.#variant, this.#disk, this.#history.at(this.#disk.log.length), this.#dice, undefined),
      );
    return this.#requests;
  }

  async #checkAll(): Promise<void> {
    await using image = await openRepaired(this.#variant, this.#variant.layers.length - 1);
    const found = await readAll(image);
    const { model } = this.#target;
    const wrong = found.findIndex((byte, at) => byte !== model[at]);
    assert.equal(wrong, -1, `byte ${wrong} is another one at the end`);
    await image.close();
    // A cluster that nobody else has may be said to be shared, which costs a copy: a step that failed has left that.
    const harmless = this.#fault && /^ERROR OFLAG_COPIED .* refcount=1$/;
    for (const index of this.#variant.layers.keys()) await checkLayer(this.#variant, index, harmless);
  }

  /** Counts a request, and fails it when its time has come. */
  #request(entry: Entry | undefined): void {
    if (!this.#armed) return;
    this.#requests++;
    const fault = this.#fault;
    if (!fault || fault.kind === "blkdebug" || this.#requests < fault.at) return;
    const last = fault.at + (fault.kind === "burst" ? BURST - 1 : 0);
    if (fault.kind !== "vanish" && this.#requests > last) return;
    // Some of its sectors have come through.
    if (fault.kind === "torn" && entry) tear(this.#disk.files, entry, this.#dice);
    this.#thrown++;
    throw new BlockError(this.#errno);
  }

  get #errno(): Errno {
    return this.#fault?.kind === "vanish" ? "ENXIO" : (this.#fault?.errno ?? "EIO");
  }

  #isOurs(error: unknown): boolean {
    for (let at = error; at instanceof Error; at = at.cause)
      if (at instanceof BlockError && at.errno === this.#errno) return true;
    return false;
  }

  /** An error of ours is borne, as often as one was thrown. */
  #mayFail(error: unknown): boolean {
    if (this.#fault?.kind === "vanish" || this.#thrown === 0) return false;
    if (!(error instanceof BlockError && error.errno === this.#errno)) return false;
    this.#thrown--;
    return true;
  }

  /** What was not flushed when the image could not be closed may be there or not. */
  async #adopt(image: BlockBackend): Promise<void> {
    const found = await readAll(image);
    checkContent(found, this.#history.at(this.#disk.log.length));
    this.#target.model = found;
  }
}

/** A promise that is left hanging is a failure too. */
async function inTime<T>(promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const hangs = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error("it hangs")), HANGS_AFTER_MS);
  });
  try {
    return await Promise.race([promise, hangs]);
  } finally {
    clearTimeout(timer);
  }
}
