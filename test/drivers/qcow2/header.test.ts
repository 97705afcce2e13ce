/** The header: every field out of range beside qemu-img's words, and what is written beside qemu-img's bytes. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, before, describe, it } from "node:test";
import fc from "fast-check";
import { type ParsedHeader, parseHeader, serializeHeader } from "../../../drivers/qcow2/header.ts";
import {
  BitmapDirectoryEntry,
  ExtensionHeader,
  FeatureName,
  HeaderAdditional,
  HeaderV2,
  HeaderV3,
  SnapshotExtra,
  SnapshotHeader,
} from "../../../drivers/qcow2/layout.ts";
import { BlockError } from "../../../src/block/errors.ts";
import { openBackend } from "../../support/graph.ts";
import { tempDir } from "../../support/temp.ts";
import { missing, mustRun, run } from "../../support/tools.ts";
import { makeImage, type Patch, patched, tablesOf } from "./patch.ts";

const skip = missing("qemu-img") || missing("qemu-io");
const dir = tempDir({ after });
const image = (name: string) => path.join(dir, `${name}.qcow2`);

/** What comes of opening: the message of a refusal, or "", and warnings. */
interface Outcome {
  readonly message: string;
  readonly warnings: readonly string[];
}

async function ours(filename: string, readOnly: boolean): Promise<Outcome> {
  const warnings: string[] = [];
  try {
    const backend = await openBackend(
      { driver: "qcow2", file: { driver: "file", filename } },
      {
        flags: { readOnly, noBacking: true, noIo: true },
        environment: { warn: (text, hint) => warnings.push(hint === undefined ? text : `${text}\n${hint}`) },
      },
    );
    try {
      await backend.run(async (co) => backend.node.ops.getSpecificInfo?.(co));
    } finally {
      await backend.close();
    }
    return { message: "", warnings };
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    return { message: error.message, warnings };
  }
}

function theirs(filename: string, readOnly: boolean): Outcome {
  const { code, stderr } = readOnly
    ? run("qemu-img", ["info", "-f", "qcow2", filename])
    : run("qemu-io", ["-f", "qcow2", "-c", "length", filename]);
  const warnings = [...stderr.matchAll(/warning: ([^]*?to fix\.)/g)].map((match) => match[1] as string);
  const message = stderr.split("\n").find((line) => /Could not open|can't open/.test(line)) ?? "";
  const plain = message.replace(/^.*?(Could not open '[^']*'|can't open device [^:]*): /, "");
  return { message: code === 0 ? "" : plain, warnings };
}

function refused(what: string, patches: readonly Patch[], readOnly = true): void {
  it(`${what}${readOnly ? "" : ", to be written"}`, { skip }, async () => {
    const filename = patched(image("base"), patches);
    assert.deepEqual(await ours(filename, readOnly), theirs(filename, readOnly));
  });
}

/** An extension at the end of the header, and the end mark. */
function extension(type: number, data: string, length = data.length): Patch[] {
  const padded = data + "\0".repeat(-data.length & 7);
  return [
    [112, 4, type],
    [116, 4, length],
    [120, padded],
    [120 + padded.length, 8, 0],
  ];
}

function bitmaps(count: number, reserved: number, bytes: bigint, offset: bigint): string {
  const data = Buffer.alloc(24);
  data.writeUInt32BE(count, 0);
  data.writeUInt32BE(reserved, 4);
  data.writeBigUInt64BE(bytes, 8);
  data.writeBigUInt64BE(offset, 16);
  return data.toString("latin1");
}

before(() => {
  if (skip) return;
  makeImage(image("base"), "1M", "", ["write 0 64k"]);
});

