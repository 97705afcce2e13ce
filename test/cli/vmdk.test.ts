/** VMDK images as qemu-img and qemu-io tell of them, both tools on the same bytes. */

import { describe } from "node:test";
import { clearIdentities } from "../support/vmdk-images.ts";
import { missingTool } from "./differential.ts";
import { tell } from "./stories.ts";

const CREATE = `
# create
create -f vmdk -o help
create -f vmdk -o help a.vmdk
create -f vmdk a.vmdk 10M
create -f vmdk b.vmdk 3000001
create -f vmdk c.vmdk 0
create -f vmdk -o subformat=monolithicFlat d.vmdk 3M
create -f vmdk -o subformat=twoGbMaxExtentSparse e.vmdk 5G
create -f vmdk -o subformat=streamOptimized g.vmdk 100M
create -f vmdk -o subformat=twoGbMaxExtentSparse h.vmdk 0
create -f vmdk -o subformat=twoGbMaxExtentSparse i.vmdk 2147483648
create -f vmdk -o subformat=twoGbMaxExtentFlat j.vmdk 3000k
create -f vmdk n.vmdk 100G
create -f vmdk -o subformat=monolithicFlat x.y.vmdk 1000
create -f vmdk -o subformat=monolithicFlat c 1M
create -f vmdk -o subformat=twoGbMaxExtentSparse file:z.a.vmdk 1M
info a.vmdk
info --output=json b.vmdk
info d.vmdk
info --output=json e.vmdk
info j.vmdk
info g.vmdk
info --output=json g.vmdk
info n.vmdk
info c.vmdk
map --output=json a.vmdk
map --output=json d.vmdk
map e.vmdk
check a.vmdk
check --output=json d.vmdk
check e.vmdk
check g.vmdk
check -r all a.vmdk
check -r leaks a.vmdk
measure -O vmdk --size 1M
resize a.vmdk 20M
resize d.vmdk 20M
resize --shrink a.vmdk 1M
amend -f vmdk -o help
amend -f vmdk -o size=1 a.vmdk
snapshot -l a.vmdk
snapshot -c one a.vmdk
bitmap --add a.vmdk x
rebase -u -b b.vmdk -F vmdk a.vmdk

# create options
create -f vmdk -o adapter_type=lsilogic a.vmdk 10M
create -f vmdk -o adapter_type=buslogic b.vmdk 10M
create -f vmdk -o adapter_type=legacyESX c.vmdk 10M
create -f vmdk -o adapter_type=ide d.vmdk 10M
create -f vmdk -o adapter_type=IDE e.vmdk 10M
create -f vmdk -o hwversion=7,toolsversion=12 f.vmdk 10M
create -f vmdk -o hwversion=,toolsversion= g.vmdk 10M
create -f vmdk -o compat6 h.vmdk 10M
create -f vmdk -o compat6=on,hwversion=7 i.vmdk 10M
create -f vmdk -o compat6=on,hwversion=undefined i.vmdk 10M
create -f vmdk -o compat6=maybe j.vmdk 10M
create -f vmdk -o zeroed_grain=on k.vmdk 10M
create -f vmdk -o zeroed_grain=on,subformat=streamOptimized l.vmdk 10M
create -f vmdk -o zeroed_grain=on,subformat=twoGbMaxExtentSparse m.vmdk 10M
create -f vmdk -o zeroed_grain=on,subformat=monolithicFlat n.vmdk 10M
create -f vmdk -o zeroed_grain=on,subformat=twoGbMaxExtentFlat n.vmdk 10M
create -f vmdk -o subformat=monolithicflat n.vmdk 10M
create -f vmdk -o subformat= n.vmdk 10M
create -f vmdk -o preallocation=falloc o.vmdk 10M
create -f vmdk -o preallocation=off,subformat=monolithicFlat p.vmdk 10M
create -f vmdk -o preallocation=full,subformat=monolithicFlat q.vmdk 10M
create -f vmdk -o nocow=on r.vmdk 10M
create -f vmdk -o extent_size_hint=2M s.vmdk 10M
create -f vmdk -o cluster_size=64k t.vmdk 10M
create -f vmdk -o size=10M u.vmdk
create -f vmdk -o size=10M u.vmdk 10M
create -f vmdk u.vmdk
create -f vmdk -o backing_fmt=vmdk v.vmdk 1M
create -f vmdk -o backing_fmt=raw v.vmdk 1M
create -f vmdk -o adapter_type=x,subformat=y,backing_fmt=z v.vmdk 1M
create -f vmdk -o adapter_type=x,backing_fmt=z v.vmdk 1M
create -f vmdk -o subformat=y,backing_fmt=z v.vmdk 1M
create -f vmdk -o compat6=on,hwversion=9,subformat=y v.vmdk 1M
create -f vmdk -o compat6=on,hwversion=9,zeroed_grain=on,subformat=monolithicFlat v.vmdk 1M
create -f vmdk -o compat6=on,hwversion=9,backing_fmt=z v.vmdk 1M
info a.vmdk
info k.vmdk
info l.vmdk
info p.vmdk
info q.vmdk
`;

