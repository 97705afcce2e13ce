/** `rebase` beside qemu-img's. */

import path from "node:path";
import { after, describe, it } from "node:test";
import { forgetBackingFormat, setBackingFormat } from "../support/backing-format.ts";
import { Fixture, missingTool, runTheirs, words } from "./differential.ts";

const LONG = "x".repeat(300);

const LINES = String.raw`
rebase
rebase top.q
rebase -b base.q
rebase -b base.q top.q x
rebase -x
rebase -b
rebase -p top.q
rebase -t foo -b base.q top.q
rebase -T foo -b base.q top.q
rebase -T foo -t bar -b base.q top.q
rebase -p -t foo -b base.q top.q
rebase -f foo -b base.q top.q
rebase -F foo -b base.q top.q
rebase -F foo -b base.q nonex
rebase -F foo -u -b base.q top.q
rebase -p -F foo -b nonex top.q
rebase --object foo -b base.q top.q
rebase --image-opts -f qcow2 -b base.q -F qcow2 top.q
rebase --image-opts -b base.q -F qcow2 top.q
rebase -b base.q nonex
rebase -p -b base.q nonex
rebase -b nonex top.q
rebase -p -b nonex -F raw top.q
rebase -b base.q top.q
rebase -b base.q -F qcow2 top.q
rebase -b base.q -F raw top.q
rebase -b base.raw -F qcow2 top.q
rebase -p -b base.q -F qcow2 top.q
rebase -q -p -b base.q -F qcow2 top.q
rebase -pb base.q -Fqcow2 top.q
rebase -b '' top.q
rebase -p -b '' top.q
rebase -b '' -F raw top.q
rebase -b mid.q -F qcow2 top.q
rebase -p -b mid.q -F qcow2 top.q
rebase -b top.q -F qcow2 mid.q
rebase -u top.q
rebase -u -b new top.q
rebase -u -b new -F raw top.q
rebase -u -b '' top.q
rebase -u -b '' -F raw top.q
rebase -u -F raw top.q
rebase -p -u -b new -F qcow2 top.q
rebase -u -b foo:bar -F raw top.q
rebase -b foo:bar -F raw top.q
rebase -u -b ${LONG} -F raw small.q
rebase -u -b ${LONG}${LONG} -F raw small.q
rebase -u -b ${LONG}${LONG} small.q
rebase -u -b ${LONG}${LONG}${LONG} -F raw top.q
rebase -u -b ${LONG}${LONG}${LONG}${LONG} -F raw top.q
rebase -b ${LONG} -F raw top.q
rebase -u -b base.q -F qcow2 orphan.q
rebase -b base.q -F qcow2 orphan.q
rebase -p -b base.q -F qcow2 alone.q
rebase -b other.q -F qcow2 alone.q
rebase -b '' alone.q
rebase -b base.raw -F raw onraw.q
rebase -b base.raw onraw.q
rebase -b base.raw -F raw unnamed.q
rebase -b base.q -F qcow2 unnamed.q
rebase -U -b base.q -F qcow2 top.q
rebase -t none -T none -b base.q -F qcow2 top.q
rebase -t writethrough -T unsafe -b other.q -F qcow2 top.q
rebase -b base.raw -F raw base.raw
rebase -f raw -b other.q -F qcow2 base.raw
rebase -f raw -b other.q base.raw
rebase -f raw -b '' base.raw
rebase -f raw -u base.raw
rebase -f raw -u -b x base.raw
rebase -f raw -u -b x -F raw base.raw
rebase -b null-co:// -F raw top.q
rebase -b 'json:{"driver":"qcow2","file.filename":"base.q"}' top.q
rebase -b 'json:{"driver":"qcow2","file.filename":"base.q"}' -F qcow2 top.q
rebase -b 'json:{"driver":"qcow2","file.filename":"other.q"}' -F qcow2 top.q
rebase -b ../base.q -F qcow2 sub/top.q
rebase -b base.q -F qcow2 sub/top.q
rebase -u -b base.q -F qcow2 sub/top.q
rebase -u -b base.q -F badformat top.q
rebase -p -b other.q -F qcow2 top.q
rebase -p -b longer.q -F qcow2 top.q
rebase -p -b shorter.q -F qcow2 top.q
rebase -p -b longer.q -F qcow2 big.q
rebase -b other.q -F qcow2 old.q
rebase -b '' old.q
rebase -u -b other.q -F qcow2 datafile.q
rebase -b other.q -F qcow2 datafile.q
rebase -u -b other.q -F qcow2 rawdata.q
rebase -b other.q -F qcow2 rawdata.q
rebase -b base.q -F qcow2 badfmt.q
rebase -b '' badfmt.q
rebase -u -b other.q -F qcow2 badfmt.q
rebase --image-opts -b other.q -F qcow2 driver=qcow2,file.filename=top.q
rebase --image-opts -b other.q -F qcow2 driver=qcow2,file.filename=top.q,backing.driver=qcow2,backing.file.filename=base.q
rebase --image-opts -u -b other.q -F qcow2 driver=qcow2,file.filename=top.q,read-only=on
rebase --image-opts -b other.q -F qcow2 driver=compress,file.driver=qcow2,file.file.filename=top.q
`;

function fill(directory: string): void {
  for (const line of String.raw`
create -q -f raw base.raw 1M
create -q -f qcow2 base.q 1M
create -q -f qcow2 other.q 1M
create -q -f qcow2 longer.q 7M
create -q -f qcow2 shorter.q 300k
create -q -f qcow2 -b base.q -F qcow2 mid.q
create -q -f qcow2 -b mid.q -F qcow2 top.q
create -q -f qcow2 -b mid.q -F qcow2 big.q 300M
create -q -f qcow2 alone.q 3M
create -q -f qcow2 -o cluster_size=512 -b base.q -F qcow2 small.q
create -q -f qcow2 -u -b gone.q -F qcow2 orphan.q 1M
create -q -f qcow2 -b base.raw -F raw badfmt.q 1M
create -q -f qcow2 -b base.raw -F raw onraw.q
create -q -f qcow2 -b base.raw -F raw unnamed.q 1M
create -q -f qcow2 -o compat=0.10 -b base.q -F qcow2 old.q 3M
create -q -f qcow2 -b base.q -F qcow2 -o data_file=data datafile.q
create -q -f qcow2 -o data_file=rawdata,data_file_raw=on rawdata.q 1M
`.split("\n"))
    if (line !== "") runTheirs(words(line), directory);
  forgetBackingFormat(path.join(directory, "unnamed.q"));
  setBackingFormat(path.join(directory, "badfmt.q"), "foo");
}

describe("rebase", { skip: missingTool }, () => {
  const fixture = new Fixture(fill);
  after(() => fixture.remove());
  for (const line of LINES.split("\n").filter((text) => text !== ""))
    it(line.length > 200 ? `${line.slice(0, 200)}...` : line, () => fixture.same(words(line)));
});
