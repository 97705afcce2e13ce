/** `npm run crash`: crash tests from a seed on, for as long as told. */

import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { runSeeds } from "../support/seeds.ts";
import { missing } from "../support/tools.ts";
import { crashTest } from "./crash.ts";
import { VARIANTS } from "./variants.ts";

const directory = fs.mkdtempSync(path.join(os.tmpdir(), "bdrv-crash-"));
process.on("exit", () => fs.rmSync(directory, { recursive: true, force: true }));
for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => process.exit(1));

await runSeeds({
  command: "crash",
  unit: "images",
  variants: VARIANTS,
  run: (variant, seed) =>
    crashTest(variant, seed, {
      steps: 60,
      tears: 3,
      directory: missing("qemu-img") ? undefined : directory,
      qemuEvery: 50,
    }),
});
