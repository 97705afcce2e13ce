/** `resize` beside qemu-img's: output, exit codes, and the files to the byte. */

import { describe } from "node:test";
import { missingTool } from "./differential.ts";
import { tell } from "./stories.ts";

const STORIES = String.raw`
# words, sizes and options
= qemu-img create -q -f raw r.raw 1M
= qemu-img create -q -f qcow2 a.qcow2 1M
resize
resize x
resize nonex 1G
resize r.raw +1M
resize -f raw r.raw 1M
resize --shrink r.raw 1M
resize -f raw --shrink r.raw -512K
resize -f raw r.raw foo
resize r.raw -- -1k
resize -1k
resize r.raw -f raw +1k
resize -f raw r.raw
resize -f raw r.raw ''
resize a b c 1M
resize a.qcow2 0
resize a.qcow2 -10M
resize a.qcow2 -1000
resize a.qcow2 +511
resize a.qcow2 +513
resize a.qcow2 1e3
resize a.qcow2 0x200000
resize a.qcow2 9E
resize a.qcow2 8E
resize a.qcow2 +8E
resize a.qcow2 7E
resize a.qcow2 -9E
resize --preallocation=foo a.qcow2 3M
resize --preallocation a.qcow2 3M
resize -q a.qcow2 2M
resize -q a.qcow2 1M
resize --shrink a.qcow2 1M
resize a.qcow2 1M
resize a.qcow2 +0
resize --image-opts driver=qcow2,file.filename=a.qcow2 3M
resize --image-opts -f qcow2 driver=qcow2,file.filename=a.qcow2 3M
resize --object foo a.qcow2 1M
resize -f foo a.qcow2 1M
resize --shrink --preallocation=full a.qcow2 1k
resize a.qcow2 +
resize a.qcow2 -
resize a.qcow2 ++1M
resize a.qcow2 --1M
resize a.qcow2 --
resize -- a.qcow2 -1M
resize --size=1M a.qcow2
resize -1M a.qcow2
resize a.qcow2 -f
resize -x a.qcow2 1M
resize a.qcow2 -x
resize --shr a.qcow2 512
resize a.qcow2 1.5k
resize a.qcow2 0x1k
resize -fraw r.raw +100
resize -fraw r.raw +512
resize -fraw r.raw 1000
resize -fraw --shrink r.raw 1000
resize -fraw --shrink r.raw 1
resize --preallocation=metadata -fraw r.raw 2M
resize --preallocation=falloc -fraw r.raw 2M
resize --preallocation=full -fraw r.raw 3M
resize --preallocation=full -fraw r.raw 3M
resize --preallocation=off -fraw r.raw 3M

# a full image grows and shrinks
= qemu-img create -q -f qcow2 a.qcow2 1M
= qemu-io -f qcow2 -c "write 0 1M" a.qcow2
resize a.qcow2 +1M
resize --shrink a.qcow2 64k
resize --shrink a.qcow2 128k
resize a.qcow2 10G
resize a.qcow2 1T
resize --shrink a.qcow2 2G
resize --preallocation=metadata a.qcow2 2100M
resize --preallocation=falloc a.qcow2 2101M
resize --preallocation=full a.qcow2 2102M
resize --shrink a.qcow2 1M

# what is set aside lies where qemu sets it
= qemu-img create -q -f qcow2 a.qcow2 1M
= qemu-io -f qcow2 -c "write 0 1M" a.qcow2
resize --preallocation=falloc a.qcow2 2M
resize --preallocation=full a.qcow2 3M
resize --shrink a.qcow2 2100k
resize --preallocation=full a.qcow2 300M
resize --shrink a.qcow2 1M
resize --preallocation=metadata a.qcow2 3M
resize --shrink a.qcow2 1000k
resize --preallocation=falloc a.qcow2 1010k
resize --preallocation=falloc a.qcow2 2010k
check a.qcow2

# free clusters at the end, and within
= qemu-img create -q -f qcow2 a.qcow2 8M
= qemu-io -c 'write -q 0 8M' a.qcow2
= qemu-io -d unmap -c 'discard -q 0 7M' a.qcow2
resize --preallocation=metadata a.qcow2 9M
= qemu-io -d unmap -c 'discard -q 7M 2M' a.qcow2
resize --preallocation=full a.qcow2 30M
check a.qcow2

# free clusters are used first
= qemu-img create -q -f qcow2 a.qcow2 1M
= qemu-io -f qcow2 -c "write 0 1M" -c "discard 0 512k" a.qcow2
resize --preallocation=metadata a.qcow2 2M
check a.qcow2

# extended L2 entries
= qemu-img create -q -f qcow2 -o extended_l2=on a.qcow2 1000k
= qemu-io -f qcow2 -c "write 0 1000k" a.qcow2
resize --preallocation=falloc a.qcow2 2M
resize --shrink a.qcow2 768k
resize --preallocation=metadata a.qcow2 2M
resize --shrink a.qcow2 776k
resize --preallocation=full a.qcow2 2M
check a.qcow2

# the smallest clusters: refcount blocks come and go
= qemu-img create -q -f qcow2 -o cluster_size=512 a.qcow2 1000k
= qemu-io -f qcow2 -c "write 0 1000k" a.qcow2
resize --preallocation=falloc a.qcow2 10M
resize --shrink a.qcow2 1M
resize --preallocation=full a.qcow2 20M
resize --shrink a.qcow2 500k
resize --preallocation=metadata a.qcow2 20M
check a.qcow2

# a data file
= qemu-img create -q -f qcow2 -o data_file=d a.qcow2 1000k
= qemu-io -f qcow2 -c "write 0 1000k" a.qcow2
resize --preallocation=falloc a.qcow2 10M
resize --shrink a.qcow2 1M
resize --preallocation=full a.qcow2 20M
resize --shrink a.qcow2 500k
resize --preallocation=metadata a.qcow2 20M
resize a.qcow2 21M
check a.qcow2

# a raw data file
= qemu-img create -q -f qcow2 -o data_file=d,data_file_raw=on a.qcow2 1000k
= qemu-io -f qcow2 -c "write 0 1000k" a.qcow2
resize --preallocation=falloc a.qcow2 10M
resize --shrink a.qcow2 1M
resize --preallocation=full a.qcow2 20M
resize --shrink a.qcow2 500k
resize --preallocation=metadata a.qcow2 20M
resize a.qcow2 21M
check a.qcow2

# a longer backing file
= qemu-img create -q -f raw base.raw 3M
= qemu-io -f raw -c "write -P 5 0 3M" base.raw
= qemu-img create -q -f qcow2 -b base.raw -F raw a.qcow2 1M
= qemu-io -c "write 0 1M" a.qcow2
resize a.qcow2 2M
map a.qcow2
resize a.qcow2 5M
map a.qcow2
resize --preallocation=metadata a.qcow2 6M

# sizes within a cluster over a longer backing file
= qemu-img create -q -f raw base.raw 3M
= qemu-io -f raw -c "write -P 5 0 3M" base.raw
= qemu-img create -q -f qcow2 -b base.raw -F raw a.qcow2 1000k
= qemu-io -c "write 100k 800k" a.qcow2
resize a.qcow2 1001k
resize a.qcow2 1777k
resize a.qcow2 2777k
resize a.qcow2 5M
map a.qcow2
resize --shrink a.qcow2 777k
resize a.qcow2 5M
check a.qcow2

# version 2 over a longer backing file
= qemu-img create -q -f raw base.raw 3M
= qemu-io -f raw -c "write -P 5 0 3M" base.raw
= qemu-img create -q -f qcow2 -o compat=0.10 -b base.raw -F raw a.qcow2 1000k
= qemu-io -c "write 100k 800k" a.qcow2
resize a.qcow2 1001k
resize a.qcow2 1777k
resize --shrink a.qcow2 777k
resize a.qcow2 5M
check a.qcow2

# extended L2 entries over a longer backing file
= qemu-img create -q -f raw base.raw 3M
= qemu-io -f raw -c "write -P 5 0 3M" base.raw
= qemu-img create -q -f qcow2 -o extended_l2=on -b base.raw -F raw a.qcow2 1000k
= qemu-io -c "write 100k 800k" a.qcow2
resize a.qcow2 1001k
resize a.qcow2 1777k
resize --preallocation=metadata a.qcow2 1888k
map a.qcow2
resize --preallocation=falloc a.qcow2 1999k
map a.qcow2
resize --preallocation=full a.qcow2 2222k
map a.qcow2
resize --shrink a.qcow2 777k
resize a.qcow2 5M
map a.qcow2
check a.qcow2

# space set aside over a longer backing file
= qemu-img create -q -f raw base.raw 3M
= qemu-io -f raw -c "write -P 5 0 3M" base.raw
= qemu-img create -q -f qcow2 -b base.raw -F raw a.qcow2 1000k
= qemu-io -c "write 100k 800k" a.qcow2
resize --preallocation=metadata a.qcow2 1728k
resize --preallocation=falloc a.qcow2 2M
resize --preallocation=full a.qcow2 3333k
map a.qcow2
resize --shrink a.qcow2 777k
resize --preallocation=full a.qcow2 5M
map a.qcow2
check a.qcow2

# far up and down
= qemu-img create -q -f qcow2 t.qcow2 1M
= qemu-io -c "write 0 1M" t.qcow2
resize t.qcow2 10G
resize --shrink t.qcow2 1M
resize t.qcow2 40G
qemu-io -c "write 30G 64k" t.qcow2
resize --shrink t.qcow2 20G
resize --shrink t.qcow2 64k
resize t.qcow2 1P

# far up and down with the smallest clusters
= qemu-img create -q -f qcow2 -o cluster_size=512 t.qcow2 64k
= qemu-io -c "write 0 64k" t.qcow2
resize t.qcow2 10M
resize --shrink t.qcow2 1M
resize t.qcow2 1G
qemu-io -c "write 1000k 64k" t.qcow2

# nothing to set aside
= qemu-img create -q -f qcow2 t.qcow2 1M
resize --preallocation=full t.qcow2 1M
resize --preallocation=metadata --shrink t.qcow2 1M
`;

describe("resize", { skip: missingTool }, () => tell(STORIES));
