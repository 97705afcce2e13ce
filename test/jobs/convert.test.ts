/** convert as a library function: over backends in memory, where every request can be seen, and over files. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { BlockError } from "../../src/block/errors.ts";
import { convert } from "../../src/jobs/convert.ts";
import { type CopyOptions, copyImages } from "../../src/jobs/convert-copy.ts";
import { findRuns, sparseRule } from "../../src/jobs/convert-zeroes.ts";
import { gate, memoryDriver, openBackend, settled } from "../support/graph.ts";
import { random } from "../support/random.ts";
import { type Cleanup, openFilesUnder, tempDir } from "../support/temp.ts";

const KiB = 1024;
const MiB = 1024 * KiB;

/** Extents of zeroes that a memory driver tells of; all else is data. */
type Holes = readonly (readonly [number, number])[];

/** A source in memory whose block status tells of `holes`, and a target of the same length. */
async function memoryPair(test: Cleanup, bytes: number, holes: Holes = []) {
  const source = memoryDriver(test, "source", bytes, () => ({
    blockStatus: async (_co, _wantZero, offset, asked) => {
      const inside = holes.find(([start, end]) => offset >= start && offset < end);
      const next = holes.find(([start]) => start > offset);
      const end = inside ? inside[1] : (next?.[0] ?? bytes);
      const zero = inside !== undefined;
      return { bytes: Math.min(asked, end - offset), data: !zero, zero, allocated: true };
    },
  }));
  const target = memoryDriver(test, "target", bytes);
  // Whatever is not written shows.
  target.data.fill(0xee);
  const from = await openBackend({ driver: "source" });
  const to = await openBackend({ driver: "target" });
  test.after(async () => {
    await from.close();
    await to.close();
  });
  return { source, target, from, to, copy: (options?: CopyOptions) => copyImages([from], to, options) };
}

const differs = (a: Uint8Array, b: Uint8Array) => Buffer.compare(a, b) !== 0;

describe("finding runs of zeroes", () => {
  /** The slow way: unit by unit on absolute marks. */
  const model = (buffer: Uint8Array, offset: number, unit: number, min: number) => {
    const isZero: boolean[] = [];
    for (let at = 0; at < buffer.length; ) {
      const end = Math.min(at + unit - ((offset + at) % unit), buffer.length);
      const zero = buffer.subarray(at, end).every((byte) => byte === 0);
      for (; at < end; at++) isZero.push(zero);
    }
    for (let start = 0; start < isZero.length; ) {
      let end = start;
      while (end < isZero.length && isZero[end] === isZero[start]) end++;
      if (start > 0 && end < isZero.length && end - start < min) isZero.fill(false, start, end);
      start = end;
    }
    return isZero;
  };

  for (const [sparseBytes, alignment] of [
    [4096, 1],
    [512, 1],
    [3072, 1],
    [1536, 512],
    [65536, 1],
    [131072, 1],
    [4096, 65536],
  ] as const)
    it(`agrees with a plain model: zeroes from ${sparseBytes} bytes on, alignment ${alignment}`, () => {
      const dice = random(sparseBytes + alignment);
      for (let round = 0; round < 12; round++) {
        const buffer = new Uint8Array(512 * dice.between(1, 800));
        for (let at = 0; at < buffer.length; at += 512 * dice.pick([1, 2, 3, 7, 8, 9, 16, 30, 130]))
          buffer[Math.min(at + dice.below(512), buffer.length - 1)] = 1;
        const offset = 512 * dice.below(1000);
        const rule = sparseRule(sparseBytes, alignment);
        const runs = findRuns(buffer, offset, rule);
        const found: boolean[] = [];
        for (const { start, end, zero } of runs) {
          assert.equal(start, found.length, "runs follow each other");
          for (let at = start; at < end; at++) found.push(zero);
        }
        assert.deepEqual(found, model(buffer, offset, rule.unitBytes, rule.minBytes));
        for (let i = 1; i < runs.length; i++)
          assert.notEqual(runs[i]?.zero, runs[i - 1]?.zero, "runs alternate");
      }
    });

  it("takes all for data where nothing is to be sparse", () => {
    assert.deepEqual(findRuns(new Uint8Array(4096), 0, sparseRule(0, 1)), [
      { start: 0, end: 4096, zero: false },
    ]);
  });
});

