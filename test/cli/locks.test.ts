/**
 * Commands on images that somebody holds: beside qemu-img and qemu-io, while these hold them; and qemu's tools on
 * images that are held by ours, where they must say what they say of each other.
 */

import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { describe, it, type TestContext } from "node:test";
import { openBackend } from "../support/graph.ts";
import { type Holder, holdWithQemuIo, holdWithQemuNbd, noLocks } from "../support/holders.ts";
import { openFilesUnder, tempDir } from "../support/temp.ts";
import { missing } from "../support/tools.ts";
import { type RunResult, runOurs, words } from "./differential.ts";

const skip = noLocks(os.tmpdir()) || missing("qemu-img") || missing("qemu-io") || missing("qemu-nbd");

/** On an image of its own, IMAGE of FORMAT, or over it, OVERLAY. The order matters: some of them write. */
const LINES = String.raw`
qemu-img info IMAGE
qemu-img info -U IMAGE
qemu-img info ./IMAGE
qemu-img info file:IMAGE
qemu-img info 'json:{"driver":"FORMAT","file":{"driver":"file","filename":"IMAGE"}}'
qemu-img info 'json:{"driver":"file","filename":"IMAGE"}'
qemu-img info --image-opts driver=FORMAT,file.filename=IMAGE,file.locking=on
qemu-img info --image-opts driver=FORMAT,file.filename=IMAGE,file.locking=off
qemu-img info --image-opts driver=FORMAT,file.filename=IMAGE,file.locking=maybe
qemu-img info --image-opts driver=FORMAT,file.filename=IMAGE,force-share=on
qemu-img info --backing-chain overlay.qcow2
qemu-img info --backing-chain -U overlay.qcow2
qemu-img check -f FORMAT IMAGE
qemu-img check -U -f FORMAT IMAGE
qemu-img check -r all -f FORMAT IMAGE
qemu-img check -U -r all -f FORMAT IMAGE
qemu-img map -f FORMAT IMAGE
qemu-img map -U -f FORMAT IMAGE
qemu-img map overlay.qcow2
qemu-img map -U overlay.qcow2
qemu-img map blkdebug::IMAGE
qemu-img compare -f FORMAT IMAGE c.raw
qemu-img compare -F FORMAT c.raw IMAGE
qemu-img compare -U IMAGE c.raw
qemu-img compare overlay.qcow2 c.raw
qemu-img compare -f FORMAT IMAGE IMAGE
qemu-img measure -O raw IMAGE
qemu-img measure -U -O raw IMAGE
qemu-img measure -O qcow2 overlay.qcow2
qemu-img snapshot -l IMAGE
qemu-img snapshot -U -l IMAGE
qemu-img bitmap --add -f FORMAT IMAGE b
qemu-img bitmap --merge b -F FORMAT -b IMAGE overlay.qcow2 x
qemu-img commit overlay.qcow2
qemu-img commit -f FORMAT IMAGE
qemu-img rebase -u -f FORMAT -b x IMAGE
qemu-img rebase -b IMAGE -F FORMAT other.qcow2
qemu-img rebase -U -b IMAGE -F FORMAT other.qcow2
qemu-img rebase -b c.raw -F raw overlay.qcow2
qemu-img rebase -U -u -b IMAGE -F FORMAT overlay.qcow2
qemu-img amend -f FORMAT -o compat=1.1 IMAGE
qemu-img bench -c 1 -f FORMAT IMAGE
qemu-img bench -U -c 1 -f FORMAT IMAGE
qemu-img bench -U -w -c 1 -f FORMAT IMAGE
qemu-img bench -w -c 1 -f FORMAT IMAGE
qemu-img dd -f FORMAT if=IMAGE of=d.out
qemu-img dd -U -f FORMAT if=IMAGE of=d.out
qemu-img convert -f FORMAT IMAGE d.out
qemu-img convert -U -f FORMAT IMAGE d.out
qemu-img convert -O qcow2 overlay.qcow2 d.out
qemu-img convert -O qcow2 -B IMAGE -F FORMAT c.raw d.out
qemu-img convert -n -O FORMAT c.raw IMAGE
qemu-img create -f qcow2 -b IMAGE -F FORMAT new.qcow2
qemu-img create -f qcow2 -b IMAGE -F FORMAT new.qcow2 2M
qemu-img create -f qcow2 -b overlay.qcow2 -F qcow2 new.qcow2
qemu-img create -f qcow2 -o data_file=IMAGE ext.qcow2 1M
qemu-io -r -c "read 0 512" -f FORMAT IMAGE
qemu-io -r -U -c "read 0 512" -f FORMAT IMAGE
qemu-io -U -c "read 0 512" -f FORMAT IMAGE
qemu-io -c "read 0 512" -f FORMAT IMAGE
qemu-io -c "read 0 512" overlay.qcow2
qemu-io -c "reopen -w" -c "read 0 512" -r -f FORMAT IMAGE
qemu-io -c "open IMAGE" -c "length"
qemu-io -c "open -o force-share=on IMAGE" -c "length"
qemu-img resize -f FORMAT IMAGE 1M
qemu-img snapshot -c one IMAGE
qemu-img create -f FORMAT IMAGE 1M
qemu-img dd -O FORMAT if=c.raw of=IMAGE
qemu-img convert -O FORMAT c.raw IMAGE
`
  .split("\n")
  .filter((line) => line !== "");

