/** Rebase as a library: what the guest reads stays, also when it is cut off, aborted or fails. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { describe, it } from "node:test";
import { info, KiB, MiB, map, open, rebase } from "../../src/index.ts";
import { rebaseImage } from "../../src/jobs/rebase.ts";
import { openBackend } from "../support/graph.ts";
import { recorder, replay } from "../support/power-cut.ts";
import { random } from "../support/random.ts";
import { openFilesUnder, tempDir } from "../support/temp.ts";
import { missing, mustRun } from "../support/tools.ts";

/** old.q <- top.q, which is the longest, and new.q, which differs from old.q here and there. */
function makeImages(
  directory: string,
  topOptions = "cluster_size=4k",
  oldSize = "200k",
  newSize = "300k",
): void {
  const at = (name: string) => path.join(directory, name);
  const create = (name: string, size: string, options: string, ...rest: string[]) =>
    mustRun("qemu-img", ["create", "-q", "-f", "qcow2", "-o", options, ...rest, at(name), size]);
  const write = (name: string, ...commands: string[]) =>
    mustRun("qemu-io", ["-f", "qcow2", ...commands.flatMap((each) => ["-c", each]), at(name)]);
  create("old.q", oldSize, "cluster_size=16k");
  create("new.q", newSize, "cluster_size=8k");
  create("top.q", "420k", topOptions, "-b", "old.q", "-F", "qcow2");
  write("old.q", "write -P 1 0 100k", "write -P 2 150k 10k", "write -P 3 190k 10k");
  write("new.q", "write -P 1 0 90k", "write -P 7 120k 1k", "write -P 2 150k 10k", "write -P 4 195k 50k");
  write("top.q", "write -P 5 60k 3k", "write -z 64k 8k", "write -P 6 230k 3k");
}

async function contentOf(filename: string): Promise<Uint8Array> {
  await using image = await open(filename);
  return image.read(0, await image.getLength());
}

function check(filename: string): void {
  mustRun("qemu-img", ["check", "-q", "-f", "qcow2", filename]);
}

