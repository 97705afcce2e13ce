/** Commands on a disk that fills up or fails: the exit code is right, and what must be unharmed is. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { type RunResult, runOurs } from "../cli/differential.ts";
import { random } from "../support/random.ts";
import { openFilesUnder } from "../support/temp.ts";
import { checkPromises, makeImages, type Scenario, type State, stateOf } from "./scenarios.ts";
import { type Syscall, type Verdict, watchSyscalls } from "./syscalls.ts";

/** Images to start from, and the states of a run that nothing disturbs. */
export class Bench {
  readonly root: string;
  readonly #pristine: string;
  #isMade = false;

  constructor(root: string) {
    this.root = root;
    this.#pristine = path.join(root, "pristine");
  }

  /** A directory with fresh images, in the place of the last one. */
  async fresh(): Promise<string> {
    if (!this.#isMade) {
      fs.mkdirSync(this.#pristine);
      await makeImages(this.#pristine);
      this.#isMade = true;
    }
    const directory = path.join(this.root, "images");
    fs.rmSync(directory, { recursive: true, force: true });
    fs.cpSync(this.#pristine, directory, { recursive: true });
    return directory;
  }
}

export interface Undisturbed {
  readonly before: State;
  readonly done: State;
  /** How many calls it makes that could fail. */
  readonly calls: number;
}

export async function runUndisturbed(bench: Bench, scenario: Scenario): Promise<Undisturbed> {
  const directory = await bench.fresh();
  const before = await stateOf(directory, scenario);
  let calls = 0;
  const result = await watched(scenario, directory, ({ kind }) => {
    if (kind !== "read") calls++;
    return undefined;
  });
  assert.equal(result.exitCode, 0, result.stderr + result.stdout);
  return { before, done: await stateOf(directory, scenario), calls };
}

async function watched(
  scenario: Scenario,
  directory: string,
  judge: (call: Syscall) => Verdict,
): Promise<RunResult> {
  const end = watchSyscalls(directory, judge);
  try {
    return await runOurs(scenario.args, directory, scenario.tool);
  } finally {
    end();
  }
}

/** How many faults were tried. Each is a run of the command with calls failing from a certain one on. */
export async function commandFaults(
  bench: Bench,
  scenario: Scenario,
  seed: number,
  faults: number,
): Promise<number> {
  const dice = random(seed);
  const undisturbed = await runUndisturbed(bench, scenario);
  for (let count = 0; count < faults; count++) {
    const at = dice.between(1, undisturbed.calls);
    const fault = dice.pick(["full", "full", "once", "dead", "short"] as const);
    try {
      await failOnce(bench, scenario, undisturbed, fault, at);
    } catch (error) {
      throw new Error(`${fault} at call ${at} of ${undisturbed.calls}: ${(error as Error).message}`, {
        cause: error,
      });
    }
  }
  return faults;
}

type FaultKind = "full" | "once" | "dead" | "short";

/** `full`: no space from that call on. `once`: one call fails. `dead`: all do from there. `short`: none does all it is asked. */
async function failOnce(
  bench: Bench,
  scenario: Scenario,
  { before, done }: Undisturbed,
  fault: FaultKind,
  at: number,
): Promise<void> {
  const directory = await bench.fresh();
  let calls = 0;
  let failed = 0;
  const { exitCode, stderr, stdout } = await watched(scenario, directory, (call) => {
    if (fault === "short") return { bytes: Math.ceil(call.bytes / 2) };
    if (call.kind !== "read") calls++;
    const verdict = judge(fault, call, calls, at);
    if (verdict) failed++;
    return verdict;
  });
  const output = stderr + stdout;
  if (fault === "short") assert.equal(exitCode, 0, output);
  if (exitCode !== 0) {
    assert.ok(failed > 0, `no call failed, and the exit code is ${exitCode}: ${output}`);
    assert.match(output, fault === "full" ? /No space left/ : /Input\/output error/);
  }
  assert.deepEqual(openFilesUnder(directory), [], "files that are still open");
  await checkPromises(directory, scenario, before, done, undefined);
  if (exitCode === 0) await checkDone(directory, scenario, done, output);
  else if (scenario.again) {
    const again = await runOurs(scenario.args, directory, scenario.tool);
    assert.equal(again.exitCode, 0, `run again: ${again.stderr}${again.stdout}`);
    await checkDone(directory, scenario, done, output);
  }
}

function judge(fault: FaultKind, { kind, bytes }: Syscall, calls: number, at: number): Verdict {
  if (fault === "full") return calls >= at && kind === "write" && bytes > 0 ? { errno: "ENOSPC" } : undefined;
  if (fault === "once") return calls === at && kind !== "read" ? { errno: "EIO" } : undefined;
  return calls >= at ? { errno: "EIO" } : undefined;
}

/** What counts as done is done: new files are there, whole. */
async function checkDone(directory: string, scenario: Scenario, done: State, output: string): Promise<void> {
  const now = await stateOf(directory, scenario);
  for (const name of scenario.atomic)
    assert.equal(
      now.files.get(name),
      done.files.get(name),
      `${name} is not whole, and all seems well: ${output}`,
    );
}
