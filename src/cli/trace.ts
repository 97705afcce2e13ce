/** `--trace`: there are no trace points here, so every event that is asked for is one that does not exist.  @qemu trace/control.c */

import fs from "node:fs";
import { toBlockError } from "../block/errors.ts";
import { parseKeyValues } from "../block/options.ts";
import { type CliContext, CommandError, ExitError } from "./command.ts";

/** Does what is left of `-T text`. */
export function applyTrace(text: string, { program, stdout, stderr }: CliContext): void {
  const options = parseKeyValues(text, "enable");
  for (const key of options.keys())
    if (key !== "enable" && key !== "events" && key !== "file")
      throw new CommandError([`Invalid parameter '${key}'`]);
  const warn = (place: string, event: string) => {
    const name = event.replace(/^-/, "");
    if (/[*?]/.test(name)) return;
    stderr.write(`${program}:${place} warning: trace event '${name}' does not exist\n`);
  };
  const enable = options.get("enable");
  if (enable === "help" || enable === "?") {
    stdout.flush();
    throw new ExitError(0);
  }
  if (enable !== undefined && enable !== "") warn("", String(enable));
  const events = options.get("events");
  if (events !== undefined) {
    for (const [index, line] of eventLines(String(events), program, stderr).entries())
      if (!line.startsWith("#")) warn(`${events}:${index + 1}:`, line);
  }
  const file = options.get("file");
  if (file !== undefined) makeLog(String(file));
}

function eventLines(filename: string, program: string, stderr: CliContext["stderr"]): string[] {
  let text: string;
  try {
    text = fs.readFileSync(filename, "utf8");
  } catch (error) {
    stderr.write(`${program}:${filename}: ${toBlockError(error).message}\n`);
    throw new ExitError(1);
  }
  return text.replace(/\n$/, "").split("\n");
}

function makeLog(filename: string): void {
  try {
    fs.closeSync(fs.openSync(filename, "w"));
  } catch (error) {
    throw new CommandError([`Error opening logfile ${filename}: ${toBlockError(error).message}`]);
  }
}
