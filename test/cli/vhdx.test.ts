/** VHDX images beside qemu-img and qemu-io: headers, regions, metadata, table and log with every field changed; creating, writing, checking. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import { checksumOf, HEADER_OFFSETS, LOG_SECTOR_BYTES } from "../../drivers/vhdx/layout.ts";
import { isZero } from "../../src/block/iov.ts";
import { mustRun } from "../support/tools.ts";
import { type Change, withBytes, withHeaders, withRegions } from "../support/vhd-images.ts";
import { Fixture, missingTool, runOurs, runTheirs, words } from "./differential.ts";
import { caseLines, noOracle, normalise } from "./io-harness.ts";

const MIB = 2 ** 20;

/** Where qemu-img puts things, with a log of 1 MiB. */
const LOG = MIB;
const BAT = 2 * MIB;
const METADATA = 3 * MIB;
const ITEMS = METADATA + 65536;

/** Of the header. */
const SEQUENCE = 8;
const FILE_GUID = 16;
const LOG_GUID = 48;
const LOG_VERSION = 64;
const VERSION = 66;
const LOG_LENGTH = 68;
const LOG_OFFSET = 72;

const HEADERS: Readonly<Record<string, readonly Change[]>> = {
  signature: [[0, "u32", 0]],
  version: [[VERSION, "u16", 2]],
  "log-version": [[LOG_VERSION, "u16", 1]],
  "log-version-used": [
    [LOG_VERSION, "u16", 1],
    [LOG_GUID, "u32", 1],
  ],
  "same-number": [[SEQUENCE, "u64", 5]],
  "log-named": [[LOG_GUID, "u32", 1]],
  ...Object.fromEntries(
    [0, 1, MIB, MIB + 1, 2 * MIB, 0xfff00000].map((bytes) => [
      `log-length-${bytes}`,
      [[LOG_LENGTH, "u32", bytes]],
    ]),
  ),
  ...Object.fromEntries(
    [0, 1, MIB + 1, 2 * MIB].map((bytes) => [
      `log-length-used-${bytes}`,
      [
        [LOG_LENGTH, "u32", bytes],
        [LOG_GUID, "u32", 1],
      ],
    ]),
  ),
  ...Object.fromEntries(
    [0, 1, 65536, MIB, 1.5 * MIB, 2 * MIB, 3 * MIB, 2 ** 40, 2n ** 64n - 1n].map((offset) => [
      `log-offset-${offset}`,
      [[LOG_OFFSET, "u64", offset]],
    ]),
  ),
};

/** Of the region table: two entries of 32 bytes behind 16, of the table of blocks and of the metadata. */
const REGIONS: Readonly<Record<string, readonly Change[]>> = {
  "no-table": [[16, "u32", 0]],
  "unknown-required": [
    [16, "u32", 0],
    [44, "u32", 1],
  ],
  "no-metadata": [[48, "u32", 0]],
  ...Object.fromEntries([0, 1, 3, 2047].map((count) => [`count-${count}`, [[8, "u32", count]]])),
  ...Object.fromEntries(
    [MIB, 2 * MIB + 1, 2.5 * MIB, 3 * MIB, 4 * MIB, 7 * MIB, 8 * MIB, 2 ** 40, 2n ** 63n].map((offset) => [
      `table-at-${offset}`,
      [[32, "u64", offset]],
    ]),
  ),
  ...Object.fromEntries(
    [0, 1, 8, 79, 80, MIB, 2 * MIB, 2 ** 28, 0xfff00000].map((bytes) => [
      `table-length-${bytes}`,
      [[40, "u32", bytes]],
    ]),
  ),
  ...Object.fromEntries(
    [0, MIB, 2 * MIB, 4 * MIB, 8 * MIB, 2n ** 63n].map((offset) => [
      `metadata-at-${offset}`,
      [[64, "u64", offset]],
    ]),
  ),
  ...Object.fromEntries(
    [0, 1, MIB, 2 * MIB].map((bytes) => [`metadata-length-${bytes}`, [[72, "u32", bytes]]]),
  ),
};

