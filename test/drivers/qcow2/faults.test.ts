/**
 * Requests to the image file fail, one after the other in each place: the error comes out by its name, nothing hangs,
 * no wrong data is read, the image goes on working, and it has leaks at worst.  More by BDRV_FAULT_STEPS.
 */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { describe, it } from "node:test";
import type { BlockBackend } from "../../../src/block/backend.ts";
import { BlockError } from "../../../src/block/errors.ts";
import { type Memory, memoryDriver, openBackend } from "../../support/graph.ts";
import { random } from "../../support/random.ts";
import { tempDir } from "../../support/temp.ts";
import { missing, mustRun, run } from "../../support/tools.ts";

/** Every how many requests one fails. */
const STRIDE = Number(process.env["BDRV_FAULT_STRIDE"] ?? 3);

const FAILING = ["pread", "pwrite", "flushToDisk", "truncate", "pdiscard"];

interface Step {
  readonly offset: number;
  readonly bytes: number;
  readonly run: (image: BlockBackend) => Promise<void>;
  /** What each byte of the range is once the step has worked. */
  readonly value: number;
}

/** A workload that makes and grows all tables, and frees clusters again. */
function makeSteps(size: number, clusterSize: number): Step[] {
  const dice = random(11);
  const steps: Step[] = [];
  for (let count = 0; count < 24; count++) {
    const start = dice.below(size / clusterSize - 8) * clusterSize;
    const whole = (1 + dice.below(8)) * clusterSize;
    const value = count + 1;
    const kind = dice.below(6);
    const [offset, bytes] = kind < 2 ? [start + 512 * dice.below(4), whole - 300] : [start, whole];
    const data = new Uint8Array(bytes).fill(value);
    if (kind < 3) steps.push({ offset, bytes, value, run: (image) => image.write(offset, data) });
    else if (kind === 3)
      steps.push({ offset, bytes, value, run: (image) => image.write(offset, data, { compressed: true }) });
    else if (kind === 4)
      steps.push({
        offset,
        bytes,
        value: 0,
        run: (image) => image.writeZeroes(offset, bytes, { mayUnmap: true }),
      });
    else steps.push({ offset, bytes, value: 0, run: (image) => image.discard(offset, bytes) });
    if (count % 5 === 4) steps.push({ offset: 0, bytes: 0, value: 0, run: (image) => image.flush() });
  }
  return steps;
}

/** Runs the steps with the request number `failAt` (and those after it, if `lasting`) failing; whether it got that far. */
async function runWithFault(
  memory: Memory,
  steps: readonly Step[],
  size: number,
  failAt: number,
  lasting: boolean,
): Promise<boolean> {
  let count = 0;
  let armed = true;
  memory.hook = (op) => {
    if (!armed || !FAILING.includes(op)) return;
    count++;
    if (count === failAt || (lasting && count > failAt && count < failAt + 20))
      throw new BlockError("ENOSPC");
  };
  const model = Array.from({ length: size }, (): number | undefined => 0);
  const image = await openBackend(
    { driver: "qcow2", file: { driver: "faulty" } },
    { flags: { unmap: true } },
  ).catch(expectNoSpace);
  if (!image) return true;
  for (const step of steps) {
    const result = await step.run(image).then(
      () => true,
      (error: unknown) => {
        // What qemu too refuses: a compressed write over data.
        if (error instanceof BlockError && error.errno === "EIO") return false;
        expectNoSpace(error);
        return false;
      },
    );
    // What failed may be there in part.
    model.fill(result ? step.value : undefined, step.offset, step.offset + step.bytes);
  }
  armed = false;
  const content = await image.read(0, size);
  for (const [offset, expected] of model.entries())
    if (expected !== undefined && content[offset] !== expected)
      assert.fail(`fault at ${failAt}: offset ${offset}: ${content[offset]} in place of ${expected}`);
  await image.write(0, new Uint8Array(4096).fill(99));
  await image.close();
  return count >= failAt;
}

function expectNoSpace(error: unknown): undefined {
  assert.ok(error instanceof BlockError && error.errno === "ENOSPC", String(error));
}

describe("qcow2 on a file that fails", { skip: missing("qemu-img") }, () => {
  const variants = [
    { options: "cluster_size=512", clusterSize: 512 },
    { options: "cluster_size=512,refcount_bits=64", clusterSize: 512 },
    { options: "cluster_size=16384,extended_l2=on", clusterSize: 16384 },
  ];
  for (const { options, clusterSize } of variants) {
    for (const lasting of [false, true]) {
      it(`goes on afterwards: ${options}, ${lasting ? "20 requests" : "one request"}`, async (test) => {
        const dir = tempDir(test);
        const filename = path.join(dir, "image.qcow2");
        const size = clusterSize * 128;
        mustRun("qemu-img", ["create", "-q", "-f", "qcow2", "-o", options, filename, String(size)]);
        const before = new Uint8Array(fs.readFileSync(filename));
        const steps = makeSteps(size, clusterSize);
        const memory = memoryDriver(test, "faulty", 0);
        for (let failAt = 1, reached = true; reached; failAt += STRIDE) {
          memory.data = before.slice();
          memory.calls.length = 0;
          reached = await runWithFault(memory, steps, size, failAt, lasting);
          fs.writeFileSync(filename, memory.data);
          const { stdout, stderr } = run("qemu-img", ["check", "-f", "qcow2", "--output=json", filename]);
          const result = JSON.parse(stdout) as { corruptions?: number; "check-errors"?: number };
          assert.equal(result["check-errors"], 0, `fault at ${failAt}: ${stderr}`);
          assert.equal(result.corruptions ?? 0, 0, `fault at ${failAt}: ${stderr}`);
        }
      });
    }
  }
});
