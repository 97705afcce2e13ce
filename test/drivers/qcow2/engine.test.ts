/** What an open qcow2 node does, beside qemu-img and qemu-io: mapping, growth, caches, corruption, requests that cross. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { describe, it, type TestContext } from "node:test";
import type { BlockBackend } from "../../../src/block/backend.ts";
import type { NestedOptions } from "../../../src/block/options.ts";
import { memoryDriver, openBackend } from "../../support/graph.ts";
import { random } from "../../support/random.ts";
import { tempDir } from "../../support/temp.ts";
import { missing, mustRun, run } from "../../support/tools.ts";

const KiB = 1024;
const MiB = 1024 * KiB;

function create(filename: string, options: string, size: number | string, ...more: string[]): void {
  const list = options === "" ? [] : ["-o", options];
  mustRun("qemu-img", ["create", "-q", "-f", "qcow2", ...list, ...more, filename, String(size)]);
}

function io(filename: string, ...commands: string[]): string {
  return mustRun("qemu-io", ["-f", "qcow2", ...commands.flatMap((command) => ["-c", command]), filename]);
}

function check(filename: string): void {
  const { stdout, stderr, code } = run("qemu-img", ["check", "-f", "qcow2", filename]);
  assert.equal(code, 0, stdout + stderr);
}

async function withImage<T>(
  what: string | NestedOptions,
  use: (image: BlockBackend) => Promise<T>,
  readOnly = false,
  message: (line: string) => void = () => {},
): Promise<T> {
  const options =
    typeof what === "string" ? { driver: "qcow2", file: { driver: "file", filename: what } } : what;
  const image = await openBackend(options, {
    flags: { unmap: true, readOnly },
    environment: { message, warn: message },
  });
  try {
    return await use(image);
  } finally {
    await image.close();
  }
}

/** The guest's content as qemu-img sees it. */
function contentByQemu(dir: string, filename: string): Buffer {
  const raw = path.join(dir, "oracle.raw");
  mustRun("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", filename, raw]);
  return fs.readFileSync(raw);
}

async function expectSameAsQemu(dir: string, filename: string): Promise<void> {
  const expected = contentByQemu(dir, filename);
  await withImage(
    filename,
    async (image) => {
      assert.equal(await image.getLength(), expected.length);
      // In steps that are no multiple of anything, so that all kinds of runs are cut.
      for (let offset = 0; offset < expected.length; ) {
        const bytes = Math.min(300_001, expected.length - offset);
        const got = await image.read(offset, bytes);
        assert.ok(expected.subarray(offset, offset + bytes).equals(got), `content from ${offset} on`);
        offset += bytes;
      }
    },
    true,
  );
}

/** Random data and zeroes in pieces, as a raw file. */
function makeRaw(filename: string, bytes: number, seed: number): void {
  const dice = random(seed);
  const data = Buffer.alloc(bytes);
  for (let at = 0; at < bytes; ) {
    const length = Math.min(dice.between(1, 200 * KiB), bytes - at);
    const kind = dice.below(3);
    if (kind === 1) data.fill(dice.bytes(64), at, at + length);
    if (kind === 2) data.set(dice.bytes(length), at);
    at += length;
  }
  fs.writeFileSync(filename, data);
}

const skip = missing("qemu-img") || missing("qemu-io");

