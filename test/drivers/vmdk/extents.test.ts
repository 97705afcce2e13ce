/** Extents of all kinds, also those that only VMware's products write: what they show, and what can be written to them. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { describe, it } from "node:test";
import { SparseHeader } from "../../../drivers/vmdk/layout.ts";
import type { BlockBackend } from "../../../src/block/backend.ts";
import type { OpenFlags } from "../../../src/block/open-flags.ts";
import { openBackend } from "../../support/graph.ts";
import { random } from "../../support/random.ts";
import { type Cleanup, tempDir } from "../../support/temp.ts";
import { missing, mustRun, run } from "../../support/tools.ts";
import { cowd, descriptor, type SeGrain, seSparse, streamOptimized } from "./handmade.ts";

const KiB = 1024;
const MiB = 1024 * KiB;

/** Pieces of 4 KiB, each of its own bytes. */
function pattern(bytes: number): Buffer {
  const content = Buffer.alloc(bytes);
  for (let at = 0; at < bytes; at += 4096)
    content.fill(1 + ((at / 4096) % 255), at, Math.min(at + 4096, bytes));
  return content;
}

/** The content with zeroes where grains are left out. */
function visible(content: Uint8Array, grainBytes: number, isPresent: (grain: number) => boolean): Buffer {
  const seen = Buffer.from(content);
  for (let at = 0; at < content.length; at += grainBytes)
    if (!isPresent(at / grainBytes)) seen.fill(0, at, Math.min(at + grainBytes, seen.length));
  return seen;
}

function open(filename: string, flags: Partial<OpenFlags> = { readOnly: true }): Promise<BlockBackend> {
  return openBackend({ driver: "vmdk", file: { driver: "file", filename } }, { flags });
}

async function expectContent(filename: string, wanted: Uint8Array): Promise<void> {
  await using image = await open(filename);
  const seen = await image.read(0, await image.getLength());
  assert.equal(seen.length, wanted.length);
  assert.equal(
    Buffer.compare(seen, wanted),
    0,
    `first at ${seen.findIndex((byte, at) => byte !== wanted[at])}`,
  );
}

/** What qemu-img reads; undefined: it is not here. */
function theirContent(dir: string, filename: string): Buffer | undefined {
  if (missing("qemu-img")) return undefined;
  const converted = path.join(dir, "converted");
  mustRun("qemu-img", ["convert", "-f", "vmdk", "-O", "raw", filename, converted]);
  return fs.readFileSync(converted);
}

async function expectSame(dir: string, filename: string, wanted: Uint8Array): Promise<void> {
  await expectContent(filename, wanted);
  const theirs = theirContent(dir, filename);
  if (theirs) assert.equal(Buffer.compare(theirs, wanted), 0, "qemu-img reads something else");
}

/** Files by their names, in a directory of their own. */
function files(test: Cleanup, contents: Readonly<Record<string, Uint8Array | string>>): string {
  const dir = tempDir(test);
  for (const [name, content] of Object.entries(contents)) fs.writeFileSync(path.join(dir, name), content);
  return dir;
}

const isOdd = (grain: number) => grain % 2 === 1;

