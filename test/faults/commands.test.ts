/**
 * Each writing command with a few calls failing, and some ended by signals; `npm run faults` has the long runs. More by
 * BDRV_SEED.
 */

import fs from "node:fs";
import { after, describe, it } from "node:test";
import { tempDir } from "../support/temp.ts";
import { Bench, commandFaults } from "./commands.ts";
import { SCENARIOS } from "./scenarios.ts";
import { bundleDirectory, bundleKilled, signalFaults } from "./signals.ts";

const SEED = Number(process.env["BDRV_SEED"] ?? 1);

/** Every how many commands one is ended by a signal: a process each. */
const SIGNALS_STRIDE = 3;

const named = async (work: Promise<unknown>) => {
  try {
    await work;
  } catch (error) {
    throw new Error(`seed ${SEED}: ${(error as Error).message}`, { cause: error });
  }
};

describe("a command on a disk that fails or is full", () => {
  const bench = new Bench(tempDir({ after }));
  for (const scenario of SCENARIOS) it(scenario.name, () => named(commandFaults(bench, scenario, SEED, 2)));
});

describe("a command that is ended by a signal", () => {
  const bench = new Bench(tempDir({ after }));
  const bundle = bundleDirectory();
  after(() => fs.rmSync(bundle, { recursive: true, force: true }));
  let program: Promise<string> | undefined;
  for (const scenario of SCENARIOS.filter((_, index) => (index + SEED) % SIGNALS_STRIDE === 0))
    it(scenario.name, async () => {
      program ??= bundleKilled(bundle);
      await named(signalFaults(bench, await program, scenario, SEED, 1));
    });
});