const METADATA_TABLE: Readonly<Record<string, readonly Change[]>> = {
  signature: [[0, "u32", 0]],
  ...Object.fromEntries(
    [0, 1, 4, 6, 2047, 2048, 65535].map((count) => [`count-${count}`, [[10, "u16", count]]]),
  ),
  ...Object.fromEntries(
    [0, 1, 2, 3, 4].flatMap((item): [string, Change[]][] => {
      const entry = 32 + item * 32;
      return [
        [`item${item}-unknown`, [[entry, "u32", 0]]],
        [
          `item${item}-missing`,
          [
            [entry, "u32", 0],
            [entry + 24, "u32", 0],
          ],
        ],
        ...[0, 1, 2, 3, 4, 7, 8, 255].map((flags): [string, Change[]] => [
          `item${item}-flags-${flags}`,
          [[entry + 24, "u32", flags]],
        ]),
        ...[0, 32768, MIB].map((offset): [string, Change[]] => [
          `item${item}-at-${offset}`,
          [[entry + 16, "u32", offset]],
        ]),
        ...[0, 1, 7, 1000000].map((bytes): [string, Change[]] => [
          `item${item}-length-${bytes}`,
          [[entry + 20, "u32", bytes]],
        ]),
      ];
    }),
  ),
};

const ITEM_VALUES: Readonly<Record<string, readonly Change[]>> = {
  ...Object.fromEntries(
    [0, 1, 2 ** 19, MIB, MIB + 1, 3 * MIB, 2 ** 28, 2 ** 29, 2 ** 32 - 1].map((bytes) => [
      `block-${bytes}`,
      [[0, "u32", bytes]],
    ]),
  ),
  ...Object.fromEntries([1, 2, 3, 4].map((flags) => [`flags-${flags}`, [[4, "u32", flags]]])),
  ...Object.fromEntries(
    [
      1,
      512,
      513,
      1000 * MIB,
      131040 * MIB,
      131041 * MIB,
      131072 * MIB,
      2 ** 46,
      2 ** 46 + 512,
      2n ** 63n,
      2n ** 64n - 1n,
    ].map((size) => [`size-${size}`, [[8, "u64", size]]]),
  ),
  ...Object.fromEntries(
    [0, 1, 256, 513, 1024, 8192].map((bytes) => [`sector-${bytes}`, [[32, "u32", bytes]]]),
  ),
  ...Object.fromEntries([0, 1, 4096].map((bytes) => [`physical-${bytes}`, [[36, "u32", bytes]]])),
};

/** Of the first block, in blocks of 1 MiB in a file of 8 MiB. */
const ENTRIES: readonly (number | bigint)[] = [
  0,
  1,
  2,
  3,
  4,
  5,
  6,
  7,
  ...[MIB, 2 * MIB, 3 * MIB, 7 * MIB, 8 * MIB, 7.5 * MIB, 2 ** 40].map((place) => place + 6),
  ...[MIB, 8 * MIB].flatMap((place) => [place + 3, place + 2, place + 1]),
  0xfff0000000000006n,
  0x7ff0000000000006n,
];

function create(filename: string, size: string, options = "block_size=1M"): Buffer {
  mustRun("qemu-img", ["create", "-q", "-f", "vhdx", "-o", options, filename, size]);
  return fs.readFileSync(filename);
}

function fillHostile(directory: string): void {
  const file = (name: string) => path.join(directory, name);
  const base = create(file("base.vhdx"), "10M");
  const put = (name: string, image: Uint8Array) => writeSparse(file(`${name}.vhdx`), image);
  for (const [name, changes] of Object.entries(HEADERS)) put(`header-${name}`, withHeaders(base, changes));
  put("header-new-version", withHeaders(base, [[VERSION, "u16", 2]], [1]));
  put("header-first", withHeaders(base, [[0, "u32", 0]], [0]));
  put("header-second", withHeaders(base, [[0, "u32", 0]], [1]));
  const sameNumber: Change = [SEQUENCE, "u64", 5];
  put(
    "header-unlike",
    withHeaders(withHeaders(base, [sameNumber]), [sameNumber, [FILE_GUID, "u32", 5]], [1]),
  );
  for (const offset of HEADER_OFFSETS)
    put(`header-checksum-${offset}`, withBytes(base, offset, [4, "u32", 0]));
  for (const [name, changes] of Object.entries(REGIONS)) put(`region-${name}`, withRegions(base, ...changes));
  for (const [name, changes] of Object.entries(METADATA_TABLE))
    put(`metadata-${name}`, withBytes(base, METADATA, ...changes));
  for (const [name, changes] of Object.entries(ITEM_VALUES))
    put(`item-${name}`, withBytes(base, ITEMS, ...changes));
  for (const entry of ENTRIES) put(`entry-${entry}`, withBytes(base, BAT, [0, "u64", entry]));
  put(
    "entries-two",
    withBytes(base, BAT, [0, "u64", MIB + 6], [8, "u64", 9 * MIB + 6], [16, "u64", 2 ** 42 + 6]),
  );
  put("signature", withBytes(base, 0, [0, "u64", 0]));
  for (const bytes of [
    0, 8, 65536, 0x20000, 0x30000, 0x40000, 0x100000, 0x200000, 0x200008, 0x300000, 0x310000,
  ])
    fs.writeFileSync(file(`cut-${bytes}.vhdx`), base.subarray(0, bytes));
  for (const bytes of [0x310028, 0x400000, 0x7fffff])
    fs.writeFileSync(file(`cut-${bytes}.vhdx`), base.subarray(0, bytes));
  const large = create(file("large.vhdx"), "12M", "block_size=8M");
  for (const [block, place] of [
    [0, 7],
    [0, 8],
    [1, 7],
    [1, 8],
    [1, 4],
  ] as const)
    put(`large-${block}-at-${place}`, withBytes(large, BAT, [block * 8, "u64", place * MIB + 6]));
}

