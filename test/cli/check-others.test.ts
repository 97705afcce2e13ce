/** `check` and its repairs beside qemu-img's, on images with damaged extended entries, data files, snapshots and bitmaps. */

import { after, before, describe, it } from "node:test";
import { tempDir } from "../support/temp.ts";
import { otherCases } from "./damage-cases.ts";
import { DamagedImages } from "./damage-harness.ts";
import { missingTool } from "./differential.ts";

/** Cases that are not compared, and why. */
const exceptions = new Map([
  [
    "snap @64:8=END+7000K -r all",
    "qemu-img makes a refcount block for a table that it frees and that has none; EAGAIN",
  ],
]);

describe("check: extended entries, data files, snapshots and bitmaps", () => {
  const directory = tempDir({ after });
  let images: DamagedImages;
  before(() => {
    if (!missingTool) images = new DamagedImages(directory);
  });
  for (const [number, line] of otherCases.entries())
    it(line, { skip: missingTool ?? false }, () => images.compareChecks(line, number, exceptions));
});
