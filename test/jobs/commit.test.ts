/** Commit as a library: what it leaves when it is cut off, aborted or fails, and what it tells on the way. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { describe, it } from "node:test";
import { commit, create, KiB, MiB, open } from "../../src/index.ts";
import { commitImage } from "../../src/jobs/commit.ts";
import { openBackend } from "../support/graph.ts";
import { recorder, replay } from "../support/power-cut.ts";
import { random } from "../support/random.ts";
import { openFilesUnder, tempDir } from "../support/temp.ts";
import { missing, mustRun, run } from "../support/tools.ts";

/** base.q <- mid.q <- top.q, each with data and zeroes of its own; top.q is the longest. */
function makeChain(directory: string, baseOptions = "cluster_size=4k", topOptions = "cluster_size=4k"): void {
  const at = (name: string) => path.join(directory, name);
  const create = (name: string, size: string, options: string, ...rest: string[]) =>
    mustRun("qemu-img", ["create", "-q", "-f", "qcow2", "-o", options, ...rest, at(name), size]);
  create("base.q", "300k", baseOptions);
  create("mid.q", "300k", "cluster_size=16k", "-b", "base.q", "-F", "qcow2");
  create("top.q", "420k", topOptions, "-b", "mid.q", "-F", "qcow2");
  const write = (name: string, ...commands: string[]) =>
    mustRun("qemu-io", ["-f", "qcow2", ...commands.flatMap((each) => ["-c", each]), at(name)]);
  write("base.q", "write -P 1 0 100k", "write -P 2 250k 50k");
  write("mid.q", "write -P 3 50k 20k", "write -z 256k 16k");
  write("top.q", "write -P 4 60k 3k", "write -z 64k 12k", "write -P 5 200k 30k", "write -P 6 410k 10k");
}

async function contentOf(filename: string): Promise<Uint8Array> {
  await using image = await open(filename);
  return image.read(0, await image.getLength());
}

function check(filename: string): void {
  mustRun("qemu-img", ["check", "-q", "-f", "qcow2", filename]);
}

describe("commit", { skip: missing("qemu-img") }, () => {
  it("moves data and zeroes down, lengthens the base and empties the overlay", async (t) => {
    const directory = tempDir(t);
    makeChain(directory);
    const [mid, top] = [path.join(directory, "mid.q"), path.join(directory, "top.q")];
    const before = await contentOf(top);
    const figures: (readonly [number, number])[] = [];
    await commit(top, { onProgress: (done, total) => figures.push([done, total]) });
    assert.deepEqual(await contentOf(top), before);
    assert.deepEqual(await contentOf(mid), before);
    // Five granules of 16 KiB: 48k to 80k, 192k to 240k (zeroes and data alike), and the end.
    const total = 32 * KiB + 48 * KiB + 20 * KiB;
    assert.deepEqual(
      [figures[0], figures.at(-1)],
      [
        [0, total],
        [total, total],
      ],
    );
    assert.deepEqual(
      figures.map(([done]) => done),
      figures.map(([done]) => done).sort((a, b) => a - b),
    );
    assert.equal(fs.statSync(top).size, 4 * 4 * KiB);
    for (const each of [mid, top]) check(each);
    assert.deepEqual(openFilesUnder(directory), []);
  });

  it("into a lower image goes past those in between, and leaves the overlay as it is", async (t) => {
    const directory = tempDir(t);
    makeChain(directory);
    const [base, top] = [path.join(directory, "base.q"), path.join(directory, "top.q")];
    const [before, file] = [await contentOf(top), fs.readFileSync(top)];
    await commit(top, { base: "base.q" });
    assert.deepEqual(await contentOf(base), before);
    assert.deepEqual(fs.readFileSync(top), file);
    check(base);
  });

  it("reads the same through the overlay all the while, and leaves the base read-only", async (t) => {
    const directory = tempDir(t);
    makeChain(directory);
    await using top = await open(path.join(directory, "top.q"), { writable: true });
    const before = await top.read(0, 420 * KiB);
    const reads: Promise<void>[] = [];
    const look = async () => assert.deepEqual(await top.read(0, before.length), before);
    await commit(top, { onProgress: () => reads.push(look()) });
    await Promise.all(reads);
    await look();
    assert.ok(reads.length > 3);
    assert.equal(top.node.backing?.node.readOnly, true);
    // It still takes writes, in its new tables.
    await top.write(64 * KiB, new Uint8Array(4 * KiB).fill(9));
    before.fill(9, 64 * KiB, 68 * KiB);
    await look();
    await top.close();
    check(path.join(directory, "top.q"));
  });

  it("ends at once when it is aborted, and can be done again", async (t) => {
    const directory = tempDir(t);
    makeChain(directory);
    const [mid, top] = [path.join(directory, "mid.q"), path.join(directory, "top.q")];
    const before = await contentOf(top);
    const abort = new AbortController();
    const reason = new Error("enough");
    const onProgress = (done: number) => done > 0 && abort.abort(reason);
    await assert.rejects(commit(top, { signal: abort.signal, onProgress }), reason);
    assert.deepEqual(openFilesUnder(directory), []);
    assert.deepEqual(await contentOf(top), before);
    check(mid);
    await commit(top);
    assert.deepEqual(await contentOf(top), before);
    assert.deepEqual(await contentOf(mid), before);
  });

  for (const [event, errno] of [
    ["write_aio", 28],
    ["cluster_alloc", 28],
    ["l2_load", 5],
    ["read_aio", 5],
  ] as const)
    it(`fails as a job if the base does (${event}), and harms neither image`, async (t) => {
      const directory = tempDir(t);
      makeChain(directory, "cluster_size=4k", "cluster_size=512");
      const [mid, top] = [path.join(directory, "mid.q"), path.join(directory, "top.q")];
      const before = await contentOf(top);
      const rules = path.join(directory, "rules");
      fs.writeFileSync(rules, `[inject-error]\nevent = "${event}"\nerrno = "${errno}"\n`);
      mustRun("qemu-img", ["rebase", "-u", "-b", `blkdebug:${rules}:${mid}`, "-F", "qcow2", top]);
      const why = errno === 28 ? "No space left on device" : "Input/output error";
      await assert.rejects(commit(top), new RegExp(`^BlockError: Block job failed: ${why}$`));
      assert.deepEqual(openFilesUnder(directory), []);
      fs.writeFileSync(rules, "");
      assert.deepEqual(await contentOf(top), before);
      for (const each of [mid, top]) {
        const { stdout, stderr } = run("qemu-img", ["check", "-f", "qcow2", "--output=json", each]);
        assert.equal((JSON.parse(stdout) as { corruptions?: number }).corruptions ?? 0, 0, stderr);
      }
    });

  it("leaves an encrypted overlay its keys", async (t) => {
    const directory = tempDir(t);
    makeChain(directory);
    const filename = path.join(directory, "secret.q");
    const secrets = { key: "abc" };
    await create(filename, {
      format: "qcow2",
      backing: { filename: "mid.q", format: "qcow2" },
      options: { "encrypt.format": "luks", "encrypt.key-secret": "key", "encrypt.iter-time": 10 },
      secrets,
    });
    const image = {
      driver: "qcow2",
      "encrypt.key-secret": "key",
      file: { driver: "file", filename },
    } as Parameters<typeof open>[0];
    {
      await using overlay = await open(image, { writable: true, secrets });
      await overlay.write(30 * KiB, new Uint8Array(5 * KiB).fill(8));
    }
    await commit(image, { secrets });
    await using overlay = await open(image, { secrets });
    assert.deepEqual(await overlay.read(30 * KiB, 5 * KiB), new Uint8Array(5 * KiB).fill(8));
    assert.deepEqual(
      (await contentOf(path.join(directory, "mid.q"))).subarray(30 * KiB, 35 * KiB),
      new Uint8Array(5 * KiB).fill(8),
    );
    check(path.join(directory, "mid.q"));
  });

  it("says what is missing", async (t) => {
    const directory = tempDir(t);
    makeChain(directory);
    await assert.rejects(
      commit(path.join(directory, "base.q")),
      /^BlockError: Image does not have a backing file$/,
    );
    await assert.rejects(
      commit(path.join(directory, "top.q"), { base: "other" }),
      /Did not find 'other' in the backing chain of /,
    );
  });

  it("at a rate takes its time", async (t) => {
    const directory = tempDir(t);
    makeChain(directory);
    const start = performance.now();
    await commit(path.join(directory, "top.q"), { bytesPerSecond: MiB / 4 });
    // 100 KiB at 256 KiB a second, of which a tenth of a second's worth goes at once.
    assert.ok(performance.now() - start > 150);
  });
});

