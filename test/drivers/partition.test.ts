/** Partitions of disks that sfdisk made: found where sfdisk says, kept to, and tables that lie refused by name. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import zlib from "node:zlib";
import { BlockError } from "../../src/block/errors.ts";
import { open } from "../../src/index.ts";
import { runOurs } from "../cli/differential.ts";
import { conformance } from "../conformance.ts";
import { openBackend } from "../support/graph.ts";
import { random } from "../support/random.ts";
import { tempDir } from "../support/temp.ts";
import { missing, mustRun } from "../support/tools.ts";

const MiB = 2 ** 20;
const DISK_BYTES = 16 * MiB;
const dir = tempDir({ after });
let made = 0;

const SCRIPTS = {
  mbr: "label: dos\nstart=2048,size=2048,type=83\nstart=4096,size=1000,type=c,bootable\n",
  ebr: [
    "label: dos",
    "1: start=2048,size=2048,type=83",
    "2: start=6144,size=20480,type=5",
    "4: start=28672,size=2048,type=83",
    "5: start=8192,size=2048,type=83",
    "6: start=12288,size=2049,type=83",
    "7: start=20480,size=4096,type=83\n",
  ].join("\n"),
  gpt: "label: gpt\nunit: sectors\n1: start=2048,size=2048\n3: start=8192,size=4097,name=three\n",
  manyGpt: "label: gpt\ntable-length: 256\n200: start=4096,size=1\n",
} as const;

type Layout = keyof typeof SCRIPTS;

interface Row {
  readonly node: string;
  readonly start: number;
  readonly size: number;
  readonly type: string;
}

interface Made {
  readonly disk: string;
  readonly rows: readonly Row[];
}

const patterns = new Map<Layout, Made>();

/** Random bytes under the table, so that a shift by one shows. sfdisk takes its time: it makes one of each. */
function makePattern(layout: Layout): Made {
  const disk = path.join(dir, `${layout}-`);
  const content = Buffer.alloc(DISK_BYTES);
  const dice = random(1);
  for (let at = MiB; at < DISK_BYTES - MiB; at += 64 * 1024) content.set(dice.bytes(1024), at);
  fs.writeFileSync(disk, content);
  mustRun("sfdisk", ["-q", disk], SCRIPTS[layout]);
  const { partitiontable } = JSON.parse(mustRun("sfdisk", ["-J", disk])) as {
    readonly partitiontable: { readonly partitions: readonly Row[] };
  };
  return { disk, rows: partitiontable.partitions };
}

function makeDisk(layout: Layout): Made {
  const pattern = patterns.get(layout) ?? makePattern(layout);
  patterns.set(layout, pattern);
  const disk = path.join(dir, `disk${made++}.img`);
  fs.copyFileSync(pattern.disk, disk);
  return { disk, rows: pattern.rows };
}

const numberOf = (row: Row) => Number(/[0-9]+$/.exec(row.node)?.[0]);

async function refuses(name: string, message: RegExp): Promise<void> {
  await assert.rejects(
    async () => {
      const image = await open(name, { format: "raw" });
      await image[Symbol.asyncDispose]();
    },
    (error) => {
      assert.ok(error instanceof BlockError, String(error));
      assert.match(error.message, message);
      return true;
    },
  );
}

/** Changes bytes of a disk. */
function poke(disk: string, offset: number, value: Uint8Array): void {
  const fd = fs.openSync(disk, "r+");
  fs.writeSync(fd, value, 0, value.length, offset);
  fs.closeSync(fd);
}

const le32 = (value: number) => {
  const field = Buffer.alloc(4);
  field.writeUInt32LE(value);
  return field;
};
const le64 = (value: bigint) => {
  const field = Buffer.alloc(8);
  field.writeBigUInt64LE(value);
  return field;
};

