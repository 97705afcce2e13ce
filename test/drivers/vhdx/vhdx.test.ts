/**
 * The VHDX driver: the conformance suite, random operations against a model, power cuts, differencing images, sectors of
 * 4 KiB, logs in several entries. More by BDRV_RANDOM_RUNS and BDRV_RANDOM_STEPS; another first seed by BDRV_SEED.
 */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import zlib from "node:zlib";
import { crc32c } from "../../../drivers/vhdx/crc32c.ts";
import {
  Guid,
  HEADER_OFFSETS,
  Header,
  LogEntry,
  MetadataEntry,
  MetadataTable,
} from "../../../drivers/vhdx/layout.ts";
import { isZero } from "../../../src/block/iov.ts";
import { type ConformanceSubject, conformance } from "../../conformance.ts";
import { makeOps, runOps } from "../../random-ops.ts";
import { contentDigest } from "../../support/digest.ts";
import { memoryDriver, openBackend } from "../../support/graph.ts";
import { recorder, replay, wrongSector } from "../../support/power-cut.ts";
import { random } from "../../support/random.ts";
import { tempDir } from "../../support/temp.ts";
import { missing, mustRun } from "../../support/tools.ts";
import { withBytes, withHeaders } from "../../support/vhd-images.ts";

const RUNS = Number(process.env["BDRV_RANDOM_RUNS"] ?? 1);
const STEPS = Number(process.env["BDRV_RANDOM_STEPS"] ?? 100);
const FIRST_SEED = Number(process.env["BDRV_SEED"] ?? 1);
const KiB = 1024;
const MiB = 1024 * KiB;

/** Where qemu-img puts things. */
const LOG = MiB;
const BAT = 2 * MiB;
const METADATA = 3 * MiB;
const ITEMS = METADATA + 64 * KiB;
/** Of the metadata's place in the region table. */
const METADATA_PLACE = 0x30040;

const CORPUS = fileURLToPath(new URL("../../../../shared/corpus", import.meta.url));
const noCorpus = fs.existsSync(CORPUS) ? false : `no ${CORPUS}`;

const dir = tempDir({ after });
let filesMade = 0;

const fresh = () => path.join(dir, `image${filesMade++}.vhdx`);
const nodeOf = (filename: string) => ({ driver: "vhdx", file: { driver: "file", filename } });

/** By qemu-img, in blocks of 1 MiB, with that content; what is all zeroes has no blocks. */
function make(content: Uint8Array, options = ""): string {
  const filename = fresh();
  const all = ["block_size=1M", options].filter(Boolean).join(",");
  mustRun("qemu-img", ["create", "-q", "-f", "vhdx", "-o", all, filename, String(content.length)]);
  if (isZero(content)) return filename;
  fs.writeFileSync(`${filename}.raw`, content);
  mustRun("qemu-img", ["convert", "-n", "-f", "raw", "-O", "vhdx", `${filename}.raw`, filename]);
  fs.rmSync(`${filename}.raw`);
  return filename;
}

function currentHeader(filename: string): ReturnType<typeof Header.read> {
  const image = fs.readFileSync(filename);
  const [one, other] = HEADER_OFFSETS.map((offset) => Header.read(image, offset)) as [
    ReturnType<typeof Header.read>,
    ReturnType<typeof Header.read>,
  ];
  return other.sequenceNumber > one.sequenceNumber ? other : one;
}

/** "{...}" of a GUID as it lies in the file. */
function guidText(guid: Uint8Array): string {
  const hex = (start: number, end: number, step: 1 | -1) => {
    const part = Buffer.from(guid.subarray(start, end));
    return (step < 0 ? part.reverse() : part).toString("hex");
  };
  return `{${hex(0, 4, -1)}-${hex(4, 6, -1)}-${hex(6, 8, -1)}-${hex(8, 10, 1)}-${hex(10, 16, 1)}}`;
}

