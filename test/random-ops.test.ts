/**
 * Random operations on raw and on qcow2 in all its variants. More runs by BDRV_RANDOM_RUNS (how many seeds each) and
 * BDRV_RANDOM_STEPS; another first seed by BDRV_SEED; only some variants by BDRV_RANDOM_VARIANT; BDRV_RANDOM_SHRINK=1 cuts a failure down to few steps.
 */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { describe, it, type TestContext } from "node:test";
import { findDriver, unregisterDriver } from "../src/block/driver.ts";
import { openGate } from "../src/block/open.ts";
import { type NestedOptions, parseKeyValues } from "../src/block/options.ts";
import { createImage } from "../src/jobs/create.ts";
import { makeOps, type Op, type OpsProfile, type OpsTarget, runOps, shrinkOps } from "./random-ops.ts";
import { memoryDriver, openBackend } from "./support/graph.ts";
import { tempDir } from "./support/temp.ts";
import { missing, mustRun, run } from "./support/tools.ts";

const RUNS = Number(process.env.BDRV_RANDOM_RUNS ?? 1);
const STEPS = Number(process.env.BDRV_RANDOM_STEPS ?? 100);
const FIRST_SEED = Number(process.env.BDRV_SEED ?? 1);
/** Only the variants with this in their names. */
const ONLY = process.env.BDRV_RANDOM_VARIANT ?? "";
const SHRINK = process.env.BDRV_RANDOM_SHRINK !== undefined;

const KiB = 1024;
const MiB = 1024 * KiB;

/** One image of a chain. */
interface Layer {
  readonly format: "raw" | "qcow2";
  /** For `qemu-img create -o`; DIR stands for the directory. */
  readonly options?: string;
  readonly size: number;
  readonly clusterSize: number;
  readonly compressed?: boolean;
  readonly resize?: boolean;
  readonly snapshots?: boolean | "overflow";
  readonly bitmaps?: boolean;
  readonly v2?: boolean;
  readonly encrypted?: "aes" | "luks";
  /** What stands between the format and its file: options of blkdebug. */
  readonly blkdebug?: NestedOptions;
}

interface Variant {
  readonly name: string;
  /** The lowest first; each is the backing file of the next. */
  readonly layers: readonly Layer[];
}

const raw: Layer = { format: "raw", size: 2 * MiB, clusterSize: 64 * KiB };

/** A qcow2 layer: clusters of `clusterSize` bytes, and as many of them as make tables grow. */
function qcow2(clusterSize: number, options = "", more: Partial<Layer> = {}): Layer {
  const all = [`cluster_size=${clusterSize}`, options].filter(Boolean).join(",");
  const size = Math.min(Math.max(clusterSize * 48, MiB), 12 * MiB) + 512;
  const v2 = options.includes("compat=0.10");
  return {
    format: "qcow2",
    options: all,
    size,
    clusterSize,
    compressed: true,
    snapshots: true,
    bitmaps: !v2,
    v2,
    ...more,
  };
}

/** The passphrase of all encrypted layers. */
const SECRET = "passphrase";

/** Its block status does not tell where a cluster is set aside, which the model of compressed writes wants to know. */
function encrypted(format: "aes" | "luks", clusterSize: number, options = ""): Layer {
  return qcow2(clusterSize, options, { encrypted: format, compressed: false });
}