/** What holds an image: by whose tool, and how ours does the same. */
interface Hold {
  readonly image: string;
  readonly format: string;
  readonly tool: "qemu-io" | "qemu-nbd";
  readonly readOnly: boolean;
}

const HOLDS: readonly Hold[] = [
  { image: "i.qcow2", format: "qcow2", tool: "qemu-io", readOnly: false },
  { image: "i.qcow2", format: "qcow2", tool: "qemu-io", readOnly: true },
  { image: "i.raw", format: "raw", tool: "qemu-io", readOnly: false },
  { image: "i.raw", format: "raw", tool: "qemu-io", readOnly: true },
  { image: "i.raw", format: "raw", tool: "qemu-nbd", readOnly: false },
  { image: "i.raw", format: "raw", tool: "qemu-nbd", readOnly: true },
];

function fill(test: TestContext, { image, format }: Hold): string {
  const dir = tempDir(test);
  const create = (...args: string[]) => execFileSync("qemu-img", ["create", "-q", ...args], { cwd: dir });
  create("-f", format, image, "1M");
  create("-f", "raw", "c.raw", "1M");
  create("-f", "qcow2", "-b", image, "-F", format, "overlay.qcow2");
  create("-f", "qcow2", "-b", "c.raw", "-F", "raw", "other.qcow2");
  return dir;
}

async function hold(test: TestContext, each: Hold, dir: string): Promise<Holder> {
  const { image, format, tool, readOnly } = each;
  const args = [...(readOnly ? ["-r"] : []), "-f", format, image];
  return tool === "qemu-io" ? holdWithQemuIo(test, args, dir) : holdWithQemuNbd(test, args, dir);
}

function runTheirs([tool = "", ...args]: readonly string[], dir: string): RunResult {
  const { stdout, stderr, status } = spawnSync(tool, args, { cwd: dir, encoding: "utf8" });
  return { stdout, stderr, exitCode: status ?? -1 };
}

