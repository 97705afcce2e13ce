/** Random damage of an image's refcounts, and its repair, as steps of the random operations. */

import assert from "node:assert/strict";
import fs from "node:fs";
import { refcountAccess } from "../drivers/qcow2/entries.ts";
import { checkImage } from "../src/jobs/check.ts";
import type { LoneKind } from "./random-lone-ops.ts";
import type { OpsTarget } from "./random-ops.ts";
import { type Random, random } from "./support/random.ts";

/** `seed`: of what is damaged. `table`: a whole refcount block is lost, so that all are made anew. */
export interface RepairOp {
  readonly kind: "repair";
  readonly seed: number;
  readonly table: boolean;
}

export const repairKinds: { readonly repair: LoneKind<RepairOp> } = {
  repair: {
    percent: 2,
    isFor: ({ repair }) => repair === true,
    make: (dice) => ({ kind: "repair", seed: dice.below(2 ** 30), table: dice.chance(0.3) }),
    run: (run, { seed, table }) =>
      run.closed(async () => {
        damageRefcounts(run.target, random(seed), table);
        await repair(run.target);
      }),
  },
};

function damageRefcounts({ filename }: OpsTarget, dice: Random, table: boolean): void {
  assert.ok(filename, "the target has no file");
  const content = fs.readFileSync(filename);
  const clusterSize = 2 ** content.readUInt32BE(20);
  const order = content.readUInt32BE(4) === 3 ? content.readUInt32BE(96) : 4;
  const tableOffset = Number(content.readBigUInt64BE(48));
  const blocks: number[] = [];
  for (let at = tableOffset; at < tableOffset + content.readUInt32BE(56) * clusterSize; at += 8)
    if (content.readBigUInt64BE(at) !== 0n) blocks.push(at);
  if (table) {
    const at = dice.pick(blocks);
    content.writeBigUInt64BE(dice.pick([0n, content.readBigUInt64BE(at) | 1n]), at);
  }
  const { get, set, max } = refcountAccess(order);
  const [first = 0] = blocks;
  const block = new DataView(
    content.buffer,
    content.byteOffset + Number(content.readBigUInt64BE(first)),
    clusterSize,
  );
  const clusters = Math.min((clusterSize * 8) / 2 ** order, Math.ceil(content.length / clusterSize));
  for (let count = dice.between(1, 6); !table && count > 0; count--) {
    const cluster = dice.below(clusters);
    const refcount = get(block, cluster);
    set(block, cluster, Math.min(dice.chance(0.3) ? 0 : refcount + dice.between(0, 2), max));
  }
  fs.writeFileSync(filename, content);
}

async function repair(target: OpsTarget): Promise<void> {
  const image = await target.openToCheck?.();
  assert.ok(image, "the target can't be opened to be checked");
  const lines: string[] = [];
  const report = (line: string) => lines.push(line);
  try {
    await checkImage(image, { fixLeaks: true, fixErrors: true, report });
    const { corruptions, leaks, checkErrors } = await checkImage(image, {
      fixLeaks: false,
      fixErrors: false,
      report,
    });
    assert.deepEqual(
      { corruptions, leaks, checkErrors },
      { corruptions: 0, leaks: 0, checkErrors: 0 },
      lines.join("\n"),
    );
  } finally {
    await image.close();
  }
}
