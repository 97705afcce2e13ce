/** `dd`, `measure` and `bench` beside qemu-img's. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, before, describe, it } from "node:test";
import { Fixture, missingTool, runOurs, words } from "./differential.ts";
import { makeQcow2Images, makeRawImages } from "./images.ts";

const DD = String.raw`
if=odd.raw of=o
if=odd.raw of=o bs=1000
of=o bs=1000 count=3 if=odd.raw
if=long.raw of=o bs=1000 count=3 skip=1
if=long.raw of=o bs=1000 count=3 skip=3
if=long.raw of=o bs=1000 count=3 skip=4
if=long.raw of=o bs=1000 count=3 skip=21000
if=long.raw of=o bs=1000 count=30000 skip=20971
if=long.raw of=o bs=1000 skip=20972
if=long.raw of=o bs=7M
if=long.raw of=o bs=3000001 skip=1
if=base.raw of=o bs=512 skip=6144
if=base.raw of=o bs=480 skip=6553
if=base.raw of=o bs=480 skip=6554
if=base.raw of=o bs=1M skip=7E
if=base.raw of=o bs=1M skip=8E
if=base.raw of=o bs=2147483647
if=base.raw of=o bs=2147483648
if=base.raw of=o bs=0
if=base.raw of=o bs=-1
if=base.raw of=o bs=x
if=base.raw of=o bs=
if=base.raw of=o bs=0x200k
if=base.raw of=o bs=1.5k count=2
if=base.raw of=o count=0
if=base.raw of=o count=0 skip=1
if=base.raw of=o count=x
if=base.raw of=o count=9999999T
if=base.raw of=o skip=x
if=base.raw of=o -O qcow2 bs=64k
if=top.qcow2 of=o -O qcow2 bs=1000 count=700
if=top.qcow2 of=o bs=100k skip=2 -O qcow2
if=top.qcow2 of=o -f qcow2 bs=64k
if=top.qcow2 of=o -f raw bs=64k
if=top.qcow2 of=o -U --force-share
if=driver=qcow2,file.filename=top.qcow2 of=o --image-opts
if=driver=qcow2,file.filename=top.qcow2 of=o --image-opts -f qcow2
if=zero-length.qcow2 of=o
if=zero-length.qcow2 of=o -O qcow2
if=empty.raw of=o
if=odd.raw of=late.raw
if=odd.raw of=long.raw bs=64k if=top.qcow2
if=odd.raw of=none/o
if=odd.raw of=sub
if=odd.raw of=
if=sub of=o
if= of=o
if=none of=o
if=broken-chain.qcow2 of=o
if=odd.raw of=o -O xx
if=odd.raw of=o -O null-co
if=odd.raw of=o -f xx
if=odd.raw
of=o

foo=1
if
=x
odd.raw of=o
if=odd.raw of=o -q
if=odd.raw of=o -n --help
if=odd.raw of=o --object x
if=odd.raw of=o --object secret,id=a,data=b
-- if=odd.raw of=o
if=odd.raw of=o conv=sparse
`;

const MEASURE = String.raw`

base.raw
base.raw top.qcow2
--size 1G base.raw
--size 1G
--size=1x
--size=-1
--size=9E
--size=8E
--size=7E
--size 7E -O qcow2
--size 1000
--size 1000 -O qcow2
--size 0 -O qcow2
--size 64P -O qcow2
--size 1.5k
--size 0x10k
--size 1M --size 2M
--size 1G -O qcow2 --output=json
--size 1G --output json
--size 1G --output=xx
--output xx none
-O qcow2 base.raw
-O qcow2 top.qcow2
-O raw top.qcow2
-O qcow2 odd.raw
-O raw odd.raw
-O qcow2 bitmaps.qcow2
-O qcow2 --output=json bitmaps.qcow2
-O qcow2 --output=json -o compat=0.10 bitmaps.qcow2
-O qcow2 -l one snapshots.qcow2
-O qcow2 -l 2 snapshots.qcow2
-O qcow2 -l snapshot.id=1 snapshots.qcow2
-O qcow2 -l snapshot.id=1,snapshot.name=two snapshots.qcow2
-O qcow2 -l snapshot.foo=1 snapshots.qcow2
-l none top.qcow2
-l none base.raw
--size 1G -l x
--size 1G -f raw
--size 1G --image-opts
-f raw --image-opts file.filename=base.raw
--image-opts driver=raw,file.filename=base.raw
--size 1G -O xx
-O xx none
-O xx base.raw
--size 1G -O file
--size 1G -O host_device
--size 1G -O blkdebug
--size 1G -O null-co
--size 1G -O compress
-O raw -o a=b none
--size 1G -O raw -o help
-O raw -o help
--size 1G -O qcow2 -o cluster_size=1k
--size 1G -O qcow2 -o size=1k
-O qcow2 -o size=1k
-O raw -o size=5 odd.raw
--size 1M -o preallocation=full
--size 1M -o preallocation=foo
--size 1M -O qcow2 -o preallocation=foo
--size 1M -O qcow2 -o preallocation=full
--size 1M -O qcow2 -o cluster_size=4k -o extended_l2=on
--size 1M -O qcow2 -o cluster_size=32k -o extended_l2=on
--size 1M -o cluster_size=4k
--size 1M -O qcow2 -o foo=1k
--size 1M -O qcow2 -o cluster_size=3
--size 1M -O qcow2 -o cluster_size=x
--size 1M -O qcow2 -o cluster_size
--size 1M -O qcow2 -o lazy_refcounts=perhaps
--size 1M -O qcow2 -o lazy_refcounts
--size 1M -O qcow2 -o extent_size_hint=1M
--size 1M -O qcow2 -o nocow=on
--size 1M -O qcow2 -o nocow=sure
--size 1M -O qcow2 -o compat=7
--size 1M -O qcow2 -o refcount_bits=3
--size 1M -O qcow2 -o data_file=foo
-O qcow2 -o data_file=foo,data_file_raw=on top.qcow2
-O qcow2 -o backing_file=x base.raw
-O qcow2 -o backing_file=x,backing_fmt=raw top.qcow2
--size 1M -O qcow2 -o ''
--size 1M -O qcow2 -o ,
none
''
-f xx base.raw
-U base.raw
--force-share base.raw
broken-chain.qcow2
-O qcow2 external.qcow2
-O qcow2 subclusters.qcow2
-O qcow2 old.qcow2
-O qcow2 prealloc.qcow2
-O qcow2 zeroed.qcow2
`;

/** A bad option is left to the C library, and then the whole help is printed. */
const MEASURE_FAULTS = String.raw`
--nope
-Z
-qO
--object
--size
-O
--he=x
--image-opt=x
--o
--s
--out=json --f --si
`;

