/** The formats that are only read (bochs, cloop, dmg): the conformance suite over images made here, their codecs, and images that lie. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import zlib from "node:zlib";
import { BlockError } from "../../src/block/errors.ts";
import { open } from "../../src/index.ts";
import { type ConformanceSubject, conformance } from "../conformance.ts";
import { openBackend } from "../support/graph.ts";
import { random } from "../support/random.ts";
import { tempDir } from "../support/temp.ts";
import { missing, mustRun } from "../support/tools.ts";

const dir = tempDir({ after });
let made = 0;

function fileWith(content: Uint8Array, suffix = ""): string {
  const filename = path.join(dir, `image${made++}${suffix}`);
  fs.writeFileSync(filename, content);
  return filename;
}

const nodeOf = (driver: string, filename: string) => ({ driver, file: { driver: "file", filename } });

/** `unit` bytes of content go into one block of the format. */
function subject(
  driver: string,
  unit: number,
  build: (content: Uint8Array) => Uint8Array,
): ConformanceSubject {
  return {
    name: driver,
    unit,
    canWrite: false,
    keepsData: true,
    canOverwrite: false,
    canTruncate: false,
    discarded: "any",
    async make(content) {
      const filename = fileWith(build(content));
      return { open: () => openBackend(nodeOf(driver, filename), { flags: { readOnly: true } }) };
    },
  };
}

const u32 = (value: number) => {
  const field = Buffer.alloc(4);
  field.writeUInt32BE(value);
  return field;
};
const u64 = (value: number) => {
  const field = Buffer.alloc(8);
  field.writeBigUInt64BE(BigInt(value));
  return field;
};

function* blocksOf(content: Uint8Array, unit: number): Generator<Uint8Array> {
  for (let at = 0; at < content.length; at += unit) yield content.subarray(at, at + unit);
}

function buildCloop(content: Uint8Array, unit = 4096): Buffer {
  const script = Buffer.alloc(128);
  script.write(
    "#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\nexit $?\n",
  );
  const blocks = [...blocksOf(content, unit)].map((block) => zlib.deflateSync(block));
  let offset = 128 + 8 + (blocks.length + 1) * 8;
  const offsets = [u64(offset), ...blocks.map((block) => u64((offset += block.length)))];
  return Buffer.concat([script, u32(unit), u32(blocks.length), ...offsets, ...blocks]);
}

/** Extents of 4096 bytes in a wild order; sectors that are zero are not there. */
function buildBochs(content: Uint8Array): Buffer {
  const header = Buffer.alloc(512);
  header.write("Bochs Virtual HD Image");
  header.write("Redolog", 32);
  header.write("Growing", 48);
  const extents = [...blocksOf(content, 4096)];
  for (const [at, value] of [0x20000, 512, extents.length, 1, 4096, 0, content.length].entries())
    header.writeUInt32LE(value, 64 + at * 4);
  const isZero = (part: Uint8Array) => part.every((byte) => byte === 0);
  const order = extents.flatMap((extent, index) => (isZero(extent) ? [] : [index])).reverse();
  const catalog = Buffer.alloc(extents.length * 4, 0xff);
  const data = order.map((index, place) => {
    catalog.writeUInt32LE(place, index * 4);
    const bitmap = Buffer.alloc(512);
    for (const [sector, part] of [...blocksOf(extents[index] as Uint8Array, 512)].entries())
      if (!isZero(part)) bitmap[0] = (bitmap[0] as number) | (1 << sector);
    // What the bitmap says is not there is not to be seen.
    return [
      bitmap,
      ...[...blocksOf(extents[index] as Uint8Array, 512)].map((part) =>
        isZero(part) ? Buffer.alloc(512, 0xee) : part,
      ),
    ];
  });
  return Buffer.concat([header, catalog, ...data.flat()]);
}

const Type = {
  Zero: 0,
  Raw: 1,
  Ignore: 2,
  Adc: 0x80000004,
  Zlib: 0x80000005,
  Bzip2: 0x80000006,
  Lzfse: 0x80000007,
  Lzma: 0x80000008,
} as const;

