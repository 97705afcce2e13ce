/** Block status over drivers, windows, filters and backing chains, beside what qemu-img maps. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { describe, it } from "node:test";
import type { BlockBackend } from "../../src/block/backend.ts";
import { blockStatusAbove } from "../../src/block/block-status.ts";
import { findDriver } from "../../src/block/driver.ts";
import type { NestedOptions } from "../../src/block/options.ts";
import { memoryDriver, openBackend } from "../support/graph.ts";
import { random } from "../support/random.ts";
import { sparseFile, tempDir } from "../support/temp.ts";
import { missing, mustRun } from "../support/tools.ts";

const KiB = 1024;
const noOracle = { skip: findDriver("qcow2") ? missing("qemu-img") : "there is no qcow2 driver" };

/** One line of `qemu-img map --output=json`. */
interface MapEntry {
  readonly start: number;
  readonly length: number;
  readonly depth: number;
  readonly present: boolean;
  readonly zero: boolean;
  readonly data: boolean;
  readonly offset?: number;
}

/** The same from us, joined like qemu-img joins: equal in all and contiguous in the file. */
async function mapOf(image: BlockBackend): Promise<MapEntry[]> {
  const entries: MapEntry[] = [];
  const length = await image.getLength();
  for (let start = 0; start < length; ) {
    const { bytes, depth, allocated, zero, data, offset } = await image.blockStatus(start, length - start);
    const entry: MapEntry = {
      start,
      length: bytes,
      depth,
      present: allocated,
      zero,
      data,
      ...(offset !== undefined && { offset }),
    };
    const last = entries.at(-1);
    if (last && joins(last, entry)) entries[entries.length - 1] = { ...last, length: last.length + bytes };
    else entries.push(entry);
    start += bytes;
  }
  return entries;
}

function joins(one: MapEntry, two: MapEntry): boolean {
  if (one.depth !== two.depth || one.present !== two.present) return false;
  if (one.zero !== two.zero || one.data !== two.data) return false;
  if (one.offset === undefined || two.offset === undefined) return one.offset === two.offset;
  return one.offset + one.length === two.offset;
}

function qemuMap(options: NestedOptions): MapEntry[] {
  const text = mustRun("qemu-img", ["map", "--output=json", `json:${JSON.stringify(options)}`]);
  return JSON.parse(text) as MapEntry[];
}

async function mapsAlike(options: NestedOptions): Promise<void> {
  await using image = await openBackend(options, { flags: { readOnly: true } });
  assert.deepEqual(comparable(await mapOf(image)), comparable(qemuMap(options)));
}

/** Which layer zeroes are from qemu-img map tells in a way of its own (the job `map` has it); data must be of the same. */
function comparable(entries: readonly MapEntry[]): MapEntry[] {
  const joined: MapEntry[] = [];
  for (const { start, length, depth, present, zero, data, offset } of entries) {
    const isPlaced = offset !== undefined && !zero;
    const layer = zero ? { depth: 0, present: false } : { depth, present };
    const entry = { start, length, ...layer, zero, data, ...(isPlaced && { offset }) };
    const last = joined.at(-1);
    if (last && joins(last, entry)) joined[joined.length - 1] = { ...last, length: last.length + length };
    else joined.push(entry);
  }
  return joined;
}

/** Writes bursts of data at random places of a file that is all hole. */
function scatter(filename: string, seed: number): void {
  const dice = random(seed);
  const { size } = fs.statSync(filename);
  const fd = fs.openSync(filename, "r+");
  for (let n = 0; n < 12; n++) {
    const at = dice.below(size - 70_000);
    fs.writeSync(fd, dice.bytes(dice.between(1, 70_000)), 0, undefined, at);
  }
  fs.closeSync(fd);
}

