/** The shared corpus: images by other producers give the manifest's size and digest; hostile ones are refused. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import zlib from "node:zlib";
import { foreignFormats } from "../drivers/foreign-formats.ts";
import { BlockError, findDriver, open } from "../src/index.ts";
import { contentDigest } from "./support/digest.ts";
import { tempDir } from "./support/temp.ts";

interface Entry {
  readonly name: string;
  /** Of the image, without the gzip around it. */
  readonly bytes: number;
  /** qemu's name of the format, or "hostile". */
  readonly format: string;
  readonly virtualSize?: number;
  readonly sha256?: string;
  readonly note?: string;
}

const directory = fileURLToPath(new URL("../../shared/corpus", import.meta.url));
const manifest = path.join(directory, "manifest.json");
const entries = fs.existsSync(manifest) ? (JSON.parse(fs.readFileSync(manifest, "utf8")) as Entry[]) : [];

/** The image without its gzip, in a directory of its own; its name. */
function unpack(entry: Entry, into: string): string {
  const packed = fs.readFileSync(path.join(directory, `${entry.name}.gz`));
  const filename = path.join(into, entry.name);
  const content = zlib.gunzipSync(packed, { maxOutputLength: entry.bytes + 1 });
  assert.equal(content.length, entry.bytes);
  fs.writeFileSync(filename, content);
  return filename;
}

/** Why an entry can't be tested; false if it can. */
function skipReason(entry: Entry): string | false {
  if (entry.format === "hostile") return false;
  if (!findDriver(entry.format))
    return isForeign(entry) ? false : `no driver for ${entry.format} yet, nor a sign at its start`;
  return entry.sha256 !== undefined ? false : `the manifest has no digest: ${entry.note}`;
}

/** Of a format that is known and not read yet. */
function isForeign({ name }: Entry): boolean {
  const head = zlib.gunzipSync(fs.readFileSync(path.join(directory, `${name}.gz`))).subarray(0, 512);
  return foreignFormats.some(({ probe }) => probe(head, name) > 0);
}

test("the corpus is there", { skip: entries.length > 0 ? false : `no ${directory}` }, () => {
  assert.ok(entries.some(({ format }) => format === "hostile"));
  assert.ok(entries.some(({ format }) => format === "qcow2"));
});

for (const entry of entries) {
  test(`${entry.name} (${entry.format})`, { skip: skipReason(entry) }, async (t) => {
    const filename = unpack(entry, tempDir(t));
    if (entry.format === "hostile") {
      await assert.rejects(open(filename), BlockError);
      return;
    }
    if (!findDriver(entry.format)) {
      const message = `Image format '${entry.format}' is not supported`;
      await assert.rejects(open(filename), { name: "BlockError", errno: "ENOTSUP", message });
      return;
    }
    await using image = await open(filename, { format: entry.format });
    assert.equal(await image.getLength(), entry.virtualSize);
    assert.equal(await contentDigest(image), entry.sha256);
  });
}
