/**
 * Stored bitmaps: those that QEMU's tools wrote are read, and the reverse, bit by bit; through power cuts and failing
 * writes none says of changed data that it is clean.  More by BDRV_BITMAP_SEEDS.
 */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { describe, it } from "node:test";
import type { BlockBackend } from "../../../src/block/backend.ts";
import type { DirtyExtent } from "../../../src/block/dirty-bitmap.ts";
import { BlockError } from "../../../src/block/errors.ts";
import { convert } from "../../../src/library/jobs.ts";
import { type Memory, memoryDriver, openBackend } from "../../support/graph.ts";
import { recorder, replay } from "../../support/power-cut.ts";
import { type Random, random } from "../../support/random.ts";
import { type Cleanup, tempDir } from "../../support/temp.ts";
import { missing, mustRun, run } from "../../support/tools.ts";
import { qemuIo } from "./patch.ts";

const SEEDS = Number(process.env["BDRV_BITMAP_SEEDS"] ?? 1);

const skip = missing("qemu-img") || missing("qemu-nbd") || missing("nbdinfo");

const openFile = (filename: string, readOnly: boolean) =>
  openBackend({ driver: "qcow2", file: { driver: "file", filename } }, { flags: { readOnly, unmap: true } });

async function extentsOf(image: BlockBackend, name: string): Promise<DirtyExtent[]> {
  const extents: DirtyExtent[] = [];
  for await (const extent of image.bitmaps.extents(name)) extents.push(extent);
  return extents;
}

/** What QEMU reads of a stored bitmap. */
function theirExtents(filename: string, name: string): DirtyExtent[] {
  const server = ["[", "qemu-nbd", "-r", "-f", "qcow2", "-B", name, filename, "]"];
  const map = mustRun("nbdinfo", ["--json", `--map=qemu:dirty-bitmap:${name}`, "--", ...server]);
  const entries = JSON.parse(map) as { offset: number; length: number; type: number }[];
  return entries.filter(({ type }) => type === 1).map(({ offset, length }) => ({ offset, bytes: length }));
}

/** The granules that were touched. */
class Touched {
  readonly granularity: number;
  readonly granules = new Set<number>();

  constructor(granularity: number) {
    this.granularity = granularity;
  }

  mark(offset: number, bytes: number): void {
    for (let at = Math.floor(offset / this.granularity); at * this.granularity < offset + bytes; at++)
      this.granules.add(at);
  }

  extents(size: number): DirtyExtent[] {
    const extents: { offset: number; bytes: number }[] = [];
    for (const granule of [...this.granules].sort((a, b) => a - b)) {
      const offset = granule * this.granularity;
      const bytes = Math.min(this.granularity, size - offset);
      const last = extents.at(-1);
      if (last && last.offset + last.bytes === offset) last.bytes += bytes;
      else extents.push({ offset, bytes });
    }
    return extents;
  }
}

type Kind = "write" | "zero" | "discard";

interface Operation {
  readonly kind: Kind;
  readonly offset: number;
  readonly bytes: number;
}

function randomOperation(dice: Random, size: number): Operation {
  const offset = Math.floor(dice.below(size) / 512) * 512;
  const most = Math.min(size - offset, dice.pick([512, 65536, 1048576]));
  return {
    kind: dice.pick(["write", "write", "zero", "discard"]),
    offset,
    bytes: Math.max(Math.floor(dice.below(most) / 512) * 512, 512),
  };
}

async function runOurs(image: BlockBackend, { kind, offset, bytes }: Operation): Promise<void> {
  if (kind === "write") await image.write(offset, new Uint8Array(bytes).fill(7));
  else if (kind === "zero") await image.writeZeroes(offset, bytes);
  else await image.discard(offset, bytes);
}

const IO_COMMANDS = { write: "write -q", zero: "write -q -z", discard: "discard -q" } as const;

const VARIANTS = [
  { options: "cluster_size=512", size: 8 * 1048576 + 512, granularities: [512, 4096, 2 ** 20] },
  { options: "cluster_size=65536", size: 700 * 1048576 - 512, granularities: [512, 65536, 2 ** 31] },
  { options: "cluster_size=2097152,extended_l2=on", size: 2 ** 33, granularities: [512, 65536] },
  {
    options: "cluster_size=4096,refcount_bits=1,lazy_refcounts=on",
    size: 64 * 1048576,
    granularities: [512],
  },
] as const;

