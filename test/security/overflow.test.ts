/** Numbers in images that other readers have computed with before they looked at them, and images that never end. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { describe, it } from "node:test";
import { deflateRawSync } from "node:zlib";
import { BlockError, check, create, inspect, map, type OpenOptions, open } from "../../src/index.ts";
import { SECRETS } from "../fuzz/bases.ts";
import type { FuzzFormat } from "../fuzz/format.ts";
import { bochs } from "../fuzz/formats/bochs.ts";
import { cloop } from "../fuzz/formats/cloop.ts";
import { dmg } from "../fuzz/formats/dmg.ts";
import { type Cleanup, tempDir } from "../support/temp.ts";

interface Lie {
  readonly cve: string;
  readonly format: string;
  readonly what: string;
  /** Offset, bytes of the number (negative: little-endian), and the number. */
  readonly patches: readonly (readonly [offset: number, width: number, value: bigint])[];
  /** What is said of it. */
  readonly says: RegExp;
}

const ALL32 = 0xffffffffn;
const HUGE = 0x7fffffffffffffffn;

const lies: readonly Lie[] = [
  {
    cve: "CVE-2014-0142",
    format: "parallels",
    what: "a cluster of no sectors",
    patches: [[28, -4, 0n]],
    says: /Invalid image|Zero sectors/i,
  },
  {
    cve: "CVE-2014-0142",
    format: "bochs",
    what: "extents of no bytes",
    patches: [[80, -4, 0n]],
    says: /Extent size/,
  },
  {
    cve: "CVE-2014-0143",
    format: "bochs",
    what: "a catalog of 2^31 entries",
    patches: [[72, -4, 0x80000000n]],
    says: /Catalog size/,
  },
  {
    cve: "CVE-2014-0143",
    format: "parallels",
    what: "a catalog of 2^32-1 entries",
    patches: [[32, -4, ALL32]],
    says: /Catalog too large/,
  },
  {
    cve: "CVE-2014-0143",
    format: "qcow2",
    what: "an L1 table of 2^32-1 entries",
    patches: [[36, 4, ALL32]],
    says: /L1 table too large/,
  },
  {
    cve: "CVE-2014-0143",
    format: "cloop",
    what: "2^32-1 blocks",
    patches: [[132, 4, ALL32]],
    says: /too large|block/i,
  },
  {
    cve: "CVE-2014-0144",
    format: "cloop",
    what: "blocks of 4 GiB",
    patches: [[128, 4, 0xfffffe00n]],
    says: /block_size/,
  },
  {
    cve: "CVE-2014-0144",
    format: "cloop",
    what: "offsets that run backwards",
    patches: [[144, 8, 0n]],
    says: /offsets? not monotonically|image file is corrupt/i,
  },
  {
    cve: "CVE-2014-0144",
    format: "qcow2",
    what: "a backing file's name behind the cluster",
    patches: [
      [8, 8, HUGE],
      [16, 4, 1023n],
    ],
    says: /backing file offset/,
  },
  {
    cve: "CVE-2014-0144",
    format: "qcow2",
    what: "a header longer than its cluster",
    patches: [[100, 4, ALL32]],
    says: /header exceeds cluster size/,
  },
  {
    cve: "CVE-2014-0144",
    format: "qcow2",
    what: "a refcount table of 2^32-1 clusters",
    patches: [[56, 4, ALL32]],
    says: /Reference count table too large/,
  },
  {
    cve: "CVE-2014-0144",
    format: "vdi",
    what: "2^32-1 blocks",
    patches: [[384, -4, ALL32]],
    says: /VDI|image/,
  },
  {
    cve: "CVE-2014-0144",
    format: "vpc",
    what: "blocks of no bytes",
    patches: [[512 + 32, 4, 0n]],
    says: /checksum|Invalid block size/i,
  },
  {
    cve: "CVE-2014-0144",
    format: "vmdk",
    what: "grains of 2^63 sectors",
    patches: [[20, -8, HUGE]],
    says: /grain size|granularity|too large/i,
  },
  {
    cve: "CVE-2014-0145",
    format: "qcow2",
    what: "2^32-1 snapshots",
    patches: [[60, 4, ALL32]],
    says: /Snapshot table too large/,
  },
  {
    cve: "CVE-2014-0146",
    format: "qcow2",
    what: "a snapshot table at no cluster",
    patches: [
      [60, 4, 1n],
      [64, 8, 0x1234n],
    ],
    says: /Snapshot table offset invalid/,
  },
  {
    cve: "CVE-2014-0147",
    format: "qcow2",
    what: "a refcount table at 2^63-1",
    patches: [[48, 8, HUGE]],
    says: /Reference count table offset invalid/,
  },
  {
    cve: "CVE-2014-0147",
    format: "bochs",
    what: "a catalog of -1 entries",
    patches: [[72, -4, ALL32]],
    says: /Catalog size/,
  },
  {
    cve: "CVE-2014-0222",
    format: "qcow",
    what: "L2 tables of 2^63 entries",
    patches: [[33, 1, 63n]],
    says: /L2 table size/,
  },
  {
    cve: "CVE-2014-0222",
    format: "qcow",
    what: "clusters of 2^63 bytes",
    patches: [[32, 1, 63n]],
    says: /Cluster size/,
  },
  {
    cve: "CVE-2014-0223",
    format: "qcow",
    what: "2^63-1 bytes",
    patches: [[24, 8, HUGE]],
    says: /Image too large/,
  },
  {
    cve: "CVE-2014-0223",
    format: "qcow",
    what: "a size that wraps",
    patches: [[24, 8, 0xfffffffffffff800n]],
    says: /Image too large/,
  },
];

