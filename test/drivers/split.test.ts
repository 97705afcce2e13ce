/** Images in parts: joined whatever they hold, written in place, and refused where a part is missing or of another size. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import { BlockError } from "../../src/block/errors.ts";
import { denyAll, open } from "../../src/index.ts";
import { runOurs } from "../cli/differential.ts";
import { conformance } from "../conformance.ts";
import { openBackend } from "../support/graph.ts";
import { random } from "../support/random.ts";
import { openFilesUnder, tempDir } from "../support/temp.ts";
import { missing, mustRun } from "../support/tools.ts";

const dir = tempDir({ after });
let made = 0;

interface PartsOptions {
  readonly first?: number;
  readonly width?: number;
}

/** Writes `content` in parts; gives the name of the first. */
function makeParts(
  content: Uint8Array,
  partBytes: number,
  { first = 1, width = 3 }: PartsOptions = {},
): string {
  const stem = path.join(dir, `set${made++}.raw`);
  const nameOf = (index: number) => `${stem}.${String(first + index).padStart(width, "0")}`;
  fs.writeFileSync(nameOf(0), "");
  for (let index = 0; index * partBytes < content.length; index++)
    fs.writeFileSync(nameOf(index), content.subarray(index * partBytes, (index + 1) * partBytes));
  return nameOf(0);
}

async function refuses(name: string, message: RegExp): Promise<void> {
  await assert.rejects(
    async () => {
      const image = await open(name, { format: "raw" });
      await image[Symbol.asyncDispose]();
    },
    (error) => {
      assert.ok(error instanceof BlockError, String(error));
      assert.match(error.message, message);
      return true;
    },
  );
}

