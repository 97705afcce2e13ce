/**
 * A story of several command lines, told twice: by QEMU's tools in one directory and by ours in another. After each
 * line that is compared, output, exit code and every byte of every file must be the same.
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { type Cleanup, tempDir } from "../support/temp.ts";
import { type RunResult, runOurs, words } from "./differential.ts";

export class Scenario {
  /** Where QEMU's tools work. */
  readonly theirs: string;
  readonly ours: string;
  /** By name: when both files were last changed, as far as they have been compared. */
  readonly #compared = new Map<string, string>();

  /** Run in both directories after each line: takes what is random out of the files. */
  readonly #tidy: (directory: string) => void;

  constructor(test: Cleanup, tidy: (directory: string) => void = () => {}) {
    this.#tidy = tidy;
    const root = tempDir(test);
    this.theirs = path.join(root, "theirs");
    this.ours = path.join(root, "ours");
    fs.mkdirSync(this.theirs);
    fs.mkdirSync(this.ours);
  }

  /** Lines that QEMU's tools run in both directories, to begin with the same files. */
  given(...lines: readonly string[]): void {
    for (const line of lines)
      for (const directory of [this.theirs, this.ours]) {
        const { exitCode, stderr } = runTheirs(words(line), directory);
        assert.equal(exitCode, 0, `${line}: ${stderr}`);
        this.#tidy(directory);
      }
  }

  /** Changes the files in both directories by other means. */
  change(fn: (directory: string) => void): void {
    for (const directory of [this.theirs, this.ours]) fn(directory);
  }

  /** Each line is run by both and compared. "qemu-img" may be left out. */
  async same(...lines: readonly string[]): Promise<void> {
    for (const line of lines) {
      const given = words(line);
      const args = given[0]?.startsWith("qemu-") ? given : ["qemu-img", ...given];
      const [tool = "", ...rest] = args;
      const expected = runTheirs(args, this.theirs);
      assert.deepEqual(comparable(await runOurs(rest, this.ours, tool)), comparable(expected), line);
      this.change(this.#tidy);
      this.sameFiles(line);
    }
  }

  /** Fails at the first byte that differs. */
  sameFiles(what: string): void {
    assert.deepEqual(list(this.ours), list(this.theirs), what);
    for (const name of list(this.ours)) {
      const one = path.join(this.ours, name);
      const other = path.join(this.theirs, name);
      const times = [one, other].map((file) => fs.statSync(file, { bigint: true }).mtimeNs).join();
      if (this.#compared.get(name) === times) continue;
      const at = firstDifference(one, other);
      assert.equal(at, undefined, `${what}: ${name} differs at byte ${at}`);
      this.#compared.set(name, times);
    }
  }
}

/** Undefined: there is none. */
function firstDifference(one: string, other: string): number | undefined {
  const files = [fs.openSync(one, "r"), fs.openSync(other, "r")] as const;
  try {
    const buffers = [Buffer.alloc(2 ** 20), Buffer.alloc(2 ** 20)] as const;
    for (let at = 0; ; at += 2 ** 20) {
      const [first, second] = buffers.map((buffer, index) =>
        buffer.subarray(0, fs.readSync(files[index] as number, buffer, 0, buffer.length, at)),
      ) as [Buffer, Buffer];
      if (!first.equals(second)) {
        const within = first.findIndex((byte, index) => byte !== second[index]);
        return at + (within < 0 ? first.length : within);
      }
      if (first.length < 2 ** 20) return undefined;
    }
  } finally {
    for (const fd of files) fs.closeSync(fd);
  }
}

/** Without what differs from run to run: names of nodes that nobody gave a name, and how long qemu-io took. */
function comparable({ stdout, stderr, exitCode }: RunResult): RunResult {
  return {
    stdout: stdout.replace(/(\d+ ops); .*/g, "$1"),
    stderr: stderr.replaceAll(/#block\d+/g, "#block"),
    exitCode,
  };
}

function runTheirs([tool = "", ...args]: readonly string[], directory: string): RunResult {
  const { stdout, stderr, status } = spawnSync(tool, args, { cwd: directory, encoding: "utf8" });
  return { stdout, stderr, exitCode: status ?? -1 };
}

function list(directory: string): string[] {
  return fs
    .readdirSync(directory)
    .sort()
    .map((name) => name);
}
