/** Dirty bitmaps of a node: their bits against a set of granules, what marks them, and what an open image offers. */

import assert from "node:assert/strict";
import { describe, it, type TestContext } from "node:test";
import type { BlockBackend } from "../../src/block/backend.ts";
import { DirtyBitmap, type DirtyExtent } from "../../src/block/dirty-bitmap.ts";
import type { NodeOps } from "../../src/block/driver.ts";
import { Req } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import { gate, memoryDriver, openBackend } from "../support/graph.ts";
import { type Random, random } from "../support/random.ts";

/** The bits as the simplest thing that can be right: the dirty granules' indices. */
class Model {
  readonly granularity: number;
  bytes: number;
  readonly dirty = new Set<number>();

  constructor(granularity: number, bytes: number) {
    this.granularity = granularity;
    this.bytes = bytes;
  }

  /** The granules that a range touches, within the node. */
  *granules(offset: number, bytes: number): Generator<number> {
    const end = Math.min(offset + bytes, this.bytes);
    if (end <= offset) return;
    for (let at = Math.floor(offset / this.granularity); at * this.granularity < end; at++) yield at;
  }

  truncate(bytes: number): void {
    this.bytes = bytes;
    for (const granule of this.dirty) if (granule * this.granularity >= bytes) this.dirty.delete(granule);
  }

  extents(): DirtyExtent[] {
    const extents: { offset: number; bytes: number }[] = [];
    for (const granule of [...this.dirty].sort((a, b) => a - b)) {
      const offset = granule * this.granularity;
      const bytes = Math.min(this.granularity, this.bytes - offset);
      const last = extents.at(-1);
      if (last && last.offset + last.bytes === offset) last.bytes += bytes;
      else extents.push({ offset, bytes });
    }
    return extents;
  }
}

function extentsOf(bitmap: DirtyBitmap): DirtyExtent[] {
  const extents: DirtyExtent[] = [];
  for (let at = bitmap.nextExtent(0); at; at = bitmap.nextExtent(at.offset + at.bytes)) extents.push(at);
  return extents;
}

function sameAsModel(bitmap: DirtyBitmap, model: Model, what: string): void {
  const extents = model.extents();
  assert.deepEqual(extentsOf(bitmap), extents, what);
  assert.equal(
    bitmap.dirtyBytes,
    extents.reduce((sum, { bytes }) => sum + bytes, 0),
    what,
  );
  assert.equal(bitmap.isEmpty, extents.length === 0, what);
}

/** Ranges that are short, that cover pages of bits (32768 each) as a whole, and that end at the very end. */
function randomRange(random: Random, bytes: number, granularity: number): DirtyExtent {
  const page = granularity * 32768;
  const offset = random.chance(0.3) ? random.below(Math.ceil(bytes / page)) * page : random.below(bytes);
  const lengths = [1, granularity, random.below(granularity * 9) + 1, page, page * 2, bytes];
  return { offset, bytes: random.pick(lengths) };
}

