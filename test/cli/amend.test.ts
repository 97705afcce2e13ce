/** `amend` beside qemu-img's: output with progress, exit codes, and the files to the byte. */

import { describe } from "node:test";
import { missingTool } from "./differential.ts";
import { tell } from "./stories.ts";

const STORIES = String.raw`
# words and options
= qemu-img create -q -f qcow2 -o cluster_size=4k a.qcow2 1M
= qemu-img create -q -f qcow2 -o cluster_size=4k,compat=0.10 old.qcow2 1M
= qemu-img create -q -f raw r.raw 1M
amend
amend a.qcow2
amend -o help
amend -f qcow2 -o help
amend -f qcow2 -o help a.qcow2
amend -o help a.qcow2
amend -p -o help a.qcow2
amend -f raw -o help
amend -p -f raw -o help
amend -f raw -o size=1M r.raw
amend -o size=1M r.raw
amend -f foo -o help
amend -p -f qcow2 -o help a b
amend -p -o help a b
amend -p -f qcow2 -o help=on,size=1M x
amend -p -f qcow2 -o size=1M,help x
amend -f qcow2 -o size=1M --image-opts x
amend -p -o size=1M --image-opts x
amend -p -o size=1M nonex
amend --force -o size=3M a.qcow2
amend  -o size=3M --object foo a.qcow2
amend -o size=1M -o compat=1.1 -p a.qcow2
amend -o lazy_refcounts -o size= a.qcow2
amend -o nolazy_refcounts a.qcow2
amend -p -o size=5M -f raw a.qcow2
amend -p -f raw -o help=on a.qcow2
amend -f host_device -o help
amend -f file -o help
amend -f compress -o help
amend -t foo -o size=2M a.qcow2
amend -t none -o size=2M a.qcow2
amend -t writethrough -o size=2M a.qcow2
amend -p -t foo -o size=2M a.qcow2
amend -p -q -f qcow2 -o size=2M a.qcow2
amend -p -o foo=bar a.qcow2
amend -p -o size=1M a b
amend -o compat=foo a.qcow2
amend -o cluster_size=512 a.qcow2
amend -o cluster_size=64k a.qcow2
amend -o preallocation=metadata a.qcow2
amend -o encryption=on a.qcow2
amend -o encrypt.format=luks a.qcow2
amend -o extended_l2=on a.qcow2
amend -o compression_type=zstd a.qcow2
amend -o size=1 a.qcow2
amend -o size=0 a.qcow2
amend -o size=20E a.qcow2
amend -o size=8E a.qcow2
amend -o size=7E a.qcow2
amend -o size=0x1k a.qcow2
amend -o size=10G a.qcow2
amend -o backing_file=foo a.qcow2
amend -o backing_fmt=raw a.qcow2
amend -o backing_file= a.qcow2
amend -o data_file=x a.qcow2
amend -o data_file= a.qcow2
amend -o data_file_raw=on a.qcow2
amend -o data_file_raw=off a.qcow2
amend -o lazy_refcounts=on a.qcow2
amend -o lazy_refcounts=off a.qcow2
amend -o refcount_bits=3 a.qcow2
amend -o refcount_bits=128 a.qcow2
amend -o refcount_bits=0 a.qcow2
amend -o refcount_bits=-1 a.qcow2
amend -o refcount_bits=foo a.qcow2
amend -p -o refcount_bits=16 a.qcow2
amend -p -o refcount_bits=8 a.qcow2
amend -p -o refcount_bits=8 old.qcow2
amend -o lazy_refcounts=on old.qcow2
amend -o foo=bar a.qcow2
amend -o '' a.qcow2
amend -o , a.qcow2
amend -o a, a.qcow2
amend -o size=1M,size=2M a.qcow2
amend -p -o compat=0.10 a.qcow2
amend -p -o compat=0.10,refcount_bits=16 a.qcow2
amend -p -o compat=1.1 a.qcow2
amend -p -o compat=1.1 old.qcow2
amend -p -o compat=0.10 old.qcow2
amend -p -o compat=1.1,refcount_bits=1,lazy_refcounts=on,size=3G old.qcow2
amend -p -o compat=0.10,refcount_bits=16 old.qcow2
amend -p -o compat=v3 old.qcow2
amend -p -o compat=v2 old.qcow2
amend -o size=1,compat=foo a.qcow2
amend -o size=1,refcount_bits=3 a.qcow2
amend -o backing_file=x,data_file=x a.qcow2
amend -o data_file_raw=on,refcount_bits=3 a.qcow2
amend -o refcount_bits=8,backing_file=x a.qcow2
amend -o encrypt.state=foo,compat=foo a.qcow2
amend -o encrypt.keyslot=foo a.qcow2
amend -o encrypt.iter-time=3 a.qcow2
amend -o compat=0.10,lazy_refcounts=on a.qcow2
amend -o compat=0.10,refcount_bits=8 a.qcow2
amend -o lazy_refcounts=on,size=1 a.qcow2
amend -o compat=0.10,size=1 a.qcow2
amend --image-opts -o lazy_refcounts=on driver=qcow2,file.filename=a.qcow2

# zero clusters become data or nothing
= qemu-img create -q -f qcow2 t.qcow2 1M
= qemu-io -c "write 0 64k" -c "write -z 64k 64k" -c "write -z 0 64k" -c "write 128k 64k" -c "write -z -u 256k 128k" t.qcow2
amend -p -o compat=0.10 t.qcow2
check t.qcow2

# zero clusters over a backing file become data
= qemu-img create -q -f raw back.raw 1M
= qemu-img create -q -f qcow2 -b back.raw -F raw t.qcow2 1M
= qemu-io -c "write 0 64k" -c "write -z 64k 64k" -c "write -z 0 64k" -c "write 128k 64k" -c "write -z -u 256k 128k" t.qcow2
amend -p -o compat=0.10 t.qcow2
check t.qcow2

# widths of refcounts, an empty image
= qemu-img create -q -f qcow2 -o cluster_size=512 t.qcow2 64k
amend -p -o refcount_bits=64 t.qcow2
amend -p -o refcount_bits=1 t.qcow2
amend -p -o refcount_bits=2 t.qcow2
amend -p -o refcount_bits=8 t.qcow2
amend -p -o refcount_bits=4 t.qcow2
amend -p -o refcount_bits=32 t.qcow2
amend -p -o refcount_bits=16 t.qcow2

# widths of refcounts, two blocks
= qemu-img create -q -f qcow2 -o cluster_size=512 t.qcow2 200k
= qemu-io -c "write 0 200k" t.qcow2
amend -p -o refcount_bits=64 t.qcow2
amend -p -o refcount_bits=1 t.qcow2
amend -p -o refcount_bits=2 t.qcow2
amend -p -o refcount_bits=8 t.qcow2
amend -p -o refcount_bits=4 t.qcow2
amend -p -o refcount_bits=32 t.qcow2
amend -p -o refcount_bits=16 t.qcow2
check t.qcow2

# widths of refcounts, a table of several clusters
= qemu-img create -q -f qcow2 -o cluster_size=512,refcount_bits=64 t.qcow2 5M
= qemu-io -c "write 0 5M" t.qcow2
amend -p -o refcount_bits=1 t.qcow2
amend -p -o refcount_bits=64 t.qcow2
amend -p -o refcount_bits=16 t.qcow2
check t.qcow2
amend -p -o refcount_bits=64 t.qcow2

# widths of refcounts with holes
= qemu-img create -q -f qcow2 -o cluster_size=1k,refcount_bits=1 t.qcow2 200M
= qemu-io -c "write 100M 1M" -c "write 0 1k" -c "write 150M 2M" -c "discard 100M 1M" -c "write 3M 8M" t.qcow2
amend -p -o refcount_bits=64 t.qcow2
amend -p -o refcount_bits=1 t.qcow2
amend -p -o refcount_bits=32 t.qcow2
check t.qcow2

# over a backing file, both at once
= qemu-img create -q -f qcow2 -o cluster_size=4k -b /dev/null -F raw t.qcow2 1M
amend -p -o refcount_bits=1 t.qcow2
amend -p -o compat=0.10,refcount_bits=16 t.qcow2

# many L1 entries
= qemu-img create -q -f qcow2 t.qcow2 1T
= qemu-io -c "write 0 64k" -c "write 800G 64k" -c "write -z 500G 1M" t.qcow2
amend -p -o compat=0.10 t.qcow2
amend -p -o compat=1.1 t.qcow2

# no guest data at all
= qemu-img create -q -f qcow2 t.qcow2 0
amend -p -o compat=0.10 t.qcow2
amend -p -o compat=1.1 t.qcow2
amend -p -o size=1M t.qcow2

# a data file by another name
= qemu-img create -q -f qcow2 -o data_file=df.raw t.qcow2 1M
amend -p -o compat=0.10 t.qcow2
amend -p -o size=2M t.qcow2
= qemu-img convert -f raw -O raw df.raw df2.raw
amend -p -o data_file=df2.raw t.qcow2
amend -p -o data_file_raw=on t.qcow2
amend -p -o data_file= t.qcow2
info t.qcow2
amend -p -o size=3M t.qcow2

# a raw data file
= qemu-img create -q -f qcow2 -o cluster_size=4k,data_file=df.raw,data_file_raw=on t.qcow2 1M
amend -p -o data_file_raw=on t.qcow2
amend -p -o refcount_bits=8,data_file_raw=off t.qcow2
amend -p -o data_file_raw=on t.qcow2
amend -p -o compat=0.10 t.qcow2

# extended L2 entries can not be said in version 2
= qemu-img create -q -f qcow2 -o cluster_size=16k,extended_l2=on t.qcow2 1M
amend -p -o compat=0.10 t.qcow2
amend -p -o refcount_bits=8 t.qcow2
amend -p -o size=2M t.qcow2

# zstd without compressed clusters
= qemu-img create -q -f qcow2 -o compression_type=zstd t.qcow2 1M
amend -p -o compat=0.10 t.qcow2

# zstd with compressed clusters
= qemu-img create -q -f qcow2 -o compression_type=zstd t.qcow2 1M
= qemu-io -c "write -c 0 64k" t.qcow2
amend -p -o compat=0.10 t.qcow2

# lazy refcounts
= qemu-img create -q -f qcow2 -o cluster_size=4k,lazy_refcounts=on t.qcow2 1M
amend -p -o compat=0.10 t.qcow2
amend -p -o lazy_refcounts=off t.qcow2
amend -p -o compat=1.1,lazy_refcounts=on t.qcow2
amend -p -o size=2M t.qcow2
amend -p -o refcount_bits=8 t.qcow2
amend -p -o lazy_refcounts=off,size=3M t.qcow2
amend -p -o lazy_refcounts=on,size=4M t.qcow2
info t.qcow2
`;

describe("amend", { skip: missingTool }, () => tell(STORIES));
