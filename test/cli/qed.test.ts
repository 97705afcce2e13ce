/** QED images as qemu-img and qemu-io tell of them, both tools on the same bytes. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Fixture, missingTool, runOurs, runTheirs, words } from "./differential.ts";
import { tell } from "./stories.ts";

const CREATE = `
# create
create -f qed -o help
create -f qed -o help a.qed
create -f qed a.qed 10M
create -f qed b.qed 3000001
create -f qed c.qed 0
create -f qed -o cluster_size=4k,table_size=2 d.qed 3M
create -f qed -o cluster_size=1M,table_size=16 e.qed 3G
create -f qed -o table_size=1 f.qed 1M
create -f qed g.qed 64T
create -f qed h.qed
create -f qed -o preallocation=full i.qed 1M
info a.qed
info --output=json b.qed
info c.qed
info d.qed
info f.qed
info g.qed
map a.qed
map --output=json d.qed
check a.qed
check --output=json d.qed
check -r all c.qed
measure -O qed --size 1M
amend -f qed -o help
snapshot -l a.qed
snapshot -c one a.qed
convert -c -O qed a.qed z.qed
bitmap --add a.qed x

# backing files
= qemu-img create -q -f raw base.raw 3M
= qemu-io -f raw -c "write -P 5 0 2500k" base.raw
= qemu-img create -q -f qcow2 base.qcow2 3M
create -f qed -b base.raw -F raw a.qed
create -f qed -b base.qcow2 -F qcow2 b.qed 5M
create -f qed -b base.qcow2 c.qed 5M
create -f qed -b gone -F raw c.qed 5M
create -f qed -u -b gone -F raw c.qed 5M
create -f qed -o backing_fmt=raw d.qed 5M
create -f qed -o backing_file=base.raw,backing_fmt=raw e.qed
info a.qed
info --output=json b.qed
info c.qed
info --backing-chain a.qed
map --output=json a.qed
map c.qed
qemu-io -c "write -P 1 100k 1k" -c "read -P 5 0 100k" -c "read -P 5 101k 100k" a.qed
map --output=json a.qed
map a.qed
check a.qed
qemu-io -c "write -P 1 2999k 2k" -c "write -P 1 4M 64k" -c "write -z 128k 128k" -c "write -z 1000 1000" b.qed
map --output=json b.qed
rebase -u -b base.raw -F raw b.qed
rebase -u -b gone b.qed
rebase -u -b '' b.qed
rebase -u -b x b.qed
rebase -b base.raw -F raw a.qed
commit a.qed
commit -b base.raw a.qed
resize a.qed 4M
resize a.qed 1M
resize --shrink a.qed 1M
resize --preallocation=full a.qed 5M
resize --preallocation=metadata a.qed 5M
resize a.qed 100T
resize a.qed +1k
create -q -f qed -b base.raw -F raw short.qed 1M
resize short.qed 3M
resize --preallocation=full short.qed 3M
resize --shrink short.qed 512k
map --output=json a.qed
`;

/** Nothing is left of them here, where qemu-img leaves an empty file. */
const REFUSED = `
create -f qed -o cluster_size=2k a.qed 10M
create -f qed -o cluster_size=64M a.qed 10M
create -f qed -o cluster_size=128M a.qed 10M
create -f qed -o cluster_size=5000 a.qed 10M
create -f qed -o cluster_size=0 a.qed 10M
create -f qed -o table_size=32 a.qed 10M
create -f qed -o table_size=3 a.qed 10M
create -f qed -o table_size=0 a.qed 10M
create -f qed -o cluster_size=x a.qed 10M
create -f qed -o foo=1 a.qed 10M
create -f qed -o size=1M a.qed 10M
create -f qed a.qed 65T
create -f qed -o cluster_size=4k,table_size=1 a.qed 2G
`;

