/** What an image says of itself beside qemu-img: the format's own part of info, snapshots, the name of the backing file. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, before, describe, it } from "node:test";
import type { BlockBackend } from "../../../src/block/backend.ts";
import type { SnapshotInfo } from "../../../src/block/driver.ts";
import { openBackend } from "../../support/graph.ts";
import { tempDir } from "../../support/temp.ts";
import { missing, mustRun, run } from "../../support/tools.ts";
import { makeImage, type Patch, patched, qemuIo, tablesOf } from "./patch.ts";

const skip = missing("qemu-img") || missing("qemu-io");
const dir = tempDir({ after });
const image = (name: string) => path.join(dir, `${name}.qcow2`);

async function withImage<T>(
  filename: string,
  readOnly: boolean,
  fn: (backend: BlockBackend) => Promise<T>,
): Promise<T> {
  const options = { driver: "qcow2", file: { driver: "file", filename }, backing: null };
  const backend = await openBackend(options, { flags: { readOnly } });
  try {
    return await fn(backend);
  } finally {
    await backend.close();
  }
}

function theirs(filename: string): Record<string, unknown> {
  return JSON.parse(mustRun("qemu-img", ["info", "-f", "qcow2", "--output=json", filename]));
}

describe("qcow2 specific information", () => {
  for (const options of [
    "",
    "compat=v2",
    "lazy_refcounts=on,refcount_bits=32",
    "extended_l2=on,compression_type=zstd",
    `data_file=${path.join(dir, "info.raw")},data_file_raw=on`,
    `data_file=${path.join(dir, "info.raw")}`,
  ])
    it(options.replace(dir, ""), { skip }, async () => {
      makeImage(image("info"), "3M", options);
      const info = await withImage(image("info"), true, (backend) =>
        backend.run(async (co) => backend.node.ops.getSpecificInfo?.(co)),
      );
      assert.deepEqual(info, theirs(image("info"))["format-specific"]);
      assert.deepEqual(
        Object.keys(info?.data ?? {}),
        Object.keys((theirs(image("info"))["format-specific"] as { data: object }).data),
      );
    });

  it("bitmaps", { skip }, async () => {
    makeImage(image("info"), "3M", "");
    mustRun("qemu-img", ["bitmap", "--add", image("info"), "one"]);
    mustRun("qemu-img", ["bitmap", "--add", "--disable", "-g", "128k", image("info"), "another"]);
    const info = () =>
      withImage(image("info"), true, (backend) =>
        backend.run(async (co) => backend.node.ops.getSpecificInfo?.(co)),
      );
    assert.deepEqual(await info(), theirs(image("info"))["format-specific"]);
    const extension = tablesOf(image("info")).bitmapsExtension;
    const directory = Number(fs.readFileSync(image("info")).readBigUInt64BE(extension + 16));
    fs.copyFileSync(patched(image("info"), [[directory + 12, 4, 3]]), image("info"));
    assert.deepEqual(await info(), theirs(image("info"))["format-specific"]);
  });
});

describe("qcow2 snapshots", () => {
  before(() => {
    if (skip) return;
    makeImage(image("base"), "3M", "", ["write -P 7 0 1M"]);
    mustRun("qemu-img", ["snapshot", "-c", "one", image("base")]);
    qemuIo(image("base"), "write -P 9 512k 1M", "write -z 0 64k");
    mustRun("qemu-img", ["snapshot", "-c", "two", image("base")]);
    qemuIo(image("base"), "write -c -P 3 2M 64k");
  });
  const table = () => tablesOf(image("base")).snapshots;

  function inTheirForm({ id, name, vmStateSize, dateSec, dateNsec, vmClockNsec, icount }: SnapshotInfo) {
    return {
      ...(icount !== undefined && { icount: Number(icount) }),
      "vm-clock-nsec": Number(vmClockNsec % 1000000000n),
      name,
      "date-sec": dateSec,
      "date-nsec": dateNsec,
      "vm-clock-sec": Number(vmClockNsec / 1000000000n),
      id,
      "vm-state-size": vmStateSize,
    };
  }

  /** The list, or why there is none. */
  async function listed(filename: string): Promise<unknown> {
    try {
      return await withImage(filename, true, (backend) =>
        backend.run(async (co) => (await backend.node.ops.listSnapshots?.(co))?.map(inTheirForm)),
      );
    } catch (error) {
      return (error as Error).message;
    }
  }

  function theirList(filename: string): unknown {
    const { code, stdout, stderr } = run("qemu-img", ["info", "-f", "qcow2", "--output=json", filename]);
    if (code === 0) return JSON.parse(stdout).snapshots;
    return stderr.split("\n")[0]?.replace(/^qemu-img: Could not open '[^']*': /, "");
  }

  const cases: (readonly [string, () => readonly Patch[]])[] = [
    ["as they are", () => []],
    ["version 2", () => [[4, 4, 2]]],
    [
      "with a clock and a large state",
      () => [
        [table() + 24, 8, 12345678901234n],
        [table() + 40, 8, 2n ** 40n],
      ],
    ],
    ["no instruction count", () => [[table() + 56, 8, 2n ** 64n - 1n]]],
    ["a zero in the name", () => [[table() + 66, "\0"]]],
    ["no name", () => [[table() + 14, 2, 0]]],
    ["a name that runs on", () => [[table() + 14, 2, 65535]]],
    ["three", () => [[60, 4, 3]]],
    ["behind the end of the file", () => [[64, 8, 0x1000000]]],
  ];
  for (const bytes of [0, 8, 16, 1024, 1025, 2 ** 32 - 1])
    cases.push([`${bytes} bytes of extra data`, () => [[table() + 36, 4, bytes]]]);
  for (const [what, patches] of cases)
    it(`listed: ${what}`, { skip }, async () => {
      const filename = patched(image("base"), patches());
      assert.deepEqual(await listed(filename), theirList(filename));
    });

  it("a table that is too large is refused, with what qemu-img says", { skip }, async () => {
    const entry = Buffer.alloc(40 + 24 + 65535 * 2 + 2);
    entry.writeUInt16BE(65535, 12);
    entry.writeUInt16BE(65535, 14);
    entry.writeUInt32BE(24, 36);
    const filename = patched(image("base"), [
      [60, 4, 520],
      [64, 8, 0x1000000],
    ]);
    const fd = fs.openSync(filename, "r+");
    for (let index = 0; index < 520; index++)
      fs.writeSync(fd, entry, 0, 40, 0x1000000 + index * (entry.length + (-entry.length & 7)));
    fs.closeSync(fd);
    assert.equal(await listed(filename), theirList(filename));
    assert.equal(theirList(filename), "Snapshot table is too big");
  });

  /** All of the guest's content with the snapshot loaded, or why not. */
  async function loaded(
    filename: string,
    wanted: { id?: string; name?: string },
  ): Promise<Uint8Array | string> {
    try {
      return await withImage(filename, true, async (backend) => {
        await backend.run(async (co) => backend.node.ops.loadSnapshot?.(co, wanted));
        return backend.read(0, await backend.getLength());
      });
    } catch (error) {
      return (error as Error).message;
    }
  }

  function theirContent(filename: string, name: string): Uint8Array | string {
    const raw = path.join(dir, "snapshot.raw");
    const { code, stderr } = run("qemu-img", [
      "convert",
      "-f",
      "qcow2",
      "-O",
      "raw",
      "-l",
      name,
      filename,
      raw,
    ]);
    return code === 0
      ? fs.readFileSync(raw)
      : stderr.trim().replace("qemu-img: Failed to load snapshot: ", "");
  }

  function same(actual: Uint8Array | string, expected: Uint8Array | string): void {
    if (typeof actual === "string" || typeof expected === "string") assert.equal(actual, expected);
    else assert.ok(Buffer.from(actual).equals(expected));
  }

  for (const wanted of [{ name: "one" }, { name: "two" }, { id: "1" }, { id: "2", name: "two" }])
    it(`loaded: ${JSON.stringify(wanted)}`, { skip }, async () => {
      same(await loaded(image("base"), wanted), theirContent(image("base"), wanted.name ?? "one"));
    });
  for (const wanted of [{ name: "three" }, { id: "one" }, { id: "1", name: "two" }])
    it(`not there: ${JSON.stringify(wanted)}`, { skip }, async () => {
      assert.equal(await loaded(image("base"), wanted), "Can't find snapshot");
    });

  const broken: readonly (readonly [string, () => readonly Patch[]])[] = [
    ["L1 far too large", () => [[table() + 8, 4, 2 ** 31]]],
    ["L1 too large by one", () => [[table() + 8, 4, 4 * 2 ** 20 + 1]]],
    ["no L1 entries", () => [[table() + 8, 4, 0]]],
    ["L1 not aligned", () => [[table(), 8, 1]]],
    ["L1 at 2^63", () => [[table(), 8, 1n << 63n]]],
    ["L1 behind the end of the file", () => [[table(), 8, 1n << 40n]]],
    ["another disk size", () => [[table() + 48, 8, 1n << 30n]]],
  ];
  for (const [what, patches] of broken)
    it(`loaded: ${what}`, { skip }, async () => {
      const filename = patched(image("base"), patches());
      same(await loaded(filename, { name: "one" }), theirContent(filename, "one"));
    });

  it("not while the image may be written", { skip }, async () => {
    await withImage(image("base"), false, async (backend) => {
      await assert.rejects(
        backend.run(async (co) => backend.node.ops.loadSnapshot?.(co, { name: "one" })),
        { errno: "EINVAL" },
      );
    });
  });
});

