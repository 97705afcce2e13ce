/** VHD images (vpc) beside qemu-img and qemu-io: every field of footer and header, creating, writing, and all that is refused. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import { mustRun } from "../support/tools.ts";
import { type Change, withDynamicHeader, withEntry, withFooter } from "../support/vhd-images.ts";
import { Fixture, missingTool, runOurs, runTheirs, words } from "./differential.ts";
import { caseLines, noOracle, sameRun } from "./io-harness.ts";

const GIB = 2 ** 30;

/** Of the footer. */
const TYPE = 60;
const CREATOR = 28;
const SIZE = 48;
const GEOMETRY = 56;
const DATA_OFFSET = 16;

/** Of the dynamic header. */
const TABLE_OFFSET = 16;
const ENTRIES = 28;
const BLOCK_SIZE = 32;

const win: Change = [CREATOR, "text", "win "];

function geometry(cylinders: number, heads: number, sectors: number): Change[] {
  return [
    [GEOMETRY, "u16", cylinders],
    [GEOMETRY + 2, "u8", heads],
    [GEOMETRY + 3, "u8", sectors],
  ];
}

/** By the footer: the disk's size, by either rule, is as good at the start as at the end. */
const FOOTERS: Readonly<Record<string, readonly Change[]>> = {
  ...Object.fromEntries([0, 1, 2, 3, 5, 9].map((type) => [`type${type}`, [[TYPE, "u32", type]]])),
  ...Object.fromEntries(
    ["qemu", "win ", "qem2", "d2v ", "CTXS", "tap\0", "vpc ", "vs  ", "vbox", "abcd"].map((creator) => [
      `by-${creator.replace("\0", "0").trim()}`,
      [
        [CREATOR, "text", creator],
        [SIZE, "u64", 9437184],
      ],
    ]),
  ),
  ...Object.fromEntries(
    [
      0,
      1,
      511,
      512,
      1000,
      1024,
      2040 * GIB,
      2040 * GIB + 512,
      2040 * GIB - 512,
      2n ** 63n,
      2n ** 64n - 1n,
    ].map((size) => [`size${size}`, [win, [SIZE, "u64", size]]]),
  ),
  ...Object.fromEntries(
    [
      [0, 0, 0],
      [1, 1, 1],
      [65535, 16, 255],
      [65535, 255, 255],
      [65535, 16, 254],
      [65534, 16, 255],
      [1000, 16, 255],
    ].map((chs) => [`chs${chs.join("-")}`, geometry(...(chs as [number, number, number]))]),
  ),
  version: [[12, "u32", 0x20000]],
  features: [[8, "u32", 0]],
};

const HEADERS: Readonly<Record<string, readonly Change[]>> = {
  magic: [[0, "u32", 0]],
  version: [[24, "u32", 1]],
  "next-offset": [[8, "u64", 1]],
  ...Object.fromEntries(
    [0, 1, 511, 1537, 1600, 2 ** 31, 2 ** 40, 2n ** 63n, 2n ** 64n - 1n].map((offset) => [
      `table${offset}`,
      [[TABLE_OFFSET, "u64", offset]],
    ]),
  ),
  ...Object.fromEntries(
    [0, 1, 5, 6, 7, 128, 129, 100000, 2 ** 29, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1].map((entries) => [
      `entries${entries}`,
      [[ENTRIES, "u32", entries]],
    ]),
  ),
  ...Object.fromEntries(
    [0, 1, 256, 511, 512, 513, 1024, 3 * 2 ** 19, 2 ** 20, 2 ** 22, 2 ** 30, 2 ** 32 - 1].map((bytes) => [
      `block${bytes}`,
      [
        [BLOCK_SIZE, "u32", bytes],
        [ENTRIES, "u32", Math.min(Math.floor(10514432 / Math.max(bytes, 1)) + 1, 100000)],
      ],
    ]),
  ),
};

function create(filename: string, ...args: readonly string[]): Buffer {
  const [size = "10M", ...options] = args;
  mustRun("qemu-img", ["create", "-q", "-f", "vpc", ...options, filename, size]);
  return fs.readFileSync(filename);
}

/** Good ones, for commands. */
function fill(directory: string): void {
  const file = (name: string) => path.join(directory, name);
  create(file("dynamic.vhd"));
  create(file("fixed.vhd"), "1M", "-o", "subformat=fixed");
  create(file("forced.vhd"), "10M", "-o", "force_size=on");
  create(file("written.vhd"));
  mustRun("qemu-io", ["-f", "vpc", "-c", "write -P 1 1M 64k", "-c", "write -P 2 5M 3M", file("written.vhd")]);
  mustRun("qemu-io", ["-f", "vpc", "-c", "write -P 3 512k 64k", file("fixed.vhd")]);
}

