/** `compare`: tells whether two images have the same content.  @qemu img_compare */

import type { BlockBackend } from "../block/backend.ts";
import { BlockError } from "../block/errors.ts";
import { CompareError, type CompareResult, compareImages } from "../jobs/compare.ts";
import { type CliContext, CommandError, UsageError } from "./command.ts";
import type { Getopt } from "./getopt.ts";
import { defineObject } from "./objects.ts";
import { cacheFlags, openImage } from "./open-image.ts";
import { Progress } from "./progress.ts";

/** 0 and 1 are "same" and "different", so errors have codes of their own, but for those in the arguments' form. */
const OPEN_FAILED = 2;
const STATUS_FAILED = 3;
const READ_FAILED = 4;

/** Percent from one progress line to the next. */
const PROGRESS_STEP = 2;

interface CompareArguments {
  readonly filenames: readonly [string, string];
  readonly formats: readonly [string | undefined, string | undefined];
  readonly cache: string;
  readonly strict: boolean;
  readonly quiet: boolean;
  readonly progress: boolean;
  readonly imageOpts: boolean;
  readonly forceShare: boolean;
}

export async function run(args: Getopt, context: CliContext): Promise<number> {
  const wanted = parse(args, context);
  const { quiet } = wanted;
  const say = (text: string) => {
    if (!quiet) context.stdout.write(`${text}\n`);
  };
  const showsProgress = wanted.progress && !quiet;
  const images: BlockBackend[] = [];
  try {
    for (const index of [0, 1] as const) images.push(await open(wanted, index, context));
    const [first, second] = images as [BlockBackend, BlockBackend];
    const progress = new Progress(context, showsProgress, PROGRESS_STEP);
    const result = await compareImages({
      first,
      second,
      strict: wanted.strict,
      onLengthsDiffer: () => say("Warning: Image size mismatch!"),
      onProgress: (done, total) => progress.update(done, total),
      signal: context.signal,
    });
    say(describe(result));
    return result.same ? 0 : 1;
  } catch (error) {
    if (!(error instanceof CompareError)) throw error;
    throw failure(error, wanted.filenames);
  } finally {
    for (const image of images.reverse()) await image.close();
    if (showsProgress) context.stdout.write("\n");
  }
}

function parse(args: Getopt, context: CliContext): CompareArguments {
  const formats: [string | undefined, string | undefined] = [undefined, undefined];
  let cache = "writeback";
  const given = new Set<string>();
  for (const { name, value } of args) {
    if (name === "format") formats[0] = value;
    else if (name === "format2") formats[1] = value;
    else if (name === "source-cache") cache = value;
    else if (name === "object") defineObject(value, context, OPEN_FAILED);
    else given.add(name);
  }
  const [first, second, ...more] = args.operands;
  if (first === undefined || second === undefined || more.length > 0)
    throw new UsageError("Expecting two image file names");
  return {
    filenames: [first, second],
    formats,
    cache,
    strict: given.has("strict"),
    quiet: given.has("quiet"),
    progress: given.has("progress"),
    imageOpts: given.has("image-opts"),
    forceShare: given.has("force-share"),
  };
}

async function open(wanted: CompareArguments, index: 0 | 1, context: CliContext): Promise<BlockBackend> {
  const { flags } = cacheFlags(wanted.cache, "source cache", OPEN_FAILED);
  try {
    return await openImage({
      filename: wanted.filenames[index],
      imageOpts: wanted.imageOpts,
      format: wanted.formats[index],
      flags: { ...flags, forceShare: wanted.forceShare },
      environment: context.environment,
    });
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    context.report(error);
    throw new CommandError([], OPEN_FAILED);
  }
}

function describe(result: CompareResult): string {
  if (result.same) return "Images are identical.";
  switch (result.reason) {
    case "length":
      return "Strict mode: Image size mismatch!";
    case "status":
      return `Strict mode: Offset ${result.offset} block status mismatch!`;
    case "content":
      return `Content mismatch at offset ${result.offset}!`;
  }
}

function failure(error: CompareError, filenames: readonly [string, string]): CommandError {
  const filename = filenames[error.image === "first" ? 0 : 1];
  if (error.step === "status")
    return new CommandError([`Sector allocation test failed for ${filename}`], STATUS_FAILED);
  return new CommandError(
    [`Error while reading offset ${error.offset} of ${filename}: ${error.cause.message}`],
    READ_FAILED,
  );
}