interface Chunk {
  readonly type: number;
  readonly sectors: number;
  readonly data: Uint8Array;
}

/** An image of these chunks, whose table lies in a property list or in a resource fork. */
function buildDmg(chunks: readonly Chunk[], place: "plist" | "fork"): Buffer {
  const end = { type: 0xffffffff, sectors: 0, data: Buffer.alloc(0) };
  let sector = 0;
  let offset = 0;
  const rows = [...chunks, end].map(({ type, sectors, data }) => {
    const row = [u32(type), u32(0), u64(sector), u64(sectors), u64(offset), u64(data.length)];
    sector += sectors;
    offset += data.length;
    return row;
  });
  const mish = Buffer.concat([
    Buffer.from("mish"),
    u32(1),
    u64(0),
    u64(sector),
    u64(0),
    Buffer.alloc(168),
    u32(rows.length),
    ...rows.flat(),
  ]);
  const note = Buffer.from("no table");
  const items = [note, mish].flatMap((item) => [u32(item.length), item]);
  const itemBytes = items.reduce((bytes, item) => bytes + item.length, 0);
  const tables =
    place === "fork"
      ? Buffer.concat([u32(16), u32(16 + itemBytes), u32(itemBytes), u32(0), ...items])
      : Buffer.from(
          `<plist><dict><key>blkx</key><array><data>\n${note.toString("base64")}</data>\n<data>\n` +
            `\t${mish.toString("base64").replaceAll(/.{60}/g, "$&\n\t")}\n</data></array></dict></plist>\n`,
        );
  const koly = Buffer.alloc(512);
  koly.write("koly");
  koly.writeUInt32BE(4, 4);
  koly.writeUInt32BE(512, 8);
  const at = place === "fork" ? 0x28 : 0xd8;
  u64(offset).copy(koly, at);
  u64(tables.length).copy(koly, at + 8);
  u64(sector).copy(koly, 0x1ec);
  return Buffer.concat([...chunks.map(({ data }) => data), tables, koly]);
}

/** Runs of one byte become copies of what is before them, short and long ones; all else is literal. */
function encodeAdc(content: Uint8Array): Buffer {
  const output: number[] = [];
  for (let at = 0; at < content.length; ) {
    let run = 0;
    while (at > 0 && at + run < content.length && content[at + run] === content[at - 1] && run < 67) run++;
    if (run >= 4) {
      if (run <= 18) output.push((run - 3) << 2, 0);
      else output.push(0x40 | (run - 4), 0, 0);
      at += run;
    } else output.push(0x80, content[at++] as number);
  }
  return Buffer.from(output);
}

/** Chunks of all kinds, in turn. */
function buildMixed(content: Uint8Array, place: "plist" | "fork"): Buffer {
  const chunks = [...blocksOf(content, 4096)].map((block, index): Chunk => {
    const sectors = block.length / 512;
    if (block.every((byte) => byte === 0))
      return { type: index % 2 === 0 ? Type.Zero : Type.Ignore, sectors, data: Buffer.alloc(0) };
    if (index % 3 === 0) return { type: Type.Raw, sectors, data: block };
    if (index % 3 === 1) return { type: Type.Adc, sectors, data: encodeAdc(block) };
    return { type: Type.Zlib, sectors, data: zlib.deflateSync(block) };
  });
  return buildDmg(chunks, place);
}

describe("conformance of read-only formats", () => {
  conformance(it, subject("bochs", 4096, buildBochs));
  conformance(
    it,
    subject("cloop", 4096, (content) => buildCloop(content)),
  );
  conformance(it, {
    ...subject("dmg", 4096, (content) => buildMixed(content, "plist")),
    name: "dmg, property list",
  });
  conformance(it, {
    ...subject("dmg", 4096, (content) => buildMixed(content, "fork")),
    name: "dmg, resource fork",
  });
});

