/** `check`: its options, formats and exit codes beside qemu-img's; and images that a writer left behind, recovered by either tool. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { after, before, describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { check } from "../../src/index.ts";
import { tempDir } from "../support/temp.ts";
import { damage, makeBases } from "./damage.ts";
import { Fixture, missingTool, runOurs, words } from "./differential.ts";

const skip = missingTool ?? false;

/** One a line. */
const COMMANDS = `
check
check -r
check -r all
check -r bogus plain.qcow2
check plain.qcow2 snap.qcow2
check missing.qcow2
check -r all missing.qcow2
check plain.qcow2
check -q plain.qcow2
check --output=json plain.qcow2
check --output=bogus plain.qcow2
check -f qcow2 -r leaks plain.qcow2
check -f raw plain.qcow2
check disk.raw
check -q disk.raw
check --output=json disk.raw
check -r all -f raw disk.raw
check -f raw -r leaks --output=json disk.raw
check -f qcow2 disk.raw
check -U plain.qcow2
check -U -r all plain.qcow2
check -U -r leaks disk.raw
check -T none plain.qcow2
check -T writethrough -r all leaky.qcow2
check -T unsafe -r leaks leaky.qcow2
check -T directsync -r leaks leaky.qcow2
check -T bogus plain.qcow2
check -r leaks leaky.qcow2
check -r all -q leaky.qcow2
check -r all -q broken.qcow2
check -q broken.qcow2
check -r leaks --output=json broken.qcow2
check --repair=all broken.qcow2
check --output json -r all broken.qcow2
check --image-opts driver=qcow2,file.filename=plain.qcow2
check --image-opts -r all driver=qcow2,file.filename=leaky.qcow2
check --image-opts -r all driver=qcow2,file.filename=leaky.qcow2,read-only=on
check --image-opts -f qcow2 driver=qcow2,file.filename=leaky.qcow2
check -r all json:{"driver":"qcow2","file":{"driver":"file","filename":"leaky.qcow2"}}
check -r all json:{"driver":"qcow2","file":{"driver":"blkdebug","image.filename":"leaky.qcow2"}}
check -r all blkdebug::leaky.qcow2
check -r all --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=rebuild.qcow2,file.inject-error.0.event=none,file.inject-error.0.iotype=write,file.inject-error.0.errno=28,file.inject-error.0.once=on
check --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=plain.qcow2,file.inject-error.0.event=none,file.inject-error.0.iotype=read,file.inject-error.0.sector=32
check --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=plain.qcow2,file.inject-error.0.event=none,file.inject-error.0.iotype=read,file.inject-error.0.sector=16
check --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=snap.qcow2,file.inject-error.0.event=none,file.inject-error.0.iotype=read,file.inject-error.0.sector=80
check --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=snap.qcow2,file.inject-error.0.event=none,file.inject-error.0.iotype=read,file.inject-error.0.sector=96
check --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=snap.qcow2,file.inject-error.0.event=none,file.inject-error.0.iotype=read,file.inject-error.0.sector=144
check -r all --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=leaky.qcow2,file.inject-error.0.event=none,file.inject-error.0.iotype=read,file.inject-error.0.sector=16
check -r all --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=rebuild.qcow2,file.inject-error.0.event=none,file.inject-error.0.iotype=write,file.inject-error.0.sector=0
`;

describe("check: the command line", () => {
  let fixture: Fixture;
  before(() => {
    if (skip) return;
    fixture = new Fixture((directory) => {
      makeBases(directory);
      for (const [name, line] of [
        ["leaky", "plain rc[5]=3 rc[20]=1"],
        ["broken", "plain rc[5]=3 l2[1]=C+7K"],
        ["rebuild", "plain rt[0]=0"],
      ] as const) {
        const scratch = path.join(directory, "scratch");
        fs.mkdirSync(scratch);
        fs.renameSync(
          path.join(scratch, damage(directory, scratch, line)),
          path.join(directory, `${name}.qcow2`),
        );
        fs.rmdirSync(scratch);
      }
      fs.writeFileSync(path.join(directory, "disk.raw"), Buffer.alloc(1 << 20, 1));
    });
  });
  after(() => fixture?.remove());
  // qemu-img 7.2 ends with 0 here: what could not be written is said when the image is closed, and no longer counts.
  for (const error of ["event=refblock_update_part", "event=none,file.inject-error.0.iotype=flush"])
    it(`a repair that can not be written is none: ${error}`, { skip }, async () => {
      const inject = `file.inject-error.0.${error},file.inject-error.0.errno=28`;
      const options = `driver=qcow2,file.driver=blkdebug,file.image.filename=leaky.qcow2,${inject}`;
      const { exitCode, stderr } = await runOurs(
        ["check", "-r", "all", "--image-opts", options],
        fixture.copy(),
      );
      assert.equal(exitCode, 1);
      assert.match(stderr, /^qemu-img: Check failed: No space left on device$/m);
      assert.match(stderr, /^qemu-img: Failed to flush the refcount block cache: No space left on device$/m);
    });
  for (const line of COMMANDS.split("\n").filter((each) => each !== ""))
    it(line, { skip }, () => fixture.same(line.includes("json:{") ? line.split(" ") : words(line)));
});

