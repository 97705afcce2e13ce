/** `bitmap`, and bitmaps in other commands, compared with QEMU's tools: output, exit code and every byte of the files. */

import { test } from "node:test";
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
      (size) => `bitmap --add -g ${size} b.qcow2 y`,
    ),
    "bitmap --add -g 6G b.qcow2 y6",
    "bitmap --add -g 4294967808 b.qcow2 y512",
    "info b.qcow2",
    ...["--clear", "--remove", "--enable", "--disable", "--merge src", "--merge x"].map(
      (action) => `bitmap ${action} b.qcow2 nope`,
    ),
    "bitmap --add b.qcow2 x",
    "bitmap --add --add b.qcow2 twice",
    "bitmap --merge src b.qcow2 x",
    "bitmap --merge x b.qcow2 x",
    "bitmap --add b.qcow2 ''",
    `bitmap --add b.qcow2 ${long}`,
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
  );
});
