/**
 * Chains with odd names, lengths and gaps, as the commands that walk them tell of them. Of chains that lead in a circle
 * only `info` is asked: qemu-img opens the others' for ever.
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import { forgetBackingFormat } from "../support/backing-format.ts";
import { Fixture, missingTool, runTheirs, words } from "./differential.ts";

/** In order; a line of `> name text` writes a file. */
const FILL = String.raw`
create -q -f raw base.raw 1M
create -q -f qcow2 base.q 1M
create -q -f qcow2 -o cluster_size=4k -b base.q -F qcow2 mid.q 2M
create -q -f qcow2 -b mid.q -F qcow2 top.q 3M
create -q -f qcow2 -b base.raw -F raw onraw.q 512k
create -q -f qcow2 -b onraw.q -F qcow2 short.q 2M
create -q -f qcow2 -u -b gone.q -F qcow2 orphan.q 1M
create -q -f qcow2 -u -b orphan.q -F qcow2 onorphan.q 1M
create -q -f qcow2 -u -b loop2.q -F qcow2 loop1.q 1M
create -q -f qcow2 -u -b loop1.q -F qcow2 loop2.q 1M
create -q -f qcow2 self.q 1M
rebase -u -b self.q -F qcow2 self.q
create -q -f qcow2 -b base.raw -F raw unnamed.q 1M
create -q -f qcow2 -b unnamed.q -F qcow2 onunnamed.q 1M
create -q -f qcow2 -u -b base.raw -F qcow2 wrongfmt.q 1M
create -q -f qcow2 -u -b base.q -F raw rawfmt.q 1M
create -q -f qcow2 -b blkdebug::base.q -F qcow2 ondebug.q 1M
create -q -f qcow2 -b blkdebug:rules:base.q -F qcow2 onrules.q 1M
create -q -f qcow2 -b 'json:{"driver":"qcow2","file.filename":"base.q"}' -F qcow2 onjson.q 1M
create -q -f qcow2 -b 'json:{"driver":"raw","file.filename":"base.raw","offset":65536}' -F raw onoffset.q 1M
create -q -f qcow2 -b 'json:{"driver":"raw","file.driver":"null-co","file.size":1048576}' -F raw onnull.q 1M
create -q -f qcow2 -b 'json:{"driver":"raw","file.driver":"null-co","file.size":1048576,"file.read-zeroes":true}' -F raw onzeroes.q 1M
create -q -f qcow2 -b null-co:// -F raw onnullname.q 1M
create -q -f qcow2 -b file:base.q -F qcow2 onfile.q 1M
create -q -f qcow2 -b ./base.q -F qcow2 dotted.q 1M
create -q -f qcow2 -b ../base.q -F qcow2 sub/up.q 1M
create -q -f qcow2 -b up.q -F qcow2 sub/up2.q 1M
create -q -f qcow2 -b sub/up2.q -F qcow2 down.q 1M
create -q -f qcow2 -b 'a b,c.q' -F qcow2 onodd.q 1M
create -q -f qcow2 -o compat=0.10 -b base.q -F qcow2 old.q 1M
create -q -f qcow2 -o extended_l2=on -b mid.q -F qcow2 sub.q 1536k
create -q -f qcow2 -o data_file=data -b base.q -F qcow2 datafile.q 1M
create -q -f qcow2 -b datafile.q -F qcow2 ondatafile.q 1M
snapshot -c one mid.q
`;

const WRITES: Readonly<Record<string, string>> = {
  "base.raw": "write -P 1 0 100k",
  "base.q": "write -P 1 300k 300k",
  "mid.q": "write -P 2 500k 100k",
  "top.q": "write -P 3 2000k 100k",
  "onraw.q": "write -z 10k 100k",
  "short.q": "write -P 4 500k 30k",
  "sub.q": "write -P 5 10k 3k",
  "datafile.q": "write -P 6 64k 64k",
};

const NAMES = [
  ..."top short orphan onorphan unnamed onunnamed wrongfmt rawfmt ondebug onrules onjson".split(" "),
  ..."onoffset onnull onzeroes onnullname onfile dotted sub/up sub/up2 down onodd old sub datafile ondatafile".split(
    " ",
  ),
];