describe("stored bitmaps", { skip }, () => {
  for (const { options, size, granularities } of VARIANTS) {
    it(`are the same to both tools: ${options}`, async (test) => {
      const filename = path.join(tempDir(test), "image.qcow2");
      for (let seed = 1; seed <= SEEDS; seed++) {
        const dice = random(seed);
        mustRun("qemu-img", ["create", "-q", "-f", "qcow2", "-o", options, filename, String(size)]);
        const models = new Map(granularities.map((each) => [`b${each}`, new Touched(each)]));
        await addBitmaps(filename, models);
        for (let session = 0; session < 6; session++) {
          const operations = Array.from({ length: dice.between(1, 8) }, () => randomOperation(dice, size));
          for (const { offset, bytes } of operations)
            for (const model of models.values()) model.mark(offset, bytes);
          const isOurs = session % 2 === 0;
          if (isOurs) {
            const image = await openFile(filename, false);
            for (const operation of operations) await runOurs(image, operation);
            await image.close();
          } else
            qemuIo(
              filename,
              ...operations.map(({ kind, offset, bytes }) => `${IO_COMMANDS[kind]} ${offset} ${bytes}`),
            );
          await compareAll(filename, models, size, `seed ${seed}, session ${session}`);
        }
        mustRun("qemu-img", ["check", "-q", filename]);
      }
    });
  }
});

/** Every other one by us, the rest by qemu-img. */
async function addBitmaps(filename: string, models: ReadonlyMap<string, Touched>): Promise<void> {
  for (const [index, [name, { granularity }]] of [...models].entries()) {
    if (index % 2 === 1) {
      mustRun("qemu-img", ["bitmap", "--add", "-g", String(granularity), filename, name]);
      continue;
    }
    const image = await openFile(filename, false);
    await image.bitmaps.add(name, { granularity, persistent: true });
    await image.close();
  }
}

async function compareAll(
  filename: string,
  models: ReadonlyMap<string, Touched>,
  size: number,
  what: string,
): Promise<void> {
  const image = await openFile(filename, true);
  for (const [name, model] of models) {
    const expected = model.extents(size);
    assert.deepEqual(await extentsOf(image, name), expected, `${what}: ${name}, read by us`);
    assert.deepEqual(theirExtents(filename, name), expected, `${what}: ${name}, read by qemu-nbd`);
  }
  await image.close();
}

