/** Formats that are known by their first bytes and not read yet. Sources: the formats' own specifications. */

import type { ForeignFormat } from "../src/block/driver.ts";
import { bySignature } from "./signatures.ts";

/** A driver that comes takes its line with it. */
export const foreignFormats: readonly ForeignFormat[] = [
  // Sparse images of macOS, in one file, and what is in the folder of a sparse bundle.
  { formatName: "sparseimage", probe: bySignature({ text: "sprs\0\0\0\x03" }) },
  { formatName: "sparsebundle", probe: probeSparseBundle },
];

function probeSparseBundle(head: Uint8Array): number {
  return Buffer.from(head).includes("<string>com.apple.diskimage.sparsebundle</string>") ? 100 : 0;
}