/** One for each field that is wrong. */
function fillHostile(directory: string): void {
  const file = (name: string) => path.join(directory, name);
  const dynamic = create(file("dynamic.vhd"));
  const fixed = create(file("fixed.vhd"), "1", "-o", "subformat=fixed");
  const end = fixed.length - 512;
  const put = (name: string, image: Uint8Array) => fs.writeFileSync(file(name), image);
  for (const [name, changes] of Object.entries(FOOTERS)) {
    put(`start-${name}.vhd`, withFooter(dynamic, 0, ...changes));
    put(`end-${name}.vhd`, withFooter(fixed, end, ...changes));
  }
  for (const offset of [0, 511, 513, 1024, 2048, 2n ** 40n, 2n ** 63n, 2n ** 64n - 1n])
    put(`header-at-${offset}.vhd`, withFooter(dynamic, 0, [DATA_OFFSET, "u64", offset]));
  for (const [name, changes] of Object.entries(HEADERS))
    put(`header-${name}.vhd`, withDynamicHeader(dynamic, ...changes));
  for (const entry of [0, 1, 3, 4, 5, 2 ** 20, 2 ** 31, 2 ** 32 - 2])
    put(`entry${entry}.vhd`, withEntry(dynamic, 1536, entry));
  put("checksum.vhd", withEntry(dynamic, 64, 1));
  put("header-checksum.vhd", withEntry(dynamic, 512 + 36, 1));
  put("fixed-checksum.vhd", withEntry(fixed, end + 64, 1));
  put("fixed-magic.vhd", withEntry(fixed, end, 1));
  for (const bytes of [0, 1, 100, 511, 512, 513, 1023, 1024, 1535, 1536, 1540, 2047])
    put(`cut${bytes}.vhd`, dynamic.subarray(0, bytes));
  for (const bytes of [1, 511, 512, 513])
    put(`longer${bytes}.vhd`, Buffer.concat([fixed, Buffer.alloc(bytes)]));
  const start = Buffer.from(fixed);
  start.write("conectix");
  put("fixed-like-dynamic.vhd", start);
}

describe("vpc beside qemu-img", { skip: missingTool ?? false }, () => {
  const fixture = new Fixture(fill);
  after(() => fixture.remove());
  const hostile = new Fixture(fillHostile);
  after(() => hostile.remove());

  it("info says the same of each image, and refuses the same in the same words", async () => {
    for (const name of fs.readdirSync(hostile.copy()).sort())
      await hostile.sameOutput(["info", "-f", "vpc", name]);
  });

  it("commands that read, and those that the format does not have", async () => {
    for (const line of caseLines(READING)) await fixture.sameOutput(words(line));
  });

  it("commands that write", async () => {
    for (const line of caseLines(WRITING)) await fixture.same(words(line));
  });

  it("new images: the same lines and the same bytes, but for clock and identity", async () => {
    for (const line of caseLines(CREATING)) await sameImage(fixture, words(line));
  });
});

/** What does not exist or can't be is found out by both in the same order. */
const READING = String.raw`
create -f vpc -o help
create -f vpc -o ? x.vhd
map written.vhd
map --output=json written.vhd
map --output=json dynamic.vhd
map --output=json -f vpc fixed.vhd
map -f vpc fixed.vhd
info --output=json written.vhd
info --output=json -f vpc fixed.vhd
info --image-opts driver=vpc,file.filename=dynamic.vhd,force_size_calc=chs
info --image-opts driver=vpc,file.filename=forced.vhd,force_size_calc=chs
info --image-opts driver=vpc,file.filename=forced.vhd,force_size_calc=current_size
info --image-opts driver=vpc,file.filename=forced.vhd,force_size_calc=x
info --image-opts driver=vpc,file.filename=forced.vhd,force_size_calc=
info --image-opts driver=vpc,file.filename=gone.vhd,force_size_calc=x
info --image-opts driver=vpc,file.filename=dynamic.vhd,backing.driver=null-co
info --image-opts driver=vpc,file.filename=dynamic.vhd,unknown=1
info -f vpc gone.vhd
check written.vhd
check -r all written.vhd
compare written.vhd dynamic.vhd
compare -f vpc -F vpc fixed.vhd written.vhd
compare written.vhd written.vhd
snapshot -l written.vhd
measure -O vpc --size 1G
measure -O raw written.vhd
measure -O qcow2 written.vhd
convert -O vpc -c written.vhd x.vhd
create -f vpc -b written.vhd x.vhd
create -f vpc -F raw x.vhd 1M
create -f vpc -o block_size=1M x.vhd 1M
create -f vpc -o force_size=maybe x.vhd 1M
amend -o size=1M written.vhd
info --image-opts driver=vpc,file.driver=blkdebug,file.image.filename=written.vhd,file.inject-error.0.event=none,file.inject-error.0.iotype=read,file.inject-error.0.sector=0
info --image-opts driver=vpc,file.driver=blkdebug,file.image.filename=written.vhd,file.inject-error.0.event=none,file.inject-error.0.iotype=read,file.inject-error.0.sector=1
info --image-opts driver=vpc,file.driver=blkdebug,file.image.filename=written.vhd,file.inject-error.0.event=none,file.inject-error.0.iotype=read,file.inject-error.0.sector=3
`;

