/**
 * Runs one command line with qemu-img and with ours, each in its own copy of the same directory, and compares what
 * both print, their exit codes and the files they leave.
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import "../../drivers/index.ts";
import { MemoryOutput } from "../../src/cli/output.ts";
import { main } from "../../src/cli/program.ts";
import type { Difference } from "./differences.ts";

export interface RunResult {
  readonly stdout: string;
  readonly stderr: string;
  readonly exitCode: number;
}

export interface CompareOptions {
  /** Changes text that differs on purpose, in both outputs, before they are compared. */
  readonly normalise?: (text: string) => string;
  /** Where both may differ. */
  readonly differences?: readonly Difference[];
}

/** Why the tests that compare with QEMU's tools can't run; undefined: they can. */
export const missingTool: string | undefined =
  spawnSync("qemu-img", ["--version"]).status === 0 ? undefined : "qemu-img is not installed";

/** Runs our command in this process, as qemu-img, in `directory`. */
export async function runOurs(
  args: readonly string[],
  directory: string,
  tool = "qemu-img",
): Promise<RunResult> {
  const stdout = new MemoryOutput();
  const stderr = new MemoryOutput();
  const before = process.cwd();
  process.chdir(directory);
  try {
    const exitCode = await main([tool, ...args], {
      stdout,
      stderr,
      stdin: () => process.stdin,
      signal: new AbortController().signal,
    });
    return { stdout: stdout.text, stderr: stderr.text, exitCode };
  } finally {
    process.chdir(before);
  }
}

export function runTheirs(args: readonly string[], directory: string, tool = "qemu-img"): RunResult {
  const { stdout, stderr, status } = spawnSync(tool, args, { cwd: directory, encoding: "utf8" });
  return { stdout, stderr, exitCode: status ?? -1 };
}

/** A directory of images, filled once; each run gets fresh copies of it. */
export class Fixture {
  readonly #root = fs.mkdtempSync(path.join(os.tmpdir(), "bdrv-cli-"));
  readonly #pristine = path.join(this.#root, "pristine");
  #runs = 0;
  #pair: { readonly theirs: string; readonly ours: string } | undefined;

  constructor(fill: (directory: string) => void) {
    fs.mkdirSync(this.#pristine);
    fill(this.#pristine);
  }

  /** A copy that may be written to; holes stay holes. */
  copy(): string {
    const copy = path.join(this.#root, `run-${this.#runs++}`);
    const { status, stderr } = spawnSync("cp", ["-a", "--sparse=always", this.#pristine, copy]);
    assert.equal(status, 0, String(stderr));
    return copy;
  }

  /** For commands that only read: both tools in the one directory. Fails where they differ. */
  async sameOutput(args: readonly string[], options: CompareOptions = {}): Promise<void> {
    const ours = await runOurs(args, this.#pristine);
    compareResults(ours, runTheirs(args, this.#pristine), args, options);
  }

  /** Fails where the two tools differ, in what they print or in any byte of the files that they leave. */
  async same(args: readonly string[], options: CompareOptions = {}): Promise<void> {
    const { theirs: theirsIn, ours: oursIn } = (this.#pair ??= { theirs: this.copy(), ours: this.copy() });
    const theirs = runTheirs(args, theirsIn);
    const ours = await runOurs(args, oursIn);
    const allowed = options.differences?.filter(({ applies }) => applies(args, theirs)) ?? [];
    if (!allowed.some(({ what }) => what !== "files")) compareResults(ours, theirs, args, options);
    const what = `files left by qemu-img ${args.join(" ")}`;
    if (allowed.some(({ what }) => what !== "output")) {
      this.#pair = undefined;
      for (const directory of [theirsIn, oursIn]) fs.rmSync(directory, { recursive: true });
      return;
    }
    assert.deepEqual(listing(oursIn), listing(theirsIn), what);
    const untouched = stamps(this.#pristine);
    // Copying costs more than most commands: what nobody wrote to serves the next one.
    if (stamps(oursIn) === untouched && stamps(theirsIn) === untouched) return;
    this.#pair = undefined;
    const { status, stdout } = spawnSync("diff", ["-rq", "--no-dereference", oursIn, theirsIn], {
      encoding: "utf8",
    });
    assert.equal(status, 0, `${what}: ${stdout}`);
    for (const directory of [theirsIn, oursIn]) fs.rmSync(directory, { recursive: true });
  }

  remove(): void {
    fs.rmSync(this.#root, { recursive: true, force: true });
  }
}

function compareResults(
  ours: RunResult,
  theirs: RunResult,
  args: readonly string[],
  { normalise = (text) => text }: CompareOptions,
): void {
  const tidy = ({ stdout, stderr, exitCode }: RunResult) => ({
    stdout: normalise(stdout),
    stderr: normalise(stderr),
    exitCode,
  });
  assert.deepEqual(tidy(ours), tidy(theirs), `qemu-img ${args.join(" ")}`);
}

/** Names and lengths: what is in the files is for the tests of jobs and drivers to compare. */
function listing(directory: string): readonly string[] {
  return fs
    .readdirSync(directory, { recursive: true, encoding: "utf8" })
    .map((name) => `${name} ${fs.statSync(path.join(directory, name)).size}`)
    .sort();
}

/** Changes with every write to one of the files. */
function stamps(directory: string): string {
  return fs
    .readdirSync(directory, { recursive: true, encoding: "utf8" })
    .map((name) => `${name} ${fs.lstatSync(path.join(directory, name), { bigint: true }).mtimeNs}`)
    .sort()
    .join("\n");
}

/** Splits a command line at spaces; '' and "" hold words together. */
export function words(line: string): string[] {
  return [...line.matchAll(/(?:[^\s'"]|'[^']*'|"[^"]*")+/g)].map(([word]) =>
    word.replace(/'([^']*)'|"([^"]*)"/g, (_, single?: string, double?: string) => single ?? double ?? ""),
  );
}