describe("an image that a killed writer left dirty", { skip }, () => {
  const main = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
  const ours = (tool: string, args: readonly string[]) =>
    spawnSync(process.execPath, ["--import", "tsx", main, tool, ...args], { encoding: "utf8" });
  const theirs = (tool: string, args: readonly string[]) => spawnSync(tool, args, { encoding: "utf8" });
  const isDirty = (file: string) => ((fs.readFileSync(file)[79] as number) & 1) !== 0;

  for (const [who, writer, reader] of [
    ["by ours, recovered by qemu-io", ours, theirs],
    ["by qemu-io, recovered by ours", theirs, ours],
  ] as const)
    for (const end of ["abort", "sigraise 9"])
      it(`${who}: ${end}`, (test) => {
        const directory = tempDir(test);
        const file = path.join(directory, "lazy.qcow2");
        assert.equal(
          theirs("qemu-img", ["create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", file, "64M"]).status,
          0,
        );
        const commands = ["write -P 7 1M 100k", "flush", "write -P 8 40M 1M", end];
        const killed = writer("qemu-io", [...commands.flatMap((command) => ["-c", command]), file]);
        assert.notEqual(killed.signal, null, killed.stderr);
        assert.ok(isDirty(file), "marked dirty");
        // Who only reads leaves the mark.
        assert.equal(reader("qemu-io", ["-r", "-c", "read -P 7 1M 100k", file]).status, 0);
        assert.ok(isDirty(file), "still marked dirty");
        const { status, stdout, stderr } = reader("qemu-io", ["-c", "read -P 7 1M 100k", file]);
        assert.equal(status, 0, stderr);
        assert.doesNotMatch(stdout, /failed/);
        assert.ok(!isDirty(file), "clean");
        assert.equal(theirs("qemu-img", ["check", "-q", file]).status, 0);
      });
});

describe("an image with snapshots and bitmaps", { skip }, () => {
  // qemu-img 7.2 drops the snapshots: it writes the header, for its bitmaps are in use, before it has read them.
  for (const damaged of ["", " rc[5]=9", " rt[0]=0", " @79:1=2 rc[6]=5", " @79:1=3 rc[6]=0"])
    it(`keeps both through a repair:${damaged}`, async (test) => {
      const bases = tempDir(test);
      makeBases(bases);
      const directory = tempDir(test);
      const name = damage(bases, directory, `mixed${damaged}`);
      const list = () => {
        const { stdout } = spawnSync("qemu-img", ["info", "--output=json", path.join(bases, name)], {
          encoding: "utf8",
        });
        return JSON.parse(stdout) as {
          snapshots: unknown;
          "format-specific": { data: { bitmaps: unknown } };
        };
      };
      const { snapshots, "format-specific": specific } = list();
      assert.equal((await runOurs(["check", "-r", "all", name], directory)).exitCode, 0);
      fs.copyFileSync(path.join(directory, name), path.join(bases, name));
      assert.deepEqual(list().snapshots, snapshots);
      assert.deepEqual(list()["format-specific"].data.bitmaps, specific.data.bitmaps);
      const qemu = spawnSync("qemu-img", ["check", name], { cwd: directory, encoding: "utf8" });
      assert.equal(qemu.status, 0, qemu.stderr);
    });
});

describe("check in the library", { skip }, () => {
  it("repairs an image by its name", async (test) => {
    const bases = tempDir(test);
    makeBases(bases);
    const directory = tempDir(test);
    const file = path.join(directory, damage(bases, directory, "plain rc[5]=3 l2[1]=C+7K"));
    const found: string[] = [];
    const before = await check(file, { onFinding: (line) => found.push(line) });
    assert.ok(before.corruptions > 0 && before.leaks > 0 && found.length > 0);
    const repaired = await check(file, { repair: "all" });
    assert.ok(repaired.corruptionsFixed > 0 && repaired.leaksFixed > 0);
    const { corruptions, leaks, checkErrors } = await check(file);
    assert.deepEqual({ corruptions, leaks, checkErrors }, { corruptions: 0, leaks: 0, checkErrors: 0 });
  });
});