describe("a power cut while an image is emptied", { skip: missing("qemu-img") }, () => {
  for (const [name, options] of [
    ["at once", "cluster_size=512"],
    ["at once, extended L2", "cluster_size=16k,extended_l2=on"],
    ["with refcounts of 64 bits", "cluster_size=512,refcount_bits=64"],
    ["cluster by cluster, version 2", "cluster_size=512,compat=0.10"],
  ] as const)
    it(`loses nothing: ${name}`, async (t) => {
      const directory = tempDir(t);
      makeChain(directory, "cluster_size=4k", options);
      const [mid, top] = [path.join(directory, "mid.q"), path.join(directory, "top.q")];
      const wanted = await contentOf(top);
      // Into the base, so that what is left to do is only to empty the overlay.
      await commit(top, { keepOverlay: true });
      const before = new Uint8Array(fs.readFileSync(top));
      const { log, content } = recorder(t, before);
      const backing = { driver: "qcow2", file: { driver: "file", filename: mid } } as const;
      const image = await openBackend({ driver: "qcow2", file: { driver: "recorder" }, backing });
      await commitImage(image);
      await image.close();
      const cut = path.join(directory, "cut.q");
      const isDirty = (data: Uint8Array) => data[7] === 3 && ((data[79] as number) & 1) === 1;
      const look = async (data: Uint8Array, what: string) => {
        fs.writeFileSync(cut, data);
        assert.deepEqual(await contentOf(cut), wanted, what);
        const found = run("qemu-img", ["check", "-f", "qcow2", "--output=json", cut]);
        const { corruptions = 0 } = JSON.parse(found.stdout) as { corruptions?: number };
        if (corruptions === 0) return;
        // Wrong refcounts are said to be so, and what is to be written is repaired first.
        assert.ok(isDirty(data), `${what}: ${found.stderr}`);
        run("qemu-img", ["check", "-q", "-r", "all", "-f", "qcow2", cut]);
        check(cut);
        assert.deepEqual(await contentOf(cut), wanted, `${what}, repaired`);
      };
      await replay(before, log, random(1), (data, _, what) => look(data, what));
      await look(content(), "at the end");
      check(cut);
    });
});
