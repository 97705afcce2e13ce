/** The locks on open files: which bytes, when they change, and who keeps whom out; qemu-io and qemu-img are the other side. */

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { describe, it, type TestContext } from "node:test";
import { Perm } from "../../src/block/child.ts";
import { BlockError } from "../../src/block/errors.ts";
import { setEdgePerm } from "../../src/block/graph.ts";
import { type NestedOptions, parseKeyValues } from "../../src/block/options.ts";
import { createImage } from "../../src/jobs/create.ts";
import { posix } from "../../src/platform/posix.ts";
import { openBackend } from "../support/graph.ts";
import { holdWithQemuIo, lockedBytes, noLocks } from "../support/holders.ts";
import { openFilesUnder, tempDir } from "../support/temp.ts";
import { missing, mustRun, run } from "../support/tools.ts";

const skip = noLocks(os.tmpdir());
const noOracle = skip || missing("qemu-io") || missing("qemu-img");

/** With what an image is open that has tables of its own. */
const WRITING = [100, 101, 103, 201, 203];
const READING = [100, 201, 203];

/** A directory with a raw file and qcow2 images, base.qcow2 below mid.qcow2 below top.qcow2. */
function images(test: TestContext): (name: string) => string {
  const dir = tempDir(test);
  const at = (name: string) => path.join(dir, name);
  const create = (...args: string[]) => execFileSync("qemu-img", ["create", "-q", ...args], { cwd: dir });
  for (const name of ["r.raw", "s.raw"]) create("-f", "raw", name, "1M");
  create("-f", "qcow2", "base.qcow2", "1M");
  create("-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "mid.qcow2");
  create("-f", "qcow2", "-b", "mid.qcow2", "-F", "qcow2", "top.qcow2");
  create("-f", "qcow2", "-o", "data_file=data.raw", "ext.qcow2", "1M");
  return at;
}

function refused(message: string, filename: string): (error: unknown) => true {
  return (error) => {
    assert.ok(error instanceof BlockError);
    assert.equal(error.message, message);
    assert.equal(error.errno, "EAGAIN");
    assert.equal(error.hint, `Is another process using the image [${filename}]?`);
    assert.equal(error.lockedFile, filename);
    return true;
  };
}

describe("locks", { skip: noOracle }, () => {
  const cases: readonly (readonly [options: string, flags?: string])[] = [
    ["driver=raw,file.filename=r.raw"],
    ["driver=raw,file.filename=r.raw", "-r"],
    ["driver=raw,file.filename=r.raw,file.locking=off"],
    ["driver=raw,file.filename=r.raw,file.locking=on"],
    ["driver=raw,file.filename=r.raw", "-rU"],
    ["driver=file,filename=r.raw"],
    ["driver=raw,offset=512,file.filename=r.raw"],
    ["driver=raw,size=512,file.filename=r.raw", "-r"],
    ["driver=qcow2,file.filename=base.qcow2"],
    ["driver=qcow2,file.filename=base.qcow2", "-r"],
    ["driver=qcow2,file.filename=base.qcow2", "-rU"],
    ["driver=qcow2,file.filename=top.qcow2"],
    ["driver=qcow2,file.filename=top.qcow2", "-r"],
    ["driver=qcow2,file.filename=top.qcow2,backing.file.locking=off", "-r"],
    ["driver=qcow2,file.filename=ext.qcow2"],
    ["driver=qcow2,file.filename=ext.qcow2", "-r"],
    ["driver=copy-on-read,file.driver=qcow2,file.file.filename=top.qcow2"],
    ["driver=preallocate,file.filename=r.raw"],
    ["driver=qcow2,file.driver=preallocate,file.file.filename=base.qcow2"],
    [
      "driver=quorum,vote-threshold=1,children.0.driver=raw,children.0.file.filename=r.raw,children.1.driver=raw,children.1.file.filename=s.raw",
    ],
    ["driver=blklogwrites,file.filename=r.raw,log.filename=s.raw"],
    ["driver=blkdebug,image.filename=r.raw,take-child-perms.0=resize"],
    [
      "driver=blkdebug,image.filename=r.raw,take-child-perms.0=write-unchanged,unshare-child-perms.0=consistent-read",
    ],
    [
      "driver=raw,file.driver=blkdebug,file.image.filename=r.raw,file.unshare-child-perms.0=write-unchanged,file.unshare-child-perms.1=resize",
      "-r",
    ],
    [
      "driver=qcow2,file.driver=blkdebug,file.image.filename=base.qcow2,file.unshare-child-perms.0=consistent-read",
      "-r",
    ],
  ];

  it("are on the bytes on which qemu-io has them", async (test) => {
    const at = images(test);
    const files = fs.readdirSync(at("")).map(at);
    const locked = () => files.map((name) => [path.basename(name), lockedBytes(name)]);
    const inDirectory = process.cwd();
    process.chdir(at(""));
    test.after(() => process.chdir(inDirectory));
    for (const [options, flags = ""] of cases) {
      const letters = flags === "" ? [] : [flags];
      const theirs = await holdWithQemuIo(test, [...letters, "--image-opts", options], at(""));
      const expected = locked();
      await theirs.release();
      const given = Object.fromEntries(parseKeyValues(options, "file", () => {})) as NestedOptions;
      const backend = await openBackend(given, {
        flags: { readOnly: flags.includes("r"), forceShare: flags.includes("U") },
      });
      assert.deepEqual(locked(), expected, `${flags} ${options}`);
      await backend.close();
      assert.ok(
        locked().every(([, bytes]) => bytes?.length === 0),
        `${options}: nothing is left`,
      );
    }
  });

  it("follow the image when it is opened in another way", async (test) => {
    const at = images(test);
    await using backend = await openBackend(at("top.qcow2"));
    assert.deepEqual(lockedBytes(at("top.qcow2")), WRITING);
    for (const [changes, expected] of [
      [{ readOnly: true }, READING],
      [{ direct: true }, READING],
      [{ readOnly: false }, WRITING],
      [{ direct: false }, WRITING],
    ] as const) {
      await backend.reopen(changes);
      assert.deepEqual(lockedBytes(at("top.qcow2")), expected, JSON.stringify(changes));
      assert.deepEqual(lockedBytes(at("mid.qcow2")), READING);
    }
    assert.equal(openFilesUnder(at("")).length, 3);
  });

  it("are taken for a resize only when there is one", async (test) => {
    const filename = images(test)("r.raw");
    await using backend = await openBackend(filename);
    assert.deepEqual(lockedBytes(filename), [100, 101]);
    await backend.truncate(2 ** 21);
    assert.deepEqual(lockedBytes(filename), [100, 101, 103]);
  });

  it("stay as they were where a change is refused, and after that all goes on", async (test) => {
    const at = images(test);
    await using reader = await openBackend(at("base.qcow2"), { flags: { readOnly: true } });
    const other = await holdWithQemuIo(test, ["-r", "base.qcow2"], at(""));
    const message = 'Failed to get "write" lock';
    await assert.rejects(reader.reopen({ readOnly: false }), refused(message, at("base.qcow2")));
    assert.ok(reader.node.readOnly);
    await other.release();
    assert.deepEqual(lockedBytes(at("base.qcow2")), READING);
    assert.equal((await reader.read(0, 512)).length, 512);
    await reader.reopen({ readOnly: false });
    assert.deepEqual(lockedBytes(at("base.qcow2")), WRITING);
    await reader.write(0, new Uint8Array(512));
  });

  it("are given back where another permission of the same change is refused", async (test) => {
    const at = images(test);
    await using backend = await openBackend(at("r.raw"), { flags: { readOnly: true } });
    const { root, context } = backend;
    const other = await holdWithQemuIo(
      test,
      ["--image-opts", `driver=blkdebug,image.filename=${at("r.raw")},unshare-child-perms.0=resize`],
      at(""),
    );
    const perm = { used: Perm.ConsistentRead | Perm.WriteUnchanged | Perm.Resize, shared: Perm.All };
    const change = () => context.run((main) => setEdgePerm(main, root, perm));
    await assert.rejects(change(), { message: "Block node is read-only" });
    const exclusive = { used: Perm.ConsistentRead | Perm.Resize, shared: Perm.ConsistentRead };
    await assert.rejects(
      context.run((main) => setEdgePerm(main, root, exclusive)),
      refused('Failed to get "resize" lock', at("r.raw")),
    );
    await other.release();
    assert.deepEqual(lockedBytes(at("r.raw")), [100]);
    assert.deepEqual(root.perm, { used: Perm.ConsistentRead, shared: Perm.All });
    await context.run((main) => setEdgePerm(main, root, exclusive));
    assert.deepEqual(lockedBytes(at("r.raw")), [100, 103, 201, 202, 203]);
  });

  it("of an open that fails are gone, with its descriptors", async (test) => {
    const at = images(test);
    const other = await holdWithQemuIo(test, ["base.qcow2"], at(""));
    await assert.rejects(openBackend(at("top.qcow2")), {
      message: 'Could not open backing file: Could not open backing file: Failed to get shared "write" lock',
    });
    assert.deepEqual(lockedBytes(at("top.qcow2")), []);
    assert.deepEqual(lockedBytes(at("mid.qcow2")), []);
    assert.deepEqual(openFilesUnder(at("")), []);
    await other.release();
  });

  it("keep out a second open in the same process too, unless that does without", async (test) => {
    const filename = images(test)("base.qcow2");
    await using first = await openBackend(filename);
    await assert.rejects(openBackend(filename), refused('Failed to get "write" lock', filename));
    await assert.rejects(
      openBackend(filename, { flags: { readOnly: true } }),
      refused('Failed to get shared "write" lock', filename),
    );
    await using shared = await openBackend(filename, { flags: { readOnly: true, forceShare: true } });
    await using unlocked = await openBackend({ driver: "qcow2", file: { filename, locking: "off" } });
    assert.equal(await shared.getLength(), await unlocked.getLength());
    assert.deepEqual(lockedBytes(filename), WRITING);
    assert.ok(first.isOpen);
  });

  it("that somebody holds for himself are told by their byte", async (test) => {
    const filename = images(test)("r.raw");
    const fd = fs.openSync(filename, "r+");
    test.after(() => fs.closeSync(fd));
    assert.ok(posix().ofdLock(fd, "write", 101, 1));
    await assert.rejects(openBackend(filename), { errno: "EAGAIN", message: "Failed to lock byte 101" });
    assert.deepEqual(lockedBytes(filename), [101]);
    await using reader = await openBackend(filename, { flags: { readOnly: true } });
    assert.deepEqual(lockedBytes(filename), [100, 101]);
    assert.ok(reader.isOpen);
  });

  it("keep an image from being made anew, and what is in it stays", async (test) => {
    const at = images(test);
    const environment = { gate: async () => {}, warn: () => {} };
    const create = (format: string, name: string) =>
      createImage({ filename: at(name), format, options: new Map([["size", 2 ** 20]]), environment });
    const before = fs.readFileSync(at("base.qcow2"));
    const reader = await holdWithQemuIo(test, ["-r", "base.qcow2"], at(""));
    for (const format of ["raw", "qcow2"])
      await assert.rejects(
        create(format, "base.qcow2"),
        refused('Failed to get "write" lock', at("base.qcow2")),
      );
    await reader.release();
    assert.deepEqual(fs.readFileSync(at("base.qcow2")), before);
    fs.writeFileSync(at("r.raw"), Buffer.alloc(2 ** 20, 7));
    const writer = await holdWithQemuIo(test, ["-f", "raw", "r.raw"], at(""));
    // qemu-img empties it before it finds out.
    await assert.rejects(create("qcow2", "r.raw"), refused('Failed to get shared "write" lock', at("r.raw")));
    assert.ok(fs.readFileSync(at("r.raw")).every((byte) => byte === 7));
    await create("raw", "r.raw");
    await writer.release();
    assert.ok(fs.readFileSync(at("r.raw")).every((byte) => byte === 0));
  });

  it("of ours keep qemu's tools out", async (test) => {
    const at = images(test);
    const tell = (tool: string, ...args: string[]) => run(tool, args).stderr;
    const hint = (name: string) => `Is another process using the image [${at(name)}]?\n`;
    {
      await using image = await openBackend(at("base.qcow2"));
      const info = tell("qemu-img", "info", at("base.qcow2"));
      assert.match(info, /Failed to get shared "write" lock\n/);
      assert.ok(info.endsWith(hint("base.qcow2")));
      assert.match(tell("qemu-io", "-c", "read 0 1", at("base.qcow2")), /Failed to get "write" lock\n/);
      assert.equal(tell("qemu-img", "info", "-U", at("base.qcow2")), "");
      await image.reopen({ readOnly: true });
      assert.equal(tell("qemu-img", "info", at("base.qcow2")), "");
      assert.match(tell("qemu-img", "resize", at("base.qcow2"), "2M"), /Failed to get "write" lock\n/);
    }
    assert.equal(tell("qemu-img", "resize", at("base.qcow2"), "2M"), "");
  });
});

describe("locks of a process", { skip: noOracle }, () => {
  /** A process that has an image open until it is told to end, or killed. */
  const holder = (filename: string) => {
    const url = (name: string) => JSON.stringify(new URL(`../../${name}`, import.meta.url).href);
    const source = `const { open } = await import(${url("src/index.ts")});
      await open(${JSON.stringify(filename)}, { writable: true });
      console.log("open");
      process.stdin.resume();`;
    return spawn(process.execPath, ["--import", "tsx", "--input-type=module", "-e", source]);
  };

  for (const signal of ["SIGKILL", "SIGTERM", "SIGINT"] as const)
    it(`are gone when it ends by ${signal}`, async (test) => {
      const filename = images(test)("base.qcow2");
      const child = holder(filename);
      await once(child.stdout, "data");
      assert.match(run("qemu-img", ["resize", filename, "2M"]).stderr, /Failed to get "write" lock/);
      child.kill(signal);
      await once(child, "close");
      mustRun("qemu-img", ["resize", filename, "2M"]);
      assert.deepEqual(lockedBytes(filename), []);
    });
});

describe("without locks", () => {
  it("who asks for them is warned, and all goes on", (test) => {
    const filename = path.join(tempDir(test), "image.raw");
    fs.writeFileSync(filename, Buffer.alloc(512));
    const url = new URL("../../src/index.ts", import.meta.url).href;
    const source = `const { open } = await import(${JSON.stringify(url)});
      const warnings = [];
      for (const locking of ["auto", "off", "on"]) {
        const file = { driver: "file", filename: ${JSON.stringify(filename)}, locking };
        const image = await open({ driver: "raw", file }, { onWarning: (text) => warnings.push(locking + ": " + text) });
        await image.read(0, 512);
        await image.close();
      }
      console.log(JSON.stringify(warnings));`;
    const args = ["--import", "tsx", "--input-type=module", "-e", source];
    const env = { ...process.env, BDRV_NO_FFI: "1" };
    assert.deepEqual(JSON.parse(execFileSync(process.execPath, args, { env, encoding: "utf8" })), [
      "on: File lock requested but OFD locking syscall is unavailable: the file is not locked",
    ]);
  });
});