const BENCH = String.raw`

base.raw base.raw
base.raw
-c 10 base.raw
-c 0 base.raw
-c -1 base.raw
-c x base.raw
-c 5k base.raw
-c 0x10 base.raw
-c 010 base.raw
-c 08 base.raw
-c 2147483648 base.raw
-c 10 -d x base.raw
-c 10 -d 1000 base.raw
-c 10 -d -1 base.raw
-c 10 -f xx base.raw
-c 10 -i foo base.raw
-c 10 -i threads base.raw
-c 10 -i native base.raw
-c 10 -n base.raw
-c 10 -i native none
-c 10 -o 4k base.raw
-c 10 -o -1 base.raw
-c 10 -o 4M base.raw
-c 1 -o 3M base.raw
-c 10 -o 8E base.raw
-c 10 -s 0 base.raw
-c 10 -s x base.raw
-c 10 -s 3G base.raw
-c 10 -s 4M base.raw
-c 10 -S 0 base.raw
-c 10 -S x base.raw
-c 10 -S 3G base.raw
-c 10 -S 1M base.raw
-c 10 -S 4M base.raw
-c 10 -t xx base.raw
-c 10 -t none base.raw
-c 10 -t writethrough -w -f raw base.raw
-c 10 -w base.raw
-c 10 -w -f raw base.raw
-c 10 -w -f raw --pattern=300 base.raw
-c 10 -w -f raw --pattern=0xff base.raw
-c 10 -w -f raw --pattern x base.raw
-c 10 --pattern 255 base.raw
-c 10 -w --flush-interval=5 base.raw
-c 10 -w -f raw -d 2 --flush-interval=5 base.raw
-c 10 -w -f raw -d 2 --flush-interval=5 --no-drain base.raw
-c 10 -w -f raw -d 2 --flush-interval=1 --no-drain base.raw
-c 10 -w -f raw -d 2 --no-drain base.raw
-c 10 -d 2 --flush-interval=1 --no-drain base.raw
-c 10 -w -f raw --flush-interval=x base.raw
-c 10 -w -f raw --flush-interval=-1 base.raw
-c 10 -w -f raw --flush-interval=0 base.raw
-c 100 -w -f raw --pattern=7 -s 10000 -S 5000 -d 3 base.raw
-c 600 -w -f raw --pattern=7 -s 10000 -S 5000 base.raw
-c 10 -w -d 1 --pattern=7 -s 100k -o 3k top.qcow2
-c 20 -w -d 1 --pattern=7 -s 1000 -S 70000 -o 1M --flush-interval=5 -d 1 subclusters.qcow2
-c 10 -q base.raw
-c 10 -U base.raw
-c 10 -U -w base.raw
-c 10 --image-opts driver=raw,file.filename=base.raw
-c 10 --image-opts -f raw driver=raw,file.filename=base.raw
-c 3 odd.raw
-c 1 -s 1024 odd.raw
-c 1 -s 1025 odd.raw
none
-f raw -w json:
--object x
-f
`;

