/**
 * A request to the image file fails, or several do, while a snapshot is taken, applied or deleted: the error comes out,
 * the image holds what it held or what it was to hold, and it has leaks at worst.  More by BDRV_FAULT_STRIDE=1.
 */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { describe, it } from "node:test";
import type { BlockBackend } from "../../../src/block/backend.ts";
import { BlockError } from "../../../src/block/errors.ts";
import {
  createSnapshot,
  deleteSnapshot,
  gotoSnapshot,
  listSnapshots,
  loadSnapshot,
} from "../../../src/block/snapshot.ts";
import { type Memory, memoryDriver, openBackend } from "../../support/graph.ts";
import { tempDir } from "../../support/temp.ts";
import { missing, run } from "../../support/tools.ts";
import { makeImage, qemuIo } from "./patch.ts";
import { checkReferences } from "./references.ts";

/** Every how many requests one fails. */
const STRIDE = Number(process.env["BDRV_FAULT_STRIDE"] ?? 2);

const FAILING = ["pread", "pwrite", "flushToDisk", "truncate", "pdiscard"];

interface Operation {
  readonly what: string;
  readonly run: (image: BlockBackend) => Promise<void>;
  /** The size changes with the content: what is behind the smaller one may be given up before. */
  readonly resizes?: boolean;
}

const INFO = { dateSec: 1, dateNsec: 2, vmClockNsec: 3n };

const take = (name: string, vmStateSize = 0): Operation => ({
  what: `taking ${name}, with ${vmStateSize} bytes of VM state`,
  run: (image) =>
    image.context.run((main) => createSnapshot(main, image.node, { ...INFO, name, vmStateSize })),
});
const goTo = (name: string, resizes: boolean): Operation => ({
  what: `going to ${name}`,
  run: (image) => image.context.run((main) => gotoSnapshot(main, image.node, name)),
  resizes,
});
const remove = (name: string): Operation => ({
  what: `deleting ${name}`,
  run: (image) => image.context.run((main) => deleteSnapshot(main, image.node, { name })),
});

const OPERATIONS = [
  take("new"),
  take("new", 2048),
  goTo("one", false),
  goTo("large", true),
  goTo("small", true),
  remove("one"),
  remove("large"),
];

/** Snapshots of three sizes that share a part of their tables; the active content has changed since. */
function makeSample(filename: string, options: string, clusterSize: number): void {
  const snapshot = (name: string) => run("qemu-img", ["snapshot", "-c", name, filename]);
  const resize = (clusters: number) =>
    run("qemu-img", ["resize", "-q", "--shrink", filename, String(clusterSize * clusters)]);
  const at = (cluster: number, clusters: number) => `${cluster * clusterSize} ${clusters * clusterSize}`;
  makeImage(filename, String(clusterSize * 96), options, [`write -P 1 ${at(0, 90)}`]);
  snapshot("one");
  qemuIo(filename, `write -P 2 ${at(10, 5)}`, "write -b -P 9 0 2048");
  resize(200);
  qemuIo(filename, `write -P 3 ${at(150, 10)}`);
  snapshot("large");
  resize(50);
  qemuIo(filename, `write -P 4 ${at(20, 20)}`, `discard ${at(5, 2)}`);
  snapshot("small");
  resize(96);
  qemuIo(filename, `write -P 5 ${at(30, 10)}`, `write -z ${at(0, 2)}`, `write -P 6 ${at(70, 8)}`);
}

/** The active content, and each snapshot's as far as the active one goes. */
type Content = ReadonlyMap<string, Uint8Array>;

async function readAll(): Promise<Content> {
  const open = () =>
    openBackend({ driver: "qcow2", file: { driver: "faulty" } }, { flags: { readOnly: true } });
  await using image = await open();
  const bytes = await image.getLength();
  const all = new Map([["", await image.read(0, bytes)]]);
  for (const { name } of await image.run((co, { node }) => listSnapshots(co, node))) {
    await using shown = await open();
    await shown.run((co, { node }) => loadSnapshot(co, node, { name }));
    all.set(name, await shown.read(0, bytes));
  }
  return all;
}

