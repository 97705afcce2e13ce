/**
 * The drivers vdi, qcow and qed: the conformance suite, random operations against a model, tables that lead nowhere, and
 * images of many TiB. Power cuts are in test/crash. More by BDRV_RANDOM_RUNS and BDRV_RANDOM_STEPS; another first seed
 * by BDRV_SEED.
 */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import { BlockError } from "../../src/block/errors.ts";
import type { NestedOptions } from "../../src/block/options.ts";
import { type ConformanceSubject, conformance } from "../conformance.ts";
import { makeOps, runOps } from "../random-ops.ts";
import { openBackend } from "../support/graph.ts";
import { random } from "../support/random.ts";
import { tempDir } from "../support/temp.ts";
import { missing, mustRun } from "../support/tools.ts";

const RUNS = Number(process.env["BDRV_RANDOM_RUNS"] ?? 1);
const STEPS = Number(process.env["BDRV_RANDOM_STEPS"] ?? 100);
const FIRST_SEED = Number(process.env["BDRV_SEED"] ?? 1);
const KiB = 1024;
const MiB = 1024 * KiB;
const TiB = 1024 * 1024 * MiB;

const dir = tempDir({ after });
let filesMade = 0;

const environment = {
  secret: (id: string) => (id === "s" ? { data: Buffer.from("passphrase") } : undefined),
};

/** A kind of image, as qemu-img makes it. */
interface Kind {
  readonly format: string;
  readonly createOptions?: string;
  readonly openOptions?: NestedOptions;
  readonly clusterSize: number;
  readonly hasBacking: boolean;
  readonly compressed?: boolean;
}

const AES = { format: "qcow", createOptions: "encrypt.format=aes,encrypt.key-secret=s" };

const KINDS: Readonly<Record<string, Kind>> = {
  vdi: { format: "vdi", clusterSize: MiB, hasBacking: false },
  "vdi, static": { format: "vdi", createOptions: "static=on", clusterSize: MiB, hasBacking: false },
  qcow: { format: "qcow", clusterSize: 4 * KiB, hasBacking: true, compressed: true },
  "qcow, encrypted": {
    ...AES,
    openOptions: { encrypt: { "key-secret": "s" } },
    clusterSize: 4 * KiB,
    hasBacking: true,
  },
  qed: { format: "qed", createOptions: "cluster_size=4k", clusterSize: 4 * KiB, hasBacking: true },
  "qed, long tables": {
    format: "qed",
    createOptions: "cluster_size=64k,table_size=16",
    clusterSize: 64 * KiB,
    hasBacking: true,
  },
};

function fresh(content?: Uint8Array): string {
  const filename = path.join(dir, `image${filesMade++}`);
  if (content) fs.writeFileSync(filename, content);
  return filename;
}

/** By qemu-img; what `backing` names is raw. */
function make({ format, createOptions }: Kind, bytes: number, backing?: string): string {
  const filename = fresh();
  const options = createOptions === undefined ? [] : ["-o", createOptions];
  const below = backing === undefined ? [] : ["-b", backing, "-F", "raw"];
  const secret = ["--object", "secret,id=s,data=passphrase"];
  mustRun("qemu-img", [
    "create",
    "-q",
    ...secret,
    "-f",
    format,
    ...options,
    ...below,
    filename,
    String(bytes),
  ]);
  return filename;
}

function openImage({ format, openOptions }: Kind, filename: string, readOnly = false) {
  const node = { driver: format, ...openOptions, file: { driver: "file", filename } };
  return openBackend(node, { flags: { readOnly, unmap: true, noFlush: true }, environment });
}

function subject(name: string, kind: Kind): ConformanceSubject {
  const imageOf = (filename: string) => ({
    open: ({ readOnly }: { readonly readOnly: boolean }) => openImage(kind, filename, readOnly),
  });
  return {
    name,
    unit: Math.min(kind.clusterSize, 64 * KiB),
    canWrite: true,
    keepsData: true,
    canOverwrite: true,
    canTruncate: false,
    discarded: "any",
    async make(content) {
      const filename = make(kind, content.length);
      await using image = await openImage(kind, filename);
      await image.write(0, content);
      return imageOf(filename);
    },
    ...(kind.hasBacking && {
      makeOverlay: async (below: Uint8Array, bytes: number) => imageOf(make(kind, bytes, fresh(below))),
    }),
  };
}

describe("conformance", { skip: missing("qemu-img") }, () => {
  for (const [name, kind] of Object.entries(KINDS)) {
    // Images of no length are refused by qcow, on purpose.
    const register = (test: string, fn: () => Promise<void>) =>
      kind.format === "qcow" && test.includes("of no length") ? undefined : it(test, fn);
    conformance(register, subject(name, kind));
  }
});

