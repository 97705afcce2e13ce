/** The shared corpus: images by other producers give the manifest's size and digest; hostile ones are refused. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import zlib from "node:zlib";
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

/** What a hostile image pretends to be: without that driver it is just raw bytes. */
const MAGICS = [
  { magic: "conectix", format: "vpc" },
  { magic: "QFI\xfb", format: "qcow2" },
  { magic: "KDMV", format: "vmdk" },
  { magic: "vhdxfile", format: "vhdx" },
];

function pretendedFormat({ name }: Entry): string {
  const head = zlib.gunzipSync(fs.readFileSync(path.join(directory, `${name}.gz`))).toString("latin1", 0, 8);
  const found = MAGICS.find(({ magic }) => head.startsWith(magic));
  assert.ok(found, `${name}: unknown magic ${JSON.stringify(head)}`);
  return found.format;
}

/** Why an entry can't be tested; false if it can. */
function skipReason(entry: Entry): string | false {
  const format = entry.format === "hostile" ? pretendedFormat(entry) : entry.format;
  if (!findDriver(format)) return `no driver for ${format} yet`;
  if (entry.format === "hostile" || entry.sha256 !== undefined) return false;
  return `the manifest has no digest: ${entry.note}`;
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
    await using image = await open(filename, { format: entry.format });
    assert.equal(await image.getLength(), entry.virtualSize);
    assert.equal(await contentDigest(image), entry.sha256);
  });
}
