/**
 * Bitmaps, writes and sizes at random, by both tools: the same output and the same bytes after every line.
 * More by BDRV_BITMAP_SEEDS (how many seeds); another first seed by BDRV_SEED.
 */

import { test } from "node:test";
import { type Random, random } from "../support/random.ts";
import { missingTool } from "./differential.ts";
import { Scenario } from "./scenario.ts";

const SEEDS = Number(process.env["BDRV_BITMAP_SEEDS"] ?? 1);
const FIRST_SEED = Number(process.env["BDRV_SEED"] ?? 1);
const LINES = 25;
const MiB = 2 ** 20;

const VARIANTS = ["cluster_size=512", "cluster_size=4k,refcount_bits=1", "cluster_size=64k,extended_l2=on"];

const NAMES = ["n1", "n2", "n3", "a longer name for a bitmap"];

// A compressed write is left out: which of its clusters comes first is up to qemu's threads.
const REQUESTS = ["write -q", "write -q", "write -q -z", "write -q -z -u", "discard -q"];

function request(dice: Random, size: number): string {
  const offset = Math.floor(dice.below(size) / 512) * 512;
  const length = Math.floor(dice.below(dice.pick([4096, 70_000, 600_000])) / 512) * 512;
  return `-c '${dice.pick(REQUESTS)} ${offset} ${Math.min(size - offset, Math.max(length, 512))}'`;
}

function bitmapLine(dice: Random): string {
  const name = () => `'${dice.pick(NAMES)}'`;
  const granularity = dice.pick(["512", "4k", "64k", "1M"]);
  const actions = dice.pick([
    `--add -g ${granularity}`,
    `--add -g ${granularity} --disable`,
    "--add",
    dice.pick(["--enable", "--disable", "--clear", "--enable --clear"]),
    `--merge ${name()} ${dice.pick(["", "--disable", "--clear --merge n1"])}`,
    "--remove",
  ]);
  return `bitmap ${actions} a.qcow2 ${name()}`;
}

for (const [index, options] of VARIANTS.entries())
  test(`bitmaps at random: ${options}`, { skip: missingTool }, async (t) => {
    for (let seed = FIRST_SEED; seed < FIRST_SEED + SEEDS; seed++) {
      const story = new Scenario(t);
      const dice = random(seed * 10 + index);
      let size = 4 * MiB;
      story.given(`qemu-img create -q -f qcow2 -o ${options} a.qcow2 ${size}`);
      for (let line = 0; line < LINES; line++) {
        const kind = dice.below(10);
        if (kind < 4) {
          const requests = Array.from({ length: dice.between(1, 4) }, () => request(dice, size));
          await story.same(`qemu-io -d unmap ${requests.join(" ")} a.qcow2`);
        } else if (kind < 9) await story.same(bitmapLine(dice));
        else {
          const change = dice.pick([-1, 1]) * dice.pick([512, 65_536, MiB]);
          size = Math.max(MiB, Math.min(8 * MiB, size + change));
          await story.same(`resize --shrink a.qcow2 ${size}`);
        }
      }
      await story.same("check a.qcow2");
    }
  });
