/** `bdrv io` beside qemu-io: what is printed, the exit code, and the image that is left. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import { mustRun } from "../support/tools.ts";
import { Fixture } from "./differential.ts";
import { AIO_CASES, BLKDEBUG_CASES, FRAME_CASES, OPEN_CASES, QCOW2_CASES, RAW_CASES } from "./io-cases.ts";
import { caseLines, noOracle, normalise, sameCase, sameRun } from "./io-harness.ts";
import { randomScript } from "./io-random.ts";

const KIB = 1024;
const MIB = KIB * KIB;

/**
 * What is not the same on purpose. Nothing of it stands in the tables.
 *
 * - `-V`: the number is QEMU's, what stands behind it is ours.
 * - `-T`: nothing is traced, so there is no event that exists: `help` lists none, and each that is named is warned of.
 * - `truncate -m MODE` without a length is a usage error; qemu-io crashes.
 * - A length over 2^53 - 2^30 is refused with that limit, not with 2^63.
 * - Several asynchronous requests may end in another order, as they may from run to run of qemu-io.
 * - At a terminal the line editor is Node's.
 * - With `-s`, options of the overlay can be changed by `reopen`; qemu-io looks for the file that it has removed. Nodes
 *   of any driver can be reopened; qemu refuses it below and above copy-on-read, compress, quorum and their like.
 * - The first write with FUA: qemu's count of changes is raised after the flush that belongs to it, so that this flush
 *   is left out at the node itself (blkdebug's `flush_to_disk` does not come, blklogwrites logs none).
 * - A compressed write that fails gives its clusters back; in qemu's image an entry points to what was never written.
 * - blkverify: writes of zeroes and truncation work; qemu-io crashes. A cluster that was freed is used again only when
 *   the L2 tables without it are on the disk: where blkdebug stops at `l2_update` then, qemu goes on.
 */

function fillRaw(directory: string): void {
  const file = (name: string) => path.join(directory, name);
  fs.truncateSync(touch(file("r.raw")), MIB);
  fs.truncateSync(touch(file("long.raw")), 41 * MIB);
  fs.truncateSync(touch(file("huge.raw")), 1024 * MIB);
  fs.writeFileSync(file("bytes.raw"), Buffer.from(Array.from({ length: 1024 }, (_, index) => index % 256)));
  fs.writeFileSync(file("three"), "abc");
  touch(file("empty"));
}

function fillQcow2(directory: string): void {
  const create = (name: string, ...options: string[]) =>
    mustRun("qemu-img", ["create", "-q", "-f", "qcow2", ...options, path.join(directory, name), "1M"]);
  fs.writeFileSync(path.join(directory, "base.raw"), Buffer.alloc(512 * KIB, 5));
  fs.truncateSync(touch(path.join(directory, "r.raw")), MIB);
  fs.writeFileSync(
    path.join(directory, "inject.conf"),
    '[inject-error]\nevent = "read_aio"\nerrno = "28"\nonce = "on"\n',
  );
  create("q.qcow2");
  create("over.qcow2", "-b", "base.raw", "-F", "raw");
  create("ext.qcow2", "-o", "extended_l2=on");
  create("old.qcow2", "-o", "compat=0.10");
  create("zstd.qcow2", "-o", "compression_type=zstd");
  create("data.qcow2", "-o", `data_file=${path.join(directory, "data.img")}`);
}

function touch(filename: string): string {
  fs.writeFileSync(filename, "");
  return filename;
}

describe("io beside qemu-io", { skip: noOracle }, () => {
  const raw = new Fixture(fillRaw);
  const qcow2 = noOracle ? undefined : new Fixture(fillQcow2);
  after(() => {
    raw.remove();
    qcow2?.remove();
  });

  const tables: readonly (readonly [string, string, Fixture | undefined])[] = [
    ["raw", RAW_CASES, raw],
    ["asynchronous", AIO_CASES, raw],
    ["the frame", FRAME_CASES, raw],
    ["open and reopen", OPEN_CASES, raw],
    ["qcow2", QCOW2_CASES, qcow2],
    ["blkdebug", BLKDEBUG_CASES, qcow2],
  ];
  for (const [name, table, fixture] of tables)
    describe(name, () => {
      for (const line of caseLines(table)) it(line.slice(0, 120), () => sameRun(fixture as Fixture, line));
    });

  it("a line of over 1023 bytes is several", async () => {
    const args = ["-f", "raw", "r.raw"];
    await sameCase(raw, { args, stdin: `read 0 512 ${"x".repeat(3000)}\nlength\n` });
    await sameCase(raw, { args, stdin: `read 0 512 ${" ".repeat(1200)}\nlength\n` });
    await sameCase(raw, { args, stdin: `length${" ".repeat(1023 - 6)}\nlength\n` });
  });
});

