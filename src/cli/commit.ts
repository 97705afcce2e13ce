/** `commit`: copies an overlay's data into its backing file.  @qemu img_commit */

import { commitImage } from "../jobs/commit.ts";
import { type CliContext, UsageError } from "./command.ts";
import { parseSizeArgument } from "./format.ts";
import type { Getopt } from "./getopt.ts";
import { defineObject } from "./objects.ts";
import { cacheFlags, withImage } from "./open-image.ts";
import { Progress } from "./progress.ts";

interface CommitArguments {
  readonly filename: string;
  readonly format: string | undefined;
  readonly base: string | undefined;
  readonly cache: string;
  readonly bytesPerSecond: number | undefined;
  readonly drop: boolean;
  readonly progress: boolean;
  readonly quiet: boolean;
  readonly imageOpts: boolean;
}

export async function run(args: Getopt, context: CliContext): Promise<number> {
  const wanted = parse(args, context);
  const { quiet, base, bytesPerSecond } = wanted;
  const { flags, writethrough } = cacheFlags(wanted.cache, "cache");
  const request = { ...wanted, flags: { ...flags, readOnly: false, unmap: true }, writethrough };
  await withImage(request, context, async (image) => {
    const progress = new Progress(context, wanted.progress && !quiet);
    let succeeded = false;
    try {
      await commitImage(image, {
        base,
        imageName: wanted.filename,
        bytesPerSecond,
        keepOverlay: wanted.drop || base !== undefined,
        onProgress: (done, total) => progress.update(done, total),
        signal: context.signal,
      });
      succeeded = true;
    } catch (error) {
      // Here it is said after what closing has to say.
      await image.close().catch(() => {});
      throw error;
    } finally {
      progress.end(succeeded);
    }
  });
  if (!quiet) context.stdout.write("Image committed.\n");
  return 0;
}

function parse(args: Getopt, context: CliContext): CommitArguments {
  let format: string | undefined;
  let base: string | undefined;
  let cache = "writeback";
  let bytesPerSecond: number | undefined;
  const flags = new Set<string>();
  for (const { name, value } of args) {
    if (name === "format") format = value;
    else if (name === "base") base = value;
    else if (name === "cache") cache = value;
    else if (name === "rate-limit") bytesPerSecond = parseSizeArgument("rate limit", value, context.warn);
    else if (name === "object") defineObject(value, context);
    else flags.add(name);
  }
  const [filename, ...more] = args.operands;
  if (filename === undefined || more.length > 0) throw new UsageError("Expecting one image file name");
  return {
    filename,
    format,
    base,
    cache,
    bytesPerSecond,
    drop: flags.has("drop"),
    progress: flags.has("progress"),
    quiet: flags.has("quiet"),
    imageOpts: flags.has("image-opts"),
  };
}
