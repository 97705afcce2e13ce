/**
 * The VHD driver: the conformance suite, random operations against a model, power cuts of differencing images, and what
 * parents are called. More by BDRV_RANDOM_RUNS and BDRV_RANDOM_STEPS; another first seed by BDRV_SEED.
 */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import zlib from "node:zlib";
import { checksumOf, Footer } from "../../../drivers/vpc/layout.ts";
import { isZero } from "../../../src/block/iov.ts";
import type { OpenEnvironment } from "../../../src/block/open.ts";
import { type ConformanceSubject, conformance } from "../../conformance.ts";
import { makeOps, runOps } from "../../random-ops.ts";
import { contentDigest } from "../../support/digest.ts";
import { memoryDriver, openBackend } from "../../support/graph.ts";
import { recorder, replay, wrongSector } from "../../support/power-cut.ts";
import { random } from "../../support/random.ts";
import { tempDir } from "../../support/temp.ts";
import { missing, mustRun } from "../../support/tools.ts";
import { childVhd, type StoredName, windowsName, withEntry, withFooter } from "../../support/vhd-images.ts";

const RUNS = Number(process.env["BDRV_RANDOM_RUNS"] ?? 1);
const STEPS = Number(process.env["BDRV_RANDOM_STEPS"] ?? 100);
const FIRST_SEED = Number(process.env["BDRV_SEED"] ?? 1);
const KiB = 1024;
const MiB = 1024 * KiB;

const CORPUS = fileURLToPath(new URL("../../../../shared/corpus", import.meta.url));

function noCorpus(): string | false {
  return fs.existsSync(CORPUS) ? false : `no ${CORPUS}`;
}

const dir = tempDir({ after });
let filesMade = 0;

const fresh = () => path.join(dir, `image${filesMade++}.vhd`);
const nodeOf = (filename: string) => ({ driver: "vpc", file: { driver: "file", filename } });

/** By qemu-img, with exactly that content; what is all zeroes has no blocks. */
function make(content: Uint8Array, options: string): string {
  const filename = fresh();
  mustRun("qemu-img", ["create", "-q", "-f", "vpc", "-o", options, filename, String(content.length)]);
  if (isZero(content)) return filename;
  fs.writeFileSync(`${filename}.raw`, content);
  mustRun("qemu-img", ["convert", "-n", "-f", "raw", "-O", "vpc", `${filename}.raw`, filename]);
  fs.rmSync(`${filename}.raw`);
  return filename;
}

function footerOf(filename: string): Uint8Array {
  return fs.readFileSync(filename).subarray(-512);
}

/** A differencing image over a parent that holds `below`. */
function makeChild(below: Uint8Array, size: number, blockSize: number): string {
  const parent = make(below, "force_size=on");
  const child = fresh();
  const names = [windowsName("W2ru", `.\\${path.basename(parent)}`)];
  fs.writeFileSync(child, childVhd({ size, blockSize, parentFooter: footerOf(parent), names }));
  return child;
}

function imageOf(filename: string) {
  return {
    open: ({ readOnly }: { readonly readOnly: boolean }) =>
      openBackend(nodeOf(filename), { flags: { readOnly, unmap: true, noFlush: true } }),
  };
}

function subject(
  name: string,
  more: Pick<ConformanceSubject, "make"> & Partial<ConformanceSubject>,
): ConformanceSubject {
  return {
    name,
    unit: 4096,
    canWrite: true,
    keepsData: true,
    canOverwrite: true,
    canTruncate: false,
    discarded: "any",
    ...more,
  };
}

describe("vpc conformance", { skip: missing("qemu-img") }, () => {
  conformance(it, subject("dynamic", { make: async (content) => imageOf(make(content, "force_size=on")) }));
  conformance(
    it,
    subject("fixed", { make: async (content) => imageOf(make(content, "force_size=on,subformat=fixed")) }),
  );
  conformance(
    it,
    subject("differencing", {
      make: async (content) => imageOf(makeChild(content, content.length, 16 * KiB)),
      makeOverlay: async (below, bytes) => imageOf(makeChild(below, bytes, 16 * KiB)),
    }),
  );
});

