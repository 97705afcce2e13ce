/** `create`: makes a new image.  @qemu img_create */

import { BlockError } from "../block/errors.ts";
import { type Options, parseKeyValues } from "../block/options.ts";
import { createImage } from "../jobs/create.ts";
import { type CliContext, ExitError, UsageError } from "./command.ts";
import { createOptionsHelp, joinOptionList } from "./driver-options.ts";
import { parseSizeArgument } from "./format.ts";
import type { Getopt } from "./getopt.ts";
import { defineObject } from "./objects.ts";

interface CreateArguments {
  readonly format: string;
  readonly filename: string | undefined;
  readonly size: string | undefined;
  readonly surplus: string | undefined;
  readonly backingFile: string | undefined;
  readonly backingFormat: string | undefined;
  readonly unsafeBacking: boolean;
  readonly quiet: boolean;
  readonly options: string | undefined;
}

export async function run(args: Getopt, context: CliContext): Promise<number> {
  const wanted = parse(args, context);
  const help = await createOptionsHelp(wanted.options, wanted.format, wanted.filename);
  if (help !== undefined) {
    context.stdout.write(help);
    return 0;
  }
  const { filename } = wanted;
  if (filename === undefined) throw new UsageError("Expecting image file name");
  const size =
    wanted.size === undefined ? undefined : parseSizeArgument("image size", wanted.size, context.warn);
  if (wanted.surplus !== undefined) throw new UsageError(`Unexpected argument: ${wanted.surplus}`);
  const { stdout } = context;
  try {
    await createImage({
      ...wanted,
      filename,
      size,
      options: parseOptions(wanted.options),
      environment: context.environment,
      announce: (line) => {
        if (wanted.quiet) return;
        stdout.write(`${line}\n`);
        stdout.flush();
      },
    });
  } catch (error) {
    reportCreateError(error, filename, context);
    throw new ExitError(1);
  }
  return 0;
}

function parse(args: Getopt, context: CliContext): CreateArguments {
  let format = "raw";
  let backingFile: string | undefined;
  let backingFormat: string | undefined;
  let unsafeBacking = false;
  let quiet = false;
  let options: string | undefined;
  for (const { name, value } of args) {
    if (name === "format") format = value;
    else if (name === "backing-file") backingFile = value;
    else if (name === "backing-format") backingFormat = value;
    else if (name === "unsafe") unsafeBacking = true;
    else if (name === "quiet") quiet = true;
    else if (name === "options") options = joinOptionList(options, value);
    else if (name === "object") defineObject(value, context);
  }
  const [filename, size, surplus] = args.operands;
  return { format, filename, size, surplus, backingFile, backingFormat, unsafeBacking, quiet, options };
}

function parseOptions(text: string | undefined): Options {
  return text === undefined ? new Map() : parseKeyValues(text);
}

/** Every message has the new image's name before it. */
function reportCreateError(error: unknown, filename: string, context: CliContext): void {
  // qemu-img ends this one hint without a newline, and scripts compare its output to the letter.
  if (error instanceof BlockError && error.hint?.startsWith("Detected format of ")) {
    context.error(`${filename}: ${error.message}`);
    context.stderr.write(error.hint);
  } else context.report(error, filename);
}
