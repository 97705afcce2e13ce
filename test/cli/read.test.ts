/** The commands that only read (info, map, compare, check) and the frame's own errors, beside qemu-img's. */

import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { Fixture, missingTool, runOurs, words } from "./differential.ts";
import { makeQcow2Images, makeRawImages } from "./images.ts";

const FRAME = String.raw`

''
foo
inf
-x
--foo
-T
--trace
-T enable=foo* -x
-x info
-- info base.raw
info
info --foo a
info -x a
info -f
info base.raw -f
info --output base.raw
info --out
info --output=foo base.raw
info --o=json base.raw
info --backing-chain=3 base.raw
info base.raw hole.raw
info -qU base.raw
info base.raw -qU
info -U base.raw -qU
info -U base.raw -U -Uq
info -- -f
info --im
info --i base.raw
info -fraw base.raw
info -f raw base.raw
info base.raw -f raw
info --format=raw base.raw
info --format raw base.raw
info --for raw base.raw
info --fo raw base.raw
info - base.raw
info -
compare
compare a
compare a b c
compare --o foo base.raw base.raw
compare --foo
map
map a b
map -s
check
check a b
check -p a
info --object foo base.raw
info --object '' base.raw
info --object id=a,data=x base.raw
info --object secret base.raw
info --object secret,id=a base.raw
info --object secret,data=a base.raw
info --object secret,id=a,data=x base.raw
info --object secret,id=a,data=x,file=y base.raw
info --object secret,id=a,data=x,foo=1 base.raw
info --object secret,id=a,data=x,format=foo base.raw
info --object secret,id=a,data=x --object secret,id=a,data=x base.raw
info --object secret,id=a,file=gone base.raw
`;

const RAW = String.raw`
info base.raw
info --output=json base.raw
info --output=human base.raw
info --backing-chain base.raw
info --backing-chain --output=json base.raw
info odd.raw
info --output=json odd.raw
info empty.raw
info --output=json empty.raw
info hole.raw
info long.raw
info file:base.raw
info ./base.raw
info 'a name, with commas.raw'
info --output=json 'a name, with commas.raw'
info nonex
info ''
info /tmp
info foo:bar
info -f foo base.raw
info /dev/null
info --image-opts -f raw base.raw
info --image-opts foo
info --image-opts foo=bar
info --image-opts driver=raw,file.filename=base.raw
info --image-opts driver=raw,file.driver=file,file.filename=base.raw
info --image-opts driver=raw,file.filename=nonex
info --image-opts file.filename=base.raw
info --image-opts file=base.raw
info --image-opts file.filename=base.raw,foo=1
info --image-opts driver=foo,file.filename=base.raw
info --image-opts driver=raw
info --image-opts driver=raw,size=64k,file.filename=base.raw
info --image-opts driver=raw,offset=64k,size=64k,file.filename=base.raw
info --image-opts driver=raw,offset=64k,file.filename=base.raw
info --image-opts driver=raw,offset=64M,file.filename=base.raw
info --image-opts driver=raw,size=64M,file.filename=base.raw
info --image-opts driver=raw,size=100,file.filename=base.raw
info --image-opts driver=raw,size=foo,file.filename=base.raw
info --image-opts driver=null-co
info --image-opts --output=json driver=null-co,size=3T
info 'json:{"driver":"raw","file":{"driver":"file","filename":"base.raw"}}'
info 'json:{"driver":"raw","file":{"driver":"raw","file":{"driver":"file","filename":"base.raw"}}}'
info 'json:{"file":{"filename":"base.raw"}}'
info 'json:{"driver":"raw","file.filename":"base.raw"}'
info 'json:{}'
info 'json:[]'
info --image-opts driver=compress,file.driver=raw,file.file.filename=base.raw
map base.raw
map --output=json base.raw
map -f raw base.raw
map odd.raw
map --output=json odd.raw
map empty.raw
map --output=json empty.raw
map hole.raw
map --output=json long.raw
map -s 512 -l 1000 base.raw
map --output=json -s 512 -l 1000 base.raw
map --output=json -s 127k -l 2k base.raw
map --output=json --start-offset=64k --max-length=128k base.raw
map --start-offset=64k --max-length=128k base.raw
map --output=json -s 3M base.raw
map --output=json -s 1T base.raw
map -s 1T base.raw
map --output=json -l 0 base.raw
map -s foo base.raw
map -s 10E base.raw
map -s -1 base.raw
map -l foo base.raw
map --output=foo base.raw
map nonex
map -U base.raw
map --image-opts driver=raw,offset=64k,size=64k,file.filename=base.raw
map --output=json --image-opts driver=raw,offset=64k,size=128k,file.filename=base.raw
map --output=json --image-opts driver=null-co,read-zeroes=on
map --image-opts driver=null-co,read-zeroes=on
compare base.raw base.raw
compare base.raw same.raw
compare -s base.raw same.raw
compare base.raw zeroes.raw
compare -s base.raw zeroes.raw
compare zeroes.raw hole.raw
compare hole.raw zeroes.raw
compare hole.raw late.raw
compare late.raw hole.raw
compare -s late.raw hole.raw
compare late.raw long.raw
compare -s late.raw long.raw
compare long.raw far.raw
compare hole.raw far.raw
compare far.raw hole.raw
compare -s far.raw hole.raw
compare far.raw far.raw
compare odd.raw base.raw
compare base.raw odd.raw
compare empty.raw base.raw
compare empty.raw empty.raw
compare -s empty.raw empty.raw
compare empty.raw hole.raw
compare -q base.raw base.raw
compare -q hole.raw far.raw
compare -q -s hole.raw far.raw
compare -p base.raw same.raw
compare -p hole.raw far.raw
compare -pq base.raw same.raw
compare -p -s hole.raw far.raw
compare -p empty.raw hole.raw
compare -p far.raw far.raw
compare -f raw -F raw base.raw same.raw
compare -f raw -F foo base.raw same.raw
compare -f foo base.raw same.raw
compare -T none base.raw same.raw
compare -T foo base.raw same.raw
compare -U base.raw same.raw
compare nonex base.raw
compare base.raw nonex
compare --image-opts file.filename=base.raw,driver=raw file.filename=same.raw,driver=raw
compare --image-opts file.filename=hole.raw,driver=raw driver=null-co,size=10M,read-zeroes=on
compare --image-opts -f raw file.filename=base.raw file.filename=same.raw
compare --object secret,id=a base.raw same.raw
check base.raw
check -f raw base.raw
check -q base.raw
check --output=json base.raw
check --output=foo base.raw
check -r foo base.raw
check -r leaks -f raw base.raw
check -r all base.raw
check -T foo base.raw
check -T none base.raw
check nonex
check -U base.raw
check -U -r leaks base.raw
`;

