/** Opening: names, options, probing, backing chains, the gate, references, and that a failure leaves nothing open. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { describe, it, type TestContext } from "node:test";
import { AioContext } from "../../src/block/aio-context.ts";
import { BlockBackend } from "../../src/block/backend.ts";
import { findDriver, registerDriver, unregisterDriver } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import { unrefNode } from "../../src/block/graph.ts";
import { type ExternalReference, openNode } from "../../src/block/open.ts";
import { type NestedOptions, parseKeyValues } from "../../src/block/options.ts";
import { memoryDriver, openBackend, requestFor } from "../support/graph.ts";
import { answersOfOurs, answersOfQemu } from "../support/requests.ts";
import { openFilesUnder, sparseFile, tempDir } from "../support/temp.ts";
import { missing, mustRun, run } from "../support/tools.ts";

const noOracle = { skip: findDriver("qcow2") ? missing("qemu-img") : "there is no qcow2 driver" };

function qcow2(dir: string, name: string, ...args: string[]): string {
  mustRun("qemu-img", ["create", "-q", "-f", "qcow2", "-u", ...args, path.join(dir, name), "1M"]);
  return path.join(dir, name);
}

describe("ways to name an image", () => {
  it("a filename, options, json: and key=values open the same", async (test) => {
    const filename = sparseFile(tempDir(test), "a,b.raw", 4096);
    const nested = { driver: "raw", file: { driver: "file", filename } };
    const keyValues = `driver=raw,file.driver=file,file.filename=${filename.replaceAll(",", ",,")}`;
    const requests = [
      requestFor(filename),
      requestFor(`file:${filename}`),
      requestFor(nested),
      requestFor(`json:${JSON.stringify(nested)}`),
      requestFor(
        `json:${JSON.stringify({ driver: "raw", "file.driver": "file", "file.filename": filename })}`,
      ),
      { ...requestFor({}), options: parseKeyValues(keyValues) },
    ];
    for (const request of requests) {
      await using image = await BlockBackend.open(request, {}, new AioContext("test"));
      assert.equal(await image.getLength(), 4096);
      assert.equal(image.node.filename, filename);
      assert.deepEqual([image.node.driver.formatName, image.node.file?.formatName], ["raw", "file"]);
    }
  });

  it("options beside a json: name go first", async (test) => {
    const filename = sparseFile(tempDir(test), "a", 4096);
    const name = `json:${JSON.stringify({ driver: "raw", size: 512, file: { filename } })}`;
    const request = { ...requestFor(name), options: new Map([["size", 1024]]) };
    await using image = await BlockBackend.open(request, {}, new AioContext("test"));
    assert.equal(await image.getLength(), 1024);
  });

  it("a name with a colon behind a slash is a plain file", async (test) => {
    const dir = tempDir(test);
    const filename = sparseFile(dir, "nbd:x", 512);
    await using image = await openBackend({ driver: "raw", file: { filename } });
    assert.equal(await image.getLength(), 512);
    await using byName = await openBackend(filename);
    assert.equal(await byName.getLength(), 512);
  });
});

describe("what can't be opened is refused in qemu's words", noOracle, () => {
  const cases: readonly ((file: string) => NestedOptions)[] = [
    () => ({}),
    () => ({ driver: "bogus" }),
    () => ({ driver: "raw" }),
    () => ({ driver: "file" }),
    () => ({ driver: "file", filename: "/nonexistent/a" }),
    () => ({ driver: "raw", file: { driver: "file", filename: "/nonexistent/a" } }),
    () => ({ driver: "file", filename: "/" }),
    (filename) => ({ driver: "raw", file: { driver: "file", filename }, bogus: 1 }),
    (filename) => ({ driver: "raw", file: { driver: "file", filename, bogus: 1 } }),
    (filename) => ({ driver: "raw", file: { driver: "bogus", filename } }),
    () => ({ driver: "raw", file: "bogus" }),
    (filename) => ({ driver: "raw", file: { filename }, offset: "x" }),
    (filename) => ({ driver: "raw", file: { filename }, "read-only": "x" }),
    (filename) => ({ driver: "raw", file: { filename }, discard: "x" }),
    (filename) => ({ driver: "raw", file: { filename }, "detect-zeroes": "x" }),
    (filename) => ({ driver: "raw", file: { filename }, "detect-zeroes": "unmap", discard: "ignore" }),
    (filename) => ({ driver: "raw", file: { filename }, "node-name": "1a" }),
    (filename) => ({ driver: "raw", file: { filename }, "node-name": "a".repeat(32) }),
    (filename) => ({ driver: "raw", file: { filename }, backing: { driver: "null-co" } }),
    (filename) => ({ driver: "raw", "node-name": "a", file: { filename, "node-name": "a" } }),
    (filename) => ({ driver: "qcow2", file: { filename } }),
    (filename) => ({ driver: "compress", file: { driver: "raw", file: { filename } } }),
    () => ({ driver: "compress" }),
    () => ({ driver: "null-co", "latency-ns": -1 }),
  ];
  for (const make of cases) {
    it(JSON.stringify(make("FILE")), async (test) => {
      const filename = sparseFile(tempDir(test), "a", 4096);
      const options = make(filename);
      assert.deepEqual(await answersOfOurs(options, []), answersOfQemu(options, []));
    });
  }

  for (const name of [
    "bogus:x",
    "nonexistent",
    "",
    "blkdebug:x",
    "null-co:x",
    "json:[]",
    "file:nonexistent",
  ]) {
    it(`the name ${JSON.stringify(name)}`, async () => {
      const { stderr } = run("qemu-img", ["info", name]);
      const opening = openBackend(name, { flags: { readOnly: true } });
      const ours = await opening.then(
        () => "opened",
        (error: BlockError) => error.message,
      );
      assert.equal(`qemu-img: Could not open '${name}': ${ours}\n`, stderr);
    });
  }
});

describe("probing", noOracle, () => {
  it("finds the format by its header, and raw where there is none", async (test) => {
    const dir = tempDir(test);
    const names = [
      qcow2(dir, "a"),
      sparseFile(dir, "b", 4096),
      sparseFile(dir, "empty", 0),
      sparseFile(dir, "c.qcow2", 512),
    ];
    const found: string[] = [];
    for (const name of names) {
      await using image = await openBackend(name);
      found.push(image.node.driver.formatName);
    }
    assert.deepEqual(found, ["qcow2", "raw", "raw", "raw"]);
  });

  it("asks every format, and the surest wins", async (test) => {
    const filename = sparseFile(tempDir(test), "a", 4096);
    const seen: number[] = [];
    registerDriver({
      formatName: "mine",
      kind: "format",
      options: {},
      probe: (head) => {
        seen.push(head.length);
        return 2;
      },
      async open(co, { openFileChild }) {
        const file = await openFileChild(co);
        return {
          pread: (reader, offset, iov) => file.pread(reader, offset, iov),
          getLength: async () => 512,
        };
      },
    });
    test.after(() => unregisterDriver("mine"));
    await using image = await openBackend(filename, { flags: { readOnly: true } });
    assert.equal(image.node.driver.formatName, "mine");
    assert.deepEqual(seen, [512]);
  });

  it("is not done for what stands below a format", async (test) => {
    const filename = qcow2(tempDir(test), "a");
    await using image = await openBackend({ driver: "raw", file: { filename } });
    assert.equal(image.node.file?.formatName, "file");
  });
});

describe("backing chains", noOracle, () => {
  const chainOf = (image: BlockBackend) => {
    const names: string[] = [];
    for (let node: BlockBackend["node"] | undefined = image.node; node; node = node.backing?.node)
      names.push(path.basename(node.filename));
    return names;
  };

  it("are followed by names relative to the overlay, from any directory", async (test) => {
    const dir = tempDir(test);
    fs.mkdirSync(path.join(dir, "sub"));
    sparseFile(dir, "base", 2 ** 20);
    qcow2(dir, "mid", "-b", "base", "-F", "raw");
    const top = qcow2(dir, "sub/top", "-b", "../mid", "-F", "qcow2");
    {
      await using image = await openBackend(top);
      assert.deepEqual(chainOf(image), ["top", "mid", "base"]);
      assert.ok(image.node.backing?.node.readOnly, "what lies below is only read");
    }
    await using link = await openBackend(
      `json:${JSON.stringify({ driver: "qcow2", file: { filename: top } })}`,
    );
    assert.deepEqual(chainOf(link), ["top", "mid", "base"]);
  });

  it("are not followed where the caller says so, and are another where the caller names it", async (test) => {
    const dir = tempDir(test);
    sparseFile(dir, "base", 2 ** 20);
    const other = sparseFile(dir, "other", 2 ** 20);
    const filename = qcow2(dir, "top", "-b", "base", "-F", "raw");
    {
      await using none = await openBackend(filename, { flags: { noBacking: true } });
      assert.equal(none.node.backing, undefined);
    }
    for (const backing of [null, ""]) {
      await using without = await openBackend({ driver: "qcow2", file: { filename }, backing });
      assert.equal(without.node.backing, undefined);
    }
    await using another = await openBackend({
      driver: "qcow2",
      file: { filename },
      backing: { driver: "raw", file: { filename: other } },
    });
    assert.deepEqual(chainOf(another).slice(1), ["other"]);
    assert.match(another.node.filename, /^json:/);
  });

  for (const [what, links] of [
    ["of one", [["a", "a"]]],
    [
      "of two",
      [
        ["a", "b"],
        ["b", "a"],
      ],
    ],
    [
      "of three",
      [
        ["a", "b"],
        ["b", "c"],
        ["c", "a"],
      ],
    ],
    ["by another name", [["a", "./a"]]],
  ] as const) {
    it(`that go in a circle are refused: ${what}`, async (test) => {
      const dir = tempDir(test);
      for (const [name, backing] of links) qcow2(dir, name, "-b", backing, "-F", "qcow2");
      await assert.rejects(openBackend(path.join(dir, "a")), { name: "BlockError" });
      assert.deepEqual(openFilesUnder(dir), []);
    });
  }

  it("may be long", async (test) => {
    const dir = tempDir(test);
    sparseFile(dir, "0", 2 ** 20);
    for (let n = 1; n <= 40; n++) qcow2(dir, String(n), "-b", String(n - 1), "-F", n === 1 ? "raw" : "qcow2");
    await using image = await openBackend(path.join(dir, "40"));
    assert.equal(chainOf(image).length, 41);
    assert.deepEqual(await image.read(5, 3), new Uint8Array(3));
  });

  it("that lead nowhere are told with the name of what is missing, and leave nothing open", async (test) => {
    const dir = tempDir(test);
    const top = qcow2(dir, "top", "-b", "gone", "-F", "raw");
    await assert.rejects(openBackend(top), {
      message: `Could not open backing file: Could not open '${dir}/gone': No such file or directory`,
      errno: "ENOENT",
    });
    assert.deepEqual(openFilesUnder(dir), []);
  });
});

describe("the open gate", noOracle, () => {
  /** A chain of three and an image with a data file; and a gate that notes, and refuses `refuse`. */
  function gated(test: TestContext, refuse = "nothing") {
    const dir = tempDir(test);
    sparseFile(dir, "base", 2 ** 20);
    qcow2(dir, "mid", "-b", "base", "-F", "raw");
    qcow2(dir, "top", "-b", "mid", "-F", "qcow2");
    mustRun("qemu-img", [
      "create",
      "-q",
      "-f",
      "qcow2",
      "-o",
      `data_file=${dir}/data`,
      path.join(dir, "split"),
      "1M",
    ]);
    const asked: string[] = [];
    const gate = async ({ kind, filename, from }: ExternalReference) => {
      asked.push(
        `${kind} ${path.basename(filename)} of ${path.basename(from.exactFilename || from.filename)}`,
      );
      if (path.basename(filename) === refuse) throw new BlockError("EPERM", `'${filename}' is not for you`);
    };
    return {
      dir,
      asked,
      open: (name: string) => openBackend(path.join(dir, name), { environment: { gate } }),
    };
  }

  it("is asked for every file that an image names, and for none that the caller names", async (test) => {
    const { asked, open } = gated(test);
    await using image = await open("top");
    assert.deepEqual(asked, ["backing file mid of top", "backing file base of mid"]);
    await using split = await open("split");
    assert.equal(asked.length, 3);
    assert.match(asked[2] ?? "", /^data file data of/);
    assert.ok(image.isOpen && split.isOpen);
  });

  for (const [name, refuse] of [
    ["top", "mid"],
    ["top", "base"],
    ["split", "data"],
  ] as const) {
    it(`refuses ${refuse} of ${name} before it is opened`, async (test) => {
      const { dir, open } = gated(test, refuse);
      fs.rmSync(path.join(dir, refuse));
      await assert.rejects(open(name), { message: /is not for you$/, errno: "EPERM" });
      assert.deepEqual(openFilesUnder(dir), []);
    });
  }
});