const WRITING = String.raw`
resize dynamic.vhd 20M
resize -f vpc fixed.vhd +1M
rebase -b '' written.vhd
rebase -u -b base.raw -F raw written.vhd
commit written.vhd
snapshot -c one written.vhd
convert -O raw written.vhd out.raw
convert -O qcow2 written.vhd out.qcow2
convert -f vpc -O raw fixed.vhd out.raw
dd if=written.vhd of=out.raw bs=1M count=3
convert -n -O vpc written.vhd dynamic.vhd
convert -n -f raw -O vpc fixed.vhd forced.vhd
`;

const CREATING = String.raw`
create -f vpc new.vhd 0
create -f vpc new.vhd 1
create -f vpc new.vhd 512
create -f vpc new.vhd 1000000
create -f vpc new.vhd 1M
create -f vpc new.vhd 35651584
create -f vpc new.vhd 127M
create -f vpc new.vhd 503M
create -f vpc new.vhd 504M
create -f vpc new.vhd 4G
create -f vpc new.vhd 31G
create -f vpc new.vhd 33822867456
create -f vpc new.vhd 33822867457
create -f vpc new.vhd 33822351360
create -f vpc new.vhd 100G
create -f vpc new.vhd 136899993599
create -f vpc new.vhd 136899993600
create -f vpc new.vhd 136899993601
create -f vpc new.vhd 136899000000
create -f vpc new.vhd 2040G
create -f vpc -o subformat=fixed new.vhd 0
create -f vpc -o subformat=fixed new.vhd 1000
create -f vpc -o subformat=fixed new.vhd 10M
create -f vpc -o subformat=fixed new.vhd 2040G
create -f vpc -o subformat=fixed,preallocation=full new.vhd 1M
create -f vpc -o subformat=fixed,force_size=on new.vhd 1000
create -f vpc -o force_size=on new.vhd 0
create -f vpc -o force_size=on new.vhd 1
create -f vpc -o force_size=on new.vhd 10M
create -f vpc -o force_size=on new.vhd 200G
create -f vpc -o force_size=off,subformat=dynamic new.vhd 10M
convert -O vpc written.vhd new.vhd
convert -O vpc -o force_size=on written.vhd new.vhd
convert -O vpc -o subformat=fixed -f vpc fixed.vhd new.vhd
convert -f raw -O vpc fixed.vhd new.vhd
convert -S 0 -O vpc dynamic.vhd new.vhd
create -f vpc new.vhd 2041G
create -f vpc -o force_size=on new.vhd 2190433320961
create -f vpc -o subformat=xx new.vhd 1M
create -f vpc -o subformat= new.vhd 1M
create -f vpc -o preallocation=metadata new.vhd 1M
create -f vpc new.vhd
`;

/** Both make \`new.vhd\`, each in a copy of the directory. */
async function sameImage(fixture: Fixture, args: readonly string[]): Promise<void> {
  const [oursIn, theirsIn] = [fixture.copy(), fixture.copy()];
  const line = `qemu-img ${args.join(" ")}`;
  assert.deepEqual(await runOurs(args, oursIn), runTheirs(args, theirsIn), line);
  const [ours, theirs] = [oursIn, theirsIn].map((directory) => path.join(directory, "new.vhd")) as [
    string,
    string,
  ];
  // A refused create leaves nothing here, an empty file there.
  if (!fs.existsSync(ours)) assert.equal(fs.statSync(theirs, { throwIfNoEntry: false })?.size ?? 0, 0, line);
  else assert.ok(withoutClock(ours).equals(withoutClock(theirs)), line);
  for (const directory of [oursIn, theirsIn]) fs.rmSync(directory, { recursive: true });
}

