/** qcow images of version 1 as qemu-img and qemu-io tell of them, both tools on the same bytes. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Fixture, missingTool, runOurs, runTheirs, words } from "./differential.ts";
import { tell } from "./stories.ts";

const SECRET = "--object secret,id=s,data=abc";
const AES = "-o encrypt.format=aes,encrypt.key-secret=s";
const OPEN_AES = "--image-opts driver=qcow,encrypt.key-secret=s,file.filename=a.qcow";

const CREATE = `
# create
create -f qcow -o help
create -f qcow -o help a.qcow
create -f qcow a.qcow 10M
create -f qcow b.qcow 3000001
create -f qcow c.qcow 1
create -f qcow d.qcow 64G
create -f qcow -o encryption=off e.qcow 2M
info a.qcow
info --output=json b.qcow
info c.qcow
info d.qcow
map a.qcow
check a.qcow
check -r all a.qcow
measure -O qcow --size 1M
resize a.qcow 20M
resize --shrink a.qcow 1M
resize --preallocation=full a.qcow 11M
amend -f qcow -o help
snapshot -l a.qcow
snapshot -c one a.qcow
bitmap --add a.qcow x

# backing files
= qemu-img create -q -f raw base.raw 3M
= qemu-io -f raw -c "write -P 5 0 2500k" base.raw
= qemu-img create -q -f qcow2 base.qcow2 3M
create -f qcow -b base.raw -F raw a.qcow
create -f qcow -b base.qcow2 -F qcow2 b.qcow 5M
create -f qcow -u -b gone -F raw c.qcow 5M
create -f qcow -o backing_fmt=raw d.qcow 5M
create -f qcow -o backing_file=base.raw,backing_fmt=raw e.qcow
info a.qcow
info --output=json b.qcow
info c.qcow
info --backing-chain a.qcow
map --output=json a.qcow
map c.qcow
qemu-io -c "write -P 1 100k 1k" -c "read -P 5 0 100k" -c "read -P 5 101k 100k" a.qcow
qemu-io -c "write -P 1 200000 1000" -c "read -P 5 199k 100" a.qcow
map --output=json a.qcow
map a.qcow
qemu-io -c "write -P 1 2999k 2k" -c "write -P 1 4M 64k" -c "write -z 128k 128k" -c "write -z 1000 1000" b.qcow
map --output=json b.qcow
rebase -u -b base.raw -F raw b.qcow
rebase -u -b '' b.qcow
convert -O raw a.qcow r
compare a.qcow r
convert -B base.raw -F raw -O qcow r f.qcow
convert -O qcow a.qcow g.qcow
`;

/** Nothing is left of them here, where qemu-img leaves an empty file. */
const REFUSED = `
create -f qcow a.qcow 0
create -f qcow a.qcow
create -f qcow -o foo=1 a.qcow 10M
create -f qcow -b gone a.qcow 5M
create -f qcow -o backing_file=gone,backing_fmt=foo a.qcow 10M
create -f qcow -o encryption=on a.qcow 1M
create -f qcow -o encryption=maybe a.qcow 1M
create -f qcow -o encrypt.format=luks a.qcow 1M
create -f qcow -o encrypt.format=foo a.qcow 1M
create -f qcow -o encrypt.format=aes a.qcow 1M
create -f qcow -o encrypt.key-secret=s a.qcow 1M
create -f qcow -o encrypt.format=aes,encrypt.key-secret=gone a.qcow 1M
create -f qcow ${SECRET} -o encryption=on,encrypt.format=aes,encrypt.key-secret=s a.qcow 1M
create -f qcow ${SECRET} -o encryption=on,encrypt.key-secret=s,encrypt.cipher-alg=aes-128 a.qcow 1M
`;