const QCOW2 = String.raw`
info top.qcow2
info --output=json top.qcow2
info --backing-chain top.qcow2
info --backing-chain --output=json top.qcow2
info sub/over.qcow2
info --output=json sub/over.qcow2
info --backing-chain sub/over.qcow2
info -f raw top.qcow2
info -f qcow2 base.raw
info -f raw --backing-chain top.qcow2
info empty.qcow2
info zero-length.qcow2
info prealloc.qcow2
info external.qcow2
info --output=json external.qcow2
info subclusters.qcow2
info old.qcow2
info --output=json old.qcow2
info zstd.qcow2
info --output=json zstd.qcow2
info lazy.qcow2
info --output=json lazy.qcow2
info broken-chain.qcow2
info --output=json broken-chain.qcow2
info --backing-chain broken-chain.qcow2
info --backing-chain --output=json broken-chain.qcow2
info snapshots.qcow2
info --output=json snapshots.qcow2
info rich-snapshots.qcow2
info --output=json rich-snapshots.qcow2
info bitmaps.qcow2
info --output=json bitmaps.qcow2
info loop.qcow2
info --backing-chain loop.qcow2
info loop-a.qcow2
info --backing-chain loop-a.qcow2
info --backing-chain --output=json loop-b.qcow2
info leak.qcow2
info cut.qcow2
info --image-opts driver=qcow2,file.filename=top.qcow2
info --image-opts driver=qcow2,file.driver=raw,file.file.filename=top.qcow2
info --backing-chain --image-opts driver=qcow2,file.driver=raw,file.file.filename=top.qcow2
info --image-opts driver=qcow2,file.filename=top.qcow2,backing.driver=null-co
info --image-opts driver=compress,file.driver=qcow2,file.file.filename=old.qcow2
info --output=json --image-opts driver=compress,file.driver=qcow2,file.file.filename=old.qcow2
info 'json:{"driver":"qcow2","file":{"driver":"raw","file":{"driver":"file","filename":"top.qcow2"}}}'
map mid.qcow2
map --output=json mid.qcow2
map top.qcow2
map --output=json top.qcow2
map sub/over.qcow2
map --output=json sub/over.qcow2
map empty.qcow2
map --output=json empty.qcow2
map zero-length.qcow2
map --output=json zero-length.qcow2
map prealloc.qcow2
map --output=json prealloc.qcow2
map external.qcow2
map --output=json external.qcow2
map subclusters.qcow2
map --output=json subclusters.qcow2
map old.qcow2
map --output=json old.qcow2
map zstd.qcow2
map --output=json zstd.qcow2
map broken-chain.qcow2
map packed.qcow2
map --output=json packed.qcow2
map --output=json -s 100 -l 100 top.qcow2
map -s 64k -l 128k top.qcow2
map -s 64k -l 0 top.qcow2
map --output=json -s 10M top.qcow2
map --output=json -s 5M top.qcow2
map -s 4M top.qcow2
map --output=json -s 200k -l 1M top.qcow2
map --output=json --image-opts driver=qcow2,file.driver=raw,file.file.filename=top.qcow2
map --output=json --image-opts driver=qcow2,file.filename=top.qcow2,backing.driver=raw,backing.file.filename=base.raw
map --output=json --image-opts driver=raw,file.driver=qcow2,file.file.filename=empty.qcow2
map --output=json --image-opts driver=compress,file.driver=qcow2,file.file.filename=top.qcow2
compare top.qcow2 top.qcow2
compare -s top.qcow2 top.qcow2
compare top.qcow2 sub/over.qcow2
compare -s top.qcow2 sub/over.qcow2
compare base.raw mid.qcow2
compare -s base.raw mid.qcow2
compare mid.qcow2 top.qcow2
compare empty.qcow2 hole.raw
compare -s empty.qcow2 hole.raw
compare hole.raw empty.qcow2
compare zeroed.qcow2 empty.qcow2
compare -s zeroed.qcow2 empty.qcow2
compare zeroed.qcow2 hole.raw
compare -s zeroed.qcow2 hole.raw
compare empty.qcow2 tail.qcow2
compare tail.qcow2 empty.qcow2
compare -s tail.qcow2 empty.qcow2
compare empty.qcow2 tail-zero.qcow2
compare -p empty.qcow2 tail-zero.qcow2
compare tail-zero.qcow2 tail.qcow2
compare prealloc.qcow2 data.qcow2
compare -s prealloc.qcow2 data.qcow2
compare packed.qcow2 data.qcow2
compare -s packed.qcow2 data.qcow2
compare old.qcow2 empty.qcow2
compare zstd.qcow2 short.qcow2
compare -p short.qcow2 empty.qcow2
compare external.qcow2 data.qcow2
compare -s external.qcow2 data.qcow2
compare subclusters.qcow2 base.raw
compare -f qcow2 -F raw empty.qcow2 hole.raw
compare -f raw -F qcow2 hole.raw empty.qcow2
compare -f qcow2 hole.raw empty.qcow2
compare broken-chain.qcow2 empty.qcow2
compare empty.qcow2 broken-chain.qcow2
compare -U snapshots.qcow2 bitmaps.qcow2
check empty.qcow2
check --output=json empty.qcow2
check -f qcow2 sound.qcow2
check sound.qcow2
check --output=json sound.qcow2
check -q sound.qcow2
check -q --output=json sound.qcow2
check leak.qcow2
check --output=json leak.qcow2
check -q leak.qcow2
check corrupt.qcow2
check --output=json corrupt.qcow2
check both.qcow2
check --output=json both.qcow2
check -q both.qcow2
check cut.qcow2
check --output=json cut.qcow2
check top.qcow2
check mid.qcow2
check old.qcow2
check zstd.qcow2
check snapshots.qcow2
check bitmaps.qcow2
check prealloc.qcow2
check external.qcow2
check subclusters.qcow2
check lazy.qcow2
check zero-length.qcow2
check broken-chain.qcow2
check -U sound.qcow2
check -T none sound.qcow2
check -U -r leaks sound.qcow2
check --image-opts driver=qcow2,file.filename=sound.qcow2
check --image-opts driver=compress,file.driver=qcow2,file.file.filename=sound.qcow2
check --image-opts driver=raw,file.driver=qcow2,file.file.filename=sound.qcow2
`;