const content = Buffer.concat([
  random(1).bytes(20_000),
  Buffer.alloc(200_000, "all of a kind "),
  random(2).bytes(160),
]);
assert.equal(content.length % 512, 0);
const sectors = content.length / 512;

/** What a tool of the system makes of the content. */
function packed(tool: string): Buffer {
  const { stdout, status } = spawnSync(tool, ["-c"], { input: content, maxBuffer: 2 ** 22 });
  assert.equal(status, 0);
  return stdout;
}

async function readDmg(chunk: Chunk): Promise<Uint8Array> {
  const filename = fileWith(buildDmg([chunk], "plist"));
  await using image = await openBackend(nodeOf("dmg", filename), { flags: { readOnly: true } });
  return image.read(0, chunk.sectors * 512);
}

describe("dmg codecs", () => {
  const codecs: readonly (readonly [
    name: string,
    type: number,
    tool: string | undefined,
    encode: () => Buffer,
  ])[] = [
    ["zlib", Type.Zlib, undefined, () => zlib.deflateSync(content)],
    ["ADC", Type.Adc, undefined, () => encodeAdc(content)],
    ["bzip2", Type.Bzip2, "bzip2", () => packed("bzip2")],
    ["lzma", Type.Lzma, "xz", () => packed("xz")],
  ];
  for (const [name, type, tool, encode] of codecs) {
    it(`${name}: what was packed comes out`, { skip: tool && missing(tool) }, async () => {
      assert.equal(Buffer.compare(await readDmg({ type, sectors, data: encode() }), content), 0);
    });

    it(`${name}: what is damaged, too short or too long is EIO`, {
      skip: tool && missing(tool),
    }, async () => {
      const data = encode();
      const cases = [
        { type, sectors, data: data.subarray(0, data.length >> 1) },
        { type, sectors: sectors + 1, data },
        { type, sectors: sectors - 1, data },
        { type, sectors, data: data.subarray(1) },
        { type, sectors, data: Buffer.alloc(0) },
      ];
      for (const chunk of cases) await assert.rejects(readDmg(chunk), { name: "BlockError", errno: "EIO" });
    });
  }

  it("ADC: a copy from before the start is EIO", async () => {
    for (const data of [
      Buffer.of(0, 0),
      Buffer.of(0x80, 1, 0, 1),
      Buffer.of(0x80, 1, 0x40, 0, 1),
      Buffer.of(0xff, 1),
    ])
      await assert.rejects(readDmg({ type: Type.Adc, sectors: 1, data }), { errno: "EIO" });
  });

  it("LZFSE is refused by its name", async () => {
    const message = "LZFSE compressed dmg images are not supported";
    await assert.rejects(readDmg({ type: Type.Lzfse, sectors: 1, data: Buffer.alloc(9) }), {
      errno: "ENOTSUP",
      message,
    });
  });
});

describe("probing of read-only formats", () => {
  it("by content, by name, and a dmg by its end", async () => {
    const dmg = (padding: number) => {
      const data = Buffer.concat([zlib.deflateSync(content.subarray(0, 8192)), Buffer.alloc(padding)]);
      return buildDmg([{ type: Type.Zlib, sectors: 16, data }], "fork");
    };
    const images = [
      ["bochs", fileWith(buildBochs(content.subarray(0, 8192)))],
      ["cloop", fileWith(buildCloop(content.subarray(0, 8192)))],
      ["dmg", fileWith(dmg(0), ".dmg")],
      // Its end is where sectors end.
      ["dmg", fileWith(dmg(512 - (dmg(0).length % 512)))],
    ] as const;
    for (const [format, filename] of images) {
      await using image = await open(filename);
      assert.equal(image.node.driver.formatName, format);
      assert.equal(Buffer.compare(await image.read(0, 8192), content.subarray(0, 8192)), 0);
    }
  });

  it("sparse images and bundles of macOS are refused by name", async () => {
    const bundle =
      "<?xml?>\n<key>diskimage-bundle-type</key>\n<string>com.apple.diskimage.sparsebundle</string>";
    for (const [format, head] of [
      ["sparseimage", "sprs\0\0\0\x03"],
      ["sparsebundle", bundle],
    ] as const)
      await assert.rejects(open(fileWith(Buffer.concat([Buffer.from(head, "latin1")], 4096))), {
        message: `Image format '${format}' is not supported`,
      });
  });
});

