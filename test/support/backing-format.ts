/** Images that say nothing, or nonsense, of their backing file's format. */

import fs from "node:fs";

/** Takes the format out of the header of a qcow2 image of version 3: no tool makes such an image any more. */
export function forgetBackingFormat(filename: string): void {
  const file = fs.readFileSync(filename);
  // It is the first extension, which becomes the end of all.
  file.fill(0, 112, 120);
  fs.writeFileSync(filename, file);
}

/** Puts another name of three letters there. */
export function setBackingFormat(filename: string, format: string): void {
  const file = fs.readFileSync(filename);
  file.write(format, 120, 3, "latin1");
  fs.writeFileSync(filename, file);
}
