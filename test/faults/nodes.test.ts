/** Short runs of failing requests on all variants; `npm run faults` has the long ones. More by BDRV_SEED. */

import { describe, it } from "node:test";
import { VARIANTS } from "../crash/variants.ts";
import { nodeFaults } from "./nodes.ts";

const SEED = Number(process.env["BDRV_SEED"] ?? 1);

describe("an image whose requests fail", () => {
  for (const variant of VARIANTS)
    it(`goes on, or is closed: ${variant.name}`, async () => {
      try {
        await nodeFaults(variant, SEED, { steps: 16, faults: 5 });
      } catch (error) {
        throw new Error(`seed ${SEED}: ${(error as Error).message}`, { cause: error });
      }
    });
});