/** The file, its footers without time, checksum and identity; of a large one only both ends. */
function withoutClock(filename: string): Buffer {
  const { size } = fs.statSync(filename);
  const descriptor = fs.openSync(filename, "r");
  const read = (offset: number, bytes: number) => {
    const buffer = Buffer.alloc(bytes);
    fs.readSync(descriptor, buffer, 0, bytes, offset);
    return buffer;
  };
  const tail = Math.min(size, 4096);
  const image = size <= 2 ** 25 ? read(0, size) : Buffer.concat([read(0, 2 ** 20), read(size - tail, tail)]);
  fs.closeSync(descriptor);
  for (const start of new Set([0, image.length - 512])) {
    if (image.toString("latin1", start, start + 8) !== "conectix") continue;
    image.fill(0, start + 24, start + 28);
    image.fill(0, start + 64, start + 84);
  }
  return Buffer.concat([Buffer.from(String(size)), image]);
}

describe("vpc beside qemu-io", { skip: noOracle }, () => {
  const fixture = new Fixture((directory) => {
    for (const [name, ...options] of [["dynamic.vhd"], ["fixed.vhd", "-o", "subformat=fixed"]] as string[][])
      mustRun("qemu-img", [
        "create",
        "-q",
        "-f",
        "vpc",
        ...(options ?? []),
        path.join(directory, name as string),
        "10M",
      ]);
    // Blocks of 64 KiB, of which the second has its place already, with an empty bitmap.
    const small = Buffer.concat([
      withDynamicHeader(
        fs.readFileSync(path.join(directory, "dynamic.vhd")),
        [BLOCK_SIZE, "u32", 65536],
        [ENTRIES, "u32", 161],
      ).subarray(0, 1536),
      Buffer.alloc(1024, 0xff),
      Buffer.alloc(512),
      Buffer.alloc(65536, 7),
    ]);
    const footer = small.subarray(0, 512);
    fs.writeFileSync(path.join(directory, "small.vhd"), withEntry(Buffer.concat([small, footer]), 1540, 5));
  });
  after(() => fixture.remove());

  it("requests, and the bytes that they leave", async () => {
    for (const line of caseLines(REQUESTS)) await sameRun(fixture, line);
  });
});

const REQUESTS = String.raw`
-f vpc -c 'write -P 1 0 512' -c 'read -P 1 0 512' -c 'read -P 0 512 1M' dynamic.vhd
-f vpc -c 'write -P 1 3M 100' -c 'write -P 2 3145828 1M' -c 'read -v 3145700 200' dynamic.vhd
-f vpc -c 'write -P 1 8M 1M' -c 'write -P 2 0 1M' -c 'write -P 3 5M 2M' -c 'write -P 4 8M 64k' dynamic.vhd
-f vpc -c 'write -P 1 1M 8M' -c 'flush' -c 'write -z 2M 1M' -c 'discard 4M 2M' dynamic.vhd
-f vpc -c 'write -P 1 10514431 1' -c 'write 10514432 1' -c 'read 10514432 1' dynamic.vhd
-f vpc -c 'write -z 1M 64k' -c 'alloc 0 10M' -c 'map' dynamic.vhd
-f vpc -c 'write -z -u 1M 64k' -c 'write -c 0 64k' -c 'alloc 2M' -c 'length' dynamic.vhd
-f vpc -c 'aio_write -P 3 0 3M' -c 'aio_flush' -c 'truncate 20M' dynamic.vhd
-f vpc -c 'writev -P 5 4000 100 5000 512' -c 'readv -P 5 4000 100 5000 512' dynamic.vhd
-f vpc -c 'write -P 1 0 512' -c 'map' -c 'write -P 6 5M 1M' -c 'truncate 1M' fixed.vhd
-f vpc -c 'write -P 1 10514431 1' -c 'write 10514432 1' -c 'discard 0 1M' -c 'write -z 0 1M' fixed.vhd
-r -f vpc -c 'write 0 512' -c 'read -P 0 0 10M' dynamic.vhd
-f vpc -c 'read -P 7 64k 64k' -c 'write -P 1 70k 1k' -c 'write -P 2 0 512' -c 'write -P 3 71k 1k' small.vhd
-f vpc -c 'write -P 2 0 512' -c 'write -P 3 96k 512' -c 'write -P 4 160k 1M' -c 'map' small.vhd
-f vpc -c info -c 'alloc 60k 20k' -c 'alloc 0 1M' small.vhd
-f vpc -c 'open -o force_size_calc=chs dynamic.vhd' -c length -c 'write 0 1k'
-c 'open -o force_size_calc=chs,driver=vpc dynamic.vhd' -c length -c 'reopen -r' -c 'write 0 1k' -c 'reopen -w' -c 'write 0 1k'
`;
