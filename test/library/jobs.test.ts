/** The jobs and streams of the library on real images, beside qemu-img. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { pipeline } from "node:stream/promises";
import { test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import {
  type BlockBackend,
  BlockError,
  check,
  compare,
  convert,
  create,
  createReadStream,
  createWriteStream,
  denyAll,
  info,
  KiB,
  type MapEntry,
  MiB,
  map,
  measure,
  open,
  readable,
  writable,
} from "../../src/index.ts";
import { random } from "../support/random.ts";
import { openFilesUnder, sparseFile, tempDir } from "../support/temp.ts";
import { missing, mustRun, run } from "../support/tools.ts";

const images = fileURLToPath(new URL("../../images/", import.meta.url));
const noQemu = { skip: missing("qemu-img") };

interface Listed {
  readonly name: string;
  readonly format: string;
  readonly virtualSize: number;
  readonly sha256: string;
  readonly companions?: readonly string[];
}

const manifest = JSON.parse(fs.readFileSync(path.join(images, "manifest.json"), "utf8")) as readonly Listed[];
const iso = path.join(images, "xorriso-1.5-iso9660.raw");

async function gather<T>(iterable: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const each of iterable) all.push(each);
  return all;
}

/** An image file of `bytes` bytes with holes and data, which is random but for a range of `values`. */
function patchwork(filename: string, bytes: number, seed: number, values = 256): void {
  const r = random(seed);
  fs.writeFileSync(filename, "");
  fs.truncateSync(filename, bytes);
  const fd = fs.openSync(filename, "r+");
  for (let piece = 0; piece < 20; piece++) {
    const data = r.bytes(r.between(1, 60 * KiB)).map((byte) => byte % values);
    fs.writeSync(fd, data, 0, data.length, r.below(bytes - data.length));
  }
  fs.closeSync(fd);
}

for (const { name, format, virtualSize, sha256, companions } of manifest) {
  test(`${name}: info tells its format and size, and a stream of it has its digest`, async () => {
    const filename = path.join(images, name);
    const told = await info(filename);
    assert.equal(told.format, format);
    assert.equal(told.virtualBytes, virtualSize);
    const dataFile = companions?.find((each) => each.endsWith(".data"));
    // qemu-img too looks for a data file from where it runs, not beside the image.
    await using image = await open(
      dataFile === undefined
        ? filename
        : { driver: "qcow2", file: { filename }, "data-file": { filename: path.join(images, dataFile) } },
    );
    const hash = createHash("sha256");
    await pipeline(createReadStream(image, { highWaterMark: 100_000 }), hash);
    assert.equal(hash.digest("hex"), sha256);
  });
}

test("a raw image becomes a compressed qcow2 image and comes back", noQemu, async (t) => {
  const dir = tempDir(t);
  const packed = path.join(dir, "packed.qcow2");
  const back = path.join(dir, "back.raw");
  await convert(iso, { format: "qcow2", filename: packed }, { compress: true });
  assert.ok(fs.statSync(packed).size < fs.statSync(iso).size + 5 * 64 * KiB);
  mustRun("qemu-img", ["check", "-q", packed]);
  mustRun("qemu-img", ["compare", "-q", iso, packed]);
  assert.deepEqual(await compare(iso, packed), { same: true });
  await convert(pathToFileURL(packed), { format: "raw", filename: pathToFileURL(back) });
  assert.ok(fs.readFileSync(back).equals(fs.readFileSync(iso)));
  const { format, virtualBytes, clusterBytes } = await info(packed);
  assert.deepEqual(
    { format, virtualBytes, clusterBytes },
    { format: "qcow2", virtualBytes: 100352, clusterBytes: 65536 },
  );
});

test("writes through the compress filter, in a graph with types, are compressed", noQemu, async (t) => {
  const dir = tempDir(t);
  const filename = path.join(dir, "disk.qcow2");
  await create(filename, { format: "qcow2", size: MiB, options: { cluster_size: 16 * KiB } });
  const text = Buffer.from("compressible ".repeat(10_000));
  {
    await using image = await open(
      { driver: "compress", file: { driver: "qcow2", file: { driver: "file", filename } } },
      { writable: true },
    );
    await image.write(5000, text);
  }
  mustRun("qemu-img", ["check", "-q", filename]);
  assert.match(mustRun("qemu-img", ["check", filename]), /9\/64 = .* 100.00% compressed/);
  await using image = await open(filename);
  assert.ok(text.equals(await image.read(5000, text.length)));
});