/** Files that fail, by blkdebug. */
const FAULTS = String.raw`
compare 'json:{"driver":"raw","file":{"driver":"blkdebug","image":{"driver":"file","filename":"base.raw"},"inject-error":[{"event":"none","iotype":"read","errno":5}]}}' base.raw
compare base.raw 'json:{"driver":"raw","file":{"driver":"blkdebug","image":{"driver":"file","filename":"base.raw"},"inject-error":[{"event":"none","iotype":"read","errno":28,"sector":2049}]}}'
compare far.raw 'json:{"driver":"raw","file":{"driver":"blkdebug","image":{"driver":"file","filename":"late.raw"},"inject-error":[{"event":"none","iotype":"read"}]}}'
compare empty.raw 'json:{"driver":"raw","file":{"driver":"blkdebug","image":{"driver":"file","filename":"base.raw"},"inject-error":[{"event":"none","iotype":"read"}]}}'
compare base.raw 'json:{"driver":"raw","file":{"driver":"blkdebug","image":{"driver":"file","filename":"base.raw"},"inject-error":[{"event":"none","iotype":"block-status"}]}}'
compare 'json:{"driver":"raw","file":{"driver":"blkdebug","image":{"driver":"file","filename":"base.raw"},"inject-error":[{"event":"none","iotype":"block-status"}]}}' base.raw
map 'json:{"driver":"raw","file":{"driver":"blkdebug","image":{"driver":"file","filename":"base.raw"},"inject-error":[{"event":"none","iotype":"block-status"}]}}'
map --output=json 'json:{"driver":"raw","file":{"driver":"blkdebug","image":{"driver":"file","filename":"base.raw"},"inject-error":[{"event":"none","iotype":"block-status"}]}}'
info 'json:{"driver":"qcow2","file":{"driver":"blkdebug","image":{"driver":"file","filename":"top.qcow2"},"inject-error":[{"event":"none","iotype":"read"}]}}'
check 'json:{"driver":"qcow2","file":{"driver":"blkdebug","image":{"driver":"file","filename":"sound.qcow2"},"inject-error":[{"event":"l2_load"}]}}'
check 'json:{"driver":"qcow2","file":{"driver":"blkdebug","image":{"driver":"file","filename":"sound.qcow2"},"inject-error":[{"event":"refblock_load"}]}}'
check --output=json 'json:{"driver":"qcow2","file":{"driver":"blkdebug","image":{"driver":"file","filename":"sound.qcow2"},"inject-error":[{"event":"none","iotype":"read","sector":512}]}}'
`;