describe("qcow2: the name of the backing file", () => {
  before(() => {
    if (skip) return;
    fs.writeFileSync(path.join(dir, "backing.raw"), "");
  });
  const change = (filename: string, name: string | undefined, format: string | undefined) =>
    withImage(filename, false, (backend) =>
      backend.run(async (co) => backend.node.ops.changeBackingFile?.(co, name, format)),
    );

  for (const options of ["", "compat=v2", "cluster_size=512", "extended_l2=on,lazy_refcounts=on"])
    it(`changed and taken away, as by rebase -u: ${options}`, { skip }, async () => {
      const ours = image("ours");
      const their = image("their");
      for (const filename of [ours, their]) makeImage(filename, "1M", options);
      const backing = path.join(dir, "backing.raw");
      const steps: readonly (readonly [string | undefined, string | undefined])[] = [
        [backing, "raw"],
        ["backing.raw", "raw"],
        [undefined, undefined],
      ];
      for (const [name, format] of steps) {
        await change(ours, name, format);
        const args = name === undefined ? ["-b", ""] : ["-F", format as string, "-b", name];
        mustRun("qemu-img", ["rebase", "-u", "-f", "qcow2", ...args, their]);
        assert.ok(fs.readFileSync(ours).equals(fs.readFileSync(their)));
      }
    });

  it("one that has no room leaves the image as it is", { skip }, async () => {
    makeImage(image("ours"), "1M", "cluster_size=512");
    const before = fs.readFileSync(image("ours"));
    await assert.rejects(change(image("ours"), "x".repeat(500), "raw"), { errno: "ENOSPC" });
    await assert.rejects(change(image("ours"), "x".repeat(1024), "raw"), { errno: "EINVAL" });
    assert.ok(fs.readFileSync(image("ours")).equals(before));
  });
});
