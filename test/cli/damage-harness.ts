/**
 * Checks and repairs damaged images with qemu-img and with ours: what both print, their exit codes, and every byte of
 * the images that they leave.
 */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { run } from "../support/tools.ts";
import { damage, makeBases } from "./damage.ts";
import { type RunResult, runOurs } from "./differential.ts";

/** What is different on purpose, by case and command; why stands at the head of the list. */
export type Exceptions = ReadonlyMap<string, string>;

const MODES = [[], ["-r", "leaks"], ["-r", "all"]] as const;

/** Images that are damaged one after the other. */
export class DamagedImages {
  readonly #directories: { readonly [name in "bases" | "damaged" | "ours" | "theirs"]: string };

  constructor(root: string) {
    const at = (name: string) => path.join(root, name);
    this.#directories = {
      bases: at("bases"),
      damaged: at("damaged"),
      ours: at("ours"),
      theirs: at("theirs"),
    };
    for (const directory of Object.values(this.#directories)) fs.mkdirSync(directory);
    makeBases(this.#directories.bases);
  }

  /**
   * Fails where the tools differ: plain check, `-r leaks` and `-r all`, each with one of both output formats, by the
   * case's number.
   */
  async compareChecks(line: string, number: number, exceptions: Exceptions = new Map()): Promise<void> {
    const { bases, damaged, ours, theirs } = this.#directories;
    const name = damage(bases, damaged, line);
    for (const [index, mode] of MODES.entries()) {
      const exception = exceptions.get([line, ...mode].join(" "));
      for (const directory of [ours, theirs]) copyAll(damaged, directory);
      const format = (number + index) % 2 === 0 ? [] : ["--output=json"];
      await compare(["check", ...mode, ...format, name], { ours, theirs, name, exception });
    }
    for (const directory of [damaged, ours, theirs]) empty(directory);
  }
}

interface Comparison {
  readonly ours: string;
  readonly theirs: string;
  readonly name: string;
  readonly exception: string | undefined;
}

async function compare(args: readonly string[], test: Comparison): Promise<void> {
  const [expected, actual] = await Promise.all([runTheirs(args, test.theirs), runOurs(args, test.ours)]);
  const image = path.join(test.ours, test.name);
  if (isGivenUp(expected)) return assertRepaired(actual, image);
  if (test.exception !== undefined) return assert.ok(run("qemu-img", ["check", "-q", image]).code !== 1);
  assert.deepEqual(tidy(actual), tidy(expected));
  // A repair that is broken off keeps what it was about to discard.
  if (!expected.stderr.includes("Marking image as corrupt"))
    assertSame(image, path.join(test.theirs, test.name));
}

/**
 * qemu-img 7.2 can't make new refcount blocks where the old ones lie askew: it takes what the wrong entries of the old
 * table point to for tables in use, and the node is of no use once it was marked corrupt.
 */
function isGivenUp({ stderr }: RunResult): boolean {
  // Of other tables it does right to keep away.
  if (/overlaps with (?!refcount)/.test(stderr)) return false;
  return /Rebuilding refcount structure\n[^]*(ERROR writing refblock|Check failed: No medium found)/.test(
    stderr,
  );
}

/** By us, where qemu-img gives up: what is left is as good as a repair can make it. */
function assertRepaired({ exitCode }: RunResult, image: string): void {
  assert.ok(exitCode === 0 || exitCode === 2, `exit code ${exitCode}`);
  assert.equal(run("qemu-img", ["check", "-q", image]).code, exitCode);
}

/** The numbers of nodes are no one's concern. */
function tidy({ stdout, stderr, exitCode }: RunResult): RunResult {
  return { stdout, stderr: stderr.replace(/#block\d+/g, "#blockN"), exitCode };
}

/** Files that were made very long are holes but for what both tools wrote at the start. */
const COMPARED_BYTES = 2 ** 24;

function assertSame(actual: string, expected: string): void {
  assert.equal(fs.statSync(actual).size, fs.statSync(expected).size, "length of the file");
  assert.ok(head(actual).equals(head(expected)), "the bytes of the file");
}

function head(file: string): Buffer {
  const bytes = Buffer.alloc(Math.min(fs.statSync(file).size, COMPARED_BYTES));
  const fd = fs.openSync(file, "r");
  fs.readSync(fd, bytes, 0, bytes.length, 0);
  fs.closeSync(fd);
  return bytes;
}

function copyAll(from: string, to: string): void {
  for (const file of fs.readdirSync(from)) fs.copyFileSync(path.join(from, file), path.join(to, file));
}

function empty(directory: string): void {
  for (const file of fs.readdirSync(directory)) fs.rmSync(path.join(directory, file));
}

/** Beside ours, which runs in this process meanwhile. */
function runTheirs(args: readonly string[], cwd: string): Promise<RunResult> {
  return new Promise((resolve, reject) => {
    const child = spawn("qemu-img", args, { cwd, stdio: ["ignore", "pipe", "pipe"] });
    let stdout = "";
    let stderr = "";
    child.stdout.on("data", (chunk: Buffer) => {
      stdout += chunk;
    });
    child.stderr.on("data", (chunk: Buffer) => {
      stderr += chunk;
    });
    child.on("error", reject);
    child.on("close", (code) => resolve({ stdout, stderr, exitCode: code ?? -1 }));
  });
}
