/** Every image in images/ gives the size and the digest that qemu-img gave when it was made. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { findDriver, open } from "../src/index.ts";
import { contentDigest } from "./support/digest.ts";

interface Entry {
  readonly name: string;
  readonly what: string;
  readonly format: string;
  /** In bytes. */
  readonly virtualSize: number;
  /** SHA-256 of the guest content, in hex. */
  readonly sha256: string;
  readonly companions?: readonly string[];
  readonly commands: readonly string[];
}

const directory = fileURLToPath(new URL("../images", import.meta.url));
const entries = JSON.parse(fs.readFileSync(path.join(directory, "manifest.json"), "utf8")) as Entry[];

// QEMU looks for a data file from the working directory, not from the image's own as for a backing file.
process.chdir(directory);

test("every file in images/ is in the manifest, and the other way round", () => {
  const named = entries.flatMap(({ name, companions = [] }) => [name, ...companions]);
  const present = fs.readdirSync(".").filter((name) => !["README.md", "manifest.json"].includes(name));
  assert.deepEqual(present.sort(), named.sort());
});

test("no image is large, nor all of them together", () => {
  const sizes = entries.map(({ name }) => fs.statSync(name).size);
  assert.ok(Math.max(...sizes) < 600 * 1024);
  assert.ok(sizes.reduce((sum, size) => sum + size, 0) < 4 * 2 ** 20);
});

for (const { name, what, format, virtualSize, sha256 } of entries) {
  const skip = findDriver(format) ? false : `no driver for ${format} yet`;
  describe(`${name}: ${what}`, { skip }, () => {
    test("size and content, by the format's name", async () => {
      await using image = await open(name, { format });
      assert.equal(await image.getLength(), virtualSize);
      assert.equal(await contentDigest(image), sha256);
    });

    test("its format is probed", async () => {
      const warnings: string[] = [];
      await using image = await open(name, { onWarning: (message) => warnings.push(message) });
      assert.equal(image.node.driver.formatName, format);
      assert.equal(await image.getLength(), virtualSize);
      assert.deepEqual(warnings, []);
    });
  });
}