describe("an image with bitmaps", { skip }, () => {
  it("that is only read keeps them as they are", async (test) => {
    const filename = path.join(tempDir(test), "image.qcow2");
    mustRun("qemu-img", ["create", "-q", "-f", "qcow2", filename, "16M"]);
    mustRun("qemu-img", ["bitmap", "--add", filename, "b"]);
    const before = fs.readFileSync(filename);
    const image = await openFile(filename, true);
    const refused = { message: "Bitmap 'b' is readonly and cannot be modified" };
    await assert.rejects(image.bitmaps.clear("b"), refused);
    await assert.rejects(image.bitmaps.remove("b"), refused);
    await assert.rejects(image.bitmaps.disable("b"), refused);
    await image.close();
    assert.ok(before.equals(fs.readFileSync(filename)));
  });

  it("keeps those that are not persistent to itself", async (test) => {
    const filename = path.join(tempDir(test), "image.qcow2");
    mustRun("qemu-img", ["create", "-q", "-f", "qcow2", filename, "16M"]);
    const before = fs.readFileSync(filename);
    const image = await openFile(filename, false);
    await image.bitmaps.add("b");
    await image.close();
    assert.ok(before.equals(fs.readFileSync(filename)));
  });

  it("says that they are in use while it can be written, and stores them when it is reopened", async (test) => {
    const filename = path.join(tempDir(test), "image.qcow2");
    mustRun("qemu-img", ["create", "-q", "-f", "qcow2", filename, "16M"]);
    const flags = () =>
      (
        JSON.parse(mustRun("qemu-img", ["info", "-U", "--output=json", filename])) as {
          "format-specific": { data: { bitmaps?: { name: string; flags: string[] }[] } };
        }
      )["format-specific"].data.bitmaps?.map(({ name, flags: set }) => [name, ...set].join(" "));
    const image = await openFile(filename, false);
    await image.bitmaps.add("b", { persistent: true });
    await image.write(0, new Uint8Array(1));
    assert.equal(flags(), undefined);
    await image.reopen({ readOnly: true });
    assert.deepEqual(flags(), ["b auto"]);
    assert.deepEqual(await extentsOf(image, "b"), theirExtents(filename, "b"));
    await assert.rejects(image.bitmaps.clear("b"), /is readonly/);
    await image.reopen({ readOnly: false });
    assert.deepEqual(flags(), ["b in-use auto"]);
    await image.bitmaps.disable("b");
    await image.write(1048576, new Uint8Array(1));
    await image.close();
    assert.deepEqual(flags(), ["b"]);
    assert.deepEqual(theirExtents(filename, "b"), [{ offset: 0, bytes: 65536 }]);
  });

  it("has them copied by the library's convert, if that is asked for", async (test) => {
    const dir = tempDir(test);
    const [source, copy] = [path.join(dir, "source.qcow2"), path.join(dir, "copy.qcow2")];
    mustRun("qemu-img", ["create", "-q", "-f", "qcow2", source, "1M"]);
    mustRun("qemu-img", ["bitmap", "--add", "-g", "512", source, "b"]);
    qemuIo(source, "write -q 4096 1024");
    await convert(source, { filename: copy, format: "qcow2" });
    await convert(source, { filename: copy, format: "qcow2" }, { bitmaps: true });
    assert.deepEqual(theirExtents(copy, "b"), [{ offset: 4096, bytes: 1024 }]);
    const left = path.join(dir, "left.qcow2");
    const image = await openFile(source, false);
    // As a crash would leave it.
    fs.copyFileSync(source, left);
    await image.close();
    await assert.rejects(convert(left, { filename: copy, format: "qcow2" }, { bitmaps: true }), {
      message: "Cannot copy inconsistent bitmap 'b'",
    });
    const warnings: string[] = [];
    await convert(
      left,
      { filename: copy, format: "qcow2" },
      { bitmaps: true, skipBrokenBitmaps: true, onWarning: (text) => warnings.push(text) },
    );
    assert.deepEqual(warnings, ["Skipping inconsistent bitmap 'b'"]);
  });

  it("goes on marking where it could not be made read-only", async (test) => {
    const filename = path.join(tempDir(test), "image.qcow2");
    mustRun("qemu-img", ["create", "-q", "-f", "qcow2", filename, "1M"]);
    mustRun("qemu-img", ["bitmap", "--add", "-g", "512", filename, "b"]);
    const memory = memoryDriver(test, "stubborn", 0, () => ({
      reopen: async () => {
        throw new BlockError("EACCES");
      },
    }));
    memory.data = new Uint8Array(fs.readFileSync(filename));
    const image = await openBackend({ driver: "qcow2", file: { driver: "stubborn" } });
    await image.write(0, new Uint8Array(1));
    await assert.rejects(image.reopen({ readOnly: true }), { errno: "EACCES" });
    await image.write(4096, new Uint8Array(1));
    // As a cut would leave it.
    fs.writeFileSync(filename, memory.data);
    const left = await openFile(filename, true);
    assert.deepEqual(
      left.bitmaps.list().map(({ inconsistent }) => inconsistent),
      [true],
    );
    await left.close();
    await image.close();
    fs.writeFileSync(filename, memory.data);
    assert.deepEqual(theirExtents(filename, "b"), [
      { offset: 0, bytes: 512 },
      { offset: 4096, bytes: 512 },
    ]);
  });

  it("can't be made writable where the file can't say that they are in use", async (test) => {
    const filename = path.join(tempDir(test), "image.qcow2");
    mustRun("qemu-img", ["create", "-q", "-f", "qcow2", filename, "1M"]);
    mustRun("qemu-img", ["bitmap", "--add", filename, "b"]);
    const memory = memoryDriver(test, "faulty", 0);
    memory.data = new Uint8Array(fs.readFileSync(filename));
    const before = memory.data.slice();
    const image = await openBackend(
      { driver: "qcow2", file: { driver: "faulty" } },
      { flags: { readOnly: true } },
    );
    memory.hook = (op) => {
      if (op === "pwrite") throw new BlockError("ENOSPC");
    };
    await assert.rejects(image.reopen({ readOnly: false }), /Failed to make dirty bitmaps writable/);
    memory.hook = () => {};
    await assert.rejects(image.write(0, new Uint8Array(1)), { errno: "ENOMEDIUM" });
    await image.close();
    assert.deepEqual(memory.data, before);
  });
});

/** Content that the guest had when a bitmap was made: what differs from it since must be dirty. */
type Baselines = Map<string, Uint8Array>;

const SIZE = 512 * 200;

