/** The value of `-o`: a list of a driver's options, or a question about them.  @qemu is_valid_option_list, print_block_option_help */

import type { OptionSpec } from "../block/options.ts";
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

/** The help that `-o help` asks for; undefined if it does not. Throws BlockError for an unknown format. */
export function createOptionsHelp(
  list: string | undefined,
  format: string,
  filename: string | undefined,
): string | undefined {
  const words = list?.replaceAll(",,", "\0").split(",") ?? [];
  if (!words.includes("help") && !words.includes("?")) return undefined;
  const table = Object.entries(createOptionTable(format, filename));
  const lines = table.sort(([a], [b]) => (a < b ? -1 : 1)).map(([key, spec]) => helpLine(key, spec));
  if (filename !== undefined) return `Supported options:\n${lines.join("")}`;
  return (
    `Supported ${format} options:\n${lines.join("")}\n` +
    "The protocol level may support further options.\n" +
    "Specify the target filename to include those options.\n"
  );
}

const TYPE_NAMES = { string: "str", bool: "bool (on/off)", number: "num", size: "size" } as const;

function helpLine(key: string, { type, help }: OptionSpec): string {
  const name = `  ${key}=<${TYPE_NAMES[type]}>`;
  return help === undefined ? `${name}\n` : `${name.padEnd(24)} - ${help}\n`;
}