const HAND_MADE: Readonly<Record<string, FuzzFormat>> = { bochs, cloop, dmg };

/** A valid image of 64 KiB or so. */
async function validImage(test: Cleanup, format: string, options: object = {}): Promise<string> {
  const filename = path.join(tempDir(test), `image.${format}`);
  const hand = HAND_MADE[format];
  if (hand) {
    // Those need nothing of the workshop.
    const [base] = await hand.bases(undefined as never);
    fs.writeFileSync(filename, base?.content as Uint8Array);
  } else await create(filename, { format, size: 65536, secrets: SECRETS, options } as never);
  return filename;
}

function patch(filename: string, patches: Lie["patches"]): void {
  const image = fs.readFileSync(filename);
  for (const [offset, width, value] of patches) {
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64BE(value);
    const number = bytes.subarray(8 - Math.abs(width));
    image.set(width < 0 ? number.reverse() : number, offset);
  }
  fs.writeFileSync(filename, image);
}

describe("the overflows of 2014 (CVE-2014-0142 to 0148, 0222, 0223)", () => {
  for (const { cve, format, what, patches, says } of lies)
    it(`${cve}: ${format}: ${what}`, async (t) => {
      const filename = await validImage(t, format);
      patch(filename, patches);
      await assert.rejects(open(filename, { format }), (error) => {
        assert.ok(error instanceof BlockError, String(error));
        assert.match(error.message, says);
        return true;
      });
      const verdict = await inspect(filename, { format });
      assert.equal(verdict.safe, false);
    });

  it("CVE-2014-0145: qcow2: a snapshot with an L1 table of 2^32-1 entries is not loaded", async (t) => {
    const filename = await validImage(t, "qcow2");
    await using(filename, { writable: true }, (image) => image.snapshots.create("one"));
    const image = fs.readFileSync(filename);
    const table = Number(image.readBigUInt64BE(64));
    patch(filename, [[table + 8, 4, ALL32]]);
    await assert.rejects(open(filename, { format: "qcow2", snapshot: "one" }), {
      name: "BlockError",
      errno: "EFBIG",
    });
    assert.ok((await check(filename, { format: "qcow2" })).corruptions > 0);
  });

  it("CVE-2014-0147: qcow2: L2 entries that point to 2^56 are read as what they are", async (t) => {
    const filename = await validImage(t, "qcow2");
    await using(filename, { writable: true }, (image) => image.write(0, Buffer.alloc(512, 1)));
    const image = fs.readFileSync(filename);
    const l2 = Number(image.readBigUInt64BE(Number(image.readBigUInt64BE(40))) & 0xfffffffffffffen);
    patch(filename, [[l2, 8, 0x80fffffffffffe00n]]);
    await using(filename, {}, (opened) => assert.rejects(opened.read(0, 512), { errno: "EIO" }));
  });

  it("CVE-2014-0148: vhdx: numbers that other numbers are divided by", async (t) => {
    // Bytes of a block, and of a sector, in the metadata; both copies of what leads there have checksums of their own.
    for (const value of [0n, 1n, ALL32])
      for (const item of [0, 1, 2, 3, 4]) {
        const filename = await validImage(t, "vhdx");
        const metadata = fs.readFileSync(filename).indexOf("metadata");
        const offset = metadata + fs.readFileSync(filename).readUInt32LE(metadata + 32 + item * 32 + 16);
        patch(filename, [[offset, -4, value]]);
        await openAndRead(filename, { format: "vhdx" });
      }
  });
});

