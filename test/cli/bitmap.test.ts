/** `bitmap`, and bitmaps in other commands, compared with QEMU's tools: output, exit code and every byte of the files. */

import fs from "node:fs";
import { test } from "node:test";
import {
  BitmapDirectoryEntry,
  BitmapFlag,
  BitmapsExtension,
  ExtensionType,
} from "../../drivers/qcow2/layout.ts";
import { missingTool } from "./differential.ts";
import { Scenario } from "./scenario.ts";

const skip = missingTool;

test("bitmap: actions, alone and together", { skip }, async (t) => {
  const story = new Scenario(t);
  story.given(
    "qemu-img create -q -f qcow2 a.qcow2 64M",
    "qemu-img create -q -f qcow2 -o cluster_size=512 small.qcow2 8M",
    "qemu-img create -q -f qcow2 -o cluster_size=2M,extended_l2=on large.qcow2 1G",
  );
  await story.same(
    "bitmap --add a.qcow2 b0",
    "bitmap --add -g 512 a.qcow2 b1",
    "qemu-io -c 'write -q 1M 128k' -c 'discard -q 4M 64k' -c 'write -q -z 8M 1k' a.qcow2",
    "bitmap --disable a.qcow2 b1",
    "qemu-io -c 'write -q 30M 1' -c 'write -q -c 32M 64k' a.qcow2",
    "info a.qcow2",
    "info --output json a.qcow2",
    "check a.qcow2",
    "bitmap --merge b1 a.qcow2 b0",
    "bitmap --merge b0 a.qcow2 b1",
    "bitmap --add --enable --disable a.qcow2 b2",
    "bitmap --add --merge b1 --merge b0 -g 4k a.qcow2 b3",
    "bitmap --enable --clear a.qcow2 b1",
    "bitmap --remove a.qcow2 b0",
    "bitmap --add --remove a.qcow2 b4",
    "bitmap --remove --add --disable a.qcow2 b3",
    "check a.qcow2",
    "bitmap --remove a.qcow2 b1",
    "bitmap --remove a.qcow2 b2",
    "bitmap --remove a.qcow2 b3",
    "info a.qcow2",
    "check a.qcow2",
    "bitmap --add small.qcow2 s",
    "bitmap --add -g 512 small.qcow2 fine",
    "qemu-io -c 'write -q 0 4M' -c 'write -q 4097 1' small.qcow2",
    "bitmap --clear small.qcow2 s",
    "qemu-io -c 'write -q 7M 1M' small.qcow2",
    "check small.qcow2",
    "bitmap --add large.qcow2 l",
    "qemu-io -c 'write -q 1M 1' -c 'write -q 900M 3M' large.qcow2",
    "bitmap --disable large.qcow2 l",
    "check large.qcow2",
    "info small.qcow2",
    "info large.qcow2",
  );
});

