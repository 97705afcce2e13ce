/** The driver in CONTRIBUTING.md, taken from its text, is loaded, registered and used. */

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import fs from "node:fs/promises";
import path from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import { promisify } from "node:util";
import { tsImport } from "tsx/esm/api";
import type { BlockDriver } from "../../src/index.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const KEY = 0x21;
const IMAGE_BYTES = 64 * 1024;

/** As deep in the tree as drivers/, so that the text's imports lead where they should. */
let directory = "";
let filename = "";

/** The library and the driver, which must share their modules: they are loaded together, from their sources. */
let library: typeof import("../../src/index.ts") & { readonly xor: BlockDriver };

before(async () => {
  directory = await fs.mkdtemp(path.join(root, ".contributing-"));
  const text = await fs.readFile(path.join(root, "CONTRIBUTING.md"), "utf8");
  const blocks = [...text.matchAll(/^```ts driver\n(.*?)^```$/gms)].map(([, block]) => block ?? "");
  assert.equal(blocks.length, 1);
  assert.ok((blocks[0]?.split("\n").length ?? 0) <= 36, "it is short");
  await fs.writeFile(path.join(directory, "xor.ts"), blocks[0] ?? "");
  const entry = path.join(directory, "entry.ts");
  await fs.writeFile(entry, 'export * from "../src/index.ts";\nexport { xor } from "./xor.ts";\n');
  library = await tsImport(pathToFileURL(entry).href, import.meta.url);
  library.registerDriver(library.xor);
  filename = path.join(directory, "disk.img");
});

after(async () => {
  await fs.rm(directory, { recursive: true, force: true });
});

/** A fresh image file, every byte of which the guest sees as `byte`. */
async function makeImage(byte: number): Promise<void> {
  await fs.writeFile(filename, Buffer.alloc(IMAGE_BYTES, byte ^ KEY));
}

const xorName = (options: object = { key: KEY }) =>
  `json:${JSON.stringify({ driver: "xor", ...options, file: { driver: "file", filename } })}`;

test("it compiles under the project's own rules", async () => {
  const config = {
    extends: "../tsconfig.json",
    compilerOptions: { rootDir: "..", noEmit: true },
    include: ["xor.ts"],
  };
  await fs.writeFile(path.join(directory, "tsconfig.json"), JSON.stringify(config));
  const tsc = path.join(root, "node_modules/.bin/tsc");
  const run = promisify(execFile)(tsc, ["-p", directory], { encoding: "utf8" });
  const output = await run.then(
    ({ stdout }) => stdout,
    (error: { readonly stdout: string }) => error.stdout,
  );
  // Errors in the rest of the tree are for `npm run typecheck`.
  assert.deepEqual(
    output.split("\n").filter((line) => line.includes("xor.ts")),
    [],
  );
});

test("it is known by its name, and its options are checked", async () => {
  const { BlockError, findDriver, open } = library;
  await makeImage(0);
  assert.equal(findDriver("xor")?.kind, "format");
  await assert.rejects(open(xorName({ key: 256 })), new BlockError("EINVAL", "The key must be a byte"));
  await assert.rejects(open(xorName({ kee: 1 })), /Block format 'xor' does not support the option 'kee'/);
  await assert.rejects(open(xorName({ key: "x" })), /Parameter 'key' expects a number/);
  await using plain = await open(filename, { format: "xor" });
  assert.equal((await plain.read(0, 1))[0], KEY ^ 0x5a, "the default key");
});

test("it reads and writes at any offset and leaves the caller's buffers alone", async () => {
  await makeImage(7);
  {
    await using image = await library.open(xorName(), { writable: true });
    assert.deepEqual(await image.read(0, 3), new Uint8Array([7, 7, 7]));
    const parts = [Buffer.from("seven "), Buffer.from("bytes")] as const;
    await image.write(1001, parts);
    assert.deepEqual(parts.map(String), ["seven ", "bytes"]);
    const into = [new Uint8Array(5), new Uint8Array(8)] as const;
    await image.readInto(1000, into);
    assert.equal(Buffer.concat(into).toString(), "\x07seven bytes\x07");
  }
  const stored = await fs.readFile(filename);
  assert.equal(
    stored
      .subarray(1001, 1012)
      .map((byte) => byte ^ KEY)
      .toString(),
    "seven bytes",
  );
  assert.equal(stored[1000], 7 ^ KEY);
  assert.equal(stored[1012], 7 ^ KEY);
});

test("zero writes are written as the format has zeroes, and discards harm nothing", async () => {
  await makeImage(7);
  await using image = await library.open(xorName(), { writable: true });
  await image.writeZeroes(4096, 8192);
  await image.discard(16384, 4096);
  await image.flush();
  const stored = await fs.readFile(filename);
  assert.ok(stored.subarray(4096, 12288).every((byte) => byte === KEY));
  assert.ok(stored.subarray(0, 4096).every((byte) => byte === (7 ^ KEY)));
  assert.deepEqual(await image.read(4096, 8192), new Uint8Array(8192));
  assert.deepEqual(await image.read(12288, 16384), new Uint8Array(16384).fill(7));
});

test("its length follows the file's, and a hole in the file is no zero", async () => {
  await makeImage(7);
  await using image = await library.open(xorName(), { writable: true });
  assert.equal(await image.getLength(), IMAGE_BYTES);
  await image.truncate(2 * IMAGE_BYTES);
  assert.equal(await image.getLength(), 2 * IMAGE_BYTES);
  assert.equal((await fs.stat(filename)).size, 2 * IMAGE_BYTES);
  const status = await image.blockStatus(IMAGE_BYTES, IMAGE_BYTES);
  assert.equal(status.zero, false);
  assert.equal(status.data, true);
  assert.equal(status.bytes, IMAGE_BYTES);
  assert.equal((await image.read(IMAGE_BYTES, 1))[0], KEY);
  await assert.rejects(image.read(2 * IMAGE_BYTES, 1), { errno: "EIO" });
});

test("it takes its place in a graph: read-only as asked, under raw, with a name that opens it again", async () => {
  await makeImage(7);
  await using image = await library.open(
    `json:{"driver": "raw", "offset": 512, "file": ${xorName().slice(5)}}`,
  );
  assert.equal(await image.getLength(), IMAGE_BYTES - 512);
  assert.deepEqual(await image.read(0, 2), new Uint8Array([7, 7]));
  await assert.rejects(image.write(0, new Uint8Array(512)), { errno: "EPERM" });
  await using again = await library.open(image.node.filename);
  assert.deepEqual(await again.read(0, 2), new Uint8Array([7, 7]));
});
