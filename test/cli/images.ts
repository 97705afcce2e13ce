/** The images that the tests of reading commands look at, made by QEMU's own tools. */

import { spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { words } from "./differential.ts";

/** Lines for qemu-img, or for qemu-io where they start with its name. */
const RAW_IMAGES = String.raw`
create -q -f raw base.raw 3M
qemu-io -f raw -c 'write -P 1 0 128k' -c 'write -P 2 1M 64k' base.raw
create -q -f raw hole.raw 10M
create -q -f raw same.raw 3M
qemu-io -f raw -c 'write -P 1 0 128k' -c 'write -P 2 1M 64k' same.raw
create -q -f raw late.raw 10M
qemu-io -f raw -c 'write -P 1 0 512' -c 'write -P 5 3000001 1' late.raw
create -q -f raw long.raw 20M
qemu-io -f raw -c 'write -P 1 0 512' -c 'write -P 7 15000003 700' long.raw
create -q -f raw far.raw 20M
qemu-io -f raw -c 'write -P 7 15000003 700' far.raw
create -q -f raw zeroes.raw 3M
qemu-io -f raw -c 'write -P 0 0 128k' -c 'write -P 0 1M 64k' zeroes.raw
`;

const QCOW2_IMAGES = String.raw`
create -q -f qcow2 -b base.raw -F raw mid.qcow2 4M
qemu-io -c 'write -P 3 64k 192k' -c 'write -z 512k 64k' -c 'write -z -u 640k 64k' -c 'discard 704k 64k' mid.qcow2
create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2 5M
qemu-io -c 'write -P 3 128k 64k' -c 'write -c -P 5 256k 64k' -c 'write 4M 64k' top.qcow2
create -q -f qcow2 -b ../top.qcow2 -F qcow2 sub/over.qcow2
create -q -f qcow2 empty.qcow2 10M
create -q -f qcow2 zero-length.qcow2 0
create -q -f qcow2 short.qcow2 4k
create -q -f qcow2 -o preallocation=metadata prealloc.qcow2 1M
create -q -f qcow2 -o data_file=data.raw,data_file_raw=on external.qcow2 1M
qemu-io -c 'write 64k 64k' external.qcow2
create -q -f qcow2 -o extended_l2=on -b base.raw -F raw subclusters.qcow2 3M
qemu-io -c 'write 4k 2k' -c 'write 1032k 8k' -c 'write -z 66k 2k' subclusters.qcow2
create -q -f qcow2 -o compat=0.10,cluster_size=4k old.qcow2 10M
qemu-io -c 'write -P 1 0 512' -c 'write -c -P 9 64k 64k' old.qcow2
create -q -f qcow2 -o compression_type=zstd,refcount_bits=1 zstd.qcow2 1536
create -q -f qcow2 -o lazy_refcounts=on lazy.qcow2 1M
create -q -f qcow2 -u -b gone.raw -F raw broken-chain.qcow2 1M
create -q -f qcow2 snapshots.qcow2 1M
snapshot -c one snapshots.qcow2
snapshot -c 'a long name for a snapshot' snapshots.qcow2
create -q -f qcow2 bitmaps.qcow2 1M
bitmap --add bitmaps.qcow2 first
bitmap --add -g 128k --disable bitmaps.qcow2 second
create -q -f qcow2 loop.qcow2 1M
rebase -u -b loop.qcow2 -F qcow2 loop.qcow2
create -q -f qcow2 loop-a.qcow2 1M
create -q -f qcow2 -b loop-a.qcow2 -F qcow2 loop-b.qcow2
rebase -u -b loop-b.qcow2 -F qcow2 loop-a.qcow2
create -q -f qcow2 zeroed.qcow2 10M
qemu-io -c 'write -z 0 64k' -c 'write -P 0 1M 64k' zeroed.qcow2
create -q -f qcow2 data.qcow2 1M
qemu-io -c 'write -P 0 0 1M' data.qcow2
create -q -f qcow2 packed.qcow2 1M
qemu-io -c 'write -c -P 0 0 64k' -c 'write -P 0 64k 960k' packed.qcow2
create -q -f qcow2 tail.qcow2 20M
qemu-io -c 'write -P 1 12346k 3k' tail.qcow2
create -q -f qcow2 tail-zero.qcow2 20M
qemu-io -c 'write -P 0 12346k 3k' tail-zero.qcow2
`;

export function makeRawImages(directory: string): void {
  runAll(RAW_IMAGES, directory);
  fs.writeFileSync(path.join(directory, "odd.raw"), Buffer.concat([Buffer.from("x"), Buffer.alloc(999)]));
  fs.writeFileSync(path.join(directory, "empty.raw"), "");
  fs.mkdirSync(path.join(directory, "sub"));
  fs.copyFileSync(path.join(directory, "base.raw"), path.join(directory, "a name, with commas.raw"));
}

/** On top of the raw ones. */
export function makeQcow2Images(directory: string): void {
  runAll(QCOW2_IMAGES, directory);
  // Killed with lazy refcounts on: the image is left dirty.
  runTool("qemu-io", ["-c", "write -P 1 0 64k", "-c", "abort", "lazy.qcow2"], directory, true);
  makeDamaged(directory);
  makeRichSnapshots(directory);
}

/** Snapshots with VM state and clock, the first without the instruction count that came with QEMU 5.2. */
function makeRichSnapshots(directory: string): void {
  const image = fs.readFileSync(path.join(directory, "snapshots.qcow2"));
  const table = Number(image.readBigUInt64BE(64));
  const EXTRA = 40;
  const end = table + 512;
  // 16 instead of 24 bytes of extra data: what follows moves down.
  image.writeUInt32BE(16, table + 36);
  image.copy(image, table + EXTRA + 16, table + EXTRA + 24, end);
  image.writeBigUInt64BE(3_723_004_999_999n, table + 24);
  // Entries are a multiple of 8 bytes long; the first has an ID of 1 and a name of 3 bytes.
  const second = table + EXTRA + 16 + 8;
  image.writeBigUInt64BE(400_000_123_456_789n, second + 24);
  image.writeBigUInt64BE(5_500_000_000n, second + EXTRA);
  image.writeBigUInt64BE(123_456_789_012n, second + EXTRA + 16);
  fs.writeFileSync(path.join(directory, "rich-snapshots.qcow2"), image);
}

/** Images with a leak, with a cluster whose refcount is too low, with both, and one that is cut off. */
function makeDamaged(directory: string): void {
  runAll(
    String.raw`
create -q -f qcow2 sound.qcow2 4M
qemu-io -c 'write 0 64k' -c 'write 1M 64k' -c 'write 64k 64k' -c 'write -c 2M 64k' -c 'write -c -P 7 3M 64k' sound.qcow2
`,
    directory,
  );
  const sound = fs.readFileSync(path.join(directory, "sound.qcow2"));
  const refcountBlock = 0x20000;
  const damaged = (name: string, change: (image: Buffer) => Buffer) =>
    fs.writeFileSync(path.join(directory, name), change(Buffer.from(sound)));
  const withRefcount = (image: Buffer, cluster: number, refcount: number) => {
    image.writeUInt16BE(refcount, refcountBlock + 2 * cluster);
    return image;
  };
  const longer = (image: Buffer) => Buffer.concat([image, Buffer.alloc(1024 * 1024 - image.length)]);
  damaged("leak.qcow2", (image) => withRefcount(longer(image), 12, 1));
  damaged("corrupt.qcow2", (image) => withRefcount(image, 5, 0));
  damaged("both.qcow2", (image) => withRefcount(withRefcount(longer(image), 12, 1), 5, 0));
  damaged("cut.qcow2", (image) => image.subarray(0, 100 * 1024));
}

function runAll(lines: string, directory: string): void {
  for (const line of lines.split("\n").filter((text) => text !== "")) {
    const [first = "", ...rest] = words(line);
    if (first === "qemu-io") runTool(first, rest, directory, false);
    else runTool("qemu-img", [first, ...rest], directory, false);
  }
}

function runTool(tool: string, args: readonly string[], cwd: string, mayFail: boolean): void {
  const { status, stdout, stderr } = spawnSync(tool, args, { cwd, encoding: "utf8" });
  if (status !== 0 && !mayFail) throw new Error(`${tool} ${args.join(" ")}: ${stdout}${stderr}`);
}