describe("vpc random operations", { skip: missing("qemu-img") }, () => {
  const size = 5 * MiB + 512;
  const below = random(99).bytes(3 * MiB);
  const variants = {
    dynamic: () => make(new Uint8Array(size), "force_size=on"),
    fixed: () => make(new Uint8Array(size), "force_size=on,subformat=fixed"),
    "differencing, small blocks": () => makeChild(below, size, 4 * KiB),
    differencing: () => makeChild(below, size, MiB),
  };
  for (const [name, makeImage] of Object.entries(variants))
    it(name, async () => {
      for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++) {
        const filename = makeImage();
        const model = new Uint8Array(size);
        if (name.startsWith("differencing")) model.set(below);
        const profile = { size, clusterSize: 64 * KiB, compressed: false, resize: false };
        const target = {
          model,
          open: () => openBackend(nodeOf(filename), { flags: { unmap: true, noFlush: true } }),
        };
        await runOps(target, makeOps(seed, STEPS, profile), profile);
        if (name.startsWith("differencing")) continue;
        mustRun("qemu-img", ["convert", "-f", "vpc", "-O", "raw", filename, `${filename}.raw`]);
        assert.equal(Buffer.compare(fs.readFileSync(`${filename}.raw`), target.model), 0);
      }
    });
});

describe("vpc power cuts", { skip: missing("qemu-img") }, () => {
  it("a differencing image has what was flushed, and of a later write a part at most", async (test) => {
    const size = MiB;
    const below = random(5).bytes(size);
    const child = makeChild(below, size, 64 * KiB);
    const parent = path.join(dir, `${path.basename(child).replace(/\d+/, (n) => String(Number(n) - 1))}`);
    const before = fs.readFileSync(child);
    const { log } = recorder(test, before);
    const dice = random(FIRST_SEED);
    const node = { driver: "vpc", file: { driver: "recorder" }, backing: nodeOf(parent) };
    /** Each byte may be that of the last flush, or of a write since. */
    const history = [{ logged: 0, isFlushed: true, model: below.slice() }];
    {
      await using image = await openBackend(node);
      const model = below.slice();
      for (let step = 0; step < 25; step++) {
        const start = 512 * dice.below(size / 512);
        const bytes = Math.min(512 * dice.between(1, 200), size - start);
        await image.write(start, dice.bytes(bytes).fill(step + 1));
        model.fill(step + 1, start, start + bytes);
        const isFlushed = dice.below(3) === 0;
        if (isFlushed) await image.flush();
        history.push({ logged: log.length, isFlushed, model: model.slice() });
      }
    }
    const cut = memoryDriver(test, "cut", 0);
    await replay(before, log, dice, async (data, logged, what) => {
      cut.data = data;
      await using image = await openBackend(
        { driver: "vpc", file: { driver: "cut" }, backing: nodeOf(parent) },
        { flags: { readOnly: true } },
      );
      const now = await image.read(0, size);
      const states = history.slice(
        history.findLastIndex((state) => state.isFlushed && state.logged <= logged),
      );
      assert.equal(wrongSector(now, states), undefined, what);
    });
  });
});

