/** 4 KiB reads by the built library: `node library-reads.mjs plain|filter IMAGE`, of a qcow2. */

import { open } from "../../dist/src/index.js";

const [, , how, filename] = process.argv;
const READS = 300_000;
const STEP_BYTES = 7 * 2 ** 20 + 4096;
const qcow2 = { driver: "qcow2", file: { driver: "file", filename } };
const image = await open(how === "filter" ? { driver: "compress", file: qcow2 } : qcow2);
const length = await image.getLength();
const buffer = new Uint8Array(4096);
for (let read = 0, offset = 0; read < READS; read++, offset = (offset + STEP_BYTES) % length)
  await image.readInto(Math.min(offset, length - buffer.length), buffer);
await image.close();
