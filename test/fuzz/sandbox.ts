/** Watches which files are opened or looked at: a case may touch those that it was given, and no other. */

import fs from "node:fs";
import path from "node:path";

type Named =
  | "openSync"
  | "open"
  | "statSync"
  | "lstatSync"
  | "readFileSync"
  | "realpathSync"
  | "readlinkSync"
  | "unlinkSync"
  | "renameSync"
  | "truncateSync"
  | "existsSync"
  | "readdirSync"
  | "accessSync";

const CALLS: readonly Named[] = [
  "openSync",
  "open",
  "statSync",
  "lstatSync",
  "readFileSync",
  "realpathSync",
  "readlinkSync",
  "unlinkSync",
  "renameSync",
  "truncateSync",
  "existsSync",
  "readdirSync",
  "accessSync",
];

/** Where our own code and node's are, and what the kernel tells of this process. */
const OWN = [
  path.resolve(import.meta.dirname, "../.."),
  path.dirname(path.dirname(process.execPath)),
  "/proc/self",
  "/proc/locks",
  "/dev/urandom",
];

/** Calls `report` with each name that does not lie under `directory`. */
export function watchFiles(directory: string, report: (name: string) => void): void {
  const allowed = [directory, ...OWN];
  const table = fs as unknown as Record<Named, (...args: readonly unknown[]) => unknown>;
  for (const call of CALLS) {
    const original = table[call];
    const watched = (...args: readonly unknown[]): unknown => {
      const [name] = args;
      if (typeof name === "string") {
        const full = path.resolve(name);
        // Where a directory lies is asked part by part.
        const isAbove = call === "lstatSync" && directory.startsWith(full);
        if (!isAbove && !allowed.some((each) => full === each || full.startsWith(`${each}/`)))
          report(`${call} ${full}`);
      }
      return original.apply(fs, args as unknown[]);
    };
    table[call] = Object.assign(watched, original);
  }
}