const lines = (text: string) => text.split("\n").slice(1, -1);

describe("commands that read", { skip: missingTool }, () => {
  let fixture: Fixture;
  before(() => {
    fixture = new Fixture((directory) => {
      makeRawImages(directory);
      makeQcow2Images(directory);
    });
  });
  after(() => fixture.remove());

  for (const [title, text] of Object.entries({ FRAME, RAW, QCOW2, FAULTS }))
    describe(title.toLowerCase(), () => {
      for (const line of lines(text)) it(line, () => fixture.sameOutput(words(line)));
    });

  // There qemu-img opens one file after the other, until it runs out of memory.
  it("refuses a backing chain that leads back to itself", async () => {
    const directory = fixture.copy();
    for (const line of ["map loop.qcow2", "map loop-b.qcow2", "compare loop-a.qcow2 empty.qcow2"]) {
      const { stdout, stderr, exitCode } = await runOurs(words(line), directory);
      assert.equal(stdout, line.startsWith("map") ? "" : stdout);
      assert.match(stderr, /^qemu-img: Could not open '.*Backing file '.*' creates an infinite loop\.\n$/);
      assert.equal(exitCode, line.startsWith("map") ? 1 : 2);
    }
  });

  it("has no trace points", () => fixture.sameOutput(["-T", "enable=bdrv_open", "info", "base.raw"]));
});