describe("read-only formats beside qemu-img", { skip: missing("qemu-img") }, () => {
  it("the images made here give the same content", () => {
    for (const [format, image] of [
      ["bochs", buildBochs(content.subarray(0, 65536))],
      ["cloop", buildCloop(content.subarray(0, 65536), 8192)],
      [
        "dmg",
        buildDmg(
          [...blocksOf(content, 32768)].map((block) => ({
            type: Type.Zlib,
            sectors: block.length / 512,
            data: zlib.deflateSync(block),
          })),
          "fork",
        ),
      ],
    ] as const) {
      const filename = fileWith(image);
      mustRun("qemu-img", ["convert", "-f", format, "-O", "raw", filename, `${filename}.raw`]);
      const raw = fs.readFileSync(`${filename}.raw`);
      assert.equal(Buffer.compare(raw, content.subarray(0, raw.length)), 0, format);
    }
  });
});

describe("read-only formats refuse what lies", () => {
  const cases: readonly (readonly [format: string, image: () => Buffer, message: RegExp])[] = [
    ["bochs", () => buildBochs(content).fill(0, 32, 48), /^Image not in Bochs format$/],
    ["bochs", () => poke(buildBochs(content), 72, 0xffffffff), /^Catalog size is too large$/],
    ["bochs", () => poke(buildBochs(content), 72, 1), /^Catalog size is too small for this disk size$/],
    ["bochs", () => poke(buildBochs(content), 80, 0), /^Extent size must be at least 512$/],
    ["bochs", () => poke(buildBochs(content), 80, 4097), /^Extent size 4097 is not a power of two$/],
    ["bochs", () => poke(buildBochs(content), 80, 2 ** 24), /^Extent size 16777216 is too large$/],
    ["cloop", () => pokeBe(buildCloop(content), 128, 0), /^block_size cannot be zero$/],
    ["cloop", () => pokeBe(buildCloop(content), 128, 4097), /^block_size 4097 must be a multiple of 512$/],
    [
      "cloop",
      () => pokeBe(buildCloop(content), 128, 2 ** 27),
      /^block_size 134217728 must be 64 MB or less$/,
    ],
    [
      "cloop",
      () => pokeBe(buildCloop(content), 132, 0xffffffff),
      /^n_blocks 4294967295 must be 536870911 or less$/,
    ],
    ["cloop", () => pokeBe(buildCloop(content), 132, 2 ** 28), /^image requires too many offsets/],
    [
      "cloop",
      () => pokeBe(buildCloop(content), 132, 2 ** 25),
      /^offsets not monotonically increasing at index|^invalid/,
    ],
    ["dmg", () => Buffer.alloc(100), /^Could not locate UDIF trailer in dmg file$/],
    ["dmg", () => Buffer.alloc(0), /^dmg file must be at least 512 bytes long$/],
  ];
  for (const [format, build, message] of cases)
    it(`${format}: ${message.source}`, async () => {
      const opening = openBackend(nodeOf(format, fileWith(build())), { flags: { readOnly: true } });
      await assert.rejects(opening, (error) => error instanceof BlockError && message.test(error.message));
    });

  it("and can't be opened to be written", async () => {
    const opening = openBackend(nodeOf("bochs", fileWith(buildBochs(content))));
    await assert.rejects(opening, { errno: "EACCES", message: "Image is read-only" });
  });
});

function poke(image: Buffer, offset: number, value: number): Buffer {
  image.writeUInt32LE(value, offset);
  return image;
}

function pokeBe(image: Buffer, offset: number, value: number): Buffer {
  image.writeUInt32BE(value, offset);
  return image;
}