describe("random operations", { skip: missing("qemu-img") }, () => {
  for (const [name, kind] of Object.entries(KINDS))
    for (const overlay of kind.hasBacking ? [false, true] : [false])
      it(overlay ? `${name}, an overlay` : name, async () => {
        for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++) await randomRun(kind, overlay, seed);
      });
});

async function randomRun(kind: Kind, overlay: boolean, seed: number): Promise<void> {
  const size = Math.max(kind.clusterSize * 3, 2 * MiB) + 512;
  const below = random(99).bytes(MiB);
  const filename = make(kind, size, overlay ? fresh(below) : undefined);
  const model = new Uint8Array(size);
  if (overlay) model.set(below);
  const profile = {
    size,
    clusterSize: kind.clusterSize,
    // Those over a backing file are of a sector: nothing gets smaller.
    compressed: (kind.compressed ?? false) && !overlay,
    resize: false,
  };
  const target = { model, open: () => openImage(kind, filename) };
  await runOps(target, makeOps(seed, STEPS, profile), profile);
  const result = fresh();
  const secret = ["--object", "secret,id=s,data=passphrase"];
  const key = kind.openOptions ? ",encrypt.key-secret=s" : "";
  const source = ["--image-opts", `driver=${kind.format},file.filename=${filename}${key}`];
  mustRun("qemu-img", ["convert", ...secret, ...source, "-O", "raw", result]);
  assert.equal(Buffer.compare(fs.readFileSync(result), target.model), 0);
}

/** A cluster that begins with a number is put into the table at `offset` of an image with its first clusters written. */
async function withEntry(kind: Kind, offset: number, entry: Uint8Array): Promise<string> {
  const filename = make(kind, 4 * MiB);
  {
    await using image = await openImage(kind, filename);
    await image.write(0, random(1).bytes(64 * KiB));
  }
  const fd = fs.openSync(filename, "r+");
  fs.writeSync(fd, entry, 0, entry.length, offset);
  fs.closeSync(fd);
  return filename;
}

const u64 = (value: bigint, littleEndian: boolean) => {
  const view = new DataView(new ArrayBuffer(8));
  view.setBigUint64(0, value, littleEndian);
  return new Uint8Array(view.buffer);
};

const NUMBERS = [
  1n,
  511n,
  4095n,
  2n ** 31n,
  2n ** 40n + 1n,
  2n ** 53n + 1n,
  2n ** 62n,
  2n ** 63n,
  2n ** 64n - 1n,
];

describe("tables that lead nowhere", { skip: missing("qemu-img") }, () => {
  const qcow = KINDS["qcow"] as Kind;
  const qed = KINDS["qed"] as Kind;
  /** The L1 table, and the first L2 table behind it. */
  const places = [
    { name: "L1 of qcow", kind: qcow, offset: 48, littleEndian: false },
    { name: "L2 of qcow", kind: qcow, offset: 4096, littleEndian: false },
    { name: "L1 of qed", kind: qed, offset: 4096, littleEndian: true },
    { name: "L2 of qed", kind: qed, offset: (5 + 16) * 4096, littleEndian: true },
  ];
  for (const { name, kind, offset, littleEndian } of places)
    it(name, async () => {
      for (const number of NUMBERS) {
        const filename = await withEntry(kind, offset, u64(number, littleEndian));
        await using image = await openImage(kind, filename, true);
        try {
          await image.read(0, 128 * KiB);
          await image.blockStatus(0, MiB);
        } catch (error) {
          assert.ok(error instanceof BlockError, `${number}: ${String(error)}`);
        }
      }
    });
});

describe("images of many TiB", { skip: missing("qemu-img") }, () => {
  for (const [name, size] of [
    ["qcow", TiB],
    ["qed", 64 * TiB],
  ] as const)
    it(`${name}: is opened, asked about and written in little memory`, async () => {
      const { createOptions: _, ...kind } = KINDS[name] as Kind;
      const filename = make(kind, size);
      const before = process.memoryUsage().arrayBuffers;
      await using image = await openImage(kind, filename);
      const status = await image.blockStatus(0, size);
      assert.ok(status.zero || !status.allocated);
      for (let at = 0; at < 64; at++)
        await image.write((size / 64) * at + 5000, new Uint8Array(1000).fill(7));
      assert.ok((await image.read((size / 64) * 63 + 5000, 1000)).every((byte) => byte === 7));
      assert.ok(process.memoryUsage().arrayBuffers - before < 32 * MiB);
    });
});
