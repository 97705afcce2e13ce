/** `commit` beside qemu-img's. */

import path from "node:path";
import { after, describe, it } from "node:test";
import { forgetBackingFormat } from "../support/backing-format.ts";
import { Fixture, missingTool, runTheirs, words } from "./differential.ts";

const LINES = String.raw`
commit
commit a b
commit -x
commit -b
commit -r foo top.q
commit -r -1 top.q
commit -r 9223372036854775808 top.q
commit -r 1k
commit -t foo top.q
commit -p -t foo top.q
commit -t foo nonex
commit -f foo top.q
commit -U top.q
commit --object foo top.q
commit --image-opts top.q
commit --image-opts -f qcow2 top.q
commit nonex
commit base.raw
commit -f raw base.raw
commit -p -f raw base.raw
commit -b foo -f raw base.raw
commit -b foo top.q
commit -b '' top.q
commit -b top.q top.q
commit -b ../base.q sub/top.q
commit -b base.q sub/top.q
commit top.q
commit -f qcow2 top.q
commit -q top.q
commit -d top.q
commit -qd top.q
commit -q -p top.q
commit -t none top.q
commit -t directsync top.q
commit -t unsafe top.q
commit -r 0 top.q
commit -r 100M top.q
commit --rate-limit 1M top.q
commit -b mid.q top.q
commit -b base.q top.q
commit -b base.q -q top.q
commit -b ./base.q top.q
commit -b file:base.q top.q
commit --image-opts driver=qcow2,file.filename=top.q
commit --image-opts driver=qcow2,file.filename=top.q,backing.driver=qcow2,backing.file.filename=mid.q
commit --image-opts driver=qcow2,file.filename=top.q,read-only=on
commit --image-opts driver=compress,file.driver=qcow2,file.file.filename=top.q
commit 'json:{"driver":"qcow2","file.filename":"top.q","backing":null}'
commit orphan.q
commit onraw.q
commit unnamed.q
commit longer.q
commit old.q
commit snapshots.q
commit bitmaps.q
commit data.q
commit corrupt.q
commit oncorrupt.q
commit onsnapshot.q
commit empty.q
`;

function fill(directory: string): void {
  for (const line of String.raw`
create -q -f raw base.raw 1M
create -q -f qcow2 base.q 1M
create -q -f qcow2 -b base.q -F qcow2 mid.q
create -q -f qcow2 -b mid.q -F qcow2 top.q
create -q -f qcow2 -u -b gone.q -F qcow2 orphan.q 1M
create -q -f qcow2 -b base.raw -F raw onraw.q
create -q -f qcow2 -b base.raw -F raw unnamed.q 1M
create -q -f qcow2 -b base.q -F qcow2 longer.q 3M
create -q -f qcow2 -o compat=0.10 -b base.q -F qcow2 old.q 3M
create -q -f qcow2 -b base.q -F qcow2 snapshots.q
snapshot -c one snapshots.q
create -q -f qcow2 -b base.q -F qcow2 bitmaps.q
bitmap --add bitmaps.q b
create -q -f qcow2 -b base.q -F qcow2 -o data_file=data data.q
create -q -f qcow2 -b base.q -F qcow2 empty.q
create -q -f qcow2 sbase.q 1M
snapshot -c one sbase.q
create -q -f qcow2 -b sbase.q -F qcow2 onsnapshot.q
create -q -f qcow2 cbase.q 1M
create -q -f qcow2 -b cbase.q -F qcow2 oncorrupt.q
`.split("\n"))
    if (line !== "") runTheirs(words(line), directory);
  forgetBackingFormat(path.join(directory, "unnamed.q"));
}

describe("commit", { skip: missingTool }, () => {
  const fixture = new Fixture(fill);
  after(() => fixture.remove());
  for (const line of LINES.split("\n").filter((text) => text !== ""))
    it(line, () => fixture.same(words(line)));
});
