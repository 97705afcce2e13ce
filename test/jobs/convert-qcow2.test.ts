/** convert from and to qcow2: what comes out is what qemu-img makes of the same, by content and by allocation. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, before, describe, it } from "node:test";
import { missingTool, runOurs, runTheirs, words } from "../cli/differential.ts";
import { random } from "../support/random.ts";
import { mustRun, noHoles } from "../support/tools.ts";

const KiB = 1024;
const MiB = 1024 * KiB;

interface MapEntry {
  readonly start: number;
  readonly length: number;
  readonly depth: number;
  readonly present: boolean;
  readonly zero: boolean;
  readonly data: boolean;
  readonly offset?: number;
}

/**
 * Which ranges are allocated, in which layer, as data, zeroes or compressed. Zeroes within a cluster of data are
 * not told apart: whether they are holes of the host file depends on how the cluster was filled.
 */
function allocation(file: string, directory: string): string[] {
  const { stdout } = runTheirs(["map", "--output=json", file], directory);
  const ranges: { what: string; start: number; end: number }[] = [];
  for (const { start, length, depth, present, zero, data, offset } of JSON.parse(stdout) as MapEntry[]) {
    const kind = data ? (offset === undefined ? "compressed" : "data") : zero ? "zero" : "nothing";
    const what = `${kind} depth ${depth}${present ? "" : " absent"}`;
    const last = ranges.at(-1);
    if (last?.what === what) last.end = start + length;
    else ranges.push({ what, start, end: start + length });
  }
  return ranges.map(({ what, start, end }) => `${start}..${end} ${what}`);
}

