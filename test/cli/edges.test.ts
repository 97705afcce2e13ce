/**
 * Command lines at the edges of what can be said, each told by both tools: odd names and options, failing storage,
 * strange sizes. What is printed, the exit code and the files that are left must be the same.
 */

import { after, before, describe, it } from "node:test";
import { DIFFERENCES } from "./differences.ts";
import { Fixture, missingTool, words } from "./differential.ts";
import { makeQcow2Images, makeRawImages } from "./images.ts";

/** These only read. */
const READING = String.raw`
compare --image-opts driver=blkdebug,image.filename=base.raw,inject-error.0.event=read_aio,inject-error.0.errno=5 base.raw
compare --image-opts driver=raw,file.driver=blkdebug,file.image.filename=base.raw,file.inject-error.0.event=read_aio driver=raw,file.filename=same.raw
compare --image-opts driver=raw,file.driver=blkdebug,file.image.filename=base.raw,file.inject-error.0.event=read_aio,file.inject-error.0.sector=2048 driver=raw,file.filename=same.raw
compare --image-opts -p driver=raw,file.driver=blkdebug,file.image.filename=base.raw,file.inject-error.0.event=read_aio,file.inject-error.0.sector=2048 driver=raw,file.filename=same.raw
compare --image-opts driver=raw,file.filename=same.raw driver=raw,file.driver=blkdebug,file.image.filename=base.raw,file.inject-error.0.event=none,file.inject-error.0.iotype=block-status
compare --image-opts -s driver=raw,file.driver=blkdebug,file.image.filename=base.raw,file.inject-error.0.event=none,file.inject-error.0.iotype=block-status driver=raw,file.filename=same.raw
compare --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=top.qcow2,file.inject-error.0.event=l2_load driver=qcow2,file.filename=top.qcow2
compare --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=top.qcow2,file.inject-error.0.event=read_compressed driver=qcow2,file.filename=top.qcow2
map --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=top.qcow2,file.inject-error.0.event=l2_load
map --output=json --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=top.qcow2,file.inject-error.0.event=l2_load
map --output=json --image-opts driver=raw,file.driver=blkdebug,file.image.filename=base.raw,file.inject-error.0.event=none,file.inject-error.0.iotype=block-status
measure -O qcow2 --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=top.qcow2,file.inject-error.0.event=l2_load
measure -O qcow2 --image-opts driver=raw,file.driver=blkdebug,file.image.filename=base.raw,file.inject-error.0.event=none,file.inject-error.0.iotype=block-status
check --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=top.qcow2,file.inject-error.0.event=l2_load
check --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=top.qcow2,file.inject-error.0.event=refblock_load
info --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=top.qcow2,file.inject-error.0.event=l1_update
info --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=top.qcow2
info --output=json --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=top.qcow2
bench -c 5 --image-opts driver=raw,file.driver=blkdebug,file.image.filename=base.raw,file.inject-error.0.event=read_aio
info --backing-chain top.qcow2
info --backing-chain --output=json top.qcow2
info --backing-chain broken-chain.qcow2
info --backing-chain --output=json broken-chain.qcow2
info --backing-chain sub/over.qcow2
info --backing-chain -f qcow2 top.qcow2
info --backing-chain --image-opts driver=qcow2,file.filename=top.qcow2
info --backing-chain --image-opts driver=qcow2,file.filename=top.qcow2,backing.driver=qcow2,backing.file.filename=empty.qcow2
info --backing-chain --image-opts driver=qcow2,file.filename=top.qcow2,backing.file.filename=empty.qcow2
info --image-opts driver=qcow2,file.filename=top.qcow2,backing=
info --output=json --image-opts driver=qcow2,file.filename=top.qcow2,backing.driver=null-co
info 'json:{"driver":"qcow2","file":{"driver":"file","filename":"top.qcow2"},"backing":null}'
info 'json:{"driver":"qcow2","file.filename":"top.qcow2","lazy-refcounts":true}'
info 'json:{"driver":"qcow2","file.filename":"top.qcow2","discard":"unmap"}'
info 'json:{"file":{"driver":"file","filename":"base.raw"}}'
info 'json:{"driver":"file","filename":"base.raw"}'
info --output=json 'json:{"driver":"file","filename":"base.raw"}'
info 'json:{"driver":"raw","file":"base.raw"}'
info 'json:[]'
info 'json:5'
info json:
info 'json:{"driver":"raw","file.filename":"base.raw","foo":1}'
info 'json:{"driver":"raw","file.filename":"base.raw","file.foo":1}'
info 'json:{"driver":"raw","file":{"driver":"file","filename":"base.raw"},"offset":"x"}'
info 'json:{"driver":"raw","file":{"driver":"file","filename":"base.raw"},"size":1024}'
info --output=json 'json:{"driver":"raw","file":{"driver":"file","filename":"base.raw"},"size":1024}'
info 'json:{"driver":"null-co","size":1048576}'
info --output json 'json:{"driver":"null-co","size":1048576}'
info null-co://
info null-aio://
info --image-opts driver=null-co
info --image-opts driver=null-co,size=1M,read-zeroes=on
info blkdebug::base.raw
info blkdebug:none:base.raw
info --output=json blkdebug::top.qcow2
info -f raw blkdebug::top.qcow2
info file:top.qcow2
info file://top.qcow2
info file:///tmp/none
info ./top.qcow2
info .//top.qcow2
info sub/../top.qcow2
info "a name, with commas.raw"
info host_device:base.raw
info /dev/null
info /dev/zero
info --image-opts driver=host_device,filename=base.raw
info --image-opts driver=file,filename=base.raw
info --image-opts driver=file,filename=sub
info --image-opts driver=file
info --image-opts filename=base.raw,driver=raw
info --image-opts driver=qcow2,file=foo
info --image-opts driver=qcow2,file=foo,file.filename=top.qcow2
info --image-opts driver=qcow2,file.filename=top.qcow2,file.driver=foo
info --image-opts driver=qcow2,file.filename=top.qcow2,cache.direct=on
info --image-opts driver=qcow2,file.filename=top.qcow2,cache.direct=maybe
info --image-opts driver=qcow2,file.filename=top.qcow2,read-only=on
info --image-opts driver=qcow2,file.filename=top.qcow2,read-only=off
info --image-opts driver=qcow2,file.filename=top.qcow2,node-name=foo
info --image-opts driver=qcow2,file.filename=top.qcow2,node-name=1foo
info --image-opts driver=qcow2,file.filename=top.qcow2,node-name=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
info --image-opts driver=qcow2,file.filename=top.qcow2,node-name=foo,file.node-name=foo
info --image-opts driver=qcow2,file.filename=top.qcow2,detect-zeroes=foo
info --image-opts driver=qcow2,file.filename=top.qcow2,detect-zeroes=unmap
info --image-opts driver=qcow2,file.filename=top.qcow2,discard=foo
info --image-opts driver=qcow2,file.filename=top.qcow2,force-share=on
info --image-opts driver=qcow2,file.filename=top.qcow2,l2-cache-size=1
info --image-opts driver=qcow2,file.filename=top.qcow2,l2-cache-size=x
info --image-opts driver=qcow2,file.filename=top.qcow2,l2-cache-entry-size=100
info --image-opts driver=qcow2,file.filename=top.qcow2,overlap-check=foo
info --image-opts driver=qcow2,file.filename=top.qcow2,overlap-check.template=all
info --image-opts driver=qcow2,file.filename=top.qcow2,cache-clean-interval=-1
info --image-opts driver=qcow2,file.filename=top.qcow2,encrypt.format=luks
info --image-opts driver=qcow2,file.filename=top.qcow2,data-file.filename=base.raw
info --image-opts driver=qcow2,file.filename=external.qcow2,data-file.filename=base.raw
info --image-opts driver=qcow2,file.filename=external.qcow2,data-file.driver=file,data-file.filename=none
info external.qcow2
info --output=json external.qcow2
info snapshots.qcow2
info rich-snapshots.qcow2
info --output=json rich-snapshots.qcow2
info -U rich-snapshots.qcow2
info bitmaps.qcow2
info --output=json bitmaps.qcow2
info -f raw top.qcow2
info -f qcow2 base.raw
info -f luks base.raw
info lazy.qcow2
info --output=json lazy.qcow2
info --output=JSON base.raw
info --output= base.raw
info --output base.raw
info -fraw -fqcow2 top.qcow2
info top.qcow2 --outp=json
info top.qcow2 --out json
info --o json top.qcow2
info --image-opt top.qcow2
info --b top.qcow2
info --fo top.qcow2
info --forc top.qcow2
info --force top.qcow2
info --format top.qcow2
info --format=qcow2 top.qcow2
info --formatx=qcow2 top.qcow2
info -- top.qcow2
info -- --top.qcow2
info - 
info -Ufqcow2 top.qcow2
info -Uf qcow2 top.qcow2
info -UZ top.qcow2
info -UfZ top.qcow2
info top.qcow2 -UZ
map top.qcow2
map --output=json top.qcow2
map external.qcow2
map --output=json external.qcow2
map --output=json prealloc.qcow2
map prealloc.qcow2
map packed.qcow2
map --output=json packed.qcow2
map subclusters.qcow2
map --output=json subclusters.qcow2
map -s 1M top.qcow2
map -s 1M -l 64k --output=json top.qcow2
map -s 100M --output=json top.qcow2
map -s 100M top.qcow2
map -s 5M --output=json top.qcow2
map -l 0 --output=json top.qcow2
map -l 0 top.qcow2
map -s 1 -l 1 --output=json top.qcow2
map -s -1 top.qcow2
map -s x top.qcow2
map -l x top.qcow2
map --start-offset 64k --max-length=64k top.qcow2
map --output=json --image-opts driver=compress,file.driver=qcow2,file.file.filename=top.qcow2
map --output=json --image-opts driver=raw,offset=64k,file.filename=base.raw
map --output=json --image-opts driver=raw,offset=64k,size=1M,file.filename=base.raw
map --output=json --image-opts driver=null-co,size=1M
map --output=json --image-opts driver=null-co,size=1M,read-zeroes=on
map --output=json --image-opts driver=copy-on-read,file.driver=qcow2,file.file.filename=top.qcow2
map --output=json --image-opts driver=throttle,throttle-group=x,file.filename=base.raw
map --output=json --image-opts driver=blkdebug,image.filename=base.raw
map --output=json --image-opts driver=blkdebug,image.driver=qcow2,image.file.filename=top.qcow2
map --output=json --image-opts driver=blkdebug,align=4096,image.filename=odd.raw
map --output=json --image-opts driver=quorum,vote-threshold=1,children.0.file.filename=base.raw,children.0.driver=raw
map --output=json --image-opts driver=preallocate,file.filename=base.raw
map --output=json odd.raw
map odd.raw
map empty.raw
map --output=json empty.raw
map zero-length.qcow2
map --output=json zero-length.qcow2
map --output=json short.qcow2
map --output=json -f raw top.qcow2
map --output=json cut.qcow2
map cut.qcow2
map --output=json corrupt.qcow2
map --output=json sub/over.qcow2
map sub/over.qcow2
map "a name, with commas.raw"
map --output=json zstd.qcow2
map --output=json old.qcow2
map --output=json bitmaps.qcow2
compare top.qcow2 mid.qcow2
compare -s top.qcow2 mid.qcow2
compare -f qcow2 -F raw top.qcow2 base.raw
compare -f raw -F qcow2 top.qcow2 base.raw
compare -p base.raw same.raw
compare -p -s base.raw same.raw
compare -p base.raw hole.raw
compare -p base.raw late.raw
compare -q base.raw late.raw
compare -q base.raw none
compare zeroes.raw hole.raw
compare -s zeroes.raw hole.raw
compare hole.raw zeroes.raw
compare empty.raw hole.raw
compare -s empty.raw zero-length.qcow2
compare empty.raw zero-length.qcow2
compare long.raw far.raw
compare long.raw late.raw
compare late.raw long.raw
compare odd.raw odd.raw
compare -p odd.raw empty.raw
compare base.raw
compare base.raw base.raw base.raw
compare -T foo base.raw same.raw
compare -T none base.raw same.raw
compare cut.qcow2 sound.qcow2
compare sound.qcow2 cut.qcow2
compare -p cut.qcow2 sound.qcow2
compare --object x base.raw same.raw
compare --image-opts driver=null-co,size=3M,read-zeroes=on driver=raw,file.filename=zeroes.raw
check -q top.qcow2
check --output=json leak.qcow2
check --output=json both.qcow2
check base.raw
check -f raw base.raw
check --output=json base.raw
check cut.qcow2
check lazy.qcow2
check --image-opts driver=compress,file.driver=qcow2,file.file.filename=top.qcow2
`;

