/** `npm run faults`: requests, commands and processes that fail, from a seed on, for as long as told. */

import { VARIANTS } from "../crash/variants.ts";
import { runSeeds } from "../support/seeds.ts";
import { nodeFaults } from "./nodes.ts";

await runSeeds({
  command: "faults",
  unit: "faults",
  variants: VARIANTS.map((variant) => ({
    name: variant.name,
    run: (seed: number) => nodeFaults(variant, seed, { steps: 30, faults: 25 }),
  })),
  run: (variant, seed) => variant.run(seed),
});