const WRITE = `
# grains come in the order of the writes
create -q -f vmdk a.vmdk 5000k
qemu-io -c "write -P 1 3M 1k" a.vmdk
qemu-io -c "write -P 2 1023k 2k" a.vmdk
map --output=json a.vmdk
qemu-io -c "write -P 3 0 4M" a.vmdk
qemu-io -c "write -P 4 4999k 1k" a.vmdk
qemu-io -c "write -z 1M 1M" -c "discard 2M 1M" -c "read -P 0 1M 1M" a.vmdk
qemu-io -c "write -P 5 5000k 1" a.vmdk
map a.vmdk
map --output=json a.vmdk
check a.vmdk
qemu-io -c map -c "alloc 0 5000k" -c length -c info a.vmdk
qemu-io -c "write -c 0 64k" a.vmdk
convert -O vmdk a.vmdk b.vmdk
compare a.vmdk b.vmdk

# what is unaligned
create -q -f vmdk a.vmdk 4M
qemu-io -c "write -P 9 2097151 2" a.vmdk
qemu-io -c "writev -P 7 100 200 300" a.vmdk
qemu-io -c "write -z 65000 5000" a.vmdk
qemu-io -c "write -z -u 1M 4k" a.vmdk
qemu-io -c "aio_write -P 6 3M 4k" -c aio_flush -c flush a.vmdk
qemu-io -c "read -v 65530 16" a.vmdk
map --output=json a.vmdk

# grains of zeroes
create -q -f vmdk -o zeroed_grain=on a.vmdk 1000k
qemu-io -c "write -z 0 1000k" a.vmdk
map --output=json a.vmdk
qemu-io -c "write -P 1 64k 128k" a.vmdk
qemu-io -c "write -z 64k 64k" a.vmdk
qemu-io -c "write -P 2 70k 1k" a.vmdk
qemu-io -c "write -z 130k 100k" a.vmdk
qemu-io -c "write -z -u 130k 200k" a.vmdk
qemu-io -c "read -P 0 64k 6k" -c "read -P 2 70k 1k" -c "read -P 1 128k 2k" a.vmdk
map --output=json a.vmdk
check a.vmdk
convert -O vmdk -o zeroed_grain=on a.vmdk b.vmdk
map --output=json b.vmdk

# flat
create -q -f vmdk -o subformat=monolithicFlat a.vmdk 3000k
qemu-io -c "write -P 1 1M 100k" a.vmdk
map --output=json a.vmdk
qemu-io -c "write -z 0 2M" a.vmdk
qemu-io -c "discard 0 1M" a.vmdk
map --output=json a.vmdk
check a.vmdk
convert -O vmdk -o subformat=monolithicFlat a.vmdk b.vmdk
qemu-io -c "write -c 0 64k" a.vmdk

# split
create -q -f vmdk -o subformat=twoGbMaxExtentSparse a.vmdk 2100M
qemu-io -c "write -P 1 2047M 2M" a.vmdk
qemu-io -c "write -P 2 2048M 1k" a.vmdk
qemu-io -c "read -P 1 2047M 1M" -c "read -P 2 2048M 1k" a.vmdk
map --output=json a.vmdk
check a.vmdk
qemu-io -c "write -c 0 64k" a.vmdk

# streams
create -q -f vmdk -o subformat=streamOptimized a.vmdk 1000k
qemu-io -c "write -P 1 0 64k" a.vmdk
qemu-io -c "write -P 2 128k 192k" a.vmdk
qemu-io -c "write -P 3 960k 40k" a.vmdk
qemu-io -c "read -P 2 130k 100k" -c "read -P 3 999k 1k" -c "read -P 0 64k 64k" a.vmdk
map --output=json a.vmdk
qemu-io -c "write -P 3 0 64k" a.vmdk
qemu-io -c "write -c -P 3 320k 64k" a.vmdk
check a.vmdk
convert -O raw a.vmdk r
compare a.vmdk r

# streams by convert
= qemu-img create -q -f raw r 7000k
= qemu-io -f raw -c "write -P 3 1M 100k" -c "write -P 4 6M 800k" r
convert -f raw -O vmdk -o subformat=streamOptimized r a.vmdk
convert -c -f raw -O vmdk -o subformat=streamOptimized r b.vmdk
convert -c -f raw -O vmdk r c.vmdk
convert -f raw -O vmdk -S 0 r d.vmdk
compare a.vmdk r
compare -s b.vmdk d.vmdk
convert -O raw a.vmdk r2
convert -n -O vmdk r d.vmdk
convert -O qcow2 b.vmdk c.qcow2
dd -O vmdk if=r of=e.vmdk bs=1M count=2
map --output=json b.vmdk

# overlays
create -q -f vmdk base.vmdk 2M
= qemu-io -c "write -P 1 0 1M" base.vmdk
create -f vmdk -b base.vmdk -F vmdk a.vmdk
create -f vmdk -b base.vmdk -F vmdk b.vmdk 3M
create -f vmdk -b base.vmdk -F vmdk -o subformat=twoGbMaxExtentSparse c.vmdk
create -f vmdk -b base.vmdk -F vmdk -o subformat=streamOptimized d.vmdk
create -f vmdk -b base.vmdk -F vmdk -o subformat=monolithicFlat e.vmdk
create -f vmdk -b base.vmdk -F raw f.vmdk
create -f vmdk -b base.vmdk f.vmdk
create -f vmdk -b missing.vmdk -F vmdk f.vmdk
create -f vmdk -u -b base.vmdk -F vmdk g.vmdk 4M
create -f vmdk -u -b base.vmdk g.vmdk 4M
create -f vmdk -b base.vmdk -F vmdk -o zeroed_grain=on h.vmdk
info a.vmdk
info --backing-chain c.vmdk
info --output=json b.vmdk
map a.vmdk
map --output=json b.vmdk
qemu-io -c "write -P 3 5k 1k" a.vmdk
qemu-io -c "write -P 3 1000k 500k" a.vmdk
qemu-io -c "write -P 3 2000k 200k" b.vmdk
qemu-io -c "write -P 3 100k 1k" c.vmdk
qemu-io -c "write -P 3 64k 64k" d.vmdk
qemu-io -c "write -z 64k 128k" -c "write -P 3 66k 1k" h.vmdk
qemu-io -c "write -z 64k 128k" a.vmdk
map --output=json a.vmdk
map --output=json b.vmdk
map --output=json h.vmdk
convert -O raw a.vmdk a.raw
convert -O vmdk -B base.vmdk -F vmdk a.vmdk i.vmdk
compare a.vmdk i.vmdk
commit a.vmdk
map a.vmdk
rebase -u -b base.vmdk -F vmdk b.vmdk
rebase -b '' b.vmdk

# a parent that has changed
= qemu-img create -q -f vmdk base.vmdk 2M
= qemu-img create -q -f vmdk -b base.vmdk -F vmdk a.vmdk
= qemu-io -f raw -c "write -P 0x39 550 1" base.vmdk
qemu-io -c "read 128k 1k" a.vmdk
qemu-io -c "write 128k 1k" a.vmdk
qemu-io -c "write 128k 64k" a.vmdk
convert -O raw a.vmdk r
map a.vmdk
info a.vmdk

# a parent that is none
= qemu-img create -q -f vmdk base.vmdk 2M
= qemu-img create -q -f vmdk -b base.vmdk -F vmdk a.vmdk
= qemu-img create -q -f raw r 2M
qemu-io -c "read 128k 1k" --image-opts driver=vmdk,file.filename=a.vmdk,backing.driver=raw,backing.file.filename=r

# images that fail
create -q -f vmdk a.vmdk 4M
qemu-io -c "open -o driver=vmdk,file.driver=blkdebug,file.image.filename=a.vmdk,file.inject-error.0.event=none,file.inject-error.0.iotype=write" -c "write -P 1 0 1M"
info 'json:{"driver":"vmdk","file":{"driver":"blkdebug","image":{"driver":"file","filename":"a.vmdk"},"inject-error":[{"event":"none","iotype":"read"}]}}'
info blkdebug::a.vmdk
info 'json:{"driver":"vmdk","file":{"driver":"blkdebug","image":{"driver":"file","filename":"a.vmdk"},"inject-error":[{"event":"none","iotype":"read","sector":0}]}}'
info 'json:{"driver":"vmdk","file":{"driver":"blkdebug","image":{"driver":"file","filename":"a.vmdk"},"inject-error":[{"event":"none","iotype":"read","sector":26}]}}'
info 'json:{"driver":"vmdk","file":{"driver":"blkdebug","image":{"driver":"file","filename":"a.vmdk"},"inject-error":[{"event":"none","iotype":"read","sector":21}]}}'

# opened by options
create -q -f vmdk a.vmdk 4M
create -q -f vmdk -o subformat=monolithicFlat b.vmdk 4M
info --image-opts driver=vmdk,file.filename=a.vmdk
info 'json:{"driver":"vmdk","file.filename":"a.vmdk"}'
info --image-opts driver=vmdk,file.filename=a.vmdk,foo=bar
info --image-opts driver=vmdk,file.filename=b.vmdk,extents.0.filename=a.vmdk
info --image-opts driver=vmdk,file.filename=b.vmdk,extents.0.driver=raw,extents.0.file.filename=a.vmdk
info --image-opts driver=vmdk,file.filename=b.vmdk,extents.1.filename=a.vmdk
info --image-opts driver=vmdk,file.filename=b.vmdk,extents.0.driver=file,extents.0.node-name=x
info --image-opts driver=vmdk,file.filename=b.vmdk,extents.0=x
info 'json:{"driver":"vmdk","file.filename":"a.vmdk","backing":"b"}'
info -f raw a.vmdk
info -f vmdk b-flat.vmdk
info b-flat.vmdk
`;

