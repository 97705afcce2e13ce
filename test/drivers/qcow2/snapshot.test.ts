/** Internal snapshots as the library takes them: with VM state, beside requests under way, up to their limits. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import type { BlockBackend } from "../../../src/block/backend.ts";
import { loadSnapshot } from "../../../src/block/snapshot.ts";
import { openBackend } from "../../support/graph.ts";
import { tempDir } from "../../support/temp.ts";
import { missing, mustRun, run } from "../../support/tools.ts";
import { makeImage, patched, qemuIo, tablesOf } from "./patch.ts";

const skip = missing("qemu-img");
const dir = tempDir({ after });
const image = (name: string) => path.join(dir, `${name}.qcow2`);

const open = (filename: string, readOnly = false) =>
  openBackend({ driver: "qcow2", file: { driver: "file", filename } }, { flags: { readOnly } });

function clean(filename: string): void {
  const { code, stdout, stderr } = run("qemu-img", ["check", "-f", "qcow2", filename]);
  assert.equal(code, 0, stdout + stderr);
}

function listedByQemu(filename: string): readonly Record<string, unknown>[] {
  return JSON.parse(mustRun("qemu-img", ["info", "--output=json", filename])).snapshots ?? [];
}

async function contentOf(filename: string, name: string): Promise<Uint8Array> {
  await using shown = await open(filename, true);
  await shown.run((co, { node }) => loadSnapshot(co, node, { name }));
  return shown.read(0, await shown.getLength());
}

async function stateOf(from: BlockBackend, bytes: number): Promise<Uint8Array> {
  const state = new Uint8Array(bytes);
  await from.snapshots.loadVmState(0, state);
  return state;
}

describe("qcow2 snapshots with VM state", { skip }, () => {
  for (const options of ["cluster_size=4k", "compat=0.10", "extended_l2=on,cluster_size=16k"])
    it(`come back with it: ${options}`, async () => {
      const filename = image("state");
      makeImage(filename, "3M", options, ["write -P 1 0 1M"]);
      const first = new Uint8Array(300_000).fill(7);
      const second = new Uint8Array(70_000).fill(8);
      const date = new Date(1_700_000_000_123);
      {
        await using disk = await open(filename);
        await disk.snapshots.saveVmState(0, first);
        await disk.snapshots.create("first", {
          vmStateSize: first.length,
          vmClockNsec: 12_345_678_901n,
          icount: 42n,
          date,
        });
        // It is the snapshot's alone then.
        assert.deepEqual(await stateOf(disk, 512), new Uint8Array(512));
        await disk.write(0, new Uint8Array(4096).fill(2));
        await disk.snapshots.saveVmState(0, second);
        await disk.snapshots.create("second", { vmStateSize: second.length, date });
        for (const [name, state] of [
          ["first", first],
          ["second", second],
        ] as const) {
          await disk.snapshots.apply(name);
          assert.deepEqual(await stateOf(disk, state.length), state);
        }
      }
      clean(filename);
      assert.deepEqual(listedByQemu(filename), [
        {
          icount: 42,
          "vm-clock-nsec": 345_678_901,
          name: "first",
          "date-sec": 1_700_000_000,
          "date-nsec": 123_000_000,
          "vm-clock-sec": 12,
          id: "1",
          "vm-state-size": first.length,
        },
        {
          "vm-clock-nsec": 0,
          name: "second",
          "date-sec": 1_700_000_000,
          "date-nsec": 123_000_000,
          "vm-clock-sec": 0,
          id: "2",
          "vm-state-size": second.length,
        },
      ]);
      mustRun("qemu-img", ["snapshot", "-a", "first", filename]);
      qemuIo(filename, "read -b -P 7 0 299520");
    });

  it("is not saved where nothing may be written, nor where there is no place for it", async () => {
    makeImage(image("state"), "1M", "");
    {
      await using disk = await open(image("state"), true);
      await assert.rejects(disk.snapshots.saveVmState(0, new Uint8Array(512)), { errno: "EPERM" });
    }
    await using raw = await openBackend({ driver: "file", filename: image("state") });
    await assert.rejects(raw.snapshots.saveVmState(0, new Uint8Array(512)), { errno: "ENOTSUP" });
    await assert.rejects(raw.snapshots.loadVmState(0, new Uint8Array(512)), { errno: "ENOTSUP" });
  });
});

describe("qcow2 snapshots", { skip }, () => {
  it("taken while requests are under way hold each of them wholly or not at all", async () => {
    const filename = image("busy");
    const unit = 48 * 1024;
    makeImage(filename, String(unit * 24), "cluster_size=4k", [`write -P 1 0 ${unit * 12}`]);
    {
      await using disk = await open(filename);
      const fill = (index: number, value: number) =>
        disk.write(index * unit, new Uint8Array(unit).fill(value));
      const requests = Array.from({ length: 24 }, (_, index) => fill(index, 2));
      const taken = disk.snapshots.create("between");
      requests.push(...Array.from({ length: 24 }, (_, index) => fill(index, 3)));
      await Promise.all([...requests, taken]);
      await disk.snapshots.create("after");
      await disk.write(0, new Uint8Array(unit * 24).fill(4));
    }
    clean(filename);
    const between = await contentOf(filename, "between");
    for (let index = 0; index < 24; index++) {
      const values = new Set(between.subarray(index * unit, (index + 1) * unit));
      assert.equal(values.size, 1, `piece ${index} holds ${[...values].join(", ")}`);
    }
    assert.ok((await contentOf(filename, "after")).every((byte) => byte === 3));
  });

  it("of another size are applied through a raw node, which has that size then", async () => {
    const filename = image("sizes");
    makeImage(filename, "2M", "", ["write -P 1 1M 1M"]);
    await using disk = await openBackend({
      driver: "raw",
      file: { driver: "qcow2", file: { driver: "file", filename } },
    });
    await disk.snapshots.create("large");
    await disk.truncate(2 ** 20);
    await disk.snapshots.apply("large");
    assert.equal(await disk.getLength(), 2 ** 21);
    assert.equal((await disk.read(2 ** 21 - 1, 1))[0], 1);
  });

  it("have a reference less, and no cluster more, where one can't be taken", async () => {
    const filename = image("full");
    makeImage(filename, "1M", "refcount_bits=2,cluster_size=4k", ["write -P 1 0 400k"]);
    for (const name of ["one", "two"]) mustRun("qemu-img", ["snapshot", "-c", name, filename]);
    // These have one reference; the others can have no more.
    qemuIo(filename, "write -P 2 0 200k");
    await using disk = await open(filename);
    await assert.rejects(disk.snapshots.create("three"), { errno: "EINVAL" });
    await assert.rejects(disk.snapshots.apply("one"), { errno: "EINVAL" });
    await disk.flush();
    const { stdout, stderr } = run("qemu-img", ["check", "-U", "--output=json", filename]);
    const { leaks, corruptions } = JSON.parse(stdout);
    // The copy of the L1 table, as with qemu-img.
    assert.deepEqual({ leaks, corruptions }, { leaks: 1, corruptions: undefined }, stderr);
  });

  it("are 65536 at most", async () => {
    const filename = image("many");
    makeImage(filename, "1M", "");
    mustRun("qemu-img", ["snapshot", "-c", "x", filename]);
    const entry = Buffer.alloc(72);
    fs.readFileSync(filename).copy(entry, 0, tablesOf(filename).snapshots);
    const at = 2 ** 20;
    const full = patched(filename, [
      [60, 4, 65536],
      [64, 8, at],
    ]);
    const file = fs.openSync(full, "r+");
    fs.writeSync(file, Buffer.concat(Array.from({ length: 65536 }, () => entry)), 0, null, at);
    fs.closeSync(file);
    await using disk = await open(full);
    await assert.rejects(disk.snapshots.create("one more"), { errno: "EFBIG" });
    assert.equal((await disk.snapshots.list()).length, 65536);
  });

  it("have a table of 64 MiB at most", async () => {
    const filename = image("wide");
    makeImage(filename, "1M", "");
    mustRun("qemu-img", ["snapshot", "-c", "x", filename]);
    const entry = Buffer.alloc(40 + 24 + 65535 * 2 + 2);
    fs.readFileSync(filename).copy(entry, 0, tablesOf(filename).snapshots, tablesOf(filename).snapshots + 64);
    entry.fill("y", 64, 64 + 65535 * 2);
    entry.writeUInt16BE(65535, 12);
    entry.writeUInt16BE(65535, 14);
    const at = 2 ** 20;
    const count = Math.floor(2 ** 26 / entry.length);
    // What is left has room for the entry of this snapshot, and for no other.
    const last = Buffer.from(entry.subarray(0, 2 ** 26 - count * entry.length - 16));
    const text = last.length - 64;
    last.writeUInt16BE(Math.floor(text / 2), 12);
    last.writeUInt16BE(Math.ceil(text / 2), 14);
    const full = patched(filename, [
      [60, 4, count + 1],
      [64, 8, at],
    ]);
    const file = fs.openSync(full, "r+");
    for (let index = 0; index < count; index++)
      fs.writeSync(file, entry, 0, entry.length, at + index * entry.length);
    fs.writeSync(file, last, 0, last.length, at + count * entry.length);
    fs.closeSync(file);
    const { stderr } = run("qemu-img", ["snapshot", "-c", "z", full]);
    assert.match(stderr, /-27 \(File too large\)/);
    await using disk = await open(full);
    await assert.rejects(disk.snapshots.create("z"), { errno: "EFBIG" });
  });

  it("are deleted by id and name, both or one of them", async () => {
    const filename = image("names");
    makeImage(filename, "1M", "");
    await using disk = await open(filename);
    for (const name of ["a", "b", "b"]) await disk.snapshots.create(name);
    const left = async () => (await disk.snapshots.list()).map(({ id, name }) => id + name);
    await assert.rejects(disk.snapshots.delete({ id: "1", name: "b" }), /Can't find the snapshot/);
    await assert.rejects(disk.snapshots.delete({}), /snapshot_id and name are both NULL/);
    await disk.snapshots.delete({ id: "3", name: "b" });
    assert.deepEqual(await left(), ["1a", "2b"]);
    await disk.snapshots.delete({ id: "1" });
    assert.deepEqual(await left(), ["2b"]);
    await disk.snapshots.delete("b");
    assert.deepEqual(await left(), []);
    await disk.snapshots.create("c");
    assert.deepEqual(await left(), ["1c"]);
  });

  it("are not for formats that have none", async () => {
    makeImage(image("none"), "1M", "");
    await using disk = await openBackend({
      driver: "raw",
      file: { driver: "file", filename: image("none") },
    });
    await assert.rejects(disk.snapshots.create("a"), { errno: "ENOTSUP" });
    await assert.rejects(disk.snapshots.apply("a"), /Block driver does not support snapshots/);
    await assert.rejects(
      disk.snapshots.delete("a"),
      /Block format '(raw|file)' used by device '' does not support/,
    );
    await assert.rejects(disk.snapshots.list(), { errno: "ENOTSUP" });
  });
});
