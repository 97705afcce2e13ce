/** `create` beside qemu-img's. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import { Fixture, missingTool, runOurs, runTheirs, words } from "./differential.ts";

const LINES = String.raw`
create
create -f raw
create -x
create -f
create -f raw x.raw
create -f raw x.raw 1M
create -fraw x.raw 1M
create -qf raw x.raw 1M
create x.raw 1M -f raw
create x.raw -- 1M
create -f raw x.raw 1M 1M
create -f raw x.raw 100
create -f raw x.raw 0
create -f raw x.raw foo
create -f raw x.raw -1M
create -f raw x.raw -- -1M
create x.raw 1.5
create x.raw 1.5k
create x.raw 0x1000
create x.raw 1e3
create x.raw +5k
create x.raw ' 5k'
create x.raw 5kb
create x.raw 5B
create x.raw ''
create x.raw 0.1k
create x.raw 1.1b
create x.raw 010
create x.raw inf
create x.raw .5M
create x.raw 5.M
create x.raw 20E
create x.raw 0x1k
create x.raw 0x10kk
create x.raw 0x10b
create x.raw 0X10
create x.raw 0x
create x.raw '5 k'
create x.raw '5k '
create x.raw 1.0
create x.raw 1,5k
create x.raw 00010k
create x.raw 0.000001k
create x.raw 1.00000k
create x.raw 1.5.5k
create x.raw 1.5e3k
create x.raw nan
create x.raw -- -0
create x.raw 18446744073709551615
create x.raw 18446744073709551616
create x.raw 9E
create -f foo x.raw 1M
create -f null-co x 1M
create -f compress x 1M
create -f file x 1M
create -f raw null-co:// 1M
create -f raw foo:x 1M
create -f raw file:x.raw 1M
create -f raw '' 1M
create -f raw 'x y,z' 1M
create -f raw nodir/x.raw 1M
create -f raw -o help
create -f raw -o help x
create -f raw -o '?' x
create -f raw -o foo,help x
create -f raw -o help x 1M 1M
create -f raw -o help foo:x
create -f raw -o help null-co://
create -f foo -o help
create -f null-co -o help x
create -f raw -o '' x 1M
create -f raw -o ,size=1M x
create -f raw -o size=1M, x
create -f raw -o ,,foo x 1M
create -f raw -o foo,, x 1M
create -f raw -o foo,,, x 1M
create -f raw -o foo=1 x 1M
create -f raw -o =x x 1M
create -f raw -o size=3M x
create -f raw -o size=3M x 2M
create -f raw -o size=1M,size=2M x
create -f raw -o size=1M -o size=2M x
create -f raw -o size=-1 x
create -f raw -o size=20E x
create -f raw -o size= x
create -f raw -o size x
create -f raw -o size=1.5k x
create -f raw -o size=.5k x
create -f raw -o nocow x 1M
create -f raw -o nonocow x 1M
create -f raw -o nocow= x 1M
create -f raw -o nocow=y x 1M
create -f raw -o nocow=foo x 1M
create -f raw -o preallocation=off x 1M
create -f raw -o preallocation=full x 1M
create -f raw -o preallocation=falloc x 1M
create -f raw -o preallocation=foo x 1M
create -f raw -b base.raw x 1M
create -f raw -F raw x 1M
create --object foo -f raw x 1M
create --object secret,id=a x 1M
create --object secret,id=a,data=b x 1M
create --format=raw x 1M
`;

const QCOW2_LINES = String.raw`
create -f qcow2 x 1M
create -f qcow2 -o compat=0.10 x 1M
create -f qcow2 -o compat=foo x 1M
create -f qcow2 -o cluster_size=512 x 1M
create -f qcow2 -o cluster_size=2M x 1G
create -f qcow2 -o cluster_size=100 x 1M
create -f qcow2 -o cluster_size=4M x 1M
create -f qcow2 -o cluster_size=foo x 1M
create -f qcow2 -o lazy_refcounts x 1M
create -f qcow2 -o lazy_refcounts=foo x 1M
create -f qcow2 -o compat=0.10,lazy_refcounts=on x 1M
create -f qcow2 -o refcount_bits=1 x 1M
create -f qcow2 -o refcount_bits=3 x 1M
create -f qcow2 -o refcount_bits=128 x 1M
create -f qcow2 -o refcount_bits=foo x 1M
create -f qcow2 -o compat=0.10,refcount_bits=8 x 1M
create -f qcow2 -o extended_l2=on x 1M
create -f qcow2 -o extended_l2=on,cluster_size=8k x 1M
create -f qcow2 -o compression_type=zstd x 1M
create -f qcow2 -o compression_type=foo x 1M
create -f qcow2 -o preallocation=metadata x 1M
create -f qcow2 -o preallocation=falloc x 1M
create -f qcow2 -o preallocation=full x 1M
create -f qcow2 -o preallocation=foo x 1M
create -f qcow2 -o data_file=d.raw x 1M
create -f qcow2 -o data_file=d.raw,data_file_raw=on x 1M
create -f qcow2 -o data_file_raw=on x 1M
create -f qcow2 -o nocow=off,extent_size_hint=1M x 1M
create -f qcow2 -o encryption=off x 1M
create -f qcow2 -o help
create -f qcow2 -o help x
create -f qcow2 x
create -f qcow2 x 1P
create -f qcow2 -o cluster_size=512 x 1P
create -f qcow2 x 8191P
create -f qcow2 -b base.raw x
create -f qcow2 -b base.raw x 1M
create -f qcow2 -b base.raw -F raw x
create -f qcow2 -b base.raw -F raw x 3M
create -f qcow2 -b base.qcow2 -F raw x
create -f qcow2 -b base.qcow2 -F qcow2 x
create -f qcow2 -b base.raw -F qcow2 x
create -f qcow2 -b base.raw -F foo x
create -f qcow2 -b nonex -F raw x
create -f qcow2 -b nonex -F raw x 1M
create -f qcow2 -u -b nonex -F raw x
create -f qcow2 -u -b nonex -F raw x 1M
create -f qcow2 -u -b nonex x 1M
create -f qcow2 -u -b nonex -F foo x 1M
create -f qcow2 -F raw x
create -f qcow2 -F raw x 1M
create -f qcow2 -F foo x 1M
create -f qcow2 -b x -F qcow2 x
create -f qcow2 -b '' x 1M
create -f qcow2 -b '' -F raw x 1M
create -f qcow2 -b /tmp -F raw x
create -f qcow2 -o backing_file=base.raw x
create -f qcow2 -o backing_file=base.raw,backing_fmt=raw x
create -f qcow2 -o backing_file= x 1M
create -f qcow2 -b base.raw -F raw -o backing_file=b.raw x
create -f qcow2 -b base.raw -F raw -o backing_fmt=qcow2 x
create -f qcow2 -b base.raw -F raw -b b.raw x
create -f qcow2 -b 'a,b.raw' -F raw x
create -f qcow2 -b base.raw -F raw sub/x
create -f qcow2 -b ../base.raw -F raw sub/x
create -f qcow2 -b ../base.raw -F raw -u sub/x 1M
create -f qcow2 -b base.qcow2 -F qcow2 -o preallocation=metadata x
create -f qcow2 -b mid.qcow2 -F qcow2 x
create -f qcow2 -b broken.qcow2 -F qcow2 x
create -f qcow2 -b base.raw -F raw -o data_file=d.raw,data_file_raw=on x
create -f qcow2 nodir/x 1M
create -f qcow2 '' 1M
create -f qcow2 base.qcow2 2M
create -qf qcow2 x 1M
create -f qcow2 -o size=0x10k x
create -f raw -o size=0x10k x.raw
create -f qcow2 -o size=0x10k,cluster_size=0x1k x
create -f qcow2 -o cluster_size=0x1k,size=0x10k x
create -f qcow2 x 0x10k
create -f qcow2 -o backing_file=base.raw -b base.raw -F raw x
create -f qcow2 -o backing_fmt=qcow2 -b base.raw -F raw x
create -f qcow2 -o backing_file= -b base.raw -F raw x
create -f qcow2 -o backing_file= x 1M
create -f qcow2 -o nocow=on x 1M
create -f qcow2 -o extent_size_hint=64k x 1M
create -f qcow2 'a,b c' 1M
create -f qcow2 -b 'x,y' -F raw -u x 1M
create -f qcow2 file:foo.qcow2 1M
create -f qcow2 foo:bar 1M
create -f qcow2 ./foo:bar 1M
create -f qcow2 json:{} 1M
create -f qcow2 -o preallocation=full,compat=0.10 x 1G
create -f qcow2 -o size=1M x 2M
create -f qcow2 -o size=1M,size=2M x
create -f qcow2 x 8E
create -f qcow2 -o help,size=1 x
create -f qcow2 -u x 1M
create -f qcow2 -b base.raw -F raw -u x
create -u -f raw x.raw
create -f raw x.raw -1
create -f qcow2 -F raw -o backing_file=base.raw x
create -f qcow2 -o data_file=dd.raw,preallocation=full x 1M
create -f qcow2 -b x -F qcow2 x
create -f qcow2 -b ./x -F qcow2 x
create -f qcow2 -o data_file=/nonexistent/x x 1M
create -f qcow2 -o data_file= x 1M
`;

describe("create", { skip: missingTool }, () => {
  const fixture = new Fixture((directory) => {
    for (const line of [
      "create -q -f raw base.raw 1M",
      "create -q -f raw a,b.raw 1M",
      "create -q -f qcow2 base.qcow2 2M",
      "create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2",
      "create -q -f qcow2 -u -b gone.raw -F raw broken.qcow2 1M",
    ])
      runTheirs(words(line), directory);
    fs.mkdirSync(path.join(directory, "sub"));
  });
  after(() => fixture.remove());

  for (const line of [...LINES.split("\n"), ...QCOW2_LINES.split("\n")].filter((text) => text !== ""))
    it(line, () => fixture.same(words(line)));

  // qemu-img leaves an empty file.
  for (const line of ["create x.raw 8191P", "create -f raw -o preallocation=metadata x.raw 1M"])
    it(`${line}: nothing is left behind`, async () => {
      const directory = fixture.copy();
      const before = fs.readdirSync(directory);
      const ours = await runOurs(words(line), directory);
      assert.deepEqual(fs.readdirSync(directory), before);
      assert.deepEqual(ours, runTheirs(words(line), directory));
    });

  it("leaves what was there before where it fails", async () => {
    const directory = fixture.copy();
    const base = path.join(directory, "base.qcow2");
    const before = fs.readFileSync(base);
    const { exitCode } = await runOurs(
      words("create -f raw -o preallocation=metadata base.qcow2 1M"),
      directory,
    );
    assert.equal(exitCode, 1);
    assert.ok(fs.readFileSync(base).equals(before));
  });
});
