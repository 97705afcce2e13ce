/** Bases that are made by ours and by qemu-img, with some data in each. */

import fs from "node:fs";
import { open } from "../../../src/index.ts";
import type { Base, Workshop } from "../format.ts";

export interface Variant {
  readonly name: string;
  readonly size: number;
  readonly options?: Readonly<Record<string, string | number | boolean>>;
  /** Bytes that are written at the start and in the middle. */
  readonly data?: number;
}

export async function makeBoth(
  workshop: Workshop,
  format: string,
  variants: readonly Variant[],
): Promise<Base[]> {
  const made: Base[] = [];
  for (const { name, size, options = {}, data = 3000 } of variants) {
    const ours = workshop.path(`${name}.${format}`);
    await workshop.create(ours, format, size, options);
    await write(ours, format, size, data);
    made.push({ name, content: fs.readFileSync(ours) });
    const theirs = workshop.path(`${name}-qemu.${format}`);
    const text = Object.entries(options).map(([key, value]) => `${key}=${value === true ? "on" : value}`);
    const given = text.length > 0 ? ["-o", text.join(",")] : [];
    if (!workshop.tool("qemu-img", "create", "-q", "-f", format, ...given, theirs, String(size))) continue;
    if (data > 0) workshop.tool("qemu-io", "-f", format, "-c", `write -P 5 0 ${data}`, theirs);
    made.push({ name: `${name} by qemu`, content: fs.readFileSync(theirs) });
  }
  return made;
}

async function write(filename: string, format: string, size: number, bytes: number): Promise<void> {
  if (bytes === 0) return;
  await using image = await open(filename, { format, writable: true });
  const data = new Uint8Array(bytes).map((_, index) => index % 251);
  await image.write(0, data);
  await image.write(Math.floor(size / 1024) * 512, data);
}
