/**
 * The VMDK driver under load: the conformance suite, random operations against a model, power cuts, and headers and tables
 * that lie. More by BDRV_RANDOM_RUNS and BDRV_RANDOM_STEPS; another first seed by BDRV_SEED.
 */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import { SparseHeader } from "../../../drivers/vmdk/layout.ts";
import { BlockError } from "../../../src/block/errors.ts";
import { type ConformanceSubject, conformance } from "../../conformance.ts";
import { makeOps, runOps } from "../../random-ops.ts";
import { openBackend } from "../../support/graph.ts";
import { recorder, replay } from "../../support/power-cut.ts";
import { random } from "../../support/random.ts";
import { tempDir } from "../../support/temp.ts";
import { missing, mustRun, run } from "../../support/tools.ts";
import { descriptor } from "./handmade.ts";

const RUNS = Number(process.env["BDRV_RANDOM_RUNS"] ?? 1);
const STEPS = Number(process.env["BDRV_RANDOM_STEPS"] ?? 100);
const FIRST_SEED = Number(process.env["BDRV_SEED"] ?? 1);
const KiB = 1024;
const MiB = 1024 * KiB;
const GRAIN = 64 * KiB;

const dir = tempDir({ after });
let filesMade = 0;

const fresh = () => path.join(dir, `image${filesMade++}`);
const nodeOf = (filename: string) => ({ driver: "vmdk", file: { driver: "file", filename } });

function subject(name: string, options: string, overlays: boolean): ConformanceSubject {
  const create = (args: readonly string[]) =>
    mustRun("qemu-img", ["create", "-q", "-f", "vmdk", "-o", options, ...args]);
  const image = (filename: string) => ({
    open: ({ readOnly }: { readOnly: boolean }) =>
      openBackend(nodeOf(filename), { flags: { readOnly, unmap: true } }),
    dispose: () => {},
  });
  return {
    name,
    unit: 4096,
    canWrite: true,
    keepsData: true,
    canOverwrite: true,
    canTruncate: false,
    discarded: "any",
    async make(content) {
      const filename = fresh();
      create([filename, String(content.length)]);
      // An image without extents is more than qemu-img can open.
      if (content.length === 0) return image(filename);
      fs.writeFileSync(`${filename}.raw`, content);
      mustRun("qemu-img", ["convert", "-n", "-f", "raw", "-O", "vmdk", `${filename}.raw`, filename]);
      return image(filename);
    },
    ...(overlays && {
      async makeOverlay(below: Uint8Array, bytes: number) {
        const base = `${fresh()}.base`;
        mustRun("qemu-img", ["create", "-q", "-f", "vmdk", base, String(below.length)]);
        fs.writeFileSync(`${base}.raw`, below);
        mustRun("qemu-img", ["convert", "-n", "-f", "raw", "-O", "vmdk", `${base}.raw`, base]);
        const filename = fresh();
        create(["-b", base, "-F", "vmdk", filename, String(bytes)]);
        return image(filename);
      },
    }),
  };
}

describe("vmdk conformance", { skip: missing("qemu-img") }, () => {
  /** A header of no capacity stands for a descriptor, which must not be one of a sparse image. */
  const notEmpty = (name: string, fn: () => Promise<void>) =>
    it(name, { skip: / no length /.test(name) && "such an image is refused, as by qemu-img" }, fn);
  conformance(notEmpty, subject("sparse", "subformat=monolithicSparse", true));
  conformance(notEmpty, subject("sparse with zero grains", "zeroed_grain=on", true));
  conformance(it, subject("flat", "subformat=monolithicFlat", false));
  conformance(it, subject("split", "subformat=twoGbMaxExtentSparse", true));
});

interface Variant {
  readonly name: string;
  readonly options: string;
  readonly size: number;
  readonly hasBase?: boolean;
}

