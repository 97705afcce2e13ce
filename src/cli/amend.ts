/** `amend`: changes options of an image that exists.  @qemu img_amend */

import { parseKeyValues } from "../block/options.ts";
import { amendImage, amendOptionTable } from "../jobs/amend.ts";
import { type CliContext, CommandError, UsageError } from "./command.ts";
import { asksForHelp, joinOptionList, optionLines } from "./driver-options.ts";
import type { Getopt } from "./getopt.ts";
import { defineObject } from "./objects.ts";
import { cacheFlags, withImage } from "./open-image.ts";
import { Progress } from "./progress.ts";

interface AmendArguments {
  readonly filename: string | undefined;
  readonly format: string | undefined;
  readonly options: string;
  readonly cache: string;
  readonly imageOpts: boolean;
  readonly force: boolean;
  readonly showsProgress: boolean;
}

export async function run(args: Getopt, context: CliContext): Promise<number> {
  const wanted = parse(args, context);
  try {
    await amend(wanted, context);
  } finally {
    // The line of progress ends, whether it has begun or not.
    if (wanted.showsProgress) context.stdout.write("\n");
  }
  return 0;
}

function parse(args: Getopt, context: CliContext): AmendArguments {
  let format: string | undefined;
  let options: string | undefined;
  let cache = "writeback";
  let imageOpts = false;
  let force = false;
  let progress = false;
  let quiet = false;
  for (const { name, value } of args) {
    if (name === "format") format = value;
    else if (name === "options") options = joinOptionList(options, value);
    else if (name === "cache") cache = value;
    else if (name === "image-opts") imageOpts = true;
    else if (name === "force") force = true;
    else if (name === "progress") progress = true;
    else if (name === "quiet") quiet = true;
    else if (name === "object") defineObject(value, context);
  }
  if (options === undefined) throw new UsageError("Must specify options (-o)");
  const [first, ...more] = args.operands;
  const filename = more.length === 0 ? first : undefined;
  return { filename, format, options, cache, imageOpts, force, showsProgress: progress && !quiet };
}

async function amend(wanted: AmendArguments, context: CliContext): Promise<void> {
  const { filename, format, options, force } = wanted;
  const { stdout, environment, signal } = context;
  const printHelp = async (name: string) => {
    const lines = optionLines(await amendOptionTable(name));
    stdout.write(`Amend options for '${name}':\n${lines}`);
  };
  const isHelp = asksForHelp(options);
  if (isHelp && format !== undefined) return printHelp(format);
  if (filename === undefined) throw new CommandError(["Expecting one image file name"]);
  const { flags, writethrough } = cacheFlags(wanted.cache, "cache");
  const request = { ...wanted, filename, flags: { ...flags, readOnly: false }, writethrough };
  await withImage(request, context, async (image) => {
    if (isHelp) return printHelp(image.node.driver.formatName);
    let progress: Progress | undefined;
    const begin = () => {
      progress = new Progress(context, wanted.showsProgress);
    };
    const onProgress = (done: number, total: number) => progress?.jump(done, total);
    try {
      const given = parseKeyValues(options);
      await amendImage(image, { options: given, force, environment, onProgress, signal }, begin);
    } finally {
      progress?.jump(1, 1);
    }
  });
}