const VARIANTS: readonly Variant[] = [
  { name: "raw", layers: [raw] },
  { name: "raw, requests aligned to 512", layers: [{ ...raw, blkdebug: { align: 512 } }] },
  {
    name: "raw, requests aligned to 4096 and cut at 64 KiB",
    layers: [{ ...raw, blkdebug: { align: 4096, "max-transfer": 64 * KiB, "opt-write-zero": 32 * KiB } }],
  },
  {
    name: "qcow2, its file's requests aligned to 4096",
    layers: [qcow2(4 * KiB, "", { blkdebug: { align: 4096 } })],
  },
  ...[512, 1 * KiB, 4 * KiB, 64 * KiB, 2 * MiB].map((clusterSize) => ({
    name: `qcow2, clusters of ${clusterSize}`,
    layers: [qcow2(clusterSize)],
  })),
  ...[512, 64 * KiB].map((clusterSize) => ({
    name: `qcow2 v2, clusters of ${clusterSize}`,
    layers: [qcow2(clusterSize, "compat=0.10")],
  })),
  ...[1, 2, 4, 8, 32, 64].map((bits) => ({
    name: `qcow2, refcounts of ${bits} bits`,
    layers: [
      qcow2(bits < 8 ? 4 * KiB : 512, `refcount_bits=${bits}`, { snapshots: bits < 8 ? "overflow" : true }),
    ],
  })),
  { name: "qcow2, zstd", layers: [qcow2(64 * KiB, "compression_type=zstd")] },
  { name: "qcow2, AES", layers: [encrypted("aes", 4 * KiB)] },
  { name: "qcow2, LUKS", layers: [encrypted("luks", 64 * KiB)] },
  { name: "qcow2, LUKS, extended L2", layers: [encrypted("luks", 16 * KiB, "extended_l2=on")] },
  { name: "qcow2, LUKS over raw", layers: [raw, encrypted("luks", 512)] },
  { name: "qcow2, lazy refcounts", layers: [qcow2(4 * KiB, "lazy_refcounts=on")] },
  ...[16 * KiB, 64 * KiB, 2 * MiB].map((clusterSize) => ({
    name: `qcow2, extended L2, clusters of ${clusterSize}`,
    layers: [qcow2(clusterSize, "extended_l2=on")],
  })),
  {
    name: "qcow2, data file",
    layers: [qcow2(16 * KiB, "data_file=DIR/data", { compressed: false, snapshots: false })],
  },
  {
    name: "qcow2, raw data file",
    layers: [qcow2(4 * KiB, "data_file=DIR/data,data_file_raw=on", { compressed: false, snapshots: false })],
  },
  {
    name: "chain of three, qcow2 over qcow2 over raw",
    layers: [raw, qcow2(4 * KiB, "", { size: 3 * MiB }), qcow2(64 * KiB, "", { size: 5 * MiB })],
  },
  {
    name: "chain of three, the top shorter than the middle",
    layers: [qcow2(512), qcow2(64 * KiB, "", { size: 4 * MiB }), qcow2(2 * KiB, "", { size: 2 * MiB })],
  },
  {
    name: "chain of three, v2",
    // Version 2 has no zero clusters, so it can't grow under a longer backing file: ENOTSUP, as qemu.
    layers: [
      qcow2(64 * KiB, "compat=0.10"),
      qcow2(4 * KiB, "compat=0.10", { resize: false }),
      qcow2(1 * KiB, "compat=0.10", { resize: false }),
    ],
  },
  {
    name: "chain of three, extended L2 and zstd",
    layers: [
      qcow2(64 * KiB, "compression_type=zstd"),
      qcow2(32 * KiB, "extended_l2=on", { size: 4 * MiB }),
      qcow2(128 * KiB, "extended_l2=on,compression_type=zstd", { size: 6 * MiB }),
    ],
  },
  {
    name: "chain of three, data file on top",
    layers: [
      raw,
      qcow2(64 * KiB),
      qcow2(4 * KiB, "data_file=DIR/data", { compressed: false, snapshots: false }),
    ],
  },
];

