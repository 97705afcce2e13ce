/** How far a format answers at once about block status, where QEMU answers for one cluster at a time. */

import type { BlockNode } from "../src/block/node.ts";
import { SECTOR_SIZE } from "../src/block/units.ts";

/**
 * The bytes to look at from `offset` on, of `bytes`: all but the last cluster, which gets an answer of its own. For
 * whoever compares strictly sees which answers reach the end.
 */
export function beforeLastCluster(
  { totalSectors }: BlockNode,
  clusterSize: number,
  offset: number,
  bytes: number,
): number {
  const end = totalSectors * SECTOR_SIZE - 1;
  const left = end - (end % clusterSize) - offset;
  return left > 0 ? Math.min(bytes, left) : bytes;
}
