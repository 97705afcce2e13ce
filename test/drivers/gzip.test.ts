/** Content of gzip files: the same bytes as zlib's wherever one reads, and damage is told, never passed on. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import zlib from "node:zlib";
import { BlockError } from "../../src/block/errors.ts";
import { open } from "../../src/index.ts";
import { conformance } from "../conformance.ts";
import { openBackend } from "../support/graph.ts";
import { random } from "../support/random.ts";
import { tempDir } from "../support/temp.ts";

const dir = tempDir({ after });
let made = 0;

function fileWith(content: Uint8Array): string {
  const filename = path.join(dir, `${made++}.gz`);
  fs.writeFileSync(filename, content);
  return filename;
}

/** Program code, noise and zeroes: blocks of all kinds. */
const program = fs.readFileSync(process.execPath).subarray(0, 5 * 2 ** 20);
const mixed = Buffer.concat([
  program,
  random(1).bytes(200_000),
  Buffer.alloc(300_000),
  program.subarray(7, 99_999),
]);

const { Z_FIXED, Z_HUFFMAN_ONLY } = zlib.constants;
const VARIANTS: Readonly<Record<string, Uint8Array>> = {
  usual: zlib.gzipSync(mixed),
  stored: zlib.gzipSync(mixed, { level: 0 }),
  fixed: zlib.gzipSync(mixed, { strategy: Z_FIXED }),
  literals: zlib.gzipSync(mixed, { strategy: Z_HUFFMAN_ONLY, memLevel: 9 }),
  members: Buffer.concat(
    Array.from({ length: Math.ceil(mixed.length / 60_000) }, (_, index) =>
      zlib.gzipSync(mixed.subarray(index * 60_000, (index + 1) * 60_000)),
    ),
  ),
};

describe("gzip", () => {
  for (const [name, packed] of Object.entries(VARIANTS))
    it(`${name}: reads give zlib's bytes`, async () => {
      await using image = await open(`gzip:${fileWith(packed)}`, { format: "raw" });
      assert.equal(await image.getLength(), Math.ceil(mixed.length / 512) * 512);
      const dice = random(2);
      for (let count = 0; count < 25; count++) {
        const offset = dice.below(mixed.length - 200_000);
        const bytes = dice.between(1, 200_000);
        const expected = mixed.subarray(offset, offset + bytes);
        assert.equal(Buffer.compare(await image.read(offset, bytes), expected), 0, `at ${offset}`);
      }
      assert.equal(Buffer.compare(await image.read(0, mixed.length), mixed), 0);
    });

  it("damage anywhere is told", async () => {
    const packed = zlib.gzipSync(program.subarray(0, 60_000));
    const dice = random(3);
    for (let count = 0; count < 60; count++) {
      const damaged = Buffer.from(packed);
      const at = dice.between(10, packed.length - 1);
      damaged[at] = (damaged[at] as number) ^ (1 << dice.below(8));
      const file = fileWith(count % 2 ? damaged : packed.subarray(0, at));
      await assert.rejects(open(`gzip:${file}`, { format: "raw" }), BlockError, `byte ${at}`);
    }
    await assert.rejects(open(`gzip:${fileWith(Buffer.alloc(99))}`, { format: "raw" }), /not in gzip format/);
    await assert.rejects(open(`gzip:${fileWith(packed)}`, { format: "raw", writable: true }), /read-only/);
  });

  it("what follows the members is ignored, with a warning", async () => {
    const warnings: string[] = [];
    const file = fileWith(Buffer.concat([zlib.gzipSync(Buffer.alloc(512, 1)), Buffer.alloc(100)]));
    const onWarning = (text: string) => void warnings.push(text);
    await using image = await open(`gzip:${file}`, { format: "raw", onWarning });
    assert.equal(await image.getLength(), 512);
    assert.match(String(warnings), /100 bytes behind the compressed data are ignored/);
  });

  conformance(it, {
    name: "gzip",
    unit: 512,
    canWrite: false,
    keepsData: true,
    canOverwrite: false,
    canTruncate: false,
    discarded: "any",
    async make(content) {
      const options = {
        driver: "gzip",
        file: { driver: "file", filename: fileWith(zlib.gzipSync(content)) },
      };
      return { open: () => openBackend(options, { flags: { readOnly: true } }) };
    },
  });
});