/** What is zero stays a hole: there are many images, and they are copied often. */
function writeSparse(filename: string, content: Uint8Array): void {
  const descriptor = fs.openSync(filename, "w");
  fs.ftruncateSync(descriptor, content.length);
  for (let at = 0; at < content.length; at += 4096) {
    const piece = content.subarray(at, at + 4096);
    if (!isZero(piece)) fs.writeSync(descriptor, piece, 0, piece.length, at);
  }
  fs.closeSync(descriptor);
}

/** An image with three blocks and their entries in the log. */
function written(filename: string): Buffer {
  create(filename, "10M");
  mustRun("qemu-io", [
    "-f",
    "vhdx",
    "-c",
    "write -P 1 0 64k",
    "-c",
    "write -P 2 3M 64k",
    "-c",
    "write -P 3 5M 64k",
    filename,
  ]);
  return fs.readFileSync(filename);
}

/** Names the log's entry of that number again, and takes from the table what it says. */
function unreplayed(image: Buffer, entry: number): Buffer {
  const copy = Buffer.from(image);
  copy.fill(0, BAT, BAT + LOG_SECTOR_BYTES);
  const start = LOG + entry * 2 * LOG_SECTOR_BYTES;
  for (const offset of HEADER_OFFSETS) copy.copy(copy, offset + LOG_GUID, start + 32, start + 48);
  return withHeaders(copy, []);
}

/** Of the second entry of the log. */
const LOG_ENTRIES: Readonly<Record<string, readonly Change[]>> = {
  good: [],
  length: [[8, "u32", LOG_SECTOR_BYTES]],
  "length-odd": [[8, "u32", LOG_SECTOR_BYTES + 1]],
  "length-long": [[8, "u32", 2 * MIB]],
  tail: [[12, "u32", 0x5000]],
  "tail-odd": [[12, "u32", 0x2001]],
  "tail-far": [[12, "u32", MIB]],
  number: [[16, "u64", 77]],
  "number-0": [[16, "u64", 0]],
  count: [[24, "u32", 2]],
  "count-0": [[24, "u32", 0]],
  "count-many": [[24, "u32", 2 ** 31]],
  guid: [[32, "u32", 9]],
  flushed: [[48, "u64", 2 ** 40]],
  descriptor: [[64, "u32", 0]],
  "descriptor-odd": [[80, "u64", 0x200001]],
  "descriptor-far": [[80, "u64", 2 ** 50]],
  "descriptor-number": [[88, "u64", 9]],
  "data-high": [[LOG_SECTOR_BYTES + 4, "u32", 9]],
  "data-low": [[2 * LOG_SECTOR_BYTES - 4, "u32", 9]],
  zeroes: [
    [64, "u32", 0x6f72657a],
    [72, "u64", 0x1000],
  ],
  "zeroes-odd": [
    [64, "u32", 0x6f72657a],
    [72, "u64", 0x1001],
  ],
  "zeroes-none": [
    [64, "u32", 0x6f72657a],
    [72, "u64", 0],
  ],
};

