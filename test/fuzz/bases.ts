/** Makes the valid images that mutations begin with. */

import { spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { type CreateOptions, create } from "../../src/index.ts";
import type { Base, FuzzFormat, Workshop } from "./format.ts";

export const SECRETS = { key: "a passphrase" };

/** `directory` is left empty. */
export async function makeBases(format: FuzzFormat, directory: string): Promise<readonly Base[]> {
  fs.mkdirSync(directory, { recursive: true });
  const workshop: Workshop = {
    path: (name) => path.join(directory, name),
    secrets: SECRETS,
    async create(filename, formatName, size, { backing_file, backing_fmt, ...options }) {
      const backing =
        backing_file === undefined
          ? undefined
          : { filename: String(backing_file), format: String(backing_fmt) };
      // The options are the table's of a format that is only known at run time.
      await create(filename, {
        format: formatName,
        size,
        options,
        backing,
        secrets: SECRETS,
      } as unknown as CreateOptions);
    },
    tool(program, ...args) {
      const { status, error } = spawnSync(program, args, { cwd: directory, stdio: "ignore" });
      return error === undefined && status === 0;
    },
  };
  // A data file lies where its name says, seen from here; and the same names make the same images.
  const before = process.cwd();
  process.chdir(directory);
  try {
    return await format.bases(workshop);
  } finally {
    process.chdir(before);
    fs.rmSync(directory, { recursive: true });
  }
}
