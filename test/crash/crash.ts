/**
 * One crash test from a seed: random operations on an image whose disk is recorded, and then the image as a power cut at
 * each point would leave it. It must open, have no corruption beyond leaks, hold what was flushed, and go on working.
 */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import type { BlockBackend } from "../../src/block/backend.ts";
import { BlockError } from "../../src/block/errors.ts";
import { openGate } from "../../src/block/open.ts";
import { parseKeyValues } from "../../src/block/options.ts";
import { listSnapshots, loadSnapshot } from "../../src/block/snapshot.ts";
import { checkImage } from "../../src/jobs/check.ts";
import { createImage } from "../../src/jobs/create.ts";
import { makeOps, type Op, type OpsTarget, runOps } from "../random-ops.ts";
import { openBackend } from "../support/graph.ts";
import { type Random, random } from "../support/random.ts";
import { run } from "../support/tools.ts";
import { applyEntry, copyFiles, Disk, type Entry, type Files, tear, useDisk } from "./disk.ts";
import { checkContent, checkSnapshot, History, type Outlook } from "./history.ts";
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
    const { history, before, start } = await record(variant, seed, settings.steps, recorded);
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

const environment = {
  gate: openGate,
  warn: () => {},
  secret: () => ({ data: Buffer.from("passphrase") }),
};

const layerName = (index: number) => `layer${index}`;

interface OpenFlagsWanted {
  readonly readOnly: boolean;
  readonly check?: boolean;
}

function openLayer(variant: Variant, index: number, flags: OpenFlagsWanted): Promise<BlockBackend> {
  const { format } = variant.layers[index] as (typeof variant.layers)[number];
  const isTop = index === variant.layers.length - 1;
  return openBackend(
    {
      driver: format,
      ...(isTop && variant.openOptions),
      file: { driver: "crash", filename: layerName(index) },
    },
    { flags: { unmap: true, ...flags }, environment },
  );
}

interface Recording {
  readonly history: History;
  /** The disk when the work began, and how long its log was then. */
  readonly before: Files;
  readonly start: number;
}

