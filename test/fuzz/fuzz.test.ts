/** A short run of the fuzzer over all formats, and the images that it once found to break something. */

import fs from "node:fs";
import path from "node:path";
import { describe, it } from "node:test";
import zlib from "node:zlib";
import { random } from "../support/random.ts";
import { tempDir } from "../support/temp.ts";
import { makeBases, SECRETS } from "./bases.ts";
import { exercise } from "./exercise.ts";
import { fuzzFormats } from "./formats/index.ts";
import { mutate } from "./mutate.ts";

const SEED = 20261123;
const CASES = Number(process.env["BDRV_RUNS"] ?? 20);

/** What `cases/cases.json` says of each image beside it, which is `NAME.gz`. */
interface KeptCase {
  readonly name: string;
  readonly format: string;
  /** What it did before it was mended. */
  readonly did: string;
  /** Bytes of the file: the rest behind the content is a hole. */
  readonly fileBytes: number;
  readonly options?: Readonly<Record<string, string>>;
}

const kept = path.join(import.meta.dirname, "cases");

describe("mutated images end in an answer or a BlockError", () => {
  for (const format of fuzzFormats)
    it(`${CASES} of ${format.formatName}`, async (t) => {
      const directory = tempDir(t);
      const bases = await makeBases(format, path.join(directory, "bases"));
      for (let index = 0; index < CASES; index++) {
        const dice = random(SEED + index);
        const base = dice.pick(bases);
        const { content, fileBytes } = mutate(base.content, format, dice, [
          "../secret",
          "/etc/passwd",
          "json:{}",
        ]);
        const filename = path.join(directory, "image");
        fs.writeFileSync(filename, content);
        fs.truncateSync(filename, fileBytes);
        await exercise({ ...subjectOf(format.formatName), filename, options: base.options }, dice, () => {});
      }
    });
});

describe("images that once broke something", () => {
  for (const { name, format, did, fileBytes, options } of JSON.parse(
    fs.readFileSync(path.join(kept, "cases.json"), "utf8"),
  ) as readonly KeptCase[])
    it(`${name} (${format}): ${did}`, async (t) => {
      const filename = path.join(tempDir(t), "image");
      // Each of them with other choices of what is done.
      for (const seed of [1, 2, 3, 4]) {
        fs.writeFileSync(filename, zlib.gunzipSync(fs.readFileSync(path.join(kept, `${name}.gz`))));
        fs.truncateSync(filename, fileBytes);
        await exercise({ ...subjectOf(format), filename, options }, random(seed), () => {});
      }
    });
});

function subjectOf(format: string) {
  const writable = fuzzFormats.find(({ formatName }) => formatName === format)?.writable ?? false;
  return { format, secrets: SECRETS, writable };
}