/** Three openings with all that can happen to bitmaps between writes. */
async function work(dice: Random, file: string, baselines: Baselines, tolerate = false): Promise<void> {
  const model = new Uint8Array(SIZE);
  let made = 0;
  const attempt = async (step: () => Promise<unknown>) => {
    try {
      await step();
    } catch (error) {
      if (!tolerate || !(error instanceof BlockError)) throw error;
    }
  };
  for (let opening = 0; opening < 3; opening++) {
    const environment = { error: () => {} };
    let image: BlockBackend | undefined;
    await attempt(async () => {
      image = await openBackend(
        { driver: "qcow2", file: { driver: file } },
        { flags: { unmap: true }, environment },
      );
    });
    if (!image) continue;
    const opened = image;
    for (let step = 0; step < 10; step++) {
      const kind = dice.below(12);
      const offset = dice.below(SIZE / 512) * 512;
      const bytes = Math.min((1 + dice.below(6)) * 512, SIZE - offset);
      const names = opened.isOpen ? opened.bitmaps.list().map(({ name }) => name) : [];
      if (kind < 7) {
        const value = 1 + dice.below(255);
        await attempt(() => opened.write(offset, new Uint8Array(bytes).fill(value)));
        model.fill(value, offset, offset + bytes);
      } else if (kind < 8) {
        await attempt(() => opened.writeZeroes(offset, bytes));
        model.fill(0, offset, offset + bytes);
      } else if (kind < 10) {
        const name = `b${made++}`;
        // What failed in part may be there or not; so the state of the image itself counts.
        await attempt(async () => {
          baselines.set(name, await opened.read(0, SIZE));
          await opened.bitmaps.add(name, { persistent: true, granularity: 512 });
        });
      } else if (kind < 11 && names.length > 1) await attempt(() => opened.bitmaps.remove(dice.pick(names)));
      else {
        await attempt(() => opened.reopen({ readOnly: true }));
        await attempt(() => opened.reopen({ readOnly: false }));
      }
    }
    await attempt(() => opened.close());
  }
}

/** Every bitmap of the image is marked as in use, or every byte that changed since it was made lies in a dirty granule. */
async function checkBitmaps(data: Uint8Array, baselines: Baselines, what: string): Promise<number> {
  const ends: (() => void | Promise<void>)[] = [];
  const memory = memoryDriver({ after: (fn) => ends.push(fn) }, "replayed", 0);
  memory.data = data;
  try {
    return await checkOpened(baselines, what);
  } finally {
    for (const end of ends) await end();
  }
}

async function checkOpened(baselines: Baselines, what: string): Promise<number> {
  const image = await openBackend(
    { driver: "qcow2", file: { driver: "replayed" } },
    { flags: { readOnly: true } },
  );
  const content = await image.read(0, SIZE);
  let consistent = 0;
  for (const { name, inconsistent } of image.bitmaps.list()) {
    if (inconsistent) continue;
    consistent++;
    const baseline = baselines.get(name) as Uint8Array;
    const dirty = new Uint8Array(SIZE);
    for (const { offset, bytes } of await extentsOf(image, name)) dirty.fill(1, offset, offset + bytes);
    const missed = content.findIndex((byte, at) => byte !== baseline[at] && dirty[at] === 0);
    assert.equal(missed, -1, `${what}: byte ${missed} has changed, and ${name} says that it is clean`);
  }
  await image.close();
  return consistent;
}

function checkNoCorruption(filename: string, data: Uint8Array, what: string): void {
  fs.writeFileSync(filename, data);
  const { stdout, stderr } = run("qemu-img", ["check", "-f", "qcow2", "--output=json", filename]);
  const result = JSON.parse(stdout || "{}") as { corruptions?: number; "check-errors"?: number };
  assert.equal(result["check-errors"], 0, `${what}: ${stderr}`);
  assert.equal(result.corruptions ?? 0, 0, `${what}: ${stderr}`);
}

function newImage(test: Cleanup): { readonly filename: string; readonly content: Uint8Array } {
  const filename = path.join(tempDir(test), "image.qcow2");
  mustRun("qemu-img", ["create", "-q", "-f", "qcow2", "-o", "cluster_size=512", filename, String(SIZE)]);
  return { filename, content: new Uint8Array(fs.readFileSync(filename)) };
}