/** Fields of entry `index` of an MBR or EBR at `offset`. */
const ENTRY = (index: number, offset = 0) => offset + 446 + 16 * index;
const pokeStart = (disk: string, entry: number, sector: number) => poke(disk, entry + 8, le32(sector));
const pokeSize = (disk: string, entry: number, sectors: number) => poke(disk, entry + 12, le32(sectors));

/** Makes the checksums of the GPT at `sector` right again. */
function sealGpt(disk: string, sector = 1): void {
  const content = fs.readFileSync(disk);
  const header = content.subarray(sector * 512, sector * 512 + 92);
  const at = Number(header.readBigUInt64LE(72)) * 512;
  const bytes = header.readUInt32LE(80) * header.readUInt32LE(84);
  header.writeUInt32LE(zlib.crc32(content.subarray(at, at + bytes)), 88);
  header.writeUInt32LE(0, 16);
  header.writeUInt32LE(zlib.crc32(header), 16);
  poke(disk, sector * 512, header);
}

describe("partition", { skip: missing("sfdisk") }, () => {
  for (const layout of Object.keys(SCRIPTS) as Layout[])
    it(`${layout}: partitions have the bytes that sfdisk says`, async () => {
      const { disk, rows } = makeDisk(layout);
      const content = fs.readFileSync(disk);
      assert.ok(rows.length > 0);
      for (const row of rows) {
        if (row.type === "5") continue;
        const name = `part:${numberOf(row)}:${disk}`;
        await using image = await open(name, { format: "raw" });
        assert.equal(await image.getLength(), row.size * 512);
        const expected = content.subarray(row.start * 512, (row.start + row.size) * 512);
        assert.equal(Buffer.compare(await image.read(0, expected.length), expected), 0, name);
        assert.equal(image.node.filename, name);
      }
    });

  it("writes stay in the partition, also in an image of another format", async () => {
    const { disk, rows } = makeDisk("ebr");
    const row = rows.find((one) => numberOf(one) === 6) as Row;
    const before = fs.readFileSync(disk);
    const qcow2 = `${disk}.qcow2`;
    mustRun("qemu-img", ["convert", "-O", "qcow2", "-f", "raw", disk, qcow2]);
    for (const file of [disk, qcow2]) {
      await using image = await open(`part:6:${file}`, {
        format: "raw",
        writable: true,
        onWarning: () => {},
      });
      await image.write(0, Buffer.alloc(row.size * 512, 7));
      await image.writeZeroes(512, 1024);
      await assert.rejects(image.write(row.size * 512 - 1, Buffer.alloc(2)), { errno: "EIO" });
      await assert.rejects(image.truncate(row.size * 512 + 512), { errno: "ENOTSUP" });
    }
    before.fill(7, row.start * 512, (row.start + row.size) * 512);
    before.fill(0, row.start * 512 + 512, row.start * 512 + 1536);
    assert.equal(Buffer.compare(fs.readFileSync(disk), before), 0);
    mustRun("qemu-img", ["compare", "-f", "raw", "-F", "qcow2", disk, qcow2]);
  });

  it("an image in a partition is probed, mapped and converted", async () => {
    const { disk } = makeDisk("gpt");
    mustRun("qemu-img", ["create", "-q", "-f", "qcow2", `${disk}.in`, "8M"]);
    mustRun("qemu-io", ["-c", "write -P 3 1M 64k", `${disk}.in`]);
    poke(disk, 8192 * 512, fs.readFileSync(`${disk}.in`));
    const info = await runOurs(["info", `part:3:${disk}`], dir, "bdrv");
    assert.match(info.stdout, /file format: qcow2\nvirtual size: 8 MiB/, info.stderr);
    const done = await runOurs(["convert", "-O", "raw", `part:3:${disk}`, `${disk}.out`], dir, "bdrv");
    assert.equal(done.exitCode, 0, done.stderr);
    mustRun("qemu-img", ["compare", `${disk}.in`, `${disk}.out`]);
    const map = await runOurs(["map", "-f", "raw", "--output=json", `part:1:${disk}`], dir, "bdrv");
    const first = (JSON.parse(map.stdout) as { length: number; offset?: number }[])[0];
    assert.equal(first?.offset, MiB);
  });

  it("options name it as well, and an overlay is seen whole", async () => {
    const { disk, rows } = makeDisk("mbr");
    const overlay = `${disk}.overlay`;
    mustRun("qemu-img", ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", disk, overlay]);
    const row = rows[1] as Row;
    await using image = await openBackend({
      driver: "partition",
      number: 2,
      file: { driver: "qcow2", file: { driver: "file", filename: overlay } },
    });
    await image.write(0, Buffer.alloc(512, 9));
    const content = fs.readFileSync(disk).subarray(row.start * 512, (row.start + row.size) * 512);
    content.fill(9, 0, 512);
    assert.equal(Buffer.compare(await image.read(0, content.length), content), 0);
    let at = 0;
    while (at < content.length) {
      const status = await image.blockStatus(at, content.length - at);
      const part = content.subarray(at, at + status.bytes);
      assert.ok(status.data || part.every((byte) => byte === 0), `data at ${at}`);
      at += status.bytes;
    }
  });

  it("what is no partition is refused by name", async () => {
    const { disk } = makeDisk("ebr");
    const gpt = makeDisk("gpt").disk;
    const fat = path.join(dir, "boot-sector.img");
    fs.writeFileSync(fat, Buffer.alloc(4096, 0x41));
    poke(fat, 510, Uint8Array.of(0x55, 0xaa));
    const empty = path.join(dir, "empty.img");
    fs.writeFileSync(empty, "");
    await refuses(`part:3:${disk}`, /There is no partition 3: the table has 1, 4, 5, 6, 7/);
    await refuses(`part:8:${disk}`, /There is no partition 8: the table has 1, 4, 5, 6, 7/);
    await refuses(`part:2:${disk}`, /Partition 2 is an extended one/);
    await refuses(`part:2:${gpt}`, /There is no partition 2: the table has 1, 3/);
    await refuses(`part:0:${disk}`, /Partitions are counted from 1/);
    for (const name of ["part:", "part:x:y", "part:1:", `part:-1:${disk}`])
      await refuses(name, /A partition is named as part:NUMBER:FILENAME/);
    for (const name of [fat, empty]) await refuses(`part:1:${name}`, /The disk has no partition table/);
    await refuses(`part:1:${dir}/none`, /No such file or directory/);
  });

  it("partitions behind the end and over each other are refused, the others read", async () => {
    const { disk } = makeDisk("mbr");
    pokeSize(disk, ENTRY(0), 2049);
    await refuses(`part:1:${disk}`, /Partition 1 \(bytes 1048576 to 2097664\) overlaps partition 2/);
    await refuses(`part:2:${disk}`, /Partition 2 .* overlaps partition 1 \(/);
    pokeStart(disk, ENTRY(0), 0);
    pokeSize(disk, ENTRY(0), 1);
    await refuses(`part:1:${disk}`, /overlaps the partition table \(bytes 0 to 512\)/);
    pokeStart(disk, ENTRY(0), DISK_BYTES / 512 - 1);
    await (await open(`part:1:${disk}`, { format: "raw" }))[Symbol.asyncDispose]();
    pokeSize(disk, ENTRY(0), 2);
    await refuses(`part:1:${disk}`, /Partition 1 .* is not within the disk \(bytes 0 to 16777216\)/);
    pokeSize(disk, ENTRY(0), 0xffffffff);
    pokeStart(disk, ENTRY(0), 0xffffffff);
    await refuses(`part:1:${disk}`, /Partition 1 .* is not within the disk/);
    await (await open(`part:2:${disk}`, { format: "raw" }))[Symbol.asyncDispose]();
  });

  it("chains of EBRs that loop, leave or break are refused; primary partitions are read all the same", async () => {
    const first = 6144;
    const cases: readonly (readonly [RegExp, (disk: string, ebr: number) => void])[] = [
      [/is in its own chain: it has no end/, (disk, ebr) => pokeStart(disk, ENTRY(1, ebr), 0)],
      [/is not within its extended partition/, (disk, ebr) => pokeStart(disk, ENTRY(1, ebr), 20480)],
      [/is not within its extended partition/, (disk, ebr) => pokeStart(disk, ENTRY(1, ebr), 0xffffffff)],
      [/has no signature/, (disk, ebr) => pokeStart(disk, ENTRY(1, ebr), 3)],
      [
        /Partition 5 .* is not within the extended partition 2/,
        (disk, ebr) => pokeSize(disk, ENTRY(0, ebr), 40000),
      ],
      [/Partition 5 .* overlaps an extended boot record/, (disk, ebr) => pokeStart(disk, ENTRY(0, ebr), 0)],
      [/Partition 5 .* overlaps partition 6/, (disk, ebr) => pokeSize(disk, ENTRY(0, ebr), 12289 - 8192)],
    ];
    for (const [message, damage] of cases) {
      const { disk } = makeDisk("ebr");
      damage(disk, first * 512);
      await refuses(`part:5:${disk}`, message);
      await (await open(`part:1:${disk}`, { format: "raw" }))[Symbol.asyncDispose]();
    }
    const { disk } = makeDisk("ebr");
    const ebr = Buffer.from(fs.readFileSync(disk).subarray(first * 512, (first + 1) * 512));
    for (let index = 0; index <= 256; index++) {
      ebr.writeUInt32LE(index + 1, ENTRY(1) + 8);
      poke(disk, (first + index) * 512, ebr);
    }
    await refuses(`part:5:${disk}`, /The chain of extended boot records has over 256/);
  });

  it("a damaged GPT is replaced by its backup, with a warning; two damaged ones are refused", async () => {
    const { disk, rows } = makeDisk("gpt");
    const lastSector = DISK_BYTES / 512 - 1;
    const row = rows[1] as Row;
    const expected = fs.readFileSync(disk).subarray(row.start * 512, (row.start + row.size) * 512);
    for (const offset of [512 + 40, 1024 + 5]) {
      poke(disk, offset, Uint8Array.of(0x99));
      const warnings: string[] = [];
      await using image = await openBackend(
        { driver: "partition", number: 3, file: { driver: "file", filename: disk } },
        { flags: { readOnly: true }, environment: { warn: (text) => warnings.push(text) } },
      );
      assert.equal(Buffer.compare(await image.read(0, expected.length), expected), 0);
      assert.deepEqual(warnings, ["The primary GPT is missing or damaged; its backup is used"]);
    }
    poke(disk, lastSector * 512 + 24, Uint8Array.of(1));
    await refuses(
      `part:3:${disk}`,
      /the primary one has a wrong checksum of its header, the backup one has a wrong/,
    );
    poke(disk, 512, Buffer.alloc(512));
    poke(disk, lastSector * 512, Buffer.alloc(512));
    await refuses(`part:3:${disk}`, /^(.*: )?The disk has no valid GPT$/);
  });

  it("every field of a GPT that lies is refused, though the checksums are right", async () => {
    const cases: readonly (readonly [RegExp, number, Uint8Array])[] = [
      [/is of an unknown revision/, 8, le32(0x20000)],
      [/has a header of a wrong size/, 12, le32(91)],
      [/has a header of a wrong size/, 12, le32(513)],
      [/is not where it says it is/, 24, le64(2n)],
      [/has no room for partitions/, 40, le64(1n)],
      [/has no room for partitions/, 48, le64(0n)],
      [/has its entries outside the disk/, 72, le64(1n)],
      [/has its entries outside the disk/, 72, le64(2n ** 64n - 1n)],
      [/has over 1048576 bytes of entries/, 80, le32(0xffffffff)],
      [/has entries of a wrong size/, 84, le32(0)],
      [/has entries of a wrong size/, 84, le32(129)],
      [/Partition 3 .* is not within the GPT's usable space/, 40, le64(9000n)],
      [/Partition 3 .* is not within the GPT's usable space/, 48, le64(9000n)],
      [/Partition 3 .* is not within the GPT's usable space/, 1024 - 512 + 2 * 128 + 32, le64(0n)],
      [
        /Partition 3 .* is not within the GPT's usable space/,
        1024 - 512 + 2 * 128 + 40,
        le64(2n ** 64n - 1n),
      ],
      [/Partition 3 ends before it starts/, 1024 - 512 + 2 * 128 + 40, le64(8191n)],
      [/Partition 3 .* overlaps partition 1/, 1024 - 512 + 40, le64(8192n)],
    ];
    for (const [message, at, value] of cases) {
      const { disk } = makeDisk("gpt");
      // No backup that could help.
      poke(disk, DISK_BYTES - 512, Buffer.alloc(512));
      poke(disk, 512 + at, value);
      const canSeal = !/size$|size\/|outside|over 1048576/.test(message.source);
      if (canSeal) sealGpt(disk);
      else sealHeader(disk);
      await refuses(`part:3:${disk}`, message);
    }
  });

  it("a disk of 4 KiB sectors", async () => {
    const { disk } = makeDisk("gpt");
    const small = fs.readFileSync(disk);
    const big = path.join(dir, "4k.img");
    const content = Buffer.alloc(DISK_BYTES);
    content.set(small.subarray(0, 512));
    small.copy(content, 4096, 512, 604);
    small.copy(content, 8192, 1024, 1024 + 128 * 128);
    content.writeBigUInt64LE(BigInt(DISK_BYTES / 4096 - 1), 4096 + 32);
    content.writeBigUInt64LE(6n, 4096 + 40);
    content.writeBigUInt64LE(4000n, 4096 + 48);
    content.writeBigUInt64LE(300n, 8192 + 32);
    content.writeBigUInt64LE(301n, 8192 + 40);
    content.fill(5, 300 * 4096, 302 * 4096);
    content.writeUInt32LE(zlib.crc32(content.subarray(8192, 8192 + 128 * 128)), 4096 + 88);
    content.writeUInt32LE(0, 4096 + 16);
    content.writeUInt32LE(zlib.crc32(content.subarray(4096, 4096 + 92)), 4096 + 16);
    fs.writeFileSync(big, content);
    await using image = await open(`part:1:${big}`, { format: "raw" });
    assert.equal(await image.getLength(), 8192);
    assert.ok((await image.read(0, 8192)).every((byte) => byte === 5));
  });

  const register = (name: string, fn: () => Promise<void>) =>
    it(name, { skip: name.includes("of no length") && "no table has a partition of no length" }, fn);
  conformance(register, {
    name: "partition",
    unit: 512,
    canWrite: true,
    keepsData: true,
    canOverwrite: true,
    canTruncate: false,
    discarded: "any",
    async make(content) {
      const disk = path.join(dir, `conformance${made++}.img`);
      fs.writeFileSync(disk, Buffer.alloc(2 * MiB + content.length, 0xee));
      poke(disk, 0, Buffer.alloc(512));
      poke(disk, 510, Uint8Array.of(0x55, 0xaa));
      poke(disk, ENTRY(0) + 4, Uint8Array.of(0x83));
      pokeStart(disk, ENTRY(0), 2048);
      pokeSize(disk, ENTRY(0), content.length / 512);
      poke(disk, MiB, content);
      const options = { driver: "partition", number: 1, file: { driver: "file", filename: disk } };
      return { open: ({ readOnly }) => openBackend(options, { flags: { readOnly } }) };
    },
  });
});

/** Where the table itself can't be read, only the header's own checksum. */
function sealHeader(disk: string): void {
  const header = fs.readFileSync(disk).subarray(512, 604);
  header.writeUInt32LE(0, 16);
  header.writeUInt32LE(zlib.crc32(header), 16);
  poke(disk, 512, header);
}