test("bitmap: what is refused", { skip }, async (t) => {
  const story = new Scenario(t);
  const long = "n".repeat(1024);
  story.given(
    "qemu-img create -q -f qcow2 b.qcow2 16M",
    "qemu-img create -q -f qcow2 p.qcow2 16M",
    "qemu-img create -q -f qcow2 -o cluster_size=2M huge.qcow2 4P",
    "qemu-img create -q -f qcow2 half.qcow2 8M",
    "qemu-img create -q -f qcow2 -o compat=0.10 v2.qcow2 16M",
    "qemu-img create -q -f qcow2 empty.qcow2 0",
    "qemu-img create -q -f raw r.raw 1M",
    "qemu-img bitmap --add half.qcow2 z",
    "qemu-img bitmap --add b.qcow2 x",
  );
  await story.same(
    "bitmap",
    "bitmap b.qcow2 x",
    "bitmap --add b.qcow2",
    "bitmap --add b.qcow2 x y",
    "bitmap --foo b.qcow2 x",
    "bitmap --merge",
    "bitmap -g",
    "bitmap --add=1 b.qcow2 x",
    "bitmap -g 1k b.qcow2",
    "bitmap --enable -g 1k -F raw b.qcow2 x",
    "bitmap --enable -b r.raw -F raw b.qcow2",
    "bitmap --enable -F raw b.qcow2",
    "bitmap --merge x -F raw b.qcow2 x",
    "bitmap --add -g b.qcow2 x",
    ...["100", "256", "abc", "4G", "0", "-1", "3k", "1.5k"].map(
      (size) => `bitmap --add -g ${size} p.qcow2 y${size}`,
    ),
    "bitmap --add -g 6G b.qcow2 y6",
    "bitmap --add -g 4294967808 b.qcow2 y512",
    ...["--clear", "--remove", "--enable", "--disable", "--merge src", "--merge x"].map(
      (action) => `bitmap ${action} p.qcow2 nope`,
    ),
    "bitmap --add b.qcow2 x",
    "bitmap --add --add b.qcow2 twice",
    "bitmap --merge src b.qcow2 x",
    "bitmap --merge x b.qcow2 x",
    "bitmap --add p.qcow2 ''",
    `bitmap --add p.qcow2 ${long}`,
    `bitmap --add b.qcow2 ${long.slice(1)}`,
    `bitmap --add huge.qcow2 ${long}`,
    "bitmap --add -g 512k huge.qcow2 x",
    "bitmap --add -g 1M huge.qcow2 x",
    "bitmap --add -f raw r.raw x",
    "bitmap --clear -f raw r.raw x",
    "bitmap --add v2.qcow2 x",
    "bitmap --add empty.qcow2 x",
    "bitmap --add nofile x",
    "bitmap --add -f bogus b.qcow2 x",
    "bitmap --merge z -b half.qcow2 b.qcow2 x",
    "bitmap --merge nope -b half.qcow2 b.qcow2 x",
    "bitmap --merge nope -b nofile b.qcow2 nope",
    "bitmap --merge z -b half.qcow2 -F raw b.qcow2 x",
    "bitmap --merge z -b half.qcow2 -F bogus b.qcow2 x",
    "bitmap --add --object foo b.qcow2 q",
    "bitmap --enable -f qcow2 --image-opts b.qcow2 x",
    "bitmap --enable --image-opts driver=raw,file.driver=qcow2,file.file.filename=b.qcow2 x",
    "bitmap --add --image-opts driver=raw,file.driver=qcow2,file.file.filename=b.qcow2 x",
    "bitmap --disable --image-opts driver=qcow2,file.filename=b.qcow2 x",
    "info b.qcow2",
    "info p.qcow2",
  );
});

test("convert copies bitmaps, measure counts them", { skip }, async (t) => {
  const story = new Scenario(t);
  story.given(
    "qemu-img create -q -f qcow2 s.qcow2 16M",
    "qemu-img bitmap --add s.qcow2 b0",
    "qemu-img bitmap --add s.qcow2 c1",
    "qemu-io -c 'write -q 1M 128k' s.qcow2",
    "qemu-img bitmap --clear s.qcow2 b0",
    "qemu-img bitmap --disable s.qcow2 c1",
    "qemu-img bitmap --add -g 512 s.qcow2 e1",
    "qemu-img create -q -f raw r.raw 1M",
    "qemu-img create -q -f qcow2 -o compat=0.10 v2.qcow2 1M",
    "qemu-img create -q -f qcow2 same.qcow2 16M",
    "qemu-img create -q -f qcow2 longer.qcow2 32M",
    "cp s.qcow2 broken.qcow2",
  );
  story.change((directory) => setFlags(`${directory}/broken.qcow2`, 0, BitmapFlag.InUse));
  await story.same(
    "convert --bitmaps -O qcow2 s.qcow2 t.qcow2",
    "convert -c --bitmaps -O qcow2 -o cluster_size=512 s.qcow2 t2.qcow2",
    "convert -O qcow2 s.qcow2 t3.qcow2",
    "convert --bitmaps -O qcow2 r.raw no",
    "convert --bitmaps -O qcow2 v2.qcow2 no",
    "convert --bitmaps -O qcow2 s.qcow2 r.raw no",
    "convert --bitmaps -O qcow2 -o foo=1 r.raw no",
    "convert --bitmaps -t foo -O qcow2 r.raw no",
    "convert --bitmaps -n -O qcow2 -f raw r.raw nodir/no",
    "convert --bitmaps -c -O raw s.qcow2 no",
    "convert --skip-broken-bitmaps -O qcow2 s.qcow2 no",
    "convert --bitmaps -O qcow2 broken.qcow2 no",
    "convert -p --bitmaps -O qcow2 broken.qcow2 no",
    "convert --bitmaps --skip-broken-bitmaps -O qcow2 broken.qcow2 t4.qcow2",
    "convert -q --bitmaps --skip-broken-bitmaps -O qcow2 broken.qcow2 t4.qcow2",
    "convert -n --bitmaps -O qcow2 s.qcow2 longer.qcow2",
    "convert -n --bitmaps -O qcow2 s.qcow2 same.qcow2",
    "convert -n --bitmaps -O qcow2 s.qcow2 same.qcow2",
    "convert -n --bitmaps -O raw s.qcow2 r.raw",
    "check same.qcow2",
    "measure -O qcow2 s.qcow2",
    "measure -O qcow2 --output json broken.qcow2",
    "measure -O raw s.qcow2",
    "measure -O qcow2 -o compat=0.10 s.qcow2",
    "measure -O qcow2 -o cluster_size=512 s.qcow2",
    "measure -O qcow2 longer.qcow2",
    "measure -O qcow2 v2.qcow2",
    "measure -O qcow2 --size 1G",
  );
});