describe("the bits of a dirty bitmap", () => {
  for (const [seed, granularity, granules] of [
    [1, 512, 100_000],
    [2, 65536, 33_000],
    [3, 512, 7],
    [4, 4096, 65536],
    [5, 2 ** 31, 40_000],
  ] as const) {
    it(`are those of a set of granules (seed ${seed}, ${granularity} bytes)`, () => {
      const rng = random(seed);
      const full = granules * granularity - (seed % 2) * 512;
      const bitmap = new DirtyBitmap("b", granularity, full);
      const model = new Model(granularity, full);
      for (let step = 0; step < 120; step++) {
        const { offset, bytes } = randomRange(rng, full, granularity);
        const kind = rng.below(8);
        if (kind < 4) {
          bitmap.set(offset, bytes);
          for (const granule of model.granules(offset, bytes)) model.dirty.add(granule);
        } else if (kind < 6) {
          bitmap.reset(offset, bytes);
          for (const granule of model.granules(offset, bytes)) model.dirty.delete(granule);
        } else if (kind === 6) {
          const size = Math.max(512, Math.floor((rng.chance(0.5) ? full : offset) / 512) * 512);
          bitmap.truncate(size);
          model.truncate(size);
        } else if (rng.chance(0.1)) {
          bitmap.clear();
          model.dirty.clear();
        }
        const at = rng.below(model.bytes);
        assert.equal(bitmap.isDirty(at), model.dirty.has(Math.floor(at / granularity)), `step ${step}`);
        if (step % 5 === 0) sameAsModel(bitmap, model, `step ${step}`);
      }
    });
  }

  it("are stored in runs of bytes, lowest bit first, and come back", () => {
    const bitmap = new DirtyBitmap("b", 512, 512 * 1000);
    for (const granule of [0, 3, 8, 9, 999]) bitmap.set(granule * 512, 1);
    const bytes = new Uint8Array(128);
    bitmap.serialize(0, bytes);
    assert.deepEqual([...bytes.subarray(0, 3)], [0b1001, 0b11, 0]);
    assert.equal(bytes[124], 0x80);
    // Bits behind the end are not of the node.
    bytes.fill(0xff, 125);
    const copy = new DirtyBitmap("c", 512, 512 * 1000);
    copy.deserialize(0, bytes);
    assert.deepEqual(extentsOf(copy), extentsOf(bitmap));
    assert.equal(copy.nextBit(1000), undefined);
  });

  it("survive being stored, whatever they are", () => {
    const rng = random(77);
    for (let round = 0; round < 20; round++) {
      const granules = rng.between(1, 200_000);
      const bitmap = new DirtyBitmap("b", 512, granules * 512);
      for (let step = 0; step < 12; step++) {
        const { offset, bytes } = randomRange(rng, bitmap.bytes, 512);
        if (rng.chance(0.7)) bitmap.set(offset, bytes);
        else bitmap.reset(offset, bytes);
      }
      const copy = new DirtyBitmap("c", 512, bitmap.bytes);
      const piece = new Uint8Array(rng.pick([512, 4096, 65536]));
      for (let bit = 0; bit < granules; bit += piece.length * 8) {
        bitmap.serialize(bit, piece);
        copy.deserialize(bit, piece);
      }
      assert.deepEqual(extentsOf(copy), extentsOf(bitmap));
    }
  });

  it("take memory for what is dirty in part only", () => {
    const bitmap = new DirtyBitmap("b", 512, 2 ** 41);
    const before = process.memoryUsage().arrayBuffers;
    bitmap.set(0, 2 ** 41);
    bitmap.reset(512, 512);
    // In one piece it would be 512 MiB.
    assert.ok(process.memoryUsage().arrayBuffers - before < 2 ** 24);
    assert.deepEqual(extentsOf(bitmap), [
      { offset: 0, bytes: 512 },
      { offset: 1024, bytes: 2 ** 41 - 1024 },
    ]);
    bitmap.reset(0, 2 ** 41);
    assert.ok(bitmap.isEmpty);
  });

  it("are merged across granularities", () => {
    const rng = random(5);
    for (const [from, to] of [
      [512, 65536],
      [65536, 512],
      [4096, 4096],
    ] as const) {
      const bytes = 3_000_000 * 512 - 512;
      const source = new DirtyBitmap("s", from, bytes);
      const target = new DirtyBitmap("t", to, bytes);
      const model = new Model(to, bytes);
      for (let step = 0; step < 30; step++) {
        source.set(rng.below(bytes), rng.below(200_000) + 1);
        const own = { offset: rng.below(bytes), bytes: rng.below(100_000) + 1 };
        target.set(own.offset, own.bytes);
        for (const granule of model.granules(own.offset, own.bytes)) model.dirty.add(granule);
      }
      for (const run of extentsOf(source))
        for (const granule of model.granules(run.offset, run.bytes)) model.dirty.add(granule);
      target.add(source);
      assert.deepEqual(extentsOf(target), model.extents());
    }
  });

  it("are looked for within a range", () => {
    const bitmap = new DirtyBitmap("b", 4096, 100_000);
    bitmap.set(8192, 4096);
    bitmap.set(98_304, 1);
    assert.deepEqual(bitmap.nextExtent(0, 9000), { offset: 8192, bytes: 808 });
    assert.deepEqual(bitmap.nextExtent(9000), { offset: 9000, bytes: 3288 });
    assert.deepEqual(bitmap.nextExtent(12_288), { offset: 98_304, bytes: 1696 });
    assert.equal(bitmap.nextExtent(12_288, 98_304), undefined);
    assert.equal(bitmap.nextExtent(100_000), undefined);
  });
});

