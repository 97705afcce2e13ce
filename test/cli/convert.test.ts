/** `convert` beside qemu-img's: what is printed, the exit code, and the image that comes out. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import { Fixture, missingTool, runOurs, runTheirs, words } from "./differential.ts";

/** Refused by both with the same words; ours leaves no output behind. */
const REFUSED = String.raw`
convert
convert a.raw
convert -O raw a.raw
convert a.raw out extra
convert -O nofmt a.raw out
convert -f nofmt a.raw out
convert -f raw -O raw -S 100 a.raw out
convert -f raw -O raw -S 513 a.raw out
convert -f raw -O raw -S x a.raw out
convert -f raw -O raw -S 1E a.raw out
convert -f raw -O raw -S 4G a.raw out
convert -f raw -O raw -S -1 a.raw out
convert -f raw -O raw -S 16777728 a.raw out
convert -f raw -O raw -m 0 a.raw out
convert -f raw -O raw -m 17 a.raw out
convert -f raw -O raw -m x a.raw out
convert -f raw -O raw -r x a.raw out
convert -f raw -O raw -t bad a.raw out
convert -f raw -O raw -T bad a.raw out
convert -f raw -O raw -c a.raw out
convert -f raw -n -O raw -c a.raw b.raw
convert -f raw -O raw -c -C a.raw out
convert -f raw -O raw -C -S 4k a.raw out
convert -f raw -O raw -C --salvage a.raw out
convert -f raw -O raw --target-is-zero a.raw out
convert -f raw -O raw -n a.raw out
convert -f raw -O raw -n -o size=5 a.raw b.raw
convert -f raw -O raw -n -B b.raw a.raw a.raw b.raw
convert -f raw -O raw --bitmaps a.raw out
convert -f raw -O raw --skip-broken-bitmaps a.raw out
convert -f raw -O raw -B a.raw -F raw a.raw out
convert -f raw -O raw -o bad=1 a.raw out
convert -f raw -O raw -o '' a.raw out
convert -f raw -O raw -o , a.raw out
convert -f raw -O raw -o preallocation=foo a.raw out
convert -f raw -O raw -o size=foo a.raw out
convert -f raw -O raw -l x a.raw out
convert -f raw -O raw -l snapshot.foo=1 a.raw out
convert -f raw -O raw -l snapshot.id=1 a.raw out
convert -f raw -O raw -l x a.raw a.raw out
convert -f raw -O raw nope out
convert -f raw -O raw a.raw nodir/out
convert -f raw -O raw --image-opts a.raw out
convert -f raw --target-image-opts a.raw driver=raw,file.filename=out
convert -f raw -O raw --target-image-opts -n a.raw driver=raw,file.filename=out
convert -f raw --target-image-opts -n a.raw driver=raw,file.filename=out
convert -c -n --target-image-opts -f raw a.raw driver=raw,file.filename=b.raw
convert --image-opts driver=raw,file.filename=a.raw driver=raw,file.filename=nope out
convert -f raw -n -O raw a.raw small.raw
convert -f raw -O raw a.raw a.raw
convert -f raw -O raw a.raw b.raw a.raw
convert -f raw -n -O raw a.raw a.raw
convert -6 a.raw out
convert --nolong a.raw out
convert a.raw out -O
convert --object nope -f raw a.raw out
convert --object secret,id=a -f raw a.raw out
convert -f raw -O compress a.raw out
convert -f raw -O null-co a.raw out
convert -f raw -O raw a.raw null-co://
convert -f raw a.raw nosuch:out
convert -f raw a.raw /dev/null
convert -p -f nofmt a.raw out
convert -p -O nofmt a.raw out
convert -p -T bad a.raw out
convert -p a.raw
convert -O foo -o help
convert -f raw -O raw -t bad -B x a.raw out
convert -T bad -f nofmt -O nofmt a.raw out
convert -C -c -n -o size=1 --skip-broken-bitmaps a.raw
`;

