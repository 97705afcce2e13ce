/**
 * Files from untrusted hands stay in their directory: a name may be a symbolic link to another file in there, but not
 * out of it. The directory itself is the user's, who named it.
 */

import fs from "node:fs";
import path from "node:path";
import { BlockError, toBlockError } from "../src/block/errors.ts";

/** The name without links, to be opened in place of `filename`; EACCES if it is out of the directory. It need not exist. */
export function confine(filename: string): string {
  const directory = realPath(path.dirname(filename));
  const real = exists(filename) ? realPath(filename) : path.join(directory, path.basename(filename));
  const inside = path.relative(directory, real);
  if (inside === ".." || inside.startsWith(`..${path.sep}`) || path.isAbsolute(inside))
    throw leadsOut(filename);
  return real;
}

/** Whoever put a link there between the look and the open has gained nothing. `real` is what `confine` gave. */
export function checkConfined(fd: number, real: string): void {
  let actual: string;
  try {
    actual = fs.readlinkSync(`/proc/self/fd/${fd}`);
  } catch {
    // Systems that don't tell have the first look only.
    return;
  }
  if (actual !== real) throw leadsOut(real);
}

function exists(filename: string): boolean {
  // A link to nothing is there, and what is made by its name is elsewhere.
  return fs.lstatSync(filename, { throwIfNoEntry: false }) !== undefined;
}

function realPath(name: string): string {
  try {
    return fs.realpathSync(name);
  } catch (error) {
    throw toBlockError(error);
  }
}

function leadsOut(filename: string): BlockError {
  return new BlockError("EACCES", `'${filename}' is untrusted and leads out of its directory`);
}
