/** Commands that are ended by a signal at a certain call: what must be unharmed is, and nothing piles up. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { build } from "esbuild";
import { runOurs } from "../cli/differential.ts";
import { random } from "../support/random.ts";
import { type Bench, runUndisturbed, type Undisturbed } from "./commands.ts";
import { checkPromises, type Scenario } from "./scenarios.ts";

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL", "SIGKILL"] as const;
type Signal = (typeof SIGNALS)[number];

/** A killed process can't clear up; the next one that makes the same file takes this over. */
const LEFTOVERS = /^\..*\.bdrv-part$/;

const ROOT = path.resolve(import.meta.dirname, "../..");

/** Bundles the command for the processes to come; gives its file. `directory` must lie where modules are found. */
export async function bundleKilled(directory: string): Promise<string> {
  await build({
    entryPoints: [path.join(ROOT, "test/faults/killed.ts")],
    outdir: directory,
    bundle: true,
    splitting: true,
    format: "esm",
    target: "node20",
    platform: "node",
    packages: "external",
    logLevel: "warning",
  });
  return path.join(directory, "killed.js");
}

/** A new directory for `bundleKilled`. */
export function bundleDirectory(): string {
  fs.mkdirSync(path.join(ROOT, "dist"), { recursive: true });
  return fs.mkdtempSync(path.join(ROOT, "dist/killed-"));
}

/** How many processes were ended. */
export async function signalFaults(
  bench: Bench,
  program: string,
  scenario: Scenario,
  seed: number,
  count: number,
): Promise<number> {
  const dice = random(seed);
  const undisturbed = await runUndisturbed(bench, scenario);
  for (let each = 0; each < count; each++) {
    const signal = dice.pick(SIGNALS);
    const at = dice.between(1, undisturbed.calls);
    try {
      await endOnce(bench, program, scenario, undisturbed, signal, at);
    } catch (error) {
      throw new Error(`${signal} at call ${at} of ${undisturbed.calls}: ${(error as Error).message}`, {
        cause: error,
      });
    }
  }
  return count;
}

async function endOnce(
  bench: Bench,
  program: string,
  scenario: Scenario,
  { before, done }: Undisturbed,
  signal: Signal,
  at: number,
): Promise<void> {
  const directory = await bench.fresh();
  const { code, by, output } = await spawnKilled(program, scenario, directory, signal, at);
  // After the last call there is no other at which the signal could be sent.
  assert.ok(by === signal || code === 0, `exit code ${code}, signal ${by}: ${output}`);
  const isKill = signal === "SIGKILL";
  await checkPromises(directory, scenario, before, done, isKill ? LEFTOVERS : undefined);
  if (!scenario.again) return;
  const again = await runOurs(scenario.args, directory, scenario.tool);
  assert.equal(again.exitCode, 0, `run again: ${again.stderr}${again.stdout}`);
  await checkPromises(directory, scenario, before, done, undefined);
  assert.deepEqual(fs.readdirSync(directory).sort(), [...done.files.keys()].sort());
}

function spawnKilled(
  program: string,
  { args, tool }: Scenario,
  directory: string,
  signal: Signal,
  at: number,
): Promise<{ readonly code: number | null; readonly by: string | null; readonly output: string }> {
  const env = {
    ...process.env,
    BDRV_TEST_DIRECTORY: directory,
    BDRV_TEST_AT: String(at),
    BDRV_TEST_SIGNAL: signal,
  };
  const child = spawn(process.execPath, [program, tool ?? "qemu-img", ...args], {
    cwd: directory,
    env,
    stdio: ["ignore", "pipe", "pipe"],
  });
  let output = "";
  for (const stream of [child.stdout, child.stderr])
    stream.on("data", (chunk: Buffer) => {
      output += String(chunk);
    });
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (code, by) => resolve({ code, by, output }));
  });
}
