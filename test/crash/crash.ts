/**
 * One crash test from a seed: random operations on an image whose disk is recorded, and then the image as a power cut at
 * each point would leave it. It must open, have no corruption beyond leaks, hold what was flushed, and go on working.
 */

import { makeOps, runOps } from "../random-ops.ts";
import { type Random, random } from "../support/random.ts";
import { applyEntry, copyFiles, Disk, type Entry, type Files, tear, useDisk } from "./disk.ts";
import { History } from "./history.ts";
import { makeChain, topProfile } from "./image.ts";
import { inspect } from "./inspect.ts";
import type { Variant } from "./variants.ts";

export interface CrashSettings {
  readonly steps: number;
  /** How often each cut is tried with some of what was not flushed missing. */
  readonly tears: number;
  /** Where files for qemu-img are put; undefined: it is not asked. */
  readonly directory?: string | undefined;
  /** Of how many cuts qemu-img is asked about one. */
  readonly qemuEvery: number;
}

/** How many images were looked at. Throws at the first that is not as it must be. */
export async function crashTest(variant: Variant, seed: number, settings: CrashSettings): Promise<number> {
  const recorded = new Disk();
  let disk = recorded;
  const ends: (() => void)[] = [];
  useDisk({ after: (end) => ends.push(end) }, () => disk);
  try {
    const target = await makeChain(variant, seed);
    const before = copyFiles(recorded.files);
    const start = recorded.log.length;
    const history = new History(recorded, target);
    target.observe = history.observe;
    const profile = topProfile(variant);
    await runOps(target, makeOps(seed, settings.steps, profile), profile);
    const dice = random(seed);
    let images = 0;
    for (const cut of cuts(before, recorded.log, start, settings.tears, dice)) {
      disk = new Disk(cut.files);
      const asksQemu = variant.qemuChecks && dice.below(settings.qemuEvery) === 0;
      const cause = recorded.log[cut.logged - 1];
      await inspect(
        variant,
        disk,
        history.at(cut.logged),
        dice,
        asksQemu ? settings.directory : undefined,
      ).catch((error: unknown) => fail(error, `${cut.what} ${cut.logged - start}, ${describeEntry(cause)}`));
      images++;
    }
    return images;
  } finally {
    for (const end of ends) end();
  }
}

function fail(error: unknown, what: string): never {
  throw new Error(`${what}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
}

function describeEntry(entry: Entry | undefined): string {
  if (!entry) return "";
  const offset = "offset" in entry ? ` at ${entry.offset}` : "";
  const bytes = entry.kind === "write" ? entry.data.length : "bytes" in entry ? entry.bytes : 0;
  return `${entry.kind} of ${entry.file}${offset}, ${bytes} bytes`;
}

interface Cut {
  readonly files: Files;
  /** Entries of the log that have been issued. */
  readonly logged: number;
  readonly what: string;
}

/** The disk after each entry of the log, and with sectors of what was not flushed by then missing. */
function* cuts(
  before: Files,
  log: readonly Entry[],
  start: number,
  tears: number,
  dice: Random,
): Generator<Cut> {
  const stable = copyFiles(before);
  const all = copyFiles(before);
  let pending: Entry[] = [];
  for (const [index, entry] of log.entries()) {
    if (index < start) continue;
    applyEntry(all, entry);
    pending.push(entry);
    if (entry.kind === "flush") {
      for (const each of pending) if (each.file === entry.file) applyEntry(stable, each);
      pending = pending.filter(({ file }) => file !== entry.file);
    }
    yield { files: copyFiles(all), logged: index + 1, what: "cut after change" };
    for (let count = 0; count < tears && pending.length > 0; count++) {
      const files = copyFiles(stable);
      for (const each of pending) tear(files, each, dice);
      yield { files, logged: index + 1, what: "cut with sectors missing at change" };
    }
  }
}
