/** `convert`: copies images into a new one, or over one that exists.  @qemu img_convert */

import type { BlockBackend } from "../block/backend.ts";
import { BlockError } from "../block/errors.ts";
import { type Options, parseKeyValues } from "../block/options.ts";
import { convert, loadSnapshot, type SnapshotChoice } from "../jobs/convert.ts";
import { checkSourceBitmaps } from "../jobs/convert-bitmaps.ts";
import { MAX_PARALLEL, MAX_SPARSE_BYTES } from "../jobs/convert-copy.ts";
import { type CliContext, CommandError, ExitError } from "./command.ts";
import { createOptionsHelp, joinOptionList, parseSnapshotChoice } from "./driver-options.ts";
import { parseSizeArgument } from "./format.ts";
import type { Getopt } from "./getopt.ts";
import { defineObject } from "./objects.ts";
import { cacheFlags, openImage } from "./open-image.ts";
import { Progress } from "./progress.ts";
import { useThreadPerCore } from "./threads.ts";

interface ConvertArguments {
  sources: readonly string[];
  target: string | undefined;
  format: string | undefined;
  outputFormat: string | undefined;
  backingFile: string | undefined;
  backingFormat: string | undefined;
  options: string | undefined;
  snapshot: SnapshotChoice | undefined;
  sparseBytes: number | undefined;
  bytesPerSecond: number | undefined;
  parallel: number | undefined;
  cache: string;
  sourceCache: string;
  /** Those options that are there or not, by their names in commands.ts. */
  readonly flags: Set<string>;
}

export async function run(args: Getopt, context: CliContext): Promise<number> {
  const wanted = parse(args, context);
  checkCombinations(wanted);
  if (wanted.flags.has("compress")) useThreadPerCore();
  const outputFormat = wanted.outputFormat ?? (wanted.flags.has("target-image-opts") ? undefined : "raw");
  const help = outputFormat && (await createOptionsHelp(wanted.options, outputFormat, wanted.target));
  if (help) {
    context.stdout.write(help);
    return 0;
  }
  if (wanted.target === undefined || wanted.sources.length === 0)
    throw new CommandError(["Must specify image file name"]);
  const sourceMode = cacheFlags(wanted.sourceCache, "source cache");
  const showsProgress = wanted.flags.has("progress") && !wanted.flags.has("quiet");
  const progress = new Progress(context, showsProgress);
  const sources: BlockBackend[] = [];
  let succeeded = false;
  try {
    for (const filename of wanted.sources) {
      const source = await openImage({
        filename,
        imageOpts: wanted.flags.has("image-opts"),
        format: wanted.format,
        flags: { ...sourceMode.flags, forceShare: wanted.flags.has("force-share"), noShare: true },
        environment: context.environment,
      });
      sources.push(source);
    }
    await copy(wanted, outputFormat, sources, progress, context);
    succeeded = true;
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    // As there, the message goes before the end of the line, and before what closing the images says.
    context.report(error);
    return 1;
  } finally {
    progress.end(succeeded);
    for (const source of sources) await source.close();
  }
  return 0;
}

function parse(args: Getopt, context: CliContext): ConvertArguments {
  const wanted: ConvertArguments = {
    sources: [],
    target: undefined,
    format: undefined,
    outputFormat: undefined,
    backingFile: undefined,
    backingFormat: undefined,
    options: undefined,
    snapshot: undefined,
    sparseBytes: undefined,
    bytesPerSecond: undefined,
    parallel: undefined,
    cache: "unsafe",
    sourceCache: "writeback",
    flags: new Set(),
  };
  for (const { name, value } of args) {
    if (name === "object") defineObject(value, context);
    else if (name === "format") wanted.format = value;
    else if (name === "output-format") wanted.outputFormat = value;
    else if (name === "backing-file") wanted.backingFile = value;
    else if (name === "backing-format") wanted.backingFormat = value;
    else if (name === "options") wanted.options = joinOptionList(wanted.options, value);
    else if (name === "snapshot") wanted.snapshot = parseSnapshotChoice(value);
    else if (name === "sparse-size") wanted.sparseBytes = parseSparseSize(value);
    else if (name === "rate-limit") wanted.bytesPerSecond = parseSizeArgument("rate limit", value);
    else if (name === "parallel") wanted.parallel = parseParallel(value);
    else if (name === "cache") wanted.cache = value;
    else if (name === "source-cache") wanted.sourceCache = value;
    else wanted.flags.add(name);
  }
  if (args.operands.length > 0) {
    wanted.target = args.operands.at(-1);
    wanted.sources = args.operands.slice(0, -1);
  }
  return wanted;
}

function parseSparseSize(text: string): number {
  const size = parseSizeArgument("buffer size for sparse output", text);
  if (size % 512 !== 0 || size > MAX_SPARSE_BYTES) {
    throw new CommandError([
      "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to " +
        `${MAX_SPARSE_BYTES}. Select 0 to disable sparse detection (fully allocates output).`,
    ]);
  }
  return size;
}