describe("qcow2 header refused", () => {
  refused("magic", [[0, 4, 0x514649fc]]);
  for (const version of [0, 1, 4, 2 ** 32 - 1]) refused(`version ${version}`, [[4, 4, version]]);
  for (const bits of [0, 8, 22, 31, 2 ** 32 - 1]) refused(`cluster bits ${bits}`, [[20, 4, bits]]);
  for (const bytes of [0, 72, 100, 103, 65544, 2 ** 32 - 1])
    refused(`header length ${bytes}`, [[100, 4, bytes]]);
  refused("header longer than a small cluster", [
    [20, 4, 9],
    [100, 4, 520],
  ]);
  for (const order of [7, 64, 2 ** 32 - 1]) refused(`refcount order ${order}`, [[96, 4, order]]);
  refused("encryption method 3", [[32, 4, 3]]);

  for (const size of [1n << 63n, 1n << 62n, 1n << 53n, 1n << 50n, (1n << 63n) - (1n << 30n)])
    refused(`size ${size}`, [[24, 8, size]]);
  for (const offset of [1n, 0x10001n, 0x10200n, 1n << 63n])
    for (const [what, field] of [
      ["refcount table", 48],
      ["L1 table", 40],
      ["snapshot table", 64],
    ] as const)
      refused(`${what} at ${offset}`, [[field, 8, offset]]);
  for (const clusters of [0, 129, 2 ** 32 - 1])
    refused(`refcount table clusters ${clusters}`, [[56, 4, clusters]]);
  for (const count of [65537, 2 ** 32 - 1]) refused(`${count} snapshots`, [[60, 4, count]]);
  for (const entries of [0, 4 * 2 ** 20 + 1, 2 ** 32 - 1])
    refused(`${entries} L1 entries`, [[36, 4, entries]]);

  for (const [offset, bytes] of [
    [65537n, 5],
    [65536n, 5],
    [65534n, 5],
    [1n << 63n, 5],
    [0x208n, 1024],
    [200n, 5],
  ] as const)
    refused(`backing name of ${bytes} at ${offset}`, [
      [8, 8, offset],
      [16, 4, bytes],
    ]);
});

describe("qcow2 features refused", () => {
  const names = Buffer.concat(
    (
      [
        [0, 5, "future thing"],
        [1, 6, "compatible"],
        [0, 7, "seven"],
      ] as const
    ).map(([type, bit, name]) => FeatureName.write({ type, bit, name: Buffer.from(name) })),
  ).toString("latin1");
  for (const mask of [1n << 5n, (1n << 63n) | 0x20n, 0x21n, 0xffffffffffffffffn])
    refused(`incompatible 0x${mask.toString(16)}`, [[72, 8, mask]]);
  refused("by the names in the table", [...extension(0x6803f857, names), [72, 8, 0xe0]]);
  refused("by a table cut off", [...extension(0x6803f857, names, 100), [72, 8, 0xe0]]);
  refused("an unknown one, and broken extensions", [...extension(0x12345678, "", 2 ** 31), [72, 8, 0x20]]);
  refused("an unknown one, and the compression type", [[72, 8, 0x28]]);
  refused("compression bit with zlib", [[72, 8, 8]]);
  refused("zstd without the bit", [[104, 1, 1]]);
  refused("compression type 2", [[104, 1, 2]]);
  refused("compression bit in a short header", [
    [72, 8, 8],
    [100, 4, 104],
  ]);
  refused("subclusters of 256 bytes", [
    [72, 8, 16],
    [20, 4, 13],
  ]);
  refused("corrupt", [[72, 8, 2]]);
  refused("corrupt", [[72, 8, 2]], false);
  refused(
    "corrupt, and more",
    [
      [72, 8, 2],
      [96, 4, 7],
    ],
    false,
  );
});

describe("qcow2 header extensions refused", () => {
  refused("too long", extension(0x12345678, "", 65536));
  refused("far too long", extension(0x12345678, "", 2 ** 32 - 1));
  refused("backing format of 16", extension(0xe2792aca, "x".repeat(16)));
  refused("encryption header without encryption", extension(0x0537be77, "x".repeat(16)));
  const directory = 0x50000n;
  const cases: readonly (readonly [string, string])[] = [
    ["short", bitmaps(1, 0, 32n, directory).slice(8)],
    ["no bitmaps", bitmaps(0, 0, 32n, directory)],
    ["65536", bitmaps(65536, 0, 32n, directory)],
    ["reserved", bitmaps(1, 1, 32n, directory)],
    ["directory not aligned", bitmaps(1, 0, 32n, directory + 1n)],
    ["directory far too large", bitmaps(1, 0, 1n << 40n, directory)],
    ["directory too large by one", bitmaps(65535, 0, 65535n * 1024n + 1n, directory)],
    ["directory at 0", bitmaps(1, 0, 32n, 0n)],
    ["directory behind the end", bitmaps(1, 0, 32n, 0x5000000n)],
  ];
  for (const [what, data] of cases) {
    refused(`bitmaps: ${what}`, [...extension(0x23852875, data), [88, 8, 1]]);
    if (what !== "short") refused(`bitmaps out of step: ${what}`, extension(0x23852875, data));
  }
  refused("bitmaps in version 2", [
    [4, 4, 2],
    [72, 4, 0x23852875],
    [76, 4, 24],
    [80, bitmaps(1, 0, 32n, directory)],
    [104, 8, 0],
  ]);
});

