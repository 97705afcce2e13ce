/** `check` beside qemu-img's: the same lines in the same order, the same figures, on images that are broken in many ways. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, before, describe, it } from "node:test";
import type { CheckResult } from "../../../src/block/driver.ts";
import { BlockError } from "../../../src/block/errors.ts";
import { openBackend } from "../../support/graph.ts";
import { random as seeded } from "../../support/random.ts";
import { tempDir } from "../../support/temp.ts";
import { missing, mustRun, run } from "../../support/tools.ts";
import { COPIED, makeImage, type Patch, patched, qemuIo, tablesOf } from "./patch.ts";

const skip = missing("qemu-img") || missing("qemu-io");
const dir = tempDir({ after });
const image = (name: string) => path.join(dir, `${name}.qcow2`);

/** What a check says: its lines, and its figures or why there are none. */
interface Verdict {
  readonly lines: readonly string[];
  readonly figures: Readonly<Record<string, number>> | string;
}

async function ours(filename: string): Promise<Verdict> {
  const lines: string[] = [];
  try {
    const backend = await openBackend(
      { driver: "qcow2", file: { driver: "file", filename } },
      {
        flags: { readOnly: true, check: true },
        environment: {
          warn: (text, hint) => lines.push(`warning: ${text}`, ...(hint === undefined ? [] : [hint])),
          message: (line) => lines.push(line),
        },
      },
    );
    try {
      const result = await backend.run((co) => {
        const { check } = backend.node.ops;
        assert.ok(check);
        return check(co, { fixLeaks: false, fixErrors: false, report: (line) => lines.push(line) });
      });
      return { lines: split(lines), figures: figuresOf(result) };
    } finally {
      await backend.close();
    }
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    return { lines: split(lines), figures: "refused" };
  }
}

function split(lines: readonly string[]): string[] {
  return lines.flatMap((line) => line.split("\n"));
}

function figuresOf(result: CheckResult): Record<string, number> {
  return {
    corruptions: result.corruptions,
    leaks: result.leaks,
    checkErrors: result.checkErrors,
    end: result.imageEndOffset,
    total: result.totalClusters ?? 0,
    allocated: result.allocatedClusters ?? 0,
    fragmented: result.fragmentedClusters ?? 0,
    compressed: result.compressedClusters ?? 0,
  };
}

function theirs(filename: string): Verdict {
  const { stdout, stderr } = run("qemu-img", ["check", "-f", "qcow2", "--output=json", filename]);
  const lines = stderr
    // qemu 7.2 ends this warning without a line feed.
    .replace(/(on the image file to fix\.)(?!\n)/, "$1\n")
    .split("\n")
    .filter((line) => line !== "" && !/^qemu-img: (Check failed|Could not open|ERROR failed)/.test(line))
    .map((line) => line.replace(/^qemu-img: warning/, "warning"));
  if (!stdout.startsWith("{")) return { lines, figures: "refused" };
  const json = JSON.parse(stdout) as Record<string, number>;
  const figures = {
    corruptions: json["corruptions"] ?? 0,
    leaks: json["leaks"] ?? 0,
    checkErrors: json["check-errors"] ?? 0,
    end: json["image-end-offset"] ?? 0,
    total: json["total-clusters"] ?? 0,
    allocated: json["allocated-clusters"] ?? 0,
    fragmented: json["fragmented-clusters"] ?? 0,
    compressed: json["compressed-clusters"] ?? 0,
  };
  return { lines, figures };
}

async function agree(filename: string): Promise<void> {
  const expected = theirs(filename);
  const actual = await ours(filename);
  if (expected.figures === "refused") assert.equal(actual.figures, "refused");
  else assert.deepEqual(actual, expected);
}

/** Agreement on `base` with patches. */
function broken(what: string, base: string, patches: () => readonly Patch[], truncate?: number): void {
  it(what, { skip }, () => agree(patched(image(base), patches(), truncate)));
}

