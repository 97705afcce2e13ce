/** What a command is to the frame, and what the frame gives it to work with. */

import type { OpenEnvironment } from "../block/open.ts";
import type { Getopt, OptionSpec, ParsedOption } from "./getopt.ts";
import type { CliObject } from "./objects.ts";
import type { Output } from "./output.ts";

/** One row of the table in commands.ts; the command's own module is loaded when it is called. */
export interface Command {
  readonly name: string;
  /** One line, for `bdrv --help`. */
  readonly summary: string;
  /** As they stand in the usage line: "FILENAME [SIZE]". */
  readonly operands: string;
  readonly options: readonly OptionSpec[];
  readonly load: () => Promise<CommandModule>;
}

export interface CommandModule {
  /**
   * Does the work and gives the exit code. `args` yields the options in the order in which they were given, and
   * throws at the first bad one (the frame prints it), so a command looks at each as it comes; `args.operands`
   * is complete when all options have been taken. Errors that are BlockErrors may be thrown: the frame prints
   * them and exits with 1.
   */
  readonly run: (args: Getopt, context: CliContext) => Promise<number>;
}

export interface CliStreams {
  readonly stdout: Output;
  readonly stderr: Output;
  /** Only `bdrv io` reads it. */
  readonly stdin: () => NodeJS.ReadableStream & { readonly fd?: number };
  /** Set by SIGUSR1: whoever works on something long says how far it is, and takes the wish back. */
  readonly progressRequest?: { isPending: boolean };
}

export interface CliContext extends CliStreams {
  /** What `--object` defined so far. */
  readonly objects: Map<string, CliObject>;
  /** Stands before messages: "qemu-img", "qemu-io" or "bdrv". */
  readonly program: string;
  /** Aborted by SIGINT, SIGTERM and SIGHUP: a command that writes cleans up and ends. */
  readonly signal: AbortSignal;
  /** For every open: the gate, and warnings that go to stderr. To be asked for when all options have been taken. */
  readonly environment: OpenEnvironment;
  /** Takes the options of `TRUST_OPTIONS`, which change `environment`; false: it is none of them. */
  readonly takeTrustOption: (option: ParsedOption) => boolean;
  /** "program: message", and a newline, on stderr.  @qemu error_report */
  readonly error: (message: string) => void;
  /** @qemu warn_report */
  readonly warn: (message: string) => void;
  /**
   * A BlockError with its hint, `prefix: ` before it; any other error is a bug of ours and is thrown on.
   * @qemu error_reportf_err
   */
  readonly report: (error: unknown, prefix?: string) => void;
  /** Says what ends the command, as the frame does of what `run` throws, and gives the exit code. Bugs are thrown on. */
  readonly fail: (error: unknown) => number;
}

/**
 * Ends a command: the message, then "Try '... --help' for more information", exit code 1.  @qemu error_exit
 */
export class UsageError extends Error {}

/** Ends a command: each line is printed with the program's name before it. */
export class CommandError extends Error {
  readonly lines: readonly string[];
  readonly exitCode: number;

  constructor(lines: readonly string[], exitCode = 1) {
    super(lines.join("\n"));
    this.lines = lines;
    this.exitCode = exitCode;
  }
}

/** Ends a command that has printed why. */
export class ExitError extends Error {
  readonly exitCode: number;

  constructor(exitCode: number) {
    super(`exit ${exitCode}`);
    this.exitCode = exitCode;
  }
}
