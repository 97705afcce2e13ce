/** Corruption that is met while an image is in use: what qemu-io says, and whether the image is marked. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { Readable } from "node:stream";
import { after, before, describe, it } from "node:test";
import { MemoryOutput } from "../../src/cli/output.ts";
import { main } from "../../src/cli/program.ts";
import { tempDir } from "../support/temp.ts";
import { damage, makeBases } from "./damage.ts";
import { missingTool, type RunResult } from "./differential.ts";
import { normalise } from "./io-harness.ts";

const skip = missingTool ?? false;
const root = tempDir({ after });
const bases = path.join(root, "bases");

before(() => {
  if (skip) return;
  fs.mkdirSync(bases);
  makeBases(bases);
});

async function ours(args: readonly string[]): Promise<RunResult> {
  const stdout = new MemoryOutput();
  const stderr = new MemoryOutput();
  const { signal } = new AbortController();
  const exitCode = await main(["qemu-io", ...args], {
    stdout,
    stderr,
    stdin: () => Readable.from([]),
    signal,
  });
  return { stdout: stdout.text, stderr: stderr.text, exitCode };
}

/** Beside ours, which runs in this process meanwhile. */
function theirs(args: readonly string[]): Promise<RunResult> {
  return new Promise((resolve, reject) => {
    const child = spawn("qemu-io", args, { stdio: ["ignore", "pipe", "pipe"] });
    const text = { stdout: "", stderr: "" };
    for (const stream of ["stdout", "stderr"] as const)
      child[stream].on("data", (chunk: Buffer) => {
        text[stream] += String(chunk);
      });
    child.on("error", reject);
    child.on("close", (code) => resolve({ ...text, exitCode: code ?? -1 }));
  });
}

interface Settings {
  /** Come after the file in the image options. */
  readonly options?: string;
  readonly flags?: readonly string[];
}

/** `line` as for `damage`. */
async function agree(line: string, commands: readonly string[], settings: Settings = {}): Promise<void> {
  const { options = "", flags = [] } = settings;
  const files: string[] = [];
  const results = [theirs, ours].map((run, index) => {
    const directory = path.join(root, String(index));
    fs.mkdirSync(directory, { recursive: true });
    const file = path.join(directory, damage(bases, directory, line));
    files.push(file);
    const image = `driver=qcow2,file.filename=${file}${options}`;
    return run([...flags, ...commands.flatMap((command) => ["-c", command]), "--image-opts", image]);
  });
  const [expected, actual] = (await Promise.all(results)).map(tidy);
  assert.deepEqual(actual, expected);
  const [theirFile = "", ourFile = ""] = files;
  assert.equal(isMarked(ourFile), isMarked(theirFile), "marked corrupt");
  // What was on its way when an image was given up is in the file or not.
  if (!isMarked(theirFile))
    assert.ok(fs.readFileSync(ourFile).equals(fs.readFileSync(theirFile)), "the bytes");
}

function tidy({ stdout, stderr, exitCode }: RunResult): RunResult {
  return {
    stdout: normalise(stdout),
    stderr: normalise(stderr).replaceAll(`${root}/0`, "DIR").replaceAll(`${root}/1`, "DIR"),
    exitCode,
  };
}

/** The corrupt bit. */
function isMarked(file: string): boolean {
  return ((fs.readFileSync(file)[79] as number) & 2) !== 0;
}

const TABLES = ["0", "L1", "L2", "RT", "RB", "SN", "S1", "S2", "BD"];
const OVERLAP_OPTIONS = [
  "main-header",
  "active-l1",
  "active-l2",
  "refcount-table",
  "refcount-block",
  "snapshot-table",
  "inactive-l1",
  "inactive-l2",
  "bitmap-directory",
];

