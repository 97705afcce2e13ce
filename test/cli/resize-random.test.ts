/** Seeded stories of writes, resizes and amends: both tools make the same bytes of each resize and amend. */

import { describe, it } from "node:test";
import { type Random, random } from "../support/random.ts";
import { missingTool } from "./differential.ts";
import { Scenario } from "./scenario.ts";

const FIRST_SEED = Number(process.env["BDRV_SEED"] ?? 1);
const RUNS = Number(process.env["BDRV_RUNS"] ?? 8);
const STEPS = 12;

interface Setting {
  readonly unit: number;
  readonly isV2: boolean;
  readonly hasBacking: boolean;
}

function makeImage(scenario: Scenario, dice: Random, size: number, setting: Setting): void {
  const { unit, isV2, hasBacking } = setting;
  const options = [`cluster_size=${unit}`];
  if (isV2) options.push("compat=0.10");
  else {
    if (dice.chance(0.4)) options.push(`refcount_bits=${dice.pick([8, 16, 32, 64])}`);
    if (unit > 16384 && dice.chance(0.4)) options.push("extended_l2=on");
    if (dice.chance(0.2)) options.push("data_file=d.raw");
  }
  const backing = hasBacking ? "-b base.raw -F raw" : "";
  scenario.given(
    `qemu-img create -q -f raw base.raw ${unit * dice.between(1, 60)}`,
    `qemu-img create -q -f qcow2 -o ${options.join(",")} ${backing} t.qcow2 ${size}`,
  );
}

function change(dice: Random, size: number, { unit }: Setting): string {
  const offset = dice.below(size / unit) * unit;
  const bytes = unit * dice.between(1, Math.min(8, (size - offset) / unit));
  const kind = dice.pick(["write", "write -z", "discard", "write -P 5"]);
  return `qemu-io -d unmap -c '${kind} ${offset} ${bytes}' t.qcow2`;
}

async function story(scenario: Scenario, dice: Random): Promise<void> {
  const isV2 = dice.chance(0.2);
  // Version 2 can say of nothing over a backing file that it is zero: what is to be so is refused.
  const setting = { unit: dice.pick([512, 4096, 65536]), isV2, hasBacking: !isV2 && dice.chance(0.4) };
  let size = setting.unit * dice.between(1, 50);
  makeImage(scenario, dice, size, setting);
  for (let step = 0; step < STEPS; step++) {
    const kind = dice.below(6);
    if (kind < 2) scenario.given(change(dice, size, setting));
    else if (kind === 2 && !setting.isV2)
      await scenario.same(
        `amend -p -o refcount_bits=${dice.pick([8, 16, 32, 64])},lazy_refcounts=${dice.pick(["on", "off"])} t.qcow2`,
      );
    else {
      const bytes = setting.unit * dice.between(1, 80);
      const sets = bytes > size && !setting.hasBacking && dice.chance(0.5);
      const mode = sets ? `--preallocation=${dice.pick(["falloc", "full", "off"])}` : "";
      await scenario.same(`resize --shrink ${mode} t.qcow2 ${bytes}`);
      size = bytes;
    }
  }
  await scenario.same("check t.qcow2");
}

describe("random resizes and amends", { skip: missingTool }, () => {
  for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++)
    it(`seed ${seed}`, (test) => story(new Scenario(test), random(seed)));
});
