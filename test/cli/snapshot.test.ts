/** `snapshot` beside qemu-img: output, exit codes, and every byte of the images but for the times at which snapshots were taken. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import { random } from "../support/random.ts";
import { type CompareOptions, Fixture, missingTool, runOurs, runTheirs, words } from "./differential.ts";
import { Scenario } from "./scenario.ts";

/** Another one by BDRV_SEED. */
const SEED = Number(process.env["BDRV_SEED"] ?? 5);

const skip = missingTool ?? false;
const fixture = missingTool === undefined ? new Fixture(makeImages) : undefined;
after(() => fixture?.remove());

function makeImages(directory: string): void {
  const given = `
create -q -f qcow2 plain.qcow2 1M
create -q -f qcow2 named.qcow2 1M
snapshot -c 2 named.qcow2
snapshot -c 1 named.qcow2
snapshot -c twice named.qcow2
snapshot -c twice named.qcow2
snapshot -c größer named.qcow2
create -q -f raw raw.raw 1M
create -q -f qcow2 -o data_file=data.raw with-data-file.qcow2 1M
create -q -f qcow2 bitmap.qcow2 1M
snapshot -c one bitmap.qcow2
bitmap --add bitmap.qcow2 b
create -q -f qcow2 changed.qcow2 4M
qemu-io -c 'write -P 1 0 300k' -c 'write -c -P 2 1M 64k' changed.qcow2
snapshot -c one changed.qcow2
qemu-io -c 'write -P 3 64k 100k' changed.qcow2
create -q -f qcow2 -o compat=0.10 v2.qcow2 1M
snapshot -c one v2.qcow2`;
  for (const line of given.trim().split("\n")) {
    const [tool = "", ...args] = line.startsWith("qemu-io") ? words(line) : ["qemu-img", ...words(line)];
    const { status, stderr } = spawnSync(tool, args, { cwd: directory, encoding: "utf8" });
    assert.equal(status, 0, `${line}: ${stderr}`);
  }
  fs.writeFileSync(path.join(directory, "empty"), "");
}

/** One command line each; they need not succeed. */
const LINES = `
snapshot
snapshot plain.qcow2
snapshot nothing.qcow2
snapshot raw.raw
snapshot -l
snapshot -l plain.qcow2
snapshot -l named.qcow2
snapshot -lq named.qcow2
snapshot -q -l named.qcow2
snapshot named.qcow2 -l
snapshot -l named.qcow2 plain.qcow2
snapshot -l nothing.qcow2
snapshot -l raw.raw
snapshot -l empty
snapshot -l v2.qcow2
snapshot -l with-data-file.qcow2
snapshot -l -l named.qcow2
snapshot -l -c x named.qcow2
snapshot -c x -c y named.qcow2
snapshot -a x -d y named.qcow2
snapshot -c
snapshot -c x
snapshot -c plain.qcow2
snapshot -a
snapshot -d
snapshot -x named.qcow2
snapshot -f qcow2 -l named.qcow2
snapshot --list named.qcow2
snapshot --force-share -l named.qcow2
snapshot --force -l named.qcow2
snapshot -U -l named.qcow2
snapshot -U -c x named.qcow2
snapshot -U named.qcow2
snapshot -a none named.qcow2
snapshot -d none named.qcow2
snapshot -q -d none named.qcow2
snapshot -d 3 named.qcow2
snapshot -a '' named.qcow2
snapshot -c x raw.raw
snapshot -d x raw.raw
snapshot -c x with-data-file.qcow2
snapshot -a x with-data-file.qcow2
snapshot -d x with-data-file.qcow2
snapshot -a one bitmap.qcow2
snapshot -l --image-opts driver=qcow2,file.filename=named.qcow2
snapshot -l --image-opts driver=raw,file.driver=qcow2,file.file.filename=named.qcow2
snapshot -l --image-opts driver=raw,file.filename=named.qcow2
snapshot -l --image-opts driver=none,file.filename=named.qcow2
snapshot -l --image-opts file.filename=named.qcow2
snapshot -c x --image-opts driver=qcow2,file.filename=named.qcow2,read-only=on
snapshot -a 1 --image-opts driver=raw,file.filename=named.qcow2
snapshot -l --object secret,id=a named.qcow2
snapshot -l --object secret,id=a,data=b named.qcow2
snapshot -l --object secret,id=a
info --image-opts driver=raw,file.driver=qcow2,file.file.filename=named.qcow2
info --image-opts driver=compress,file.driver=qcow2,file.file.filename=named.qcow2
convert -O raw -l 1 named.qcow2 out.raw
convert -O raw -l twice named.qcow2 out.raw
convert -O raw -l none named.qcow2 out.raw
convert -O raw -l größer named.qcow2 out.raw
convert -O raw -l snapshot.id=3 named.qcow2 out.raw
convert -O raw -l snapshot.id=3,snapshot.name=2 named.qcow2 out.raw
`
  .trim()
  .split("\n");

