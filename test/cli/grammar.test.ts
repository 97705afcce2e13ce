/**
 * Seeded random command lines, each run by both tools on the same images: what is printed, the exit code and every
 * byte of the files must be the same. `BDRV_SEED` starts elsewhere, `BDRV_RUNS` says how many lines there are of
 * each command. What differs on purpose is listed in differences.ts.
 */

import fs from "node:fs";
import path from "node:path";
import { after, before, describe, it } from "node:test";
import { random } from "../support/random.ts";
import { DIFFERENCES } from "./differences.ts";
import { Fixture, missingTool } from "./differential.ts";
import { COMMANDS, commandLine } from "./grammar.ts";
import { makeQcow2Images, makeRawImages } from "./images.ts";

const FIRST_SEED = Number(process.env["BDRV_SEED"] ?? 1);
const RUNS = Number(process.env["BDRV_RUNS"] ?? 20);

/** Of those that the other tests make, what no line names: copying it costs time. */
const UNNAMED = /^(same|late|long|far|hole|tail|a name|sound|both|data\.qcow2|rich|loop)/;

function fill(directory: string): void {
  makeRawImages(directory);
  makeQcow2Images(directory);
  for (const name of fs.readdirSync(directory)) if (UNNAMED.test(name)) fs.rmSync(path.join(directory, name));
  fs.copyFileSync(path.join(directory, "top.qcow2"), path.join(directory, "over.qcow2"));
  const garbage = Buffer.concat([Buffer.from("QFI\xfb\0\0\0\x03", "latin1"), Buffer.alloc(2000, 7)]);
  fs.writeFileSync(path.join(directory, "garbage.qcow2"), garbage);
}

/** What depends on the time, and the help, which is in our own words. */
const normalise = (text: string) =>
  text.replace(/completed in [0-9.]+ seconds/, "completed").replace(/qemu-img version[^]*/, "help");

describe("lines from a grammar", { skip: missingTool }, () => {
  let fixture: Fixture;
  before(() => {
    fixture = new Fixture(fill);
  });
  after(() => fixture?.remove());

  for (const command of COMMANDS)
    it(command, async () => {
      for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++) {
        const line = commandLine(random(seed), command);
        await fixture.same(line, { normalise, differences: DIFFERENCES });
      }
    });
});