describe("copying between backends", () => {
  it("never reads what is known to be zero, and never writes it where the target is zero", async (t) => {
    const holes = [[64 * KiB, 3 * MiB]] as const;
    const { source, target, copy } = await memoryPair(t, 4 * MiB, holes);
    source.data.fill(1);
    source.data.fill(0, ...holes[0]);
    target.data.fill(0);
    await copy({ targetIsZero: true });
    assert.ok(!differs(source.data, target.data));
    assert.deepEqual(source.ranges("pread"), [
      [0, 64 * KiB],
      [3 * MiB, MiB],
    ]);
    assert.deepEqual(target.ranges("pwriteZeroes"), []);
  });

  it("writes zeroes over what a target may hold, in one request each", async (t) => {
    const { source, target, copy } = await memoryPair(t, 4 * MiB, [[MiB, 3 * MiB]]);
    source.data.fill(7, 0, MiB);
    source.data.fill(7, 3 * MiB + 8 * KiB);
    await copy();
    assert.ok(!differs(source.data, target.data));
    assert.deepEqual(target.ranges("pwriteZeroes"), [
      [MiB, 2 * MiB],
      [3 * MiB, 8 * KiB],
    ]);
  });

  it("writes everything where nothing is to be sparse", async (t) => {
    const { target, copy } = await memoryPair(t, 2 * MiB + 512, [[0, MiB]]);
    await copy({ sparseBytes: 0, targetIsZero: true });
    assert.deepEqual(target.ranges("pwriteZeroes"), []);
    assert.deepEqual(target.ranges("pwrite"), [[0, 2 * MiB + 512]]);
    assert.ok(target.data.every((byte) => byte === 0));
  });

  it("issues writes in guest order though reads end in any", async (t) => {
    const { source, target, copy } = await memoryPair(t, 64 * MiB);
    source.data.fill(9);
    const dice = random(5);
    source.hook = async (op) => {
      if (op === "pread") await sleep(dice.below(8));
    };
    await copy({ parallel: 8 });
    const offsets = target.ranges("pwrite").map(([offset]) => offset);
    assert.deepEqual(
      offsets,
      offsets.toSorted((a, b) => a - b),
    );
    assert.equal(offsets.length, 16);
    assert.ok(!differs(source.data, target.data));
  });

  it("need not keep the order when told so", async (t) => {
    const { source, target, copy } = await memoryPair(t, 16 * MiB);
    source.data.fill(9);
    const first = gate();
    source.hook = async (op, _co, offset) => {
      if (op === "pread" && offset === 0) await first.opened;
    };
    const done = copy({ parallel: 4, outOfOrder: true });
    while (target.ranges("pwrite").length < 3) await settled();
    first.open();
    await done;
    assert.equal(target.ranges("pwrite").at(-1)?.[0], 0);
    assert.ok(!differs(source.data, target.data));
  });

  it("has no more under way than it was told", async (t) => {
    const { source, target, copy } = await memoryPair(t, 48 * MiB);
    source.data.fill(9);
    const most = { reads: 0, writes: 0 };
    const now = { reads: 0, writes: 0 };
    const count = (which: "reads" | "writes") => async () => {
      most[which] = Math.max(most[which], ++now[which]);
      await sleep(2);
      now[which]--;
    };
    const [read, write] = [count("reads"), count("writes")];
    source.hook = async (op) => (op === "pread" ? read() : undefined);
    target.hook = async (op) => (op === "pwrite" ? write() : undefined);
    await copy({ parallel: 3 });
    assert.equal(most.reads, 3, "as many reads as told overlap");
    assert.ok(most.writes <= 3, `${most.writes} writes at once`);
  });

  it("joins sources of odd lengths, in the middle of pieces", async (t) => {
    const dice = random(8);
    const parts = [512, MiB - 512, 3 * 512, 5 * MiB + 512, 0, 512].map((bytes) => dice.bytes(bytes));
    const dir = tempDir(t);
    const sources = await Promise.all(
      parts.map((bytes, index) => {
        const file = path.join(dir, `part${index}`);
        fs.writeFileSync(file, bytes);
        return openBackend({ driver: "raw", file: { driver: "file", filename: file } });
      }),
    );
    const all = Buffer.concat(parts);
    const target = memoryDriver(t, "joined", all.length);
    const to = await openBackend({ driver: "joined" });
    await copyImages(sources, to);
    for (const each of [...sources, to]) await each.close();
    assert.ok(!differs(target.data, all));
  });

  it("refuses a target that is too short, and leaves one that is longer as it is behind the end", async (t) => {
    const { source, target, from, to, copy } = await memoryPair(t, MiB);
    source.data.fill(3);
    target.data = new Uint8Array(MiB - 512);
    await to.close();
    const short = await openBackend({ driver: "target" });
    await assert.rejects(copyImages([from], short), { message: "output file is smaller than input file" });
    await short.close();
    target.data = new Uint8Array(2 * MiB).fill(0xee);
    const long = await openBackend({ driver: "target" });
    await copyImages([from], long);
    await long.close();
    assert.ok(target.data.subarray(0, MiB).every((byte) => byte === 3));
    assert.ok(target.data.subarray(MiB).every((byte) => byte === 0xee));
    await assert.rejects(copy(), BlockError);
  });

  it("says where reading and writing failed, and waits for what is under way", async (t) => {
    const { source, target, copy } = await memoryPair(t, 40 * MiB);
    source.data.fill(5);
    let under = 0;
    target.hook = async (op, _co, offset) => {
      if (op !== "pwrite") return;
      under++;
      await sleep(offset === 8 * MiB ? 1 : 10);
      under--;
      if (offset === 8 * MiB) throw new BlockError("ENOSPC");
    };
    await assert.rejects(copy(), {
      message: `error while writing at byte ${8 * MiB}: No space left on device`,
      errno: "ENOSPC",
    });
    assert.equal(under, 0);
    target.hook = () => {};
    source.hook = (op, _co, offset, bytes) => {
      if (op === "pread" && offset <= 15 * MiB && 15 * MiB < offset + bytes) throw new BlockError("EIO");
    };
    // Named is the start of what qemu-img would have read at once: 2 MiB.
    await assert.rejects(copy(), { message: `error while reading at byte ${14 * MiB}: Input/output error` });
  });

  it("saves what can be read, sector by sector", async (t) => {
    const { source, target, copy } = await memoryPair(t, 3 * MiB);
    source.data.fill(5);
    const bad = [1000 * 512, 1001 * 512, 2 * MiB, 3 * MiB - 512];
    source.hook = (op, _co, offset, bytes) => {
      if (op === "pread" && bad.some((sector) => offset < sector + 512 && sector < offset + bytes))
        throw new BlockError("EIO");
    };
    const warnings: string[] = [];
    await copy({ salvage: true, onWarning: (message) => warnings.push(message) });
    assert.deepEqual(
      warnings.toSorted(),
      bad.map((sector) => `error while reading offset ${sector}: Input/output error`).toSorted(),
    );
    const expected = Buffer.alloc(3 * MiB, 5);
    for (const sector of bad) expected.fill(0, sector, sector + 512);
    assert.ok(!differs(target.data, expected));
  });

  it("ends by its signal, with requests under way and without", async (t) => {
    const { source, target, copy } = await memoryPair(t, 96 * MiB, [[64 * MiB, 96 * MiB]]);
    source.data.fill(5, 0, 64 * MiB);
    const abort = new AbortController();
    target.hook = (op, _co, offset) => {
      if (op === "pwrite" && offset === 8 * MiB) abort.abort(new Error("enough"));
    };
    await assert.rejects(copy({ signal: abort.signal }), { message: "enough" });
    assert.ok(target.ranges("pwrite").length < 12);
    await assert.rejects(copy({ signal: AbortSignal.abort(new Error("at once")) }), { message: "at once" });
  });

  it("tells how far it is, up to all of it", async (t) => {
    const { source, copy } = await memoryPair(t, 32 * MiB, [[8 * MiB, 20 * MiB]]);
    source.data.fill(5);
    const told: (readonly [number, number])[] = [];
    const onProgress = (done: number, total: number) => told.push([done, total]);
    await copy({ targetIsZero: true, onProgress });
    assert.deepEqual(told.at(-1), [20 * MiB, 20 * MiB]);
    assert.equal(told.length, 10);
    told.length = 0;
    await copy({ onProgress });
    assert.deepEqual(told.at(-1), [32 * MiB, 32 * MiB]);
  });

  it("holds a rate", async (t) => {
    const { source, copy } = await memoryPair(t, 16 * MiB);
    source.data.fill(5);
    const start = performance.now();
    await copy({ bytesPerSecond: 32 * MiB });
    // 16 MiB take half a second, less the last piece and what may go ahead of its time.
    assert.ok(performance.now() - start >= 200);
  });

  it("ends by its signal while the rate makes it wait", async (t) => {
    const { source, copy } = await memoryPair(t, 16 * MiB);
    source.data.fill(5);
    const abort = new AbortController();
    setTimeout(() => abort.abort(new Error("tired")), 20);
    await assert.rejects(copy({ bytesPerSecond: 1024, signal: abort.signal }), { message: "tired" });
  });

  it("lets timers run while all requests end at once", async (t) => {
    const { copy } = await memoryPair(
      t,
      32 * MiB,
      Array.from({ length: 4096 }, (_, i) => [i * 8 * KiB, i * 8 * KiB + 4 * KiB] as const),
    );
    // Every look at the clock finds 10 ms gone.
    let now = 0;
    t.mock.method(performance, "now", () => (now += 10));
    let turns = 0;
    const turn = () => {
      turns++;
      if (now < 20_000) setImmediate(turn);
    };
    setImmediate(turn);
    await copy({ sparseBytes: 0 });
    assert.ok(turns > 100, `${turns} turns`);
  });
});