describe("qcow2 images that qemu made read the same", { skip }, () => {
  const cases: readonly (readonly [options: string, ...convert: string[]])[] = [
    ...[512, 4096, 65536, 2097152].map((size) => [`cluster_size=${size}`] as const),
    ["compat=0.10"],
    ["extended_l2=on"],
    ["extended_l2=on,cluster_size=16k"],
    ["data_file=DIR/data"],
    ["data_file=DIR/data,data_file_raw=on"],
    ["", "-c"],
    ["compat=0.10,cluster_size=4k", "-c"],
    ["cluster_size=512", "-c"],
    ["cluster_size=2M", "-c"],
    ["compression_type=zstd", "-c"],
    ["compression_type=zstd,cluster_size=2M", "-c"],
    ["extended_l2=on", "-c"],
  ];
  for (const [options, ...convert] of cases) {
    it(`${options || "defaults"} ${convert.join(" ")}`, async (test) => {
      const dir = tempDir(test);
      const [raw, filename] = [path.join(dir, "in.raw"), path.join(dir, "image.qcow2")];
      makeRaw(raw, 4 * MiB + 512, 5);
      const list = options === "" ? [] : ["-o", options.replace("DIR", dir)];
      mustRun("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", ...convert, ...list, raw, filename]);
      await expectSameAsQemu(dir, filename);
    });
  }

  it("a chain of three with holes, zeroes and different lengths", async (test) => {
    const dir = tempDir(test);
    const [base, middle, top] = ["base", "middle", "top"].map((name) => path.join(dir, name)) as [
      string,
      string,
      string,
    ];
    create(base, "cluster_size=4k", "3M");
    io(base, "write -P 1 0 3M");
    create(middle, "extended_l2=on", "2M", "-b", base, "-F", "qcow2");
    io(middle, "write -P 2 100k 7k", "write -z 512k 64k", "write -z 700k 3k", "write -P 3 1M 200k");
    create(top, "compat=0.10", "4M", "-b", middle, "-F", "qcow2");
    io(top, "write -P 4 128k 1k", "write -P 5 3M 100k", "write -P 6 1100k 64k");
    await expectSameAsQemu(dir, top);
  });

  it("an internal snapshot's clusters are not written in place", async (test) => {
    const dir = tempDir(test);
    const filename = path.join(dir, "image.qcow2");
    create(filename, "cluster_size=4k", "2M");
    io(filename, "write -P 1 0 1M");
    mustRun("qemu-img", ["snapshot", "-c", "one", filename]);
    await withImage(filename, async (image) => {
      await image.write(3000, new Uint8Array(100_000).fill(2));
      await image.discard(512 * KiB, 64 * KiB);
      await image.writeZeroes(768 * KiB, 64 * KiB);
    });
    check(filename);
    await expectSameAsQemu(dir, filename);
    mustRun("qemu-img", ["snapshot", "-a", "one", filename]);
    io(filename, "read -P 1 0 1M");
    check(filename);
  });
});

describe("qcow2 growth", { skip }, () => {
  it("of the refcount table, with small clusters and wide refcounts", async (test) => {
    const dir = tempDir(test);
    const filename = path.join(dir, "image.qcow2");
    create(filename, "cluster_size=512,refcount_bits=64", "12M");
    const data = random(3).bytes(2 * MiB);
    await withImage(filename, async (image) => {
      // One table cluster covers 2 MiB of the file here.
      for (let offset = 0; offset < 12 * MiB; offset += data.length) await image.write(offset, data);
    });
    check(filename);
    await expectSameAsQemu(dir, filename);
    await withImage(filename, (image) => image.discard(MiB, 9 * MiB));
    check(filename);
    await withImage(filename, (image) => image.write(2 * MiB, data));
    check(filename);
    await expectSameAsQemu(dir, filename);
  });

  it("of the L1 table, up and down, keeps what is there and shows zeroes for the rest", async (test) => {
    const dir = tempDir(test);
    const filename = path.join(dir, "image.qcow2");
    create(filename, "cluster_size=512", "64k");
    await withImage(filename, async (image) => {
      await image.write(60_000, new Uint8Array(4000).fill(7));
      await image.truncate(40 * MiB);
      await image.write(39 * MiB, new Uint8Array(70_000).fill(8));
      await image.truncate(62 * KiB);
      await image.truncate(256 * KiB);
      const got = await image.read(60_000, 10_000);
      const end = 62 * KiB - 60_000;
      assert.ok(got.subarray(0, end).every((byte) => byte === 7));
      assert.ok(got.subarray(end).every((byte) => byte === 0));
    });
    check(filename);
    await expectSameAsQemu(dir, filename);
  });

  it("with preallocation, as qemu-img map sees it", async (test) => {
    const dir = tempDir(test);
    for (const mode of ["metadata", "falloc", "full"] as const) {
      const filename = path.join(dir, mode);
      create(filename, "cluster_size=4k", "100k");
      io(filename, "write -P 5 0 100k");
      await withImage(filename, (image) => image.truncate(6 * MiB, mode));
      check(filename);
      const blocks = fs.statSync(filename).blocks * 512;
      assert.ok(mode === "metadata" ? blocks < MiB : blocks >= 6 * MiB, `${mode} takes ${blocks} bytes`);
      io(filename, "read -P 5 0 100k", `read -P 0 100k ${6 * MiB - 100 * KiB}`);
    }
  });
});