/** These may leave files. */
const WRITING = String.raw`
dd --image-opts if=driver=qcow2,file.driver=blkdebug,file.image.filename=top.qcow2,file.inject-error.0.event=l2_load of=o
dd --image-opts if=driver=raw,file.driver=blkdebug,file.image.filename=base.raw,file.inject-error.0.event=read_aio,file.inject-error.0.errno=28 of=o bs=64k
bench -c 5 -w --image-opts driver=raw,file.driver=blkdebug,file.image.filename=base.raw,file.inject-error.0.event=write_aio,file.inject-error.0.errno=28
bench -c 5 -w -d 1 --flush-interval 1 --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=empty.qcow2,file.inject-error.0.event=flush_to_disk
convert -O raw --image-opts driver=raw,file.driver=blkdebug,file.image.filename=base.raw,file.inject-error.0.event=read_aio,file.inject-error.0.sector=2050 o
convert --salvage -O raw --image-opts driver=raw,file.driver=blkdebug,file.image.filename=base.raw,file.inject-error.0.event=read_aio,file.inject-error.0.sector=2050 o
convert --salvage -p -q -O raw --image-opts driver=raw,file.driver=blkdebug,file.image.filename=base.raw,file.inject-error.0.event=read_aio,file.inject-error.0.sector=2050 o
convert --salvage -O qcow2 --image-opts driver=raw,file.driver=blkdebug,file.image.filename=base.raw,file.inject-error.0.event=none,file.inject-error.0.iotype=block-status,file.inject-error.0.sector=2050 o
convert -O qcow2 --image-opts driver=raw,file.driver=blkdebug,file.image.filename=base.raw,file.inject-error.0.event=none,file.inject-error.0.iotype=block-status o
convert -n --target-image-opts base.raw driver=qcow2,file.driver=blkdebug,file.image.filename=empty.qcow2,file.inject-error.0.event=l2_alloc_write,file.inject-error.0.errno=28
convert -n --target-image-opts base.raw driver=qcow2,file.driver=blkdebug,file.image.filename=empty.qcow2,file.inject-error.0.event=flush_to_disk
convert -n -t writeback --target-image-opts base.raw driver=qcow2,file.driver=blkdebug,file.image.filename=empty.qcow2,file.inject-error.0.event=refblock_update
convert -n --target-is-zero -O qcow2 base.raw empty.qcow2
convert -n -O qcow2 base.raw zeroed.qcow2
convert -n -S 0 -O qcow2 base.raw zeroed.qcow2
convert -n -O raw base.raw hole.raw
convert -n -O raw -C base.raw hole.raw
convert -O raw -C base.raw o
convert -C -O qcow2 base.raw o
convert -C -O qcow2 top.qcow2 o
convert -C -O raw top.qcow2 o
convert -C -O qcow2 -B base.raw -F raw mid.qcow2 o
convert -O qcow2 -B base.raw -F raw mid.qcow2 o
convert -O qcow2 -B mid.qcow2 -F qcow2 top.qcow2 o
convert -O qcow2 -B none -F raw mid.qcow2 o
convert -O qcow2 -B base.raw -F foo mid.qcow2 o
convert -O qcow2 -B base.raw -F '' mid.qcow2 o
convert -O qcow2 -o backing_file=base.raw,backing_fmt=raw mid.qcow2 o
convert -O qcow2 -o backing_file=base.raw mid.qcow2 o
convert -O qcow2 -B base.raw mid.qcow2 o
convert -O raw -B base.raw -F raw mid.qcow2 o
convert -O qcow2 -F raw mid.qcow2 o
convert -n -O qcow2 -B base.raw -F raw mid.qcow2 mid.qcow2
convert -n -B base.raw -F raw top.qcow2 mid.qcow2 -O qcow2
convert -O qcow2 -l one snapshots.qcow2 o
convert -O qcow2 -l snapshot.id=1,snapshot.name=one snapshots.qcow2 o
convert -O qcow2 -l 9 snapshots.qcow2 o
convert -O qcow2 -c -o compression_type=zstd base.raw o
convert -O qcow2 -c -S 64k base.raw o
convert -O qcow2 -c -o extended_l2=on top.qcow2 o
convert -O qcow2 -c -o data_file=d base.raw o
convert -O qcow2 -o data_file=d base.raw o
convert -O qcow2 -o data_file=d,data_file_raw=on base.raw o
convert -O qcow2 -o preallocation=metadata base.raw o
convert -O qcow2 -o preallocation=full base.raw o
convert -O qcow2 -o preallocation=falloc -S 0 base.raw o
convert -O raw -o preallocation=full base.raw o
convert -O raw -S 0 top.qcow2 o
convert -O raw -S 512 odd.raw o
convert odd.raw odd.raw base.raw o
convert -O qcow2 odd.raw odd.raw base.raw o
convert -O file base.raw o
convert -O host_device base.raw o
convert -O null-co base.raw o
convert -O compress base.raw o
convert -O '' base.raw o
convert -f '' base.raw o
convert -O qcow2 -o help
convert -O raw -o help
convert -o help base.raw o
convert -O qcow2 -o help base.raw o
convert -O qcow2 -o foo,help base.raw o
convert -O foo -o help base.raw o
convert --target-image-opts -n -o help base.raw driver=raw,file.filename=hole.raw
create -f file -o help
create -f file o 1M
create -f host_device o 1M
create -f host_device -o help
create -f qcow2 -o '?' o
create -f raw -o help o
create -f raw -o help foo:o
create -f luks -o help
create -f blkdebug o 1M
create -f '' o 1M
create o
create -f qcow2 o
create -f qcow2 -b base.raw -F raw o -u
create -f qcow2 -b base.raw -u o 1M
create -f qcow2 -b base.raw -F qcow2 o
create -f qcow2 -b /none/base.raw -F raw o
create -f qcow2 -b json:{} -F raw o
create -f qcow2 -b json:{} -F raw o 1M -u
create -f qcow2 -b base.raw -F raw sub/o
create -f qcow2 -b ../base.raw -F raw sub/o
create -f qcow2 -b top.qcow2 -F qcow2 -o size=1M o
create -f qcow2 -b top.qcow2 -F qcow2 -o backing_file=base.raw o
create -f qcow2 -o 'backing_file=a name,, with commas.raw,backing_fmt=raw' o
create -f qcow2 -b 'a name, with commas.raw' -F raw o
create -f qcow2 o 1M 2M
create -f qcow2 o 1Mx
create -f qcow2 o 8388608T
create -f raw o 8E
create -f qcow2 o 1P
create -f qcow2 -o cluster_size=512 o 1P
create -f qcow2 o ' 1M'
create -f qcow2 o '1M '
create -f qcow2 o +1M
create -f qcow2 o 1e6
create -f qcow2 o 0x100000
create -f qcow2 o 0x10k
create -f qcow2 o .5M
create -f qcow2 o 1.M
create -f qcow2 o 1..5M
create -f qcow2 o inf
create -f qcow2 o nan
create -f qcow2 -o size=1M,size=2M o
create -f qcow2 -o cluster_size=4k -o cluster_size=8k o 1M
create -f qcow2 -o cluster_size=4k,,o o 1M
check -r leaks leak.qcow2
check -r all both.qcow2
check -r all --output=json both.qcow2
check -r all corrupt.qcow2
check -r leaks corrupt.qcow2
check -q -r all both.qcow2
check -r all -U leak.qcow2
check -r all lazy.qcow2
`;

/** What depends on the time, and the help, which is in our own words. */
const normalise = (text: string) =>
  text.replace(/completed in [0-9.]+ seconds/, "completed").replace(/qemu-img version[^]*/, "help");

const lines = (table: string) => table.split("\n").slice(1, -1);

describe("lines at the edges", { skip: missingTool }, () => {
  let fixture: Fixture;
  before(() => {
    fixture = new Fixture((directory) => {
      makeRawImages(directory);
      makeQcow2Images(directory);
    });
  });
  after(() => fixture?.remove());

  for (const command of ["info", "map", "compare", "check", "measure", "bench"])
    it(`${command}, reading`, async () => {
      for (const line of lines(READING))
        if (line.startsWith(`${command} `)) await fixture.sameOutput(words(line), { normalise });
    });

  for (const command of ["convert", "create", "dd", "check", "bench"])
    it(`${command}, writing`, async () => {
      for (const line of lines(WRITING))
        if (line.startsWith(`${command} `))
          await fixture.same(words(line), { normalise, differences: DIFFERENCES });
    });
});