for (const compressed of [false, true]) {
  for (const kind of ["Node", "web"] as const) {
    test(
      `a ${kind} stream fills a qcow2 image${compressed ? " with compressed clusters" : ""}`,
      noQemu,
      async (t) => {
        const dir = tempDir(t);
        const source = path.join(dir, "source.raw");
        const filename = path.join(dir, "disk.qcow2");
        patchwork(source, 4 * MiB + 512, 11, 4);
        await create(filename, { format: "qcow2", size: 4 * MiB + 512, options: { cluster_size: 8 * KiB } });
        {
          await using image = await open(filename, { writable: true });
          if (kind === "Node")
            await pipeline(fs.createReadStream(source), createWriteStream(image, { compressed }));
          else {
            await using raw = await open(source, { format: "raw" });
            await readable(raw, { highWaterMark: 10_000 }).pipeTo(writable(image, { compressed }));
          }
        }
        const report = mustRun("qemu-img", ["check", filename]);
        assert.match(report, compressed ? /100.00% compressed/ : / 0.00% compressed/);
        mustRun("qemu-img", ["compare", "-q", source, filename]);
        const allocated = Number(/^(\d+)\//m.exec(report)?.[1]);
        assert.ok(allocated > 10 && allocated < 300, `${allocated} of 513 clusters`);
      },
    );
  }
}

test("map gives what qemu-img map gives, through a chain of three", noQemu, async () => {
  const filename = path.join(images, "qemu-img-7.2-chain-top.qcow2");
  const json = JSON.parse(mustRun("qemu-img", ["map", "--output=json", filename])) as readonly object[];
  const asJson = ({ start, bytes, depth, present, zero, data, hostOffset }: MapEntry) => ({
    start,
    length: bytes,
    depth,
    present,
    zero,
    data,
    ...(hostOffset !== undefined && { offset: hostOffset }),
  });
  assert.deepEqual((await gather(map(filename))).map(asJson), json);
  await using image = await open(filename);
  assert.deepEqual((await gather(map(image))).map(asJson), json);
  const [first] = await gather(map(image, { start: 64 * KiB, maxBytes: 512 }));
  assert.equal(first?.start, 64 * KiB);
  assert.equal(first?.bytes, 512);
  const reason = new Error("enough");
  await assert.rejects(
    gather(map(image, { signal: AbortSignal.abort(reason) })),
    (error) => error === reason,
  );
});

test("map tells what is stored compressed", async () => {
  const extents = await gather(map(path.join(images, "qemu-img-7.2-zlib.qcow2")));
  const stored = extents.filter(({ depth, data }) => depth === 0 && data);
  assert.ok(stored.length > 0);
  assert.ok(stored.every(({ compressed, hostOffset }) => compressed && hostOffset === undefined));
  const plain = await gather(map(path.join(images, "qemu-img-7.2-v3.qcow2")));
  assert.ok(plain.every(({ compressed }) => !compressed));
});

test("map closes what it has opened, also if nobody hears it out", async (t) => {
  const dir = tempDir(t);
  const filename = path.join(dir, "disk.raw");
  patchwork(filename, MiB, 12);
  for await (const { start } of map(filename)) {
    assert.equal(start, 0);
    assert.equal(openFilesUnder(dir).length, 1);
    break;
  }
  assert.deepEqual(openFilesUnder(dir), []);
});

test("compare finds the first difference, and takes zeroes behind the shorter one's end", async (t) => {
  const dir = tempDir(t);
  const [one, two] = [path.join(dir, "one.raw"), path.join(dir, "two.raw")];
  patchwork(one, 3 * MiB, 13);
  fs.copyFileSync(one, two);
  assert.deepEqual(await compare(one, two), { same: true });
  fs.truncateSync(two, 4 * MiB);
  assert.deepEqual(await compare(one, two), { same: true });
  assert.deepEqual(await compare(one, two, { strict: true }), { same: false, reason: "length" });
  const fd = fs.openSync(two, "r+");
  fs.writeSync(fd, "x", 3.5 * MiB + 7);
  assert.deepEqual(await compare(one, two), { same: false, reason: "content", offset: 3.5 * MiB });
  const before = fs.readFileSync(one)[1_000_000] ?? 0;
  fs.writeSync(fd, new Uint8Array([before ^ 1]), 0, 1, 1_000_000);
  fs.closeSync(fd);
  await using image = await open(one, { format: "raw" });
  const result = await compare(image, two);
  assert.deepEqual(result, { same: false, reason: "content", offset: 1_000_000 - (1_000_000 % 512) });
  assert.equal(image.isOpen, true);
  assert.deepEqual(openFilesUnder(dir).length, 1);
});

test("compare says which image can't be read, and where", async (t) => {
  const dir = tempDir(t);
  const filename = path.join(dir, "disk.raw");
  patchwork(filename, MiB, 14);
  await using good = await open(filename, { format: "raw" });
  await using bad = await open({
    driver: "raw",
    file: {
      driver: "blkdebug",
      image: { driver: "file", filename },
      "inject-error": [{ event: "none", iotype: "read", errno: 5 }],
    },
  });
  await assert.rejects(compare(good, bad), (error) => {
    assert.ok(error instanceof BlockError);
    assert.equal(error.errno, "EIO");
    assert.match(error.message, /^Error while reading offset \d+ of json:.*: Input\/output error$/);
    return true;
  });
});

test(
  "create makes what was asked for, over a backing file too, and refuses what it can't",
  noQemu,
  async (t) => {
    const dir = tempDir(t);
    const base = path.join(dir, "base.raw");
    const top = path.join(dir, "top.qcow2");
    patchwork(base, MiB, 15);
    await create(top, {
      format: "qcow2",
      backing: { filename: "base.raw", format: "raw" },
      options: { cluster_size: 4096, compat: "1.1", lazy_refcounts: true, refcount_bits: 8 },
    });
    const told = JSON.parse(mustRun("qemu-img", ["info", "--output=json", top])) as Record<string, unknown>;
    assert.equal(told["virtual-size"], MiB);
    assert.equal(told["cluster-size"], 4096);
    assert.equal(told["backing-filename"], "base.raw");
    const specific = told["format-specific"] as { readonly data: Record<string, unknown> };
    assert.equal(specific.data["refcount-bits"], 8);
    assert.equal(specific.data["lazy-refcounts"], true);
    assert.deepEqual(await compare(base, top), { same: true });
    const { backingFilename, fullBackingFilename, backingFormat } = await info(top);
    assert.deepEqual([backingFilename, fullBackingFilename, backingFormat], ["base.raw", base, "raw"]);
    // info does not open the backing file; a comparison does.
    assert.equal((await info(top, { gate: denyAll })).virtualBytes, MiB);
    await assert.rejects(compare(base, top, { gate: denyAll }), { errno: "EACCES" });
    const wrong = path.join(dir, "wrong.qcow2");
    await assert.rejects(create(wrong, { format: "qcow2", size: MiB, options: { cluster_size: 100 } }), {
      errno: "EINVAL",
      message: "Cluster size must be a power of two between 512 and 2048k",
    });
    await assert.rejects(create(wrong, { format: "raw" }), {
      message: "Image creation needs a size parameter",
    });
    assert.equal(fs.existsSync(wrong), false);
  },
);

test("convert joins several sources, open and named, and reports how far it is", async (t) => {
  const dir = tempDir(t);
  const names = ["a.raw", "b.raw"].map((name) => path.join(dir, name)) as [string, string];
  patchwork(names[0], MiB, 16);
  patchwork(names[1], 2 * MiB, 17);
  const target = path.join(dir, "joined.raw");
  const reports: (readonly [number, number])[] = [];
  {
    await using first = await open(names[0], { format: "raw" });
    await convert(
      [first, names[1]],
      { format: "raw", filename: target },
      {
        onProgress: (done, total) => reports.push([done, total]),
      },
    );
    assert.equal(first.isOpen, true);
  }
  assert.ok(Buffer.concat(names.map((name) => fs.readFileSync(name))).equals(fs.readFileSync(target)));
  assert.ok(reports.length > 0);
  for (const [index, [done, total]] of reports.entries())
    assert.ok(done <= total && done >= (reports[index - 1]?.[0] ?? 0));
  assert.equal(reports.at(-1)?.[0], reports.at(-1)?.[1]);
  assert.deepEqual(openFilesUnder(dir), []);
});

test("convert writes over an image that is open", async (t) => {
  const dir = tempDir(t);
  const source = path.join(dir, "a.raw");
  patchwork(source, MiB, 18);
  const target = path.join(dir, "b.raw");
  fs.writeFileSync(target, Buffer.alloc(2 * MiB, 0xaa));
  await using image = await open(target, { format: "raw", writable: true });
  await convert(source, image);
  assert.deepEqual(await image.read(0, MiB), new Uint8Array(fs.readFileSync(source)));
  assert.equal((await image.read(MiB, 1))[0], 0xaa);
  await using small = await open(source, { format: "raw", writable: true });
  await assert.rejects(convert(image, small), { message: "output file is smaller than input file" });
});

test("a conversion that is aborted or fails leaves no file, and closes its sources", async (t) => {
  const dir = tempDir(t);
  const source = path.join(dir, "a.raw");
  const target = path.join(dir, "b.qcow2");
  patchwork(source, 8 * MiB, 19);
  const controller = new AbortController();
  const reason = new Error("enough");
  const converting = convert(
    source,
    { format: "qcow2", filename: target },
    {
      signal: controller.signal,
      onProgress: (done) => done > 0 && controller.abort(reason),
    },
  );
  await assert.rejects(converting, (error) => error === reason);
  assert.equal(fs.existsSync(target), false);
  await assert.rejects(convert(source, { format: "raw", filename: target }, { compress: true }), {
    errno: "ENOTSUP",
    message: "Compression not supported for this file format",
  });
  await assert.rejects(convert([source, path.join(dir, "none.raw")], { format: "raw", filename: target }), {
    errno: "ENOENT",
  });
  assert.equal(fs.existsSync(target), false);
  assert.deepEqual(openFilesUnder(dir), []);
});

test("check counts what qemu-img counts, and raw has nothing to check", noQemu, async (t) => {
  await assert.rejects(check(iso), {
    errno: "ENOTSUP",
    message: "This image format does not support checks",
  });
  const leaky = path.join(images, "e2image-1.47-all.qcow2");
  const { stdout, code } = run("qemu-img", ["check", "--output=json", leaky]);
  assert.equal(code, 3);
  const told = JSON.parse(stdout) as Record<string, number>;
  const lines: string[] = [];
  const result = await check(leaky, { onFinding: (line) => lines.push(line) });
  assert.equal(result.leaks, told["leaks"]);
  assert.equal(result.corruptions, 0);
  assert.equal(result.totalClusters, told["total-clusters"]);
  assert.equal(lines.length, result.leaks);
  const filename = path.join(tempDir(t), "disk.qcow2");
  await create(filename, { format: "qcow2", size: MiB });
  const clean = await check(filename);
  assert.deepEqual([clean.corruptions, clean.leaks, clean.checkErrors], [0, 0, 0]);
});

test("the library leaves sources of jobs as they are", async (t) => {
  const dir = tempDir(t);
  const filename = sparseFile(dir, "disk.raw", MiB);
  const before = fs.statSync(filename);
  await info(filename);
  await gather(map(filename, { format: "raw" }));
  await compare(filename, filename, { format: "raw" });
  const after = fs.statSync(filename);
  assert.equal(after.mtimeMs, before.mtimeMs);
  const keep: BlockBackend[] = [await open(filename)];
  for (const image of keep) await image.close();
  for (const image of keep) await image.close();
});

test("measure tells the size of the image that convert makes", noQemu, async (t) => {
  const dir = tempDir(t);
  const target = path.join(dir, "out.qcow2");
  const { required, fullyAllocated } = await measure(iso, { format: "qcow2" }, { format: "raw" });
  await convert({ driver: "raw", file: { filename: iso } }, { filename: target, format: "qcow2" });
  assert.equal(fs.statSync(target).size, required);
  assert.ok(fullyAllocated >= required);
  const expected = JSON.parse(
    mustRun("qemu-img", [
      "measure",
      "--output=json",
      "-O",
      "qcow2",
      "-o",
      "cluster_size=4096",
      "--size",
      "10G",
    ]),
  ) as Record<string, number>;
  const empty = await measure(10 * 2 ** 30, { format: "qcow2", options: { cluster_size: 4096 } });
  assert.deepEqual(empty, { required: expected["required"], fullyAllocated: expected["fully-allocated"] });
});
