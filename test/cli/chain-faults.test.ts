/**
 * Commit and rebase on images that fail, by blkdebug: the same words and exit codes as qemu-img's, and whatever
 * happens, the overlay reads as before. That a flush fails when all is copied is an error here, where qemu-img
 * goes on, and may lose what it wrote: those rules are left out.
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { describe, it } from "node:test";
import { tempDir } from "../support/temp.ts";
import { missing, mustRun } from "../support/tools.ts";
import { runOurs, runTheirs } from "./differential.ts";

const EVENTS = [
  "read_aio",
  "write_aio",
  "l2_load",
  "l2_alloc_write",
  "l1_update",
  "cluster_alloc",
  "refblock_load",
  "pwritev",
  "pwritev_zero",
  "empty_image_prepare",
  "reftable_update",
  "cow_read",
];

/** The image that the rules are for, and what is done; DIR is the directory. */
const CASES: readonly { readonly where: "mid.q" | "new.q"; readonly args: readonly string[] }[] = [
  { where: "mid.q", args: ["commit", "top.q"] },
  { where: "mid.q", args: ["commit", "-b", "DIR/base.q", "top.q"] },
  { where: "mid.q", args: ["rebase", "-b", "new.q", "-F", "qcow2", "top.q"] },
  { where: "new.q", args: ["rebase", "-b", "blkdebug:DIR/rules:DIR/new.q", "-F", "qcow2", "top.q"] },
];

function makeImages(directory: string): void {
  const create = (...args: string[]) => {
    const { status } = spawnSync("qemu-img", ["create", "-q", "-f", "qcow2", ...args], { cwd: directory });
    assert.equal(status, 0, args.join(" "));
  };
  const write = (name: string, ...commands: string[]) =>
    mustRun("qemu-io", [
      "-f",
      "qcow2",
      ...commands.flatMap((each) => ["-c", each]),
      path.join(directory, name),
    ]);
  create("base.q", "1M");
  create("mid.q", "1M", "-b", "base.q", "-F", "qcow2");
  create("top.q", "2M", "-b", "mid.q", "-F", "qcow2");
  create("new.q", "2M");
  write("base.q", "write -P 8 0 100k");
  write("mid.q", "write -P 1 64k 5k", "write -P 3 500k 80k");
  write("top.q", "write -P 2 128k 5k", "write -z 300k 100k", "write -P 4 1500k 70k");
  write("new.q", "write -P 8 0 100k", "write -P 7 600k 10k");
}

function contentOf(directory: string): Buffer {
  const copy = path.join(directory, "copy");
  const { status } = spawnSync("qemu-img", ["convert", "-O", "raw", "top.q", "copy"], { cwd: directory });
  assert.equal(status, 0);
  return fs.readFileSync(copy);
}

describe("commit and rebase where an image fails", { skip: missing("qemu-img") }, () => {
  for (const { where, args } of CASES)
    it(`${where}: ${args.join(" ")}`, async (t) => {
      const root = tempDir(t);
      const start = path.join(root, "start");
      fs.mkdirSync(start);
      makeImages(start);
      const before = contentOf(start);
      if (where === "mid.q") {
        const { status } = spawnSync(
          "qemu-img",
          ["rebase", "-u", "-b", "blkdebug:rules:mid.q", "-F", "qcow2", "top.q"],
          { cwd: start },
        );
        assert.equal(status, 0);
      }
      for (const event of EVENTS) {
        fs.writeFileSync(
          path.join(start, "rules"),
          `[inject-error]\nevent = "${event}"\nerrno = "28"\nonce = "on"\n`,
        );
        const results = [];
        for (const [name, runTool] of [
          ["theirs", runTheirs],
          ["ours", runOurs],
        ] as const) {
          const directory = path.join(root, name);
          assert.equal(spawnSync("cp", ["-a", "--sparse=always", start, directory]).status, 0);
          const named = args.map((arg) => arg.replaceAll("DIR", directory));
          const result = await runTool(named, directory);
          results.push({ ...result, stderr: result.stderr.replaceAll(directory, "DIR") });
          fs.writeFileSync(path.join(directory, "rules"), "");
          if (name === "ours") {
            assert.ok(contentOf(directory).equals(before), `${event}: the overlay reads otherwise`);
            for (const image of ["base.q", "mid.q", "top.q"]) {
              const check = ["check", "-q", "-f", "qcow2", image];
              const { status } = spawnSync("qemu-img", check, { cwd: directory });
              assert.ok(status === 0 || status === 3, `${event}: ${image}`);
            }
          }
          fs.rmSync(directory, { recursive: true });
        }
        assert.deepEqual(results[1], results[0], event);
      }
    });
});