const lines = (table: string) => table.split("\n").slice(1, -1);

describe("dd, measure and bench", { skip: missingTool }, () => {
  let fixture: Fixture;
  before(() => {
    fixture = new Fixture((directory) => {
      makeRawImages(directory);
      makeQcow2Images(directory);
    });
  });
  after(() => fixture?.remove());

  it("dd leaves the same files", async () => {
    const isHelp = (text: string) => text.replace(/^qemu-img version[\s\S]*/m, "help");
    for (const line of lines(DD)) await fixture.same(["dd", ...words(line)], { normalise: isHelp });
  });

  it("dd does not empty the file that it reads", async () => {
    const directory = fixture.copy();
    const { exitCode, stderr } = await runOurs(["dd", "if=base.raw", "of=./base.raw"], directory);
    assert.equal(exitCode, 1);
    assert.match(
      stderr,
      /^qemu-img: \.\/base\.raw: error while creating output image: Failed to get "write" lock\n/,
    );
    assert.equal(fs.statSync(path.join(directory, "base.raw")).size, 3 * 2 ** 20);
  });

  it("measure says the same", async () => {
    for (const line of lines(MEASURE)) await fixture.sameOutput(["measure", ...words(line)]);
  });

  it("measure shows the help after a bad option", async () => {
    const isHelp = (text: string) => text.replace(/^qemu-img version[\s\S]*/, "help");
    for (const line of lines(MEASURE_FAULTS))
      await fixture.sameOutput(["measure", ...words(line)], { normalise: isHelp });
  });

  it("bench says and writes the same", async () => {
    const noTime = (text: string) =>
      text.replace(/completed in [0-9.]+ seconds/, "completed in TIME seconds");
    for (const line of lines(BENCH)) {
      const args = ["bench", ...words(line)];
      if (line.includes("-w")) await fixture.same(args, { normalise: noTime });
      else await fixture.sameOutput(args, { normalise: noTime });
    }
  });

  it("bench refuses a depth of 0, with which nothing would ever be sent", async () => {
    const { exitCode, stderr } = await runOurs(["bench", "-d", "0", "base.raw"], fixture.copy());
    assert.deepEqual([exitCode, stderr], [1, "qemu-img: Invalid queue depth specified\n"]);
  });
});
