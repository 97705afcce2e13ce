/**
 * Runs cases, in a process that may hang, crash or grow: `main.ts` looks at it from outside. Arguments in JSON: see
 * `WorkerTask`. What it is at stands in the file `state`; each line on stdout is a failure or the end, in JSON.
 */

import fs from "node:fs";
import path from "node:path";
import { random } from "../support/random.ts";
import { makeBases, SECRETS } from "./bases.ts";
import { exercise } from "./exercise.ts";
import type { Base, FuzzFormat } from "./format.ts";
import { fuzzFormats } from "./formats/index.ts";
import { mutate } from "./mutate.ts";
import { watchFiles } from "./sandbox.ts";

export interface WorkerTask {
  readonly format: string;
  readonly seed: number;
  readonly from: number;
  readonly to: number;
  /** Its own, with nothing in it. */
  readonly directory: string;
  /** The image of every case is kept there. */
  readonly keep?: string | undefined;
}

export interface Failure {
  readonly case: number;
  readonly base: string;
  readonly steps: readonly string[];
  readonly problem: string;
}

/** A step that neither ends nor uses any CPU for so many seconds in which this process ran waits for nothing. */
const STALLED_TICKS = 40;

const task = JSON.parse(process.argv[2] as string) as WorkerTask;
const format = fuzzFormats.find(({ formatName }) => formatName === task.format) as FuzzFormat;
const state = fs.openSync(path.join(task.directory, "state"), "w");
const work = path.join(task.directory, "case");
let current: Failure = { case: task.from, base: "", steps: [], problem: "" };
let stepName = "start";
let ticks = 0;
/** Images that could be read in spite of all: where none can, what lies behind the header is never seen. */
let readable = 0;

function note(name: string): void {
  stepName = name;
  ticks = 0;
  fs.writeSync(state, `${current.case} ${name}`.padEnd(60), 0);
}

function fail(problem: string): void {
  fs.writeSync(1, `${JSON.stringify({ ...current, problem })}\n`);
}

for (const event of ["uncaughtException", "unhandledRejection"] as const)
  process.on(event, (error: unknown) => {
    fail(`${event} in ${stepName}: ${error instanceof Error ? error.stack : String(error)}`);
    process.exit(1);
  });
setInterval(() => {
  if (++ticks < STALLED_TICKS) return;
  fail(`${stepName} waits for nothing`);
  process.exit(1);
}, 1000).unref();
// With nothing left to wait for the process would end, and the case never would.
const alive = setInterval(() => {}, 2 ** 30);

const bases = await loadBases();
fs.mkdirSync(work, { recursive: true });
if (task.keep !== undefined) fs.mkdirSync(task.keep, { recursive: true });
watchFiles(work, (name) => strays.push(name));
const strays: string[] = [];
for (let index = task.from; index < task.to; index++) await runCase(index);
clearInterval(alive);
fs.writeSync(1, `${JSON.stringify({ end: task.to, readable })}\n`);
process.exit(0);

async function loadBases(): Promise<readonly Base[]> {
  const file = path.join(task.directory, `${task.format}.json`);
  const revive = (key: string, value: unknown) =>
    key === "content" ? Buffer.from(value as string, "base64") : value;
  if (fs.existsSync(file)) return JSON.parse(fs.readFileSync(file, "utf8"), revive) as Base[];
  const made = await makeBases(format, path.join(task.directory, "bases"));
  const text = JSON.stringify(
    made.map((base) => ({ ...base, content: Buffer.from(base.content).toString("base64") })),
  );
  fs.writeFileSync(`${file}.${process.pid}`, text);
  fs.renameSync(`${file}.${process.pid}`, file);
  return made;
}

async function runCase(index: number): Promise<void> {
  const dice = random(Math.imul(task.seed, 0x9e3779b1) + index);
  const base = dice.pick(bases);
  const secret = path.join(task.directory, "secret");
  const names = [
    secret,
    "../secret",
    "/etc/passwd",
    `json:{"driver":"file","filename":"${secret}"}`,
    "nbd://localhost/x",
    `file:${secret}`,
  ];
  current = { case: index, base: base.name, steps: [], problem: "" };
  note("begin");
  const { content, fileBytes, steps } = mutate(base.content, format, dice, names);
  current = { ...current, steps };
  const filename = path.join(work, "image");
  fs.writeFileSync(filename, content);
  if (fileBytes > content.length) fs.truncateSync(filename, fileBytes);
  if (task.keep !== undefined) {
    const kept = path.join(task.keep, `${task.format}-${task.seed}-${index}`);
    fs.writeFileSync(kept, content);
    fs.truncateSync(kept, fileBytes);
  }
  strays.length = 0;
  try {
    const subject = {
      filename,
      format: task.format,
      options: base.options,
      secrets: SECRETS,
      writable: format.writable,
    };
    if (await exercise(subject, dice, note)) readable++;
  } catch (error) {
    fail(error instanceof Error ? error.message : String(error));
  }
  if (strays.length > 0) fail(`touched: ${[...new Set(strays)].join(", ")}`);
  const more = fs.readdirSync(work).filter((name) => name !== "image");
  if (more.length > 0) fail(`made: ${more.join(", ")}`);
  for (const name of more) fs.rmSync(path.join(work, name), { recursive: true });
}
