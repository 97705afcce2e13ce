/** What qemu-img says of each image in images/ and of the shared corpus, we say: info, map and check, in both forms. */

import fs from "node:fs";
import path from "node:path";
import { after, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import zlib from "node:zlib";
import { findDriver } from "../../src/index.ts";
import { Fixture, missingTool } from "./differential.ts";

interface Entry {
  readonly name: string;
  readonly format: string;
  readonly note?: string;
}

const images = fileURLToPath(new URL("../../images", import.meta.url));
const corpus = fileURLToPath(new URL("../../../shared/corpus", import.meta.url));

function manifest(directory: string): Entry[] {
  const filename = path.join(directory, "manifest.json");
  return fs.existsSync(filename) ? (JSON.parse(fs.readFileSync(filename, "utf8")) as Entry[]) : [];
}

const own = manifest(images);
const others = manifest(corpus).filter(({ format }) => findDriver(format));

/** Debian's package lacks modules for parts of dmg, and says so. */
const normalise = (text: string) => text.replace(/^.*module.* (not found|is missing),.*\n/gm, "");

const COMMANDS = ["info", "info --backing-chain", "map", "check"];

describe("every image", { skip: missingTool }, () => {
  const fixture = new Fixture((directory) => {
    for (const name of fs.readdirSync(images))
      fs.copyFileSync(path.join(images, name), path.join(directory, name));
    for (const { name } of others) {
      const packed = fs.readFileSync(path.join(corpus, `${name}.gz`));
      fs.writeFileSync(path.join(directory, name), zlib.gunzipSync(packed));
    }
  });
  after(() => fixture.remove());

  for (const { name, format, note } of [...own, ...others]) {
    // Tests of the driver hold what it reads as.
    const skip = note?.includes("qemu-img 7.2 does not read it") ? note : false;
    test(name, { skip }, async () => {
      for (const command of COMMANDS) {
        const words = [...command.split(" "), "-f", format];
        await fixture.sameOutput([...words, name], { normalise });
        await fixture.sameOutput([...words, "--output=json", name], { normalise });
      }
    });
  }
});