/** Makes the chain layer by layer, each changed by random steps; gives the name and content of the topmost. */
async function runVariant(
  dir: string,
  { layers }: Variant,
  opsOf: (layer: number, profile: OpsProfile) => readonly Op[],
): Promise<void> {
  let below: { readonly filename: string; readonly format: string; readonly model: Uint8Array } | undefined;
  for (const [index, layer] of layers.entries()) {
    const filename = path.join(dir, `layer${index}.${layer.format}`);
    await createLayer(dir, filename, layer, below);
    const model = new Uint8Array(layer.size);
    if (below) model.set(below.model.subarray(0, layer.size));
    const open = (readOnly: boolean, check = false) =>
      openBackend(
        {
          driver: layer.format,
          ...(layer.encrypted && { "encrypt.key-secret": "s" }),
          file: fileOptions(filename, layer),
        },
        { flags: { unmap: true, readOnly, check }, environment: { secret } },
      );
    const target: OpsTarget = {
      model,
      below: below?.model,
      snapshots: new Map(),
      bitmaps: new Map(),
      open: () => open(false),
      openReadOnly: () => open(true),
      openToCheck: () => open(false, true),
      filename,
    };
    const profile = { compressed: false, resize: true, repair: layer.format === "qcow2", ...layer };
    await runOps(target, opsOf(index, profile), profile);
    checkLayer(dir, filename, layer, target);
    below = { filename, format: layer.format, model: target.model };
  }
}

function fileOptions(filename: string, { blkdebug }: Layer): NestedOptions {
  if (!blkdebug) return { driver: "file", filename };
  return { driver: "blkdebug", image: { driver: "file", filename }, ...blkdebug };
}

function secret(): { readonly data: Uint8Array } {
  return { data: Buffer.from(SECRET) };
}

/** LUKS is made by us: qemu-img takes seconds to find out how fast it derives keys. */
async function createLayer(
  dir: string,
  filename: string,
  layer: Layer,
  below: { readonly filename: string; readonly format: string } | undefined,
): Promise<void> {
  if (layer.encrypted) {
    const luks = layer.encrypted === "luks" ? ",encrypt.iter-time=0,encrypt.cipher-alg=aes-128" : "";
    const encryption = `encrypt.format=${layer.encrypted},encrypt.key-secret=s${luks}`;
    await createImage({
      filename,
      format: layer.format,
      size: layer.size,
      backingFile: below?.filename,
      backingFormat: below?.format,
      options: parseKeyValues(`${layer.options},${encryption}`),
      environment: { gate: openGate, warn: () => {}, secret },
    });
    return;
  }
  const args = ["create", "-q", "-f", layer.format];
  if (layer.options) args.push("-o", layer.options.replace("DIR", dir));
  if (below) args.push("-b", below.filename, "-F", below.format);
  mustRun("qemu-img", [...args, filename, String(layer.size)]);
}

/** The oracle's judgement: no error, no leak, and the content of the model; the same of every snapshot. */
function checkLayer(dir: string, filename: string, layer: Layer, { model, snapshots }: OpsTarget): void {
  if (layer.format === "qcow2") {
    const { code, stdout, stderr } = run("qemu-img", ["check", ...imageArgs(filename, layer)]);
    // A snapshot that was refused leaks a table, as with qemu-img.
    const isFine = code === 0 || (code === 3 && layer.snapshots === "overflow");
    assert.ok(isFine, `qemu-img check: exit code ${code}\n${stdout}${stderr}`);
  }
  const converted = convertedContent(dir, imageArgs(filename, layer));
  assert.equal(converted.length, model.length, "length of what qemu-img converts");
  expectContent(converted, model, "qemu-img converts other content");
  for (const [name, content] of snapshots ?? []) {
    // The length is that of the active content.
    const shown = convertedContent(dir, ["-l", `snapshot.name=${name}`, ...imageArgs(filename, layer)]);
    const bytes = Math.min(shown.length, content.length);
    expectContent(
      shown.subarray(0, bytes),
      content.subarray(0, bytes),
      `qemu-img finds other content in ${name}`,
    );
  }
}

/** How qemu-img opens a layer. */
function imageArgs(filename: string, { format, encrypted: isEncrypted }: Layer): readonly string[] {
  if (!isEncrypted) return ["-f", format, filename];
  const options = `driver=${format},encrypt.key-secret=s,file.filename=${filename}`;
  return ["--object", `secret,id=s,data=${SECRET}`, "--image-opts", options];
}

function convertedContent(dir: string, args: readonly string[]): Buffer {
  const converted = path.join(dir, "converted.raw");
  mustRun("qemu-img", ["convert", "-O", "raw", ...args, converted]);
  const content = fs.readFileSync(converted);
  fs.rmSync(converted);
  return content;
}

