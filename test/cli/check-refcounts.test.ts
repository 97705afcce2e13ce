/** `check` and its repairs beside qemu-img's, on images with damaged refcount tables and blocks. */

import { after, before, describe, it } from "node:test";
import { tempDir } from "../support/temp.ts";
import { refcountCases } from "./damage-cases.ts";
import { DamagedImages } from "./damage-harness.ts";
import { missingTool } from "./differential.ts";

/** Cases that are not compared, and why. */
const exceptions = new Map([
  [
    "bitmaps rt[0]=0 -r leaks",
    "both fail to store bitmaps at the end; where they meet the broken refcounts differs",
  ],
]);

describe("check: refcount structures", () => {
  const directory = tempDir({ after });
  let images: DamagedImages;
  before(() => {
    if (!missingTool) images = new DamagedImages(directory);
  });
  for (const [number, line] of refcountCases.entries())
    it(line, { skip: missingTool ?? false }, () => images.compareChecks(line, number, exceptions));
});