describe("snapshot, as qemu-img says it", { skip }, () => {
  // It opens the image a second time after that, and warns twice that it has guessed the format.
  it("snapshot -a x raw.raw, with one warning in place of two", () => {
    const once = (text: string) => text.replace(/^(WARNING: (?:.*\n){3})\1/m, "$1");
    return fixture?.same(words("snapshot -a x raw.raw"), { normalise: once });
  });

  for (const line of LINES) it(line, () => fixture?.same(words(line), SAME_IMAGE));
});

describe("snapshot on a file that fails, as qemu-img says it", { skip }, () => {
  const events =
    "l2_load l2_update refblock_load refblock_update_part cluster_alloc cluster_free flush_to_os pwritev";
  for (const event of events.split(" "))
    it(event, async () => {
      for (const once of ["on", "off"])
        for (const action of ["-c two", "-a one", "-d one"]) {
          const fault = `file.inject-error.0.event=${event},file.inject-error.0.once=${once},file.inject-error.0.errno=28`;
          const options = `driver=qcow2,file.driver=blkdebug,file.image.filename=changed.qcow2,${fault}`;
          const line = words(`snapshot ${action} --image-opts ${options}`);
          // What qemu-img leaves half done differs from what is undone here.
          const [theirsIn, oursIn] = [fixture?.copy() ?? "", fixture?.copy() ?? ""];
          const expected = runTheirs(line, theirsIn);
          assert.deepEqual(await runOurs(line, oursIn), expected, line.join(" "));
        }
    });
});

/** The allocated size of a sparse copy is the file system's affair. */
const SAME_IMAGE: CompareOptions = { normalise: (text) => text.replace(/^disk size: .*$/m, "") };

/** Sets the times of all snapshots to the same: they are when the tools ran. */
function fixTimes(filename: string): void {
  const image = fs.readFileSync(filename);
  const file = fs.openSync(filename, "r+");
  let at = Number(image.readBigUInt64BE(64));
  for (let left = image.readUInt32BE(60); left > 0; left--) {
    at = Math.ceil(at / 8) * 8;
    fs.writeSync(file, new Uint8Array(8).fill(1), 0, 8, at + 16);
    at += 40 + image.readUInt32BE(at + 36) + image.readUInt16BE(at + 12) + image.readUInt16BE(at + 14);
  }
  fs.closeSync(file);
}

/** Moves the end of the first entry's name, so that the next entry stays where it is. */
function shiftNames(image: Buffer, bytes: number): void {
  const at = Number(image.readBigUInt64BE(64));
  image.writeUInt16BE(image.readUInt16BE(at + 14) - bytes, at + 14);
}

class Story extends Scenario {
  /** Each line is run by both; those that take snapshots are told apart by nothing but the time. */
  async tell(...lines: readonly string[]): Promise<void> {
    for (const line of lines) {
      if (!line.startsWith("snapshot -c")) {
        await this.same(line);
        continue;
      }
      const args = words(line);
      const expected = runTheirs(args, this.theirs);
      assert.deepEqual(await runOurs(args, this.ours), expected, line);
      this.change((directory) => fixTimes(path.join(directory, "image.qcow2")));
      this.sameFiles(line);
    }
  }
}

