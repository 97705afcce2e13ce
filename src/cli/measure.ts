/** `measure`: tells how large a file a new image would take.  @qemu img_measure */

import type { BlockBackend } from "../block/backend.ts";
import type { MeasureResult } from "../block/driver.ts";
import { BlockError } from "../block/errors.ts";
import { type Options, parseKeyValues } from "../block/options.ts";
import { loadSnapshot, type SnapshotChoice } from "../jobs/convert.ts";
import { checkOptions, createOptionTable } from "../jobs/create.ts";
import { measureImage } from "../jobs/measure.ts";
import { type CliContext, CommandError, ExitError } from "./command.ts";
import { joinOptionList, parseSnapshotChoice } from "./driver-options.ts";
import { outputFormat, parseSizeArgument, prettyJson } from "./format.ts";
import { type Getopt, HelpRequest, OptionError } from "./getopt.ts";
import { defineObject } from "./objects.ts";
import { withImage } from "./open-image.ts";

interface MeasureArguments {
  format: string | undefined;
  outputFormat: string;
  options: string | undefined;
  snapshot: SnapshotChoice | undefined;
  output: "human" | "json";
  sizeBytes: number | undefined;
  filename: string | undefined;
  /** Those options that are there or not, by their names in commands.ts. */
  readonly flags: Set<string>;
}

export async function run(args: Getopt, context: CliContext): Promise<number> {
  const wanted = parse(args, context);
  checkCombinations(wanted);
  const { sizeBytes, snapshot, filename = "", format, flags } = wanted;
  if (sizeBytes !== undefined) await measure(sizeBytes, wanted, context);
  else {
    const forceShare = flags.has("force-share");
    const request = { filename, imageOpts: flags.has("image-opts"), format, flags: { forceShare } };
    await withImage(request, context, async (source) => {
      if (snapshot) await loadSnapshot(source, snapshot);
      await measure(source, wanted, context);
    });
  }
  return 0;
}

function parse(args: Getopt, context: CliContext): MeasureArguments {
  const wanted: MeasureArguments = {
    format: undefined,
    outputFormat: "raw",
    options: undefined,
    snapshot: undefined,
    output: "human",
    sizeBytes: undefined,
    filename: undefined,
    flags: new Set(),
  };
  try {
    for (const { name, value } of args) {
      if (name === "format") wanted.format = value;
      else if (name === "output-format") wanted.outputFormat = value;
      else if (name === "options") wanted.options = joinOptionList(wanted.options, value);
      else if (name === "snapshot") wanted.snapshot = parseSnapshotChoice(value);
      else if (name === "object") defineObject(value, context);
      else if (name === "output") wanted.output = outputFormat(value);
      else if (name === "size") wanted.sizeBytes = parseSizeArgument("image size", value, context.warn);
      else wanted.flags.add(name);
    }
  } catch (error) {
    if (!(error instanceof OptionError)) throw error;
    // Alone among qemu-img's commands, this one leaves a bad option to the C library and shows the help.
    context.stderr.write(`${args.command}: ${error.fault.text}\n`);
    throw new HelpRequest();
  }
  if (args.operands.length > 1) throw new CommandError(["At most one filename argument is allowed."]);
  wanted.filename = args.operands[0];
  return wanted;
}

function checkCombinations({ format, snapshot, flags, filename, sizeBytes }: MeasureArguments): void {
  const isAboutSource = flags.has("image-opts") || format !== undefined || snapshot !== undefined;
  if (isAboutSource && filename === undefined)
    throw new CommandError(["--image-opts, -f, and -l require a filename argument."]);
  if (filename === undefined && sizeBytes === undefined)
    throw new CommandError(["Either --size N or one filename must be specified."]);
  if (filename !== undefined && sizeBytes !== undefined)
    throw new CommandError(["--size N cannot be used together with a filename."]);
}

async function measure(
  source: BlockBackend | number,
  wanted: MeasureArguments,
  context: CliContext,
): Promise<void> {
  const options = await parseOptions(wanted, context);
  const { environment, signal } = context;
  const result = await measureImage({ format: wanted.outputFormat, options, source, environment, signal });
  context.stdout.write(describe(result, wanted.output));
}

/** Checked against the format's table and that of a plain file. */
async function parseOptions(
  { options: text, outputFormat }: MeasureArguments,
  context: CliContext,
): Promise<Options> {
  const table = await createOptionTable(outputFormat, "");
  const options: Options = text === undefined ? new Map() : parseKeyValues(text);
  try {
    checkOptions(table, options);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    context.report(error);
    context.error(`Invalid options for file format '${outputFormat}'`);
    throw new ExitError(1);
  }
  return options;
}

/** The order of the JSON members is that of qemu-img. */
function describe({ required, fullyAllocated, bitmaps }: MeasureResult, output: "human" | "json"): string {
  const [needed, full] = [BigInt(required), BigInt(fullyAllocated)];
  if (output === "json") return `${prettyJson({ bitmaps, required: needed, "fully-allocated": full })}\n`;
  const last = bitmaps === undefined ? "" : `bitmaps size: ${bitmaps}\n`;
  return `required size: ${needed}\nfully allocated size: ${full}\n${last}`;
}
