/** What a command of `bdrv io` is, and how a line becomes a call of one.  @qemu qemu-io-cmds.c: qemuio_command */

import { BlockError } from "../../block/errors.ts";
import { Getopt, OptionError, type OptionSpec, type ParsedOption } from "../getopt.ts";
import { SourceFileFault } from "./buffers.ts";
import type { IoSession } from "./session.ts";

/** One row of the table of commands.  @qemu cmdinfo_t */
export interface IoCommand {
  readonly name: string;
  readonly alias?: string;
  /** Arguments behind the name, options among them; without a maximum there may be any number. */
  readonly minArgs: number;
  readonly maxArgs?: number;
  /** As help shows them; undefined where there are none to show. */
  readonly args?: string;
  readonly summary: string;
  /** What `help NAME` adds. */
  readonly help?: string;
  /** Works without an open image. */
  readonly withoutImage?: boolean;
  /** Needs an image that may be written. */
  readonly writes?: boolean;
  /**
   * `argv[0]` is the name or alias as it was typed. False: the command failed and has said why. It may throw
   * OptionError, UsageFault, CommandFault and BlockError.
   */
  readonly run: (session: IoSession, argv: readonly string[]) => Promise<boolean>;
}

/** Ends a command: its usage line is printed.  @qemu qemuio_command_usage */
export class UsageFault extends Error {}

/** Ends a command: the message is printed on stdout, as it stands. */
export class CommandFault extends Error {}

/** What getopt makes of a command's arguments: the options one by one, then the operands. */
export interface Arguments {
  readonly options: Iterable<ParsedOption>;
  /** Complete when all options have been taken. */
  readonly operands: readonly string[];
}

/** `letters` as getopt takes them: "P:qv" is -P with a value, -q and -v. */
export function parseArguments(argv: readonly string[], letters: string): Arguments {
  const specs: OptionSpec[] = [];
  for (const letter of letters.replaceAll(":", "")) {
    const takesValue = letters.includes(`${letter}:`);
    specs.push({ name: letter, short: letter, ...(takesValue && { value: "VALUE" }) });
  }
  const getopt = new Getopt(argv[0] as string, argv.slice(1), specs);
  return { options: getopt, operands: getopt.operands };
}

/** Words stand between spaces; nothing quotes them.  @qemu breakline */
function splitLine(line: string): string[] {
  return line.split(" ").filter((word) => word !== "");
}

/** @qemu qemuio_command_usage */
export function usageLine(name: string, { args, summary }: IoCommand): string {
  return args === undefined ? `${name} -- ${summary}\n` : `${name} ${args} -- ${summary}\n`;
}

/** Runs one line. True: it was empty, or its command succeeded. Errors that are no fault of the user are thrown on. */
export async function runLine(session: IoSession, line: string): Promise<boolean> {
  const argv = splitLine(line);
  const [name] = argv;
  if (name === undefined) return true;
  const { stdout, stderr } = session.context;
  const command = session.findCommand(name);
  if (!command) {
    stderr.write(`command "${name}" not found\n`);
    return false;
  }
  if (!command.withoutImage && !session.image) {
    stderr.write("no file open, try 'help open'\n");
    return false;
  }
  const count = argumentCountFault(name, argv.length - 1, command);
  if (count !== undefined) {
    stderr.write(`${count}\n`);
    return false;
  }
  try {
    if (command.writes) checkWritable(session);
    return await command.run(session, argv);
  } catch (error) {
    if (error instanceof OptionError) {
      stderr.write(`${name}: ${error.fault.text}\n`);
      stdout.write(usageLine(command.name, command));
    } else if (error instanceof SourceFileFault) stderr.write(`${error.message}\n`);
    else if (error instanceof UsageFault) stdout.write(usageLine(command.name, command));
    else if (error instanceof CommandFault) stdout.write(`${error.message}\n`);
    else session.context.report(error);
    return false;
  }
}

function checkWritable({ opened }: IoSession): void {
  if (opened.backend.node.readOnly) throw new BlockError("EACCES", "Block node is read-only");
  opened.holdsWrite = true;
}

function argumentCountFault(
  name: string,
  count: number,
  { minArgs, maxArgs }: IoCommand,
): string | undefined {
  if (count >= minArgs && count <= (maxArgs ?? count)) return undefined;
  let expected = `expected ${minArgs} arguments`;
  if (maxArgs === undefined) expected = `expected at least ${minArgs} arguments`;
  else if (maxArgs !== minArgs) expected = `expected between ${minArgs} and ${maxArgs} arguments`;
  return `bad argument count ${count} to ${name}, ${expected}`;
}