/** Makes an empty image the child of the parent. */
function adopt(child: string, parent: string, name = `.\\${path.basename(parent)}`): void {
  const pairs = [
    ["parent_linkage", guidText(currentHeader(parent).dataWriteGuid)],
    ["relative_path", name],
    ["absolute_win32_path", `C:\\images\\${path.basename(parent)}`],
  ] as const;
  const head = Buffer.alloc(20 + pairs.length * 12);
  head.write(Guid.VhdxParentLocator, "hex");
  head.writeUInt16LE(pairs.length, 18);
  const texts: Buffer[] = [];
  let end = head.length;
  for (const [index, pair] of pairs.entries()) {
    for (const [n, text] of pair.entries()) {
      const data = Buffer.from(text, "utf16le");
      head.writeUInt32LE(end, 20 + index * 12 + n * 4);
      head.writeUInt16LE(data.length, 28 + index * 12 + n * 2);
      texts.push(data);
      end += data.length;
    }
  }
  const image = fs.readFileSync(child);
  const locator = Buffer.concat([head, ...texts]);
  // An image of no length has a long table all the same.
  const metadata = Number(image.readBigUInt64LE(METADATA_PLACE));
  const items = metadata + ITEMS - METADATA;
  locator.copy(image, items + 4096);
  image.writeUInt16LE(6, metadata + 10);
  const item = {
    itemId: Buffer.from(Guid.ParentLocator, "hex"),
    offset: 64 * KiB + 4096,
    length: locator.length,
    flags: 4,
    reserved: 0,
  };
  MetadataEntry.write(item, image, metadata + MetadataTable.size + 5 * MetadataEntry.size);
  image.writeUInt32LE(2, items + 4);
  image.fill(0, BAT, BAT + MiB);
  fs.writeFileSync(child, image);
}

function makeChild(below: Uint8Array, size: number): { readonly child: string; readonly parent: string } {
  const parent = make(below);
  const child = make(new Uint8Array(size));
  adopt(child, parent);
  return { child, parent };
}

/** Puts one block of data into the file, and says in its bits which sectors are here. */
function withPartialBlock(filename: string, block: number, sectors: readonly number[], byte: number): void {
  const image = fs.readFileSync(filename);
  const bits = Buffer.alloc(MiB);
  for (const sector of sectors) {
    const at = block * 2048 + sector;
    bits[Math.floor(at / 8)] = (bits[Math.floor(at / 8)] as number) | (1 << (at % 8));
  }
  const entry = (index: number, place: number, state: number) =>
    image.writeBigUInt64LE(BigInt(place + state), BAT + index * 8);
  entry(block, image.length, 7);
  entry(4096, image.length + MiB, 6);
  fs.writeFileSync(filename, Buffer.concat([image, Buffer.alloc(MiB, byte), bits]));
}

/** As if it were of sectors of 4 KiB. */
function make4K(content: Uint8Array): string {
  const filename = make(content);
  fs.writeFileSync(filename, withBytes(fs.readFileSync(filename), ITEMS, [32, "u32", 4096]));
  return filename;
}