const VARIANTS: readonly Variant[] = [
  { name: "sparse", options: "subformat=monolithicSparse", size: 3 * MiB + 512 },
  { name: "sparse with zero grains", options: "zeroed_grain=on", size: 3 * MiB + 512 },
  { name: "flat", options: "subformat=monolithicFlat", size: 2 * MiB },
  { name: "split", options: "subformat=twoGbMaxExtentSparse,zeroed_grain=on", size: 3 * MiB },
  { name: "overlay", options: "subformat=monolithicSparse", size: 5 * MiB, hasBase: true },
  { name: "overlay with zero grains", options: "zeroed_grain=on", size: 3 * MiB, hasBase: true },
];

async function runVariant(variant: Variant, seed: number): Promise<void> {
  const filename = fresh();
  const model = new Uint8Array(variant.size);
  const args = ["create", "-q", "-f", "vmdk", "-o", variant.options];
  if (variant.hasBase) {
    const base = `${filename}.base`;
    mustRun("qemu-img", ["create", "-q", "-f", "vmdk", base, String(4 * MiB)]);
    mustRun("qemu-io", ["-f", "vmdk", "-c", "write -P 0xb0 100k 1M", "-c", "write -P 0xb1 3M 1M", base]);
    const below = Buffer.alloc(8 * MiB);
    below.fill(0xb0, 100 * KiB, 100 * KiB + MiB).fill(0xb1, 3 * MiB, 4 * MiB);
    model.set(below.subarray(0, variant.size));
    args.push("-b", base, "-F", "vmdk");
  }
  mustRun("qemu-img", [...args, filename, String(variant.size)]);
  const profile = { size: variant.size, clusterSize: GRAIN, compressed: false, resize: false };
  const target = { model, open: () => openBackend(nodeOf(filename), { flags: { unmap: true } }) };
  await runOps(target, makeOps(seed, STEPS, profile), profile);
  const { code, stdout, stderr } = run("qemu-img", ["check", "-f", "vmdk", filename]);
  assert.equal(code, 0, `qemu-img check: ${stdout}${stderr}`);
  mustRun("qemu-img", ["convert", "-f", "vmdk", "-O", "raw", filename, `${filename}.raw`]);
  const converted = fs.readFileSync(`${filename}.raw`);
  assert.equal(Buffer.compare(converted, target.model), 0, "qemu-img converts other content");
}

describe("vmdk random operations", { skip: missing("qemu-img") || missing("qemu-io") }, () => {
  for (const variant of VARIANTS)
    it(variant.name, async () => {
      for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++) await runVariant(variant, seed);
    });
});

describe("vmdk power cuts", { skip: missing("qemu-img") }, () => {
  for (const options of ["subformat=monolithicSparse", "zeroed_grain=on", "subformat=streamOptimized"])
    it(`after any write: ${options}`, async (test) => {
      const isStream = options.endsWith("streamOptimized");
      const size = 4 * MiB;
      const filename = fresh();
      mustRun("qemu-img", ["create", "-q", "-f", "vmdk", "-o", options, filename, String(size)]);
      const before = fs.readFileSync(filename);
      const { log } = recorder(test, before);
      const dice = random(FIRST_SEED);
      /** What was stable when so much of the log was there, and what was written since. */
      const milestones = [{ logged: 0, model: new Uint8Array(size) }];
      const touched: { logged: number; start: number; end: number }[] = [];
      {
        await using image = await openBackend({ driver: "vmdk", file: { driver: "recorder" } });
        const model = new Uint8Array(size);
        for (let step = 0; step < 30; step++) {
          const unit = isStream ? GRAIN : 512;
          const start = isStream ? step * 2 * GRAIN : unit * dice.below(size / unit);
          const end = Math.min(start + unit * (1 + dice.below(isStream ? 2 : 400)), size);
          const fill = dice.below(5) === 0 && !isStream ? 0 : step + 1;
          touched.push({ logged: log.length, start, end });
          if (fill === 0) await image.writeZeroes(start, end - start);
          else await image.write(start, new Uint8Array(end - start).fill(fill));
          model.fill(fill, start, end);
          if (dice.below(4) !== 0) continue;
          await image.flush();
          milestones.push({ logged: log.length, model: model.slice() });
        }
      }
      let looks = 0;
      await replay(before, log, dice, async (data, logged, what) => {
        fs.writeFileSync(filename, data);
        if (looks++ % 8 === 0) {
          const { code, stdout, stderr } = run("qemu-img", ["check", "-f", "vmdk", filename]);
          assert.equal(code, 0, `${what}: ${stdout}${stderr}`);
        }
        await using image = await openBackend(nodeOf(filename), { flags: { readOnly: true } });
        const seen = await image.read(0, size);
        const stable = milestones.findLast((milestone) => milestone.logged <= logged) ?? milestones[0];
        const wanted = (stable as { model: Uint8Array }).model.slice();
        for (const { logged: at, start, end } of touched)
          if (at >= (stable as { logged: number }).logged && at <= logged)
            wanted.set(seen.subarray(start, end), start);
        const wrong =
          Buffer.compare(seen, wanted) === 0 ? -1 : seen.findIndex((byte, at) => byte !== wanted[at]);
        assert.equal(wrong, -1, `${what}: offset ${wrong}`);
      });
      assert.ok(looks > 50);
    });
});