describe("vmdk extents", () => {
  it("a stream with its header at the end, and tables only where there is something", async (test) => {
    const content = pattern(70 * MiB);
    // The table in the middle has nothing.
    const isPresent = (grain: number) => isOdd(grain) && (grain < 512 || grain >= 1024);
    const dir = files(test, { "stream.vmdk": streamOptimized(content, isPresent) });
    await expectSame(dir, path.join(dir, "stream.vmdk"), visible(content, 64 * KiB, isPresent));
  });

  it("compressed grains without markers", async (test) => {
    const content = pattern(3 * MiB);
    const dir = files(test, { "stream.vmdk": streamOptimized(content, isOdd, false) });
    const filename = path.join(dir, "stream.vmdk");
    await expectSame(dir, filename, visible(content, 64 * KiB, isOdd));
    await using image = await open(filename, {});
    assert.deepEqual(
      Buffer.from(await image.read(64 * KiB + 5000, 3000)),
      content.subarray(64 * KiB + 5000, 64 * KiB + 8000),
    );
    // QEMU does not write such grains either.
    await assert.rejects(image.write(0, new Uint8Array(64 * KiB)), { errno: "EINVAL" });
  });

  it("a stream can be written, also where it has no table yet", async (test) => {
    const content = pattern(70 * MiB);
    const dir = files(test, { "stream.vmdk": streamOptimized(content, (grain) => grain === 3) });
    const filename = path.join(dir, "stream.vmdk");
    const wanted = visible(content, 64 * KiB, (grain) => grain === 3);
    {
      await using image = await open(filename, {});
      for (const [fill, offset] of [
        [9, 40 * MiB],
        [8, 128 * KiB],
      ] as const) {
        const grain = new Uint8Array(64 * KiB).fill(fill);
        await image.write(offset, grain);
        wanted.set(grain, offset);
      }
    }
    // Its header is no longer at its end: it must be found all the same.
    await expectSame(dir, filename, wanted);
  });

  it("a descriptor that is shorter than usual does not reach into what follows it", {
    skip: missing("qemu-img"),
  }, async (test) => {
    const dir = tempDir(test);
    const filename = path.join(dir, "a.vmdk");
    mustRun("qemu-img", ["create", "-q", "-f", "vmdk", filename, "1M"]);
    const image = fs.readFileSync(filename);
    image.writeBigUInt64LE(2n, SparseHeader.offsetOf.descriptorSize);
    image.fill(0xaa, 3 * 512, 21 * 512);
    fs.writeFileSync(filename, image);
    {
      await using opened = await open(filename, {});
      await opened.write(0, new Uint8Array(512).fill(1));
    }
    const after = fs.readFileSync(filename);
    assert.deepEqual(after.subarray(3 * 512, 21 * 512), image.subarray(3 * 512, 21 * 512));
    assert.notDeepEqual(after.subarray(512, 1024), image.subarray(512, 1024));
  });

  for (const grainSectors of [1, 128])
    it(`COWD with grains of ${grainSectors} sectors, read and written`, async (test) => {
      const content = pattern(6 * MiB + 512);
      const isPresent = (grain: number) => isOdd(grain) && grain * grainSectors < 4096;
      const dir = files(test, {
        "disk.vmdk": descriptor("vmfsSparse", [`RW ${content.length / 512} VMFSSPARSE "disk-delta.vmdk"`]),
        "disk-delta.vmdk": cowd(content, isPresent, grainSectors),
      });
      const filename = path.join(dir, "disk.vmdk");
      const wanted = visible(content, grainSectors * 512, isPresent);
      await expectSame(dir, filename, wanted);
      const dice = random(1);
      {
        await using image = await open(filename, {});
        for (let n = 0; n < 40; n++) {
          const bytes = 512 * (1 + dice.below(600));
          const offset = 512 * dice.below((wanted.length - bytes) / 512);
          const data = Buffer.alloc(bytes, n + 1);
          await image.write(offset, data);
          wanted.set(data, offset);
        }
      }
      await expectSame(dir, filename, wanted);
    });

  it("seSparse with grains of all kinds", async (test) => {
    const content = pattern(20 * MiB);
    const kinds: readonly SeGrain[] = ["none", "unmapped", "zero", "data", "data"];
    const kindOf = (grain: number) => kinds[grain % kinds.length] as SeGrain;
    const dir = files(test, {
      "disk.vmdk": descriptor("seSparse", [`RW ${content.length / 512} SESPARSE "disk-sesparse.vmdk"`]),
      "disk-sesparse.vmdk": seSparse(content, kindOf),
    });
    const filename = path.join(dir, "disk.vmdk");
    await expectSame(
      dir,
      filename,
      visible(content, 4096, (grain) => kindOf(grain) === "data"),
    );
    await assert.rejects(open(filename, {}), {
      errno: "EACCES",
      message: "No write support for seSparse images available",
    });
    await using image = await open(filename, { readOnly: false, autoReadOnly: true });
    assert.ok(image.node.readOnly);
    await assert.rejects(image.reopen({ readOnly: false }), { errno: "EACCES" });
  });

  it("seSparse that is not as it must be is refused in qemu's words", async (test) => {
    const content = pattern(MiB);
    const refused: readonly (readonly [
      string,
      Parameters<typeof seSparse>[2],
      Parameters<typeof seSparse>[3]?,
    ])[] = [
      ["Bad const header magic: 0x00000000cafebabf", (header) => (header.magic = 0xcafebabfn)],
      ["Unsupported version: 0x0000000200000002", (header) => (header.version = 0x200000002n)],
      ["Unsupported grain size: 16", (header) => (header.grainSize = 16n)],
      ["Unsupported grain table size: 65", (header) => (header.tableSize = 65n)],
      ["Unsupported flags: 0x0000000000000001", (header) => (header.flags = 1n)],
      [
        "Unsupported reserved bits: 0x0000000000000000 0x0000000000000000 0x0000000000000000 0xffffffffffffffff",
        (header) => (header.reserved4 = 2n ** 64n - 1n),
      ],
      [
        "Unsupported non-zero const header padding",
        (header) => (header.padding = new Uint8Array(304).fill(1)),
      ],
      ["Bad volatile header magic: 0x0000000000000000", (header) => (header.volatileHeaderOffset = 4)],
      ["Image is dirty, Replaying journal not supported", () => {}, (header) => (header.replayJournal = 1n)],
      [
        "Unsupported non-zero volatile header padding",
        () => {},
        (header) => (header.padding = new Uint8Array(480).fill(1)),
      ],
      ["L1 size too big", (header) => (header.directorySize = 2 ** 40)],
    ];
    const dir = files(test, {
      "disk.vmdk": descriptor("seSparse", [`RW ${content.length / 512} SESPARSE "disk-sesparse.vmdk"`]),
    });
    const filename = path.join(dir, "disk.vmdk");
    for (const [message, change, changeVolatile] of refused) {
      fs.writeFileSync(
        path.join(dir, "disk-sesparse.vmdk"),
        seSparse(content, () => "data", change, changeVolatile),
      );
      await assert.rejects(open(filename), { message });
      if (missing("qemu-img") || message === "L1 size too big") continue;
      const { stderr } = run("qemu-img", ["info", filename]);
      assert.equal(stderr, `qemu-img: Could not open '${filename}': ${message}\n`);
    }
  });

  it("read-only, zero and inaccessible extents", async (test) => {
    const content = pattern(MiB);
    const dir = files(test, {
      "disk.vmdk": descriptor("twoGbMaxExtentFlat", [
        'RW 1024 FLAT "flat" 0',
        "RW 512 ZERO",
        'RDONLY 512 FLAT "flat2" 1024',
        'NOACCESS 512 FLAT "flat3" 1536',
        'RW 8 FLAT "flat4" 8',
      ]),
      flat: content,
      flat2: content,
      flat3: content,
      flat4: content,
    });
    const filename = path.join(dir, "disk.vmdk");
    await using image = await open(filename, {});
    assert.equal(await image.getLength(), 2568 * 512);
    const seen = await image.read(0, 2048 * 512);
    const wanted = Buffer.concat([
      content.subarray(0, 512 * KiB),
      Buffer.alloc(256 * KiB),
      content.subarray(512 * KiB, 768 * KiB),
    ]);
    assert.equal(Buffer.compare(seen, wanted), 0);
    await assert.rejects(image.read(2048 * 512, 512), { errno: "EACCES" });
    assert.deepEqual(Buffer.from(await image.read(2560 * 512, 512)), content.subarray(4096, 4608));
    for (const sector of [1024, 1535, 1536, 2048])
      await assert.rejects(image.write(sector * 512, new Uint8Array(512)), { errno: "EACCES" });
    // The part that can be written is; the one behind it is refused.
    await assert.rejects(image.write(1023 * 512, new Uint8Array(1024).fill(7)), { errno: "EACCES" });
    const { zero, data, bytes } = await image.blockStatus(1024 * 512, MiB);
    assert.deepEqual({ zero, data, bytes }, { zero: true, data: false, bytes: 256 * KiB });
  });

  it("extents are found beside the descriptor, and followed only through the gate", async (test) => {
    const dir = files(test, {
      "disk.vmdk": descriptor("monolithicFlat", ['RW 8 FLAT "a:b" 0', 'RW 8 FLAT "/etc/hostname" 0']),
      "a:b": pattern(4096),
    });
    const filename = path.join(dir, "disk.vmdk");
    const asked: string[] = [];
    const gate = async ({ kind, filename: name }: { kind: string; filename: string }) => {
      asked.push(`${kind} ${name}`);
      if (asked.length > 1) throw new Error("no further");
    };
    const what = { driver: "vmdk", file: { driver: "file", filename } };
    await assert.rejects(
      openBackend(what, { environment: { gate }, flags: { readOnly: true } }),
      /no further/,
    );
    assert.deepEqual(asked, [`extent ${dir}/./a:b`, "extent /etc/hostname"]);
  });
});
