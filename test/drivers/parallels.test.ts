/**
 * The parallels driver under load: the conformance suite, random operations against a model, and the same operations by
 * qemu-io, whose files must be the same. More by BDRV_RANDOM_RUNS and BDRV_RANDOM_STEPS; another first seed by BDRV_SEED.
 */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import { Header } from "../../drivers/parallels/layout.ts";
import { BlockError } from "../../src/block/errors.ts";
import { runOurs } from "../cli/differential.ts";
import { type ConformanceSubject, conformance } from "../conformance.ts";
import { makeOps, runOps } from "../random-ops.ts";
import { openBackend } from "../support/graph.ts";
import { type Random, random } from "../support/random.ts";
import { tempDir } from "../support/temp.ts";
import { missing, mustRun, run } from "../support/tools.ts";

const RUNS = Number(process.env["BDRV_RANDOM_RUNS"] ?? 1);
const STEPS = Number(process.env["BDRV_RANDOM_STEPS"] ?? 100);
const FIRST_SEED = Number(process.env["BDRV_SEED"] ?? 1);
const KiB = 1024;
const MiB = 1024 * KiB;

const dir = tempDir({ after });
let filesMade = 0;
const fresh = () => path.join(dir, `image${filesMade++}`);

const fileOf = (filename: string) => ({ driver: "file", filename });
const nodeOf = (filename: string, backing?: string) => ({
  driver: "parallels",
  file: fileOf(filename),
  // Allocation by the page: what is set aside by default costs time.
  "prealloc-size": 0,
  ...(backing !== undefined && { backing: { driver: "raw", file: fileOf(backing) } }),
});

const create = (filename: string, clusterSize: number, bytes: number) =>
  mustRun("qemu-img", [
    "create",
    "-q",
    "-f",
    "parallels",
    "-o",
    `cluster_size=${clusterSize}`,
    filename,
    String(bytes),
  ]);

function subject(clusterSize: number): ConformanceSubject {
  const image = (filename: string, backing?: string) => ({
    open: ({ readOnly }: { readOnly: boolean }) =>
      openBackend(nodeOf(filename, backing), { flags: { readOnly, unmap: true } }),
  });
  return {
    name: `clusters of ${clusterSize}`,
    unit: 4096,
    canWrite: true,
    keepsData: true,
    canOverwrite: true,
    canTruncate: false,
    discarded: "any",
    async make(content) {
      const filename = fresh();
      create(filename, clusterSize, content.length);
      fs.writeFileSync(`${filename}.raw`, content);
      mustRun("qemu-img", ["convert", "-n", "-f", "raw", "-O", "parallels", `${filename}.raw`, filename]);
      return image(filename);
    },
    async makeOverlay(below, bytes) {
      const filename = fresh();
      fs.writeFileSync(`${filename}.raw`, below);
      create(filename, clusterSize, bytes);
      return image(filename, `${filename}.raw`);
    },
  };
}

describe("parallels conformance", { skip: missing("qemu-img") }, () => {
  for (const clusterSize of [512, 96 * KiB]) conformance(it, subject(clusterSize));
});

/** Turns an image that is empty into one of the old kind. */
function makeOld(filename: string): void {
  const content = fs.readFileSync(filename);
  content.write("WithoutFreeSpace");
  fs.writeFileSync(filename, content);
}

interface Variant {
  readonly clusterSize: number;
  readonly size: number;
  readonly isOld?: boolean;
  readonly hasBase?: boolean;
}

const VARIANTS: readonly Variant[] = [
  { clusterSize: 512, size: MiB + 512 },
  { clusterSize: 4 * KiB, size: 2 * MiB + 512 },
  { clusterSize: 96 * KiB, size: 3 * MiB },
  { clusterSize: MiB, size: 5 * MiB + 512 },
  { clusterSize: 10 * KiB, size: 2 * MiB, isOld: true },
  { clusterSize: 64 * KiB, size: 3 * MiB + 512, hasBase: true },
];

