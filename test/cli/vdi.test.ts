/** VDI images as qemu-img and qemu-io tell of them, both tools on the same bytes. */

import fs from "node:fs";
import path from "node:path";
import { describe } from "node:test";
import { missingTool } from "./differential.ts";
import { tell } from "./stories.ts";

/** An image's own UUID, and that of its last snapshot. */
const UUIDS_OFFSET = 392;
const UUIDS_BYTES = 32;

/** UUIDs are random. */
function clearUuids(directory: string): void {
  for (const name of fs.readdirSync(directory)) {
    if (!name.endsWith(".vdi")) continue;
    const fd = fs.openSync(path.join(directory, name), "r+");
    if (fs.fstatSync(fd).size >= UUIDS_OFFSET + UUIDS_BYTES)
      fs.writeSync(fd, new Uint8Array(UUIDS_BYTES), 0, UUIDS_BYTES, UUIDS_OFFSET);
    fs.closeSync(fd);
  }
}

const CREATE = `
# create
create -f vdi -o help
create -f vdi -o help a.vdi
create -f vdi a.vdi 10M
create -f vdi b.vdi 3000001
create -f vdi c.vdi 0
create -f vdi -o static=on d.vdi 3M
create -f vdi -o static=off e.vdi 1
create -f vdi -o static f.vdi 1025k
create -f vdi -o static=maybe g.vdi 1M
create -f vdi -o statics=on g.vdi 1M
create -f vdi -o preallocation=full h.vdi 1M
create -f vdi -o size=5M j.vdi
create -f vdi k.vdi
create -f vdi -b a.vdi k.vdi 1M
create -f vdi -o backing_file=a.vdi k.vdi 1M
create -f vdi n.vdi 64G
info a.vdi
info b.vdi
info --output=json c.vdi
info d.vdi
info --output=json e.vdi
map d.vdi
map --output=json f.vdi
check a.vdi
check c.vdi
check --output=json d.vdi
check -r all d.vdi
check -r leaks d.vdi
measure -O vdi --size 1M
resize a.vdi 20M
resize --shrink a.vdi 1M
amend -f vdi -o help
amend -f vdi -o static=on a.vdi
snapshot -l a.vdi
snapshot -c one a.vdi
commit a.vdi
rebase -u -b b.vdi a.vdi
convert -c -O vdi a.vdi z.vdi
bitmap --add a.vdi x
`;

const WRITE = `
# blocks come in the order of the writes
create -q -f vdi a.vdi 5000k
qemu-io -c "write -P 1 3M 1k" a.vdi
qemu-io -c "write -P 2 1023k 2k" a.vdi
map --output=json a.vdi
qemu-io -c "write -P 3 0 4M" a.vdi
qemu-io -c "write -P 4 4999k 1k" a.vdi
qemu-io -c "write -z 1M 1M" -c "discard 2M 1M" -c "read -P 0 1M 1M" a.vdi
qemu-io -c "write -P 5 5000k 1" a.vdi
map a.vdi
map --output=json a.vdi
check a.vdi
qemu-io -c map -c "alloc 0 5000k" -c length -c info a.vdi
convert -O vdi a.vdi b.vdi
compare a.vdi b.vdi
info b.vdi

# zeroes, and what is unaligned
create -q -f vdi a.vdi 4M
qemu-io -c "write -z 0 4M" a.vdi
qemu-io -c "write -z -u 1M 4k" a.vdi
qemu-io -c "write -P 9 2097151 2" a.vdi
qemu-io -c "writev -P 7 100 200 300" a.vdi
qemu-io -c "aio_write -P 6 3M 4k" -c aio_flush -c flush a.vdi
map --output=json a.vdi
qemu-io -c "write -c 0 1M" a.vdi

# static images
create -q -f vdi -o static=on a.vdi 5000k
qemu-io -c "write -P 1 3M 1k" a.vdi
map --output=json a.vdi
qemu-io -c map a.vdi
convert -O raw a.vdi a.raw
convert -O vdi -o static=on a.raw b.vdi
compare a.vdi b.vdi
check b.vdi

# convert
= qemu-img create -q -f raw r 7000k
= qemu-io -f raw -c "write -P 3 1M 100k" -c "write -P 4 6M 800k" r
convert -f raw -O vdi r a.vdi
convert -f raw -O vdi -S 0 r b.vdi
convert -f raw -O vdi -o static=on r c.vdi
compare a.vdi r
compare -s b.vdi c.vdi
convert -O raw a.vdi r2
convert -n -O vdi r b.vdi
convert -O qcow2 c.vdi c.qcow2
dd -O vdi if=r of=d.vdi bs=1M count=2
info d.vdi

# an image that fails
create -q -f vdi a.vdi 4M
qemu-io -c "open -o driver=vdi,file.driver=blkdebug,file.image.filename=a.vdi,file.inject-error.0.event=none,file.inject-error.0.iotype=write" -c "write -P 1 0 1M"
info 'json:{"driver":"vdi","file":{"driver":"blkdebug","image":{"driver":"file","filename":"a.vdi"},"inject-error":[{"event":"none","iotype":"read"}]}}'

# opened by options
create -q -f vdi a.vdi 4M
info --image-opts driver=vdi,file.filename=a.vdi
info 'json:{"driver":"vdi","file.filename":"a.vdi"}'
info --image-opts driver=vdi,file.filename=a.vdi,foo=bar
info 'json:{"driver":"vdi","file.filename":"a.vdi","backing":"b"}'
info -f raw a.vdi
info -f vdi r.raw
`;

