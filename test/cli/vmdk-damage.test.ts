/** VMDK images and descriptors that are damaged or odd, as qemu-img tells of them. */

import fs from "node:fs";
import path from "node:path";
import { describe, it, type TestContext } from "node:test";
import { clearIdentities } from "../support/vmdk-images.ts";
import { missingTool } from "./differential.ts";
import { Scenario } from "./scenario.ts";
import { tell } from "./stories.ts";

/** Bytes of the header that matter, by offset. */
const FIELDS = [0, 4, 7, 8, 10, 12, 20, 23, 26, 27, 28, 44, 46, 48, 52, 56, 58, 60, 64, 67, 70, 71, 77, 78];

function hostileStory(offset: number): string {
  const looks = ["info a.vmdk", "check -f vmdk a.vmdk", "map -f vmdk --output=json a.vmdk"];
  const lines = [0, 1, 3, 0xff].flatMap((byte) => [
    "= qemu-img create -q -f vmdk a.vmdk 3M",
    '= qemu-io -f vmdk -c "write -P 1 1M 64k" a.vmdk',
    `= qemu-io -f raw -c "write -P ${byte} ${offset} 1" a.vmdk`,
    ...looks,
  ]);
  return [`# a header with another byte at ${offset}`, ...lines].join("\n");
}

const DAMAGE = `
# check
= qemu-img create -q -f vmdk a.vmdk 6M
= qemu-io -c "write 0 4M" a.vmdk
= qemu-io -f raw -c "write -P 0x7f 13826 1" a.vmdk
check a.vmdk
check --output=json a.vmdk
check -r all a.vmdk
check -q a.vmdk
map --output=json a.vmdk
qemu-io -c "read -P 0 0 64k" a.vmdk

# images that are cut short
= qemu-img create -q -f vmdk a.vmdk 3M
= qemu-io -c "write -P 1 0 3M" a.vmdk
= qemu-img resize -q -f raw --shrink a.vmdk 1M
check a.vmdk
map --output=json a.vmdk
qemu-io -c "read -v 983000 100" a.vmdk
= qemu-img resize -q -f raw --shrink a.vmdk 1k
info a.vmdk
= qemu-img resize -q -f raw --shrink a.vmdk 512
info a.vmdk
= qemu-img create -q -f raw a.vmdk 0
info -f vmdk a.vmdk
info a.vmdk

# no descriptor
= qemu-img create -q -f vmdk a.vmdk 3M
= qemu-io -f raw -c "write -P 0 512 10k" a.vmdk
info a.vmdk

# version 3 that is not compressed
= qemu-img create -q -f vmdk a.vmdk 3M
= qemu-io -f raw -c "write -P 3 4 1" a.vmdk
info a.vmdk
qemu-io -c "write 0 64k" a.vmdk
qemu-io -r -c "read 0 64k" a.vmdk
convert -O raw a.vmdk r

# damaged streams
= qemu-img create -q -f vmdk -o subformat=streamOptimized a.vmdk 1M
= qemu-io -c "write -P 1 0 64k" a.vmdk
= qemu-io -f raw -c "write -P 0x7f 65544 4" a.vmdk
qemu-io -c "read 0 1k" a.vmdk
= qemu-io -f raw -c "write -P 0 65544 4" a.vmdk
qemu-io -c "read 0 1k" a.vmdk
= qemu-io -f raw -c "write -P 0x20 65544 1" a.vmdk
qemu-io -c "read 0 1k" a.vmdk
check a.vmdk
`;

const HEAD = `# Disk DescriptorFile
version=1
CID=12345678
parentCID=ffffffff
createType="TYPE"
`;