/** Makes the chain, and works on its top. */
async function record(variant: Variant, seed: number, steps: number, disk: Disk): Promise<Recording> {
  let model = new Uint8Array();
  for (const [index, { format, options, profile, startsUnknown }] of variant.layers.entries()) {
    const below = variant.layers[index - 1];
    await createImage({
      filename: `crash:${layerName(index)}`,
      format,
      size: profile.size,
      backingFile: below && `crash:${layerName(index - 1)}`,
      backingFormat: below?.format,
      options: parseKeyValues(options ?? ""),
      environment,
    });
    const shown = new Uint8Array(profile.size);
    shown.set(model.subarray(0, profile.size));
    if (startsUnknown) {
      await using image = await openLayer(variant, index, { readOnly: true });
      shown.set(await readAll(image));
    }
    const target: OpsTarget = {
      model: shown,
      below: below && model,
      snapshots: new Map(),
      bitmaps: new Map(),
      open: () => openLayer(variant, index, { readOnly: false }),
      openReadOnly: () => openLayer(variant, index, { readOnly: true }),
    };
    const isTop = index === variant.layers.length - 1;
    if (isTop) {
      const before = copyFiles(disk.files);
      const start = disk.log.length;
      const history = new History(disk, target);
      await runOps({ ...target, observe: history.observe }, makeOps(seed, steps, profile), profile);
      return { history, before, start };
    }
    const quiet = { ...profile, resize: false, snapshots: false, bitmaps: false };
    await runOps(target, makeOps(seed, 12, quiet), quiet);
    model = target.model as Uint8Array<ArrayBuffer>;
  }
  throw new Error(`'${variant.name}' has no layers`);
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

async function inspect(
  variant: Variant,
  disk: Disk,
  outlook: Outlook,
  dice: Random,
  directory: string | undefined,
): Promise<void> {
  const top = variant.layers.length - 1;
  let image = await openLayer(variant, top, { readOnly: true }).catch((error: unknown) => {
    if (!(error instanceof BlockError && variant.asksForRepair?.test(error.message))) throw error;
    return undefined;
  });
  if (!image) {
    await repair(variant, top);
    image = await openLayer(variant, top, { readOnly: true });
  }
  const content = await readAll(image);
  try {
    checkContent(content, outlook);
    await checkSnapshots(variant, image, outlook);
    await checkBitmaps(image, outlook);
  } finally {
    await image.close();
  }
  const hasLooseFlags = outlook.open.some(({ op }) => LOOSE_FLAGS.has(op.kind));
  if (directory !== undefined) askQemu(variant, disk, hasLooseFlags, directory);
  for (const index of variant.layers.keys()) await checkLayer(variant, index, hasLooseFlags);
  if (hasLooseFlags || dice.chance(0.2)) await goOn(variant, content, hasLooseFlags, dice);
  assert.equal(disk.openNodes, 0, "nodes that are still open");
}

/**
 * While such a step runs, refcounts have risen and the entries do not say so yet, or the other way round: `check` calls
 * that an error, here as in QEMU, though nothing comes of it. That nothing does is what `goOn` is to show then.
 */
const LOOSE_FLAGS: ReadonlySet<string> = new Set(["snapshot", "goto", "delete"] satisfies Op["kind"][]);
const LOOSE_FLAG = /^ERROR OFLAG_COPIED /;

async function readAll(image: BlockBackend): Promise<Uint8Array> {
  return image.read(0, await image.getLength());
}

async function checkSnapshots(variant: Variant, image: BlockBackend, outlook: Outlook): Promise<void> {
  if (!image.node.ops.listSnapshots) return;
  const found = await image.run((co, { node }) => listSnapshots(co, node));
  for (const name of outlook.surely)
    assert.ok(
      found.some((each) => each.name === name),
      `the snapshot '${name}' is gone`,
    );
  for (const { name } of found) {
    await using shown = await openLayer(variant, variant.layers.length - 1, { readOnly: true });
    await shown.run((co, { node }) => loadSnapshot(co, node, { name }));
    checkSnapshot(name, await readAll(shown), outlook);
  }
}

/** A bitmap that is not marked as in use knows all that has changed. */
async function checkBitmaps(image: BlockBackend, { bitmaps }: Outlook): Promise<void> {
  for (const { name, inconsistent } of image.bitmaps.list()) {
    const changed = bitmaps.changed.get(name);
    if (inconsistent || !changed) continue;
    let clean = 0;
    const look = (end: number) =>
      assert.equal(changed.subarray(clean, end).indexOf(1), -1, `'${name}' does not know what has changed`);
    for await (const { offset, bytes } of image.bitmaps.extents(name)) {
      look(offset);
      clean = offset + bytes;
    }
    look(changed.length);
  }
}

const NO_REPAIR = { fixLeaks: false, fixErrors: false };

/** Where the image says that it was not closed, its repair comes first, as when it is next written. */
async function checkLayer(variant: Variant, index: number, hasLooseFlags: boolean): Promise<void> {
  let image = await openLayer(variant, index, { readOnly: true });
  try {
    if (!image.node.ops.check) return;
    const info = await image.run(async (co) => image.node.ops.getInfo?.(co));
    if (info?.isDirty) {
      await image.close();
      await repair(variant, index);
      image = await openLayer(variant, index, { readOnly: true });
    }
    const lines: string[] = [];
    const { corruptions, checkErrors } = await checkImage(image, {
      ...NO_REPAIR,
      report: (line) => lines.push(line),
    });
    const harmless = hasLooseFlags ? lines.filter((line) => LOOSE_FLAG.test(line)).length : 0;
    assert.deepEqual([corruptions - harmless, checkErrors], [0, 0], lines.join("\n"));
  } finally {
    if (image.isOpen) await image.close();
  }
}

async function repair(variant: Variant, index: number): Promise<void> {
  await using image = await openLayer(variant, index, { readOnly: false, check: true });
  if (image.node.ops.check) await checkImage(image, { fixLeaks: true, fixErrors: true, report: () => {} });
}

async function readSnapshots(variant: Variant): Promise<ReadonlyMap<string, Uint8Array>> {
  const top = variant.layers.length - 1;
  const all = new Map<string, Uint8Array>();
  await using image = await openLayer(variant, top, { readOnly: true });
  if (!image.node.ops.listSnapshots) return all;
  for (const { name } of await image.run((co, { node }) => listSnapshots(co, node))) {
    await using shown = await openLayer(variant, top, { readOnly: true });
    await shown.run((co, { node }) => loadSnapshot(co, node, { name }));
    all.set(name, await readAll(shown));
  }
  return all;
}

/** The image is of use after the cut: what is written to it is there, and nothing else has changed. */
async function goOn(
  variant: Variant,
  content: Uint8Array,
  hasLooseFlags: boolean,
  dice: Random,
): Promise<void> {
  const top = variant.layers.length - 1;
  const { clusterSize } = (variant.layers[top] as (typeof variant.layers)[number]).profile;
  const snapshots = await readSnapshots(variant);
  const model = content.slice();
  {
    await using image = await openLayer(variant, top, { readOnly: false });
    for (let count = 0; count < 6 && model.length > 0; count++) {
      const offset = dice.below(Math.ceil(model.length / clusterSize)) * clusterSize;
      const bytes = Math.min(clusterSize * dice.between(1, 3), model.length - offset);
      const data = new Uint8Array(bytes).fill(dice.between(1, 255));
      await image.write(offset, data);
      model.set(data, offset);
    }
  }
  await using image = await openLayer(variant, top, { readOnly: true });
  expectSame(await readAll(image), model, "more was written");
  for (const [name, found] of await readSnapshots(variant))
    expectSame(found, snapshots.get(name), `more was written, in snapshot '${name}'`);
  await checkLayer(variant, top, hasLooseFlags);
}

function expectSame(found: Uint8Array, wanted: Uint8Array | undefined, after: string): void {
  assert.ok(wanted);
  const wrong = Buffer.compare(found, wanted) === 0 ? -1 : found.findIndex((byte, at) => byte !== wanted[at]);
  assert.equal(wrong, -1, `byte ${wrong} is another one after ${after}`);
}

function askQemu(variant: Variant, disk: Disk, hasLooseFlags: boolean, directory: string): void {
  const { format } = variant.layers[0] as (typeof variant.layers)[number];
  const filename = path.join(directory, "cut");
  fs.writeFileSync(filename, disk.files.get(layerName(0)) ?? new Uint8Array());
  const { stdout, stderr } = run("qemu-img", ["check", "-f", format, "--output=json", filename]);
  const result = JSON.parse(stdout || "{}") as { corruptions?: number; "check-errors"?: number };
  const harmless = hasLooseFlags ? stderr.split("\n").filter((line) => LOOSE_FLAG.test(line)).length : 0;
  assert.deepEqual(
    [(result.corruptions ?? 0) - harmless, result["check-errors"]],
    [0, 0],
    `qemu-img check: ${stderr}`,
  );
}