/** Done by both: the images are equal, and so is their allocation. */
const DONE = String.raw`
convert -f raw -O raw a.raw out
convert -f raw a.raw out
convert a.raw out
convert -f raw -Oraw -S0 a.raw out
convert -f raw -O raw -S 512 a.raw out
convert -f raw -O raw -S 3k a.raw out
convert -f raw -O raw -S 64k a.raw out
convert -f raw -O raw -S 16M a.raw out
convert -f raw -O raw -p a.raw out
convert -f raw -O raw -p -q a.raw out
convert -f raw -O raw -p empty.raw out
convert -f raw -O raw empty.raw a.raw empty.raw out
convert -f raw -O raw a.raw odd.raw a.raw out
convert -f raw -O raw a.raw small.raw
convert -f raw -O raw -W -m 4 a.raw out
convert -f raw -O raw -m 1 a.raw out
convert -f raw -O raw -m 16 -W a.raw out
convert -f raw -O raw -C a.raw out
convert -f raw -O raw -U a.raw out
convert -f raw -O raw -r 100M a.raw out
convert -f raw -O raw -r 0 a.raw out
convert -f raw -O raw -t none -T none a.raw out
convert -f raw -O raw -t writethrough -T unsafe a.raw out
convert -f raw -O raw -t directsync -T directsync a.raw out
convert -f raw -O raw -o preallocation=falloc a.raw out
convert -f raw -O raw -o preallocation=full a.raw out
convert -f raw -O raw -o size=64k a.raw out
convert -f raw -O raw -n a.raw b.raw
convert -f raw -O raw -n -S 0 a.raw b.raw
convert -f raw -O raw -n -S 64k a.raw b.raw
convert -f raw -O raw -n --target-is-zero a.raw fresh.raw
convert -f raw -O raw -n -B a.raw a.raw b.raw
convert -f raw -O raw -n -B a.raw -F raw a.raw b.raw
convert -O raw --image-opts driver=raw,file.filename=a.raw out
convert -O raw --image-opts driver=raw,file.driver=file,file.filename=a.raw out
convert --image-opts driver=raw,offset=64k,size=128k,file.filename=a.raw out
convert -n --target-image-opts -f raw a.raw driver=raw,file.filename=b.raw
convert -n --target-image-opts -f raw a.raw driver=raw,offset=512k,file.filename=b.raw
convert -f raw -O raw -n a.raw null-co://
convert -f raw -O file a.raw out
convert --salvage -f raw -O raw a.raw out
convert -f raw -f raw -O nofmt -O raw a.raw out
convert a.raw -fraw out -Oraw
convert -f raw -O raw -o help a.raw out
convert -f raw -O raw -o help
convert -f raw -O raw -o ? a.raw out
`;

const BAD_SECTOR =
  "driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=a.raw," +
  "file.inject-error.0.event=none,file.inject-error.0.errno=5,file.inject-error.0.sector=200," +
  "file.inject-error.0.iotype=";
const BAD_TARGET = BAD_SECTOR.replace("a.raw", "b.raw");

/** Errors of the storage, injected. */
const FAULTS = String.raw`
convert --image-opts -O raw ${BAD_SECTOR}read out
convert --image-opts -O raw ${BAD_SECTOR}block-status out
convert --image-opts -O raw -p ${BAD_SECTOR}block-status out
convert -n -f raw --target-image-opts a.raw ${BAD_TARGET}write
convert -n -f raw --target-image-opts a.raw ${BAD_TARGET.replace("sector=200", "sector=600")}write-zeroes
`;

const SALVAGED = String.raw`
convert --salvage --image-opts -O raw ${BAD_SECTOR}read out
convert --salvage -q --image-opts -O raw ${BAD_SECTOR}read out
convert --salvage -S 0 --image-opts -O raw ${BAD_SECTOR}read out
convert --salvage --image-opts -O raw ${BAD_SECTOR}block-status out
`;

const lines = (text: string) => text.split("\n").filter((line) => line !== "");

