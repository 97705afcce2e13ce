/** The frame around all commands: which tool is asked for, which command, and how what goes wrong is said. */

import "../../drivers/index.ts";
import { BlockError } from "../block/errors.ts";
import { openGate } from "../block/open.ts";
import { lockHolders } from "../platform/lock-holders.ts";
import { type CliContext, type CliStreams, CommandError, ExitError, UsageError } from "./command.ts";
import { findCommand } from "./commands.ts";
import { Getopt, HelpRequest, OptionError, type OptionFault, type OptionSpec } from "./getopt.ts";
import { type CliObject, secretById } from "./objects.ts";
import { Trust } from "./trust.ts";

export interface ProgramStreams extends CliStreams {
  readonly signal: AbortSignal;
}

/** The names under which this program stands in for one of QEMU's. */
const ALIASES = ["qemu-img", "qemu-io"] as const;

/** Before the command's name.  @qemu qemu-img.c: main */
const STANDARD_OPTIONS: readonly OptionSpec[] = [
  { name: "help-all", short: "h", long: "help" },
  { name: "version", short: "V", long: "version" },
  { name: "trace", short: "T", long: "trace", value: "OPTIONS" },
];

/**
 * Runs one command line. `argv[0]` is the path by which the program was called: its last part decides which tool
 * it is, as does a first word `qemu-img` or `qemu-io`. Gives the exit code; what it throws is a bug of ours.
 */
export async function main(argv: readonly string[], streams: ProgramStreams): Promise<number> {
  const { program, args } = findProgram(argv);
  const { context, trust } = makeContext(program, streams);
  try {
    return await dispatch(program, args, context);
  } catch (error) {
    return reportFailure(error, context);
  } finally {
    await trust.end();
    streams.stdout.flush();
  }
}

function findProgram(argv: readonly string[]): { program: string; args: readonly string[] } {
  const [path = "", first] = argv;
  const called = path.slice(path.lastIndexOf("/") + 1);
  const byLink = ALIASES.find((name) => name === called);
  if (byLink) return { program: byLink, args: argv.slice(1) };
  const byWord = ALIASES.find((name) => name === first);
  if (byWord) return { program: byWord, args: argv.slice(2) };
  return { program: "bdrv", args: argv.slice(1) };
}

async function dispatch(program: string, args: readonly string[], context: CliContext): Promise<number> {
  if (program === "qemu-io") return runIo(args, context);
  // yargs' completion script calls the program so.
  if (args[0] === "--get-yargs-completions") return (await import("./help.ts")).completion(args, context);
  const getopt = new Getopt(program, args, STANDARD_OPTIONS, { stopAtOperand: true });
  let traced = false;
  for (const { name, value } of getopt) {
    if (name === "trace") {
      (await import("./trace.ts")).applyTrace(value, context);
      traced = true;
    } else return (await import("./help.ts")).standardOption(name, context);
  }
  const [word, ...rest] = getopt.operands;
  // qemu-img's way: a lone `-T x` is no error.
  if (word === undefined && traced) return 0;
  if (word === undefined) throw new UsageError("Not enough arguments");
  if (program === "bdrv") {
    if (word === "io") return runIo(rest, context);
    if (word === "completion") return (await import("./help.ts")).completion(rest, context);
  }
  const command = findCommand(word, program);
  if (!command) throw new UsageError(await unknownCommand(word, context));
  const { run } = await command.load();
  try {
    // resize takes its last word for a size, whatever it is: as qemu-img, that is an error.
    if (program === "bdrv" && rest.at(-1) === "--help") throw new HelpRequest();
    return await run(
      new Getopt(word, rest, command.options, { takeCommon: context.takeTrustOption }),
      context,
    );
  } catch (error) {
    if (error instanceof HelpRequest) return (await import("./help.ts")).commandHelp(command, context);
    throw error;
  }
}

async function runIo(args: readonly string[], context: CliContext): Promise<number> {
  const { runIo: run } = await import("./io.ts");
  return run(args, context);
}