describe("node names and references", () => {
  it("a node that is open already is found by its name, and kept open by both", async (test) => {
    const context = new AioContext("test");
    const memory = memoryDriver(test, "memory", 4096);
    const one = await openBackend(
      { driver: "raw", file: { driver: "memory", "node-name": "disk" } },
      { context },
    );
    const two = await openBackend({ driver: "raw", file: "disk" }, { context });
    await one.write(0, Uint8Array.of(42));
    assert.deepEqual(await two.read(0, 1), Uint8Array.of(42));
    await one.close();
    assert.equal(memory.ranges("close").length, 0);
    await two.close();
    assert.equal(memory.ranges("close").length, 1);
    assert.equal(context.nodes.size, 0);
  });

  it("a name may be given once at a time", async (test) => {
    const context = new AioContext("test");
    memoryDriver(test, "memory", 4096);
    const open = () => openBackend({ driver: "memory", "node-name": "disk" }, { context });
    const first = await open();
    await assert.rejects(open(), { message: "Duplicate nodes with node-name='disk'", errno: "EINVAL" });
    await first.close();
    await (await open()).close();
  });

  it("a reference with options beside it is refused", async (test) => {
    const context = new AioContext("test");
    memoryDriver(test, "memory", 4096);
    await using disk = await openBackend({ driver: "memory", "node-name": "disk" }, { context });
    const options = { driver: "raw", file: "disk", "file.driver": "memory" };
    await assert.rejects(
      openBackend(options, { context }),
      /^BlockError: Cannot reference an existing block device/,
    );
    assert.equal(disk.node.refCount, 1);
  });

  it("nodes that nobody named get names of their own", async (test) => {
    memoryDriver(test, "memory", 4096);
    await using image = await openBackend({ driver: "raw", file: { driver: "memory" } });
    const names = [image.node.nodeName, image.node.file?.node.nodeName];
    assert.ok(names.every((name) => name?.startsWith("#block")));
    assert.notEqual(names[0], names[1]);
  });
});