describe("qcow2 bitmap directory", () => {
  const entry = () => Number(fs.readFileSync(image("bitmaps")).readBigUInt64BE(field() + 16));
  const field = () => tablesOf(image("bitmaps")).bitmapsExtension;
  before(() => {
    if (skip) return;
    makeImage(image("bitmaps"), "3M", "");
    for (const name of ["foo", "bar"]) mustRun("qemu-img", ["bitmap", "--add", image("bitmaps"), name]);
  });
  const cases: readonly (readonly [string, () => readonly Patch[]])[] = [
    ["unknown flag", () => [[entry() + 12, 4, 8]]],
    ["extra data flag", () => [[entry() + 12, 4, 4]]],
    ["type 0", () => [[entry() + 16, 1, 0]]],
    ["type 2", () => [[entry() + 16, 1, 2]]],
    ["granularity 8", () => [[entry() + 17, 1, 8]]],
    ["granularity 31", () => [[entry() + 17, 1, 31]]],
    ["granularity 32", () => [[entry() + 17, 1, 32]]],
    ["no name", () => [[entry() + 18, 2, 0]]],
    ["name too long", () => [[entry() + 18, 2, 1024]]],
    ["name with a zero", () => [[entry() + 24, "a\0b"]]],
    ["extra data", () => [[entry() + 20, 4, 8]]],
    ["no table", () => [[entry() + 8, 4, 0]]],
    ["huge table", () => [[entry() + 8, 4, 2 ** 31]]],
    ["table not aligned", () => [[entry(), 8, 1]]],
    ["table at 0", () => [[entry(), 8, 0]]],
    ["more than the header says", () => [[field(), 4, 1]]],
    ["fewer than the header says", () => [[field(), 4, 3]]],
    ["longer", () => [[field() + 8, 8, 72]]],
    ["shorter", () => [[field() + 8, 8, 56]]],
  ];
  for (const [what, patches] of cases)
    it(what, { skip }, async () => {
      const filename = patched(image("bitmaps"), patches());
      assert.deepEqual(await ours(filename, true), theirs(filename, true));
    });
});

describe("qcow2 header that can't be read", () => {
  /** An unknown extension that fills up to byte 504, then the one in question, whose data are in the next sector. */
  const nextSector = (type: number, length: number): Patch[] => [
    [112, 4, 0x11111111],
    [116, 4, 384],
    [504, 4, type],
    [508, 4, length],
    [512 + Math.ceil(length / 8) * 8, 8, 0],
  ];
  const cases: readonly (readonly [string, number, readonly Patch[]])[] = [
    ["the header", 0, []],
    [
      "unknown fields",
      1,
      [
        [100, 4, 1024],
        [1024, 8, 0],
      ],
    ],
    [
      "an extension's header",
      1,
      [
        [112, 4, 0x11111111],
        [116, 4, 392],
        [512, 8, 0],
      ],
    ],
    ["an unknown extension", 1, nextSector(0x22222222, 8)],
    ["the backing format", 1, nextSector(0xe2792aca, 3)],
    ["the data file's name", 1, nextSector(0x44415441, 3)],
    ["names of features, which nobody needs", 1, nextSector(0x6803f857, 48)],
    ["names of features", 1, [...nextSector(0x6803f857, 48), [72, 8, 32]]],
    ["the bitmaps extension", 1, [...nextSector(0x23852875, 24), [88, 8, 1]]],
    ["something behind the end mark", 1, [[112, 8, 0]]],
    ["the L1 table", 0x30000 / 512, []],
    ["the refcount table", 0x10000 / 512, []],
  ];
  for (const [what, sector, patches] of cases)
    it(what, { skip }, async () => {
      const filename = patched(image("base"), patches);
      const inject = { event: "none", sector: String(sector) };
      const options = {
        driver: "qcow2",
        file: { driver: "blkdebug", image: { driver: "file", filename }, "inject-error": [inject] },
      };
      const failed = openBackend(options, { flags: { readOnly: true, noBacking: true, noIo: true } }).then(
        (backend) => backend.close().then(() => ""),
        (error: unknown) => (error as Error).message,
      );
      const { code, stderr } = run("qemu-img", ["info", "-f", "qcow2", `json:${JSON.stringify(options)}`]);
      const message = stderr.trimEnd().split("': ").at(-1);
      assert.equal(await failed, code === 0 ? "" : message);
    });
});

describe("qcow2 header of files cut off", () => {
  for (const bytes of [0, 3, 4, 20, 71, 72, 103, 104, 111, 112, 120, 200])
    it(`${bytes} bytes`, { skip }, async () => {
      const filename = patched(image("base"), [], bytes);
      assert.deepEqual(await ours(filename, true), theirs(filename, true));
    });
});