/** Descriptors that are opened beside a raw file of 1 MiB and sparse images; each is the extents' section. */
const DESCRIPTORS = [
  'RW 2048 FLAT "x.bin" 0',
  'RW 2048 FLAT "x.bin"',
  'RW 2048 FLAT "x.bin" -1',
  'RW 2048 FLAT "x.bin" 0x10',
  'RW 1024 FLAT "x.bin" 1024',
  'RW 2048 VMFS "x.bin"',
  'RW 2048 VMFS "x.bin" 0',
  'RW 2048 SPARSE "x.bin"',
  'RW 2048 SPARSE "a.vmdk"',
  'RW 2048 SPARSE "a.vmdk" 0',
  'RW 2048 SPARSE "s.vmdk"',
  'RW 2048 VMFSSPARSE "a.vmdk"',
  'RW 2048 SESPARSE "a.vmdk"',
  'RW 4096 FLAT "x.bin" 0',
  '  RW  2048   FLAT   "x.bin"  0   ',
  'RW 2048 FLAT "x.bin" 0\r',
  'RW 2048 FLAT "missing" 0',
  'RW 2048 SPARSE "missing"',
  'RW 2048 FLAT "sub/x.bin" 0',
  'RW 18014398509481984 FLAT "x.bin" 0',
  'RW 2048 FLAT "d.vmdk" 0',
  'RW 2048 SPARSE "d.vmdk"',
  'RW 2048 FLAT "x.bin" 0\nRW 1024 FLAT "x.bin" 1024\nRW 8 VMFS "y.bin"',
  'RW 2048 FLAT "x.bin" 0\nRW 2048 SPARSE "a.vmdk"\nRW 8 VMFS "y.bin"',
  'RW 2048 SPARSE "a.vmdk"\nRW 2048 SPARSE "a.vmdk"',
  'RW 2048 FLAT "x.bin" 0\nRW 2048 FLAT "x.bin" y',
  'RW 2048 FLAT "x.bin" 0\nnonsense\n#comment\nRW 20 FLAT\nRW -20 FLAT "x.bin" 0\nRW 0 FLAT "x.bin" 0',
];

const TYPES = [
  "vmfs",
  "vmfsSparse",
  "seSparse",
  "twoGbMaxExtentSparse",
  "twoGbMaxExtentFlat",
  "monolithicSparse",
  "streamOptimized",
  "custom",
  "fullDevice",
  "vmfsRaw",
  "",
];

/** Beginnings of descriptors: what probing and the identities make of them. */
const HEADS = [
  HEAD,
  HEAD.replace("CID=12345678\n", ""),
  HEAD.replace("parentCID=ffffffff\n", ""),
  HEAD.replace("CID=12345678", "CID=xyz"),
  HEAD.replace("CID=12345678", "CID=1"),
  HEAD.replace("# Disk DescriptorFile\n", ""),
  HEAD.replace("# Disk DescriptorFile\n", "#\n\n  \n# more\n"),
  HEAD.replace("version=1", "version=4"),
  HEAD.replace("version=1", "version=2"),
  HEAD.replace("version=1", "version=3\r"),
  HEAD.replace("version=1", " version=1"),
  HEAD.replace('createType="TYPE"\n', ""),
  HEAD.replace('createType="TYPE"', 'createType="TYPE'),
  `${HEAD}parentFileNameHint="a.vmdk"\n`,
  `${HEAD}parentFileNameHint="a.vmdk\n`,
  `${HEAD}parentFileNameHint="${"a".repeat(4096)}"\n`,
  `${HEAD}parentFileNameHint="${"a".repeat(4095)}"\n`,
  HEAD.replaceAll("\n", "\r\n"),
];

async function compareDescriptors(test: TestContext, texts: readonly string[]): Promise<void> {
  const scenario = new Scenario(test, clearIdentities);
  scenario.given(
    "qemu-img create -q -f vmdk a.vmdk 1M",
    "qemu-img create -q -f vmdk -o subformat=streamOptimized s.vmdk 1M",
    "qemu-img create -q -f raw x.bin 1M",
    "qemu-img create -q -f raw y.bin 100k",
  );
  for (const text of texts) {
    scenario.change((directory) => fs.writeFileSync(path.join(directory, "d.vmdk"), text));
    await scenario.same(
      "info d.vmdk",
      "info -f vmdk --output=json d.vmdk",
      "map --output=json d.vmdk",
      "check d.vmdk",
    );
  }
}

describe("damaged vmdk beside qemu-img", { skip: missingTool ?? false }, () => {
  tell(DAMAGE, clearIdentities);
  tell(FIELDS.map(hostileStory).join("\n\n"), clearIdentities);
  it("descriptors: extents", (test) =>
    compareDescriptors(
      test,
      DESCRIPTORS.map((extents) => `${HEAD.replace("TYPE", "monolithicFlat")}${extents}\n`),
    ));
  it("descriptors: types", (test) =>
    compareDescriptors(
      test,
      TYPES.map((type) => `${HEAD.replace("TYPE", type)}RW 2048 FLAT "x.bin" 0\n`),
    ));
  it("descriptors: heads", (test) =>
    compareDescriptors(
      test,
      HEADS.map((head) => `${head.replace("TYPE", "monolithicFlat")}RW 2048 FLAT "x.bin" 0\n`),
    ));
});