/** Field by field: offset, and what `qemu-io -f raw -c write` puts there. */
const FIELDS = [0x40, 0x44, 0x46, 0x48, 0x4c, 0x154, 0x158, 0x168, 0x170, 0x173, 0x174, 0x177];
const MORE_FIELDS = [0x178, 0x180, 0x184, 0x1a8, 0x1b7, 0x1b8, 0x1c8, 0x200, 0x204];

function hostileStory(offset: number): string {
  const looks = ["info a.vdi", "info -f vdi a.vdi", "check -f vdi a.vdi", "map -f vdi --output=json a.vdi"];
  const lines = [0, 1, 0xff].flatMap((byte) => [
    "= qemu-img create -q -f vdi -o static=on a.vdi 3M",
    `= qemu-io -f raw -c "write -P ${byte} ${offset} 1" a.vdi`,
    ...looks,
  ]);
  return [`# a header with another byte at ${offset}`, ...lines].join("\n");
}

/** Each check goes before those behind it: all fields from one on are wrong. */
const ORDER = [0x177, 0x40, 0x44, 0x154, 0x158, 0x168, 0x178, 0x172, 0x1a8, 0x1b8, 0x183];

const orderStory = [
  "# what is told first",
  ...ORDER.flatMap((_, index) => [
    "= qemu-img create -q -f vdi a.vdi 3M",
    ...ORDER.slice(index).map((offset) => `= qemu-io -f raw -c "write -P 0x7e ${offset} 1" a.vdi`),
    "info -f vdi a.vdi",
  ]),
].join("\n");

const CHECK = `
# check
= qemu-img create -q -f vdi a.vdi 6M
= qemu-io -c "write 0 4M" a.vdi
= qemu-io -f raw -c "write -P 0 516 4" a.vdi
check a.vdi
check --output=json a.vdi
check -r all a.vdi
= qemu-io -f raw -c "write -P 0x7f 520 1" a.vdi
check a.vdi
= qemu-io -f raw -c "write -P 5 388 1" a.vdi
check a.vdi
check -q a.vdi
map --output=json a.vdi
= qemu-io -f raw -c "write -P 0xff 520 4" -c "write -P 0xfe 520 1" a.vdi
map --output=json a.vdi
qemu-io -c "read -P 0 2M 1M" -c "write -P 4 2M 1M" a.vdi
check a.vdi

# images that are cut short
= qemu-img create -q -f vdi a.vdi 3M
= qemu-io -c "write -P 1 0 3M" a.vdi
= qemu-img resize -q -f raw --shrink a.vdi 1M
check a.vdi
map --output=json a.vdi
qemu-io -c "read -v 1048000 600" a.vdi
= qemu-img resize -q -f raw --shrink a.vdi 512
info a.vdi
map --output=json a.vdi
`;

describe("vdi beside qemu-img", { skip: missingTool ?? false }, () => {
  tell(CREATE, clearUuids);
  tell(WRITE, clearUuids);
  tell(CHECK, clearUuids);
  tell([...FIELDS, ...MORE_FIELDS].map(hostileStory).join("\n\n"), clearUuids);
  tell(orderStory, clearUuids);
});