describe("qcow2 compressed writes", { skip }, () => {
  it("share clusters, end with a short one, and fall back where nothing is gained", async (test) => {
    const dir = tempDir(test);
    for (const type of ["zlib", "zstd"]) {
      const filename = path.join(dir, type);
      create(filename, `compression_type=${type}`, 5 * 64 * KiB + 1024);
      const noise = random(1).bytes(64 * KiB);
      await withImage(filename, async (image) => {
        await image.write(0, new Uint8Array(4 * 64 * KiB).fill(1), { compressed: true });
        await image.write(4 * 64 * KiB, noise, { compressed: true });
        await image.write(5 * 64 * KiB, new Uint8Array(1024).fill(2), { compressed: true });
      });
      check(filename);
      const map = JSON.parse(mustRun("qemu-img", ["map", "--output=json", filename])) as {
        start: number;
        offset?: number;
      }[];
      assert.ok(
        map.find(({ start }) => start === 4 * 64 * KiB)?.offset !== undefined,
        "noise is stored plainly",
      );
      assert.ok(fs.statSync(filename).size < 8 * 64 * KiB);
      await expectSameAsQemu(dir, filename);
    }
  });

  it("are refused as qemu refuses them", async (test) => {
    const filename = path.join(tempDir(test), "image");
    create(filename, "", "1M");
    await withImage(filename, async (image) => {
      const cluster = new Uint8Array(64 * KiB).fill(1);
      await image.write(0, cluster, { compressed: true });
      await assert.rejects(image.write(0, cluster, { compressed: true }), { errno: "EIO" });
      await assert.rejects(image.write(64 * KiB, cluster.subarray(0, 512), { compressed: true }), {
        errno: "EINVAL",
      });
      await image.write(100, cluster.subarray(0, 1000).fill(9));
      assert.equal((await image.read(99, 2))[0], 1);
      assert.equal((await image.read(99, 2))[1], 9);
    });
    check(filename);
  });

  it("read by small pieces decompress once, and not what was there before", async (test) => {
    const filename = path.join(tempDir(test), "image");
    create(filename, "", "1M");
    const memory = memoryDriver(test, "counted", 0);
    memory.data = new Uint8Array(fs.readFileSync(filename));
    await withImage({ driver: "qcow2", file: { driver: "counted" } }, async (image) => {
      await image.write(0, new Uint8Array(64 * KiB).fill(1), { compressed: true });
      memory.calls.length = 0;
      for (let at = 0; at < 64 * KiB; at += 4096) assert.equal((await image.read(at, 4096))[0], 1);
      assert.equal(memory.ranges("pread").length, 1);
      await image.discard(0, 64 * KiB);
      await image.flush();
      await image.write(0, new Uint8Array(64 * KiB).fill(2), { compressed: true });
      assert.equal((await image.read(100, 1))[0], 2);
    });
  });
});

describe("qcow2 requests that cross", { skip }, () => {
  it("a cluster that is being read is not given to another write", async (test) => {
    const { memory, image } = await inMemory(test);
    await image.write(0, new Uint8Array(64 * KiB).fill(1));
    await image.flush();
    let letGo: () => void = () => {};
    const held = new Promise<void>((resolve) => {
      letGo = resolve;
    });
    memory.hook = (op, _, __, bytes) => (op === "pread" && bytes === 64 * KiB ? held : undefined);
    const reading = image.read(0, 64 * KiB);
    await image.discard(0, 64 * KiB);
    const writing = image.write(512 * KiB, new Uint8Array(64 * KiB).fill(2));
    for (let turn = 0; turn < 200; turn++) await new Promise(setImmediate);
    letGo();
    assert.ok((await reading).every((byte) => byte === 1));
    await writing;
    assert.ok((await image.read(512 * KiB, 64 * KiB)).every((byte) => byte === 2));
    await image.close();
  });

  it("writes to one new cluster allocate it once", async (test) => {
    const { memory, image } = await inMemory(test);
    const before = Math.ceil(memory.data.length / (64 * KiB));
    await Promise.all(
      Array.from({ length: 16 }, (_, index) =>
        image.write(index * 4096, new Uint8Array(4096).fill(index + 1)),
      ),
    );
    const got = await image.read(0, 64 * KiB);
    for (let index = 0; index < 16; index++) assert.equal(got[index * 4096 + 5], index + 1);
    await image.flush();
    // The data cluster and its L2 table.
    assert.equal(memory.data.length / (64 * KiB) - before, 2);
    await image.close();
  });

  it("a long write is one allocation and one write of data", async (test) => {
    const { memory, image } = await inMemory(test);
    await image.write(0, new Uint8Array(512).fill(1));
    memory.calls.length = 0;
    await image.write(64 * KiB, new Uint8Array(768 * KiB).fill(2));
    assert.deepEqual(
      memory.ranges("pwrite").map(([, bytes]) => bytes),
      [768 * KiB],
    );
    assert.equal((await image.blockStatus(64 * KiB, MiB)).bytes, 768 * KiB);
    await image.close();
  });
});

