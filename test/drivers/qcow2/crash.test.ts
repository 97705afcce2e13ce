/**
 * A power cut after any write, and with any of the writes since the last flush missing, leaves at worst leaked
 * clusters: what the file got is recorded, put together again up to each point, and given to qemu-img check.
 * More by BDRV_CRASH_SEEDS (how many seeds) and BDRV_CRASH_STEPS.
 */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { describe, it } from "node:test";
import type { BlockBackend } from "../../../src/block/backend.ts";
import { BlockError } from "../../../src/block/errors.ts";
import { memoryDriver, openBackend } from "../../support/graph.ts";
import { type Change, recorder, replay } from "../../support/power-cut.ts";
import { type Random, random } from "../../support/random.ts";
import { tempDir } from "../../support/temp.ts";
import { missing, mustRun, run } from "../../support/tools.ts";

const SEEDS = Number(process.env["BDRV_CRASH_SEEDS"] ?? 1);
const STEPS = Number(process.env["BDRV_CRASH_STEPS"] ?? 40);

/** Steps of all kinds, a few at a time. What qemu too refuses (a compressed write over data) is no matter. */
async function work(image: BlockBackend, dice: Random, clusterSize: number, size: number): Promise<void> {
  let length = size;
  for (let step = 0; step < STEPS; step++) {
    const range = (unit: number): [number, number] => {
      const offset = dice.below(Math.floor(length / unit)) * unit;
      return [offset, Math.min((1 + dice.below(6)) * unit, length - offset)];
    };
    const batch: Promise<void>[] = [];
    for (let each = 0; each < 1 + dice.below(3); each++) {
      const [offset, bytes] = range(512);
      const [start, whole] = range(clusterSize);
      const data = new Uint8Array(bytes).fill(1 + dice.below(255));
      const kind = dice.below(20);
      if (kind < 8) batch.push(image.write(offset, data));
      else if (kind < 11)
        batch.push(image.write(start, new Uint8Array(whole).fill(step + 1), { compressed: true }));
      else if (kind < 14) batch.push(image.discard(start, whole));
      else if (kind < 17) batch.push(image.writeZeroes(offset, bytes, { mayUnmap: kind === 16 }));
      else if (kind < 18) batch.push(image.flush());
      else batch.push(image.read(offset, bytes).then(() => {}));
    }
    for (const result of await Promise.allSettled(batch))
      if (
        result.status === "rejected" &&
        !(result.reason instanceof BlockError && result.reason.errno === "EIO")
      )
        throw result.reason;
    if (dice.below(12) === 0) {
      length = Math.max((1 + dice.below(12)) * clusterSize * 8, clusterSize * 4);
      await image.truncate(length);
    }
  }
}

/** A flush that came back: what the guest had written by then, and how much of the log there was. */
interface Milestone {
  readonly logged: number;
  readonly model: Uint8Array;
}

/** A request, with how much of the log there was when it began. */
interface Touch {
  readonly logged: number;
  readonly start: number;
  readonly end: number;
}

interface History {
  readonly milestones: Milestone[];
  readonly touches: Touch[];
}

/** One step after the other, so that it is known what must be there: which requests came after which flush. */
async function workInOrder(
  image: BlockBackend,
  log: readonly Change[],
  dice: Random,
  clusterSize: number,
  size: number,
): Promise<History> {
  const model = new Uint8Array(size);
  const history: History = { milestones: [{ logged: 0, model: model.slice() }], touches: [] };
  for (let step = 0; step < STEPS * 2; step++) {
    const kind = dice.below(20);
    if (kind < 4) {
      await image.flush();
      history.milestones.push({ logged: log.length, model: model.slice() });
      continue;
    }
    const unit = kind < 10 ? 512 : clusterSize;
    const start = dice.below(size / unit) * unit;
    const end = Math.min(start + (1 + dice.below(5)) * unit, size);
    const value = kind < 16 ? 1 + dice.below(255) : 0;
    const data = new Uint8Array(end - start).fill(value);
    history.touches.push({ logged: log.length, start, end });
    if (kind < 13) await image.write(start, data);
    else if (kind < 16) {
      // Over data it is refused; then it is written plainly.
      await image.write(start, data, { compressed: true }).catch(() => image.write(start, data));
    } else if (kind < 18) await image.discard(start, end - start);
    else await image.writeZeroes(start, end - start, { mayUnmap: true });
    model.fill(value, start, end);
  }
  return history;
}