describe("snapshots, byte by byte as qemu-img leaves them", { skip }, () => {
  it("in a story of its own", async (test) => {
    const story = new Story(test);
    story.given(
      "qemu-img create -q -f qcow2 -o cluster_size=4k image.qcow2 8M",
      'qemu-io -f qcow2 -c "write -P 1 0 20k" -c "write -P 2 4M 8k" -c "write -c -P 3 6M 4k" image.qcow2',
    );
    await story.tell(
      "snapshot -c one image.qcow2",
      "snapshot -c one image.qcow2",
      "check image.qcow2",
      "resize image.qcow2 9M",
      "snapshot -c larger image.qcow2",
      "snapshot -a one image.qcow2",
      "snapshot -a larger image.qcow2",
      "snapshot -l image.qcow2",
      "snapshot -d one image.qcow2",
      "snapshot -l image.qcow2",
      "snapshot -d 3 image.qcow2",
      "snapshot -a 3 image.qcow2",
      "snapshot -d one image.qcow2",
      "snapshot -d larger image.qcow2",
      "check image.qcow2",
      "snapshot -l image.qcow2",
      "map image.qcow2",
    );
  });

  it("with names of every length, and in any bytes", async (test) => {
    const story = new Story(test);
    story.given("qemu-img create -q -f qcow2 image.qcow2 1M");
    const names = ["n".repeat(255), "m".repeat(300), "é".repeat(200), "a,b=c", "7"];
    for (const name of names) await story.tell(`snapshot -c '${name}' image.qcow2`);
    await story.tell(
      "snapshot -c '' image.qcow2",
      `snapshot -d '${"m".repeat(300)}' image.qcow2`,
      `snapshot -a '${"m".repeat(300)}' image.qcow2`,
      `snapshot -d '${"m".repeat(255)}' image.qcow2`,
      // Those that are left are written again, also the name that is cut within a character.
      "snapshot -c last image.qcow2",
      "snapshot -d '' image.qcow2",
      "snapshot -a 7 image.qcow2",
      "check image.qcow2",
    );
  });

  it("with ids that no snapshot of qemu-img has", async (test) => {
    const story = new Story(test);
    story.given("qemu-img create -q -f qcow2 image.qcow2 1M");
    await story.tell("snapshot -c one image.qcow2", "snapshot -c two image.qcow2");
    for (const id of ["9", "x", "\0", " ", "-"]) {
      story.change((directory) => {
        const filename = path.join(directory, "image.qcow2");
        const image = fs.readFileSync(filename);
        image.write(id, Number(image.readBigUInt64BE(64)) + 64, "latin1");
        fs.writeFileSync(filename, image);
      });
      await story.tell(
        "snapshot -l image.qcow2",
        "snapshot -c new image.qcow2",
        "snapshot -d new image.qcow2",
      );
    }
  });

  it("with entries of other programs: more extra data or less, VM state, no instruction count", async (test) => {
    const entries: readonly (readonly [offset: number, bytes: number, value: bigint])[] = [
      [36, 4, 0n],
      [36, 4, 8n],
      [36, 4, 16n],
      [36, 4, 40n],
      [40, 8, 2n ** 33n],
      [40, 8, 3_000_000n],
      [24, 8, 12_345_678_901_234n],
      [56, 8, 2n ** 64n - 1n],
      [48, 8, 2n ** 19n],
    ];
    const story = new Story(test);
    for (const [offset, bytes, value] of entries) {
      story.given("qemu-img create -q -f qcow2 image.qcow2 1M");
      // Names long enough to lend some bytes to what stands before them.
      await story.tell(
        `snapshot -c ${"n".repeat(60)} image.qcow2`,
        `snapshot -c ${"m".repeat(60)} image.qcow2`,
      );
      story.change((directory) => {
        const filename = path.join(directory, "image.qcow2");
        const image = fs.readFileSync(filename);
        const field = Buffer.alloc(8);
        field.writeBigUInt64BE(value);
        field.copy(image, Number(image.readBigUInt64BE(64)) + offset, 8 - bytes);
        if (offset === 36) shiftNames(image, Number(value) - 24);
        fs.writeFileSync(filename, image);
      });
      await story.tell("snapshot -c last image.qcow2", "snapshot -l image.qcow2", "check image.qcow2");
    }
  });

  it("in images with bitmaps, which are stored anew each time", async (test) => {
    const story = new Story(test);
    story.given(
      "qemu-img create -q -f qcow2 image.qcow2 1M",
      "qemu-img bitmap --add image.qcow2 one",
      'qemu-io -c "write -q 0 200k" image.qcow2',
    );
    await story.tell(
      "snapshot -c a image.qcow2",
      'qemu-io -c "write -q 100k 300k" image.qcow2',
      "snapshot -c b image.qcow2",
      "snapshot -a a image.qcow2",
      "bitmap --disable image.qcow2 one",
      "snapshot -a a image.qcow2",
      "snapshot -d a image.qcow2",
      "check image.qcow2",
      "bitmap --remove image.qcow2 one",
      "snapshot -a b image.qcow2",
      "snapshot -d b image.qcow2",
      "check image.qcow2",
    );
  });

  it("where refcounts can't grow: as qemu-img, which leaks a table", async (test) => {
    for (const bits of [1, 2]) {
      const story = new Story(test);
      story.given(
        `qemu-img create -q -f qcow2 -o refcount_bits=${bits},cluster_size=4k image.qcow2 1M`,
        'qemu-io -f qcow2 -c "write 0 40k" image.qcow2',
      );
      for (const name of ["a", "b", "c", "d"])
        await story.tell(`snapshot -c ${name} image.qcow2`, "check image.qcow2");
    }
  });
});

