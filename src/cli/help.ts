/**
 * `--help`, `--version` and what else serves a person at a terminal. As `bdrv` yargs lays it out; under the name
 * of qemu-img it has the shape of that one's. yargs costs 45 ms to load, so nothing else imports this module.
 */

import yargs, { type Argv } from "yargs";
import packageJson from "../../package.json" with { type: "json" };
import { allDrivers } from "../block/driver.ts";
import type { CliContext, Command } from "./command.ts";
import { commands, ownCommands } from "./commands.ts";
import { HELP_OPTION, type OptionSpec } from "./getopt.ts";

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
  for (const command of [...commands, ...ownCommands])
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

/** What stands behind each command in qemu-img's own help: scripts look there for what they may use. */
const SYNTAX: Readonly<Record<string, string>> = {
  amend: "[--object objectdef] [--image-opts] [-p] [-q] [-f fmt] [-t cache] [--force] -o options filename",
  bench:
    "[-c count] [-d depth] [-f fmt] [--flush-interval=flush_interval] [-i aio] [-n] [--no-drain] [-o offset] [--pattern=pattern] [-q] [-s buffer_size] [-S step_size] [-t cache] [-w] [-U] filename",
  bitmap:
    "(--merge SOURCE | --add | --remove | --clear | --enable | --disable)... [-b source_file [-F source_fmt]] [-g granularity] [--object objectdef] [--image-opts | -f fmt] filename bitmap",
  check:
    "[--object objectdef] [--image-opts] [-q] [-f fmt] [--output=ofmt] [-r [leaks | all]] [-T src_cache] [-U] filename",
  commit:
    "[--object objectdef] [--image-opts] [-q] [-f fmt] [-t cache] [-b base] [-r rate_limit] [-d] [-p] filename",
  compare:
    "[--object objectdef] [--image-opts] [-f fmt] [-F fmt] [-T src_cache] [-p] [-q] [-s] [-U] filename1 filename2",
  convert:
    "[--object objectdef] [--image-opts] [--target-image-opts] [--target-is-zero] [--bitmaps] [-U] [-C] [-c] [-p] [-q] [-n] [-f fmt] [-t cache] [-T src_cache] [-O output_fmt] [-B backing_file [-F backing_fmt]] [-o options] [-l snapshot_param] [-S sparse_size] [-r rate_limit] [-m num_coroutines] [-W] [--salvage] filename [filename2 [...]] output_filename",
  create:
    "[--object objectdef] [-q] [-f fmt] [-b backing_file [-F backing_fmt]] [-u] [-o options] filename [size]",
  dd: "[--image-opts] [-U] [-f fmt] [-O output_fmt] [bs=block_size] [count=blocks] [skip=blocks] if=input of=output",
  info: "[--object objectdef] [--image-opts] [-f fmt] [--output=ofmt] [--backing-chain] [-U] filename",
  map: "[--object objectdef] [--image-opts] [-f fmt] [--start-offset=offset] [--max-length=len] [--output=ofmt] [-U] filename",
  measure:
    "[--output=ofmt] [-O output_fmt] [-o options] [--size N | [--object objectdef] [--image-opts] [-f fmt] [-l snapshot_param] filename]",
  snapshot:
    "[--object objectdef] [--image-opts] [-U] [-q] [-l | -a snapshot | -c snapshot | -d snapshot] filename",
  rebase:
    "[--object objectdef] [--image-opts] [-U] [-q] [-f fmt] [-t cache] [-T src_cache] [-p] [-u] -b backing_file [-F backing_fmt] filename",
  resize:
    "[--object objectdef] [--image-opts] [-f fmt] [--preallocation=prealloc] [-q] [--shrink] filename [+ | -]size",
};

/** The lines that programs read are qemu-img's; what is said to a person is said in our own words. */
function qemuHelp(program: string): string {
  const formats = allDrivers().map(({ formatName }) => formatName);
  return `${[
    versionText(program).trimEnd(),
    `usage: ${program} [standard options] command [command options]`,
    "QEMU disk image utility, by bdrv",
    "",
    "    '-h', '--help'       display this help and exit",
    "    '-V', '--version'    output version information and exit",
    "    '-T', '--trace'      [[enable=]<pattern>][,events=<file>][,file=<file>]",
    "                         accepted, without effect",
    "",
    "Command syntax:",
    ...Object.entries(SYNTAX).map(([name, syntax]) => `  ${name} ${syntax}`),
    "",
    "Sizes and offsets are in bytes, or with one of the suffixes k, M, G, T, P, E (powers of 1024).",
    "Where no format is given it is probed. '-o help' lists the options of a format.",
    "",
    "Command parameters:",
    ...commonParameters(),
    ...commands.flatMap(ownParameters),
    "",
    `Supported formats: ${formats.sort().join(" ")}`,
  ].join("\n")}\n`;
}

/** Options that are the same in several commands. */
function commonParameters(): string[] {
  const all = commands.flatMap(parameterLines);
  return [...new Set(all.filter((line, index) => all.indexOf(line) !== index))].sort();
}

function ownParameters(command: Command): string[] {
  const common = commonParameters();
  const lines = parameterLines(command).filter((line) => !common.includes(line));
  return lines.length === 0 ? [] : ["", `Parameters to ${command.name} subcommand:`, ...lines];
}

function parameterLines({ options }: Command): string[] {
  const shown = options.filter((option) => option.help !== undefined && option !== HELP_OPTION);
  return shown.map((option) => `  '${optionText(option)}' ${lowerFirst(option.help ?? "")}`);
}

function lowerFirst(text: string): string {
  return text.replace(/^[A-Z](?![A-Z])/, (letter) => letter.toLowerCase());
}

function optionText({ short, long, value }: OptionSpec): string {
  const name = short === undefined ? `--${long}` : `-${short}`;
  if (value === undefined) return name;
  return `${name}${short === undefined ? "=" : " "}${value.toLowerCase()}`;
}
