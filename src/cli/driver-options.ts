/** The values of `-o`, a list of a driver's options or a question about them, and of `-l`.  @qemu is_valid_option_list, print_block_option_help */

import { type OptionSpec, type OptionTable, parseKeyValues, takeString } from "../block/options.ts";
import type { SnapshotChoice } from "../jobs/convert.ts";
import { createOptionTable } from "../jobs/create.ts";
import { CommandError } from "./command.ts";

/** `text` behind `list`, for a `-o` that comes again.  @qemu accumulate_options */
export function joinOptionList(list: string | undefined, text: string, exitCode = 1): string {
  const trailingCommas = /,*$/.exec(text)?.[0].length ?? 0;
  // A comma at an end would join two options into one; a doubled one there belongs to a value.
  if (text === "" || text.startsWith(",") || trailingCommas % 2 === 1)
    throw new CommandError([`Invalid option list: ${text}`], exitCode);
  return list === undefined ? text : `${list},${text}`;
}

/** The value of `-l`: "snapshot.id=1,snapshot.name=x", either of both by itself, or an id or name. */
export function parseSnapshotChoice(text: string): SnapshotChoice {
  if (!text.startsWith("snapshot.")) return { idOrName: text };
  const options = parseKeyValues(text);
  const id = takeString(options, "snapshot.id");
  const name = takeString(options, "snapshot.name");
  const [unknown] = options.keys();
  if (unknown !== undefined)
    throw new CommandError([`Invalid parameter '${unknown}'`, `Failed in parsing snapshot param '${text}'`]);
  return { ...(id !== undefined && { id }), ...(name !== undefined && { name }) };
}

/** The help that `-o help` asks for; undefined if it does not. Throws BlockError for an unknown format. */
export async function createOptionsHelp(
  list: string | undefined,
  format: string,
  filename: string | undefined,
): Promise<string | undefined> {
  if (!asksForHelp(list)) return undefined;
  const lines = optionLines(await createOptionTable(format, filename));
  if (filename !== undefined) return `Supported options:\n${lines}`;
  return (
    `Supported ${format} options:\n${lines}\n` +
    "The protocol level may support further options.\n" +
    "Specify the target filename to include those options.\n"
  );
}

/** Whether one of the options is `help` or `?`.  @qemu has_help_option */
export function asksForHelp(list: string | undefined): boolean {
  const words = list?.replaceAll(",,", "\0").split(",") ?? [];
  return words.includes("help") || words.includes("?");
}

/** A line for each option, by their names.  @qemu qemu_opts_print_help */
export function optionLines(table: OptionTable): string {
  const entries = Object.entries(table).sort(([a], [b]) => (a < b ? -1 : 1));
  return entries.map(([key, spec]) => helpLine(key, spec)).join("");
}

const TYPE_NAMES = { string: "str", bool: "bool (on/off)", number: "num", size: "size" } as const;

function helpLine(key: string, { type, help }: OptionSpec): string {
  const name = `  ${key}=<${TYPE_NAMES[type]}>`;
  return help === undefined ? `${name}\n` : `${name.padEnd(24)} - ${help}\n`;
}