describe("convert and qcow2", { skip: missingTool }, () => {
  let directory = "";
  const file = (name: string) => path.join(directory, name);
  /** The oracle's word on what was made; relative names of data files are taken from its directory. */
  const must = (args: readonly string[]) => {
    const { exitCode, stdout, stderr } = runTheirs(args, directory);
    assert.equal(exitCode, 0, `qemu-img ${args.join(" ")}: ${stdout}${stderr}`);
  };

  before(() => {
    directory = fs.mkdtempSync(path.join(fs.realpathSync("/tmp"), "bdrv-convert-"));
    makeImages(directory);
  });
  after(() => fs.rmSync(directory, { recursive: true, force: true }));

  /**
   * Converts with both tools by one line, in which @ stands for the output, and compares: exit codes and words, the
   * images' content and allocation. Gives the name of our output.
   */
  const same = async (line: string, { exact = true } = {}) => {
    const sides = [
      ["theirs", (args: string[]) => runTheirs(args, directory)],
      ["ours", (args: string[]) => runOurs(args, directory)],
    ] as const;
    const results = [];
    for (const [name, run] of sides) {
      for (const old of fs.readdirSync(directory)) if (old.startsWith(name)) fs.rmSync(file(old));
      prepareTargets(line, directory, name);
      const result = await run(words(line.replaceAll("@", name)));
      results.push({ ...result, stderr: result.stderr.replaceAll(name, "@") });
    }
    const [theirs, ours] = results;
    assert.deepEqual(ours, theirs, line);
    assert.equal(ours?.exitCode, 0, ours?.stderr);
    const target = /@(-[^\s,]+)/.exec(line)?.[1] ?? "";
    const [ourName, theirName] = [`ours${target}`, `theirs${target}`];
    const format = mustFormat(ourName, directory);
    if (format === "qcow2") must(["check", "-q", ourName]);
    must(["compare", "-q", "-f", format, "-F", format, ourName, theirName]);
    if (exact) assert.deepEqual(allocation(ourName, directory), allocation(theirName, directory), line);
    return ourName;
  };

  const CREATE_OPTIONS = [
    "",
    "-o cluster_size=512",
    "-o cluster_size=4k",
    "-o cluster_size=2M",
    "-o compat=0.10",
    "-o extended_l2=on",
    "-o extended_l2=on,cluster_size=2M",
    "-o lazy_refcounts=on",
    "-o refcount_bits=1",
    "-o refcount_bits=64",
    "-o preallocation=metadata",
    "-o preallocation=falloc",
    "-o preallocation=full",
    "-o data_file=@.data",
    "-o data_file=@.data,data_file_raw=on",
    "-S 0",
    "-S 512",
    "-S 64k",
    "-S 1M",
    "-W -m 8",
    "-m 1",
    "-t none -T none",
    "-t writethrough",
    "-c",
    "-c -S 0",
    "-c -S 1M",
    "-c -m 1",
    "-c -W -m 16",
    "-c -o cluster_size=512",
    "-c -o cluster_size=4k",
    "-c -o cluster_size=2M",
    "-c -o compression_type=zstd",
    "-c -o compression_type=zstd,cluster_size=8k",
    "-c -o extended_l2=on",
    "-c -o compat=0.10",
    "-c -o refcount_bits=8",
    "-C",
    "-C -W",
    "-C -o cluster_size=512",
    "-C -o cluster_size=2M",
    "-C -o extended_l2=on",
    "-C -o preallocation=metadata",
    "-C -o data_file=@.data",
  ];

  for (const options of CREATE_OPTIONS) {
    it(`raw to qcow2 ${options}`, { skip: options === "-S 1M" && noHoles }, async () => {
      const made = await same(`convert -f raw -O qcow2 ${options} mixed.raw @`);
      // And back, by our own driver.
      const { exitCode, stderr } = await runOurs(["convert", "-O", "raw", made, "back.raw"], directory);
      assert.equal(exitCode, 0, stderr);
      assert.ok(fs.readFileSync(file("back.raw")).equals(fs.readFileSync(file("mixed.raw"))));
    });
  }

  for (const line of [
    "convert -O raw mixed.qcow2 @",
    "convert -O raw zlib.qcow2 @",
    "convert -O raw zstd.qcow2 @",
    "convert -O raw small.qcow2 @",
    "convert -O qcow2 zlib.qcow2 @",
    "convert -O qcow2 -c zstd.qcow2 @",
    "convert -O qcow2 -o cluster_size=2M small.qcow2 @",
    "convert -c -O qcow2 -o cluster_size=128k small.qcow2 @",
    "convert -O raw -S 0 mixed.qcow2 @",
    "convert -p -O qcow2 base.raw @",
    "convert -p -c -O qcow2 base.raw @",
    "convert -p -O raw base.raw odd.raw base.raw base.raw @",
    "convert -C -O raw mixed.raw @",
    "convert -C -O raw mixed.qcow2 @",
    "convert -C -O raw zlib.qcow2 @",
    "convert -C -p -O qcow2 base.raw @",
    "convert -C -O qcow2 -o cluster_size=2M small.qcow2 @",
    "convert -C -O raw base.raw odd.raw base.raw @",
    "convert -O qcow2 empty.qcow2 @",
    "convert -O qcow2 zero.raw @",
  ])
    it(line, async () => void (await same(line)));

  for (const line of [
    "convert -O raw top.qcow2 @",
    "convert -O qcow2 top.qcow2 @",
    "convert -O qcow2 -c top.qcow2 @",
    "convert -O qcow2 -c -o cluster_size=2M top.qcow2 @",
    "convert -O qcow2 long.qcow2 @",
    "convert -O qcow2 -B mid.qcow2 -F qcow2 top.qcow2 @",
    "convert -O qcow2 -c -B mid.qcow2 -F qcow2 top.qcow2 @",
    "convert -O qcow2 -o backing_file=mid.qcow2,backing_fmt=qcow2 top.qcow2 @",
    "convert -O qcow2 -B base.raw -F raw mid.qcow2 @",
    "convert -O qcow2 -B base.raw -F raw long.qcow2 @",
    "convert -O qcow2 -c -B base.raw -F raw long.qcow2 @",
    "convert -O qcow2 -B base.raw -F raw base.raw @",
    "convert -O qcow2 -n -B mid.qcow2 top.qcow2 @-overlay.qcow2",
    "convert --image-opts -O qcow2 driver=qcow2,file.filename=top.qcow2,backing.driver=raw,backing.file.filename=base.raw @",
  ])
    it(line, async () => void (await same(line)));

  it("convert -O qcow2 with larger clusters over a backing file copies what is around from the source", async () => {
    const made = await same("convert -O qcow2 -o cluster_size=1M -B mid.qcow2 -F qcow2 top.qcow2 @");
    mustRun("qemu-img", ["compare", file("top.qcow2"), file(made)]);
  });

  for (const line of [
    "convert -O qcow2 mixed.qcow2 odd.raw zstd.qcow2 odd.raw @",
    "convert -c -O qcow2 odd.raw mixed.qcow2 odd.raw @",
    "convert -O qcow2 -o cluster_size=4k odd.raw odd.raw odd.raw @",
    "convert -f raw -O qcow2 odd.raw @",
    "convert -f raw -O qcow2 -c odd.raw @",
    "convert -f raw -O qcow2 -c -o cluster_size=2M odd.raw @",
  ])
    it(line, async () => void (await same(line)));

  for (const line of [
    "convert -n -f raw -O qcow2 mixed.raw @-full.qcow2",
    "convert -n -f raw -O qcow2 -S 0 mixed.raw @-full.qcow2",
    "convert -n -f raw -O qcow2 --target-is-zero mixed.raw @-fresh.qcow2",
    "convert -n -f raw -O qcow2 mixed.raw @-fresh.qcow2",
    "convert -n -c -f raw -O qcow2 base.raw @-fresh.qcow2",
    "convert -n -O qcow2 mixed.qcow2 @-full.qcow2",
    "convert -n --target-image-opts -f raw mixed.raw driver=qcow2,file.filename=@-full.qcow2",
    "convert -n --target-image-opts -f raw mixed.raw driver=qcow2,discard=unmap,file.filename=@-full.qcow2",
  ])
    it(line, async () => void (await same(line)));

  for (const filter of [
    "driver=compress,file.driver=qcow2,file.file.driver=file,file.file.filename=@-fresh.qcow2",
    "driver=compress,file.driver=qcow2,file.file.filename=@-fresh.qcow2,file.l2-cache-size=64k",
  ])
    for (const options of ["", "--target-is-zero", "-S 0", "-S 64k"])
      it(`the compress filter as target ${options}: ${filter}`, async () => {
        await same(`convert -n ${options} --target-image-opts -f raw base.raw ${filter}`);
      });

  for (const choice of [
    "1",
    "one",
    "snapshot.id=2",
    "snapshot.name=one",
    "snapshot.id=1,snapshot.name=one",
    "2",
  ])
    it(`convert -l ${choice}`, async () => {
      await same(`convert -l ${choice} -O qcow2 snapshots.qcow2 @`);
    });

  for (const line of [
    "convert -l three -O qcow2 snapshots.qcow2 @",
    "convert -l snapshot.id=9 -O qcow2 snapshots.qcow2 @",
    "convert -l snapshot.id=1,snapshot.name=two -O qcow2 snapshots.qcow2 @",
    "convert -l one -O qcow2 snapshots.qcow2 snapshots.qcow2 @",
    "convert -O qcow2 -B mid.qcow2 top.qcow2 @",
    "convert -O qcow2 -F qcow2 top.qcow2 @",
    "convert -O qcow2 -B gone.qcow2 -F qcow2 top.qcow2 @",
    "convert -O qcow2 -B mid.qcow2 -F nofmt top.qcow2 @",
    "convert -O qcow2 -B mid.qcow2 -F qcow2 top.qcow2 top.qcow2 @",
    "convert -O qcow2 -o bad=1 mixed.raw @",
    "convert -O qcow2 -o cluster_size=3 mixed.raw @",
    "convert -O qcow2 -o cluster_size=abc mixed.raw @",
    "convert -O qcow2 -o compat=foo mixed.raw @",
    "convert -O qcow2 -o lazy_refcounts=maybe mixed.raw @",
    "convert -O qcow2 -o compression_type=foo mixed.raw @",
    "convert -O qcow2 -o compat=0.10,compression_type=zstd mixed.raw @",
    "convert -c -O qcow2 -o preallocation=metadata mixed.raw @",
    "convert -c -O qcow2 -o preallocation=full mixed.raw @",
    "convert -c -O qcow2 -o encryption=on mixed.raw @",
    "convert -O qcow2 mixed.raw nodir/@",
    "convert -O qcow2 mixed.qcow2 mixed.qcow2",
    "convert -O qcow2 top.qcow2 base.raw",
    "convert -n -O qcow2 mixed.raw odd.raw",
    "convert -n -O qcow2 mixed.raw small.qcow2",
    "convert -n -f raw -c -O qcow2 odd.raw @-fresh.qcow2",
    "convert -n -f raw -c -O qcow2 mixed.raw @-fresh.qcow2",
    "convert -O raw --bitmaps mixed.qcow2 @",
    "convert -O qcow2 -o data_file=@.data -c mixed.raw @",
  ])
    it(`refused: ${line}`, async () => {
      const results = [];
      for (const name of ["theirs", "ours"] as const) {
        for (const old of fs.readdirSync(directory)) if (old.startsWith(name)) fs.rmSync(file(old));
        prepareTargets(line, directory, name);
        const args = words(line.replaceAll("@", name));
        const result = name === "ours" ? await runOurs(args, directory) : runTheirs(args, directory);
        results.push({ ...result, stderr: result.stderr.replaceAll(name, "@") });
      }
      assert.deepEqual(results[1], results[0]);
      assert.notEqual(results[1]?.exitCode, 0);
      for (const left of ["ours", "ours.data"])
        assert.equal(fs.existsSync(file(left)), false, `${left} is gone`);
    });

  it("the compress filter as target takes data that is not on its clusters", async () => {
    // There qemu-img fails: it reads, changes and writes parts of clusters that are compressed already.
    prepareTargets("@-fresh", directory, "ours");
    const target = "driver=compress,file.driver=qcow2,file.file.filename=ours-fresh.qcow2";
    const line = `convert -n --target-image-opts -f raw mixed.raw ${target}`;
    assert.deepEqual(await runOurs(words(line), directory), { stdout: "", stderr: "", exitCode: 0 });
    must(["check", "-q", "ours-fresh.qcow2"]);
    must(["compare", "-q", "-f", "raw", "mixed.raw", "ours-fresh.qcow2"]);
    assert.ok(allocation("ours-fresh.qcow2", directory).some((range) => range.includes("compressed")));
  });

  it("gives the same file every time, compressed or not", async () => {
    for (const options of [
      "",
      "-o cluster_size=512",
      "-o cluster_size=4k",
      "-n",
      "-c",
      "-c -o compression_type=zstd",
      "-c -o cluster_size=4k",
    ]) {
      const digests = new Set<string>();
      for (let round = 0; round < 2; round++) {
        if (options === "-n") mustRun("qemu-img", ["create", "-q", "-f", "qcow2", file("same.qcow2"), "20M"]);
        const sources = "mixed.raw odd.raw mixed.raw base.raw mixed.raw";
        await runOurs(words(`convert -f raw -O qcow2 ${options} ${sources} same.qcow2`), directory);
        digests.add(fs.readFileSync(file("same.qcow2")).toString("base64"));
      }
      assert.equal(digests.size, 1, `convert ${options}`);
    }
  });

  it("copies a sparse TiB in no time, and keeps it sparse", async () => {
    mustRun("qemu-img", ["create", "-q", "-f", "qcow2", file("tib.qcow2"), "1T"]);
    const writes = ["0", "300G", "1023G"].flatMap((at) => ["-c", `write -P 3 ${at} 1M`]);
    mustRun("qemu-io", [...writes, file("tib.qcow2")]);
    for (const [format, options] of [
      ["qcow2", ""],
      ["qcow2", "-c"],
      ["raw", ""],
    ] as const) {
      await runOurs(words(`convert ${options} -O ${format} tib.qcow2 tib.out`), directory);
      assert.ok(fs.statSync(file("tib.out")).blocks * 512 < 8 * MiB);
      mustRun("qemu-img", ["compare", "-q", "-F", format, file("tib.qcow2"), file("tib.out")]);
    }
    fs.rmSync(file("tib.out"));
  });
});