async function runVariant({ clusterSize, size, isOld, hasBase }: Variant, seed: number): Promise<void> {
  const filename = fresh();
  create(filename, clusterSize, size);
  if (isOld) makeOld(filename);
  const model = new Uint8Array(size);
  const backing = hasBase ? `${filename}.base` : undefined;
  if (backing !== undefined) {
    const below = Buffer.from(random(seed).bytes(2 * MiB));
    fs.writeFileSync(backing, below);
    model.set(below);
  }
  const profile = { size, clusterSize, compressed: false, resize: false };
  const target = { model, open: () => openBackend(nodeOf(filename, backing), { flags: { unmap: true } }) };
  await runOps(target, makeOps(seed, STEPS, profile), profile);
  const { code, stdout, stderr } = run("qemu-img", ["check", "-f", "parallels", filename]);
  assert.equal(code, 0, `qemu-img check: ${stdout}${stderr}`);
  const name = `json:${JSON.stringify({ ...nodeOf(filename, backing), "prealloc-size": undefined })}`;
  mustRun("qemu-img", ["convert", "-O", "raw", name, `${filename}.raw`]);
  const converted = fs.readFileSync(`${filename}.raw`);
  assert.equal(Buffer.compare(converted, target.model), 0, "qemu-img converts other content");
}

describe("parallels random operations", { skip: missing("qemu-img") }, () => {
  for (const variant of VARIANTS)
    it(JSON.stringify(variant), async () => {
      for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++) await runVariant(variant, seed);
    });
});

function randomCommands(dice: Random, size: number): string[] {
  return Array.from({ length: 8 }, () => {
    const offset = dice.below(size / 512) * 512;
    const bytes = Math.min(dice.pick([512, 4096, 65536, 200 * KiB, 1536]), size - offset);
    const command = dice.pick(["write -P 0x11", "write -P 0x22", "write -z", "read", "discard", "flush"]);
    return command === "flush" ? command : `${command} ${offset} ${bytes}`;
  });
}

describe("parallels beside qemu-io", { skip: missing("qemu-io") }, () => {
  for (const { clusterSize, size, isOld } of VARIANTS)
    it(`clusters of ${clusterSize}${isOld ? ", old" : ""}`, async () => {
      const dice = random(FIRST_SEED + clusterSize);
      const [theirs, ours] = [fresh(), fresh()];
      create(theirs, clusterSize, size);
      if (isOld) makeOld(theirs);
      fs.copyFileSync(theirs, ours);
      for (let round = 0; round < 3 * RUNS; round++) {
        const commands = randomCommands(dice, size).flatMap((command) => ["-c", command]);
        const mode = dice.pick(["truncate", "falloc"]);
        const args = (filename: string) => [
          "--image-opts",
          ...commands,
          `driver=parallels,prealloc-mode=${mode},prealloc-size=${dice.pick([0, 1, 3]) * MiB},file.filename=${filename}`,
        ];
        mustRun("qemu-io", args(theirs));
        assert.equal((await runOurs(args(ours), dir, "qemu-io")).exitCode, 0);
        const [a, b] = [fs.readFileSync(theirs), fs.readFileSync(ours)];
        assert.equal(Buffer.compare(a, b), 0, `round ${round}: ${commands.join(" ")}`);
      }
    });
});

