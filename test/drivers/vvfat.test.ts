/** Folders as FAT disks, beside qemu-img: the same bytes, and the same words for what can't be. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import { runOurs, runTheirs } from "../cli/differential.ts";
import { openBackend } from "../support/graph.ts";
import { random } from "../support/random.ts";
import { tempDir } from "../support/temp.ts";
import { missing, mustRun, run } from "../support/tools.ts";

const root = tempDir({ after });
const CLUSTER = 8192;

const NAMES = [
  "a.b.c",
  ".hidden",
  "trail.",
  "a b",
  "longername1.txt",
  "longername2.txt",
  "longername3.txt",
  "x.html",
  "x.htm",
  "caf\u00e9.txt",
  "\u65e5\u672c.txt",
  "a+b=c",
  "UP low.TxT",
  "12345678.123",
  "123456789.1234",
  "a..b",
  "~tilde",
  "+++.+++",
  "a name of more than twice thirteen characters.jpeg",
];

/** Whole clusters, for QEMU gives what it read before for what a last cluster lacks. */
function makeFolder(): string {
  const dice = random(1);
  const folder = path.join(root, "folder");
  for (const name of ["deep/er", "empty", "names"])
    fs.mkdirSync(path.join(folder, name), { recursive: true });
  for (const [index, name] of NAMES.entries())
    fs.writeFileSync(path.join(folder, "names", name), dice.bytes((index % 3) * CLUSTER));
  fs.writeFileSync(path.join(folder, "deep", "one"), dice.bytes(5 * CLUSTER));
  fs.writeFileSync(path.join(folder, "deep/er", "two"), dice.bytes(2 * CLUSTER));
  fs.writeFileSync(path.join(folder, "first"), dice.bytes(CLUSTER));
  for (const name of fs.readdirSync(folder, { recursive: true, encoding: "utf8" }))
    fs.utimesSync(path.join(folder, name), new Date(), new Date("2021-03-04T05:06:07Z"));
  return folder;
}

describe("vvfat", { skip: missing("qemu-img") }, () => {
  const folder = makeFolder();

  for (const kind of ["", "12:", "16:", "32:", "floppy:", "floppy:12:", "16:floppy:"])
    it(`fat:${kind} has qemu's bytes`, async () => {
      const name = `fat:${kind}${folder}`;
      const ours = await runOurs(["convert", "-O", "raw", name, "ours"], root);
      assert.equal(ours.exitCode, 0, ours.stderr);
      mustRun("qemu-img", ["convert", "-O", "raw", name, path.join(root, "theirs")]);
      const { code, stdout } = run("cmp", ["-l", path.join(root, "ours"), path.join(root, "theirs")]);
      assert.equal(code, 0, stdout.slice(0, 500));
    });

  it("a file's last cluster ends in zeroes", async () => {
    const small = path.join(root, "small");
    fs.mkdirSync(small);
    fs.writeFileSync(path.join(small, "file"), "content");
    await using disk = await openBackend(
      { driver: "raw", file: { driver: "vvfat", dir: small } },
      { flags: { readOnly: true } },
    );
    const rootOffset = (63 + 1 + 2 * 252) * 512;
    const content = Buffer.alloc(CLUSTER);
    content.write("content");
    assert.equal(Buffer.compare(await disk.read(rootOffset + 2 * CLUSTER, CLUSTER), content), 0);
  });

  const lines = [
    `info fat:${folder}`,
    `info --output=json fat:12:${folder}`,
    `map --output=json fat:floppy:${folder}`,
    `map fat:${folder}`,
    `info fat:rw:${folder}`,
    "info fat:/nonexistent",
    "info fat:",
    `info --image-opts driver=vvfat,dir=${folder},fat-type=13`,
    `info --image-opts driver=vvfat,dir=${folder},label=123456789012`,
    "info --image-opts driver=vvfat,fat-type=12",
    `resize -f raw fat:${folder} +1M`,
  ];
  for (const line of lines)
    it(line.replaceAll(folder, "DIR"), async () => {
      const theirs = runTheirs(line.split(" "), root);
      assert.deepEqual(await runOurs(line.split(" "), root), theirs);
    });

  it("disks to be written to are refused by name", async () => {
    await assert.rejects(openBackend({ driver: "vvfat", dir: folder, rw: true }), {
      errno: "ENOTSUP",
      message: "vvfat disks that can be written to ('rw') are not supported",
    });
  });
});
