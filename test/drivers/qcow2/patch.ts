/** Images for the tests of the qcow2 driver: made by qemu-img, then broken by changing bytes. */

import fs from "node:fs";
import path from "node:path";
import { mustRun } from "../../support/tools.ts";

/** Bytes that go over what is in a file: a number of `bytes` bytes, big-endian, or text. */
export type Patch =
  | readonly [offset: number, bytes: 1 | 2 | 4 | 8, value: number | bigint]
  | readonly [offset: number, text: string];

/** "Copied" in an L1 or L2 entry. */
export const COPIED = 1n << 63n;

/** Makes an image and runs qemu-io's commands on it. */
export function makeImage(
  filename: string,
  size: string,
  createOptions: string,
  commands: readonly string[] = [],
): void {
  const options = createOptions === "" ? [] : ["-o", createOptions];
  mustRun("qemu-img", ["create", "-q", "-f", "qcow2", ...options, filename, size]);
  if (commands.length > 0) qemuIo(filename, ...commands);
}

export function qemuIo(filename: string, ...commands: readonly string[]): void {
  mustRun("qemu-io", ["-f", "qcow2", ...commands.flatMap((command) => ["-c", command]), filename]);
}

/** A copy of `filename` beside it, with the patches. */
export function patched(filename: string, patches: readonly Patch[], truncate?: number): string {
  const copy = path.join(path.dirname(filename), "patched.qcow2");
  const bytes = fs.readFileSync(filename);
  const end = Math.max(bytes.length, ...patches.map(([offset, second]) => offset + lengthOf(second)));
  const content = Buffer.concat([bytes, Buffer.alloc(end - bytes.length)]);
  for (const [offset, second, value] of patches) {
    if (typeof second === "string") content.write(second, offset, "latin1");
    else if (second === 8) content.writeBigUInt64BE(BigInt.asUintN(64, BigInt(value ?? 0)), offset);
    else content.writeUIntBE(Number(value), offset, second);
  }
  fs.writeFileSync(copy, truncate === undefined ? content : content.subarray(0, truncate));
  return copy;
}

function lengthOf(second: number | string): number {
  return typeof second === "string" ? second.length : second;
}

/** Offsets of an image's tables, for patches. */
export interface Tables {
  readonly l1: number;
  /** Of the first L2 table. */
  readonly l2: number;
  readonly refcountTable: number;
  readonly firstBlock: number;
  readonly snapshots: number;
  /** Of the data of the bitmaps extension; -1: there is none. */
  readonly bitmapsExtension: number;
}

export function tablesOf(filename: string): Tables {
  const bytes = fs.readFileSync(filename);
  const pointer = (offset: number) => Number(bytes.readBigUInt64BE(offset) & 0x00fffffffffffe00n);
  const l1 = pointer(40);
  const refcountTable = pointer(48);
  const extension = bytes.indexOf(Buffer.from("2385287500000018", "hex"));
  return {
    l1,
    l2: pointer(l1),
    refcountTable,
    firstBlock: pointer(refcountTable),
    snapshots: pointer(64),
    bitmapsExtension: extension < 0 ? -1 : extension + 8,
  };
}