test("bitmaps follow sizes, snapshots and versions", { skip }, async (t) => {
  const story = new Scenario(t);
  story.given(
    "qemu-img create -q -f qcow2 a.qcow2 16777728",
    "qemu-img bitmap --add -g 512 a.qcow2 b0",
    "qemu-img bitmap --add a.qcow2 b1",
    "qemu-io -c 'write -q 1M 128k' -c 'write -q 16777216 512' a.qcow2",
    "cp a.qcow2 broken.qcow2",
  );
  story.change((directory) => setFlags(`${directory}/broken.qcow2`, 0, BitmapFlag.InUse | BitmapFlag.Auto));
  await story.same(
    "resize --shrink a.qcow2 16M",
    "resize a.qcow2 17M",
    "resize a.qcow2 4G",
    "qemu-io -c 'write -q 3G 1M' a.qcow2",
    "resize --shrink a.qcow2 8M",
    "check a.qcow2",
  );
  story.given("qemu-img snapshot -c one a.qcow2");
  // The same date in both.
  fs.copyFileSync(`${story.theirs}/a.qcow2`, `${story.ours}/a.qcow2`);
  await story.same(
    "qemu-io -c 'write -q 2M 1M' a.qcow2",
    "snapshot -a one a.qcow2",
    "resize a.qcow2 9M",
    "snapshot -d one a.qcow2",
    "amend -o compat=0.10 a.qcow2",
    "bitmap --add a.qcow2 later",
    "resize broken.qcow2 32M",
    "bitmap --clear broken.qcow2 b0",
    "bitmap --merge b0 broken.qcow2 b1",
    "bitmap --merge b1 broken.qcow2 b0",
    "bitmap --enable broken.qcow2 b0",
    "bitmap --add broken.qcow2 b2",
    "check broken.qcow2",
    "bitmap --remove broken.qcow2 b0",
    "resize broken.qcow2 32M",
    "check broken.qcow2",
  );
});

test("bitmaps of an image that is reopened, read only, or left by a crash", { skip }, async (t) => {
  const story = new Scenario(t);
  story.given(
    "qemu-img create -q -f qcow2 a.qcow2 16M",
    "qemu-img bitmap --add a.qcow2 b0",
    "qemu-img bitmap --add a.qcow2 b1",
    "qemu-img bitmap --disable a.qcow2 b1",
  );
  await story.same(
    "qemu-io -r -c 'reopen -w' -c 'write -q 0 64k' -c 'reopen -r' -c 'reopen -w' -c 'write -q 4M 64k' a.qcow2",
    "qemu-io -c 'write -q 5M 1' -c 'reopen -r' -c 'read -q 0 64k' a.qcow2",
    "qemu-io -c 'write -q 6M 1' -c 'reopen -r' -c 'write -q 7M 1' a.qcow2",
    "qemu-io -r -c 'read -q 0 64k' a.qcow2",
    "check a.qcow2",
  );
  story.change((directory) => clearAutoclear(`${directory}/a.qcow2`));
  await story.same(
    "info a.qcow2",
    "check a.qcow2",
    "qemu-io -c quit a.qcow2",
    "info a.qcow2",
    "check a.qcow2",
  );
  await story.same("check -r leaks a.qcow2", "bitmap --add a.qcow2 b0");
});

test("bitmaps that can't be stored are lost, and said to be", { skip }, async (t) => {
  const story = new Scenario(t);
  story.given(
    "qemu-img create -q -f qcow2 base.qcow2 16M",
    "qemu-img bitmap --add base.qcow2 b0",
    "qemu-img bitmap --add base.qcow2 b1",
    "qemu-io -c 'write -q 1M 128k' base.qcow2",
  );
  for (const event of ["cluster_alloc", "pwritev_zero"]) {
    story.given("cp base.qcow2 a.qcow2");
    story.change((directory) =>
      fs.writeFileSync(
        `${directory}/faults`,
        `[inject-error]\nevent = "${event}"\nerrno = "28"\nonce = "on"\n`,
      ),
    );
    await story.same("bitmap --disable blkdebug:faults:a.qcow2 b0", "check a.qcow2");
    await story.same(
      "bitmap --disable a.qcow2 b0",
      "bitmap --remove a.qcow2 b0",

      "check a.qcow2",
    );
  }
});