describe("qcow2 header written", () => {
  async function headerOf(filename: string): Promise<ParsedHeader> {
    const backend = await openBackend(
      { driver: "raw", file: { driver: "file", filename } },
      { flags: { readOnly: true } },
    );
    try {
      return await backend.run((co) =>
        parseHeader(co, backend.root, { writable: false, check: false, warn: assert.fail }),
      );
    } finally {
      await backend.close();
    }
  }

  for (const options of [
    "",
    "cluster_size=512",
    "compat=v2",
    "refcount_bits=1,lazy_refcounts=on",
    "extended_l2=on,compression_type=zstd",
    "cluster_size=2M,backing_file=base.qcow2,backing_fmt=qcow2",
  ])
    it(`as it was read: ${options}`, { skip }, async () => {
      const filename = image("written");
      makeImage(filename, "1M", options);
      const cluster = Buffer.from(serializeHeader(await headerOf(filename)));
      assert.ok(cluster.equals(fs.readFileSync(filename).subarray(0, cluster.length)));
    });

  it("bytes and extensions that nobody knows are kept as qemu-img keeps them", { skip }, async () => {
    const filename = patched(image("base"), [
      [100, 4, 128],
      [112, "UNKNOWNHEADER!!!"],
      [128, 4, 0xabcdef01],
      [132, 4, 5],
      [136, "hello\x01\x02\x03"],
      [144, 4, 0xe2792aca],
      [148, 4, 3],
      [152, "raw\0\0\0\0\0"],
      [160, 4, 0xabcdef02],
      [164, 4, 8],
      [168, "12345678"],
      [176, 8, 0],
    ]);
    const backingFile = image("base");
    const cluster = serializeHeader({ ...(await headerOf(filename)), backingFile, backingFormat: "qcow2" });
    mustRun("qemu-img", ["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", backingFile, filename]);
    assert.ok(fs.readFileSync(filename).subarray(0, 65536).equals(cluster));
  });

  it("what does not go into the cluster is refused", () => {
    assert.throws(() => serializeHeader({ ...SMALL, backingFile: "x".repeat(400) }), { errno: "ENOSPC" });
    const unknownExtensions = [{ type: 1, data: new Uint8Array(500) }];
    assert.throws(() => serializeHeader({ ...SMALL, unknownExtensions }), { errno: "ENOSPC" });
  });
});

const SMALL: Omit<ParsedHeader, "headerLength" | "hasStaleBitmaps"> = {
  version: 3,
  clusterBits: 9,
  size: 0,
  refcountBits: 16,
  compressionType: "zlib",
  incompatibleFeatures: 0n,
  compatibleFeatures: 0n,
  autoclearFeatures: 0n,
  l1TableOffset: 0,
  l1Size: 0,
  refcountTableOffset: 512,
  refcountTableClusters: 1,
  snapshotsOffset: 0,
  nbSnapshots: 0,
  unknownHeader: new Uint8Array(0),
  unknownExtensions: [],
  backingFile: undefined,
  backingFormat: undefined,
  dataFileName: undefined,
  bitmaps: undefined,
  cryptMethod: 0,
  cryptoHeader: undefined,
};

describe("qcow2 records", () => {
  it("have the sizes and offsets of the specification", () => {
    assert.equal(HeaderV2.size, 72);
    assert.equal(HeaderV2.offsetOf.l1TableOffset, 40);
    assert.equal(HeaderV2.offsetOf.snapshotsOffset, 64);
    assert.equal(HeaderV2.size + HeaderV3.offsetOf.headerLength, 100);
    assert.equal(HeaderV2.size + HeaderV3.size + HeaderAdditional.size, 112);
    assert.equal(ExtensionHeader.size, 8);
    assert.equal(FeatureName.size, 48);
    assert.equal(SnapshotHeader.size, 40);
    assert.equal(SnapshotExtra.size, 24);
    assert.equal(BitmapDirectoryEntry.size, 24);
  });

  it("read back as they were written", () => {
    const u32 = fc.integer({ min: 0, max: 2 ** 32 - 1 });
    const u64 = fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER });
    const record = fc.record({
      magic: u32,
      version: u32,
      backingFileOffset: u64,
      backingFileSize: u32,
      clusterBits: u32,
      size: u64,
      cryptMethod: u32,
      l1Size: u32,
      l1TableOffset: u64,
      refcountTableOffset: u64,
      refcountTableClusters: u32,
      nbSnapshots: u32,
      snapshotsOffset: u64,
    });
    fc.assert(
      fc.property(record, (header) => assert.deepEqual(HeaderV2.read(HeaderV2.write(header)), { ...header })),
      { seed: 2, numRuns: 200 },
    );
  });
});
