/** `rebase`: gives an image another backing file.  @qemu img_rebase */

import type { BlockBackend } from "../block/backend.ts";
import { rebaseImage } from "../jobs/rebase.ts";
import { type CliContext, UsageError } from "./command.ts";
import type { Getopt } from "./getopt.ts";
import { defineObject } from "./objects.ts";
import { cacheFlags, withImage } from "./open-image.ts";
import { Progress } from "./progress.ts";

interface RebaseArguments {
  readonly filename: string;
  readonly format: string | undefined;
  readonly backingFile: string | undefined;
  readonly backingFormat: string | undefined;
  readonly cache: string;
  readonly sourceCache: string;
  /** Those options that are there or not, by their names in commands.ts. */
  readonly flags: ReadonlySet<string>;
}

/** Percent that the shown figure moves at least. */
const PROGRESS_STEP = 2;
/** Bytes that count as a step of the progress.  @qemu IO_BUF_SIZE */
const PIECE_BYTES = 2 ** 21;

export async function run(args: Getopt, context: CliContext): Promise<number> {
  const wanted = parse(args, context);
  const { flags } = wanted;
  const isShown = flags.has("progress") && !flags.has("quiet");
  const progress = new Progress(context, isShown, PROGRESS_STEP);
  let isCopied = false;
  const onCopied = () => {
    isCopied = true;
  };
  try {
    await rebase(wanted, progress, onCopied, context);
  } finally {
    progress.end(isCopied);
  }
  return 0;
}

async function rebase(
  wanted: RebaseArguments,
  progress: Progress,
  onCopied: () => void,
  context: CliContext,
): Promise<void> {
  const { flags } = wanted;
  const { environment, signal } = context;
  const unsafe = flags.has("unsafe");
  const { flags: cache, writethrough } = cacheFlags(wanted.cache, "cache");
  const { flags: sourceCache } = cacheFlags(wanted.sourceCache, "source cache");
  const request = {
    ...wanted,
    imageOpts: flags.has("image-opts"),
    flags: { ...cache, readOnly: false, noBacking: unsafe },
    writethrough,
  };
  await withImage(request, context, async (image) => {
    const step = await progressStep(image);
    await rebaseImage(image, {
      ...wanted,
      unsafe,
      sourceFlags: { ...sourceCache, forceShare: flags.has("force-share") },
      environment,
      onProgress: () => progress.advance(step),
      onCopied,
      signal,
    });
  });
}

/** Percent for each piece that is looked at: qemu-img's own division, which leaves out a last part of a piece. */
async function progressStep(image: BlockBackend): Promise<number> {
  const bytes = await image.getLength();
  return bytes === 0 ? 0 : 100 / Math.floor(bytes / Math.min(bytes, PIECE_BYTES));
}

function parse(args: Getopt, context: CliContext): RebaseArguments {
  let format: string | undefined;
  let backingFile: string | undefined;
  let backingFormat: string | undefined;
  let cache = "writeback";
  let sourceCache = "writeback";
  const flags = new Set<string>();
  for (const { name, value } of args) {
    if (name === "format") format = value;
    else if (name === "backing-file") backingFile = value;
    else if (name === "backing-format") backingFormat = value;
    else if (name === "cache") cache = value;
    else if (name === "source-cache") sourceCache = value;
    else if (name === "object") defineObject(value, context);
    else flags.add(name);
  }
  const [filename, ...more] = args.operands;
  if (filename === undefined || more.length > 0) throw new UsageError("Expecting one image file name");
  if (!flags.has("unsafe") && backingFile === undefined)
    throw new UsageError("Must specify backing file (-b) or use unsafe mode (-u)");
  return { filename, format, backingFile, backingFormat, cache, sourceCache, flags };
}
