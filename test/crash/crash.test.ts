/** Short crash tests of all variants; `npm run crash` has the long ones. More by BDRV_SEED. */

import { describe, it } from "node:test";
import { tempDir } from "../support/temp.ts";
import { missing } from "../support/tools.ts";
import { crashTest } from "./crash.ts";
import { VARIANTS } from "./variants.ts";

const SEED = Number(process.env["BDRV_SEED"] ?? 1);

describe("an image after a power cut", () => {
  const hasQemu = !missing("qemu-img");
  for (const variant of VARIANTS)
    it(`is sound and has what was flushed: ${variant.name}`, async (test) => {
      const directory = hasQemu ? tempDir(test) : undefined;
      const settings = { steps: 10, tears: 1, directory, qemuEvery: 60 };
      try {
        await crashTest(variant, SEED, settings);
      } catch (error) {
        throw new Error(`seed ${SEED}: ${(error as Error).message}`, { cause: error });
      }
    });
});