describe("rebase", { skip: missing("qemu-img") }, () => {
  for (const [name, options] of [
    ["version 3", "cluster_size=4k"],
    ["version 2", "cluster_size=4k,compat=0.10"],
    ["extended L2", "cluster_size=64k,extended_l2=on"],
    ["large clusters", "cluster_size=2M"],
  ] as const)
    for (const [oldSize, newSize] of [
      ["200k", "300k"],
      ["300k", "250k"],
      ["500k", "500k"],
    ] as const)
      it(`keeps the content over ${oldSize} and ${newSize}: ${name}`, async (t) => {
        const directory = tempDir(t);
        makeImages(directory, options, oldSize, newSize);
        const top = path.join(directory, "top.q");
        const before = await contentOf(top);
        for (const backing of [
          { filename: "new.q", format: "qcow2" },
          { filename: "old.q", format: "qcow2" },
          undefined,
        ]) {
          await rebase(top, backing);
          assert.deepEqual(await contentOf(top), before);
          check(top);
          const { backingFilename, backingFormat } = await info(top);
          assert.deepEqual([backingFilename, backingFormat], [backing?.filename, backing?.format]);
        }
        fs.rmSync(path.join(directory, "old.q"));
        fs.rmSync(path.join(directory, "new.q"));
        assert.deepEqual(await contentOf(top), before);
        assert.deepEqual(openFilesUnder(directory), []);
      });

  it("copies no more than what differs", async (t) => {
    const directory = tempDir(t);
    makeImages(directory);
    const top = path.join(directory, "top.q");
    const figures: (readonly [number, number])[] = [];
    await rebase(
      top,
      { filename: "new.q", format: "qcow2" },
      { onProgress: (...figure) => figures.push(figure) },
    );
    const own: string[] = [];
    for await (const { start, bytes, depth, present, data } of map(top))
      if (depth === 0 && present) own.push(`${start / KiB}+${bytes / KiB}${data ? "" : " zero"}`);
    // 90k to 100k; 120k; 190k to 200k; behind old.q's end what new.q has there.
    assert.deepEqual(own, [
      "60+4",
      "64+8 zero",
      "88+12",
      "120+4",
      "188+12",
      "200+28 zero",
      "228+8",
      "236+12 zero",
    ]);
    assert.deepEqual(figures.at(-1), [420 * KiB, 420 * KiB]);
  });

  it("only renames where it is told to, and asks no gate then", async (t) => {
    const directory = tempDir(t);
    makeImages(directory);
    const top = path.join(directory, "top.q");
    const gate = () => Promise.reject(new Error("asked"));
    await rebase(top, { filename: "gone.q", format: "raw" }, { unsafe: true, gate });
    const { backingFilename, backingFormat } = await info(top);
    assert.deepEqual([backingFilename, backingFormat], ["gone.q", "raw"]);
  });

  it("ends at once when it is aborted, and can be done again", async (t) => {
    const directory = tempDir(t);
    const top = path.join(directory, "top.q");
    const old = path.join(directory, "old.raw");
    fs.writeFileSync(old, random(1).bytes(6 * MiB));
    mustRun("qemu-img", ["create", "-q", "-f", "qcow2", "-b", old, "-F", "raw", top]);
    const before = await contentOf(top);
    const abort = new AbortController();
    const reason = new Error("enough");
    const onProgress = () => abort.abort(reason);
    await assert.rejects(rebase(top, undefined, { signal: abort.signal, onProgress }), reason);
    assert.deepEqual(openFilesUnder(directory), []);
    assert.equal((await info(top)).backingFilename, old);
    assert.deepEqual(await contentOf(top), before);
    check(top);
    await rebase(top, undefined);
    fs.rmSync(old);
    assert.deepEqual(await contentOf(top), before);
  });

  for (const [where, event, message] of [
    ["old", "read_aio", "error while reading from old backing file"],
    ["new", "read_aio", "error while reading from new backing file"],
    ["old", "l2_load", "error while reading from old backing file"],
  ] as const)
    it(`fails if the ${where} backing file does (${event}), and the image stays on the old one`, async (t) => {
      const directory = tempDir(t);
      makeImages(directory);
      const [top, rules] = [path.join(directory, "top.q"), path.join(directory, "rules")];
      const before = await contentOf(top);
      const broken = (name: string) => `blkdebug:${rules}:${path.join(directory, name)}`;
      fs.writeFileSync(rules, "");
      if (where === "old") mustRun("qemu-img", ["rebase", "-u", "-b", broken("old.q"), "-F", "qcow2", top]);
      fs.writeFileSync(rules, `[inject-error]\nevent = "${event}"\n`);
      const filename = where === "new" ? broken("new.q") : "new.q";
      await assert.rejects(
        rebase(top, { filename, format: "qcow2" }),
        new RegExp(`^BlockError: ${message}$`),
      );
      fs.writeFileSync(rules, "");
      assert.deepEqual(await contentOf(top), before);
      check(top);
    });

  it("fails where the image is full, and leaves it as good as it was", async (t) => {
    const directory = tempDir(t);
    makeImages(directory);
    const top = path.join(directory, "top.q");
    const before = await contentOf(top);
    const file = {
      driver: "blkdebug",
      image: { driver: "file", filename: top },
      "inject-error": [{ event: "cluster_alloc", errno: 28, state: 3 }],
      "set-state": [
        { event: "cluster_alloc", state: 1, new_state: 2 },
        { event: "cluster_alloc", state: 2, new_state: 3 },
      ],
    };
    const backing = { driver: "qcow2", file: { driver: "file", filename: path.join(directory, "old.q") } };
    const image = await openBackend({ driver: "qcow2", file, backing } as Parameters<typeof openBackend>[0]);
    const wanted = { backingFile: path.join(directory, "new.q"), backingFormat: "qcow2" };
    await assert.rejects(
      rebaseImage(image, wanted),
      /^BlockError: Error while writing to COW image: No space left on device$/,
    );
    await image.close().catch(() => {});
    assert.deepEqual(await contentOf(top), before);
    check(top);
  });
});

describe("a power cut while an image is rebased", { skip: missing("qemu-img") }, () => {
  for (const [name, options] of [
    ["clusters of 512", "cluster_size=512"],
    ["extended L2", "cluster_size=16k,extended_l2=on"],
    ["version 2", "cluster_size=4k,compat=0.10"],
  ] as const)
    for (const to of ["new.q", ""] as const)
      it(`loses nothing: ${name}, onto ${to || "nothing"}`, async (t) => {
        const directory = tempDir(t);
        makeImages(directory, options);
        const [top, old] = [path.join(directory, "top.q"), path.join(directory, "old.q")];
        const wanted = await contentOf(top);
        const before = new Uint8Array(fs.readFileSync(top));
        const { log, content } = recorder(t, before);
        const backing = { driver: "qcow2", file: { driver: "file", filename: old } } as const;
        const image = await openBackend({ driver: "qcow2", file: { driver: "recorder" }, backing });
        const backingFile = to && path.join(directory, to);
        await rebaseImage(image, { backingFile, backingFormat: "qcow2" });
        await image.close();
        const cut = path.join(directory, "cut.q");
        const look = async (data: Uint8Array, what: string) => {
          fs.writeFileSync(cut, data);
          assert.deepEqual(await contentOf(cut), wanted, what);
        };
        await replay(before, log, random(1), (data, _, what) => look(data, what));
        await look(content(), "at the end");
        check(cut);
        assert.equal((await info(cut)).backingFilename, backingFile || undefined);
      });
});