/** What was flushed last before the cut must be there, but for what was asked to be changed since. */
async function checkContent(
  { milestones, touches }: History,
  data: Uint8Array,
  logged: number,
  what: string,
): Promise<void> {
  const last = milestones.findLast((milestone) => milestone.logged <= logged) as Milestone;
  const ends: (() => void | Promise<void>)[] = [];
  const memory = memoryDriver({ after: (fn) => ends.push(fn) }, "replayed", 0);
  memory.data = data;
  const image = await openBackend(
    { driver: "qcow2", file: { driver: "replayed" } },
    { flags: { readOnly: true } },
  );
  const content = await image.read(0, last.model.length);
  await image.close();
  for (const end of ends) await end();
  const free = touches.filter((touch) => touch.logged >= last.logged && touch.logged <= logged);
  for (const { start, end } of free) content.set(last.model.subarray(start, end), start);
  if (Buffer.compare(content, last.model) === 0) return;
  const at = content.findIndex((byte, index) => byte !== last.model[index]);
  assert.fail(`${what}: byte ${at} is ${content[at]} in place of ${last.model[at]}, which was flushed`);
}

function checkNoCorruption(filename: string, data: Uint8Array, what: string): void {
  fs.writeFileSync(filename, data);
  const { stdout, stderr } = run("qemu-img", ["check", "-f", "qcow2", "--output=json", filename]);
  const result = JSON.parse(stdout || "{}") as { corruptions?: number; "check-errors"?: number };
  assert.equal(result["check-errors"], 0, `${what}: ${stderr}`);
  assert.equal(result.corruptions ?? 0, 0, `${what}: ${stderr}`);
}

const VARIANTS: readonly { readonly name: string; readonly options: string; readonly clusterSize: number }[] =
  [
    { name: "clusters of 512", options: "cluster_size=512", clusterSize: 512 },
    {
      name: "clusters of 512, refcounts of 64 bits",
      options: "cluster_size=512,refcount_bits=64",
      clusterSize: 512,
    },
    { name: "clusters of 4096, v2", options: "cluster_size=4096,compat=0.10", clusterSize: 4096 },
    { name: "extended L2", options: "cluster_size=16384,extended_l2=on", clusterSize: 16384 },
  ];

/** A new image on the recorder, worked on by `use` and closed; gives its content before and what was done to it. */
async function record<T>(
  filename: string,
  { options, clusterSize }: (typeof VARIANTS)[number],
  use: (image: BlockBackend, log: readonly Change[], size: number) => Promise<T>,
): Promise<{ before: Uint8Array; log: readonly Change[]; after: Uint8Array; result: T }> {
  const size = clusterSize * 96;
  mustRun("qemu-img", ["create", "-q", "-f", "qcow2", "-o", options, filename, String(size)]);
  const before = new Uint8Array(fs.readFileSync(filename));
  const ends: (() => void | Promise<void>)[] = [];
  const { log, content } = recorder({ after: (fn) => ends.push(fn) }, before);
  const image = await openBackend(
    { driver: "qcow2", file: { driver: "recorder" }, "l2-cache-size": clusterSize * 3 },
    { flags: { unmap: true } },
  );
  const result = await use(image, log, size);
  await image.close();
  for (const end of ends) await end();
  return { before, log, after: content(), result };
}

describe("a power cut", { skip: missing("qemu-img") }, () => {
  for (const variant of VARIANTS) {
    const { name, clusterSize } = variant;
    it(`leaves at worst leaks: ${name}`, async (test) => {
      const filename = path.join(tempDir(test), "image.qcow2");
      for (let seed = 1; seed <= SEEDS; seed++) {
        const dice = random(seed);
        const { before, log, after } = await record(filename, variant, (image, _, size) =>
          work(image, dice, clusterSize, size),
        );
        await replay(before, log, dice, (data, _, what) =>
          checkNoCorruption(filename, data, `${name}, seed ${seed}, ${what}`),
        );
        fs.writeFileSync(filename, after);
        mustRun("qemu-img", ["check", "-f", "qcow2", filename]);
      }
    });

    it(`keeps what was flushed: ${name}`, async (test) => {
      const filename = path.join(tempDir(test), "image.qcow2");
      for (let seed = 1; seed <= SEEDS; seed++) {
        const dice = random(seed);
        const { before, log, result } = await record(filename, variant, (image, changes, size) =>
          workInOrder(image, changes, dice, clusterSize, size),
        );
        await replay(before, log, dice, (data, logged, what) =>
          checkContent(result, data, logged, `${name}, seed ${seed}, ${what}`),
        );
      }
    });
  }
});