describe("images that never end", () => {
  /** One cluster of compressed zeroes that all the image's clusters are. */
  async function bomb(t: Cleanup, clusters: number): Promise<string> {
    const filename = path.join(tempDir(t), "bomb.qcow2");
    await create(filename, { format: "qcow2", size: clusters * 65536 });
    await using(filename, { writable: true }, (image) =>
      image.write(0, Buffer.alloc(65536, 1), { compressed: true }),
    );
    const image = fs.readFileSync(filename);
    const l2 = Number(image.readBigUInt64BE(Number(image.readBigUInt64BE(40))) & 0xfffffffffffffen);
    for (let index = 1; index < clusters; index++) image.copy(image, l2 + index * 8, l2, l2 + 8);
    fs.writeFileSync(filename, image);
    return filename;
  }

  it("stop where the decompressed bytes are over the limit", async (t) => {
    const filename = await bomb(t, 512);
    const options = { format: "qcow2", untrusted: { decompressedBytes: 4 * 65536 } };
    const message = "The compressed data of the untrusted image holds more than the limit of 262144 bytes";
    await using(filename, options, async (image) => {
      await assert.rejects(image.read(0, 512 * 65536), { errno: "EFBIG", message });
    });
    const { anomalies } = await inspect(filename);
    assert.ok(anomalies.some(({ code }) => code === "corrupt"));
  });

  it("are told by inspect for what they hold", async (t) => {
    const filename = await bomb(t, 4096);
    const { anomalies, safe } = await inspect(filename);
    assert.equal(safe, false);
    assert.ok(anomalies.some(({ code }) => code === "expansion"));
  });

  it("may not hold more than their cluster: deflate data that goes on is cut", async (t) => {
    const filename = await bomb(t, 1);
    const image = fs.readFileSync(filename);
    const l2 = Number(image.readBigUInt64BE(Number(image.readBigUInt64BE(40))) & 0xfffffffffffffen);
    const entry = image.readBigUInt64BE(l2);
    const at = Number(entry & 0x003fffffffffffffn);
    const endless = deflateRawSync(Buffer.alloc(64 * 2 ** 20, 9));
    image.set(endless.subarray(0, image.length - at), at);
    image.writeBigUInt64BE(entry | (0xffn << 54n), l2);
    fs.writeFileSync(filename, image);
    await using(filename, {}, async (opened) => {
      assert.deepEqual(Buffer.from(await opened.read(0, 65536)), Buffer.alloc(65536, 9));
    });
  });

  it("are over the limits of their size, tables and time", async (t) => {
    const filename = path.join(tempDir(t), "large.qcow2");
    await create(filename, { format: "qcow2", size: 2 ** 42 });
    const wants = {
      size: [{ virtualBytes: 2 ** 41 }, "EFBIG", /The size of the untrusted image/],
      "default size": [true, "EFBIG", /over the limit of 2199023255552 bytes/],
      tables: [{ virtualBytes: 2 ** 43, tableBytes: 65536 }, "EFBIG", /The tables of the untrusted image/],
      time: [{ virtualBytes: 2 ** 43, seconds: 0 }, "ETIMEDOUT", /takes longer than the limit of 0 s/],
    } as const;
    for (const [what, [untrusted, errno, message]] of Object.entries(wants))
      await assert.rejects(open(filename, { format: "qcow2", untrusted }), { errno, message }, what);
    await using(filename, { untrusted: { virtualBytes: 2 ** 43 } }, (image) => image.read(2 ** 41, 512));
  });

  it("ask for no more of a key derivation than their time allows", async (t) => {
    const filename = await validImage(t, "luks", { "key-secret": "key", "iter-time": 1 });
    const options = { driver: "luks", file: { driver: "file", filename }, "key-secret": "key" } as const;
    const untrusted = { seconds: 10 };
    await using image = await open(options, { secrets: SECRETS, untrusted });
    await image.close();
    patch(filename, [[208 + 4, 4, 90_000_000n]]);
    await assert.rejects(open(options, { secrets: SECRETS, untrusted }), {
      errno: "ETIMEDOUT",
      message: "The keys of the untrusted image take longer than the limit of 10 s",
    });
  });

  it("end with the command's time, also where nothing asks for it", async (t) => {
    const filename = path.join(tempDir(t), "x.raw");
    fs.writeFileSync(filename, Buffer.alloc(512));
    const main = path.resolve(import.meta.dirname, "../../src/cli/main.ts");
    // A second, with the ten that are left to a clean end.
    const args = [
      "--import",
      "tsx",
      main,
      "io",
      "--limits",
      "time=-9",
      "-f",
      "raw",
      "-c",
      "sleep 600000",
      filename,
    ];
    const child = spawn(process.execPath, args, { stdio: ["ignore", "ignore", "pipe"] });
    let text = "";
    child.stderr.on("data", (data: Buffer) => {
      text += data.toString();
    });
    const signal = await new Promise((resolve) => child.on("close", (_, by) => resolve(by)));
    assert.equal(signal, "SIGKILL", text);
    assert.match(text, /keeps the command longer than its limit/);
  });

  it("of millions of tables that are all one are mapped by their limits", async (t) => {
    const filename = path.join(tempDir(t), "loop.qcow2");
    await create(filename, { format: "qcow2", size: 2 ** 36, options: { cluster_size: 65536 } });
    const image = fs.readFileSync(filename);
    const l1 = Number(image.readBigUInt64BE(40));
    // Each L1 entry names the L1 table itself.
    for (let index = 0; index < image.readUInt32BE(36); index++)
      image.writeBigUInt64BE((1n << 63n) | BigInt(l1), l1 + index * 8);
    fs.writeFileSync(filename, image);
    let entries = 0;
    for await (const entry of map(filename, { format: "qcow2", untrusted: true }))
      entries += Math.sign(entry.bytes);
    assert.ok(entries > 0);
  });
});

async function using(
  filename: string,
  options: OpenOptions,
  work: (image: Awaited<ReturnType<typeof open>>) => Promise<unknown>,
): Promise<void> {
  await using image = await open(filename, { format: "qcow2", onWarning: () => {}, ...options });
  await work(image);
}

async function openAndRead(filename: string, options: OpenOptions): Promise<void> {
  try {
    await using image = await open(filename, options);
    await image.read(0, Math.min(65536, await image.getLength()));
  } catch (error) {
    assert.ok(error instanceof BlockError, String(error));
  }
}