describe("vpc differencing", { skip: missing("qemu-img") }, () => {
  const size = MiB;
  const below = random(7).bytes(size);

  /** What the gate is asked for. */
  async function namedParent(names: readonly StoredName[], unicodeName = ""): Promise<readonly string[]> {
    const parent = make(below, "force_size=on");
    const child = fresh();
    fs.writeFileSync(
      child,
      childVhd({ size, blockSize: 64 * KiB, parentFooter: footerOf(parent), names, unicodeName }),
    );
    const asked: string[] = [];
    const gate: OpenEnvironment["gate"] = async ({ kind, filename }) => {
      asked.push(`${kind}: ${path.relative(dir, filename)}`);
      throw new Error("no");
    };
    await assert.rejects(openBackend(nodeOf(child), { environment: { gate } }), /no/);
    return asked;
  }

  it("the parent is looked for by its relative path, then by its file's name beside the image", async () => {
    const relative = windowsName("W2ru", "..\\base\\parent.vhd\0");
    const absolute = windowsName("W2ku", "C:\\images\\far.vhd");
    const url = { code: "MacX", data: Buffer.from("file://./of%20mac.vhd") };
    assert.deepEqual(await namedParent([absolute, relative, url]), ["backing file: ../base/parent.vhd"]);
    assert.deepEqual(await namedParent([absolute, url]), ["backing file: of mac.vhd"]);
    assert.deepEqual(await namedParent([absolute]), ["backing file: far.vhd"]);
    assert.deepEqual(await namedParent([], "\\\\server\\share\\named.vhd"), ["backing file: named.vhd"]);
    assert.deepEqual(await namedParent([windowsName("W2ru", ".\\json:{}")]), ["backing file: json:{}"]);
    assert.deepEqual(await namedParent([{ code: "MacX", data: Buffer.from("file:///base/abs.vhd") }]), [
      `backing file: ${path.relative(dir, "/base/abs.vhd")}`,
    ]);
  });

  it("a parent that is not the one is refused, unless the user names it", async () => {
    const child = makeChild(below, size, 64 * KiB);
    const other = make(random(8).bytes(size), "force_size=on");
    const parent = path.join(
      dir,
      path.basename(child).replace(/\d+/, (n) => String(Number(n) - 1)),
    );
    {
      await using image = await openBackend(nodeOf(child), { flags: { readOnly: true } });
      assert.equal(Buffer.compare(await image.read(0, size), below), 0);
    }
    fs.copyFileSync(other, parent);
    {
      await using image = await openBackend(nodeOf(child), { flags: { readOnly: true } });
      await assert.rejects(image.read(0, 512), { errno: "EINVAL", message: /is not the parent that/ });
    }
    await using image = await openBackend(
      { ...nodeOf(child), backing: nodeOf(other) },
      { flags: { readOnly: true } },
    );
    assert.equal((await image.read(0, 512)).length, 512);
  });

  it("sectors come from whom their bits say, and all of a block that XenServer's map calls whole", async () => {
    const parent = make(below, "force_size=on");
    const names = [windowsName("W2ru", path.basename(parent))];
    const batmap = Uint8Array.of(0x40);
    const empty = childVhd({ size, blockSize: 64 * KiB, parentFooter: footerOf(parent), names, batmap });
    const block = Buffer.concat([Buffer.alloc(512), Buffer.alloc(64 * KiB, 9)]);
    // The third and the tenth sector, of both blocks; but the map has the second one.
    block[0] = 0x20;
    block[1] = 0x40;
    const start = empty.length - 512;
    const image = Buffer.concat([empty.subarray(0, start), block, block, empty.subarray(start)]);
    const child = fresh();
    const sector = start / 512;
    fs.writeFileSync(child, withEntry(withEntry(image, 1536, sector), 1540, sector + block.length / 512));
    await using backend = await openBackend(nodeOf(child));
    const expected = below.slice();
    expected
      .fill(9, 2 * 512, 3 * 512)
      .fill(9, 9 * 512, 10 * 512)
      .fill(9, 64 * KiB, 128 * KiB);
    assert.equal(Buffer.compare(await backend.read(0, size), expected), 0);
    const status = await backend.blockStatus(1024, size);
    assert.deepEqual([status.depth, status.bytes, status.offset], [0, 512, start + 512 + 1024]);
    // The first new block must not be put on the map.
    await backend.write(512 * KiB, new Uint8Array(512).fill(3));
    await backend.flush();
    assert.equal(fs.readFileSync(child).toString("latin1", 2048, 2056), "tdbatmap");
  });

  it("the pair of the corpus reads as its producer meant", { skip: noCorpus() }, async () => {
    for (const name of ["ntfs-parent.vhd", "ntfs-differential.vhd"])
      fs.writeFileSync(
        path.join(dir, name),
        zlib.gunzipSync(fs.readFileSync(path.join(CORPUS, `${name}.gz`))),
      );
    await using image = await openBackend(path.join(dir, "ntfs-differential.vhd"), {
      flags: { readOnly: true },
    });
    assert.equal(
      await contentDigest(image),
      "b7922a46a6b08fa4f4fc0c51a25d5587d1d49f15cfade45ca740dd07110ae144",
    );
    assert.equal(image.node.backing?.node.driver.formatName, "vpc");
    // Each file record of the file system bears the mark of its last write at the end of each of its sectors.
    const records = fileRecords(await image.read(0, await image.getLength()));
    assert.deepEqual(records, { whole: 35, torn: 0 });
  });
});