const NAMES = `
# names
= qemu-img create -q -f vmdk -o subformat=monolithicFlat b.vmdk 2M
= qemu-img create -q -f vmdk -o subformat=twoGbMaxExtentSparse t.vmdk 2M
= qemu-img create -q -f vmdk a.vmdk 2M
info blkdebug::b.vmdk
info blkdebug::a.vmdk
info --image-opts driver=vmdk,file.driver=blkdebug,file.image.filename=b.vmdk
info --image-opts driver=vmdk,file.driver=blkdebug,file.image.filename=t.vmdk
info --image-opts driver=vmdk,file.driver=blkdebug,file.image.filename=a.vmdk,file.align=4096
info --image-opts driver=vmdk,file.driver=blkdebug,file.image.filename=t.vmdk,file.align=4096
info --image-opts driver=vmdk,file.filename=t.vmdk,file.locking=off
info --image-opts driver=vmdk,file.filename=t.vmdk,extents.0.locking=off
info --image-opts driver=vmdk,file.filename=t.vmdk,extents.0.driver=file,node-name=foo
info 'json:{"driver":"vmdk","file":{"driver":"raw","file":{"driver":"file","filename":"t.vmdk"}}}'
info --image-opts driver=copy-on-read,file.driver=vmdk,file.file.filename=t.vmdk
info --image-opts driver=raw,file.driver=vmdk,file.file.filename=t.vmdk
info --image-opts driver=raw,file.driver=vmdk,file.file.filename=a.vmdk
info --image-opts driver=vmdk,file.driver=null-co,file.size=1M,file.read-zeroes=on
map --output=json --image-opts driver=vmdk,file.filename=t.vmdk,extents.0.locking=off
convert -O vmdk -o backing_file=a.vmdk a.vmdk e.vmdk
convert -O vmdk -o backing_file=a.vmdk,backing_fmt=vmdk a.vmdk e.vmdk
convert -O vmdk -o backing_file=a.vmdk,backing_fmt=raw a.vmdk e.vmdk
convert -O vmdk -o subformat=foo a.vmdk e.vmdk
convert -O vmdk -o adapter_type=foo a.vmdk e.vmdk
convert -O vmdk -o compat6=on,hwversion=1 a.vmdk e.vmdk
convert -O vmdk -o help a.vmdk e.vmdk
convert -O vmdk -o preallocation=full a.vmdk e.vmdk
compare a.vmdk t.vmdk
compare -f vmdk a.vmdk b.vmdk
resize b.vmdk 3M
rebase -b a.vmdk -F vmdk t.vmdk
rebase -u -b '' t.vmdk
commit b.vmdk
snapshot -a x a.vmdk
amend -o compat6=on a.vmdk
measure -f vmdk -O qcow2 a.vmdk
measure -f raw -O vmdk a.vmdk
check --output=json a.vmdk
check -f raw a.vmdk
check missing.vmdk
create -f vmdk missing/a.vmdk 1M
create -f vmdk -o subformat=monolithicFlat missing/a.vmdk 1M
create -f vmdk -o subformat=twoGbMaxExtentSparse missing/a.vmdk 1M
create -f vmdk '' 1M
create -f vmdk -o subformat=monolithicFlat '' 1M
create -f vmdk -o subformat=twoGbMaxExtentSparse json:{} 1M
create -f vmdk f.vmdk -1
create -f vmdk f.vmdk 100k 1
create -f vmdk -o subformat=monolithicFlat,subformat=monolithicSparse f.vmdk 100k
create -f vmdk -b f.vmdk -F vmdk f.vmdk 1M
create -f vmdk -b a.vmdk -F vmdk -o size=1M g.vmdk
create -f vmdk -b g.vmdk -F vmdk h.vmdk
info --backing-chain h.vmdk
map h.vmdk
qemu-io -c "write -P 5 100k 1k" h.vmdk
info -U h.vmdk
`;

describe("vmdk beside qemu-img", { skip: missingTool ?? false }, () => {
  tell(CREATE, clearIdentities);
  tell(WRITE, clearIdentities);
  tell(NAMES, clearIdentities);
});