function imageOf(filename: string) {
  return {
    open: ({ readOnly }: { readonly readOnly: boolean }) =>
      openBackend(nodeOf(filename), { flags: { readOnly, unmap: true, noFlush: true } }),
    dispose: () => fs.rmSync(filename),
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

describe("vhdx conformance", { skip: missing("qemu-img") }, () => {
  conformance(it, subject("dynamic", { make: async (content) => imageOf(make(content)) }));
  conformance(it, subject("sectors of 4 KiB", { make: async (content) => imageOf(make4K(content)) }));
  conformance(
    it,
    subject("fixed", {
      make: async (content) => imageOf(make(content, "subformat=fixed,block_state_zero=off")),
    }),
  );
  conformance(
    it,
    subject("differencing", {
      make: async (content) => imageOf(makeChild(content, content.length).child),
      makeOverlay: async (below, bytes) => imageOf(makeChild(below, bytes).child),
    }),
  );
});

describe("vhdx random operations", { skip: missing("qemu-img") }, () => {
  const size = 5 * MiB + 4096;
  const below = random(99).bytes(3 * MiB);
  const variants = {
    dynamic: () => make(new Uint8Array(size)),
    "sectors of 4 KiB": () => make4K(new Uint8Array(size)),
    fixed: () => make(new Uint8Array(size), "subformat=fixed,block_state_zero=off"),
    differencing: () => makeChild(below, size).child,
    "differencing, in part": () => {
      const { child } = makeChild(below, size);
      withPartialBlock(child, 1, [0, 3, 4, 5, 100, 2047], 0x77);
      return child;
    },
  };
  for (const [name, makeImage] of Object.entries(variants))
    it(name, async () => {
      for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++) {
        const filename = makeImage();
        const model = new Uint8Array(size);
        if (name.startsWith("differencing")) model.set(below);
        if (name.endsWith("in part"))
          for (const sector of [0, 3, 4, 5, 100, 2047])
            model.fill(0x77, MiB + sector * 512, MiB + sector * 512 + 512);
        const profile = { size, clusterSize: 64 * KiB, compressed: false, resize: false };
        const target = {
          model,
          open: () => openBackend(nodeOf(filename), { flags: { unmap: true, noFlush: true } }),
        };
        await runOps(target, makeOps(seed, STEPS, profile), profile);
        if (/^(differencing|sectors)/.test(name)) continue;
        mustRun("qemu-img", ["check", "-q", "-f", "vhdx", filename]);
        mustRun("qemu-img", ["convert", "-f", "vhdx", "-O", "raw", filename, `${filename}.raw`]);
        assert.equal(Buffer.compare(fs.readFileSync(`${filename}.raw`), target.model), 0);
      }
    });
});

/** Writes, flushes and cuts: what was flushed is there, and of what came later old or new bytes; qemu-img too can open it. */
async function cutEverywhere(
  test: Parameters<typeof recorder>[0],
  filename: string,
  below: Uint8Array,
  backing: { readonly backing?: ReturnType<typeof nodeOf> },
): Promise<void> {
  const size = below.length;
  const before = fs.readFileSync(filename);
  const { log } = recorder(test, before);
  const dice = random(FIRST_SEED);
  const history = [{ logged: 0, isFlushed: true, model: below.slice() }];
  {
    await using image = await openBackend({ driver: "vhdx", file: { driver: "recorder" }, ...backing });
    const model = below.slice();
    for (let step = 0; step < 8; step++) {
      const start = 512 * dice.below(size / 512);
      const bytes = Math.min(512 * dice.between(1, 3000), size - start);
      await image.write(start, new Uint8Array(bytes).fill(step + 1));
      model.fill(step + 1, start, start + bytes);
      const isFlushed = dice.below(3) === 0;
      if (isFlushed) await image.flush();
      history.push({ logged: log.length, isFlushed, model: model.slice() });
    }
  }
  const cut = memoryDriver(test, "cut", 0);
  await replay(before, log, dice, async (data, logged, what) => {
    cut.data = data;
    // Opened for writing, it brings in what its log holds.
    await using image = await openBackend({ driver: "vhdx", file: { driver: "cut" }, ...backing });
    const now = await image.read(0, size);
    const states = history.slice(history.findLastIndex((state) => state.isFlushed && state.logged <= logged));
    assert.equal(wrongSector(now, states), undefined, what);
  });
}

describe("vhdx power cuts", { skip: missing("qemu-img") }, () => {
  it("of a dynamic image", (test) =>
    cutEverywhere(test, make(new Uint8Array(4 * MiB)), new Uint8Array(4 * MiB), {}));

  it("of a differencing image with a block that it has in part", (test) => {
    const below = random(5).bytes(3 * MiB);
    const { child, parent } = makeChild(below, below.length);
    withPartialBlock(child, 1, [0, 2047], 0x77);
    below.fill(0x77, MiB, MiB + 512).fill(0x77, 2 * MiB - 512, 2 * MiB);
    return cutEverywhere(test, child, below, { backing: nodeOf(parent) });
  });
});

describe("vhdx differencing", { skip: missing("qemu-img") }, () => {
  const size = 3 * MiB;
  const below = random(7).bytes(size);

  it("sectors come from whom their bits say, and a write makes the block the child's own", async () => {
    const { child, parent } = makeChild(below, size);
    withPartialBlock(child, 1, [1, 9], 5);
    const expected = below.slice();
    for (const sector of [1, 9]) expected.fill(5, MiB + sector * 512, MiB + sector * 512 + 512);
    {
      await using image = await openBackend(nodeOf(child));
      assert.equal(Buffer.compare(await image.read(0, size), expected), 0);
      const statuses = [0, MiB, MiB + 512, MiB + 1024].map((at) => image.blockStatus(at, size - at));
      const found = (await Promise.all(statuses)).map(({ depth, bytes }) => [depth, bytes]);
      assert.deepEqual(found, [
        [1, MiB],
        [1, 512],
        [0, 512],
        [1, 7 * 512],
      ]);
      await image.write(MiB + 700, new Uint8Array(3).fill(6));
      expected.fill(6, MiB + 700, MiB + 703);
    }
    fs.rmSync(parent);
    await using image = await openBackend(nodeOf(child), { flags: { readOnly: true, noBacking: true } });
    assert.equal(Buffer.compare(await image.read(MiB, MiB), expected.subarray(MiB, 2 * MiB)), 0);
  });

  it("the parent is asked for by its relative path, through the gate", async () => {
    const { child, parent } = makeChild(below, size);
    const asked: string[] = [];
    const gate = async ({ kind, filename }: { readonly kind: string; readonly filename: string }) => {
      asked.push(`${kind}: ${path.relative(dir, filename)}`);
      throw new Error("no");
    };
    await assert.rejects(openBackend(nodeOf(child), { environment: { gate } }), /no/);
    adopt(child, parent, "..\\up\\and\\down.vhdx");
    await assert.rejects(openBackend(nodeOf(child), { environment: { gate } }), /no/);
    assert.deepEqual(asked, [`backing file: ${path.basename(parent)}`, "backing file: ../up/and/down.vhdx"]);
  });

  it("a parent that has been changed since is refused, unless the user names it", async () => {
    const { child, parent } = makeChild(below, size);
    {
      await using image = await openBackend(nodeOf(parent));
      await image.write(0, Uint8Array.of(1));
    }
    {
      await using image = await openBackend(nodeOf(child), { flags: { readOnly: true } });
      await assert.rejects(image.read(0, 512), { errno: "EINVAL", message: /is not the parent that/ });
    }
    await using image = await openBackend(
      { ...nodeOf(child), node: undefined, backing: nodeOf(make(below)) },
      { flags: { readOnly: true } },
    );
    assert.equal(Buffer.compare(await image.read(0, size), below), 0);
  });

  it("the pair of the corpus reads as its producer meant", { skip: noCorpus }, async () => {
    for (const name of ["ntfs-parent.vhdx", "ntfs-differential.vhdx"])
      fs.writeFileSync(
        path.join(dir, name),
        zlib.gunzipSync(fs.readFileSync(path.join(CORPUS, `${name}.gz`))),
      );
    await using image = await openBackend(path.join(dir, "ntfs-differential.vhdx"), {
      flags: { readOnly: true },
    });
    assert.equal(
      await contentDigest(image),
      "1ef1fb5360247aa7d36a38415bc7bf6e1e52f62af5e6bd1283815e82584c7efc",
    );
  });
});

describe("vhdx log and headers", { skip: missing("qemu-img") }, () => {
  it("a sequence of entries is brought in from its tail, also round the end of the log", async () => {
    const filename = make(new Uint8Array(4 * MiB));
    const image = fs.readFileSync(filename);
    const guid = Buffer.alloc(16, 0xab);
    // Three entries from the last but one place on; what an older one said of the same sector is undone by the last.
    const places = [MiB - 16 * KiB, MiB - 8 * KiB, 0];
    for (const [index, place] of places.entries()) {
      const entry = logEntry({
        guid,
        tail: places[0] as number,
        sequence: BigInt(index + 7),
        target: BAT + index * 4096,
        byte: 0x10 + index,
        fileBytes: image.length,
      });
      entry.copy(image, LOG + place);
    }
    // An entry of an older sequence must not count.
    logEntry({ guid, tail: 8 * KiB, sequence: 3n, target: METADATA, byte: 9, fileBytes: image.length }).copy(
      image,
      LOG + 8 * KiB,
    );
    for (const offset of HEADER_OFFSETS) guid.copy(image, offset + Header.offsetOf.logGuid);
    fs.writeFileSync(filename, withHeaders(image, []));
    await assert.rejects(openBackend(nodeOf(filename), { flags: { readOnly: true } }), {
      errno: "EPERM",
      message: /contains a log that needs to be replayed/,
    });
    await (await openBackend(nodeOf(filename), { flags: { check: true } })).close();
    const after = fs.readFileSync(filename);
    for (const [index] of places.entries()) {
      const sector = after.subarray(BAT + index * 4096, BAT + (index + 1) * 4096);
      assert.ok(
        sector.every((byte) => byte === 0x10 + index),
        `sector ${index}`,
      );
    }
    assert.equal(after.toString("latin1", METADATA, METADATA + 8), "metadata");
    assert.ok(isZero(currentHeader(filename).logGuid));
  });

  it("a log of large entries that are none is looked through in bounded time", async () => {
    const filename = make(new Uint8Array(MiB), "log_size=64M");
    const image = fs.readFileSync(filename);
    const guid = Buffer.alloc(16, 0xcd);
    for (let at = 0; at < 64 * MiB; at += 4096) {
      const head = { guid, tail: at, sequence: 1n, target: 0, byte: 0, fileBytes: image.length };
      const entry = logEntry(head).subarray(0, 128);
      entry.writeUInt32LE(64 * MiB, LogEntry.offsetOf.entryLength);
      entry.copy(image, LOG + at);
    }
    for (const offset of HEADER_OFFSETS) guid.copy(image, offset + Header.offsetOf.logGuid);
    fs.writeFileSync(filename, withHeaders(image, []));
    await assert.rejects(openBackend(nodeOf(filename)), { name: "BlockError", errno: "EINVAL" });
    fs.rmSync(filename);
  });

  it("the second region table serves where the first is damaged, and one header is enough", async () => {
    const content = random(3).bytes(MiB);
    const filename = make(content);
    const image = fs.readFileSync(filename);
    image.fill(0, 192 * KiB, 193 * KiB);
    image.fill(0, HEADER_OFFSETS[1], HEADER_OFFSETS[1] + 4096);
    fs.writeFileSync(filename, image);
    await using backend = await openBackend(nodeOf(filename));
    assert.equal(Buffer.compare(await backend.read(0, MiB), content), 0);
    await backend.write(0, Uint8Array.of(1));
    await backend.flush();
    mustRun("qemu-io", ["-r", "-f", "raw", "-c", "read 0 1", filename]);
    const headers = HEADER_OFFSETS.map((offset) => Header.read(fs.readFileSync(filename), offset));
    assert.deepEqual(headers[0]?.dataWriteGuid, headers[1]?.dataWriteGuid);
  });

  it("an image of 64 TiB opens and is written to in little memory", async () => {
    const filename = fresh();
    mustRun("qemu-img", [
      "create",
      "-q",
      "-f",
      "vhdx",
      "-o",
      "block_size=1M,block_state_zero=off",
      filename,
      "64T",
    ]);
    const before = process.memoryUsage().arrayBuffers;
    await using image = await openBackend(nodeOf(filename));
    await image.write(64 * 2 ** 40 - 512, new Uint8Array(512).fill(1));
    assert.deepEqual(await image.read(64 * 2 ** 40 - 1, 1), Uint8Array.of(1));
    assert.ok(process.memoryUsage().arrayBuffers - before < 16 * MiB);
  });

  it("CRC-32C is that of RFC 3720", () => {
    assert.equal(crc32c(Buffer.from("123456789")), 0xe3069283);
    assert.equal(crc32c(new Uint8Array(32)), 0x8a9136aa);
    assert.equal(crc32c(Uint8Array.from({ length: 32 }, (_, index) => index)), 0x46dd794e);
  });
});

interface LogEntryFields {
  readonly guid: Buffer;
  readonly tail: number;
  readonly sequence: bigint;
  readonly target: number;
  /** Fills the sector. */
  readonly byte: number;
  readonly fileBytes: number;
}

/** An entry of one sector of data. */
function logEntry({ guid, tail, sequence, target, byte, fileBytes }: LogEntryFields): Buffer {
  const entry = Buffer.alloc(8192, byte);
  entry.fill(0, 0, 4096);
  entry.write("loge");
  entry.writeUInt32LE(8192, 8);
  entry.writeUInt32LE(tail, 12);
  entry.writeBigUInt64LE(sequence, 16);
  entry.writeUInt32LE(1, 24);
  guid.copy(entry, 32);
  entry.writeBigUInt64LE(BigInt(fileBytes), 48);
  entry.writeBigUInt64LE(BigInt(fileBytes), 56);
  entry.write("desc", 64);
  entry.fill(byte, 68, 80);
  entry.writeBigUInt64LE(BigInt(target), 80);
  entry.writeBigUInt64LE(sequence, 88);
  entry.write("data", 4096);
  entry.writeUInt32LE(0, 4100);
  entry.writeUInt32LE(Number(sequence), 8188);
  entry.writeUInt32LE(crc32c(entry), 4);
  return entry;
}