/** An image of 16 clusters of 4 KiB with a format extension, whose bitmap has bits 3 to 5 set. */
function withBitmap(change: (extension: Buffer) => void = () => {}): string {
  const clusterSize = 4 * KiB;
  const image = Buffer.alloc(4 * clusterSize, 0x11);
  image.fill(0, 0, clusterSize).set(
    Header.write({
      magic: Buffer.from("WithouFreSpacExt"),
      version: 2,
      heads: 16,
      cylinders: 32,
      tracks: 8,
      batEntries: 16,
      sectors: 128n,
      inUse: 0,
      dataOffset: 8,
      flags: 0,
      extensionOffset: 16,
    }),
  );
  image.writeUInt32LE(1, Header.size);
  const extension = image.subarray(2 * clusterSize, 3 * clusterSize).fill(0);
  extension.writeBigUInt64LE(0xab234cef23dcea87n);
  extension.writeBigUInt64LE(0x20385fae252cb34an, 24);
  extension.writeUInt32LE(40, 40);
  extension.writeBigUInt64LE(128n, 48);
  extension.set(Buffer.from("00112233445566778899aabbccddeeff", "hex"), 56);
  extension.writeUInt32LE(8, 72);
  extension.writeUInt32LE(1, 76);
  extension.writeBigUInt64LE(24n, 80);
  image.fill(0, 3 * clusterSize).writeUInt8(0b00111000, 3 * clusterSize);
  change(extension);
  createHash("md5").update(extension.subarray(24)).digest().copy(extension, 8);
  const filename = fresh();
  fs.writeFileSync(filename, image);
  return filename;
}

describe("parallels format extension", () => {
  it("has a bitmap, for who only reads", async () => {
    await using image = await openBackend(nodeOf(withBitmap()), { flags: { readOnly: true } });
    const [bitmap, ...others] = image.node.dirtyBitmaps;
    assert.equal(others.length, 0);
    assert.equal(bitmap?.name, "00112233-4455-6677-8899-aabbccddeeff");
    assert.deepEqual(bitmap.nextExtent(0), { offset: 3 * 4096, bytes: 3 * 4096 });
    assert.equal(bitmap.nextExtent(6 * 4096), undefined);
  });

  it("stays as long as nothing is written, and goes with the first write", async () => {
    const filename = withBitmap();
    const before = fs.readFileSync(filename);
    const warnings: string[] = [];
    const environment = { warn: (message: string) => void warnings.push(message) };
    for (const isWritten of [false, true]) {
      await using image = await openBackend(nodeOf(filename), { environment });
      if (isWritten) await image.write(8192, Buffer.alloc(1, 7));
      await image.close();
      const now = fs.readFileSync(filename);
      if (!isWritten) assert.equal(Buffer.compare(now, before), 0);
      else assert.equal(Header.read(now).extensionOffset, 0);
    }
    assert.deepEqual(warnings, Array(2).fill("Format Extension ignored in RW mode"));
    await using image = await openBackend(nodeOf(filename), { flags: { readOnly: true } });
    assert.equal(image.node.dirtyBitmaps.length, 0);
    const content = Buffer.alloc(4096);
    content[0] = 7;
    // The cluster lies where the extension was, of which nothing shows.
    assert.equal(Buffer.compare(await image.read(8192, 4096), content), 0);
  });

  const LIES: Readonly<Record<string, (extension: Buffer) => void>> = {
    "Flags for extension feature are unsupported": (extension) => extension.writeUInt8(1, 32),
    "Unknown feature: 0x1": (extension) => extension.writeBigUInt64LE(1n, 24),
    "Feature data_size exceedes Format Extension cluster": (extension) => extension.writeUInt32LE(4049, 40),
    "Bitmap size (in sectors) 127 differs from disk size in sectors 128": (extension) =>
      extension.writeBigUInt64LE(127n, 48),
    "Bitmaps feature corrupted: l1 table exceeds extension data_size": (extension) =>
      extension.writeUInt32LE(0xffffffff, 76),
    "Bitmap table size 0 does not correspond to bitmap size and cluster size. Expected 1": (extension) =>
      extension.writeUInt32LE(0, 76),
    "Bitmap granularity of 3 sectors is not supported": (extension) => extension.writeUInt32LE(3, 72),
  };
  for (const [message, change] of Object.entries(LIES))
    it(message, async () => {
      const opening = openBackend(nodeOf(withBitmap(change)), { flags: { readOnly: true } });
      await assert.rejects(opening, (error) => error instanceof BlockError && error.message === message);
    });
});
