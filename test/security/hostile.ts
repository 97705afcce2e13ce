/** What the tests of this folder share: images with fields that no tool would write, and a secret that must not be seen. */

import fs from "node:fs";
import path from "node:path";
import { create } from "../../src/index.ts";
import { type Cleanup, tempDir } from "../support/temp.ts";

export interface Scene {
  readonly directory: string;
  /** A file outside of `uploads`, which no image may show. */
  readonly secret: string;
  /** Where the hostile images lie. */
  readonly uploads: string;
  path(name: string): string;
}

export const SECRET = "the host's own secret, 32 bytes..";

export function makeScene(test: Cleanup): Scene {
  const directory = tempDir(test);
  const uploads = path.join(directory, "uploads");
  fs.mkdirSync(uploads);
  const secret = path.join(directory, "secret");
  fs.writeFileSync(secret, SECRET.padEnd(65536, "."));
  return { directory, secret, uploads, path: (name) => path.join(uploads, name) };
}

/** A qcow2 image whose header says `backing`, whatever that is. */
export async function overlayOf(
  scene: Scene,
  name: string,
  backing: string,
  format: string,
): Promise<string> {
  const filename = scene.path(name);
  const plain = { format: "qcow2", size: 65536, unsafeBacking: true } as const;
  await create(filename, { ...plain, backing: { filename: backing, format } });
  return filename;
}

/** A qcow2 image whose guest data lies in the file `dataFile`; its L2 table says that all of it is there. */
export function withDataFile(scene: Scene, name: string, dataFile: string): string {
  const filename = scene.path(name);
  const cluster = 65536;
  const image = Buffer.alloc(5 * cluster);
  image.write("QFI\xfb", "latin1");
  image.writeUInt32BE(3, 4);
  image.writeUInt32BE(16, 20);
  image.writeBigUInt64BE(BigInt(cluster), 24);
  image.writeUInt32BE(1, 36);
  image.writeBigUInt64BE(BigInt(3 * cluster), 40);
  image.writeBigUInt64BE(BigInt(cluster), 48);
  image.writeUInt32BE(1, 56);
  image.writeBigUInt64BE(4n, 72);
  image.writeBigUInt64BE(2n, 88);
  image.writeUInt32BE(4, 96);
  image.writeUInt32BE(112, 100);
  image.writeUInt32BE(0x44415441, 112);
  image.writeUInt32BE(Buffer.byteLength(dataFile), 116);
  image.write(dataFile, 120);
  image.writeBigUInt64BE(BigInt(2 * cluster), cluster);
  for (const index of [0, 1, 2, 3, 4]) image.writeUInt16BE(1, 2 * cluster + index * 2);
  image.writeBigUInt64BE((1n << 63n) | BigInt(4 * cluster), 3 * cluster);
  image.writeBigUInt64BE(1n << 63n, 4 * cluster);
  fs.writeFileSync(filename, image);
  return filename;
}