before(() => {
  if (skip) return;
  makeImage(image("plain"), "64M", "", [
    "write -P 1 0 256k",
    "write -P 2 1M 64k",
    "write -z 2M 128k",
    "write -P 5 3M 64k",
    "write -z 3M 64k",
    "write -c -P 3 4M 64k",
    "write -c -P 4 4160k 64k",
    "write -P 5 40M 64k",
  ]);
  mustRun("qemu-img", ["snapshot", "-c", "s1", image("plain")]);
  qemuIo(image("plain"), "write -P 9 64k 64k", "write -P 9 32M 64k");
  makeImage(image("extended"), "16M", "extended_l2=on", [
    "write -P 1 0 64k",
    "write -P 2 128k 2k",
    "write -z 130k 4k",
    "write -c 256k 64k",
    "write -z 512k 64k",
  ]);
  makeImage(image("data"), "16M", `data_file=${path.join(dir, "data.raw")}`, [
    "write -P 1 0 64k",
    "write -P 2 128k 2k",
  ]);
  makeImage(image("bitmaps"), "3M", "");
  for (const name of ["a", "b"]) mustRun("qemu-img", ["bitmap", "--add", image("bitmaps"), name]);
  makeImage(image("narrow"), "16M", "refcount_bits=1", ["write 0 64k", "write 1M 64k", "write -c 2M 64k"]);
});

describe("qcow2 check: whole images", () => {
  for (const name of ["plain", "extended", "data", "bitmaps", "narrow"])
    it(name, { skip }, () => agree(image(name)));

  for (const [options, size] of [
    ["cluster_size=512", "8M"],
    ["cluster_size=512,refcount_bits=64", "8M"],
    ["cluster_size=2M,refcount_bits=2", "64M"],
    ["refcount_bits=4", "8M"],
    ["refcount_bits=8", "8M"],
    ["refcount_bits=32", "8M"],
    ["compat=v2", "8M"],
    ["compression_type=zstd,cluster_size=4k", "8M"],
    ["extended_l2=on,cluster_size=16k,preallocation=metadata", "8M"],
  ] as const)
    it(`${options}, three snapshots`, { skip }, async () => {
      const filename = image("variant");
      fs.rmSync(filename, { force: true });
      makeImage(filename, size, options, ["write 0 1M", "write 5M 100k"]);
      for (const [index, name] of ["a", "b", "c"].entries()) {
        if (!options.includes("refcount_bits=1,")) mustRun("qemu-img", ["snapshot", "-c", name, filename]);
        if (options.includes("refcount_bits=2") && index === 1) break;
        qemuIo(filename, `write -P ${index} ${index}M 300k`);
      }
      await agree(filename);
    });
});

describe("qcow2 check: refcounts", () => {
  const at = (cluster: number) => tablesOf(image("plain")).firstBlock + 2 * cluster;
  const table = () => tablesOf(image("plain")).refcountTable;
  broken("too high and too low", "plain", () => [
    [at(5), 2, 3],
    [at(6), 2, 0],
    [at(17), 2, 0],
  ]);
  broken("of a refcount block", "plain", () => [[at(2), 2, 2]]);
  broken("behind the end of the file", "plain", () => [[at(0x20), 2, 1]]);
  broken("block not aligned", "plain", () => [[table(), 8, 0x20200]]);
  broken("block behind the end", "plain", () => [[table(), 8, 0x200000]]);
  broken("reserved bits of a table entry", "plain", () => [[table(), 8, 0x20001]]);
  broken("high bits of a table entry", "plain", () => [[table(), 8, 0x20000n | (1n << 60n)]]);
  broken("no block", "plain", () => [[table(), 8, 0]]);
  for (const value of [0x200000n, 0x20200n, 0x20000n, 1n << 55n])
    broken(`second block at 0x${value.toString(16)}`, "plain", () => [[table() + 8, 8, value]]);
  broken("the same block far out", "plain", () => [[table() + 8 * 8000, 8, 0x20000]]);
  broken("table behind the end", "plain", () => [[48, 8, 0xa00000]]);
  broken("more references than its width holds", "narrow", () => {
    const { l2 } = tablesOf(image("narrow"));
    return [
      [l2 + 8, 8, COPIED | 0x50000n],
      [l2 + 16, 8, COPIED | 0x50000n],
      [l2 + 24, 8, COPIED | 0x20000n],
    ];
  });
});

