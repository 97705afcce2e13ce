/** `npm run faults`: requests, calls and processes that fail, from a seed on, for as long as told. */

import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { VARIANTS } from "../crash/variants.ts";
import { runSeeds } from "../support/seeds.ts";
import { Bench, commandFaults } from "./commands.ts";
import { nodeFaults } from "./nodes.ts";
import { SCENARIOS } from "./scenarios.ts";
import { bundleDirectory, bundleKilled, signalFaults } from "./signals.ts";

const images = fs.mkdtempSync(path.join(os.tmpdir(), "bdrv-faults-"));
const bundle = bundleDirectory();
process.on("exit", () => {
  for (const directory of [images, bundle]) fs.rmSync(directory, { recursive: true, force: true });
});
for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => process.exit(1));

const bench = new Bench(images);
const program = await bundleKilled(bundle);

await runSeeds({
  command: "faults",
  unit: "faults",
  variants: [
    ...VARIANTS.map((variant) => ({
      name: variant.name,
      run: (seed: number) => nodeFaults(variant, seed, { steps: 30, faults: 25 }),
    })),
    ...SCENARIOS.map((scenario) => ({
      name: `command: ${scenario.name}`,
      run: (seed: number) => commandFaults(bench, scenario, seed, 12),
    })),
    ...SCENARIOS.map((scenario) => ({
      name: `signal: ${scenario.name}`,
      run: (seed: number) => signalFaults(bench, program, scenario, seed, 6),
    })),
  ],
  run: (variant, seed) => variant.run(seed),
});
