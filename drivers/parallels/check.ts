/** Looks for damage, and mends it: clusters outside of the file, space behind the last, and a mark that was left.  @qemu parallels_co_check */

import type { Coroutine } from "../../src/block/coroutine.ts";
import type { CheckOptions, CheckResult } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import { divideRoundUp, SECTOR_SIZE } from "../../src/block/units.ts";
import { batEnd, findDataEnd, forEachCluster, type State } from "./state.ts";

/** Called with the lock held. */
export async function check(
  co: Coroutine<"read">,
  state: State,
  options: CheckOptions,
): Promise<CheckResult> {
  const { file, bat, clusterSize, node } = state;
  if ((options.fixLeaks || options.fixErrors) && node.readOnly)
    throw new BlockError("EPERM", "Block node is read-only");
  const result: CheckResult = {
    corruptions: 0,
    leaks: 0,
    checkErrors: 0,
    corruptionsFixed: 0,
    leaksFixed: 0,
    imageEndOffset: 0,
    totalClusters: bat.entries,
    allocatedClusters: 0,
    fragmentedClusters: 0,
    compressedClusters: 0,
  };
  const fixing = options.fixErrors ? "Repairing" : "ERROR";
  if (state.isUnclean) {
    options.report(`${fixing} image was not closed correctly`);
    result.corruptions++;
    if (options.fixErrors) {
      // The mark itself goes when the image is closed.
      state.isUnclean = false;
      result.corruptionsFixed++;
    }
  }
  await bat.write(co);
  const fileBytes = await file.getLength(co);
  const end = await checkClusters(co, state, options, result, fileBytes);
  await bat.flush(co);
  result.imageEndOffset = end;
  if (fileBytes > end && state.header.extensionOffset === 0) {
    const leaked = divideRoundUp(fileBytes - end, clusterSize);
    options.report(
      `${options.fixLeaks ? "Repairing" : "ERROR"} space leaked at the end of the image ${fileBytes - end}`,
    );
    result.leaks += leaked;
    if (options.fixLeaks) {
      await file.truncate(co, end, true);
      result.leaksFixed += leaked;
    }
  }
  if (!node.readOnly) state.dataEnd = Math.max(end, await findDataEnd(co, state));
  return result;
}

/** Gives the offset of the end of the last cluster in the file. */
async function checkClusters(
  co: Coroutine<"read">,
  state: State,
  options: CheckOptions,
  result: CheckResult,
  fileBytes: number,
): Promise<number> {
  const { bat, clusterSize } = state;
  // Where no cluster is allocated, the first has its place all the same.
  let end = Math.max(clusterSize, state.header.dataOffset * SECTOR_SIZE, batEnd(state));
  /** The last cluster that is allocated, of those that follow each other. */
  let last: { readonly cluster: number; readonly hostOffset: number } | undefined;
  await forEachCluster(co, state, (cluster, hostOffset) => {
    if (hostOffset > fileBytes) {
      options.report(`${options.fixErrors ? "Repairing" : "ERROR"} cluster ${cluster} is outside image`);
      result.corruptions++;
      if (options.fixErrors) {
        result.corruptionsFixed++;
        return bat.set(co, cluster, 0);
      }
    }
    result.allocatedClusters = (result.allocatedClusters ?? 0) + 1;
    if (last?.cluster === cluster - 1 && last.hostOffset + clusterSize !== hostOffset)
      result.fragmentedClusters = (result.fragmentedClusters ?? 0) + 1;
    last = { cluster, hostOffset };
    end = Math.max(end, hostOffset + clusterSize);
    return undefined;
  });
  return end;
}