describe("qcow2 check: L1 and L2", () => {
  const l1 = () => tablesOf(image("plain")).l1;
  const l2 = () => tablesOf(image("plain")).l2;
  const l1Entries: readonly (readonly [string, bigint])[] = [
    ["not copied", 0xf0000n],
    ["reserved low", COPIED | 0xf0001n],
    ["reserved high", COPIED | 0xf0000n | (1n << 57n)],
    ["not aligned", COPIED | 0xf0200n],
    ["behind the end", COPIED | 0xf00000n],
    ["partly behind the end", COPIED | 0x130000n],
    ["far behind the end", COPIED | (1n << 55n)],
    ["a table of another kind", COPIED | 0x10000n],
    ["the header", 1n],
  ];
  for (const [what, entry] of l1Entries) broken(`L1 entry: ${what}`, "plain", () => [[l1(), 8, entry]]);
  const l2Entries: readonly (readonly [string, bigint])[] = [
    ["copied though shared", COPIED | 0x50000n],
    ["not copied", 0x100000n],
    ["not aligned", COPIED | 0x100200n],
    ["not aligned, zero", COPIED | 0x100201n],
    ["reserved low", COPIED | 0x100002n],
    ["reserved high", COPIED | 0x100000n | (1n << 57n)],
    ["behind the end", COPIED | 0x200000n],
    ["in the last cluster", COPIED | 0x130000n],
    ["far behind the end", COPIED | (1n << 55n)],
    ["the same as another", COPIED | 0x110000n],
    ["no place, copied", COPIED],
    ["no place, reserved", 2n],
    ["the L1 table", COPIED | 0x30000n],
    ["zero with a place, not copied", 0x100001n],
    ["compressed, copied", COPIED | 0x40000000000b0000n],
    ["compressed, behind the end", 0x4000000000ff0000n],
    ["compressed, far behind the end", 0x40000000ffff0000n],
    ["compressed, many sectors", 0x7fc0000000000000n | 0xb0000n],
    ["compressed, where no number is exact", 0x403fffffffffffffn],
    ["compressed and copied, where no number is exact", 0xc03fffffffffffffn],
    ["compressed, at an odd place", 0x7fc0000000000000n | 0xb1234n],
  ];
  for (const [what, entry] of l2Entries) broken(`L2 entry: ${what}`, "plain", () => [[l2() + 8, 8, entry]]);
  broken("L1 entries of rubbish, twice", "plain", () => [
    [36, 4, 3],
    [l1() + 8, 8, COPIED | 0x50000n],
    [l1() + 16, 8, 0x50000n],
  ]);
  broken("three errors in their order", "plain", () => [
    [tablesOf(image("plain")).refcountTable + 8, 8, 0x20200],
    [l2() + 8, 8, COPIED | 0x100002n],
    [l1(), 8, COPIED | 0xf0001n],
  ]);
  for (const offset of [0, 0x130000, 0x1000000])
    broken(`L1 table at 0x${offset.toString(16)}`, "plain", () => [[40, 8, offset]]);
  broken("cut off", "plain", () => [], 0xa0000);

  const extended = () => tablesOf(image("extended")).l2;
  const entries: readonly (readonly [string, () => readonly Patch[]])[] = [
    ["allocated and zero", () => [[extended() + 8, 8, 1n | (1n << 32n)]]],
    ["bits with no cluster", () => [[extended() + 24, 8, 1]]],
    ["bits in an entry of nothing", () => [[extended() + 1600 + 8, 8, 1]]],
    ["zero bits with no cluster", () => [[extended() + 24, 8, 1n << 32n]]],
    ["bit 0", () => [[extended(), 8, COPIED | 0x50001n]]],
    ["compressed with bits", () => [[extended() + 72, 8, 1]]],
    ["compressed with zero bits", () => [[extended() + 72, 8, 1n << 32n]]],
    ["not aligned", () => [[extended(), 8, COPIED | 0x50200n]]],
    [
      "not aligned, none allocated",
      () => [
        [extended(), 8, COPIED | 0x50200n],
        [extended() + 8, 8, 0],
      ],
    ],
  ];
  for (const [what, patches] of entries) broken(`extended L2 entry: ${what}`, "extended", patches);

  const data = () => tablesOf(image("data")).l2;
  for (const [what, entry] of [
    ["not copied at 0", 0n],
    ["not copied", 0x10000n],
    ["compressed", (1n << 62n) | 0x10000n],
    ["not aligned", COPIED | 0x10200n],
    ["behind the end", COPIED | 0x10000000n],
    ["at 0, zero", COPIED | 1n],
    ["reserved", COPIED | 0x10002n],
  ] as const)
    broken(`data file, entry: ${what}`, "data", () => [[data() + 16, 8, entry]]);
});