describe("an open that fails", () => {
  const steps: readonly (readonly [string, (fail: () => never) => object, RegExp])[] = [
    [
      "in the driver's open",
      (fail) => ({
        get pread() {
          return fail();
        },
      }),
      /on purpose/,
    ],
    ["in getLength", (fail) => ({ getLength: async () => fail() }), /on purpose/],
    ["in limits", (fail) => ({ limits: () => fail() }), /on purpose/],
  ];
  for (const [where, broken, message] of steps) {
    it(`${where} closes what was open below, and forgets the node`, async (test) => {
      const dir = tempDir(test);
      const filename = sparseFile(dir, "a", 4096);
      const context = new AioContext("test");
      registerDriver({
        formatName: "broken",
        kind: "format",
        options: {},
        async open(co, { openFileChild }) {
          await openFileChild(co);
          const fail = () => {
            throw new BlockError("EIO", "on purpose");
          };
          return { ...broken(fail) };
        },
      });
      test.after(() => unregisterDriver("broken"));
      await assert.rejects(openBackend({ driver: "broken", file: { filename } }, { context }), message);
      assert.deepEqual(openFilesUnder(dir), []);
      assert.equal(context.nodes.size, 0);
      assert.ok(context.graph.tryEnter(), "the graph lock is free");
      context.graph.leave();
      await context.run(async () => {});
    });
  }

  it("at an unknown option, after the driver's open, closes it", async (test) => {
    const dir = tempDir(test);
    const filename = sparseFile(dir, "a", 4096);
    const context = new AioContext("test");
    for (const options of [
      { driver: "raw", bogus: 1, file: { filename } },
      { driver: "raw", file: { driver: "file", filename, bogus: 1 } },
      { driver: "raw", offset: 8192, file: { filename } },
      { driver: "blkdebug", align: 3, image: { driver: "file", filename } },
    ])
      await assert.rejects(openBackend(options, { context }), { name: "BlockError" });
    assert.deepEqual(openFilesUnder(dir), []);
    assert.equal(context.nodes.size, 0);
  });

  it("while probing, by an error of the file, closes the file", async (test) => {
    const dir = tempDir(test);
    const filename = sparseFile(dir, "a", 4096);
    const context = new AioContext("test");
    const file = {
      driver: "blkdebug",
      image: { driver: "file", filename },
      "inject-error": [{ event: "none" }],
    };
    await assert.rejects(openBackend({ file }, { context }), {
      message: "Could not read image for determining its format: Input/output error",
    });
    assert.deepEqual(openFilesUnder(dir), []);
    assert.equal(context.nodes.size, 0);
  });

  it("by a permission that another denies closes what it opened", async (test) => {
    const context = new AioContext("test");
    memoryDriver(test, "memory", 4096);
    await using owner = await openBackend(
      { driver: "memory", "node-name": "disk" },
      { context, backend: { perm: { used: 1, shared: 1 } } },
    );
    await assert.rejects(
      openBackend({ driver: "raw", file: "disk" }, { context }),
      /Permission conflict on node 'disk'/,
    );
    assert.deepEqual([...context.nodes.keys()], ["disk"]);
    assert.equal(owner.node.refCount, 1);
  });
});