/** An image of 64 KiB in memory. */
async function onMemory(test: TestContext, ops: Partial<NodeOps> = {}) {
  const memory = memoryDriver(test, "memory", 65536, () => ({ ...ops }));
  const image = await openBackend({ driver: "memory" }, { flags: { unmap: true } });
  test.after(() => image.close());
  return { memory, image };
}

async function dirtyRuns(image: BlockBackend, name: string, range?: Partial<DirtyExtent>) {
  const runs: (readonly [number, number])[] = [];
  for await (const { offset, bytes } of image.bitmaps.extents(name, range)) runs.push([offset, bytes]);
  return runs;
}

describe("what marks a bitmap", () => {
  it("every write, zero write and discard, while it is enabled", async (test) => {
    const { image } = await onMemory(test, { pdiscard: async () => {} });
    const { bitmaps } = image;
    await image.write(0, new Uint8Array(512));
    await bitmaps.add("on", { granularity: 512 });
    await bitmaps.add("off", { granularity: 512, disabled: true });
    await image.write(1000, new Uint8Array(100));
    await image.writeZeroes(4096, 512);
    await image.discard(8192, 1024);
    await image.write(20_000, []);
    await image.read(30_000, 4096);
    assert.deepEqual(await dirtyRuns(image, "on"), [
      [512, 1024],
      [4096, 512],
      [8192, 1024],
    ]);
    assert.deepEqual(await dirtyRuns(image, "off"), []);
    await bitmaps.enable("off");
    await bitmaps.disable("on");
    await image.write(65_535, new Uint8Array(1));
    assert.deepEqual(await dirtyRuns(image, "off"), [[65_024, 512]]);
    assert.deepEqual(await dirtyRuns(image, "on", { offset: 600, bytes: 3600 }), [
      [600, 936],
      [4096, 104],
    ]);
  });

  it("what a driver writes in blocks is marked in blocks, and no more than the node has", async (test) => {
    const { image } = await onMemory(test, { limits: () => ({ requestAlignment: 4096 }) });
    await image.bitmaps.add("b", { granularity: 512 });
    await image.write(4097, new Uint8Array(1));
    assert.deepEqual(await dirtyRuns(image, "b"), [[4096, 4096]]);
  });

  it("a request that fails", async (test) => {
    const { image, memory } = await onMemory(test);
    await image.bitmaps.add("b", { granularity: 512 });
    memory.hook = (op) => {
      if (op === "pwrite") throw new BlockError("ENOSPC");
    };
    await assert.rejects(image.write(512, new Uint8Array(512)), { errno: "ENOSPC" });
    assert.deepEqual(await dirtyRuns(image, "b"), [[512, 512]]);
  });

  it("a write that ends after the bitmap was cleared", async (test) => {
    const { image, memory } = await onMemory(test);
    await image.bitmaps.add("b", { granularity: 512 });
    const held = gate();
    memory.hook = (op) => (op === "pwrite" ? held.opened : undefined);
    const write = image.write(0, new Uint8Array(512));
    await image.bitmaps.clear("b");
    held.open();
    await write;
    assert.deepEqual(await dirtyRuns(image, "b"), [[0, 512]]);
  });

  it("what goes through a filter, whichever of its operations are its own", async (test) => {
    memoryDriver(test, "memory", 65536, () => ({ pdiscard: async () => {} }));
    const image = await openBackend(
      { driver: "blkdebug", image: { driver: "memory" } },
      { flags: { unmap: true } },
    );
    test.after(() => image.close());
    await image.bitmaps.add("b", { granularity: 512 });
    await image.write(0, new Uint8Array(512));
    await image.writeZeroes(4096, 512);
    await image.discard(8192, 512);
    assert.deepEqual(await dirtyRuns(image, "b"), [
      [0, 512],
      [4096, 512],
      [8192, 512],
    ]);
  });

  it("growing does not, and what was cut off comes back clean", async (test) => {
    let length = 65536;
    const { image, memory } = await onMemory(test, {
      truncate: async (_, bytes) => {
        length = bytes;
      },
      getLength: async () => length,
    });
    memory.data = new Uint8Array(131_072);
    await image.bitmaps.add("b", { granularity: 4096 });
    await image.write(32_768, new Uint8Array(32_768));
    await image.truncate(40_000 - (40_000 % 512));
    assert.deepEqual(await dirtyRuns(image, "b"), [[32_768, 39_936 - 32_768]]);
    await image.truncate(131_072);
    assert.deepEqual(await dirtyRuns(image, "b"), [[32_768, 8192]]);
    await image.write(131_071, new Uint8Array(1));
    assert.deepEqual((await dirtyRuns(image, "b")).at(-1), [126_976, 4096]);
  });
});

