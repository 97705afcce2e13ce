/** Mutations of an image by its regions: what a fuzzer that knew nothing of formats would never hit. */

import type { Random } from "../support/random.ts";
import { type FuzzFormat, type Region, within } from "./format.ts";

/** What a case is: the file's content, and how long the file is, which may be far more (a hole). */
export interface Mutant {
  readonly content: Buffer;
  readonly fileBytes: number;
  /** What was done, for a person. */
  readonly steps: readonly string[];
}

export function mutate(base: Uint8Array, format: FuzzFormat, dice: Random, names: readonly string[]): Mutant {
  const image = Buffer.from(base);
  const regions = within(image, format.regions(image));
  const steps: string[] = [];
  // Rarely none at all: the valid image must pass too.
  const count = dice.chance(0.01) ? 0 : 1 + Math.floor(5 * dice.next() ** 2);
  for (let step = 0; step < count; step++) steps.push(mutateOnce(image, regions, dice, names));
  if (dice.chance(0.9)) format.mend?.(image);
  let content = image;
  let fileBytes = image.length;
  if (dice.chance(0.06)) {
    const cut = dice.chance(0.5)
      ? dice.below(image.length + 1)
      : dice.pick(regionsOr(regions)).offset + dice.below(16);
    content = image.subarray(0, cut);
    fileBytes = content.length;
    steps.push(`cut to ${fileBytes} bytes`);
  } else if (dice.chance(0.03)) {
    fileBytes += 2 ** dice.between(0, 40) + dice.below(513);
    steps.push(`a hole up to ${fileBytes} bytes`);
  }
  return { content, fileBytes, steps };
}

function regionsOr(regions: readonly Region[]): readonly Region[] {
  return regions.length > 0 ? regions : [{ name: "start", offset: 0, width: "bytes", count: 1 }];
}

function mutateOnce(image: Buffer, all: readonly Region[], dice: Random, names: readonly string[]): string {
  if (all.length === 0 || dice.chance(0.08)) return scribble(image, dice);
  const region = pickRegion(all, dice);
  if (region.width === "text") return changeText(image, region, dice, names);
  if (region.width === "bytes") {
    const at = region.offset + dice.below(region.count);
    image[at] = dice.below(256);
    return `${region.name}: byte ${at}`;
  }
  if (region.count > 1 && dice.chance(0.15)) return changeAll(image, region, all, dice);
  const index = pickIndex(region, dice);
  const value = newValue(image, region, index, all, dice);
  put(image, region, index, value);
  return `${region.name}[${index}] = 0x${value.toString(16)}`;
}

/** Each record as likely as each table: a header has many fields, and most images with a wrong one are refused at once. */
function pickRegion(all: readonly Region[], dice: Random): Region {
  const groupOf = ({ name }: Region) => name.split(".")[0];
  const group = dice.pick([...new Set(all.map(groupOf))]);
  return dice.pick(all.filter((region) => groupOf(region) === group));
}

/** What is at the start, and what is set already, is of most interest. */
function pickIndex({ count }: Region, dice: Random): number {
  return dice.chance(0.6) ? Math.floor(count * dice.next() ** 4) : dice.below(count);
}

/** A table whose entries are all the same (a bomb, a loop), count up, or are another table's. */
function changeAll(image: Buffer, region: Region, all: readonly Region[], dice: Random): string {
  const first = newValue(image, region, 0, all, dice);
  const step = dice.pick([0n, 0n, 1n, BigInt(region.unit ?? 1), 512n, 65536n]);
  const count = dice.chance(0.5) ? region.count : dice.below(region.count) + 1;
  for (let index = 0; index < count; index++) put(image, region, index, first + BigInt(index) * step);
  return `${region.name}[0..${count}] = 0x${first.toString(16)} + ${step} each`;
}

type Values = (now: bigint, region: Region, all: readonly Region[], dice: Random, image: Buffer) => bigint;

/** Each kind of change as likely as the others. */
const CHANGES: readonly Values[] = [
  () => 0n,
  () => 1n,
  (_, region) => maximum(region),
  (_, region, _all, dice) => maximum(region) - BigInt(dice.below(4)),
  // Where signed numbers begin, and around powers of two.
  (_, region) => (maximum(region) >> 1n) + 1n,
  (_, region) => maximum(region) >> 1n,
  (_, region, _all, dice) => (1n << BigInt(dice.below(bitsOf(region)))) - BigInt(dice.below(3)) + 1n,
  (now, _, _all, dice) => now + BigInt(dice.between(-2, 2)),
  (now, _, _all, dice) => now + BigInt(dice.pick([-65536, -4096, -512, -8, 8, 512, 4096, 65536])),
  (now, _, _all, dice) => now << BigInt(dice.below(9)),
  (now, _, _all, dice) => now >> BigInt(dice.below(9)),
  (now, region, _all, dice) => now ^ (1n << BigInt(dice.below(bitsOf(region)))),
  (now, { flags = [1n] }, _all, dice) => now ^ dice.pick(flags),
  pointToRegion,
  pointToRegion,
  pointToRegion,
  pointIntoFile,
  pointIntoFile,
  (_, __, all, dice, image) => {
    const other = dice.pick(all);
    return typeof other.width === "number" ? get(image, other, dice.below(other.count)) : 2n;
  },
  (_, region, _all, dice) => randomBits(dice) & maximum(region),
];