describe("a write into the image's own tables", () => {
  for (const table of TABLES)
    for (const command of ["write 0 4k", "write -c 0 4k", "read 0 4k"])
      it(`${table}: ${command}`, { skip }, () =>
        agree(`mixed l2[0]=C+${table}`, [command, "read 64k 4k", "write 64k 4k"]),
      );
  for (const template of ["constant", "cached", "all"])
    for (const table of TABLES)
      it(`${table}, overlap-check=${template}`, { skip }, () =>
        agree(`mixed l2[0]=C+${table}`, ["write -P 0 0 1k"], { options: `,overlap-check=${template}` }),
      );
  for (const option of OVERLAP_OPTIONS)
    for (const table of ["L1", "S1", "S2", "SN", "RB"])
      it(`${table}, only overlap-check.${option}`, { skip }, () =>
        agree(`snap l2[0]=C+${table}`, ["write 3k 1k"], {
          options: `,overlap-check=none,overlap-check.${option}=on`,
        }),
      );
  it("the first of two kinds is named", { skip }, async () => {
    await agree("mixed l2[0]=C+SN rt[1]=SN", ["write 0 4k"]);
    await agree("mixed l2[0]=C+S1 rt[1]=S1", ["write 0 4k"]);
    await agree("mixed l2[0]=C+S2 rt[1]=S2", ["write 0 4k"], { options: ",overlap-check=all" });
  });
});

describe("entries that make no sense", () => {
  const entries = "C+5K+512 5K+512 C+5K+513 5K+513 C+5K+2 C+1500K Z+0x500000 C+Z+5K C 1 2".split(" ");
  for (const entry of entries)
    for (const command of ["read 0 4k", "write 0 1k", "write 0 4k", "write -z 0 4k", "discard 0 4k", "map"])
      it(`L2 ${entry}: ${command}`, { skip }, () =>
        agree(`mixed l2[0]=${entry}`, [command, "read 4k 4k", "write 4k 4k"]),
      );
  for (const entry of ["C+L2+512", "C+0x40000200", "L2+512"])
    for (const command of ["read 0 4k", "write 0 1k", "write -z 0 4k", "discard 0 4k", "map", "write 5M 4k"])
      it(`L1 ${entry}: ${command}`, { skip }, () =>
        agree(`mixed l1[0]=${entry}`, [command, "read 64k 4k", "write 64k 4k"]),
      );
  for (const entry of ["RB+512", "0", "RT", "L1", "L2"])
    for (const command of ["write 5M 4k", "write 0 4k"])
      it(`refcount table ${entry}: ${command}`, { skip }, () =>
        agree(`snap rt[0]=${entry}`, [command, "write 6M 4k"]),
      );
  for (const cluster of [0, 1, 2, 3, 4, 5, 10, 12])
    it(`refcount of cluster ${cluster} is 0`, { skip }, () =>
      agree(`snap rc[${cluster}]=0`, ["write 5M 4k", "write 6M 8k", "write -c 7M 4k"]),
    );
  for (const line of ["mixed l2[0]=C+5K+512", "mixed l1[0]=L2+512", "mixed l2[0]=1K+513"])
    it(`${line}, read-only`, { skip }, () =>
      agree(line, ["read 0 4k", "read 0 4k", "read 64k 4k"], { flags: ["-r"] }),
    );
});

describe("an image that is marked", () => {
  for (const [what, patch] of [
    ["corrupt", "@79:1=2"],
    ["dirty", "@79:1=1"],
    ["dirty, with leaks", "@79:1=1 rc[5]=3 rc[30]=1"],
    ["dirty, with errors", "@79:1=1 rc[5]=2 rc[6]=4 l2[1]=C+5K"],
    ["dirty, with refcounts that need to be made anew", "@79:1=1 rt[0]=0"],
    ["dirty and beyond help", "@79:1=1 rt[0]=0xffff2a00"],
    ["dirty and corrupt", "@79:1=3"],
    ["of unknown autoclear features", "@88:8=0xf000000000000000"],
  ] as const) {
    it(`${what}: read-write`, { skip }, () => agree(`lazy ${patch}`, ["read 0 4k", "write 64k 4k"]));
    it(`${what}: read-only`, { skip }, () => agree(`lazy ${patch}`, ["read 0 4k"], { flags: ["-r"] }));
  }
});