const WRITE = `
# clusters come in the order of the writes
create -q -f qcow a.qcow 20000k
qemu-io -c "write -P 1 3M 1k" a.qcow
qemu-io -c "write -P 2 1023k 2k" a.qcow
map --output=json a.qcow
qemu-io -c "write -P 3 0 4M" a.qcow
qemu-io -c "write -P 4 19999k 1k" -c "write -P 4 8191k 20k" a.qcow
qemu-io -c "write -z 1M 1M" -c "discard 2M 1M" -c "read -P 0 1M 1M" a.qcow
qemu-io -c "write -z 5M 64k" -c "write -z 5000k 2k" -c "write -z -u 6M 1M" -c "write -P 1 6145k 1k" a.qcow
qemu-io -c "write -P 5 20000k 1" a.qcow
map a.qcow
map --output=json a.qcow
qemu-io -c map -c "alloc 0 20000k" -c length -c info a.qcow
convert -O qcow a.qcow b.qcow
compare a.qcow b.qcow
compare -s a.qcow b.qcow
convert -O raw b.qcow r

# convert
= qemu-img create -q -f raw r 7000k
= qemu-io -f raw -c "write -P 3 1M 100k" -c "write -P 4 6M 800k" r
convert -f raw -O qcow r a.qcow
convert -f raw -O qcow -S 0 r b.qcow
compare a.qcow r
compare -s b.qcow a.qcow
convert -O raw a.qcow r2
convert -n -O qcow r b.qcow
convert -O qcow2 b.qcow c.qcow2
dd -O qcow if=r of=e.qcow bs=1M count=2
convert -c -O raw a.qcow z

# compressed clusters
= qemu-img create -q -f raw r 1M
= qemu-io -f raw -c "write -P 3 100k 16k" -c "write -P 4 996k 4k" r
create -q -f qcow a.qcow 1M
qemu-io -c "write -c -P 3 100k 4k" -c "write -c -P 3 104k 4k" -c "write -c -P 3 108k 4k" a.qcow
= qemu-io -c "write -c -P 3 112k 4k" -c "write -c -P 4 996k 4k" a.qcow
map --output=json a.qcow
map a.qcow
info a.qcow
compare a.qcow r
qemu-io -c "read -P 3 102500 1000" -c "read -P 4 999k 1k" -c "read -P 0 1000k 24k" a.qcow
qemu-io -c "write -P 9 101k 1k" -c "read -P 3 100k 1k" -c "read -P 3 102k 10k" a.qcow
qemu-io -c "write -P 9 900k 12k" -c "write -P 8 999k 2k" a.qcow
map --output=json a.qcow
convert -O raw a.qcow r2
qemu-io -c "write -c 0 1k" -c "write -c 100 4k" a.qcow

# encrypted
create -f qcow ${SECRET} ${AES} a.qcow 1M
info a.qcow
info --output=json a.qcow
info ${SECRET} ${OPEN_AES}
info ${SECRET} ${OPEN_AES},encrypt.format=aes
info ${SECRET} ${OPEN_AES},encrypt.format=luks
info ${SECRET} ${OPEN_AES},encrypt.foo=luks
map a.qcow
map ${SECRET} --output=json ${OPEN_AES}
qemu-io ${SECRET} -c "write -P 7 1000 3000" -c "write -P 8 100k 8k" -c "read -P 0 0 1000" ${OPEN_AES}
qemu-io ${SECRET} -c "write -P 9 102k 1k" -c "read -P 8 100k 2k" ${OPEN_AES}
map ${SECRET} --output=json ${OPEN_AES}
convert ${SECRET} ${OPEN_AES} -O raw r
convert ${SECRET} -f raw -O qcow ${AES} r b.qcow
convert ${SECRET} -c -f raw -O qcow ${AES} r c.qcow
= qemu-img create -q -f raw base.raw 1M
= qemu-io -f raw -c "write -P 5 0 1000k" base.raw
create -q -f qcow ${SECRET} ${AES} -b base.raw -F raw a.qcow
qemu-io ${SECRET} -c "write -P 7 1000 3000" -c "read -P 5 0 1000" ${OPEN_AES}

# an image that fails
create -q -f qcow a.qcow 4M
qemu-io -c "open -o driver=qcow,file.driver=blkdebug,file.image.filename=a.qcow,file.inject-error.0.event=none,file.inject-error.0.iotype=write" -c "write -P 1 0 1M"
info 'json:{"driver":"qcow","file":{"driver":"blkdebug","image":{"driver":"file","filename":"a.qcow"},"inject-error":[{"event":"none","iotype":"read"}]}}'

# opened by options
create -q -f qcow a.qcow 4M
info --image-opts driver=qcow,file.filename=a.qcow
info 'json:{"driver":"qcow","file.filename":"a.qcow"}'
info --image-opts driver=qcow,file.filename=a.qcow,foo=bar
info --image-opts driver=qcow,file.filename=a.qcow,encrypt.format=aes
info --image-opts driver=qcow,file.filename=a.qcow,encrypt.foo=aes
info --image-opts driver=qcow,file.filename=a.qcow,encrypt.key-secret=x
map 'json:{"driver":"qcow","file.filename":"a.qcow","backing":{"driver":"null-co","size":4194304,"read-zeroes":true}}'
info -f qcow2 a.qcow
info -f raw a.qcow
info -f qcow r.raw

# commit
= qemu-img create -q -f raw base.raw 1M
= qemu-io -f raw -c "write -P 5 0 1000k" base.raw
create -q -f qcow -b base.raw -F raw a.qcow
qemu-io -c "write -P 7 1000 3000" -c "write -P 8 100k 8k" a.qcow
commit -f qcow a.qcow
map --output=json a.qcow
qemu-io -c "write -P 7 1000 3000" a.qcow
commit -d -f qcow a.qcow
`;

/** Bytes of the header, and what `qemu-io -f raw -c "write -P"` puts there. */
const FIELDS = [0, 4, 7, 8, 12, 14, 15, 16, 19, 24, 25, 27, 31, 32, 33, 34, 36, 39, 40, 41, 45, 47];

function hostileStory(offset: number): string {
  const looks = ["info a.qcow", "info -f qcow a.qcow", "check -f qcow a.qcow"];
  const lines = [0, 1, 0xff].flatMap((byte) => [
    "= qemu-img create -q -f qcow -b base -F raw a.qcow 3M",
    `= qemu-io -f raw -c "write -P ${byte} ${offset} 1" a.qcow`,
    ...looks,
  ]);
  return [`# a header with another byte at ${offset}`, "= qemu-img create -q -f raw base 3M", ...lines].join(
    "\n",
  );
}

describe("qcow beside qemu-img", { skip: missingTool ?? false }, () => {
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
  tell(FIELDS.map(hostileStory).join("\n\n"));
});