/** What is wrong, as bytes over the directory (of two entries of 32 bytes), the first table, or the header extension. */
const DAMAGE: readonly (readonly ["directory" | "table" | "extension", offset: number, hex: string])[] = [
  ["directory", 0, "00000000000c0200"],
  ["directory", 0, "0000000000000000"],
  ["directory", 0, "8000000000000000"],
  ["directory", 8, "00000000"],
  ["directory", 8, "00000002"],
  ["directory", 8, "08000001"],
  ["directory", 12, "00000004"],
  ["directory", 12, "80000000"],
  ["directory", 12, "00000007"],
  ["directory", 16, "02"],
  ["directory", 17, "08"],
  ["directory", 17, "20"],
  ["directory", 17, "1f"],
  ["directory", 17, "09"],
  ["directory", 18, "0000"],
  ["directory", 18, "0008"],
  ["directory", 18, "0009"],
  ["directory", 18, "0400"],
  ["directory", 20, "00000008"],
  ["directory", 20, "fffffff8"],
  ["directory", 24, "6331"],
  ["directory", 12, "0000000302200000"],
  ["table", 0, "00000000000b0001"],
  ["table", 0, "01000000000b0000"],
  ["table", 0, "00000000000b0200"],
  ["table", 0, "0000000000000001"],
  ["table", 0, "0000000000000002"],
  ["table", 0, "8000000000000000"],
  ["extension", 0, "00000001"],
  ["extension", 0, "00000003"],
  ["extension", 0, "00000000"],
  ["extension", 0, "00010000"],
  ["extension", 4, "00000001"],
  ["extension", 8, "0000000000000000"],
  ["extension", 8, "0000000000000020"],
  ["extension", 8, "0000000000000038"],
  ["extension", 8, "0000000000000048"],
  ["extension", 8, "0000000004000000"],
  ["extension", 16, "0000000000000200"],
  ["extension", 16, "0000000000f00000"],
];

test("damaged bitmaps are refused, or kept, as by qemu-img", { skip }, async (t) => {
  const story = new Scenario(t);
  story.given(
    "qemu-img create -q -f qcow2 base.qcow2 16M",
    "qemu-img bitmap --add base.qcow2 b0",
    "qemu-img bitmap --add base.qcow2 c1",
    "qemu-io -c 'write -q 1M 128k' base.qcow2",
  );
  for (const [where, offset, hex] of DAMAGE) {
    story.change((directory) =>
      damage(`${directory}/base.qcow2`, `${directory}/a.qcow2`, where, offset, hex),
    );
    await story.same("bitmap --disable --remove a.qcow2 b0", "check a.qcow2");
  }
});

function damage(from: string, to: string, where: string, offset: number, hex: string): void {
  const image = fs.readFileSync(from);
  const directory = directoryOffset(image);
  const starts: Readonly<Record<string, number>> = {
    directory,
    table: Number(image.readBigUInt64BE(directory)),
    extension: extensionOffset(image),
  };
  image.write(hex, (starts[where] as number) + offset, "hex");
  fs.writeFileSync(to, image);
}

/** Of the data of the bitmaps extension. */
function extensionOffset(image: Buffer): number {
  for (let at = image.readUInt32BE(100); image.readUInt32BE(at) !== 0; ) {
    if (image.readUInt32BE(at) === ExtensionType.Bitmaps) return at + 8;
    at += 8 + Math.ceil(image.readUInt32BE(at + 4) / 8) * 8;
  }
  throw new Error("no bitmaps");
}

function directoryOffset(image: Buffer): number {
  return Number(image.readBigUInt64BE(extensionOffset(image) + BitmapsExtension.offsetOf.directoryOffset));
}

/** Sets the flags of the bitmap whose entry begins `entryOffset` bytes into the directory. */
function setFlags(file: string, entryOffset: number, flags: number): void {
  const image = fs.readFileSync(file);
  image.writeUInt32BE(flags, directoryOffset(image) + entryOffset + BitmapDirectoryEntry.offsetOf.flags);
  fs.writeFileSync(file, image);
}

/** As by a program that writes to the image and knows nothing of bitmaps. */
function clearAutoclear(file: string): void {
  const image = fs.readFileSync(file);
  image.writeBigUInt64BE(0n, 88);
  fs.writeFileSync(file, image);
}
