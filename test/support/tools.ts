/** qemu's tools, as the oracle: run with a list of arguments, and skipped with a reason where they are missing. */

import { spawnSync } from "node:child_process";
import { posix } from "../../src/platform/posix.ts";

export interface ToolResult {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

const found = new Map<string, boolean>();

/** For node:test's `skip`: the reason if `tool` can't be run, else false. */
export function missing(tool: string): string | false {
  let isFound = found.get(tool);
  if (isFound === undefined) {
    isFound = spawnSync(tool, ["--version"], { stdio: "ignore" }).error === undefined;
    found.set(tool, isFound);
  }
  return isFound ? false : `${tool} is not installed`;
}

/** For node:test's `skip`: the reason where files do not tell their holes, for want of the system calls. */
export const noHoles: string | false = posix().native
  ? false
  : "no koffi here: holes are neither seen nor made";

/** Runs a tool to its end. A run of over a minute is ended and throws. */
export function run(tool: string, args: readonly string[], input = ""): ToolResult {
  const result = spawnSync(tool, args, { encoding: "utf8", input, timeout: 60_000, maxBuffer: 64 * 2 ** 20 });
  if (result.error) throw result.error;
  return { code: result.status ?? -1, stdout: result.stdout, stderr: result.stderr };
}

/** As `run`, for what must work: throws with the command and its output if the exit code is not 0. */
export function mustRun(tool: string, args: readonly string[], input = ""): string {
  const { code, stdout, stderr } = run(tool, args, input);
  if (code !== 0) throw new Error(`${tool} ${args.join(" ")}: exit code ${code}\n${stdout}${stderr}`);
  return stdout;
}
