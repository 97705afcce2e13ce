/**
 * Runs one command line with qemu-io and with ours, each in a directory of its own that is filled alike, and
 * compares what both print, their exit codes, and the images that they leave.
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { Readable } from "node:stream";
import "../../drivers/index.ts";
import { MemoryOutput } from "../../src/cli/output.ts";
import { main } from "../../src/cli/program.ts";
import { missing, mustRun, run } from "../support/tools.ts";
import { Fixture, type RunResult, words } from "./differential.ts";

/** For node:test's `skip`. */
export const noOracle = missing("qemu-io") || missing("qemu-img");

export interface IoCase {
  readonly args: readonly string[];
  readonly stdin: string;
}

/** `ARGUMENTS <<< STDIN`, where \n in STDIN is a newline. */
function parseCase(line: string): IoCase {
  const [command = "", stdin = ""] = line.split("<<<");
  return {
    args: words(command),
    stdin: stdin.replace(/^ /, "").replace(/\\([ntr0])/g, (_, char: string) => ESCAPES[char] as string),
  };
}

const ESCAPES: Readonly<Record<string, string>> = { n: "\n", t: "\t", r: "\r", "0": "\0" };

/** The cases of a table: one a line, empty ones left out. */
export function caseLines(table: string): string[] {
  return table.split("\n").filter((line) => line !== "");
}

/** Runs ours in this process, in `directory`. */
async function runOurs({ args, stdin }: IoCase, directory: string): Promise<RunResult> {
  const stdout = new MemoryOutput();
  const stderr = new MemoryOutput();
  const before = process.cwd();
  process.chdir(directory);
  try {
    const exitCode = await main(["qemu-io", ...args], {
      stdout,
      stderr,
      stdin: () => Readable.from(stdin === "" ? [] : [Buffer.from(stdin)]),
      signal: new AbortController().signal,
    });
    return { stdout: stdout.text, stderr: stderr.text, exitCode };
  } finally {
    process.chdir(before);
  }
}

function runTheirs({ args, stdin }: IoCase, directory: string): RunResult {
  const { stdout, stderr, status, error } = spawnSync("qemu-io", args, {
    cwd: directory,
    input: stdin,
    encoding: "utf8",
    timeout: 20_000,
    maxBuffer: 2 ** 26,
  });
  if (error) throw error;
  return { stdout, stderr, exitCode: status ?? -1 };
}

/** Figures of time, and the numbers of nodes, become letters. */
export function normalise(text: string): string {
  return text
    .replace(/^(.*, 1 ops; ).*$/gm, "$1T")
    .replace(/^(\d+,1,).*$/gm, "$1T")
    .replace(/#block\d+/g, "#blockN")
    .replace(/vl\.\w+/g, "vl.N");
}

function tidy({ stdout, stderr, exitCode }: RunResult) {
  return { stdout: normalise(stdout), stderr: normalise(stderr), exitCode };
}

/** As `sameCase`, for a line of a table. */
export function sameRun(fixture: Fixture, line: string): Promise<void> {
  return sameCase(fixture, parseCase(line));
}

/**
 * Fails where the two tools differ, in what they print or in what they leave behind: all bytes of all files, or with
 * "content" what a guest sees of a qcow2 image.
 */
export async function sameCase(
  fixture: Fixture,
  test: IoCase,
  compared: "bytes" | "content" = "content",
): Promise<void> {
  const line = test.args.map((word) => (word.includes(" ") ? `'${word}'` : word)).join(" ");
  const [oursIn, theirsIn] = [fixture.copy(), fixture.copy()];
  const ours = await runOurs(test, oursIn);
  const theirs = runTheirs(test, theirsIn);
  if (fs.readdirSync(theirsIn).some((name) => isBroken(path.join(theirsIn, name)))) return;
  assert.deepEqual(tidy(ours), tidy(theirs), `qemu-io ${line}`);
  assert.deepEqual(
    fs.readdirSync(oursIn).sort(),
    fs.readdirSync(theirsIn).sort(),
    `files of qemu-io ${line}`,
  );
  for (const name of fs.readdirSync(theirsIn)) sameFile(name, oursIn, theirsIn, line, compared);
  for (const directory of [oursIn, theirsIn]) fs.rmSync(directory, { recursive: true });
}

/**
 * qemu-io 7.2 loses count of its clusters where compressed ones are freed and more of them follow: it gives the space
 * that it has freed to two of them. There is nothing to compare with then.
 */
function isBroken(filename: string): boolean {
  return filename.endsWith(".qcow2") && run("qemu-img", ["check", filename]).code === 2;
}

/** Images have the same guest content and allocation; all other files, and those where it is asked for, the same bytes. */
function sameFile(
  name: string,
  oursIn: string,
  theirsIn: string,
  line: string,
  compared: "bytes" | "content",
): void {
  const [ours, theirs] = [path.join(oursIn, name), path.join(theirsIn, name)];
  if (!fs.statSync(theirs).isFile()) return;
  if (!name.endsWith(".qcow2") || compared === "bytes") {
    const isSame = fs.statSync(ours).size > 2 ** 28 || fs.readFileSync(ours).equals(fs.readFileSync(theirs));
    assert.ok(isSame && fs.statSync(ours).size === fs.statSync(theirs).size, `${name} after qemu-io ${line}`);
    return;
  }
  if (fs.readFileSync(ours).equals(fs.readFileSync(theirs))) return;
  assert.equal(
    mustRun("qemu-img", ["compare", ours, theirs]),
    "Images are identical.\n",
    `${name} after qemu-io ${line}`,
  );
  assert.deepEqual(allocation(ours), allocation(theirs), `allocation of ${name} after qemu-io ${line}`);
  mustRun("qemu-img", ["check", "-q", ours]);
}

interface MapEntry {
  readonly start: number;
  readonly length: number;
  readonly depth: number;
  readonly present: boolean;
  readonly zero: boolean;
  readonly data: boolean;
}

/** What `qemu-img map` says, but where the clusters lie: which one is free first is a matter of taste. */
function allocation(filename: string): readonly MapEntry[] {
  const entries = JSON.parse(mustRun("qemu-img", ["map", "--output=json", filename])) as readonly MapEntry[];
  const merged: MapEntry[] = [];
  for (const { start, length, depth, present, zero, data } of entries) {
    const last = merged.at(-1);
    const isSame =
      last?.depth === depth && last.present === present && last.zero === zero && last.data === data;
    if (isSame) merged[merged.length - 1] = { ...last, length: last.length + length };
    else merged.push({ start, length, depth, present, zero, data });
  }
  return merged;
}
