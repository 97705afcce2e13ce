/** Temporary directories that go away with the test. */

import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { removeSync } from "fs-extra/esm";

/** What of a test's context is needed: node:test's, or a suite's own. */
export interface Cleanup {
  after(fn: () => void | Promise<void>): void;
}

/** A new directory under the system's own for such things; removed after the test with all that is in it. */
export function tempDir(test: Cleanup): string {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), "bdrv-test-"));
  test.after(() => removeSync(dir));
  return dir;
}

/** A file of `bytes` zeroes, all of it a hole; gives its name. */
export function sparseFile(dir: string, name: string, bytes: number): string {
  const filename = path.join(dir, name);
  fs.writeFileSync(filename, "");
  fs.truncateSync(filename, bytes);
  return filename;
}

/** The names of what this process has open under `dir`: descriptors that leaked. */
export function openFilesUnder(dir: string): string[] {
  const names: string[] = [];
  for (const fd of fs.readdirSync("/proc/self/fd")) {
    try {
      const target = fs.readlinkSync(`/proc/self/fd/${fd}`);
      if (target.startsWith(dir)) names.push(target);
    } catch {
      // The descriptor of the listing itself is closed by now.
    }
  }
  return names;
}
