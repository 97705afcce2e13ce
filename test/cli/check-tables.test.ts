/** `check` and its repairs beside qemu-img's, on images with damaged L1 and L2 tables and refcounts. */

import { after, before, describe, it } from "node:test";
import { tempDir } from "../support/temp.ts";
import { tableCases } from "./damage-cases.ts";
import { DamagedImages } from "./damage-harness.ts";
import { missingTool } from "./differential.ts";

describe("check: tables and refcounts", () => {
  const directory = tempDir({ after });
  let images: DamagedImages;
  before(() => {
    if (!missingTool) images = new DamagedImages(directory);
  });
  for (const [number, line] of tableCases.entries())
    it(line, { skip: missingTool ?? false }, () => images.compareChecks(line, number));
});