function fillLogs(directory: string): void {
  const image = written(path.join(directory, "written.vhdx"));
  const put = (name: string, content: Uint8Array) =>
    writeSparse(path.join(directory, `${name}.vhdx`), content);
  const start = LOG + 2 * LOG_SECTOR_BYTES;
  for (const [name, changes] of Object.entries(LOG_ENTRIES)) {
    const copy = withBytes(unreplayed(image, 1), start, ...changes);
    const entry = copy.subarray(start, start + 2 * LOG_SECTOR_BYTES);
    entry.writeUInt32LE(checksumOf(entry), 4);
    put(`log-${name}`, copy);
  }
  put("log-checksum", withBytes(unreplayed(image, 1), start, [4, "u32", 1]));
  put("log-signature", withBytes(unreplayed(image, 1), start, [0, "u32", 1]));
  put("log-last", unreplayed(image, 2));
  put("log-short-file", unreplayed(image, 2).subarray(0, 9 * MIB));
  put("log-long-file", Buffer.concat([unreplayed(image, 2), Buffer.alloc(1000)]));
}

describe("vhdx beside qemu-img", { skip: missingTool ?? false }, () => {
  const fixture = new Fixture((directory) => {
    create(path.join(directory, "empty.vhdx"), "10M");
    create(path.join(directory, "fixed.vhdx"), "3M", "subformat=fixed,block_size=1M,block_state_zero=off");
    written(path.join(directory, "written.vhdx"));
  });
  after(() => fixture.remove());
  const hostile = new Fixture(fillHostile);
  after(() => hostile.remove());

  it("info and check say the same of each image, and refuse the same in the same words", async () => {
    for (const name of fs.readdirSync(hostile.copy()).sort()) {
      await hostile.sameOutput(["info", "-f", "vhdx", name]);
      if (/^(entr|large|header-log)/.test(name)) await hostile.sameOutput(["check", "-f", "vhdx", name]);
    }
  });

  it("a log is refused read-only, and brought into the file otherwise", async () => {
    const logs = new Fixture(fillLogs);
    try {
      const directory = logs.copy();
      for (const name of fs.readdirSync(directory).sort()) {
        const image = new Fixture((into) =>
          writeSparse(path.join(into, name), fs.readFileSync(path.join(directory, name))),
        );
        await sameReplay(image, name);
        image.remove();
      }
    } finally {
      logs.remove();
    }
  });

  it("commands that read, and those that the format does not have", async () => {
    for (const line of caseLines(READING)) await fixture.sameOutput(words(line));
  });

  it("commands that write other images", async () => {
    for (const line of caseLines(WRITING)) await fixture.same(words(line));
  });

  it("new images: the same lines and the same bytes, but for what is random", async () => {
    for (const line of caseLines(CREATING)) await sameImage(fixture, "qemu-img", words(line), ["new.vhdx"]);
  });
});

describe("vhdx beside qemu-io", { skip: noOracle }, () => {
  const fixture = new Fixture((directory) => {
    for (const [name, options] of [
      ["dynamic", "block_size=1M"],
      ["absent", "block_size=1M,block_state_zero=off"],
      ["fixed", "block_size=1M,subformat=fixed"],
      ["allocated", "block_size=1M,subformat=fixed,block_state_zero=off"],
    ] as const)
      create(path.join(directory, `${name}.vhdx`), "5M", options);
  });
  after(() => fixture.remove());

  it("requests, and the bytes that they leave", async () => {
    for (const line of caseLines(REQUESTS)) {
      const args = words(line);
      await sameImage(fixture, "qemu-io", args, [args.at(-1) as string]);
    }
  });
});

const READING = String.raw`
create -f vhdx -o help
create -f vhdx -o ? x.vhdx
map written.vhdx
map --output=json written.vhdx
map --output=json fixed.vhdx
info written.vhdx
info --output=json written.vhdx
info --image-opts driver=vhdx,file.filename=empty.vhdx,unknown=1
info --image-opts driver=vhdx,file.filename=empty.vhdx,backing.driver=null-co
info -f vhdx gone.vhdx
check written.vhdx
check --output=json written.vhdx
check -r all written.vhdx
check -r leaks --output=json written.vhdx
check -q written.vhdx
compare written.vhdx empty.vhdx
compare written.vhdx written.vhdx
compare -s written.vhdx fixed.vhdx
snapshot -l written.vhdx
measure -O vhdx --size 1G
measure -O raw written.vhdx
measure -O qcow2 written.vhdx
convert -O vhdx -c written.vhdx x.vhdx
create -f vhdx -b written.vhdx x.vhdx
create -f vhdx -F raw x.vhdx 1M
create -f vhdx -o cluster_size=1M x.vhdx 1M
create -f vhdx -o block_state_zero=x x.vhdx 1M
amend -o log_size=1M written.vhdx
info --image-opts driver=vhdx,file.driver=blkdebug,file.image.filename=written.vhdx,file.inject-error.0.event=none,file.inject-error.0.iotype=read,file.inject-error.0.sector=0
info --image-opts driver=vhdx,file.driver=blkdebug,file.image.filename=written.vhdx,file.inject-error.0.event=none,file.inject-error.0.iotype=read,file.inject-error.0.sector=6144
`;