/** What a BlockError may be thrown by: opening, looking, reading, writing. Nothing else is thrown, and nothing is taken long. */
async function survive(filename: string): Promise<void> {
  for (const readOnly of [true, false]) {
    try {
      await using image = await openBackend(nodeOf(filename), { flags: { readOnly } });
      const length = await image.getLength();
      for (const offset of [0, Math.floor(length / 2 / 512) * 512, length - 512]) {
        if (offset < 0) continue;
        const bytes = Math.min(length - offset, GRAIN);
        await image.blockStatus(offset, bytes).catch(expectBlockError);
        await image.read(offset, bytes).catch(expectBlockError);
        if (!readOnly) await image.write(offset, new Uint8Array(512)).catch(expectBlockError);
      }
    } catch (error) {
      expectBlockError(error);
    }
  }
}

function expectBlockError(error: unknown): undefined {
  if (!(error instanceof BlockError)) throw error;
  return undefined;
}

describe("vmdk images that lie", { skip: missing("qemu-img") }, () => {
  it("in any field of the header", async () => {
    const filename = fresh();
    for (const options of ["subformat=monolithicSparse", "subformat=streamOptimized"]) {
      mustRun("qemu-img", ["create", "-q", "-f", "vmdk", "-o", options, filename, "3M"]);
      mustRun("qemu-io", ["-f", "vmdk", "-c", "write 0 64k", filename]);
      const good = fs.readFileSync(filename);
      const fields = Object.entries(SparseHeader.offsetOf);
      for (const [index, [, start]] of fields.entries()) {
        const end = fields[index + 1]?.[1] ?? SparseHeader.size;
        const old = good.subarray(start, end);
        const lower = Buffer.from(old);
        lower.writeUInt8((lower[0] as number) ^ 1, 0);
        const high = Buffer.alloc(end - start);
        high[end - start - 1] = 0x7f;
        const middle = Buffer.alloc(end - start, 0).fill(0xff, 0, Math.ceil((end - start) / 2));
        for (const value of [
          Buffer.alloc(end - start),
          Buffer.alloc(end - start, 0xff),
          lower,
          high,
          middle,
        ]) {
          const bad = Buffer.from(good);
          bad.set(value, start);
          fs.writeFileSync(filename, bad);
          await survive(filename);
        }
      }
    }
  });

  it("in their directories and tables", async () => {
    const filename = fresh();
    mustRun("qemu-img", ["create", "-q", "-f", "vmdk", filename, "3M"]);
    mustRun("qemu-io", ["-f", "vmdk", "-c", "write 0 64k", filename]);
    const good = fs.readFileSync(filename);
    for (const sector of [21, 22, 26, 27])
      for (const value of [0, 1, 21, 26, 2 ** 31, 2 ** 32 - 1]) {
        const bad = Buffer.from(good);
        bad.writeUInt32LE(value, sector * 512);
        fs.writeFileSync(filename, bad);
        await survive(filename);
      }
  });

  it("where numbers overflow, or memory would", async () => {
    const filename = fresh();
    mustRun("qemu-img", ["create", "-q", "-f", "vmdk", filename, "3M"]);
    const good = fs.readFileSync(filename);
    const { offsetOf } = SparseHeader;
    const refused = async (message: RegExp, changes: readonly (readonly [number, bigint])[]) => {
      const bad = Buffer.from(good);
      for (const [offset, value] of changes) bad.writeBigUInt64LE(value, offset);
      fs.writeFileSync(filename, bad);
      await assert.rejects(openBackend(nodeOf(filename), { flags: { readOnly: true } }), message);
    };
    await refused(/^BlockError: L1 size too big$/, [[offsetOf.capacity, 2n ** 41n + 1n]]);
    await refused(/^BlockError: L1 size too big$/, [[offsetOf.capacity, 2n ** 48n + 6144n]]);
    await refused(/^BlockError: L1 size too big$/, [[offsetOf.capacity, 2n ** 64n - 1n]]);
    await refused(/granularity, image may be corrupt$/, [[offsetOf.grainSize, 2n ** 21n + 1n]]);
    await refused(/granularity, image may be corrupt$/, [[offsetOf.grainSize, 2n ** 63n]]);
    await refused(/^BlockError: L1 entry size is invalid$/, [[offsetOf.grainSize, 0n]]);
    await refused(/^BlockError: Could not read l1 table from extent/, [
      [offsetOf.directoryOffset, 2n ** 55n + 26n],
    ]);
    await refused(/^BlockError: Invalid footer$/, [[offsetOf.directoryOffset, 2n ** 64n - 1n]]);
    await refused(/^BlockError: File truncated, expecting at least \d+ bytes$/, [
      [offsetOf.grainOffset, 2n ** 40n],
    ]);
    await refused(/File too large$/, [
      [offsetOf.capacity, 2n ** 50n],
      [offsetOf.grainSize, 2n ** 21n],
    ]);
  });

  it("a directory of a disk of 64 TiB is read in pages", async () => {
    const filename = fresh();
    mustRun("qemu-img", ["create", "-q", "-f", "vmdk", filename, "3M"]);
    const header = fs.readFileSync(filename);
    header.writeBigUInt64LE(2n ** 37n, SparseHeader.offsetOf.capacity);
    fs.writeFileSync(filename, header);
    await using image = await openBackend(nodeOf(filename), { flags: { readOnly: true } });
    const before = process.memoryUsage().arrayBuffers;
    for (let n = 0; n < 4096; n++) await image.read(n * 2 ** 34, 512).catch(expectBlockError);
    assert.ok(process.memoryUsage().arrayBuffers - before < 32 * MiB);
  });

  it("in their descriptors", async () => {
    const filename = fresh();
    const name = path.basename(filename);
    const lines: readonly (readonly string[])[] = [
      [`RW 2048 SPARSE "${name}"`],
      [`RW 2048 FLAT "${name}" 0`],
      [`RW 2048 FLAT "${name}" 99999999999999999999`],
      [`RW 99999999999999999999 FLAT "${name}" 0`],
      [`RW 9007199254740991 FLAT "${name}" 9007199254740991`],
      ['RW 1 FLAT "." 0'],
      ['RW 1 FLAT "/dev/zero/x" 0'],
      ["RW 9007199254740991 ZERO"],
      Array.from({ length: 40_000 }, () => "RW 1 ZERO"),
      [`RW 1 ZERO "${"x".repeat(500_000)}"`],
      ['RW 1 CD "x"'],
    ];
    for (const each of lines) {
      fs.writeFileSync(filename, descriptor("monolithicFlat", each));
      await survive(filename);
    }
    for (const text of [
      "",
      "CID=",
      "version=1\n",
      `createType="${"x".repeat(1000)}"`,
      descriptor("vmfs", []).slice(0, 60),
    ]) {
      fs.writeFileSync(filename, text);
      await survive(filename);
    }
  });
});