describe("the bitmaps of an open image", () => {
  it("are listed, the oldest first", async (test) => {
    const { image } = await onMemory(test);
    await image.bitmaps.add("one");
    await image.bitmaps.add("two", { granularity: 512, disabled: true });
    await image.write(0, new Uint8Array(1), { flags: Req.None });
    const common = { persistent: false, inconsistent: false };
    assert.deepEqual(image.bitmaps.list(), [
      { name: "one", granularity: 65536, enabled: true, dirtyBytes: 65536, ...common },
      { name: "two", granularity: 512, enabled: false, dirtyBytes: 0, ...common },
    ]);
    await image.bitmaps.remove("one");
    assert.deepEqual(
      image.bitmaps.list().map(({ name }) => name),
      ["two"],
    );
  });

  it("refuse what makes no sense", async (test) => {
    const { image } = await onMemory(test);
    const { bitmaps } = image;
    await bitmaps.add("b");
    for (const granularity of [0, 256, 1000, -512, 1.5, Number.NaN, 2 ** 60 + 512])
      await assert.rejects(bitmaps.add("c", { granularity }), {
        message: "Granularity must be power of 2 and at least 512",
      });
    await assert.rejects(bitmaps.add(""), { message: "Bitmap name cannot be empty" });
    await assert.rejects(bitmaps.add("b"), { message: "Bitmap already exists: b" });
    await assert.rejects(bitmaps.add("x".repeat(1024)), { message: /^Bitmap name too long: x/ });
    await assert.rejects(bitmaps.add("p", { persistent: true }), {
      errno: "ENOTSUP",
      message: /^Can't store persistent bitmaps to #block\d+: Operation not supported$/,
    });
    for (const attempt of [
      bitmaps.remove("no"),
      bitmaps.clear("no"),
      bitmaps.enable("no"),
      bitmaps.disable("no"),
    ])
      await assert.rejects(attempt, { errno: "ENOENT", message: "Dirty bitmap 'no' not found" });
    await assert.rejects(bitmaps.merge("b", ["b", "no"]), { message: "Dirty bitmap 'no' not found" });
    await assert.rejects(dirtyRuns(image, "no"), { message: "Dirty bitmap 'no' not found" });
  });

  it("merge those of another image that is as long, all or none", async (test) => {
    const { image } = await onMemory(test);
    memoryDriver(test, "other", 65536);
    memoryDriver(test, "short", 32768);
    const other = await openBackend({ driver: "other" });
    const short = await openBackend({ driver: "short" });
    test.after(() => Promise.all([other.close(), short.close()]));
    await image.bitmaps.add("b", { granularity: 4096 });
    await image.bitmaps.add("c", { granularity: 512, disabled: true });
    await other.bitmaps.add("o", { granularity: 512 });
    await short.bitmaps.add("s");
    await image.write(0, new Uint8Array(1));
    await other.write(10_000, new Uint8Array(1));
    await assert.rejects(
      image.bitmaps.merge("c", [
        { image: other, name: "o" },
        { image: short, name: "s" },
      ]),
      {
        message:
          "Bitmaps are of different sizes (destination size is 65536, source size is 32768) and can't be merged",
      },
    );
    assert.deepEqual(await dirtyRuns(image, "c"), []);
    await image.bitmaps.merge("c", ["b", { image: other, name: "o" }]);
    assert.deepEqual(await dirtyRuns(image, "c"), [
      [0, 4096],
      [9728, 512],
    ]);
  });

  it("show what is written while they are gone through", async (test) => {
    const { image } = await onMemory(test);
    await image.bitmaps.add("b", { granularity: 512 });
    await image.write(0, new Uint8Array(512));
    const seen: number[] = [];
    for await (const { offset } of image.bitmaps.extents("b")) {
      seen.push(offset);
      if (offset < 4096) await image.write(offset + 1024, new Uint8Array(1));
    }
    assert.deepEqual(seen, [0, 1024, 2048, 3072, 4096]);
  });
});