function newValue(
  image: Buffer,
  region: Region,
  index: number,
  all: readonly Region[],
  dice: Random,
): bigint {
  return dice.pick(CHANGES)(get(image, region, index), region, all, dice, image) & maximum(region);
}

/** Tables that name each other, or themselves. */
function pointToRegion(
  now: bigint,
  { unit = 1, flags = [] }: Region,
  all: readonly Region[],
  dice: Random,
): bigint {
  const { offset } = dice.pick(all);
  const place = BigInt(Math.floor(offset / unit));
  const kept = flags.reduce((mask, flag) => mask | (now & flag), 0n);
  return dice.chance(0.5) ? place | kept : place | (flags.length > 0 ? dice.pick(flags) : 0n);
}

/** Anywhere, at its end, and past it. */
function pointIntoFile(
  _: bigint,
  { unit = 1, flags = [] }: Region,
  _all: readonly Region[],
  dice: Random,
  image: Buffer,
): bigint {
  const align = dice.pick([1, 8, 512, 512, 4096, 65536]);
  const offset = Math.floor((dice.next() * 1.2 * image.length) / align) * align;
  const place = BigInt(Math.floor(offset / unit));
  return flags.length > 0 && dice.chance(0.7) ? place | dice.pick(flags) : place;
}

function randomBits(dice: Random): bigint {
  return (BigInt(dice.below(2 ** 32)) << 32n) | BigInt(dice.below(2 ** 32));
}

function scribble(image: Buffer, dice: Random): string {
  const at = dice.chance(0.5) ? dice.below(image.length) : Math.floor(image.length * dice.next() ** 6);
  const bytes = Math.min(1 + dice.below(dice.pick([1, 8, 64, 4096])), image.length - at);
  const kind = dice.below(3);
  if (kind === 0) image.set(dice.bytes(bytes), at);
  else if (kind === 1) image.fill(dice.pick([0, 0xff, 0x41]), at, at + bytes);
  else copyWithin(image, at, bytes, dice.below(image.length));
  return `${bytes} bytes at ${at}`;
}

/** Text keeps its length, or what follows is overwritten: formats say how long it is. */
function changeText(
  image: Buffer,
  { name, offset, count }: Region,
  dice: Random,
  names: readonly string[],
): string {
  const text = image.toString("latin1", offset, offset + count);
  let changed: string;
  const kind = dice.below(6);
  const numbers = [...text.matchAll(/\d+/g)];
  if (kind <= 1 && numbers.length > 0) {
    const { index, 0: digits } = dice.pick(numbers);
    const number = dice.pick([
      "0",
      "1",
      "-1",
      "4294967296",
      "18446744073709551615",
      "9".repeat(40),
      `${digits}0`,
    ]);
    changed = text.slice(0, index) + number + text.slice(index + digits.length);
  } else if (kind === 2) {
    const quoted = [...text.matchAll(/"[^"]*"/g)];
    const evil = dice.pick(names);
    if (quoted.length > 0) {
      const { index, 0: old } = dice.pick(quoted);
      changed = `${text.slice(0, index)}"${evil}"${text.slice(index + old.length)}`;
    } else changed = evil;
  } else if (kind === 3) {
    const lines = text.split("\n");
    const at = dice.below(lines.length);
    lines.splice(at, dice.below(2), ...Array<string>(dice.below(3)).fill(lines[at] as string));
    changed = lines.join("\n");
  } else if (kind === 4) {
    const at = dice.below(text.length);
    changed = `${text.slice(0, at)}${dice.pick(["\0", "\n", "=", '"', "%s%n", "\xff", "A".repeat(300)])}${text.slice(at + 1)}`;
  } else changed = text.slice(0, dice.below(text.length + 1));
  image.fill(0, offset, offset + count);
  image.write(
    changed,
    offset,
    Math.min(image.length - offset, Math.max(count, Math.min(changed.length, count + 64))),
    "latin1",
  );
  return `${name}: text`;
}

function bitsOf({ width }: Region): number {
  return typeof width === "number" ? width * 8 : 8;
}

function maximum(region: Region): bigint {
  return (1n << BigInt(bitsOf(region))) - 1n;
}

function get(image: Buffer, { offset, width, littleEndian }: Region, index: number): bigint {
  const bytes = typeof width === "number" ? width : 1;
  const at = offset + index * bytes;
  if (bytes === 8) return littleEndian ? image.readBigUInt64LE(at) : image.readBigUInt64BE(at);
  return BigInt(littleEndian ? image.readUIntLE(at, bytes) : image.readUIntBE(at, bytes));
}

function put(image: Buffer, region: Region, index: number, value: bigint): void {
  const { offset, width, littleEndian } = region;
  const bytes = typeof width === "number" ? width : 1;
  const at = offset + index * bytes;
  const wrapped = value & maximum(region);
  if (bytes === 8) {
    if (littleEndian) image.writeBigUInt64LE(wrapped, at);
    else image.writeBigUInt64BE(wrapped, at);
  } else if (littleEndian) image.writeUIntLE(Number(wrapped), at, bytes);
  else image.writeUIntBE(Number(wrapped), at, bytes);
}

/** Another part of the image over this one. */
function copyWithin(image: Buffer, at: number, bytes: number, from: number): void {
  image.copyWithin(at, from, Math.min(from + bytes, image.length));
}