describe("reopening", () => {
  it("switches everything but backing files between read-only and read-write", async (test) => {
    const filename = sparseFile(tempDir(test), "a", 4096);
    await using image = await openBackend(
      { driver: "raw", file: { filename } },
      { flags: { readOnly: true } },
    );
    await assert.rejects(image.write(0, Uint8Array.of(1)), { errno: "EPERM" });
    await image.reopen({ readOnly: false });
    assert.ok(!image.node.readOnly && !image.node.file?.node.readOnly);
    await image.write(0, Uint8Array.of(1));
    await image.reopen({ readOnly: true });
    assert.ok(image.node.readOnly && image.node.file?.node.readOnly);
    await assert.rejects(image.write(0, Uint8Array.of(1)), { errno: "EPERM" });
    assert.deepEqual(await image.read(0, 1), Uint8Array.of(1));
    assert.equal(openFilesUnder(filename).length, 1);
  });

  it("leaves all as it was when one node refuses", async (test) => {
    const filename = sparseFile(tempDir(test), "a", 4096);
    const done: string[] = [];
    memoryDriver(test, "stubborn", 4096, () => ({
      reopen: async () => {
        throw new BlockError("EBUSY", "not now");
      },
    }));
    registerDriver({
      formatName: "pair",
      kind: "format",
      options: {},
      async open(co, { openChild, openFileChild }) {
        const file = await openFileChild(co);
        await openChild(co, "other", { metadata: true });
        return {
          pread: (reader, offset, iov) => file.pread(reader, offset, iov),
          pwrite: (reader, offset, iov) => file.pwrite(reader, offset, iov),
          getLength: (reader) => file.getLength(reader),
          reopen: async () => ({
            commit: () => void done.push("commit"),
            abort: () => void done.push("abort"),
          }),
        };
      },
    });
    test.after(() => unregisterDriver("pair"));
    const options = { driver: "pair", file: { driver: "file", filename }, other: { driver: "stubborn" } };
    await using image = await openBackend(options);
    await assert.rejects(image.reopen({ readOnly: true }), /not now/);
    assert.ok(!done.includes("commit"));
    for (const node of image.node.context.nodes.values()) assert.ok(!node.readOnly, node.nodeName);
    await image.write(0, Uint8Array.of(5));
    assert.deepEqual(await image.read(0, 1), Uint8Array.of(5));
    assert.equal(openFilesUnder(filename).length, 1);
  });

  it("to what it is already does nothing", async (test) => {
    const memory = memoryDriver(test, "memory", 4096);
    await using image = await openBackend({ driver: "memory" });
    memory.calls.length = 0;
    await image.reopen({ readOnly: false });
    assert.deepEqual(memory.calls, []);
  });
});

describe("an open in a coroutine", () => {
  it("and one from the main loop give the same", async (test) => {
    const context = new AioContext("test");
    memoryDriver(test, "memory", 1000);
    const request = requestFor({ driver: "raw", file: { driver: "memory" } });
    await context.run(async (main) => {
      const node = await openNode(main, request);
      assert.equal(node.totalSectors, 2);
      await unrefNode(main, node);
    });
    assert.equal(context.nodes.size, 0);
  });
});
