/** The raw format beside qemu's: probed images keep their first block raw, windows, lengths. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { describe, it } from "node:test";
import type { NestedOptions } from "../../src/block/options.ts";
import { openBackend } from "../support/graph.ts";
import { random } from "../support/random.ts";
import { answersOfOurs, answersOfQemu } from "../support/requests.ts";
import { sparseFile, tempDir } from "../support/temp.ts";
import { missing, mustRun, noHoles, run } from "../support/tools.ts";

const noOracle = { skip: missing("qemu-io") };

/** Header of an empty qcow2 image, as a guest would write it. */
function qcow2Head(dir: string): Uint8Array {
  const filename = path.join(dir, "head.qcow2");
  mustRun("qemu-img", ["create", "-q", "-f", "qcow2", filename, "1M"]);
  return fs.readFileSync(filename).subarray(0, 512);
}

describe("a probed raw image", noOracle, () => {
  it("is not turned into another format's by its guest: EPERM, as qemu", async (test) => {
    const dir = tempDir(test);
    const head = qcow2Head(dir);
    const filename = sparseFile(dir, "probed", 65536);
    const warnings: string[] = [];
    await using image = await openBackend(filename, {
      environment: { warn: (line) => void warnings.push(line) },
    });
    await assert.rejects(image.write(0, head), { errno: "EPERM", message: "Operation not permitted" });
    await assert.rejects(image.write(0, [head.subarray(0, 3), head.subarray(3)]), { errno: "EPERM" });
    // A write that is longer, or made whole by what is in the block already.
    await assert.rejects(image.write(0, Buffer.concat([head, head])), { errno: "EPERM" });
    await image.write(100, head.subarray(100));
    await assert.rejects(image.write(0, head.subarray(0, 100)), { errno: "EPERM" });
    assert.equal(fs.readFileSync(filename).subarray(0, 4).toString("hex"), "00000000");
    await image.write(512, head);
    await image.write(0, new Uint8Array(512).fill(1));
    assert.equal(warnings.length, 1);
    fs.writeFileSync(path.join(dir, "head"), head);
    const { stdout, stderr } = run("qemu-io", ["-c", `write -s ${dir}/head 0 512`, filename]);
    assert.match(stdout + stderr, /write failed: Operation not permitted/);
    assert.equal(`${warnings[0]}\n`, stderr.slice(stderr.indexOf("WARNING")));
  });

  it("may be anything where the format was given, and gives no warning", async (test) => {
    const dir = tempDir(test);
    const head = qcow2Head(dir);
    const filename = sparseFile(dir, "given", 65536);
    const warnings: string[] = [];
    const environment = { warn: (line: string) => void warnings.push(line) };
    {
      await using image = await openBackend({ driver: "raw", file: { filename } }, { environment });
      await image.write(0, head);
    }
    assert.deepEqual(fs.readFileSync(filename).subarray(0, 512), Buffer.from(head));
    assert.deepEqual(warnings, []);
  });

  it("gives no warning read-only", async (test) => {
    const filename = sparseFile(tempDir(test), "probed", 65536);
    const environment = { warn: (line: string) => assert.fail(line) };
    await using image = await openBackend(filename, { flags: { readOnly: true }, environment });
    assert.equal(await image.getLength(), 65536);
  });
});

