/** All that is done with an image that may be broken: each step ends in an answer or a BlockError. */

import fs from "node:fs";
import path from "node:path";
import {
  BlockBackend,
  BlockError,
  check,
  convert,
  denyAll,
  info,
  inspect,
  type Limits,
  MiB,
  map,
  type OpenGate,
  type OpenOptions,
  open,
  TiB,
} from "../../src/index.ts";
import type { Random } from "../support/random.ts";
import { openFilesUnder } from "../support/temp.ts";

export interface Subject {
  /** The image; it lies in a directory of its own. */
  readonly filename: string;
  readonly format: string;
  readonly options?: Readonly<Record<string, string>> | undefined;
  readonly secrets: Readonly<Record<string, string>>;
  readonly writable: boolean;
}

/** What is asserted of every step, beside its end: the CPU time and the memory that `main.ts` looks at from outside. */
export const BOUNDS = {
  /** CPU seconds of one step, all threads. */
  cpuSeconds: 20,
  /** Bytes of memory of the process, all of it. */
  rssBytes: 900 * MiB,
} as const;

/** So far it is asked for what is there; a hostile image can have any number of it. */
const MAX_MAP_ENTRIES = 3000;
const MAX_READ_BYTES = 8 * MiB;
const MAX_FINDINGS = 20_000;

/** For those cases that are opened as untrusted images. */
const LIMITS: Partial<Limits> = { virtualBytes: 2 * TiB, decompressedBytes: 256 * MiB, seconds: 5 };
const CONVERT_LIMITS: Partial<Limits> = { ...LIMITS, virtualBytes: 64 * MiB };

/** In place of files that images name, so that there is more to see. */
const standIn: OpenGate = async () => ({ driver: "null-co", size: 64 * MiB, "read-zeroes": true });

/** Throws what is no BlockError; true if the image could be opened and read. `onStep` is told what begins. */
export async function exercise(
  subject: Subject,
  dice: Random,
  onStep: (name: string) => void,
): Promise<boolean> {
  const { filename, secrets } = subject;
  const directory = path.dirname(filename);
  const gate = dice.chance(0.5) ? denyAll : standIn;
  const untrusted = dice.chance(0.5) ? LIMITS : false;
  const common: OpenOptions = { gate, untrusted, secrets, onWarning: () => {} };
  const image = { driver: subject.format, file: { driver: "file", filename }, ...subject.options } as const;
  const step = async (name: string, work: () => Promise<unknown>): Promise<boolean> => {
    onStep(name);
    let isWell = true;
    try {
      await work();
    } catch (error) {
      if (!(error instanceof BlockError)) throw new Error(`${name}: ${describe(error)}`, { cause: error });
      isWell = false;
    }
    const left = openFilesUnder(directory);
    if (left.length > 0) throw new Error(`${name}: left open: ${left.join(", ")}`);
    return isWell;
  };
  const stamp = () => JSON.stringify(fs.statSync(filename, { bigint: true }), bigintText);
  const before = stamp();
  await step("info", () => info(image as never, common));
  await step("inspect", () => inspect(filename, { untrusted: LIMITS, onWarning: () => {} }));
  await step("map", () => mapSome(image, common));
  await step("check", () => checkSome(image, common, undefined));
  const isReadable = await step("read", () => readSome(image, common, dice));
  await step("convert", () => convertSome(image, common, directory, dice));
  if (stamp() !== before) throw new Error("an image that was only read has been changed");
  if (!subject.writable) return isReadable;
  // A file with a large hole is not copied.
  const original = fs.statSync(filename).size <= 4 * MiB ? fs.readFileSync(filename) : undefined;
  await step("check -r", () => checkSome(image, common, dice.pick(["leaks", "all", "all"])));
  await step("check again", () => checkSome(image, common, undefined));
  if (original) fs.writeFileSync(filename, original);
  if (isReadable) await step("write", () => writeSome(image, common, dice));
  return isReadable;
}

type Image = unknown;

async function mapSome(image: Image, common: OpenOptions): Promise<void> {
  let left = MAX_MAP_ENTRIES;
  for await (const entry of map(image as never, common)) {
    if (entry.bytes <= 0) throw new Error("an empty map entry");
    if (--left === 0) return;
  }
}

async function checkSome(
  image: Image,
  common: OpenOptions,
  repair: "leaks" | "all" | undefined,
): Promise<void> {
  let left = MAX_FINDINGS;
  const onFinding = () => {
    // Millions of lines are right where there are millions of faults, and take their time.
    if (--left < 0) throw new BlockError("ECANCELED");
  };
  await check(image as never, { ...common, repair, onFinding });
}

/** The start, the end, and places between. */
async function readSome(image: Image, common: OpenOptions, dice: Random): Promise<void> {
  await using backend: BlockBackend = await open(image as never, common);
  const length = await backend.getLength();
  let left = MAX_READ_BYTES;
  const places = [
    0,
    Math.max(0, length - MiB),
    ...Array.from({ length: 6 }, () => dice.below(Math.max(length, 1))),
  ];
  for (const place of places) {
    for (let at = place; at < Math.min(length, place + 2 * MiB) && left > 0; ) {
      const bytes = Math.min(dice.pick([512, 5000, 65536, MiB]), length - at);
      try {
        await backend.read(at, bytes);
      } catch (error) {
        if (!(error instanceof BlockError)) throw error;
      }
      at += bytes;
      left -= bytes;
    }
  }
}

async function convertSome(
  image: Image,
  common: OpenOptions,
  directory: string,
  dice: Random,
): Promise<void> {
  const format = dice.pick(["raw", "qcow2"] as const);
  const filename = path.join(directory, `converted.${format}`);
  try {
    await convert(image as never, { filename, format }, { ...common, untrusted: CONVERT_LIMITS });
  } finally {
    fs.rmSync(filename, { force: true });
  }
}

async function writeSome(image: Image, common: OpenOptions, dice: Random): Promise<void> {
  const backend = await open(image as never, { ...common, writable: true });
  const tries = async (work: () => Promise<unknown>) => {
    try {
      await work();
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
    }
  };
  try {
    const length = await backend.getLength();
    for (let count = 0; count < 12; count++) {
      const bytes = Math.min(dice.pick([512, 512, 3000, 65536]), length);
      const at = dice.below(Math.max(1, Math.min(length, dice.pick([length, 2 ** 20])) - bytes + 1));
      const kind = dice.below(6);
      if (kind <= 2) await tries(() => backend.write(at, dice.bytes(bytes)));
      else if (kind === 3) await tries(() => backend.writeZeroes(at, bytes, { mayUnmap: dice.chance(0.5) }));
      else if (kind === 4) await tries(() => backend.discard(at, bytes));
      else await tries(() => backend.flush());
    }
    if (dice.chance(0.3)) await tries(() => backend.truncate(length + 65536));
    if (dice.chance(0.3)) await tries(() => backend.truncate(Math.floor(length / 1024) * 512));
    if (dice.chance(0.3)) await tries(() => backend.snapshots.create("new"));
  } finally {
    await tries(() => backend.close());
  }
}

function describe(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}

function bigintText(key: string, value: unknown): unknown {
  // Reading changes when it was last read.
  if (key.startsWith("atime")) return undefined;
  return typeof value === "bigint" ? String(value) : value;
}