/** Random command lines of both tools, the same for both. */
function randomLines(seed: number, clusterSize: number, size: number, canResize: boolean): string[] {
  const dice = random(seed);
  let length = size;
  const range = (unit: number) => {
    const offset = dice.below(Math.floor(length / unit)) * unit;
    return `${offset} ${Math.min((1 + dice.below(8)) * unit, length - offset)}`;
  };
  const request = (): string => {
    const any = range(dice.pick([512, clusterSize]));
    const pattern = 1 + dice.below(255);
    const cluster = dice.below(Math.floor(length / clusterSize)) * clusterSize;
    return dice.pick([
      `write -q -P ${pattern} ${any}`,
      `write -q -P ${pattern} ${any}`,
      `write -q -z ${any}`,
      `write -q -z -u ${any}`,
      `discard -q ${any}`,
      `write -q -c -P ${pattern} ${cluster} ${clusterSize}`,
      `write -q -b -P ${pattern} ${dice.below(100) * 512} ${(1 + dice.below(20)) * 512}`,
    ]);
  };
  const line = (): string => {
    const name = `s${dice.below(4)}`;
    const choice = dice.below(10);
    if (choice < 3) return `snapshot -c ${name} image.qcow2`;
    if (choice < 4) return `snapshot -a ${name} image.qcow2`;
    if (choice < 6) return `snapshot -d ${name} image.qcow2`;
    if (choice < 7 && canResize) {
      length = Math.floor((size / clusterSize) * (0.5 + dice.next())) * clusterSize;
      return `resize -q --shrink image.qcow2 ${length}`;
    }
    const requests = Array.from({ length: 1 + dice.below(4) }, request);
    return `qemu-io -f qcow2 -t writeback ${requests.map((each) => `-c "${each}"`).join(" ")} image.qcow2`;
  };
  return Array.from({ length: 14 }, line);
}

describe("snapshots among all that changes an image, byte by byte", { skip }, () => {
  for (const [options, clusterSize, size] of [
    ["cluster_size=512", 512, 200 * 1024],
    ["cluster_size=64k", 65536, 8 * 2 ** 20],
    ["compat=0.10,cluster_size=1k", 1024, 2 ** 20],
    ["extended_l2=on,cluster_size=16k", 16384, 4 * 2 ** 20],
    ["refcount_bits=64,cluster_size=4k", 4096, 2 * 2 ** 20],
    ["lazy_refcounts=on,cluster_size=2k", 2048, 2 ** 20],
  ] as const)
    it(options, async (test) => {
      const story = new Story(test);
      story.given(`qemu-img create -q -f qcow2 -o ${options} image.qcow2 ${size}`);
      for (const line of randomLines(SEED, clusterSize, size, !options.includes("0.10")))
        await story.tell(line);
      await story.tell("check image.qcow2");
    });
});