const LINES = [
  ...NAMES.flatMap((name) => [
    `info --backing-chain ${name}.q`,
    `info --backing-chain --output=json ${name}.q`,
    `info ${name}.q`,
    `map ${name}.q`,
    `map --output=json ${name}.q`,
    `check ${name}.q`,
    `compare -s ${name}.q top.q`,
    `compare ${name}.q top.q`,
  ]),
  ...String.raw`
info --backing-chain loop1.q
info --backing-chain --output=json loop1.q
info --backing-chain self.q
info loop1.q
info --backing-chain -f raw top.q
info --backing-chain -U top.q
info --backing-chain --image-opts driver=qcow2,file.filename=top.q
info --backing-chain --image-opts --output=json driver=qcow2,file.filename=top.q,backing.driver=qcow2,backing.file.filename=base.q
info --backing-chain --image-opts driver=qcow2,file.filename=top.q,backing=
info --backing-chain --image-opts driver=compress,file.driver=qcow2,file.file.filename=top.q
info --backing-chain 'json:{"driver":"qcow2","file.filename":"top.q"}'
info --backing-chain 'json:{"driver":"qcow2","file.filename":"top.q","backing":null}'
info --backing-chain nonex
info --backing-chain --output=json nonex
map --image-opts driver=qcow2,file.filename=top.q,backing.driver=qcow2,backing.file.filename=base.q
map --output=json --image-opts driver=qcow2,file.filename=top.q,backing.driver=qcow2,backing.file.filename=base.q
map --output=json --image-opts driver=compress,file.driver=qcow2,file.file.filename=top.q
map -s 500k -l 1M --output=json top.q
map -s 2500k top.q
map -s 4M --output=json top.q
compare -s top.q mid.q
compare mid.q base.q
compare -f qcow2 -F raw onraw.q base.raw
create -f qcow2 -b blkdebug::base.q -F qcow2 x.q
create -f qcow2 -b blkdebug:rules:base.q x.q
create -f qcow2 -b orphan.q -F qcow2 x.q
create -f qcow2 -b wrongfmt.q -F qcow2 x.q
create -f qcow2 -b unnamed.q -F qcow2 x.q
create -f qcow2 -b base.q x.q
create -f qcow2 -b onjson.q -F qcow2 x.q
create -f qcow2 -b 'json:{"driver":"qcow2","file.filename":"base.q"}' x.q
create -f qcow2 -b 'json:{"driver":"nonsense"}' -F qcow2 x.q
create -f qcow2 -b 'json:{' -F qcow2 x.q
create -f qcow2 -b 'json:{"file.filename":"base.q"}' -F raw x.q
create -f qcow2 -b null-co:// -F raw x.q
create -f qcow2 -b sub/../base.q -F qcow2 x.q
create -f qcow2 -b up.q -F qcow2 sub/x.q
create -f qcow2 -b file:up.q -F qcow2 sub/x.q
create -f qcow2 -b file:sub/up.q -F qcow2 sub/x.q
create -f qcow2 -b x.q -F qcow2 x.q
create -f qcow2 -b 'a b,c.q' -F qcow2 x.q
create -f qcow2 -o 'backing_file=a b,,c.q,backing_fmt=qcow2' x.q
convert -O qcow2 -B base.q -F qcow2 top.q x.q
convert -O qcow2 -B base.q top.q x.q
convert -O qcow2 -B mid.q -F qcow2 top.q x.q
convert -O qcow2 -B mid.q -F qcow2 -o cluster_size=4k top.q x.q
convert -O qcow2 -B onraw.q -F qcow2 short.q x.q
convert -O qcow2 -B base.raw -F raw short.q x.q
convert -O raw -B base.q -F qcow2 top.q x.raw
convert -O qcow2 -o backing_file=mid.q,backing_fmt=qcow2 top.q x.q
convert -O qcow2 orphan.q x.q
commit down.q
commit -b base.q down.q
commit -b ../base.q down.q
commit onfile.q
commit -b file:base.q onfile.q
commit -b base.q onfile.q
commit ondebug.q
commit -b blkdebug::base.q ondebug.q
commit onrules.q
commit onjson.q
commit onoffset.q
commit onnull.q
commit onzeroes.q
commit onunnamed.q
commit wrongfmt.q
commit ondatafile.q
commit datafile.q
commit onodd.q
rebase -b base.q -F qcow2 down.q
rebase -b sub/up.q -F qcow2 down.q
rebase -b file:base.q -F qcow2 down.q
rebase -b '' sub/up2.q
rebase -b ../top.q -F qcow2 sub/up2.q
rebase -b top.q -F qcow2 sub/up2.q
rebase -b mid.q -F qcow2 short.q
rebase -b base.raw -F raw short.q
rebase -b short.q -F qcow2 top.q
rebase -b onjson.q -F qcow2 top.q
rebase -b onoffset.q -F qcow2 top.q
rebase -b orphan.q -F qcow2 top.q
rebase -b blkdebug:rules:mid.q -F qcow2 top.q
rebase -b onzeroes.q -F qcow2 top.q
rebase -b mid.q -F qcow2 ondatafile.q
rebase -b '' ondatafile.q
rebase -b '' datafile.q
rebase -b top.q -F qcow2 old.q
rebase -b top.q -F qcow2 sub.q
`.split("\n"),
].filter((line) => line !== "");

function fill(directory: string): void {
  fs.mkdirSync(path.join(directory, "sub"));
  fs.writeFileSync(path.join(directory, "rules"), "");
  runTheirs(words("create -q -f qcow2 'a b,c.q' 1M"), directory);
  for (const line of FILL.split("\n"))
    if (line !== "") {
      const { exitCode, stderr } = runTheirs(words(line), directory);
      if (exitCode !== 0) throw new Error(`${line}: ${stderr}`);
    }
  for (const name of ["unnamed.q", "onunnamed.q"]) forgetBackingFormat(path.join(directory, name));
  for (const [name, command] of Object.entries(WRITES)) {
    const format = name.endsWith(".raw") ? "raw" : "qcow2";
    // The data file's name goes by the working directory.
    const { status } = spawnSync("qemu-io", ["-f", format, "-c", command, name], { cwd: directory });
    assert.equal(status, 0, name);
  }
}

describe("chains", { skip: missingTool }, () => {
  const fixture = new Fixture(fill);
  after(() => fixture.remove());
  for (const line of LINES) it(line, () => fixture.same(words(line)));
});
