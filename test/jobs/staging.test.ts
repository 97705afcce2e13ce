/** New files get their names at the end: what a reader sees meanwhile, and what must stay the file that it is. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { describe, it, type TestContext } from "node:test";
import { convert } from "../../src/jobs/convert.ts";
import { Staging } from "../../src/jobs/staging.ts";
import { runOurs } from "../cli/differential.ts";
import { openBackend } from "../support/graph.ts";
import { openFilesUnder, tempDir } from "../support/temp.ts";

const BYTES = 4 * 2 ** 20;

async function setUp(t: TestContext) {
  const dir = tempDir(t);
  const at = (name: string) => path.join(dir, name);
  fs.writeFileSync(at("source"), Buffer.alloc(BYTES, "new"));
  const source = await openBackend({ driver: "raw", file: { driver: "file", filename: at("source") } });
  t.after(() => source.close());
  return { dir, at, source };
}

const inode = (filename: string) => fs.statSync(filename).ino;

describe("a new image", () => {
  for (const format of ["raw", "qcow2"])
    it(`is not to be seen before it is whole: ${format}`, async (t) => {
      const { dir, at, source } = await setUp(t);
      let looks = 0;
      const onProgress = () => {
        looks++;
        assert.deepEqual(fs.readdirSync(dir).sort(), [".out.bdrv-part", "source"]);
      };
      await convert([source], { filename: at("out"), format }, { onProgress });
      assert.ok(looks > 0);
      assert.deepEqual(fs.readdirSync(dir).sort(), ["out", "source"]);
    });

  it("of several files: the one that names the others comes last", async (t) => {
    const { dir, at, source } = await setUp(t);
    const order: string[] = [];
    const rename = fs.renameSync;
    t.mock.method(fs, "renameSync", (from: string, to: string) => {
      order.push(path.basename(to));
      rename(from, to);
    });
    const options = { data_file: at("data"), data_file_raw: true };
    await convert([source], { filename: at("out"), format: "qcow2", options });
    assert.deepEqual(order, ["data", "out"]);
    assert.deepEqual(fs.readdirSync(dir).sort(), ["data", "out", "source"]);
    assert.ok(fs.readFileSync(at("data")).equals(fs.readFileSync(at("source"))));
  });

  it("takes the place of a file with its permissions, also behind symbolic links, and readers keep the old one", async (t) => {
    const { dir, at, source } = await setUp(t);
    fs.mkdirSync(at("sub"));
    fs.writeFileSync(at("sub/real"), "old", { mode: 0o640 });
    fs.symlinkSync("sub/real", at("link"));
    fs.symlinkSync("link", at("out"));
    const reader = fs.openSync(at("out"), "r");
    const before = inode(at("out"));
    await convert([source], { filename: at("out") });
    assert.equal(fs.readFileSync(reader, "utf8"), "old");
    fs.closeSync(reader);
    assert.notEqual(inode(at("sub/real")), before);
    assert.equal(fs.statSync(at("sub/real")).mode & 0o7777, 0o640);
    assert.equal(fs.readlinkSync(at("out")), "link");
    assert.ok(fs.readFileSync(at("sub/real")).equals(fs.readFileSync(at("source"))));
    assert.deepEqual(openFilesUnder(dir), [at("source")]);
  });

  it("is made where a symbolic link leads to that leads to nothing yet", async (t) => {
    const { at, source } = await setUp(t);
    fs.symlinkSync("real", at("out"));
    await convert([source], { filename: at("out") });
    assert.equal(fs.statSync(at("real")).size, BYTES);
  });

  it("is written into a file that has other names", async (t) => {
    const { at, source } = await setUp(t);
    fs.writeFileSync(at("out"), "old");
    fs.linkSync(at("out"), at("other"));
    const before = inode(at("out"));
    await convert([source], { filename: at("out") });
    assert.deepEqual([inode(at("out")), inode(at("other"))], [before, before]);
    assert.equal(fs.statSync(at("other")).size, BYTES);
  });

  it("is written into a file that another process has open", async (t) => {
    const { at, source } = await setUp(t);
    fs.writeFileSync(at("out"), Buffer.alloc(512, "old"));
    const other = await openBackend({ driver: "raw", file: { driver: "file", filename: at("out") } });
    const before = inode(at("out"));
    await convert([source], { filename: at("out") });
    assert.equal(inode(at("out")), before);
    await other.close();
  });

  it("is written to a descriptor's name where it is", async (t) => {
    const { dir, at, source } = await setUp(t);
    const fd = fs.openSync(at("out"), "w+");
    const before = inode(at("out"));
    await convert([source], { filename: `/proc/self/fd/${fd}` });
    assert.equal(inode(at("out")), before);
    assert.equal(fs.fstatSync(fd).size, BYTES);
    fs.closeSync(fd);
    assert.deepEqual(fs.readdirSync(dir).sort(), ["out", "source"]);
  });

  it("leaves what was there when it fails or is given up", async (t) => {
    const { dir, at, source } = await setUp(t);
    fs.writeFileSync(at("out"), "old");
    const abort = new AbortController();
    const onProgress = () => abort.abort(new Error("stop"));
    await assert.rejects(
      convert([source], { filename: at("out") }, { signal: abort.signal, onProgress }),
      /stop/,
    );
    assert.equal(fs.readFileSync(at("out"), "utf8"), "old");
    assert.deepEqual(fs.readdirSync(dir).sort(), ["out", "source"]);
    assert.deepEqual(openFilesUnder(dir), [at("source")]);
  });

  it("takes over what a killed process left", async (t) => {
    const { dir, at, source } = await setUp(t);
    fs.writeFileSync(at(".out.bdrv-part"), Buffer.alloc(2 * BYTES, "half"));
    await convert([source], { filename: at("out") });
    assert.ok(fs.readFileSync(at("out")).equals(fs.readFileSync(at("source"))));
    assert.deepEqual(fs.readdirSync(dir).sort(), ["out", "source"]);
  });

  it("follows no link that somebody put where it is made", async (t) => {
    const { at, source } = await setUp(t);
    fs.writeFileSync(at("victim"), "precious");
    fs.symlinkSync("victim", at(".out.bdrv-part"));
    fs.writeFileSync(at("out"), "old");
    await convert([source], { filename: at("out") });
    fs.linkSync(at("victim"), at(".other.bdrv-part"));
    await convert([source], { filename: at("other") });
    assert.equal(fs.readFileSync(at("victim"), "utf8"), "precious");
    for (const name of ["out", "other"]) assert.equal(fs.statSync(at(name)).size, BYTES);
  });

  it("with a name as long as names may be", async (t) => {
    const { dir, at, source } = await setUp(t);
    const name = "n".repeat(255);
    await convert([source], { filename: at(name) });
    assert.deepEqual(fs.readdirSync(dir).sort(), [name, "source"]);
  });

  it("that lost its place to another process is not given its name", async (t) => {
    const { dir, at, source } = await setUp(t);
    const onProgress = () => {
      fs.rmSync(at(".out.bdrv-part"), { force: true });
      fs.writeFileSync(at(".out.bdrv-part"), "another's");
    };
    await assert.rejects(
      convert([source], { filename: at("out") }, { onProgress }),
      /Another process has replaced/,
    );
    assert.deepEqual(fs.readdirSync(dir).sort(), [".out.bdrv-part", "source"]);
  });
});

describe("the command line", () => {
  it("create and dd too give names at the end, and say no word of it", async (t) => {
    const { dir, at } = await setUp(t);
    const seen: string[] = [];
    const rename = fs.renameSync;
    t.mock.method(fs, "renameSync", (from: string, to: string) => {
      seen.push(`${path.basename(from)} ${path.basename(to)}`);
      rename(from, to);
    });
    const quiet = { stdout: "", stderr: "", exitCode: 0 };
    assert.deepEqual(await runOurs(["create", "-q", "-f", "qcow2", "new", "1M"], dir), quiet);
    assert.deepEqual(await runOurs(["dd", "-f", "raw", "-O", "raw", "if=source", "of=copy"], dir), quiet);
    assert.deepEqual(seen, [".new.bdrv-part new", ".copy.bdrv-part copy"]);
    assert.equal(fs.statSync(at("copy")).size, BYTES);
  });
});

describe("staging", () => {
  it("leaves a file alone that another one makes", (t) => {
    const dir = tempDir(t);
    const name = path.join(dir, "new");
    const one = new Staging();
    fs.closeSync(one.create(name, () => false));
    const other = new Staging();
    assert.throws(
      () =>
        other.create(name, () => {
          throw new Error("locked");
        }),
      /locked/,
    );
    other.discard();
    one.commit();
    assert.deepEqual(fs.readdirSync(dir), ["new"]);
  });
});
