/** `dd`: copies blocks of one image into a new one.  @qemu img_dd */

import type { BlockBackend } from "../block/backend.ts";
import { findDriver } from "../block/driver.ts";
import { BlockError } from "../block/errors.ts";
import type { OpenEnvironment } from "../block/open.ts";
import type { Options } from "../block/options.ts";
import { refuseTargetOf } from "../jobs/convert-target.ts";
import { createImage, createOptionTable } from "../jobs/create.ts";
import { ddImage } from "../jobs/dd.ts";
import { Staging } from "../jobs/staging.ts";
import { type CliContext, CommandError } from "./command.ts";
import { parseSizeArgument } from "./format.ts";
import type { Getopt } from "./getopt.ts";
import { defineObject } from "./objects.ts";
import { openImage, thenClose, withImage } from "./open-image.ts";

/** @qemu img_dd: INT_MAX */
const MAX_BLOCK_BYTES = 2 ** 31 - 1;

interface DdArguments {
  format: string | undefined;
  outputFormat: string;
  input: string | undefined;
  output: string | undefined;
  blockBytes: number;
  count: number;
  skip: number;
  imageOpts: boolean;
  forceShare: boolean;
}

export async function run(args: Getopt, context: CliContext): Promise<number> {
  const { input, output, ...wanted } = parse(args, context);
  const { signal } = context;
  if (input === undefined || output === undefined)
    throw new CommandError(["Must specify both input and output files"]);
  const { forceShare } = wanted;
  await withImage({ ...wanted, filename: input, flags: { forceShare } }, context, async (source) => {
    const sourceBytes = await source.getLength();
    // As qemu-img has it, `count` is of the blocks from the start: those that are skipped count too.
    const end = Math.min(wanted.count * wanted.blockBytes, sourceBytes);
    const offset = wanted.skip * wanted.blockBytes;
    const bytes = Math.max(end - offset, 0);
    refuseTargetOf([source], output, (error) => creationError(output, error));
    const staging = new Staging();
    const environment = { ...context.environment, staging };
    try {
      const target = await makeTarget(output, wanted.outputFormat, bytes, environment);
      await thenClose(target, context, async () => {
        // An empty image is left behind, and it counts as done.
        if (offset > end) context.error(`${input}: cannot skip to specified offset`);
        else await ddImage({ source, target, offset, bytes, signal });
        // What can't be written when the image is closed would not be an error any more.
        await target.flush(signal);
      });
    } catch (error) {
      staging.discard();
      throw error;
    }
    staging.commit();
  });
  return 0;
}

function parse(args: Getopt, context: CliContext): DdArguments {
  const wanted: DdArguments = {
    format: undefined,
    outputFormat: "raw",
    input: undefined,
    output: undefined,
    blockBytes: 512,
    count: Number.POSITIVE_INFINITY,
    skip: 0,
    imageOpts: false,
    forceShare: false,
  };
  for (const { name, value } of args) {
    if (name === "format") wanted.format = value;
    else if (name === "output-format") wanted.outputFormat = value;
    else if (name === "object") defineObject(value, context);
    else if (name === "image-opts") wanted.imageOpts = true;
    else if (name === "force-share") wanted.forceShare = true;
  }
  for (const operand of args.operands) takeOperand(operand, wanted, context);
  return wanted;
}

/** "if=FILE" and its like. */
function takeOperand(operand: string, wanted: DdArguments, { warn }: CliContext): void {
  const equals = operand.indexOf("=");
  const name = equals < 0 ? operand : operand.slice(0, equals);
  const value = operand.slice(equals + 1);
  if (equals >= 0 && name === "if") wanted.input = value;
  else if (equals >= 0 && name === "of") wanted.output = value;
  else if (equals >= 0 && name === "bs")
    wanted.blockBytes = parseSizeArgument("bs", value, warn, { min: 1, max: MAX_BLOCK_BYTES });
  else if (equals >= 0 && name === "count") wanted.count = parseSizeArgument("count", value, warn);
  else if (equals >= 0 && name === "skip") wanted.skip = parseSizeArgument("skip", value, warn);
  else throw new CommandError([`unrecognized operand ${name}`]);
}

async function makeTarget(
  filename: string,
  format: string,
  size: number,
  environment: OpenEnvironment,
): Promise<BlockBackend> {
  if (!findDriver(format)) throw new CommandError(["Unknown file format"]);
  // Refuses formats and protocols that can't be created.
  await createOptionTable(format, filename);
  const options: Options = new Map([["size", size]]);
  try {
    await createImage({ filename, format, options, environment });
  } catch (error) {
    throw creationError(filename, error);
  }
  return openImage({ filename, imageOpts: false, format, flags: { readOnly: false }, environment });
}

function creationError(filename: string, cause: unknown): BlockError {
  return BlockError.wrap(`${filename}: error while creating output image`, cause);
}
