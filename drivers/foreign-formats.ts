/** Formats that are known by their first bytes and not read yet. Sources: the formats' own specifications. */

import type { ForeignFormat } from "../src/block/driver.ts";

/** Bytes that a format has at an offset; text is Latin-1. */
interface Signature {
  readonly formatName: string;
  readonly offset?: number;
  readonly text: string;
}

/** A driver that comes takes its line with it. */
const SIGNATURES: readonly Signature[] = [
  { formatName: "vmdk", text: "KDMV" },
  { formatName: "vmdk", text: "COWD" },
  { formatName: "vmdk", text: "# Disk DescriptorFile" },
  { formatName: "vpc", text: "conectix" },
  { formatName: "vhdx", text: "vhdxfile" },
  { formatName: "vdi", offset: 64, text: "\x7f\x10\xda\xbe" },
  { formatName: "qcow", text: "QFI\xfb\0\0\0\x01" },
  { formatName: "qed", text: "QED\0" },
  { formatName: "parallels", text: "WithoutFreeSpace" },
  { formatName: "parallels", text: "WithouFreSpacExt" },
  { formatName: "bochs", text: "Bochs Virtual HD Image" },
  { formatName: "cloop", text: "#!/bin/sh\n#V2.0 Format\nmodprobe cloop" },
];

/** Surer than the name of a file, and than raw. */
const BY_SIGNATURE = 100;

/** A dmg has its signature at its end: as in QEMU, its name tells.  @qemu dmg_probe */
const BY_NAME = 2;

export const foreignFormats: readonly ForeignFormat[] = [
  ...SIGNATURES.map(({ formatName, offset = 0, text }) => ({
    formatName,
    probe: (head: Uint8Array) =>
      Buffer.from(head.buffer, head.byteOffset, head.length).toString(
        "latin1",
        offset,
        offset + text.length,
      ) === text
        ? BY_SIGNATURE
        : 0,
  })),
  { formatName: "dmg", probe: (_, filename) => (filename.endsWith(".dmg") ? BY_NAME : 0) },
];
