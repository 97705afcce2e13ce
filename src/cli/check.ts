/** `check`: looks for errors in an image, and repairs them.  @qemu img_check */

import type { BlockBackend } from "../block/backend.ts";
import type { CheckResult } from "../block/driver.ts";
import { BlockError } from "../block/errors.ts";
import { repairImage } from "../jobs/check.ts";
import { type CliContext, CommandError, UsageError } from "./command.ts";
import { outputFormat, prettyJson, toFixed } from "./format.ts";
import type { Getopt } from "./getopt.ts";
import { defineObject } from "./objects.ts";
import { cacheFlags, withImage } from "./open-image.ts";

/** The exit codes beside 0 and 1. */
const CORRUPTIONS = 2;
const LEAKS = 3;
const NOT_SUPPORTED = 63;

interface CheckArguments {
  readonly filename: string;
  readonly format: string | undefined;
  readonly output: "human" | "json";
  readonly cache: string;
  readonly repair: "leaks" | "all" | undefined;
  readonly quiet: boolean;
  readonly imageOpts: boolean;
  readonly forceShare: boolean;
}

export async function run(args: Getopt, context: CliContext): Promise<number> {
  const wanted = parse(args, context);
  const { flags, writethrough } = cacheFlags(wanted.cache, "source cache");
  const request = {
    ...wanted,
    flags: { ...flags, check: true, readOnly: wanted.repair === undefined, forceShare: wanted.forceShare },
    writethrough,
  };
  return withImage(request, context, async (image) => {
    const result = await checkAndRepair(image, wanted, context);
    if (!wanted.quiet) context.stdout.write(describe(result, wanted, image.node.driver.formatName));
    return exitCode(result);
  });
}

async function checkAndRepair(
  image: BlockBackend,
  { repair, output, quiet }: CheckArguments,
  context: CliContext,
): Promise<CheckResult> {
  const report = (line: string) => context.stderr.write(`${line}\n`);
  const options = { fixLeaks: repair !== undefined, fixErrors: repair === "all", report };
  try {
    return await repairImage(image, options, context.signal, ({ leaksFixed, corruptionsFixed }) => {
      if (output === "human" && !quiet)
        context.stdout.write(
          "The following inconsistencies were found and repaired:\n\n" +
            `    ${leaksFixed} leaked clusters\n    ${corruptionsFixed} corruptions\n\n` +
            "Double checking the fixed image now...\n",
        );
    });
  } catch (error) {
    if (error instanceof BlockError && error.errno === "ENOTSUP")
      throw new CommandError(["This image format does not support checks"], NOT_SUPPORTED);
    throw BlockError.wrap("Check failed", error);
  }
}

function parse(args: Getopt, context: CliContext): CheckArguments {
  let format: string | undefined;
  let output: string | undefined;
  let cache = "writeback";
  let repair: CheckArguments["repair"];
  let quiet = false;
  let imageOpts = false;
  let forceShare = false;
  for (const { name, value } of args) {
    if (name === "format") format = value;
    else if (name === "repair") {
      if (value !== "leaks" && value !== "all")
        throw new UsageError(`Unknown option value for -r (expecting 'leaks' or 'all'): ${value}`);
      repair = value;
    } else if (name === "output") output = value;
    else if (name === "source-cache") cache = value;
    else if (name === "quiet") quiet = true;
    else if (name === "object") defineObject(value, context);
    else if (name === "image-opts") imageOpts = true;
    else if (name === "force-share") forceShare = true;
  }
  const [filename, ...more] = args.operands;
  if (filename === undefined || more.length > 0) throw new UsageError("Expecting one image file name");
  return { filename, format, output: outputFormat(output), cache, repair, quiet, imageOpts, forceShare };
}

function exitCode({ corruptions, leaks, checkErrors }: CheckResult): number {
  if (checkErrors > 0) throw new CommandError(["Check failed"]);
  if (corruptions > 0) return CORRUPTIONS;
  return leaks > 0 ? LEAKS : 0;
}

function describe(result: CheckResult, { filename, output }: CheckArguments, format: string): string {
  return output === "json" ? `${prettyJson(jsonResult(result, filename, format))}\n` : humanResult(result);
}

/** @qemu dump_human_image_check */
function humanResult(result: CheckResult): string {
  const { corruptions, leaks, checkErrors, totalClusters = 0, allocatedClusters = 0 } = result;
  let text = "";
  if (corruptions === 0 && leaks === 0 && checkErrors === 0) text += "No errors were found on the image.\n";
  if (corruptions > 0)
    text +=
      `\n${corruptions} errors were found on the image.\n` +
      "Data may be corrupted, or further writes to the image may corrupt it.\n";
  if (leaks > 0)
    text +=
      `\n${leaks} leaked clusters were found on the image.\n` +
      "This means waste of disk space, but no harm to data.\n";
  if (checkErrors > 0) text += `\n${checkErrors} internal errors have occurred during the check.\n`;
  if (totalClusters > 0 && allocatedClusters > 0) {
    const share = (part: number, whole: number) => `${toFixed((part / whole) * 100, 2)}%`;
    text +=
      `${allocatedClusters}/${totalClusters} = ${share(allocatedClusters, totalClusters)} allocated, ` +
      `${share(result.fragmentedClusters ?? 0, allocatedClusters)} fragmented, ` +
      `${share(result.compressedClusters ?? 0, allocatedClusters)} compressed clusters\n`;
  }
  if (result.imageEndOffset > 0) text += `Image end offset: ${result.imageEndOffset}\n`;
  return text;
}

/** The order of the members is that of qemu-img; what is 0 is left out. */
function jsonResult(result: CheckResult, filename: string, format: string) {
  return {
    "image-end-offset": result.imageEndOffset || undefined,
    "compressed-clusters": result.compressedClusters || undefined,
    "total-clusters": result.totalClusters || undefined,
    corruptions: result.corruptions || undefined,
    "corruptions-fixed": result.corruptionsFixed || undefined,
    "check-errors": result.checkErrors,
    leaks: result.leaks || undefined,
    "leaks-fixed": result.leaksFixed || undefined,
    "allocated-clusters": result.allocatedClusters || undefined,
    filename,
    format,
    "fragmented-clusters": result.fragmentedClusters || undefined,
  };
}