describe("a new image", () => {
  const content = Buffer.alloc(3 * MiB, 0xa7);

  const sourceIn = async (t: Cleanup, dir: string) => {
    const filename = path.join(dir, "source.raw");
    fs.writeFileSync(filename, content);
    const source = await openBackend({ driver: "raw", file: { driver: "file", filename } });
    t.after(() => source.close());
    return source;
  };

  it("is made, filled and closed", async (t) => {
    const dir = tempDir(t);
    const source = await sourceIn(t, dir);
    const filename = path.join(dir, "new.raw");
    await convert([source], { filename });
    assert.ok(!differs(fs.readFileSync(filename), content));
    assert.equal(openFilesUnder(filename).length, 0);
  });

  it("replaces a file that was there, and keeps it where the conversion can't start", async (t) => {
    const dir = tempDir(t);
    const source = await sourceIn(t, dir);
    const filename = path.join(dir, "new.raw");
    fs.writeFileSync(filename, "precious");
    for (const [image, message] of [
      [{ filename, format: "nofmt" }, /Unknown file format 'nofmt'/],
      [{ filename, options: { bad: 1 } }, /Invalid parameter 'bad'/],
      [
        { filename, options: { preallocation: "foo" } },
        /error while converting raw: invalid parameter value: foo/,
      ],
      [{ filename, backingFile: "x" }, /Backing file not supported for file format 'raw'/],
    ] as const)
      await assert.rejects(convert([source], image), message);
    await assert.rejects(convert([source], { filename }, { compress: true }), /Compression not supported/);
    await assert.rejects(convert([source], { filename }, { cache: "bad" }), /Invalid cache option: bad/);
    await assert.rejects(
      convert([source], { filename }, { signal: AbortSignal.abort(new Error("no")) }),
      /no/,
    );
    assert.equal(fs.readFileSync(filename, "utf8"), "precious");
    await convert([source], { filename });
    assert.ok(!differs(fs.readFileSync(filename), content));
  });

  it("is taken away when the conversion fails, under all its names", async (t) => {
    const dir = tempDir(t);
    const source = await sourceIn(t, dir);
    const [real, link, other] = ["real.raw", "link.raw", "other.raw"].map((name) => path.join(dir, name)) as [
      string,
      string,
      string,
    ];
    fs.writeFileSync(real, "old");
    fs.symlinkSync(real, link);
    fs.linkSync(real, other);
    const abort = new AbortController();
    const onProgress = () => abort.abort(new Error("stop"));
    await assert.rejects(convert([source], { filename: link }, { signal: abort.signal, onProgress }), /stop/);
    assert.equal(fs.existsSync(real), false);
    assert.equal(fs.statSync(other).size, 0, "another name shows no half image");
    assert.deepEqual(openFilesUnder(real), []);
  });

  it("is never made over a file that the conversion reads", async (t) => {
    const dir = tempDir(t);
    const source = await sourceIn(t, dir);
    const filename = path.join(dir, "source.raw");
    const hardLink = path.join(dir, "hard.raw");
    fs.linkSync(filename, hardLink);
    for (const name of [filename, hardLink])
      await assert.rejects(convert([source], { filename: name }), /Failed to get "write" lock/);
    const target = await openBackend({ driver: "raw", file: { driver: "file", filename: hardLink } });
    await assert.rejects(convert([source], target), /Failed to get "write" lock/);
    await target.close();
    assert.ok(!differs(fs.readFileSync(filename), content));
  });
});