function mustFormat(name: string, directory: string): string {
  const { stdout } = runTheirs(["info", "--output=json", name], directory);
  return (JSON.parse(stdout) as { format: string }).format;
}

/** The target that a line with -n names: without data, full of it, or over a backing file. */
function prepareTargets(line: string, directory: string, name: string): void {
  const kind = /@-(\w+)/.exec(line)?.[1];
  if (kind === undefined) return;
  const image = path.join(directory, `${name}-${kind}.qcow2`);
  const backing = kind === "overlay" ? ["-b", "mid.qcow2", "-F", "qcow2"] : [];
  mustRun("qemu-img", [
    "create",
    "-q",
    "-f",
    "qcow2",
    ...backing,
    image,
    ...(backing.length > 0 ? [] : ["5M"]),
  ]);
  if (kind === "full") mustRun("qemu-io", ["-c", "write -P 0xee 0 5M", image]);
}

/** mixed.raw has stretches of random bytes, of text and of zeroes, some of them holes, on all sorts of boundaries. */
function makeImages(directory: string): void {
  const dice = random(20);
  const content = Buffer.alloc(4 * MiB + 3 * 512);
  for (let at = 0; at < content.length; ) {
    const bytes = Math.min(512 * dice.pick([1, 3, 8, 20, 64, 128, 200, 256, 1000]), content.length - at);
    const kind = dice.below(3);
    if (kind === 0) content.set(dice.bytes(bytes), at);
    if (kind === 1) content.fill(`${at} is where this begins. `, at, at + bytes);
    at += bytes;
  }
  const file = (name: string) => path.join(directory, name);
  const img = (line: string) => {
    const { exitCode, stderr } = runTheirs(words(line), directory);
    assert.equal(exitCode, 0, `${line}: ${stderr}`);
  };
  const io = (line: string) =>
    mustRun(
      "qemu-io",
      words(line).map((word) => word.replace("@", `${directory}/`)),
    );
  fs.writeFileSync(file("dense.raw"), content);
  mustRun("cp", ["--sparse=always", file("dense.raw"), file("mixed.raw")]);
  fs.writeFileSync(file("odd.raw"), content.subarray(4 * MiB - 90 * KiB));
  fs.writeFileSync(file("zero.raw"), Buffer.alloc(MiB));
  fs.writeFileSync(file("base.raw"), content.subarray(0, 4 * MiB));
  img("convert -f raw -O qcow2 mixed.raw mixed.qcow2");
  img("convert -f raw -c -O qcow2 mixed.raw zlib.qcow2");
  img("convert -f raw -c -O qcow2 -o compression_type=zstd mixed.raw zstd.qcow2");
  img("convert -f raw -O qcow2 -o cluster_size=1k odd.raw small.qcow2");
  img("create -q -f qcow2 empty.qcow2 3M");
  img("create -q -f qcow2 -b base.raw -F raw mid.qcow2");
  io(`-c "write -P 2 1M 1M" -c "write -z 700k 128k" @mid.qcow2`);
  img("create -q -f qcow2 -b mid.qcow2 -F qcow2 -o cluster_size=32k top.qcow2");
  io(`-c "write -P 3 2M 64k" -c "write -z 3M 64k" -c "write -z -u 3200k 64k" @top.qcow2`);
  io(`-c "write -P 0 3400k 100k" -c "write -c -P 9 1536k 32k" -c "write -P 4 100k 512" @top.qcow2`);
  img("create -q -f qcow2 -b base.raw -F raw long.qcow2 6M");
  io(`-c "write -P 3 4608k 64k" -c "write -P 3 2M 64k" -c "write -z 5M 64k" @long.qcow2`);
  img("create -q -f qcow2 snapshots.qcow2 2M");
  io(`-c "write -P 1 0 300k" @snapshots.qcow2`);
  img("snapshot -c one snapshots.qcow2");
  io(`-c "write -P 2 128k 300k" @snapshots.qcow2`);
  img("snapshot -c two snapshots.qcow2");
  io(`-c "write -P 3 0 1M" @snapshots.qcow2`);
}
