/** Seeded combinations of create's options and sizes: both tools say the same and make the same bytes. */

import fs from "node:fs";
import path from "node:path";
import { describe, it } from "node:test";
import { type Random, random } from "../support/random.ts";
import { missingTool } from "./differential.ts";
import { Scenario } from "./scenario.ts";

const SEED = Number(process.env["BDRV_SEED"] ?? 1);
const RUNS = Number(process.env["BDRV_RUNS"] ?? 100);

const SIZES = (
  "0 1 511 512 513 1000 64k 1M 1048577 3M 10M 1.5M 7777k 20M 0x10000 2M 8E -1 1e3 0x1k 1.5 5kb" as const
).split(" ");

function makeLine(dice: Random): string {
  const options = [`cluster_size=${dice.pick(["512", "1k", "4k", "16k", "64k", "256k", "2M", "1000"])}`];
  const maybe = (probability: number, option: string) => {
    if (dice.chance(probability)) options.push(option);
  };
  maybe(0.2, "compat=0.10");
  maybe(0.3, `refcount_bits=${dice.pick([1, 2, 4, 8, 16, 32, 64, 3])}`);
  maybe(0.2, "extended_l2=on");
  maybe(0.2, "lazy_refcounts=on");
  maybe(0.2, "compression_type=zstd");
  maybe(0.5, `preallocation=${dice.pick(["off", "metadata", "falloc", "full"])}`);
  maybe(0.2, "data_file=d.raw");
  maybe(0.1, "data_file_raw=on");
  const backing = dice.chance(0.25)
    ? dice.pick(["-b base.raw -F raw", "-b base.qcow2 -F qcow2", "-b nope -F raw -u", "-b base.raw"])
    : "";
  const size = dice.chance(0.9) ? dice.pick(SIZES) : "";
  return `create -f qcow2 -o ${options.join(",")} ${backing} t.qcow2 ${size}`;
}

describe("create, random options", { skip: missingTool }, () => {
  it(`${RUNS} from seed ${SEED}`, async (test) => {
    const dice = random(SEED);
    const scenario = new Scenario(test);
    scenario.given("qemu-img create -q -f raw base.raw 1M", "qemu-img create -q -f qcow2 base.qcow2 3M");
    for (let count = 0; count < RUNS; count++) {
      await scenario.same(makeLine(dice));
      scenario.change((directory) => {
        for (const name of ["t.qcow2", "d.raw"]) fs.rmSync(path.join(directory, name), { force: true });
      });
    }
  });
});