/** NTFS's own check: of a record that is put together wrongly the marks differ. */
function fileRecords(content: Buffer | Uint8Array): { readonly whole: number; readonly torn: number } {
  const data = Buffer.from(content);
  let [whole, torn] = [0, 0];
  for (let at = 0; at + 1024 <= data.length; at += 512) {
    if (data.toString("latin1", at, at + 4) !== "FILE") continue;
    const mark = data.readUInt16LE(at + data.readUInt16LE(at + 4));
    if (mark === data.readUInt16LE(at + 510) && mark === data.readUInt16LE(at + 1022)) whole++;
    else torn++;
  }
  return { whole, torn };
}

describe("vpc files", { skip: missing("qemu-img") }, () => {
  it("a fixed image is known by its footer, if that tells the truth", async () => {
    const fixed = make(new Uint8Array(MiB), "force_size=on,subformat=fixed");
    const image = fs.readFileSync(fixed);
    const formatOf = async (content: Uint8Array) => {
      const filename = fresh();
      fs.writeFileSync(filename, content);
      await using backend = await openBackend(filename, { flags: { readOnly: true } });
      return backend.node.driver.formatName;
    };
    assert.equal(await formatOf(image), "vpc");
    const end = image.length - 512;
    assert.equal(await formatOf(withFooter(image, end, [48, "u64", MiB - 512])), "raw");
    assert.equal(await formatOf(withFooter(image, end, [60, "u32", 3])), "raw");
    assert.equal(await formatOf(withFooter(image, end, [56, "u16", 9999])), "raw");
    assert.equal(await formatOf(withEntry(image, end + 64, 1)), "raw");
    assert.equal(await formatOf(image.subarray(0, end)), "raw");
    assert.equal(await formatOf(Buffer.concat([image, Buffer.alloc(512)])), "raw");
  });

  it("what lies where a new block goes does not show in it", async () => {
    // As Virtual PC makes them: between the table and the footer there is room.
    const filename = make(new Uint8Array(4 * MiB), "force_size=on");
    const image = fs.readFileSync(filename);
    const roomy = Buffer.concat([image.subarray(0, 2048), Buffer.alloc(70_144, 0xee), image.subarray(-512)]);
    fs.writeFileSync(filename, roomy);
    {
      await using backend = await openBackend(nodeOf(filename));
      await backend.write(MiB, Uint8Array.of(1));
    }
    await using backend = await openBackend(nodeOf(filename), { flags: { readOnly: true } });
    const expected = new Uint8Array(4 * MiB);
    expected[MiB] = 1;
    assert.equal(Buffer.compare(await backend.read(0, 4 * MiB), expected), 0);
  });

  it("a write that fails leaves the image as good as it was", async () => {
    const filename = make(new Uint8Array(10 * MiB), "force_size=on");
    mustRun("qemu-io", ["-f", "vpc", "-c", "write -P 5 0 1M", filename]);
    // The footer, the bitmap, the data, the table: each of them fails once.
    for (let failing = 1; failing <= 4; failing++) {
      const file = {
        driver: "blkdebug",
        image: { driver: "file", filename },
        "inject-error": [{ event: "pwritev", iotype: "write", errno: 28, once: true, state: failing }],
        "set-state": [1, 2, 3].map((state) => ({ event: "pwritev_done", state, new_state: state + 1 })),
      };
      const image = await openBackend({ driver: "vpc", file });
      await assert.rejects(image.write(failing * 2 * MiB, new Uint8Array(512)), { errno: "ENOSPC" });
      await image.close();
      assert.doesNotMatch(
        mustRun("qemu-io", ["-r", "-f", "vpc", "-c", "read -P 5 0 1M", filename]),
        /failed/,
      );
    }
  });

  it("a footer's checksum is that of the specification", () => {
    const filename = make(new Uint8Array(MiB), "subformat=fixed");
    const footer = footerOf(filename);
    assert.equal(Footer.read(footer).checksum, checksumOf(footer, Footer.offsetOf.checksum));
    assert.equal(Footer.size, 512);
  });
});