/** As bdrv, a slip of the pen is answered with the command that was meant. */
async function unknownCommand(word: string, { program }: CliContext): Promise<string> {
  const message = `Command not found: ${word}`;
  if (program !== "bdrv") return message;
  const suggestion = (await import("./help.ts")).closestCommand(word);
  return suggestion === undefined ? message : `${message}\nDid you mean ${suggestion}?`;
}

function makeContext(program: string, streams: ProgramStreams): { context: CliContext; trust: Trust } {
  const { stderr } = streams;
  const error = (message: string) => stderr.write(`${program}: ${message}\n`);
  const warn = (message: string, hint?: string) => {
    error(`warning: ${message}`);
    if (hint !== undefined) stderr.write(hint);
  };
  const message = (line: string) => stderr.write(`${line}\n`);
  const fatal = (line: string): never => {
    message(line);
    throw new ExitError(1);
  };
  const objects = new Map<string, CliObject>();
  const secret = (id: string) => secretById(objects, id);
  const throttleGroup = (id: string) => objects.get(id)?.throttleGroup;
  const trust = new Trust({
    gate: openGate,
    warn,
    message,
    error,
    fatal,
    secret,
    throttleGroup,
    get signal() {
      return streams.signal;
    },
  });
  const { stdout, stdin, progressRequest } = streams;
  const context: CliContext = {
    stdout,
    stderr,
    stdin,
    ...(progressRequest && { progressRequest }),
    get signal() {
      return streams.signal;
    },
    program,
    objects,
    get environment() {
      return trust.environment;
    },
    takeTrustOption: (option) => trust.take(option),
    fail: (thrown) => reportFailure(thrown, context),
    error,
    warn,
    report(thrown, prefix) {
      if (!(thrown instanceof BlockError)) throw thrown;
      error(prefix === undefined ? thrown.message : `${prefix}: ${thrown.message}`);
      if (thrown.hint !== undefined) stderr.write(`${thrown.hint}\n`);
      // Who calls the tool by QEMU's name expects QEMU's lines.
      if (thrown.lockedFile !== undefined && program === "bdrv") stderr.write(lockedHelp(thrown));
    },
  };
  return { context, trust };
}

/** Says what ended a command, and gives its exit code. Bugs are thrown on. */
function reportFailure(error: unknown, context: CliContext): number {
  if (error instanceof ExitError) return error.exitCode;
  if (error instanceof CommandError) {
    for (const line of error.lines) context.error(line);
    return error.exitCode;
  }
  if (error instanceof UsageError) return usageFailure(error.message, context);
  if (error instanceof OptionError) return usageFailure(faultMessage(error.fault), context);
  // The process ends by the signal in a moment; a command that was aborted has nothing to add.
  if (context.signal.aborted && error === context.signal.reason) return 1;
  context.report(error);
  return 1;
}

/** Who keeps the file locked, and what may be done all the same. */
function lockedHelp({ message, lockedFile = "" }: BlockError): string {
  const holders = lockHolders(lockedFile).map(({ pid, name }) =>
    pid === process.pid ? "this command itself" : `${name} (process ${pid})`,
  );
  const who = holders.length > 0 ? `It is used by ${holders.join(", ")}.\n` : "";
  // Who only reads can do so beside one who writes, and may see what is half written.
  const how = message.includes("Failed to get shared")
    ? "With --force-share (-U) info, map, check and others read it all the same; what they tell may be out of date.\n"
    : "";
  return who + how;
}

/** @qemu unrecognized_option, missing_argument */
function faultMessage({ kind, argument }: OptionFault): string {
  return kind === "unknown"
    ? `unrecognized option '${argument}'`
    : `missing argument for option '${argument}'`;
}

function usageFailure(message: string, { program, error, stderr }: CliContext): number {
  error(message);
  stderr.write(`Try '${program} --help' for more information\n`);
  return 1;
}