describe("block status beside qemu-img map", noOracle, () => {
  it("of a raw file with holes, whole and through windows, and under filters", async (test) => {
    const filename = sparseFile(tempDir(test), "a", 2 ** 21 + 512);
    scatter(filename, 1);
    const file = { driver: "file", filename };
    await mapsAlike({ driver: "raw", file });
    await mapsAlike({ driver: "raw", offset: 5120, file });
    await mapsAlike({ driver: "raw", offset: 64 * KiB, size: 512 * KiB, file });
    await mapsAlike({ driver: "blkdebug", image: { driver: "raw", file } });
    await mapsAlike({ driver: "raw", file: { driver: "blkdebug", image: file } });
    await mapsAlike({ driver: "raw", file: { driver: "null-co", size: 4096 } });
    await mapsAlike({ driver: "raw", file: { driver: "null-co", size: 4096, "read-zeroes": true } });
  });

  for (const [name, baseOptions, midOptions] of [
    ["qcow2 over qcow2 over raw", "cluster_size=4k", "cluster_size=64k"],
    ["version 2", "compat=0.10,cluster_size=4k", "compat=0.10"],
    ["extended L2", "extended_l2=on,cluster_size=16k", "cluster_size=512"],
  ] as const) {
    it(`of a chain of three with lengths that differ: ${name}`, async (test) => {
      const dir = tempDir(test);
      const base = sparseFile(dir, "base", 2 ** 20);
      scatter(base, 2);
      const layer = (name: string, options: string, backing: string, format: string, size: string) => {
        const filename = path.join(dir, name);
        mustRun("qemu-img", [
          "create",
          "-q",
          "-f",
          "qcow2",
          "-o",
          options,
          "-b",
          backing,
          "-F",
          format,
          filename,
          size,
        ]);
        return filename;
      };
      const mid = layer("mid", baseOptions, base, "raw", "3M");
      mustRun("qemu-io", [
        "-d",
        "unmap",
        "-c",
        "write -P 1 100k 40k",
        "-c",
        "write -z 300k 64k",
        "-c",
        "write -P 2 2M 10k",
        mid,
      ]);
      const top = layer("top", midOptions, mid, "qcow2", "2M");
      mustRun("qemu-io", [
        "-d",
        "unmap",
        "-c",
        "write -P 3 128k 100k",
        "-c",
        "write -c 512k 64k",
        "-c",
        "write -z 1M 128k",
        top,
      ]);
      const file = { driver: "file", filename: top };
      await mapsAlike({ driver: "qcow2", file });
      await mapsAlike({ driver: "blkdebug", image: { driver: "qcow2", file } });
      await mapsAlike({ driver: "qcow2", file, backing: null });
    });
  }
});

describe("block status", () => {
  it("is cut to what was asked, and starts where it was asked, whatever the driver's alignment", async (test) => {
    const asked: (readonly [number, number])[] = [];
    memoryDriver(test, "aligned", 65536, () => ({
      limits: () => ({ requestAlignment: 4096 }),
      blockStatus: async (_co, _wantZero, offset, bytes) => {
        asked.push([offset, bytes]);
        return { bytes: 8192, data: true, zero: false, allocated: true, offset: offset + 2 ** 20 };
      },
    }));
    await using image = await openBackend({ driver: "aligned" });
    const short = await image.blockStatus(5000, 10);
    assert.deepEqual([short.bytes, short.offset], [10, 5000 + 2 ** 20]);
    const long = await image.blockStatus(5000, 60_000);
    assert.deepEqual([long.bytes, long.offset], [4096 + 8192 - 5000, 5000 + 2 ** 20]);
    assert.deepEqual(asked, [
      [4096, 4096],
      [4096, 61_440],
    ]);
  });

  it("of a driver without it is data, and a protocol's lies where it is", async (test) => {
    memoryDriver(test, "plain", 4096);
    await using image = await openBackend({ driver: "plain" });
    const status = await image.blockStatus(512, 1024);
    assert.deepEqual(
      [status.bytes, status.data, status.zero, status.allocated, status.offset, status.eof],
      [1024, true, false, true, 512, undefined],
    );
    assert.equal((await image.blockStatus(512, 2 ** 30)).eof, true);
  });

  it("of a driver that does not get on is an error, not an endless loop", async (test) => {
    memoryDriver(test, "stuck", 4096, () => ({
      blockStatus: async () => ({ bytes: 0, data: true, zero: false, allocated: true }),
    }));
    await using image = await openBackend({ driver: "stuck" });
    await assert.rejects(image.blockStatus(0, 512), { errno: "EIO" });
  });

  it("looks for zeroes below only where they are wanted", noOracle, async (test) => {
    const dir = tempDir(test);
    const filename = path.join(dir, "a.qcow2");
    mustRun("qemu-img", ["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", filename, "1M"]);
    await using image = await openBackend(
      { driver: "qcow2", file: { filename } },
      { flags: { readOnly: true } },
    );
    const statusOf = (wantZero: boolean) =>
      image.run((co, root) => blockStatusAbove(co, root.node, undefined, wantZero, 0, 65536));
    assert.equal((await statusOf(true)).zero, true);
    assert.equal((await statusOf(false)).zero, false);
  });

  it("stops at a base, which it does not look into", noOracle, async (test) => {
    const dir = tempDir(test);
    const base = path.join(dir, "base");
    fs.writeFileSync(base, new Uint8Array(2 ** 20).fill(1));
    const top = path.join(dir, "top");
    mustRun("qemu-img", ["create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top]);
    mustRun("qemu-io", ["-c", "write -P 3 128k 64k", top]);
    await using image = await openBackend(top, { flags: { readOnly: true } });
    const above = (offset: number) =>
      image.run((co, root) =>
        blockStatusAbove(co, root.node, root.node.backing?.node, true, offset, 2 ** 20 - offset),
      );
    const before = await above(0);
    assert.deepEqual([before.bytes, before.allocated], [128 * KiB, false]);
    const written = await above(128 * KiB);
    assert.deepEqual([written.bytes, written.allocated, written.depth], [64 * KiB, true, 0]);
    assert.equal((await image.blockStatus(0, 2 ** 20)).depth, 1);
  });
});