async function inMemory(test: TestContext) {
  const filename = path.join(tempDir(test), "image");
  create(filename, "", "1M");
  const memory = memoryDriver(test, "memory", 0);
  memory.data = new Uint8Array(fs.readFileSync(filename));
  const image = await openBackend(
    { driver: "qcow2", file: { driver: "memory" } },
    { flags: { unmap: true } },
  );
  return { memory, image };
}

describe("qcow2 lazy refcounts", { skip }, () => {
  it("mark the image dirty before the first change, and clean when it is closed", async (test) => {
    const dir = tempDir(test);
    const filename = path.join(dir, "image");
    const copy = path.join(dir, "copy");
    create(filename, "lazy_refcounts=on", "1M");
    const isDirty = (name: string) => ((fs.readFileSync(name)[79] ?? 0) & 1) === 1;
    await withImage(filename, async (image) => {
      assert.equal(isDirty(filename), false);
      await image.write(0, new Uint8Array(128 * KiB).fill(1));
      await image.flush();
      assert.equal(isDirty(filename), true);
      fs.copyFileSync(filename, copy);
    });
    assert.equal(isDirty(filename), false);
    check(filename);
    // Whoever only reads leaves it as it is; whoever opens it to write repairs it.
    const readFirst = async (image: BlockBackend) => assert.equal((await image.read(0, 1))[0], 1);
    await withImage(copy, readFirst, true);
    assert.equal(isDirty(copy), true);
    await withImage(copy, readFirst);
    assert.equal(isDirty(copy), false);
    check(copy);
  });
});