/** What stands under these names afterwards is compared; ours must not be there when the command has failed. */
const OUTPUTS = ["out", "b.raw", "fresh.raw", "small.raw"] as const;

describe("convert", { skip: missingTool }, () => {
  const fixture = new Fixture((directory) => {
    for (const [name, bytes] of [
      ["a.raw", 2 ** 20],
      ["odd.raw", 100 * 1024 + 512],
      ["b.raw", 4 * 2 ** 20],
      ["fresh.raw", 2 ** 20],
      ["small.raw", 512 * 1024],
      ["empty.raw", 0],
    ] as const)
      fs.writeFileSync(path.join(directory, name), sample(name, bytes));
  });
  after(() => fixture.remove());

  /** Runs both; gives the directories, which the caller compares and removes. */
  const both = async (line: string) => {
    const directories = { theirs: fixture.copy(), ours: fixture.copy() };
    const theirs = runTheirs(words(line), directories.theirs);
    const ours = await runOurs(words(line), directories.ours);
    assert.deepEqual(ours, theirs, line);
    return { ...directories, exitCode: ours.exitCode };
  };

  for (const line of [...lines(REFUSED), ...lines(FAULTS)])
    it(line, async () => {
      const { ours, theirs } = await both(line);
      assert.ok(!fs.existsSync(path.join(ours, "out")), "a failed conversion leaves no output");
      for (const directory of [ours, theirs]) fs.rmSync(directory, { recursive: true });
    });

  it("--target-is-zero for a target with a backing file is refused, and the exit code says so", async () => {
    // qemu-img 7.2 exits with 0 after that message, having copied nothing.
    const args = words("convert -n --target-is-zero -B a.raw -O raw a.raw b.raw");
    const [theirs, ours] = [fixture.copy(), fixture.copy()];
    const { stderr } = runTheirs(args, theirs);
    assert.deepEqual(await runOurs(args, ours), { stdout: "", stderr, exitCode: 1 });
    for (const directory of [ours, theirs]) fs.rmSync(directory, { recursive: true });
  });

  for (const line of [...lines(DONE), ...lines(SALVAGED)])
    it(line, async () => {
      const { ours, theirs, exitCode } = await both(line);
      assert.equal(exitCode, 0);
      for (const name of OUTPUTS) {
        const [mine, other] = [ours, theirs].map((directory) => path.join(directory, name)) as [
          string,
          string,
        ];
        assert.equal(fs.existsSync(mine), fs.existsSync(other), name);
        if (!fs.existsSync(mine)) continue;
        assert.ok(fs.readFileSync(mine).equals(fs.readFileSync(other)), `${name} has the same content`);
        assert.deepEqual(allocation(mine), allocation(other), `${name} has the same holes`);
      }
      for (const directory of [ours, theirs]) fs.rmSync(directory, { recursive: true });
    });
});

/** Data that begins in the second cluster, with runs of zeroes of many lengths in it; other files than a.raw are dense. */
function sample(name: string, bytes: number): Buffer {
  const content = Buffer.alloc(bytes, name);
  if (name === "fresh.raw") return Buffer.alloc(bytes);
  if (name !== "a.raw") return content;
  content.fill(0, 0, 64 * 1024);
  let offset = 80 * 1024;
  for (const sectors of [1, 2, 3, 5, 7, 8, 9, 12, 15, 16, 17, 24, 40, 127, 128, 130, 300]) {
    content.fill(0, offset, offset + sectors * 512);
    offset += sectors * 512 + 4096 + 512;
  }
  return content;
}

/**
 * Where the host file has data, from the first 4 KiB on: those qemu-img always writes in a new raw file, to probe
 * the alignment for O_DIRECT.
 */
function allocation(file: string): unknown {
  const { stdout } = runTheirs(["map", "-f", "raw", "--output=json", "-s", "4k", file], path.dirname(file));
  return stdout === "" ? [] : JSON.parse(stdout);
}