describe("qcow2 check: snapshots and bitmaps", () => {
  const entry = () => tablesOf(image("plain")).snapshots;
  broken("snapshot's L1 not aligned", "plain", () => [[entry(), 8, 0xd0200]]);
  broken("snapshot's L1 behind the end", "plain", () => [[entry(), 8, 0xd00000]]);
  broken("snapshot's L1 at 0", "plain", () => [[entry(), 8, 0]]);
  broken("snapshot's L1 too large", "plain", () => [[entry() + 8, 4, 2 ** 30]]);
  for (const bytes of [0, 8])
    broken(`${bytes} bytes of extra data`, "plain", () => [[entry() + 36, 4, bytes]]);
  broken("snapshot table behind the end", "plain", () => [[64, 8, 0x700000]]);

  const directory = () =>
    Number(
      fs.readFileSync(image("bitmaps")).readBigUInt64BE(tablesOf(image("bitmaps")).bitmapsExtension + 16),
    );
  const bitmapTable = () => Number(fs.readFileSync(image("bitmaps")).readBigUInt64BE(directory()));
  const inUse = (): Patch => [directory() + 12, 4, 3];
  broken("bitmap table behind the end", "bitmaps", () => [[directory(), 8, 0x200000]]);
  broken("bitmap data that is nowhere counted", "bitmaps", () => [inUse(), [bitmapTable(), 8, 0x90000]]);
  broken("bitmap data behind the end", "bitmaps", () => [inUse(), [bitmapTable(), 8, 0x900000]]);
  for (const value of [2n, 0x90200n, 0x90001n, 1n << 60n])
    broken(`bitmap table entry 0x${value.toString(16)}`, "bitmaps", () => [
      inUse(),
      [bitmapTable(), 8, value],
    ]);
  broken("all ones without data", "bitmaps", () => [[bitmapTable(), 8, 1]]);
  broken("bitmaps out of step", "bitmaps", () => [[88, 8, 0]]);
});

describe("qcow2 check: at random", () => {
  it("entries and refcounts changed anywhere, 60 images", { skip }, async () => {
    const random = seeded(20251122);
    const pick = <T>(choices: readonly T[]) => random.pick(choices);
    for (let round = 0; round < 60; round++) {
      const base = pick(["plain", "extended", "data", "narrow"]);
      const { l1, l2, refcountTable, firstBlock } = tablesOf(image(base));
      const patches: Patch[] = [];
      for (let count = random.below(5) + 1; count > 0; count--) {
        const offset = BigInt(random.below(0x28)) * 0x8000n;
        const value = pick([
          offset,
          COPIED | offset,
          COPIED | offset | 1n,
          (1n << 62n) | offset,
          offset | 0x100n,
        ]);
        const place = pick([
          l2 + 8 * random.below(40),
          l2 + 8 * random.below(8192),
          l1,
          refcountTable + 8,
          firstBlock,
        ]);
        if (place === firstBlock) patches.push([firstBlock + random.below(48), 1, random.below(256)]);
        else patches.push([place, 8, value]);
      }
      const filename = patched(image(base), patches);
      await assert.doesNotReject(
        agree(filename),
        `round ${round}: ${base} ${patches.map(String).join("; ")}`,
      );
    }
  });

  it("an L2 table full of errors that all of a large L1 table names is not told of without end", {
    skip,
  }, async () => {
    const entries = 50_000;
    const { l2 } = tablesOf(image("plain"));
    const bad = Array.from({ length: 500 }, (_, index): Patch => [l2 + 8 * (2000 + index), 8, COPIED | 2n]);
    const filename = patched(image("plain"), [[36, 4, entries], [40, 8, 0x1000000], ...bad]);
    const l1 = Buffer.alloc(8 * entries);
    for (let at = 0; at < l1.length; at += 8) l1.writeBigUInt64BE(BigInt(l2), at);
    const fd = fs.openSync(filename, "r+");
    fs.writeSync(fd, l1, 0, l1.length, 0x1000000);
    fs.closeSync(fd);
    const { lines, figures } = await ours(filename);
    assert.ok(lines.length < 2 * entries, `${lines.length} lines`);
    // All are counted.
    assert.ok(((figures as Record<string, number>)["corruptions"] as number) >= 500 * entries);
  });

  it("a sparse file of 4 TiB whose tables point everywhere takes little memory", { skip }, async () => {
    const { l2 } = tablesOf(image("plain"));
    const patches = Array.from({ length: 100 }, (_, index): Patch => {
      const offset = BigInt(index) * (1n << 35n) + 0x200000n;
      return [l2 + 8 * (1000 + index), 8, COPIED | offset];
    });
    const filename = patched(image("plain"), patches);
    fs.truncateSync(filename, 2 ** 42);
    const before = process.memoryUsage().arrayBuffers;
    await agree(filename);
    assert.ok(process.memoryUsage().arrayBuffers - before < 100 * 2 ** 20);
  });
});