/** What random scripts work on: the command that makes it, and the size of its clusters. */
const RANDOM_IMAGES: readonly (readonly [string, string, number?])[] = [
  ["raw", "-f raw i.raw 1M"],
  ["raw of an odd length", "-f raw i.raw 1000001"],
  ["qcow2", "-f qcow2 i.qcow2 1M", 64 * KIB],
  ["qcow2 of an odd length", "-f qcow2 i.qcow2 1000448", 64 * KIB],
  ["qcow2 version 2", "-f qcow2 -o compat=0.10 i.qcow2 1M", 64 * KIB],
  ["qcow2 version 2 over a backing file", "-f qcow2 -o compat=0.10 -b base.raw -F raw i.qcow2 1M", 64 * KIB],
  ["qcow2 with small clusters", "-f qcow2 -o cluster_size=4k i.qcow2 1M", 4 * KIB],
  ["qcow2 with the smallest clusters", "-f qcow2 -o cluster_size=512 i.qcow2 1M", 512],
  ["qcow2 with wide refcounts", "-f qcow2 -o refcount_bits=64,cluster_size=512 i.qcow2 1M", 512],
  ["qcow2 with subclusters", "-f qcow2 -o extended_l2=on i.qcow2 1M", 64 * KIB],
  [
    "qcow2 with subclusters over a backing file",
    "-f qcow2 -o extended_l2=on -b base.raw -F raw i.qcow2 1M",
    64 * KIB,
  ],
  ["qcow2 over a backing file", "-f qcow2 -b base.raw -F raw i.qcow2 1M", 64 * KIB],
  ["qcow2, zstd, one large cluster", "-f qcow2 -o compression_type=zstd,cluster_size=2M i.qcow2 1M", 2 * MIB],
  ["qcow2 with an external data file", "-f qcow2 -o data_file=data.img i.qcow2 1M", 64 * KIB],
  ["qcow2 with a raw data file", "-f qcow2 -o data_file=data.img,data_file_raw=on i.qcow2 1M", 64 * KIB],
  ["qcow2 with lazy refcounts", "-f qcow2 -o lazy_refcounts=on i.qcow2 1M", 64 * KIB],
  ["qcow2 with metadata set aside", "-f qcow2 -o preallocation=metadata i.qcow2 1M", 64 * KIB],
];

/** Before the image's name; none most of the time. */
const RANDOM_FLAGS: readonly string[] = ["", "", "-t writeback", "-t none", "-d ignore", "-C", "-t unsafe"];

describe("random scripts beside qemu-io", { skip: noOracle }, () => {
  const seeds = Number(process.env["BDRV_IO_SEEDS"] ?? 2);
  const first = Number(process.env["BDRV_IO_FIRST_SEED"] ?? 0);
  for (const [index, [name, create, clusterBytes]] of RANDOM_IMAGES.entries()) {
    it(`${name}, seeds ${first} to ${first + seeds - 1}`, async () => {
      const fixture = new Fixture((directory) => {
        fs.writeFileSync(path.join(directory, "base.raw"), Buffer.alloc(700 * KIB, "base"));
        fs.writeFileSync(path.join(directory, "pattern"), "abcdefg");
        spawnSync("qemu-img", ["create", "-q", ...create.split(" ")], { cwd: directory });
      });
      try {
        for (let seed = first; seed < first + seeds; seed++) {
          const lines = randomScript(seed, { bytes: MIB, ...(clusterBytes && { clusterBytes }) }, 40);
          const image = clusterBytes ? ["-f", "qcow2", "i.qcow2"] : ["-f", "raw", "i.raw"];
          const flags = (RANDOM_FLAGS[(seed + index) % RANDOM_FLAGS.length] as string).split(" ");
          const args = [...flags.filter(Boolean), ...image, ...lines.flatMap((line) => ["-c", line])];
          // The space of compressed clusters that are freed is found again later than by qemu, which gives it away twice.
          const compresses = lines.some((line) => line.startsWith("write -c"));
          await sameCase(fixture, { args, stdin: "" }, compresses ? "content" : "bytes");
        }
      } finally {
        fixture.remove();
      }
    });
  }
});

const bundle = path.resolve("dist/bdrv.cjs");

describe("io as a process", { skip: noOracle || (fs.existsSync(bundle) ? false : "not built") }, () => {
  const fixture = new Fixture(fillRaw);
  after(() => fixture.remove());

  /** What stands in one stream when both are one, and how the process ended. */
  function together(program: readonly string[], args: readonly string[]) {
    const [command = "", ...before] = program;
    const words = [command, ...before, ...args].map((word) => `'${word}'`).join(" ");
    const run = spawnSync("sh", ["-c", `exec ${words} 2>&1 < /dev/null`], {
      cwd: fixture.copy(),
      encoding: "utf8",
      timeout: 20_000,
    });
    return { output: normalise(run.stdout), exitCode: run.status, signal: run.signal };
  }

  const cases: readonly (readonly string[])[] = [
    ["-f", "raw", "-c", "length", "-c", "foo", "-c", "length", "r.raw"],
    ["-f", "raw", "-c", "help", "-c", "foo", "-c", "help", "-c", "foo", "-c", "help", "-c", "foo", "r.raw"],
    ["-f", "raw", "-c", "read -v 0 2k", "-c", "foo", "-c", "read -v 0 1k", "-c", "foo", "bytes.raw"],
    ["-f", "raw", "-c", "read 0 512", "-c", "sigraise 9", "r.raw"],
    ["-f", "raw", "-c", "read 0 512", "-c", "sigraise 15", "r.raw"],
    ["-f", "raw", "-c", "read 0 512", "-c", "sigraise 2", "r.raw"],
    ["-f", "raw", "-c", "read 0 512", "-c", "sigraise 17", "-c", "length", "r.raw"],
    ["-f", "raw", "-c", "read 0 512", "-c", "abort", "r.raw"],
    ["-f", "raw", "-c", "help", "-c", "help", "-c", "abort", "r.raw"],
  ];
  for (const args of cases)
    it(args.join(" "), () => {
      const ours = together([process.execPath, bundle, "qemu-io"], args);
      assert.deepEqual(ours, together(["qemu-io"], args));
    });
});