function parseParallel(text: string): number {
  const count = /^\s*\+?[0-9]+$/.test(text) ? Number(text) : 0;
  if (count < 1 || count > MAX_PARALLEL) {
    throw new CommandError([
      `Invalid number of coroutines. Allowed number of coroutines is between 1 and ${MAX_PARALLEL}`,
    ]);
  }
  return count;
}

/** In the order in which qemu-img looks. */
function checkCombinations({ flags, sparseBytes, options }: ConvertArguments): void {
  const fail = (message: string): never => {
    throw new CommandError([message]);
  };
  if (flags.has("skip-broken-bitmaps") && !flags.has("bitmaps"))
    fail("Use of --skip-broken-bitmaps requires --bitmaps");
  if (flags.has("copy-range")) {
    if (flags.has("compress")) fail("Cannot enable copy offloading when -c is used");
    if (sparseBytes !== undefined) fail("Cannot enable copy offloading when -S is used");
    if (flags.has("salvage")) fail("Cannot use copy offloading in salvaging mode");
  }
  if (flags.has("no-create")) {
    if (options !== undefined) fail("-o has no effect when skipping image creation");
    return;
  }
  if (flags.has("target-image-opts")) fail("--target-image-opts requires use of -n flag");
  if (flags.has("target-is-zero")) fail("--target-is-zero requires use of -n flag");
}

/** Everything from the open sources on. */
async function copy(
  wanted: ConvertArguments,
  outputFormat: string | undefined,
  sources: readonly BlockBackend[],
  progress: Progress,
  context: CliContext,
): Promise<void> {
  const { flags, snapshot, sparseBytes, bytesPerSecond, parallel } = wanted;
  if (snapshot) {
    if (snapshot.idOrName !== undefined && sources.length > 1)
      throw new BlockError("EINVAL", "No support for concatenating multiple snapshot");
    // As there, a snapshot that is asked for by its options is the first image's.
    for (const source of sources.slice(0, 1)) await loadSnapshot(source, snapshot);
  }
  if (flags.has("target-is-zero") && wanted.backingFile !== undefined)
    throw new BlockError(
      "EINVAL",
      "Cannot use --target-is-zero when the destination image has a backing file",
    );
  const quiet = flags.has("quiet");
  const options = {
    sparseBytes,
    bytesPerSecond,
    parallel,
    compress: flags.has("compress"),
    outOfOrder: flags.has("out-of-order"),
    copyRange: flags.has("copy-range"),
    salvage: flags.has("salvage"),
    bitmaps: flags.has("bitmaps"),
    skipBrokenBitmaps: flags.has("skip-broken-bitmaps"),
    signal: context.signal,
    environment: context.environment,
    onWarning: (message: string) => {
      if (!quiet) context.warn(message);
    },
    wantsProgress: () => progress.isWanted,
    onProgress: (done: number, total: number) => progress.update(done, total),
  };
  if (flags.has("no-create")) {
    await overwrite(wanted, outputFormat, sources, options, context);
    return;
  }
  await convert(
    sources,
    {
      filename: wanted.target ?? "",
      format: outputFormat,
      backingFile: wanted.backingFile,
      backingFormat: wanted.backingFormat,
      options: Object.fromEntries(parseOptions(wanted.options)),
    },
    { ...options, cache: wanted.cache },
  );
}

function parseOptions(text: string | undefined): Options {
  return text === undefined ? new Map() : parseKeyValues(text);
}

/** `-n`: the target exists, and stays open until all is flushed. */
async function overwrite(
  wanted: ConvertArguments,
  format: string | undefined,
  sources: readonly BlockBackend[],
  options: NonNullable<Parameters<typeof convert>[2]>,
  context: CliContext,
): Promise<void> {
  const { flags, cache, target: filename = "", backingFile } = wanted;
  if (backingFile !== undefined && sources.length > 1)
    throw new BlockError(
      "EINVAL",
      "Having a backing file for the target makes no sense when concatenating multiple input images",
    );
  checkSourceBitmaps(sources, options);
  const mode = cacheFlags(cache, "cache");
  const target = await openImage({
    filename,
    imageOpts: flags.has("target-image-opts"),
    format,
    flags: { ...mode.flags, readOnly: false, unmap: wanted.sparseBytes !== 0 },
    writethrough: mode.writethrough,
    environment: context.environment,
  });
  try {
    const targetIsZero = flags.has("target-is-zero");
    await convert(sources, target, { ...options, targetIsZero, keepBacking: backingFile !== undefined });
  } catch (error) {
    if (error instanceof BlockError) context.report(error);
    await target.close().catch(() => {});
    throw error instanceof BlockError ? new ExitError(1) : error;
  }
  await target.close();
}