describe("split", () => {
  for (const [first, width, count] of [
    [1, 3, 5],
    [0, 3, 3],
    [1, 4, 12],
    [1, 3, 1],
  ] as const)
    it(`${count} parts from ${first} in ${width} digits`, async () => {
      const content = random(count).bytes(count * 4096 - 512);
      const name = `split:${makeParts(content, 4096, { first, width })}`;
      await using image = await open(name, { format: "raw" });
      assert.equal(await image.getLength(), content.length);
      assert.equal(Buffer.compare(await image.read(0, content.length), content), 0);
      assert.equal(image.node.filename, name);
    });

  it("writes go into the parts, which keep their sizes", async () => {
    const content = random(1).bytes(20000);
    const first = makeParts(content, 4096);
    {
      await using image = await open(`split:${first}`, { format: "raw", writable: true });
      await image.write(4000, Buffer.alloc(9000, 7));
      await image.writeZeroes(8000, 5000);
      await assert.rejects(image.truncate(40960), { errno: "ENOTSUP" });
    }
    const expected = Buffer.from(content).fill(7, 4000, 13000).fill(0, 8000, 13000);
    const parts = [1, 2, 3, 4, 5].map((number) => fs.readFileSync(first.replace(/1$/, String(number))));
    assert.deepEqual(
      parts.map((part) => part.length),
      [4096, 4096, 4096, 4096, 20000 - 4 * 4096],
    );
    assert.equal(Buffer.compare(Buffer.concat(parts), expected), 0);
  });

  it("an odd last part ends in zeroes, up to a whole sector", async () => {
    const content = random(1).bytes(8192 + 100);
    await using image = await open(`split:${makeParts(content, 4096)}`, { format: "raw" });
    assert.equal(await image.getLength(), 8192 + 512);
    const expected = Buffer.alloc(512);
    expected.set(content.subarray(8192));
    assert.equal(Buffer.compare(await image.read(8192, 512), expected), 0);
  });

  it("an image in parts is probed, and its backing file found", { skip: missing("qemu-img") }, async () => {
    const whole = path.join(dir, "whole.qcow2");
    mustRun("qemu-img", ["create", "-q", "-f", "raw", path.join(dir, "base.raw"), "4M"]);
    mustRun("qemu-io", ["-f", "raw", "-c", "write -P 1 0 1M", path.join(dir, "base.raw")]);
    mustRun("qemu-img", ["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", whole]);
    mustRun("qemu-io", ["-c", "write -P 2 512k 1M", whole]);
    const first = makeParts(fs.readFileSync(whole), 128 * 1024);
    const compared = await runOurs(["compare", `split:${first}`, whole], dir, "bdrv");
    assert.deepEqual(compared, { stdout: "Images are identical.\n", stderr: "", exitCode: 0 });
    await using image = await open(`split:${first}`, { writable: true });
    await image.write(600 * 1024, Buffer.alloc(4096, 5));
    assert.equal((await image.read(600 * 1024, 1))[0], 5);
  });

  it("what belongs to no whole set is refused by name", async () => {
    const content = random(1).bytes(5 * 4096);
    const change = (fn: (stem: string, first: string) => void) => {
      const first = makeParts(content, 4096);
      fn(first.slice(0, -3), first);
      return `split:${first}`;
    };
    const resize = (number: string, bytes: number) => change((stem) => fs.truncateSync(stem + number, bytes));
    await refuses(
      change((stem) => fs.rmSync(`${stem}003`)),
      /The part '.*\.003' is missing, for there is '.*\.004'/,
    );
    await refuses(
      change((stem) => fs.rmSync(`${stem}001`)),
      /The part '.*\.001' is missing, for there is '.*\.002'/,
    );
    await refuses(
      change((stem) => fs.writeFileSync(`${stem}000`, "")),
      /\.001' is not the first part: there is '.*\.000'/,
    );
    await refuses(
      change(() => {}).replace(/001$/, "002"),
      /\.002' is not the first part, which ends in 0 or 1/,
    );
    await refuses(resize("001", 4000), /\.001' has 4000 bytes: that is no whole number of sectors/);
    await refuses(resize("001", 0), /\.001' has 0 bytes: that is no whole number of sectors/);
    await refuses(resize("003", 4095), /\.003' has 4095 bytes, the first one has 4096/);
    await refuses(resize("003", 0), /\.003' has 0 bytes, the first one has 4096/);
    await refuses(resize("005", 8192), /\.005' has 8192 bytes, the first one has 4096/);
    await refuses(resize("001", 8192), /\.002' has 4096 bytes, the first one has 8192/);
    const folder = change((stem) => {
      fs.rmSync(`${stem}002`);
      fs.mkdirSync(`${stem}002`);
    });
    await refuses(folder, /\.002'/);
    for (const name of ["split:", "split:x", "split:x.1", "split:x.01", "split:nbd:x.001"])
      await refuses(name, /An image in parts is named by the first one/);
    await refuses(`split:${dir}/none.001`, /Could not open '.*none.001': No such file or directory/);
    await refuses(`split:${dir}/none/none.001`, /Could not open '.*none.001': No such file or directory/);
    assert.deepEqual(openFilesUnder(dir), []);
  });

  it("more parts than descriptors is no set", async () => {
    const first = path.join(dir, "many.0001");
    for (let number = 1; number <= 1001; number++)
      fs.writeFileSync(first.replace("0001", String(number).padStart(4, "0")), "");
    await refuses(`split:${first}`, /The image has 1001 parts: over 1000 are not joined/);
  });

  it("the other parts pass the gate", async () => {
    const first = makeParts(random(1).bytes(3 * 4096), 4096);
    const asked: string[] = [];
    {
      await using image = await open(`split:${first}`, {
        format: "raw",
        gate: async ({ kind, filename }) => void asked.push(`${kind} ${filename}`),
      });
      assert.equal(await image.getLength(), 3 * 4096);
    }
    assert.deepEqual(
      asked,
      [2, 3].map((number) => `extent ${first.replace(/1$/, String(number))}`),
    );
    await assert.rejects(open(`split:${first}`, { format: "raw", gate: denyAll }), BlockError);
    await assert.rejects(
      open(`split:${first}`, { format: "raw", untrusted: true }),
      /The extent '.*\.002' that/,
    );
  });

  it("map shows the parts' own files", async () => {
    const first = makeParts(random(1).bytes(2 * 65536), 65536);
    const { stdout } = await runOurs(["map", "-f", "raw", `split:${first}`], dir, "bdrv");
    assert.deepEqual(
      stdout
        .split("\n")
        .slice(1, 3)
        .map((line) => line.split(/ +/)),
      [1, 2].map((number) => [
        number === 1 ? "0" : "0x10000",
        "0x10000",
        "0",
        first.replace(/1$/, String(number)),
      ]),
    );
  });

  conformance(it, {
    name: "split",
    unit: 512,
    canWrite: true,
    keepsData: true,
    canOverwrite: true,
    canTruncate: false,
    discarded: "any",
    async make(content) {
      const filename = makeParts(content, 5 * 512);
      return { open: ({ readOnly }) => openBackend({ driver: "split", filename }, { flags: { readOnly } }) };
    },
  });
});