describe("a window", noOracle, () => {
  const KiB = 1024;
  const read = [{ op: "read", offset: 0, bytes: 512 }] as const;
  const cases: readonly {
    name: string;
    window: NestedOptions;
    requests?: Parameters<typeof answersOfOurs>[1];
  }[] = [
    { name: "of an offset", window: { offset: 1000 } },
    { name: "of a size", window: { size: 4 * KiB } },
    { name: "up to the end", window: { offset: 60 * KiB } },
    { name: "of nothing, at the end", window: { offset: 64 * KiB } },
    { name: "behind the end", window: { offset: 64 * KiB + 1 } },
    { name: "that is too long", window: { offset: 60 * KiB, size: 4 * KiB + 512 } },
    { name: "of no whole sectors", window: { size: 1000 } },
    { name: "of no length", window: { size: 0 } },
    {
      name: "written to its edges",
      window: { offset: 4 * KiB, size: 8 * KiB },
      requests: [
        { op: "write", offset: 0, bytes: 512 },
        { op: "write", offset: 8 * KiB - 100, bytes: 100 },
        { op: "write", offset: 8 * KiB - 100, bytes: 101 },
        { op: "write -z", offset: 4 * KiB, bytes: KiB },
        { op: "discard", offset: 2 * KiB, bytes: KiB },
        { op: "read", offset: 8 * KiB, bytes: 1 },
      ],
    },
    {
      name: "of a size can't be resized",
      window: { size: 4 * KiB },
      requests: [{ op: "truncate", offset: 8 * KiB }],
    },
    {
      name: "of an offset can be resized",
      window: { offset: 1024 },
      requests: [{ op: "truncate", offset: 128 * KiB }, ...read],
    },
  ];
  for (const { name, window, requests = read } of cases) {
    const seesHoles = requests.some(({ op }) => op === "write");
    it(name, { skip: seesHoles && noHoles }, async (test) => {
      const dir = tempDir(test);
      const content = random(1).bytes(64 * KiB);
      const optionsFor = (name: string) => {
        const filename = path.join(dir, name);
        fs.writeFileSync(filename, content);
        return { driver: "raw", ...window, file: { driver: "file", filename } };
      };
      const theirs = answersOfQemu(optionsFor("theirs"), requests);
      assert.deepEqual(await answersOfOurs(optionsFor("ours"), requests), theirs);
      assert.deepEqual(fs.readFileSync(path.join(dir, "ours")), fs.readFileSync(path.join(dir, "theirs")));
    });
  }

  it("shows its part, and nothing of what is around", async (test) => {
    const filename = path.join(tempDir(test), "a");
    const content = random(2).bytes(20_000);
    fs.writeFileSync(filename, content);
    await using image = await openBackend({ driver: "raw", offset: 700, size: 1024, file: { filename } });
    assert.equal(await image.getLength(), 1024);
    assert.deepEqual(await image.read(0, 1024), content.slice(700, 1724));
    await assert.rejects(image.truncate(2048), {
      errno: "ENOTSUP",
      message: "Cannot resize fixed-size raw disks",
    });
  });
});

describe("lengths", noOracle, () => {
  for (const bytes of [0, 1, 511, 512, 513, 65535]) {
    it(`of a file of ${bytes} bytes`, async (test) => {
      const filename = path.join(tempDir(test), "a");
      fs.writeFileSync(filename, new Uint8Array(bytes).fill(7));
      const theirs = JSON.parse(mustRun("qemu-img", ["info", "-f", "raw", "--output=json", filename])) as {
        "virtual-size": number;
      };
      await using image = await openBackend(
        { driver: "raw", file: { filename } },
        { flags: { readOnly: true } },
      );
      assert.equal(await image.getLength(), theirs["virtual-size"]);
      const content = await image.read(0, await image.getLength());
      assert.ok(content.subarray(0, bytes).every((byte) => byte === 7));
      assert.ok(content.subarray(bytes).every((byte) => byte === 0));
    });
  }
});

describe("block status", noOracle, () => {
  it("finds the holes that qemu-img map finds", { skip: noHoles }, async (test) => {
    const filename = sparseFile(tempDir(test), "holes", 4 * 2 ** 20 + 700);
    const fd = fs.openSync(filename, "r+");
    for (const at of [0, 65536, 1_000_000, 3_000_000, 4 * 2 ** 20])
      fs.writeSync(fd, new Uint8Array(500).fill(1), 0, 500, at);
    fs.closeSync(fd);
    const theirs = JSON.parse(mustRun("qemu-img", ["map", "-f", "raw", "--output=json", filename])) as {
      start: number;
      length: number;
      zero: boolean;
      data: boolean;
      offset: number;
    }[];
    await using image = await openBackend(
      { driver: "raw", file: { filename } },
      { flags: { readOnly: true } },
    );
    const ours: typeof theirs = [];
    for (let start = 0; start < (await image.getLength()); ) {
      const { bytes, zero, data, offset = -1 } = await image.blockStatus(start, 2 ** 40);
      ours.push({ start, length: bytes, zero, data, offset });
      start += bytes;
    }
    assert.deepEqual(
      ours,
      theirs.map(({ start, length, zero, data, offset }) => ({ start, length, zero, data, offset })),
    );
  });
});