const WRITE = `
# clusters come in the order of the writes
create -q -f qed -o cluster_size=4k,table_size=2 a.qed 20000k
qemu-io -c "write -P 1 3M 1k" a.qed
qemu-io -c "write -P 2 1023k 2k" a.qed
map --output=json a.qed
qemu-io -c "write -P 3 0 4M" a.qed
qemu-io -c "write -P 4 19999k 1k" -c "write -P 4 8191k 20k" a.qed
qemu-io -c "write -z 1M 1M" -c "discard 2M 1M" -c "read -P 0 1M 1M" a.qed
qemu-io -c "write -z 5M 64k" -c "write -z 5000k 2k" -c "write -z -u 6M 1M" -c "write -P 1 6145k 1k" a.qed
qemu-io -c "write -z 10M 9760k" a.qed
qemu-io -c "write -P 5 20000k 1" a.qed
map a.qed
map --output=json a.qed
check a.qed
check --output=json a.qed
qemu-io -c map -c "alloc 0 20000k" -c length -c info a.qed
convert -O qed a.qed b.qed
compare a.qed b.qed
compare -s a.qed b.qed
convert -O raw b.qed r

# convert
= qemu-img create -q -f raw r 7000k
= qemu-io -f raw -c "write -P 3 1M 100k" -c "write -P 4 6M 800k" r
convert -f raw -O qed r a.qed
convert -f raw -O qed -S 0 -o cluster_size=4k r b.qed
convert -f raw -O qed -o cluster_size=128k,table_size=16 r c.qed
compare a.qed r
compare -s b.qed c.qed
convert -O raw a.qed r2
convert -n -O qed r b.qed
convert -O qcow2 c.qed c.qcow2
convert -O qed -B c.qcow2 -F qcow2 c.qed d.qed
dd -O qed if=r of=e.qed bs=2M count=1

# an image that was not closed
create -q -f qed a.qed 4M
= qemu-img create -q -f raw base.raw 3M
create -q -f qed -b base.raw -F raw b.qed
qemu-io -c "write -P 1 100k 100k" a.qed
= qemu-io -f raw -c "write -P 2 16 1" a.qed
info a.qed
info --output=json a.qed
check a.qed
map --output=json a.qed
qemu-io -r -c "read -P 1 100k 100k" a.qed
check a.qed
qemu-io -c "read -P 1 100k 100k" a.qed
info a.qed

# an image that fails
create -q -f qed a.qed 4M
qemu-io -c "open -o driver=qed,file.driver=blkdebug,file.image.filename=a.qed,file.inject-error.0.event=write_aio,file.inject-error.0.errno=28" -c "write -P 1 0 1M" a.qed
qemu-io -c "open -o driver=qed,file.driver=blkdebug,file.image.filename=a.qed,file.inject-error.0.event=l2_update" -c "write -P 1 0 1M"
qemu-io -c "open -o driver=qed,file.driver=blkdebug,file.image.filename=a.qed,file.inject-error.0.event=l1_update" -c "write -P 1 0 1M"
check a.qed
info 'json:{"driver":"qed","file":{"driver":"blkdebug","image":{"driver":"file","filename":"a.qed"},"inject-error":[{"event":"none","iotype":"read"}]}}'

# opened by options
create -q -f qed a.qed 4M
info --image-opts driver=qed,file.filename=a.qed
info 'json:{"driver":"qed","file.filename":"a.qed"}'
info --image-opts driver=qed,file.filename=a.qed,foo=bar
map 'json:{"driver":"qed","file.filename":"a.qed","backing":{"driver":"null-co","size":4194304,"read-zeroes":true}}'
info -f raw a.qed
info -f qed r.raw
`;

const CHECK = `
# check
= qemu-img create -q -f qed a.qed 6M
= qemu-io -c "write 0 1M" a.qed
= qemu-io -f raw -c "write -P 0x13 0x150008 1" a.qed
check a.qed
= qemu-io -f raw -c "write -P 0x13 0x15000b 1" a.qed
check a.qed
map --output=json a.qed
= qemu-io -f raw -c "write -P 0 0x150010 8" a.qed
check a.qed
check --output=json a.qed
check -q a.qed
qemu-io -c "read 64k 1k" a.qed
check -r leaks a.qed
check a.qed
check -r all a.qed
map --output=json a.qed
= qemu-io -f raw -c "write -P 7 0x10010 2" -c "write -P 2 0x10018 1" a.qed
check a.qed
check -r all a.qed
check a.qed

# two refer to one cluster, and the mark that asks for a check
= qemu-img create -q -f qed a.qed 6M
= qemu-io -c "write 0 1M" a.qed
= qemu-io -f raw -c "write -P 0x06 0x15000a 1" -c "write -P 2 16 1" a.qed
check a.qed
check -r all a.qed
info a.qed
check a.qed
= qemu-io -f raw -c "write -P 0 0x15000a 1" -c "write -P 0x5 0x150008 1" -c "write -P 2 16 1" a.qed
check a.qed
qemu-io -c "read 0 1k" a.qed
check a.qed
check -r all a.qed

# images that are cut short
= qemu-img create -q -f qed a.qed 3M
= qemu-io -c "write -P 1 0 3M" a.qed
= qemu-img resize -q -f raw --shrink a.qed 2M
check a.qed
map --output=json a.qed
= qemu-img resize -q -f raw --shrink a.qed 320k
info a.qed
= qemu-img resize -q -f raw --shrink a.qed 319k
info a.qed
= qemu-img resize -q -f raw --shrink a.qed 1k
info a.qed
`;

/** Bytes of the header, of an image with a backing file. */
const FIELDS = [
  0, 4, 5, 7, 8, 11, 12, 15, 16, 17, 23, 24, 31, 32, 39, 40, 42, 44, 47, 48, 50, 53, 55, 56, 59, 60, 63,
];

function hostileStory(offset: number): string {
  const looks = ["info a.qed", "info -f qed a.qed", "check -f qed a.qed", "map -f qed --output=json a.qed"];
  const lines = [0, 1, 0xff].flatMap((byte) => [
    "= qemu-img create -q -f qed -b base -F raw a.qed 3M",
    `= qemu-io -f raw -c "write -P ${byte} ${offset} 1" a.qed`,
    ...looks,
  ]);
  return [`# a header with another byte at ${offset}`, "= qemu-img create -q -f raw base 3M", ...lines].join(
    "\n",
  );
}

describe("qed beside qemu-img", { skip: missingTool ?? false }, () => {
  tell(CREATE);
  it("create that is refused", async () => {
    const fixture = new Fixture(() => {});
    for (const line of REFUSED.trim().split("\n")) {
      const theirs = runTheirs(words(line), fixture.copy());
      assert.deepEqual(await runOurs(words(line), fixture.copy()), theirs, line);
    }
    fixture.remove();
  });
  tell(WRITE);
  tell(CHECK);
  tell(FIELDS.map(hostileStory).join("\n\n"));
});