const WRITING = String.raw`
resize empty.vhdx 20M
rebase -b '' written.vhdx
rebase -u -b base.raw -F raw written.vhdx
commit written.vhdx
snapshot -c one written.vhdx
convert -O raw written.vhdx out.raw
convert -O qcow2 written.vhdx out.qcow2
dd if=written.vhdx of=out.raw bs=1M count=3
`;

const CREATING = String.raw`
create -f vhdx new.vhdx 0
create -f vhdx new.vhdx 1
create -f vhdx new.vhdx 10M
create -f vhdx new.vhdx 1G
create -f vhdx new.vhdx 1025M
create -f vhdx new.vhdx 100G
create -f vhdx new.vhdx 101G
create -f vhdx new.vhdx 32T
create -f vhdx new.vhdx 64T
create -f vhdx -o block_size=1M new.vhdx 0
create -f vhdx -o block_size=1M new.vhdx 10000001
create -f vhdx -o block_size=1M new.vhdx 5G
create -f vhdx -o block_size=256M,log_size=2M new.vhdx 10G
create -f vhdx -o block_size=1 new.vhdx 1M
create -f vhdx -o block_size=1500000 new.vhdx 1M
create -f vhdx -o block_size=4G new.vhdx 1M
create -f vhdx -o log_size=1 new.vhdx 1M
create -f vhdx -o log_size=1500000 new.vhdx 1M
create -f vhdx -o block_state_zero=off new.vhdx 10M
create -f vhdx -o subformat=fixed new.vhdx 0
create -f vhdx -o subformat=fixed new.vhdx 10M
create -f vhdx -o subformat=fixed,block_state_zero=off new.vhdx 10M
create -f vhdx -o subformat=fixed,block_size=1M,log_size=3M,block_state_zero=off new.vhdx 5G
create -f vhdx -o subformat=dynamic,block_state_zero=on new.vhdx 10M
create -f vhdx -o subformat=fixed,preallocation=falloc new.vhdx 3M
convert -O vhdx written.vhdx new.vhdx
convert -O vhdx -o block_size=1M,block_state_zero=off written.vhdx new.vhdx
convert -O vhdx -o subformat=fixed written.vhdx new.vhdx
convert -O vhdx -o subformat=fixed,block_state_zero=off,block_size=1M written.vhdx new.vhdx
convert -S 0 -O vhdx -o block_size=1M empty.vhdx new.vhdx
create -f vhdx new.vhdx 65T
create -f vhdx -o subformat=xx new.vhdx 1M
create -f vhdx -o subformat= new.vhdx 1M
create -f vhdx -o log_size=0 new.vhdx 1M
create -f vhdx -o log_size=4G new.vhdx 1M
create -f vhdx -o block_size=3M new.vhdx 1M
create -f vhdx -o preallocation=metadata new.vhdx 1M
create -f vhdx new.vhdx
`;