function normalise({ stdout, stderr, exitCode }: RunResult): RunResult {
  return {
    stdout: stdout
      .replace(/in \d+\.\d+ seconds/g, "in SECONDS seconds")
      .replace(/[\d.]+ sec \([\d.]+ \w+\/sec and [\d.]+ ops\/sec\)/g, "TIME")
      .replace(/disk size: .*/g, "disk size: SIZE")
      .replace(/\d{4}-\d\d-\d\d \d\d:\d\d:\d\d/g, "DATE"),
    stderr: stderr.replace(/#block\d+/g, "#block"),
    exitCode,
  };
}

/** What reads only does not care whether it is qemu-io or qemu-nbd. */
const linesFor = ({ image, format, tool }: Hold): string[][] =>
  LINES.filter((line) => tool === "qemu-io" || /-w|resize|create|convert|commit|snapshot|dd/.test(line)).map(
    (line) => words(line.replaceAll("IMAGE", image).replaceAll("FORMAT", format)),
  );

describe("commands on an image that is held", { skip }, () => {
  for (const each of HOLDS) {
    const { image, tool, readOnly } = each;
    it(`by ${tool}${readOnly ? " -r" : ""} ${image}, or by ours, answer as qemu's`, async (test) => {
      const [ours, theirs, heldByOurs] = [fill(test, each), fill(test, each), fill(test, each)];
      const holders = [await hold(test, each, ours), await hold(test, each, theirs)];
      await using _held = await openBackend(
        { driver: each.format, file: { filename: path.join(heldByOurs, image) } },
        { flags: { readOnly } },
      );
      for (const line of linesFor(each)) {
        const expected = normalise(runTheirs(line, theirs));
        const [name = "", ...args] = line;
        const got = normalise(await runOurs(args, ours, name));
        assert.deepEqual(got, expected, line.join(" "));
        assert.deepEqual(openFilesUnder(ours), [], `${line.join(" ")} leaves nothing open`);
        // qemu-nbd, which allows no resize, we are not.
        if (tool === "qemu-io")
          assert.deepEqual(
            normalise(runTheirs(line, heldByOurs)),
            expected,
            `held by ours: ${line.join(" ")}`,
          );
      }
      for (const holder of holders) await holder.release();
      assert.deepEqual(fs.readdirSync(ours).sort(), fs.readdirSync(theirs).sort());
    });
  }

  it("that lies within the chain answer as qemu's", async (test) => {
    const pristine = tempDir(test);
    const create = (...args: string[]) =>
      execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", ...args], { cwd: pristine });
    create("base.qcow2", "1M");
    create("-b", "base.qcow2", "-F", "qcow2", "mid.qcow2");
    create("-b", "mid.qcow2", "-F", "qcow2", "top.qcow2");
    const make = () => {
      const dir = tempDir(test);
      fs.cpSync(pristine, dir, { recursive: true });
      return dir;
    };
    for (const [held, line] of [
      ["-r mid.qcow2", "commit top.qcow2"],
      ["-r mid.qcow2", "commit -b base.qcow2 top.qcow2"],
      ["-r mid.qcow2", "rebase -b base.qcow2 -F qcow2 top.qcow2"],
      ["-r mid.qcow2", "rebase -u -b base.qcow2 -F qcow2 top.qcow2"],
      ["-r mid.qcow2", "convert -O qcow2 top.qcow2 mid.qcow2"],
      ["-r -U mid.qcow2", "commit top.qcow2"],
      ["-r -U mid.qcow2", "commit -b base.qcow2 top.qcow2"],
      ["-r base.qcow2", "commit -d top.qcow2"],
      ["-r base.qcow2", "commit -b base.qcow2 top.qcow2"],
      ["-r top.qcow2", "commit top.qcow2"],
      ["top.qcow2", "commit mid.qcow2"],
      ["top.qcow2", "info --backing-chain mid.qcow2"],
      ["mid.qcow2", "info --backing-chain top.qcow2"],
    ] as const) {
      const [ours, theirs] = [make(), make()];
      const holders = [
        await holdWithQemuIo(test, held.split(" "), ours),
        await holdWithQemuIo(test, held.split(" "), theirs),
      ];
      const expected = normalise(runTheirs(["qemu-img", ...words(line)], theirs));
      assert.deepEqual(normalise(await runOurs(words(line), ours)), expected, `${held}: ${line}`);
      assert.deepEqual(openFilesUnder(ours), []);
      for (const holder of holders) await holder.release();
    }
  });

  it("are told by bdrv who holds it, and how to read it all the same", async (test) => {
    const each: Hold = { image: "i.qcow2", format: "qcow2", tool: "qemu-io", readOnly: false };
    const dir = fill(test, each);
    const holder = await hold(test, each, dir);
    const { stderr } = await runOurs(["info", "i.qcow2"], dir, "bdrv");
    assert.match(
      stderr,
      /^bdrv: Could not open 'i.qcow2': Failed to get shared "write" lock\nIs another process using the image \[i.qcow2\]\?\nIt is used by qemu-io \(process \d+\)\.\nWith --force-share \(-U\) info, map, check and others read it all the same; what they tell may be out of date\.\n$/,
    );
    assert.equal((await runOurs(["info", "-U", "i.qcow2"], dir, "bdrv")).exitCode, 0);
    const writing = await runOurs(["resize", "i.qcow2", "2M"], dir, "bdrv");
    assert.match(
      writing.stderr,
      /Failed to get "write" lock\n.*\nIt is used by qemu-io \(process \d+\)\.\n$/,
    );
    await holder.release();
    assert.equal((await runOurs(["resize", "i.qcow2", "2M"], dir, "bdrv")).exitCode, 0);
  });
});

/** Images that one command line names twice: a.qcow2 below o.qcow2, two raw files. */
const TWICE = String.raw`
qemu-io -r -c 'read 0 1' --image-opts driver=blkdebug,image.filename=r.raw,take-child-perms.0=write
qemu-io -c 'read 0 1' --image-opts driver=quorum,vote-threshold=1,children.0.driver=raw,children.0.file.filename=r.raw,children.1.driver=raw,children.1.file.filename=r.raw
qemu-io -r -c 'read 0 1' --image-opts driver=quorum,vote-threshold=1,children.0.driver=raw,children.0.file.filename=r.raw,children.1.driver=raw,children.1.file.filename=r.raw
qemu-io -c 'read 0 1' --image-opts driver=quorum,vote-threshold=1,children.0.driver=qcow2,children.0.file.filename=a.qcow2,children.1.driver=qcow2,children.1.file.filename=a.qcow2
qemu-io -c 'read 0 1' --image-opts driver=blkverify,raw.driver=raw,raw.file.filename=r.raw,test.driver=raw,test.file.filename=r.raw
qemu-io -c 'read 0 1' --image-opts driver=blklogwrites,file.driver=file,file.filename=r.raw,log.driver=file,log.filename=r.raw
qemu-io -c 'read 0 1' --image-opts driver=qcow2,file.filename=o.qcow2,backing.driver=qcow2,backing.file.filename=o.qcow2
qemu-io -c 'read 0 1' --image-opts driver=qcow2,file.filename=o.qcow2,backing.driver=raw,backing.file.filename=o.qcow2
qemu-io -r -c 'read 0 1' --image-opts driver=qcow2,file.filename=o.qcow2,backing.driver=raw,backing.file.filename=o.qcow2
qemu-io -r -c 'read 0 1' --image-opts driver=qcow2,file.filename=o.qcow2,backing.driver=raw,backing.file.driver=blkdebug,backing.file.image.filename=r.raw,backing.file.take-child-perms.0=resize
qemu-io -c 'open a.qcow2' -c close -c 'open -r a.qcow2' -c 'reopen -w' -c 'write 0 512' -c 'reopen -r' -c 'write 0 512'
qemu-io -c 'open -o driver=qcow2,file.locking=on,file.filename=a.qcow2' -c 'reopen -o file.locking=on' -c 'reopen -o file.locking=off'
qemu-io -c 'open -o driver=qcow2,file.filename=a.qcow2' -c 'reopen -o file.locking=auto'
qemu-img convert -O qcow2 a.qcow2 a.qcow2
qemu-img convert -O raw r.raw s.raw r.raw
qemu-img convert -n -O qcow2 a.qcow2 a.qcow2
qemu-img convert -n -O raw r.raw r.raw
qemu-img convert -n -O qcow2 a.qcow2 o.qcow2
qemu-img convert -n -O qcow2 o.qcow2 a.qcow2
qemu-img convert -O qcow2 -B a.qcow2 -F qcow2 o.qcow2 a.qcow2
qemu-img convert -O qcow2 o.qcow2 a.qcow2
qemu-img dd if=a.qcow2 of=a.qcow2 -O qcow2
qemu-img dd -n if=a.qcow2 of=a.qcow2 -O qcow2
qemu-img compare a.qcow2 a.qcow2
qemu-img compare a.qcow2 o.qcow2
qemu-img bitmap --add a.qcow2 x
qemu-img bitmap --add --merge x -b a.qcow2 -F qcow2 a.qcow2 y
qemu-img rebase -b o.qcow2 -F qcow2 o.qcow2
qemu-img rebase -b o.qcow2 -F qcow2 a.qcow2
qemu-img create -f qcow2 -o data_file=x.qcow2 x.qcow2 1M
qemu-img create -f qcow2 -o data_file=./x.qcow2 x.qcow2 1M
qemu-img create -f qcow2 -o data_file=a.qcow2 -b a.qcow2 -F qcow2 x.qcow2
`
  .split("\n")
  .filter((line) => line !== "");

describe("an image that is named twice", { skip }, () => {
  const make = (test: TestContext) => {
    const dir = tempDir(test);
    const create = (...args: string[]) => execFileSync("qemu-img", ["create", "-q", ...args], { cwd: dir });
    for (const name of ["r.raw", "s.raw"]) create("-f", "raw", name, "1M");
    create("-f", "qcow2", "a.qcow2", "1M");
    create("-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "o.qcow2");
    return dir;
  };
  // That it can't find the file which it has just removed itself is of no use to anybody.
  const useful = (text: string) => text.replace(/^qemu-img: .* is not a regular file: .*\n/gm, "");

  it("is opened twice, or not, as with qemu's tools", async (test) => {
    const [ours, theirs] = [make(test), make(test)];
    for (const line of TWICE) {
      const [name = "", ...args] = words(line);
      const expected = normalise(runTheirs([name, ...args], theirs));
      const got = normalise(await runOurs(args, ours, name));
      assert.deepEqual(got, { ...expected, stderr: useful(expected.stderr) }, line);
      assert.deepEqual(openFilesUnder(ours), [], `${line} leaves nothing open`);
    }
    assert.deepEqual(fs.readdirSync(ours).sort(), fs.readdirSync(theirs).sort());
  });

  it("is not emptied before it is copied to itself, also with -U, where qemu-img does", async (test) => {
    const dir = make(test);
    const before = fs.readFileSync(path.join(dir, "a.qcow2"));
    const { stderr } = await runOurs(["convert", "-U", "-O", "qcow2", "a.qcow2", "a.qcow2"], dir);
    assert.match(stderr, /Failed to get "write" lock/);
    assert.deepEqual(fs.readFileSync(path.join(dir, "a.qcow2")), before);
  });
});