describe("bitmaps", { skip }, () => {
  it("say nothing wrong after a power cut", async (test) => {
    const { filename, content } = newImage(test);
    for (let seed = 1; seed <= SEEDS; seed++) {
      const dice = random(seed);
      const baselines: Baselines = new Map();
      const { log } = recorder(test, content);
      await work(dice, "recorder", baselines);
      let consistent = 0;
      let count = 0;
      await replay(content, log, dice, async (data, _, what) => {
        consistent += await checkBitmaps(data, baselines, `seed ${seed}, ${what}`);
        if (count++ % 7 === 0) checkNoCorruption(filename, data, `seed ${seed}, ${what}`);
      });
      assert.ok(consistent > 0);
    }
  });

  it("say nothing wrong where becoming read-only failed anywhere", async (test) => {
    const { filename, content } = newImage(test);
    const memory = memoryDriver(test, "faulty", 0);
    let failures = 0;
    for (let failAt = 1; ; failAt++) {
      memory.data = content.slice();
      const image = await openBackend({ driver: "qcow2", file: { driver: "faulty" } });
      const baselines: Baselines = new Map([["b", new Uint8Array(SIZE)]]);
      await image.bitmaps.add("b", { persistent: true, granularity: 512 });
      await image.write(0, new Uint8Array(4096).fill(1));
      await image.reopen({ readOnly: true });
      await image.reopen({ readOnly: false });
      await image.write(8192, new Uint8Array(512).fill(2));
      const isReached = armFault(memory, failAt, 1);
      const error = await image.reopen({ readOnly: true }).catch((reason: unknown) => reason);
      memory.hook = () => {};
      if (!isReached()) {
        assert.equal(error, undefined);
        await image.close();
        break;
      }
      if (error) {
        failures++;
        await image.write(16384, new Uint8Array(512).fill(3)).catch(() => {});
        await image.flush();
      }
      await checkBitmaps(memory.data.slice(), baselines, `request ${failAt} failed`);
      await image.close();
      const consistent = await checkBitmaps(memory.data.slice(), baselines, `closed after ${failAt} failed`);
      assert.equal(consistent, 1);
      checkNoCorruption(filename, memory.data, `request ${failAt} failed`);
    }
    assert.ok(failures > 5, String(failures));
  });

  it("say nothing wrong after writes that failed", async (test) => {
    const { filename, content } = newImage(test);
    const memory = memoryDriver(test, "faulty", 0);
    for (const lasting of [1, 30]) {
      for (let failAt = 1; ; failAt += 3) {
        memory.data = content.slice();
        const isReached = armFault(memory, failAt, lasting);
        const baselines: Baselines = new Map();
        await work(random(failAt), "faulty", baselines, true);
        memory.hook = () => {};
        const what = `${lasting} failing from ${failAt}`;
        await checkBitmaps(memory.data, baselines, what);
        if (failAt % 4 === 0) checkNoCorruption(filename, memory.data, what);
        if (!isReached()) break;
      }
    }
  });
});

/** Makes the request number `failAt` to the file and those after it fail; tells whether it came to that. */
function armFault(memory: Memory, failAt: number, lasting: number): () => boolean {
  let count = 0;
  memory.hook = (op) => {
    if (!["pwrite", "flushToDisk", "pdiscard", "truncate"].includes(op)) return;
    count++;
    if (count >= failAt && count < failAt + lasting) throw new BlockError("ENOSPC");
  };
  return () => count >= failAt;
}

describe("bitmaps of a hostile image", { skip }, () => {
  it("take no more memory and time than is bounded, though a small file names many", async (test) => {
    const filename = path.join(tempDir(test), "image.qcow2");
    mustRun("qemu-img", ["create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", filename, "2T"]);
    mustRun("qemu-img", ["bitmap", "--add", "-g", "512", filename, "b"]);
    const memory = memoryDriver(test, "hostile", 0);
    memory.data = new Uint8Array(fs.readFileSync(filename));
    const view = new DataView(memory.data.buffer);
    const at = memory.data.length - 32;
    const table = Number(view.getBigUint64(at));
    // All its 256 clusters are one and the same, and it is there 1000 times.
    for (let index = 0; index < view.getUint32(at + 8); index++)
      view.setBigUint64(table + index * 8, BigInt(table));
    const entry = memory.data.slice(at);
    const data = new Uint8Array(at + 1000 * 32);
    data.set(memory.data.subarray(0, at));
    for (let count = 0; count < 1000; count++) {
      data.set(entry, at + count * 32);
      data.set(Buffer.from(`b${count}`.padEnd(8)), at + count * 32 + 24);
      data[at + count * 32 + 19] = 8;
    }
    const extension = Buffer.from(data.buffer).indexOf("2385287500000018", 0, "hex") + 8;
    new DataView(data.buffer).setUint32(extension, 1000);
    new DataView(data.buffer).setBigUint64(extension + 8, 32_000n);
    memory.data = data;
    let reads = 0;
    memory.hook = (op) => {
      if (op === "pread") reads++;
    };
    await assert.rejects(
      openBackend({ driver: "qcow2", file: { driver: "hostile" } }, { flags: { readOnly: true } }),
      { errno: "ENOMEM", message: "Could not read bitmap 'b3      ' from image: Cannot allocate memory" },
    );
    assert.ok(reads < 900, String(reads));
  });
});