const REQUESTS = String.raw`
-f vhdx -c 'read -P 0 0 5M' dynamic.vhdx
-f vhdx -c 'write -P 1 0 512' -c 'read -P 1 0 512' -c 'read -P 0 512 1M' dynamic.vhdx
-f vhdx -c 'write -P 1 2M 100' -c 'write -P 2 2097252 1M' -c 'read -v 2097100 200' dynamic.vhdx
-f vhdx -c 'write -P 1 4M 1M' -c 'write -P 2 0 1M' -c 'write -P 3 2M 2M' -c 'write -P 4 4M 64k' dynamic.vhdx
-f vhdx -c 'write -P 1 1M 3M' -c 'flush' -c 'write -z 2M 1M' -c 'discard 3M 1M' dynamic.vhdx
-f vhdx -c 'write -P 1 5242879 1' -c 'write 5242880 1' -c 'read 5242880 1' dynamic.vhdx
-f vhdx -c 'write -z 1M 64k' -c 'alloc 0 5M' -c 'map' -c 'write -c 0 64k' -c 'length' -c 'truncate 1M' dynamic.vhdx
-f vhdx -c 'write -z -u 1M 64k' -c 'aio_write -P 3 0 3M' -c 'aio_flush' dynamic.vhdx
-f vhdx -c 'write -P 1 0 512' -c 'write -P 1 3M 512' -c 'read -P 0 512 1M' absent.vhdx
-f vhdx -c 'write -P 1 0 512' -c 'write -P 1 3M 512' -c 'read -P 0 512 1M' fixed.vhdx
-f vhdx -c 'write -P 1 0 512' -c 'write -P 1 3M 512' -c 'read -P 0 512 1M' -c 'map' allocated.vhdx
-r -f vhdx -c 'write 0 512' -c 'read -P 0 0 5M' allocated.vhdx
-f vhdx -c 'info' -c 'write -z 0 5M' -c 'discard 0 5M' allocated.vhdx
`;

/** Runs the command with both tools, each in a copy of the directory; \`names\` are the images to compare. */
async function sameImage(
  fixture: Fixture,
  tool: "qemu-img" | "qemu-io",
  args: readonly string[],
  names: readonly string[],
): Promise<void> {
  const [oursIn, theirsIn] = [fixture.copy(), fixture.copy()];
  const line = `${tool} ${args.join(" ")}`;
  const tidy = (result: Awaited<ReturnType<typeof runOurs>>) => ({
    ...result,
    stdout: normalise(result.stdout),
    stderr: normalise(result.stderr),
  });
  const ours = await runOurs(args, oursIn, tool);
  assert.deepEqual(tidy(ours), tidy(runTheirs(args, theirsIn, tool)), line);
  for (const name of names) {
    const [our, their] = [path.join(oursIn, name), path.join(theirsIn, name)];
    // A refused create leaves nothing here, an empty file there.
    if (!fs.existsSync(our)) assert.equal(fs.statSync(their, { throwIfNoEntry: false })?.size ?? 0, 0, line);
    else assert.equal(firstDifference(withoutRandom(our), withoutRandom(their)), -1, `${name} after ${line}`);
  }
  for (const directory of [oursIn, theirsIn]) fs.rmSync(directory, { recursive: true });
}

function firstDifference(one: Buffer, other: Buffer): number {
  return one.equals(other) ? -1 : one.findIndex((byte, index) => byte !== other[index]);
}

/** The file up to 12 MiB, without checksums, GUIDs and numbers that depend on them. */
function withoutRandom(filename: string): Buffer {
  const { size } = fs.statSync(filename);
  const image = Buffer.alloc(Math.min(size, 12 * MIB));
  const descriptor = fs.openSync(filename, "r");
  fs.readSync(descriptor, image, 0, image.length, 0);
  fs.closeSync(descriptor);
  for (const offset of HEADER_OFFSETS) image.fill(0, offset + 4, offset + LOG_VERSION);
  const logLength = image.readUInt32LE((HEADER_OFFSETS[0] as number) + LOG_LENGTH);
  for (let at = LOG; at < LOG + logLength && at < image.length; at += LOG_SECTOR_BYTES) {
    if (image.toString("latin1", at, at + 4) !== "loge" || image.readUInt32LE(at + 24) > 100) continue;
    image.fill(0, at + 4, at + 8);
    image.fill(0, at + 32, at + 48);
    // What qemu leaves behind the descriptors is whatever its memory held.
    image.fill(0, at + 64 + 32 * image.readUInt32LE(at + 24), at + LOG_SECTOR_BYTES);
  }
  const metadata = Number(image.readBigUInt64LE(0x30040));
  if (metadata < image.length) image.fill(0, metadata + 65536 + 16, metadata + 65536 + 32);
  return Buffer.concat([Buffer.from(String(size)), image]);
}

async function sameReplay(fixture: Fixture, name: string): Promise<void> {
  await fixture.sameOutput(["info", name]);
  await sameImage(fixture, "qemu-io", ["-c", "read -P 2 3M 64k", name], [name]);
  // Another way to open it, told in another way.
  if (!/good|last|short|zeroes|number/.test(name)) return;
  await fixture.sameOutput(["check", name]);
  await sameImage(fixture, "qemu-img", ["check", "-r", "all", name], [name]);
}
