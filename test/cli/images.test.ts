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
}

const images = fileURLToPath(new URL("../../images", import.meta.url));
const corpus = fileURLToPath(new URL("../../../shared/corpus", import.meta.url));

function manifest(directory: string): Entry[] {
  const filename = path.join(directory, "manifest.json");
  return fs.existsSync(filename) ? (JSON.parse(fs.readFileSync(filename, "utf8")) as Entry[]) : [];
}

const own = manifest(images);
const others = manifest(corpus).filter(({ format }) => findDriver(format));

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

  for (const { name, format } of [...own, ...others]) {
    test(name, async () => {
      for (const command of COMMANDS) {
        const words = [...command.split(" "), "-f", format];
        await fixture.sameOutput([...words, name]);
        await fixture.sameOutput([...words, "--output=json", name]);
      }
    });
  }
});
