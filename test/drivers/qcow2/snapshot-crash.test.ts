/**
 * A power cut while internal snapshots are taken, applied and deleted: afterwards there are all of them or all but the
 * one in question, each with its content, no cluster has fewer refcounts than users, and none that a snapshot has is
 * written in place.
 */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { describe, it } from "node:test";
import type { BlockBackend } from "../../../src/block/backend.ts";
import {
  createSnapshot,
  deleteSnapshot,
  gotoSnapshot,
  listSnapshots,
  loadSnapshot,
} from "../../../src/block/snapshot.ts";
import { memoryDriver, openBackend } from "../../support/graph.ts";
import { type Change, recorder, replay } from "../../support/power-cut.ts";
import { type Random, random } from "../../support/random.ts";
import { tempDir } from "../../support/temp.ts";
import { missing, mustRun } from "../../support/tools.ts";
import { checkReferences } from "./references.ts";

/** What an image holds. */
interface Content {
  readonly active: Uint8Array;
  readonly snapshots: ReadonlyMap<string, Uint8Array>;
}

/** One operation on snapshots. The content before it is on the disk when it begins. */
interface Stage {
  readonly what: string;
  /** How much of the log there was when it began and when it ended. */
  readonly start: number;
  readonly end: number;
  readonly before: Content;
  readonly after: Content;
}

async function writeSome(
  image: BlockBackend,
  model: Uint8Array,
  dice: Random,
  clusterSize: number,
): Promise<void> {
  for (let count = 0; count < 5; count++) {
    const unit = dice.pick([512, clusterSize]);
    const offset = dice.below(model.length / unit) * unit;
    const bytes = Math.min((1 + dice.below(5)) * unit, model.length - offset);
    const value = dice.below(3) === 0 ? 0 : 1 + dice.below(255);
    if (value === 0) await image.writeZeroes(offset, bytes, { mayUnmap: true });
    else await image.write(offset, new Uint8Array(bytes).fill(value));
    model.fill(value, offset, offset + bytes);
  }
}

/** The operations, in an order in which each finds shared and unshared tables; some content changes between them. */
const STEPS = [
  "take a",
  "take b",
  "goto a",
  "take c",
  "delete a",
  "grow",
  "take d",
  "goto b",
  "delete c",
  "goto d",
];

async function work(
  image: BlockBackend,
  log: readonly Change[],
  dice: Random,
  clusterSize: number,
  canGrow: boolean,
): Promise<Stage[]> {
  const stages: Stage[] = [];
  let model = new Uint8Array(await image.getLength());
  let snapshots = new Map<string, Uint8Array>();
  for (const what of STEPS) {
    const [verb, name = ""] = what.split(" ");
    await writeSome(image, model, dice, clusterSize);
    if (verb === "grow") {
      if (!canGrow) continue;
      const grown = new Uint8Array(model.length + clusterSize * 100);
      await image.truncate(grown.length);
      grown.set(model);
      model = grown;
      continue;
    }
    await image.flush();
    const before = { active: model.slice(), snapshots };
    const start = log.length;
    snapshots = new Map(snapshots);
    await image.context.run(async (main) => {
      if (verb === "take") await createSnapshot(main, image.node, infoOf(name));
      else if (verb === "goto") await gotoSnapshot(main, image.node, name);
      else await deleteSnapshot(main, image.node, { name });
    });
    if (verb === "take") snapshots.set(name, model.slice());
    else if (verb === "delete") snapshots.delete(name);
    else model = (snapshots.get(name) as Uint8Array<ArrayBuffer>).slice();
    stages.push({ what, start, end: log.length, before, after: { active: model.slice(), snapshots } });
  }
  return stages;
}

function infoOf(name: string) {
  return { name, dateSec: 1, dateNsec: 2, vmClockNsec: 3n, vmStateSize: 0 };
}

/** All that the image holds, read by the driver itself. */
async function readAll(memory: { data: Uint8Array }, data: Uint8Array): Promise<Content> {
  memory.data = data;
  const open = () => openBackend({ driver: "qcow2", file: { driver: "cut" } }, { flags: { readOnly: true } });
  await using image = await open();
  const active = await image.read(0, await image.getLength());
  const snapshots = new Map<string, Uint8Array>();
  for (const { name } of await image.run((co, { node }) => listSnapshots(co, node))) {
    await using shown = await open();
    await shown.run((co, { node }) => loadSnapshot(co, node, { name }));
    snapshots.set(name, await shown.read(0, active.length));
  }
  return { active, snapshots };
}

/** The size of an image is that of its active content: all is compared as far as both go. */
function isSame(found: Content, wanted: Content): boolean {
  const isEqual = (one: Uint8Array, other: Uint8Array | undefined) => {
    if (!other) return false;
    const bytes = Math.min(one.length, other.length);
    return Buffer.compare(one.subarray(0, bytes), other.subarray(0, bytes)) === 0;
  };
  if (!isEqual(found.active, wanted.active) || found.snapshots.size !== wanted.snapshots.size) return false;
  return [...found.snapshots].every(([name, content]) => isEqual(content, wanted.snapshots.get(name)));
}

/** Going to a smaller snapshot gives what is behind its end up first: there all may be. */
function cutTo({ active, snapshots }: Content, bytes: number): Content {
  return { active: active.subarray(0, bytes), snapshots };
}

const VARIANTS = [
  { options: "cluster_size=512", clusterSize: 512 },
  { options: "cluster_size=512,refcount_bits=64", clusterSize: 512 },
  { options: "cluster_size=4096,compat=0.10", clusterSize: 4096 },
  { options: "cluster_size=16384,extended_l2=on", clusterSize: 16384 },
];

describe("a power cut among snapshots", { skip: missing("qemu-img") }, () => {
  for (const variant of VARIANTS) {
    const { options, clusterSize } = variant;
    it(`leaves each of them whole: ${options}`, async (test) => {
      const dice = random(3);
      const filename = path.join(tempDir(test), "image.qcow2");
      const size = String(clusterSize * 96);
      mustRun("qemu-img", ["create", "-q", "-f", "qcow2", "-o", options, filename, size]);
      const before = new Uint8Array(fs.readFileSync(filename));
      const { log } = recorder(test, before);
      const image = await openBackend(
        { driver: "qcow2", file: { driver: "recorder" }, "l2-cache-size": clusterSize * 3 },
        { flags: { unmap: true } },
      );
      const stages = await work(image, log, dice, clusterSize, !options.includes("0.10"));
      await image.close();
      const memory = memoryDriver(test, "cut", 0);
      await replay(before, log, dice, async (data, logged, what) => {
        checkReferences(data, what);
        const stage = stages.find(({ start, end }) => logged > start && logged <= end);
        if (!stage) return;
        const found = await readAll(memory, data);
        const one = cutTo(stage.before, stage.after.active.length);
        assert.ok(
          isSame(found, one) || isSame(found, stage.after),
          `${stage.what}: ${what}: neither what was before nor what was to be`,
        );
      });
    });
  }
});
