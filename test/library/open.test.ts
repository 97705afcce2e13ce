/** `open` as users of the library call it: names, typed options, warnings, the gate, signals, contexts. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import { allDrivers } from "../../src/block/driver.ts";
import {
  AioContext,
  BlockBackend,
  BlockError,
  denyAll,
  type ExternalReference,
  MiB,
  open,
  registerDriver,
  unregisterDriver,
} from "../../src/index.ts";
import { openFilesUnder, sparseFile, tempDir } from "../support/temp.ts";
import { missing, mustRun } from "../support/tools.ts";

const images = fileURLToPath(new URL("../../images/", import.meta.url));

test("what is known of a driver before it is loaded is right", async () => {
  for (const { formatName, kind, prefix, load } of allDrivers()) {
    const driver = await load();
    const found = { formatName, kind, prefix };
    assert.deepEqual(found, {
      formatName: driver.formatName,
      kind: driver.kind,
      prefix: driver.kind === "format" ? undefined : driver.prefix,
    });
  }
});

test("a name, a URL, a json: name and options open the same", async (t) => {
  const filename = sparseFile(tempDir(t), "a disk.img", MiB);
  fs.writeFileSync(filename, "same", { flag: "r+" });
  const names = [
    filename,
    `file:${filename}`,
    pathToFileURL(filename),
    `json:${JSON.stringify({ driver: "raw", file: { driver: "file", filename } })}`,
    { driver: "raw", file: { driver: "file", filename } },
    { driver: "raw", file: { filename } },
    { file: { driver: "file", filename } },
  ] as const;
  for (const name of names) {
    await using image = await open(name);
    assert.ok(image instanceof BlockBackend);
    assert.equal(Buffer.from(await image.read(0, 4)).toString(), "same");
    assert.equal(await image.getLength(), MiB);
    assert.equal(image.node.driver.formatName, "raw");
  }
});

test("it is read-only unless told otherwise", async (t) => {
  const filename = sparseFile(tempDir(t), "disk.img", MiB);
  {
    await using image = await open(filename, { format: "raw" });
    await assert.rejects(image.write(0, new Uint8Array(512)), { name: "BlockError", errno: "EPERM" });
  }
  {
    await using image = await open(filename, { format: "raw", writable: true });
    await image.write(0, new Uint8Array(512).fill(1), { fua: true });
  }
  assert.equal(fs.readFileSync(filename)[511], 1);
});

test("errors have qemu's words and leave nothing open", async (t) => {
  const dir = tempDir(t);
  const filename = sparseFile(dir, "disk.img", MiB);
  const failures: readonly (readonly [Promise<unknown>, Partial<BlockError>])[] = [
    [
      open(path.join(dir, "none")),
      { errno: "ENOENT", message: `Could not open '${dir}/none': No such file or directory` },
    ],
    [open(filename, { format: "qcow9" }), { errno: "EINVAL", message: "Unknown driver 'qcow9'" }],
    [
      open({ driver: "raw", file: { filename } }, { format: "raw" }),
      { errno: "EINVAL", message: "Cannot specify both 'driver' and 'format' options" },
    ],
    [
      open(filename, { format: "raw", writable: true, forceShare: true }),
      { errno: "EINVAL", message: "force-share=on can only be used with read-only images" },
    ],
    [open("nosuch:x"), { errno: "EINVAL", message: "Unknown protocol 'nosuch'" }],
    [open("json:{"), { errno: "EINVAL" }],
    [open({ driver: "raw", size: 5 * MiB, file: { filename } }), { errno: "EINVAL" }],
  ];
  for (const [opening, expected] of failures)
    await assert.rejects(opening, { name: "BlockError", ...expected });
  assert.deepEqual(openFilesUnder(dir), []);
});

test("a probed raw image warns before it is written, by process.emitWarning or as told", async (t) => {
  const filename = sparseFile(tempDir(t), "disk.img", MiB);
  const warnings: string[] = [];
  const told = await open(filename, { writable: true, onWarning: (message) => warnings.push(message) });
  await told.close();
  assert.match(
    warnings.join("\n"),
    /^Image format was not specified for '.*disk.img' and probing guessed raw/,
  );
  // Node's own listener would print it.
  const printers = process.listeners("warning");
  process.removeAllListeners("warning");
  t.after(() => {
    for (const printer of printers) process.on("warning", printer);
  });
  const emitted = new Promise<Error>((resolve) => process.once("warning", resolve));
  const image = await open(filename, { writable: true });
  await image.close();
  const warning = await emitted;
  assert.equal(warning.name, "BlockWarning");
  assert.equal(warning.message, warnings[0]);
});

test("an aborted signal opens nothing; one that aborts meanwhile closes again what was opened", async (t) => {
  const dir = tempDir(t);
  const filename = sparseFile(dir, "disk.img", MiB);
  const reason = new Error("enough");
  await assert.rejects(open(filename, { signal: AbortSignal.abort(reason) }), (error) => error === reason);
  const controller = new AbortController();
  const opening = open(filename, { signal: controller.signal });
  controller.abort(reason);
  await assert.rejects(opening, (error) => error === reason);
  assert.deepEqual(openFilesUnder(dir), []);
});

test("a signal ends a request that waits", async (t) => {
  const started = new Promise<void>((resolve) => {
    registerDriver({
      formatName: "never",
      kind: "protocol",
      options: {},
      open: async () => ({
        getLength: async () => MiB,
        pread: (co) =>
          new Promise((_, reject) => {
            co.signal?.addEventListener("abort", () => reject(co.signal?.reason));
            resolve();
          }),
      }),
    });
  });
  t.after(() => unregisterDriver("never"));
  await using image = await open('json:{"driver": "raw", "file": {"driver": "never"}}');
  const controller = new AbortController();
  const reading = image.read(0, 512, { signal: controller.signal });
  await started;
  controller.abort(new Error("enough"));
  await assert.rejects(reading, /enough/);
  await assert.rejects(image.read(0, 512, { signal: AbortSignal.abort(new Error("at once")) }), /at once/);
  assert.equal(image.requestsInFlight, 0);
});

test("images are strangers to each other, unless they share a context", async (t) => {
  const filename = sparseFile(tempDir(t), "disk.img", MiB);
  const options = { driver: "raw", "node-name": "disk", file: { filename } } as const;
  {
    await using one = await open(options);
    await using two = await open(options);
    assert.notEqual(one.node, two.node);
    assert.equal(one.node.nodeName, two.node.nodeName);
    await assert.rejects(open({ driver: "raw", file: "disk" }), { errno: "ENODEV" });
  }
  const context = new AioContext("shared");
  await using base = await open(options, { context });
  await using window = await open({ driver: "raw", offset: MiB / 2, file: "disk" }, { context });
  assert.equal(window.node.file?.node, base.node);
  assert.equal(await window.getLength(), MiB / 2);
  await assert.rejects(open(options, { context }), { message: "Duplicate nodes with node-name='disk'" });
});

test("cache modes, discard and detect-zeroes reach the nodes", async (t) => {
  const filename = sparseFile(tempDir(t), "disk.img", MiB);
  const flagsFor = async (options: Parameters<typeof open>[1]) => {
    await using image = await open(filename, { format: "raw", writable: true, ...options });
    return { ...image.node.flags, writethrough: image.writethrough };
  };
  assert.equal((await flagsFor({})).unmap, true);
  assert.equal((await flagsFor({ discard: "ignore" })).unmap, false);
  assert.equal((await flagsFor({ cache: "unsafe" })).noFlush, true);
  assert.equal((await flagsFor({ cache: "writethrough" })).writethrough, true);
  assert.equal((await flagsFor({ cache: "writeback" })).writethrough, false);
  const { detectZeroes } = await flagsFor({ detectZeroes: "unmap" });
  assert.equal(detectZeroes, "unmap");
  const wrong = "fast" as unknown as "none";
  await assert.rejects(open(filename, { cache: wrong }), { message: "Invalid cache option: fast" });
});

test("a file that an image names passes the gate, which may refuse it", {
  skip: missing("qemu-img"),
}, async (t) => {
  const dir = tempDir(t);
  const base = path.join(dir, "base.img");
  const top = path.join(dir, "top.qcow2");
  fs.writeFileSync(base, Buffer.alloc(MiB, 7));
  mustRun("qemu-img", ["create", "-q", "-f", "qcow2", "-b", "base.img", "-F", "raw", top]);
  {
    await using image = await open(top);
    assert.equal((await image.read(0, 1))[0], 7);
  }
  const seen: ExternalReference[] = [];
  {
    await using image = await open(top, { gate: async (reference) => void seen.push(reference) });
    assert.deepEqual(
      seen.map(({ kind, filename, from }) => [kind, filename, from.filename]),
      [["backing file", base, top]],
    );
    assert.equal(image.node.backing?.node.filename, base);
  }
  await assert.rejects(open(top, { gate: denyAll }), {
    errno: "EACCES",
    message: `Could not open backing file: The backing file '${base}' that the image names must not be opened`,
  });
  assert.deepEqual(openFilesUnder(dir), []);
  await using alone = await open(top, { gate: denyAll, backing: false });
  assert.equal((await alone.read(0, 1))[0], 0);
  await using other = await open({ driver: "qcow2", file: { filename: top }, backing: null });
  assert.equal((await other.read(0, 1))[0], 0);
});

test("an internal snapshot is shown by its id or name", async () => {
  const filename = path.join(images, "qemu-img-7.2-snapshots.qcow2");
  await using now = await open(filename);
  const snapshots = await now.run(async (co) => (await now.node.ops.listSnapshots?.(co)) ?? []);
  assert.ok(snapshots.length > 0);
  const digests = new Set<string>();
  for (const { name } of snapshots) {
    await using then = await open(filename, { snapshot: name });
    digests.add(Buffer.from(await then.read(0, 64 * 1024)).toString("base64"));
  }
  assert.equal(digests.size, snapshots.length);
  await assert.rejects(open(filename, { snapshot: "no such" }), BlockError);
});