function expectContent(content: Uint8Array, wanted: Uint8Array, message: string): void {
  const wrong =
    Buffer.compare(content, wanted) === 0 ? -1 : content.findIndex((byte, i) => byte !== wanted[i]);
  assert.equal(wrong, -1, `${message} at offset ${wrong}`);
}

/** One run from a seed; a failure names the seed, and the steps if it was asked to cut them down. */
async function runSeed(dir: string, variant: Variant, seed: number): Promise<void> {
  const ops: Op[][] = [];
  const attempt = async (all: (index: number) => readonly Op[] | undefined) => {
    fs.rmSync(dir, { recursive: true, force: true });
    fs.mkdirSync(dir);
    await runVariant(dir, variant, (index, profile) => {
      const own = (ops[index] ??= makeOps(seed * 10 + index, STEPS, profile));
      return all(index) ?? own;
    });
  };
  try {
    await attempt(() => undefined);
  } catch (error) {
    let message = `variant '${variant.name}', BDRV_SEED=${seed}: ${(error as Error).message}`;
    // Only the layer that failed last is cut down; it is the topmost whose steps were made.
    const top = ops.length - 1;
    if (SHRINK) {
      const shortest = await shrinkOps(ops[top] ?? [], (shorter) =>
        attempt((index) => (index === top ? shorter : undefined)).then(
          () => false,
          (shorterError: Error) => {
            message = `variant '${variant.name}', BDRV_SEED=${seed}, layer ${top}: ${shorterError.message}`;
            return true;
          },
        ),
      );
      message += `\nsteps:\n${shortest.map((op) => JSON.stringify(op)).join("\n")}`;
    }
    throw new Error(message, { cause: error });
  }
}

describe("the random operations themselves", () => {
  it("find a driver that loses a write now and then, and cut the run down to that", async (test) => {
    const profile: OpsProfile = { size: MiB, clusterSize: 64 * KiB, compressed: false, resize: true };
    const attempt = async (ops: readonly Op[]) => {
      const memory = memoryDriver(test, "lossy", MiB, (_, { pwrite }) => ({
        // The bug: a write that starts in this sector writes nothing.
        pwrite: async (co, offset, iov, flags) =>
          Math.floor(offset / 512) === 1024 ? undefined : pwrite?.(co, offset, iov, flags),
      }));
      const open = () => openBackend({ driver: "lossy" });
      try {
        await runOps({ model: memory.data.slice(), open }, ops, profile);
        return undefined;
      } catch (error) {
        return error as Error;
      } finally {
        unregisterDriver("lossy");
      }
    };
    const ops = makeOps(1, 400, profile);
    assert.match((await attempt(ops))?.message ?? "", /^step \d+ .*: offset \d+: 0x/);
    const shortest = await shrinkOps(ops, async (shorter) => (await attempt(shorter)) !== undefined);
    assert.equal(shortest.length, 1);
    assert.match(JSON.stringify(shortest), /"offset":524\d\d\d/);
  });

  it("are the same from the same seed", () => {
    const profile: OpsProfile = { size: MiB, clusterSize: 512, compressed: true, resize: true };
    assert.deepEqual(makeOps(7, 50, profile), makeOps(7, 50, profile));
    assert.notDeepEqual(makeOps(7, 50, profile), makeOps(8, 50, profile));
  });
});

describe("random operations", { skip: missing("qemu-img") }, () => {
  for (const variant of VARIANTS.filter(({ name }) => name.includes(ONLY))) {
    const needsQcow2 = variant.layers.some(({ format }) => format === "qcow2");
    const skip = needsQcow2 && findDriver("qcow2") === undefined && "there is no qcow2 driver";
    it(variant.name, { skip }, async (test: TestContext) => {
      const dir = path.join(tempDir(test), "run");
      for (let n = 0; n < RUNS; n++) await runSeed(dir, variant, FIRST_SEED + n);
    });
  }
});
