#!/bin/bash
# Makes images/ again: small images by every producer at hand, and images/manifest.json, which says how each was made,
# its virtual size and the SHA-256 of its guest content (what qemu-img reads, not what bdrv reads).
#
# Names carry the producer's version, so run on another system this adds files beside the old ones: remove those
# that are no longer wanted. Dates and UUIDs are fixed where the producer lets us; mke2fs does not for the change times of
# inodes, so digests of ext contents differ each time.
set -euo pipefail

need() {
  for tool in "$@"; do
    command -v "$tool" >/dev/null || missing+=("$tool")
  done
}
missing=()
need qemu-img qemu-io mke2fs e2image nbdkit nbdcopy mkfs.fat mcopy xorriso mksquashfs mkfs.erofs sfdisk node
if [ ${#missing[@]} -gt 0 ]; then
  echo "make-images: missing: ${missing[*]}" >&2
  echo "On Debian: apt-get install qemu-utils e2fsprogs nbdkit libnbd-bin dosfstools mtools xorriso squashfs-tools erofs-utils fdisk" >&2
  exit 1
fi

images=$(cd "$(dirname "$0")/.." && pwd)/images
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export LC_ALL=C TZ=UTC SOURCE_DATE_EPOCH=1700000000 E2FSPROGS_FAKE_TIME=1700000000

# The commands since the last image, and the manifest's rows: name, format, what, commands, companions.
log=$work/.log rows=$work/.rows
: >"$log"
: >"$rows"

run() {
  printf '%s\n' "$*" >>"$log"
  "$@" >"$work/.out" 2>&1 || { cat "$work/.out" >&2; exit 1; }
}

# image NAME FORMAT WHAT [COMPANION...]: what the commands since the last one have made.
image() {
  local name=$1 format=$2 what=$3 file
  shift 3
  for file in "$name" "$@"; do
    cp --sparse=always "$file" "$images/$file"
    chmod 644 "$images/$file"
  done
  printf '%s\0%s\0%s\0%s\0%s\0' "$name" "$format" "$what" "$(cat "$log")" "$*" >>"$rows"
  : >"$log"
}

version() { { "$@" 2>&1 || true; } | grep -oE -m 1 '[0-9]+\.[0-9]+' | head -n 1; }
qemu=qemu-img-$(version qemu-img --version)
ext=mke2fs-$(version mke2fs -V)
e2i=e2image-$(version e2image -V)
fat=mkfs.fat-$(version mkfs.fat --help)
iso=xorriso-$(version xorriso -version)
squash=mksquashfs-$(version mksquashfs -version)
erofs=mkfs.erofs-$(version mkfs.erofs --version)
fdisk=sfdisk-$(version sfdisk --version)
nbd=nbdkit-$(version nbdkit --version)

# Real files to fill the file systems with: licence texts, which anyone may pass on.
mkdir -p tree/doc
cp -L /usr/share/common-licenses/{Apache-2.0,MPL-2.0,BSD} tree/doc
find tree -exec touch -h -d @1700000000 {} +
uuid=62647276-0000-4000-8000-000000000001

# Raw images by programs that write file systems and partition tables.
run mke2fs -q -F -t ext2 -b 1024 -N 32 -m 0 -L bdrv -U $uuid -E hash_seed=$uuid,root_owner=0:0 -d tree $ext-ext2.raw 160k
image $ext-ext2.raw raw "ext2 with 1 KiB blocks"
run mke2fs -q -F -t ext4 -b 1024 -N 32 -m 0 -O ^has_journal -U $uuid -E hash_seed=$uuid,root_owner=0:0 -d tree $ext-ext4.raw 192k
image $ext-ext4.raw raw "ext4 with extents, no journal"
run mkfs.fat --invariant -n BDRV -C $fat-fat12.raw 160
run mcopy -m -s -i $fat-fat12.raw tree/doc ::doc
image $fat-fat12.raw raw "FAT12, a floppy of 160 KiB"
run xorriso -as mkisofs -quiet -no-pad -J -r -V BDRV -o $iso-iso9660.raw tree
image $iso-iso9660.raw raw "ISO 9660 with Joliet and Rock Ridge; no multiple of 64 KiB"
run mksquashfs tree $squash.raw -quiet -no-progress -all-root
image $squash.raw raw "squashfs, compressed: nothing left to gain"
run mkfs.erofs -zlz4hc -T 1700000000 -U $uuid --all-root $erofs-lz4hc.raw tree
image $erofs-lz4hc.raw raw "EROFS with lz4hc"
run truncate -s 128k $fdisk-gpt.raw
printf 'label: gpt\nlabel-id: %s\nfirst-lba: 34\nstart=40, size=64, type=linux, uuid=%s, name="root"\n' $uuid $uuid >gpt.sfdisk
printf 'cat gpt.sfdisk  # %s\n' "$(tr '\n' ';' <gpt.sfdisk)" >>"$log"
printf 'sfdisk -q %s <gpt.sfdisk\n' $fdisk-gpt.raw >>"$log"
sfdisk -q $fdisk-gpt.raw <gpt.sfdisk
image $fdisk-gpt.raw raw "GPT with one partition, mostly holes"
run nbdkit -U - partitioning partition-type=mbr alignment=512 $fat-fat12.raw --run "nbdcopy \"\$uri\" $nbd-mbr.raw"
image $nbd-mbr.raw raw "MBR around the FAT12 image; made over NBD"

# qcow2 by e2image, which has a writer of its own: clusters of 1 KiB, version 2, and it leaks two clusters.
run mke2fs -q -F -t ext4 -b 1024 -N 64 -U $uuid -E hash_seed=$uuid,root_owner=0:0 -d tree disk.raw 4M
keep=$(cat "$log")
run e2image -Q disk.raw $e2i-metadata.qcow2
image $e2i-metadata.qcow2 qcow2 "the metadata of an ext4, file contents left out"
printf '%s\n' "$keep" >"$log"
run e2image -Qa disk.raw $e2i-all.qcow2
image $e2i-all.qcow2 qcow2 "an ext4, whole"

# qcow2 by qemu-img: the same disk in every variant.
disk() { printf '%s\n' "$keep" >"$log"; }
disk
run qemu-img convert -f raw -O qcow2 disk.raw $qemu-v3.qcow2
image $qemu-v3.qcow2 qcow2 "qemu-img's defaults"
disk
run qemu-img convert -f raw -O qcow2 -o compat=0.10,cluster_size=4k disk.raw $qemu-v2.qcow2
image $qemu-v2.qcow2 qcow2 "version 2, clusters of 4 KiB"
disk
run qemu-img convert -f raw -O qcow2 -o cluster_size=512 disk.raw $qemu-cluster-512.qcow2
image $qemu-cluster-512.qcow2 qcow2 "the smallest clusters: many L2 tables"
disk
run qemu-img convert -f raw -O qcow2 -o cluster_size=4k,refcount_bits=1 disk.raw $qemu-refcount-1.qcow2
image $qemu-refcount-1.qcow2 qcow2 "refcounts of 1 bit"
disk
run qemu-img convert -f raw -O qcow2 -o cluster_size=4k,refcount_bits=64 disk.raw $qemu-refcount-64.qcow2
image $qemu-refcount-64.qcow2 qcow2 "refcounts of 64 bits"
disk
run qemu-img convert -c -f raw -O qcow2 -o cluster_size=16k disk.raw $qemu-zlib.qcow2
image $qemu-zlib.qcow2 qcow2 "compressed with zlib"
disk
run qemu-img convert -c -f raw -O qcow2 -o compression_type=zstd,cluster_size=16k disk.raw $qemu-zstd.qcow2
image $qemu-zstd.qcow2 qcow2 "compressed with zstd"
disk
run qemu-img convert -f raw -O qcow2 -o extended_l2=on,cluster_size=16k disk.raw $qemu-extended-l2.qcow2
run qemu-io -c 'write -P 0x42 1M 512' -c 'write -z 1100k 512' $qemu-extended-l2.qcow2
image $qemu-extended-l2.qcow2 qcow2 "extended L2: subclusters of 512 bytes, data, zero and unallocated ones"
run qemu-img convert -f raw -O qcow2 -o cluster_size=4k,data_file=$qemu-data-file-raw.data,data_file_raw=on $ext-ext4.raw $qemu-data-file-raw.qcow2
image $qemu-data-file-raw.qcow2 qcow2 "the guest's data in a raw file beside it" $qemu-data-file-raw.data
run qemu-img create -q -f qcow2 -o cluster_size=4k,data_file=$qemu-data-file.data $qemu-data-file.qcow2 128k
run qemu-io -c 'write -P 1 8k 12k' -c 'write -P 2 100k 8k' -c 'write -z 104k 4k' $qemu-data-file.qcow2
image $qemu-data-file.qcow2 qcow2 "a data file that is not raw: zero clusters stand only in the L2 table" $qemu-data-file.data
run qemu-img create -q -f qcow2 -o cluster_size=4k $qemu-zeroes.qcow2 1M
run qemu-io -c 'write -P 3 0 64k' -c 'write -z 16k 8k' -c 'write -z -u 32k 8k' -c 'discard 48k 4k' -c 'write -z 512k 64k' $qemu-zeroes.qcow2
image $qemu-zeroes.qcow2 qcow2 "zero clusters, allocated and not; one cluster discarded"
run qemu-img create -q -f qcow2 -o cluster_size=4k,preallocation=metadata $qemu-preallocated.qcow2 64k
run qemu-io -c 'write -P 4 10k 3k' $qemu-preallocated.qcow2
image $qemu-preallocated.qcow2 qcow2 "metadata preallocated"
run qemu-img create -q -f qcow2 -o cluster_size=4k,lazy_refcounts=on $qemu-dirty.qcow2 256k
printf "qemu-io -c 'write -P 5 20k 8k' -c abort %s  # ends by SIGABRT\n" $qemu-dirty.qcow2 >>"$log"
(ulimit -c 0; qemu-io -c 'write -P 5 20k 8k' -c abort $qemu-dirty.qcow2 >/dev/null 2>&1) 2>/dev/null || true
image $qemu-dirty.qcow2 qcow2 "lazy refcounts, left by a crash: dirty, refcounts behind"

# Snapshots, bitmaps, a chain of three.
run qemu-img create -q -f qcow2 -o cluster_size=4k $qemu-snapshots.qcow2 256k
run qemu-io -c 'write -P 6 0 32k' $qemu-snapshots.qcow2
run qemu-img snapshot -c first $qemu-snapshots.qcow2
run qemu-io -c 'write -P 7 16k 32k' $qemu-snapshots.qcow2
run qemu-img snapshot -c 'second, with a longer name' $qemu-snapshots.qcow2
run qemu-io -c 'write -P 8 40k 4k' -c 'write -z 0 4k' $qemu-snapshots.qcow2
image $qemu-snapshots.qcow2 qcow2 "two internal snapshots"
run qemu-img create -q -f qcow2 -o cluster_size=4k $qemu-bitmaps.qcow2 1M
run qemu-img bitmap --add -g 8k $qemu-bitmaps.qcow2 backup-0
run qemu-io -c 'write -P 9 64k 20k' $qemu-bitmaps.qcow2
run qemu-img bitmap --add --disable $qemu-bitmaps.qcow2 backup-1
image $qemu-bitmaps.qcow2 qcow2 "two dirty bitmaps, one enabled and with content, one disabled"
run qemu-img convert -f raw -O qcow2 -o cluster_size=4k $ext-ext4.raw $qemu-chain-base.qcow2
image $qemu-chain-base.qcow2 qcow2 "the base of the chain"
run qemu-img create -q -f qcow2 -F qcow2 -b $qemu-chain-base.qcow2 -o cluster_size=4k $qemu-chain-middle.qcow2 256k
run qemu-io -c 'write -P 10 30k 10k' -c 'write -z 60k 8k' $qemu-chain-middle.qcow2
image $qemu-chain-middle.qcow2 qcow2 "the middle of the chain, longer than its backing file"
run qemu-img create -q -f qcow2 -F qcow2 -b $qemu-chain-middle.qcow2 -o compat=0.10,cluster_size=512 $qemu-chain-top.qcow2
run qemu-io -c 'write -P 11 33k 1k' -c 'write -P 12 200k 5k' $qemu-chain-top.qcow2
image $qemu-chain-top.qcow2 qcow2 "the top of a chain of three, with other clusters than those below"
run qemu-img create -q -f qcow2 -F raw -b $ext-ext2.raw -o cluster_size=4k $qemu-backing-raw.qcow2
run qemu-io -c 'write -P 13 100k 4k' $qemu-backing-raw.qcow2
image $qemu-backing-raw.qcow2 qcow2 "an overlay of a raw file system"

node --input-type=module - "$images" "$rows" <<'JS'
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import fs from "node:fs";

const [, , images, rows] = process.argv;
process.chdir(images);
const fields = fs.readFileSync(rows, "utf8").split("\0");
const entries = [];
for (let i = 0; i + 5 <= fields.length; i += 5) {
  const [name, format, what, commands, companions] = fields.slice(i, i + 5);
  const qemuImg = (...args) => execFileSync("qemu-img", args, { encoding: "utf8" });
  const info = JSON.parse(qemuImg("info", "-f", format, "--output=json", name));
  const raw = `${rows}.raw`;
  qemuImg("convert", "-f", format, "-O", "raw", name, raw);
  const sha256 = createHash("sha256").update(fs.readFileSync(raw)).digest("hex");
  entries.push({
    name,
    what,
    format,
    virtualSize: info["virtual-size"],
    sha256,
    ...(companions ? { companions: companions.split(" ") } : {}),
    commands: commands.trim().split("\n"),
  });
}
fs.writeFileSync("manifest.json", `${JSON.stringify(entries, undefined, 2)}\n`);
console.log(`${entries.length} images`);
JS
