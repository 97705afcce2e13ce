/** Rows of plain L2 entries, beside the definition in 64-bit integers. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { plainRun } from "../../../drivers/qcow2/entries.ts";
import { random } from "../../support/random.ts";

const COPIED = 1n << 63n;

function definition(view: DataView, index: number, limit: number, clusterSize: bigint): number {
  const at = (place: number) => view.getBigUint64(place * 8);
  const first = at(index);
  if (first >> 56n !== 0x80n || first % clusterSize !== 0n || first === COPIED) return 0;
  let next = index + 1;
  while (next < limit && at(next) === at(next - 1) + clusterSize && at(next) >> 56n === 0x80n) next++;
  return next - index;
}

test("plainRun ends where the row ends", () => {
  const numbers = random(7);
  const view = new DataView(new ArrayBuffer(16384));
  for (let round = 0; round < 400; round++) {
    const clusterSize = 2n ** BigInt(9 + numbers.below(13));
    let hostOffset = clusterSize * BigInt(numbers.below(2 ** 20));
    // Near where the lower half is full, and near the end of what an entry can name.
    if (numbers.below(3) === 0) hostOffset = (1n << 32n) - clusterSize * BigInt(numbers.below(600));
    if (numbers.below(9) === 0) hostOffset = (1n << 56n) - clusterSize * BigInt(numbers.below(600));
    for (let index = 0; index < 2048; index++) {
      const wrong = numbers.below(700) === 0 ? 1n << BigInt(numbers.below(64)) : 0n;
      view.setBigUint64(index * 8, BigInt.asUintN(64, (COPIED | hostOffset) ^ wrong));
      hostOffset += clusterSize;
    }
    for (let look = 0; look < 8; look++) {
      const index = numbers.below(2048);
      const limit = index + 1 + numbers.below(2048 - index);
      const expected = definition(view, index, limit, clusterSize);
      assert.equal(plainRun(view, index, limit, Number(clusterSize)), expected, `round ${round}`);
    }
  }
});
