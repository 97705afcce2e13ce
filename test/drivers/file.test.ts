/** Files of the host: creation, growth, holes, errors in qemu's words, descriptors; and without FFI. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { AioContext } from "../../src/block/aio-context.ts";
import { Coroutine } from "../../src/block/coroutine.ts";
import { createFile } from "../../src/block/create.ts";
import { openGate } from "../../src/block/open.ts";
import type { Options } from "../../src/block/options.ts";
import { openBackend } from "../support/graph.ts";
import { random } from "../support/random.ts";
import { answersOfOurs, answersOfQemu } from "../support/requests.ts";
import { openFilesUnder, sparseFile, tempDir } from "../support/temp.ts";
import { missing, noHoles } from "../support/tools.ts";

const MiB = 2 ** 20;

function create(filename: string, options: Options): Promise<void> {
  const co = new Coroutine("none", new AioContext("test"));
  return createFile(co, filename, options, { gate: openGate, warn: () => {} });
}

describe("creating a file", () => {
  for (const [preallocation, isAllocated] of [
    ["off", false],
    ["falloc", true],
    ["full", true],
  ] as const) {
    it(`with preallocation=${preallocation}`, async (test) => {
      const filename = path.join(tempDir(test), "a");
      await create(
        filename,
        new Map<string, string | number>([
          ["size", MiB],
          ["preallocation", preallocation],
        ]),
      );
      const { size, blocks } = fs.statSync(filename);
      assert.equal(size, MiB);
      assert.equal(blocks * 512 >= MiB, isAllocated);
      assert.ok(fs.readFileSync(filename).every((byte) => byte === 0));
    });
  }

  it("empties one that is there, so that nothing of it shines through", async (test) => {
    const filename = path.join(tempDir(test), "a");
    fs.writeFileSync(filename, random(1).bytes(5000));
    await create(filename, new Map([["size", 8192]]));
    assert.deepEqual(new Uint8Array(fs.readFileSync(filename)), new Uint8Array(8192));
  });

  it("fails with the name where there is no directory, and for an unknown option or preallocation", async (test) => {
    const dir = tempDir(test);
    await assert.rejects(create(path.join(dir, "none/a"), new Map()), {
      message: `Could not create '${dir}/none/a': No such file or directory`,
      errno: "ENOENT",
    });
    await assert.rejects(create(path.join(dir, "a"), new Map([["bogus", 1]])), { errno: "EINVAL" });
    await assert.rejects(create(path.join(dir, "a"), new Map([["preallocation", "bogus"]])), {
      errno: "EINVAL",
    });
    assert.deepEqual(openFilesUnder(dir), []);
  });
});

describe("a file", () => {
  it("is opened once, for what it is used for, and closed", async (test) => {
    const dir = tempDir(test);
    const filename = sparseFile(dir, "a", MiB);
    const image = await openBackend({ driver: "file", filename });
    assert.deepEqual(openFilesUnder(dir), [filename]);
    await image.close();
    assert.deepEqual(openFilesUnder(dir), []);
  });

  it("that can't be written is opened read-only where that is allowed, and refused where not", async (test) => {
    const filename = sparseFile(tempDir(test), "a", MiB);
    fs.chmodSync(filename, 0o444);
    if (process.getuid?.() === 0) return test.skip("root may write to every file");
    await assert.rejects(openBackend({ driver: "file", filename }), { errno: "EACCES" });
    await using image = await openBackend({ driver: "file", filename, "auto-read-only": true });
    assert.ok(image.node.readOnly);
  });

  it("gets holes by discards and by zero writes that may unmap, and keeps its blocks by others", {
    skip: noHoles,
  }, async (test) => {
    const filename = path.join(tempDir(test), "a");
    const blocksOf = () => fs.statSync(filename).blocks * 512;
    fs.writeFileSync(filename, random(2).bytes(4 * MiB));
    await using image = await openBackend({ driver: "file", filename }, { flags: { unmap: true } });
    const full = blocksOf();
    await image.writeZeroes(0, MiB);
    assert.equal(blocksOf(), full);
    await image.writeZeroes(0, MiB, { mayUnmap: true });
    assert.ok(blocksOf() <= full - MiB);
    await image.discard(2 * MiB, MiB);
    assert.ok(blocksOf() <= full - 2 * MiB);
    assert.deepEqual(await image.read(0, MiB), new Uint8Array(MiB));
    assert.equal((await image.blockStatus(0, MiB)).zero, true);
    assert.equal((await image.blockStatus(MiB, MiB)).data, true);
  });

  it("is not made longer by a discard or a zero write within its last sector", async (test) => {
    const filename = path.join(tempDir(test), "a");
    fs.writeFileSync(filename, new Uint8Array(1000).fill(1));
    await using image = await openBackend({ driver: "raw", file: { filename } }, { flags: { unmap: true } });
    await image.discard(0, 1024);
    assert.equal(fs.statSync(filename).size, 1000);
  });

  it("grows and shrinks, with the space set aside where that is asked for", async (test) => {
    const filename = sparseFile(tempDir(test), "a", MiB);
    await using image = await openBackend({ driver: "file", filename });
    await image.truncate(2 * MiB, "falloc");
    assert.ok(fs.statSync(filename).blocks * 512 >= MiB);
    await image.truncate(3 * MiB, "full");
    assert.ok(fs.statSync(filename).blocks * 512 >= 2 * MiB);
    await image.truncate(512);
    assert.equal(fs.statSync(filename).size, 512);
    await assert.rejects(image.truncate(256, "full"), {
      message: "Cannot use preallocation for shrinking files",
    });
    await assert.rejects(image.truncate(MiB, "metadata"), { errno: "ENOTSUP" });
    assert.equal(fs.statSync(filename).size, 512);
  });

  it("past the host's page cache reads and writes the same, at every alignment", async (test) => {
    const filename = path.join(tempDir(test), "a");
    const model = random(3).bytes(MiB);
    fs.writeFileSync(filename, model);
    const opening = openBackend(
      { driver: "raw", file: { driver: "file", filename } },
      { flags: { direct: true } },
    );
    const image = await opening.catch(() => undefined);
    if (!image) return test.skip("the file system here has no O_DIRECT");
    await using _ = image;
    const dice = random(4);
    for (let n = 0; n < 40; n++) {
      const offset = dice.below(MiB - 20_000);
      const data = dice.bytes(dice.pick([1, 511, 512, 4096, 10_000]));
      await image.write(offset, data);
      model.set(data, offset);
    }
    assert.deepEqual(await image.read(0, MiB), model);
    assert.deepEqual(await image.read(777, 5001), model.slice(777, 5778));
  });

  it("answers as qemu's", { skip: noHoles || missing("qemu-io") }, async (test) => {
    const dir = tempDir(test);
    const requests = [
      { op: "write", offset: 100, bytes: 5000, pattern: 7 },
      { op: "write -z", offset: 4000, bytes: 100 },
      { op: "discard", offset: 1000, bytes: 3000 },
      { op: "read", offset: 65_535, bytes: 2 },
      { op: "write", offset: 65_536, bytes: 1 },
      { op: "read", offset: 0, bytes: 65_536 },
    ] as const;
    const optionsFor = (name: string) => ({ driver: "file", filename: sparseFile(dir, name, 65_536) });
    assert.deepEqual(
      await answersOfOurs(optionsFor("ours"), requests),
      answersOfQemu(optionsFor("theirs"), requests),
    );
    assert.deepEqual(fs.readFileSync(path.join(dir, "ours")), fs.readFileSync(path.join(dir, "theirs")));
  });
});

describe("without the foreign function interface", () => {
  it("files give and take the same, with less knowledge of holes", (test) => {
    const dir = tempDir(test);
    const filename = sparseFile(dir, "a", MiB);
    const script = path.join(dir, "script.mts");
    const support = fileURLToPath(new URL("../support/graph.ts", import.meta.url));
    fs.writeFileSync(
      script,
      `import { openBackend } from ${JSON.stringify(support)};
       const image = await openBackend({ driver: "raw", file: { filename: ${JSON.stringify(filename)} } }, { flags: { unmap: true } });
       await image.write(1000, new Uint8Array(5000).fill(7));
       await image.writeZeroes(2000, 100, { mayUnmap: true });
       await image.discard(4096, 512);
       await image.truncate(2 * 2 ** 20, "falloc");
       const status = await image.blockStatus(0, 2 ** 20);
       await image.close();
       console.log(JSON.stringify({ covers: status.bytes > 0 }));`,
    );
    const loader = import.meta.resolve("tsx");
    const env = { ...process.env, BDRV_NO_FFI: "1" };
    const said = execFileSync(process.execPath, ["--import", loader, script], { env, encoding: "utf8" });
    assert.deepEqual(JSON.parse(said), { covers: true });
    const content = fs.readFileSync(filename);
    assert.equal(content.length, 2 * MiB);
    const model = new Uint8Array(2 * MiB).fill(7, 1000, 6000).fill(0, 2000, 2100);
    // Whether the discard took effect is open.
    const discarded = content.subarray(4096, 4608);
    assert.ok(discarded.every((byte) => byte === 0 || byte === 7));
    model.set(discarded, 4096);
    assert.equal(Buffer.compare(content, model), 0);
  });
});
