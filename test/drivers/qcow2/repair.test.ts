/**
 * A repair that is broken off loses nothing: cut after any of its writes, or with any request failing, the guest
 * reads what it read before, and a second repair ends the work.  More by BDRV_FAULT_STRIDE=1.
 */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, before, describe, it } from "node:test";
import type { BlockBackend } from "../../../src/block/backend.ts";
import type { CheckResult } from "../../../src/block/driver.ts";
import { BlockError } from "../../../src/block/errors.ts";
import { checkImage } from "../../../src/jobs/check.ts";
import { damage, makeBases } from "../../cli/damage.ts";
import { memoryDriver, openBackend } from "../../support/graph.ts";
import { recorder, replay } from "../../support/power-cut.ts";
import { random } from "../../support/random.ts";
import { type Cleanup, tempDir } from "../../support/temp.ts";
import { missing, run } from "../../support/tools.ts";

const skip = missing("qemu-img") || missing("qemu-io");

/** Every how many requests one fails. */
const STRIDE = Number(process.env["BDRV_FAULT_STRIDE"] ?? 2);

const CASES = [
  "plain rc[5]=3 rc[20]=1 rc[6]=2",
  "plain l2[0]=6K l2[1]=6K rc[6]=2",
  "plain l2[0]=5K l1[0]=L2",
  "plain l2[16]=5K+513 l2[17]=6K+1025",
  "plain rt[0]=0",
  "plain rt[0]=0 l2[0]=6K l2[1]=6K",
  "plain rt[0]=RB+512",
  "plain rt[1]=END+5K",
  "plain rt[1]=RB rc[5]=4",
  "plain @48:8=L2",
  "plain rt[1]=RT rc[5]=4",
  "plain @79:1=3 rc[5]=2",
  "snap @60:4=3 rc[5]=1 rc[6]=9",
  "snap rt[0]=0",
  "ext rt[0]=0 l2[0]=6K",
  "tiny rt[1]=0",
  "tiny rt[3]=END+100K rc[5]=2",
  "narrow rt[0]=0",
  "old rc[5]=3 rt[1]=END",
] as const;

const root = tempDir({ after });
const bases = path.join(root, "bases");

before(() => {
  if (skip) return;
  fs.mkdirSync(bases);
  makeBases(bases);
});

function damaged(line: string): Uint8Array {
  return new Uint8Array(fs.readFileSync(path.join(root, damage(bases, root, line))));
}

function open(driver: string, check: boolean): Promise<BlockBackend> {
  return openBackend(
    { driver: "qcow2", file: { driver }, backing: null },
    { flags: { readOnly: !check, check, unmap: true }, environment: { message: () => {}, error: () => {} } },
  );
}

async function repair(driver: string): Promise<CheckResult> {
  const image = await open(driver, true);
  try {
    return await checkImage(image, { fixLeaks: true, fixErrors: true, report: () => {} });
  } finally {
    await image.close();
  }
}

const UNIT = 4096;

/** What the guest reads, unit by unit; undefined where it can't. */
async function contentOf(test: Cleanup, data: Uint8Array): Promise<(string | undefined)[]> {
  const memory = memoryDriver(test, `content${serial++}`, 0);
  memory.data = data.slice();
  const image = await open(`content${serial - 1}`, false);
  const units: (string | undefined)[] = [];
  const length = Math.min(await image.getLength(), 2 ** 23);
  for (let at = 0; at < length; at += UNIT) {
    const { bytes, zero } = await image
      .blockStatus(at, length - at)
      .catch(() => ({ bytes: UNIT, zero: false }));
    if (zero && bytes >= UNIT) {
      const whole = Math.floor(bytes / UNIT);
      for (let count = 0; count < whole; count++) units.push("");
      at += (whole - 1) * UNIT;
      continue;
    }
    const unit = await image.read(at, Math.min(UNIT, length - at)).catch(() => undefined);
    units.push(unit && (unit.some((byte) => byte !== 0) ? Buffer.from(unit).toString("latin1") : ""));
  }
  await image.close();
  return units;
}

let serial = 0;

/** What could be read before is there unchanged. */
function assertKept(
  now: readonly (string | undefined)[],
  once: readonly (string | undefined)[],
  what: string,
) {
  assert.equal(now.length, once.length, what);
  for (const [index, unit] of once.entries())
    if (unit !== undefined && now[index] !== unit) assert.fail(`${what}: other data at ${index * UNIT}`);
}

function assertRepaired(data: Uint8Array, what: string): void {
  const file = path.join(root, "repaired.qcow2");
  fs.writeFileSync(file, data);
  const { code, stderr } = run("qemu-img", ["check", "-q", "-f", "qcow2", file]);
  assert.equal(code, 0, `${what}: ${stderr.slice(0, 500)}`);
}

/** Repairs to the end: a first repair may make the image one that can be repaired further. */
async function repairFully(test: Cleanup, data: Uint8Array): Promise<Uint8Array> {
  const name = `again${serial++}`;
  const memory = memoryDriver(test, name, 0);
  memory.data = data.slice();
  await repair(name);
  await repair(name);
  return memory.data;
}

describe("a repair that is broken off", { skip }, () => {
  for (const line of CASES)
    it(`by a power cut: ${line}`, async (test) => {
      const original = damaged(line);
      const once = await contentOf(test, original);
      const { log } = recorder(test, original);
      await repair("recorder");
      const cuts: Uint8Array[] = [];
      await replay(original, log, random(5), async (data, _, what) => {
        assertKept(await contentOf(test, data), once, what);
        cuts.push(data);
      });
      assert.ok(cuts.length > 0, "nothing was written");
      for (const index of [0, Math.floor(cuts.length / 2), cuts.length - 1]) {
        const whole = await repairFully(test, cuts[index] as Uint8Array);
        assertKept(await contentOf(test, whole), once, `repaired after cut ${index}`);
        assertRepaired(whole, `repaired after cut ${index}`);
      }
    });

  for (const line of CASES)
    it(`by a request that fails: ${line}`, async (test) => {
      const original = damaged(line);
      const once = await contentOf(test, original);
      const memory = memoryDriver(test, "faulty", 0);
      for (let failAt = 1, reached = true; reached; failAt += STRIDE) {
        memory.data = original.slice();
        let count = 0;
        memory.hook = (op) => {
          if (op === "getLength") return;
          count++;
          if (count === failAt) throw new BlockError("ENOSPC");
        };
        const outcome = await repair("faulty").catch((error: unknown) => {
          assert.ok(error instanceof BlockError, String(error));
        });
        reached = count >= failAt;
        memory.hook = () => {};
        const what = `failure of request ${failAt}${outcome ? " that was no failure of the check" : ""}`;
        assertKept(await contentOf(test, memory.data), once, what);
        if (failAt % (4 * STRIDE) !== 1) continue;
        const whole = await repairFully(test, memory.data);
        assertKept(await contentOf(test, whole), once, `repaired after ${what}`);
        assertRepaired(whole, `repaired after ${what}`);
      }
    });
});
