/** Formats that are known by their first bytes and not read yet. Sources: the formats' own specifications. */

import type { ForeignFormat } from "../src/block/driver.ts";

import { bySignature } from "./signatures.ts";

/** A dmg has its signature at its end: as in QEMU, its name tells.  @qemu dmg_probe */
const BY_NAME = 2;

/** A driver that comes takes its line with it. */
export const foreignFormats: readonly ForeignFormat[] = [
  { formatName: "qcow", probe: bySignature({ text: "QFI\xfb\0\0\0\x01" }) },
  { formatName: "dmg", probe: (_, filename) => (filename.endsWith(".dmg") ? BY_NAME : 0) },
];