function isSame(found: Content, wanted: Content, bytes = Number.POSITIVE_INFINITY): boolean {
  if (found.size !== wanted.size) return false;
  return [...found].every(([name, content]) => {
    const other = wanted.get(name);
    if (!other) return false;
    const common = Math.min(content.length, other.length, bytes);
    if (bytes === Number.POSITIVE_INFINITY && content.length !== other.length) return false;
    return Buffer.compare(content.subarray(0, common), other.subarray(0, common)) === 0;
  });
}

/** With the request number `failAt`, and those after it if `lasting`, failing: the error, and whether it came so far. */
async function runWithFault(memory: Memory, operation: Operation, failAt: number, lasting: number) {
  let count = 0;
  let armed = true;
  memory.hook = (op) => {
    if (!armed || !FAILING.includes(op)) return;
    count++;
    if (count >= failAt && count < failAt + lasting) throw new BlockError("ENOSPC");
  };
  const image = await openBackend(
    { driver: "qcow2", file: { driver: "faulty" } },
    { flags: { unmap: true } },
  ).catch(expectNoSpace);
  let error: unknown;
  if (image) {
    error = await operation.run(image).then(
      () => undefined,
      (reason: unknown) => reason ?? new Error("no reason"),
    );
    if (error) expectNoSpace(error);
    armed = false;
    await image.close();
  }
  armed = false;
  return { failed: image === undefined || error !== undefined, reached: count >= failAt };
}

function expectNoSpace(error: unknown): undefined {
  assert.ok(error instanceof BlockError && error.errno === "ENOSPC", String(error));
}

describe("snapshots on a file that fails", { skip: missing("qemu-img") }, () => {
  for (const [options, clusterSize] of [
    ["cluster_size=512", 512],
    ["cluster_size=512,refcount_bits=64", 512],
    ["cluster_size=16384,extended_l2=on", 16384],
  ] as const) {
    for (const lasting of [1, 3]) {
      it(`${options}, ${lasting} in a row`, async (test) => {
        const dir = tempDir(test);
        const filename = path.join(dir, "image.qcow2");
        makeSample(filename, options, clusterSize);
        const start = new Uint8Array(fs.readFileSync(filename));
        const memory = memoryDriver(test, "faulty", 0);
        for (const operation of OPERATIONS) await failEverywhere(memory, start, operation, lasting, filename);
      });
    }
  }
});

async function failEverywhere(
  memory: Memory,
  start: Uint8Array<ArrayBuffer>,
  operation: Operation,
  lasting: number,
  filename: string,
): Promise<void> {
  memory.data = start.slice();
  memory.hook = () => {};
  const before = await readAll();
  await runWithFault(memory, operation, Number.POSITIVE_INFINITY, 1);
  const after = await readAll();
  const common = Math.min(before.get("")?.length ?? 0, after.get("")?.length ?? 0);
  for (let failAt = 1, reached = true; reached; failAt += STRIDE) {
    const what = `${operation.what}, request ${failAt} fails`;
    memory.data = start.slice();
    memory.calls.length = 0;
    const outcome = await runWithFault(memory, operation, failAt, lasting);
    reached = outcome.reached;
    memory.hook = () => {};
    const found = await readAll();
    const isBefore = isSame(found, before, operation.resizes ? common : undefined);
    assert.ok(isBefore || isSame(found, after), `${what}: neither what was before nor what was to be`);
    assert.ok(outcome.failed || isSame(found, after), `${what}: not done, and no error`);
    checkReferences(memory.data, what);
    if (lasting === 1 && failAt % 7 === 0) checkByQemu(memory.data, filename, what);
  }
}

/** The fault is over when the operation undoes what it did: no flag is wrong then. */
function checkByQemu(data: Uint8Array, filename: string, what: string): void {
  fs.writeFileSync(filename, data);
  const { stdout, stderr } = run("qemu-img", ["check", "-f", "qcow2", "--output=json", filename]);
  const result = JSON.parse(stdout || "{}") as { corruptions?: number; "check-errors"?: number };
  assert.equal(result["check-errors"], 0, `${what}: ${stderr}`);
  assert.equal(result.corruptions ?? 0, 0, `${what}: ${stderr}`);
}
