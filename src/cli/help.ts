/**
 * `--help`, `--version` and what else serves a person at a terminal. As `bdrv` yargs lays it out; under the name
 * of qemu-img it has the shape of that one's. yargs costs 45 ms to load, so nothing else imports this module.
 */

import yargs, { type Argv } from "yargs";
import packageJson from "../../package.json" with { type: "json" };
import { allDrivers } from "../block/driver.ts";
import type { CliContext, Command } from "./command.ts";
import { commands } from "./commands.ts";
import type { OptionSpec } from "./getopt.ts";

/** The release of QEMU whose command line this one follows. */
const QEMU_VERSION = "7.2.22";

/** `--help` or `--version` before any command. */
export async function standardOption(name: string, context: CliContext): Promise<number> {
  const { stdout, program } = context;
  if (name === "version") stdout.write(versionText(program));
  else stdout.write(program === "bdrv" ? `${await describeAll().getHelp()}\n` : qemuHelp(program));
  return 0;
}

/** `bdrv COMMAND --help`. qemu-img answers that with the help of all. */
export async function commandHelp(command: Command, { stdout, program }: CliContext): Promise<number> {
  if (program === "bdrv") stdout.write(`${await describe(command).getHelp()}\n`);
  else stdout.write(qemuHelp(program));
  return 0;
}

/** The command that `word` was probably meant to be. */
export function closestCommand(word: string): string | undefined {
  let answer: string | undefined;
  const parser = describeAll()
    .strictCommands()
    .recommendCommands()
    .exitProcess(false)
    .fail((message) => {
      answer ??= /^Did you mean (.+)\?$/.exec(message)?.[1];
    });
  parser.parseSync([word]);
  return answer;
}

/** A script that completes commands and options in bash and zsh, or the completions it asks for. */
export async function completion(args: readonly string[], { stdout }: CliContext): Promise<number> {
  const [first, ...words] = args;
  if (first === "--get-yargs-completions") {
    // The first word is the program's own name.
    const found = await describeAll().getCompletion(words.slice(1));
    stdout.write(`${found.join("\n")}\n`);
  } else {
    describeAll().showCompletionScript();
  }
  return 0;
}

function versionText(program: string): string {
  const own = `bdrv ${packageJson.version}`;
  // Scripts take the number behind "version" for QEMU's.
  return program === "bdrv" ? `${own}\n` : `${program} version ${QEMU_VERSION} (${own})\n`;
}

function describeAll(): Argv {
  let parser = base().usage("$0 COMMAND ...\n\nDisk images: describe, create, convert, compare, check.");
  for (const command of commands)
    parser = parser.command(
      [command.name, ...command.operands.split(" ").flatMap(yargsOperand)].join(" "),
      command.summary,
      (sub) => withOptions(sub, command),
      () => {},
    );
  return parser
    .command("io [FILENAME]", "Read and write an image piece by piece, as qemu-io does", {}, () => {})
    .command("completion", "Print a script that completes commands in bash and zsh", {}, () => {})
    .epilogue(
      "Every command takes --help. `bdrv qemu-img ...` and `bdrv qemu-io ...` stand in for QEMU's tools.",
    );
}

function describe(command: Command): Argv {
  const parser = base().usage(`$0 ${command.name} [OPTIONS] ${command.operands}\n\n${command.summary}.`);
  return withOptions(parser, command);
}

/** yargs marks what must be given by <>; what may be given stands in the command's own help. */
function yargsOperand(word: string): string[] {
  return word.startsWith("[") || word.endsWith("]") ? [] : [`<${word}>`];
}

function base(): Argv {
  return yargs([]).scriptName("bdrv").locale("en").version(false).help(false).wrap(100);
}

function withOptions(parser: Argv, command: Command): Argv {
  for (const option of command.options) {
    const { help } = option;
    if (help === undefined) continue;
    const [key = "", ...alias] = [option.long, option.short].filter((name) => name !== undefined);
    parser = parser.option(key, {
      alias,
      describe: help,
      type: option.value === undefined ? "boolean" : "string",
      requiresArg: option.value !== undefined,
    });
  }
  return parser;
}

/** Usage lines as qemu-img has them: one a command, with its options in brackets. */
function qemuHelp(program: string): string {
  const lines = commands.map((command) => {
    const options = command.options.filter(({ name }) => name !== "help").map(bracketed);
    return `  ${[command.name, ...options, command.operands.toLowerCase()].join(" ")}`;
  });
  const formats = allDrivers()
    .map(({ formatName }) => formatName)
    .sort();
  return [
    versionText(program).trimEnd(),
    `usage: ${program} [standard options] command [command options]`,
    "QEMU disk image utility, by bdrv",
    "",
    "    '-h', '--help'       display this help and exit",
    "    '-V', '--version'    output version information and exit",
    "    '-T', '--trace'      accepted, without effect",
    "",
    "Command syntax:",
    ...lines,
    "",
    "Command parameters:",
    ...parameterLines(),
    "",
    `Supported formats: ${formats.join(" ")}`,
    "",
  ].join("\n");
}

/** Each option once, for commands that have it in common. */
function parameterLines(): string[] {
  const texts = commands.flatMap(({ options }) =>
    options.map((option) => `  '${bracketed(option).slice(1, -1)}' ${lowerFirst(option.help ?? "")}`),
  );
  return [...new Set(texts)].sort();
}

function lowerFirst(text: string): string {
  return text.charAt(0).toLowerCase() + text.slice(1);
}

function bracketed({ short, long, value }: OptionSpec): string {
  const name = short === undefined ? `--${long}` : `-${short}`;
  if (value === undefined) return `[${name}]`;
  return short === undefined ? `[${name}=${value.toLowerCase()}]` : `[${name} ${value.toLowerCase()}]`;
}