describe("qcow2 images that contradict themselves", { skip }, () => {
  /** An image with 128 KiB of data, and its tables' places, to be changed. */
  function broken(test: TestContext, change: (file: Buffer, l1: number, l2: number) => void): string {
    const filename = path.join(tempDir(test), "image");
    create(filename, "", "1M");
    io(filename, "write -P 1 0 128k");
    const file = fs.readFileSync(filename);
    const l1 = Number(file.readBigUInt64BE(40));
    const l2 = Number(file.readBigUInt64BE(l1) & 0x00fffffffffffe00n);
    change(file, l1, l2);
    fs.writeFileSync(filename, file);
    return filename;
  }

  const copied = 1n << 63n;
  const cases: readonly {
    readonly name: string;
    readonly change: (file: Buffer, l1: number, l2: number) => void;
    readonly message: string;
  }[] = [
    {
      name: "an L2 table that is not aligned",
      change: (file, l1, l2) => file.writeBigUInt64BE(copied | BigInt(l2 + 512), l1),
      message: "L2 table offset 0x40200 unaligned (L1 index: 0)",
    },
    {
      name: "a cluster that is not aligned",
      change: (file, _, l2) => file.writeBigUInt64BE(copied | 0x50200n, l2),
      message: "Data cluster offset 0x50200 unaligned (guest offset: 0)",
    },
    {
      name: "a cluster that is the L1 table",
      change: (file, l1, l2) => file.writeBigUInt64BE(copied | BigInt(l1), l2),
      message: "Preventing invalid write on metadata (overlaps with active L1 table)",
    },
    {
      name: "a cluster that is the L2 table",
      change: (file, _, l2) => file.writeBigUInt64BE(copied | BigInt(l2), l2),
      message: "Preventing invalid write on metadata (overlaps with active L2 table)",
    },
    {
      name: "a refcount block that is not aligned",
      change: (file) => file.writeBigUInt64BE(0x20200n, 0x10000),
      message: "Refblock offset 0x20200 unaligned (reftable index: 0)",
    },
  ];
  for (const { name, change, message } of cases) {
    it(`${name}: marked corrupt, once, with qemu's words`, async (test) => {
      const filename = broken(test, change);
      const lines: string[] = [];
      await withImage(
        filename,
        async (image) => {
          const requests = [
            () => image.write(0, new Uint8Array(4096)),
            () => image.write(512 * KiB, new Uint8Array(4096)),
          ];
          const results: string[] = [];
          for (const request of requests)
            results.push(
              await request().then(
                () => "done",
                (error: Error) => error.message,
              ),
            );
          assert.ok(results.includes("Input/output error"), results.join());
          await assert.rejects(image.read(64 * KiB, 512), { message: "No medium found" });
        },
        false,
        (line) => lines.push(line),
      );
      assert.deepEqual(lines, [
        `qcow2: Marking image as corrupt: ${message}; further corruption events will be suppressed`,
      ]);
      await assert.rejects(
        withImage(filename, async () => {}),
        /qcow2: Image is corrupt; cannot be opened read\/write/,
      );
      assert.match(mustRun("qemu-img", ["info", filename]), /corrupt: true/);
    });
  }

  it("only read, it says so once and goes on with what is whole", async (test) => {
    const filename = broken(test, (file, _, l2) => file.writeBigUInt64BE(copied | 0x50200n, l2));
    const lines: string[] = [];
    await withImage(
      filename,
      async (image) => {
        await assert.rejects(image.read(0, 512), { errno: "EIO" });
        await assert.rejects(image.read(0, 512), { errno: "EIO" });
        assert.equal((await image.read(64 * KiB, 1))[0], 1);
      },
      true,
      (line) => lines.push(line),
    );
    assert.deepEqual(lines, [
      "qcow2: Image is corrupt: Cluster allocation offset 0x50200 unaligned (L2 offset: 0x40000, L2 index: 0); " +
        "further non-fatal corruption events will be suppressed",
    ]);
  });
});

describe("qcow2 options", { skip }, () => {
  it("are refused as qemu refuses them", async (test) => {
    const filename = path.join(tempDir(test), "image");
    create(filename, "", "1M");
    const cases: readonly Readonly<Record<string, string>>[] = [
      { "cache-size": "1M", "l2-cache-size": "1M", "refcount-cache-size": "1M" },
      { "cache-size": "1M", "l2-cache-size": "2M" },
      { "cache-size": "1M", "refcount-cache-size": "2M" },
      { "l2-cache-entry-size": "300" },
      { "l2-cache-entry-size": "128k" },
      { "overlap-check": "some" },
      { "overlap-check": "all", "overlap-check.template": "none" },
      { "lazy-refcounts": "maybe" },
    ];
    for (const options of cases) {
      const list = Object.entries(options).map(([key, value]) => `,${key}=${value}`);
      const { stderr } = run("qemu-io", [
        "--image-opts",
        "-c",
        "quit",
        `driver=qcow2,file.filename=${filename}${list.join("")}`,
      ]);
      const expected = stderr.split("\n")[0]?.replace(/^qemu-io: can't open: /, "");
      await assert.rejects(
        withImage({ driver: "qcow2", file: { driver: "file", filename }, ...options }, async () => {}),
        { message: expected },
      );
    }
  });

  it("a cache of two slices does, however large the image", async (test) => {
    const dir = tempDir(test);
    const filename = path.join(dir, "image");
    create(filename, "cluster_size=1k", "8M");
    const options = {
      driver: "qcow2",
      "l2-cache-size": "1k",
      "l2-cache-entry-size": "512",
      "refcount-cache-size": "4k",
      file: { driver: "file", filename },
    };
    const dice = random(9);
    await withImage(options, async (image) => {
      await Promise.all(
        Array.from({ length: 300 }, () => image.write(dice.below(8 * MiB - 5000), dice.bytes(5000))),
      );
    });
    check(filename);
    await expectSameAsQemu(dir, filename);
  });
});
