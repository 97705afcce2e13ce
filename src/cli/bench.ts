/** `bench`: sends requests to an image and tells how long they took.  @qemu img_bench */

import { strerror, toBlockError } from "../block/errors.ts";
import { parseCacheMode } from "../block/open-flags.ts";
import { parseInteger } from "../block/options.ts";
import { benchImage } from "../jobs/bench.ts";
import { type CliContext, CommandError, UsageError } from "./command.ts";
import { parseSizeArgument, toFixed } from "./format.ts";
import type { Getopt } from "./getopt.ts";
import { withImage } from "./open-image.ts";
import { DISK_THREADS, useThreads } from "./threads.ts";

const MAX_INT = 2 ** 31 - 1;
const AIO_NAMES: readonly string[] = ["threads", "native", "io_uring"];

interface BenchArguments {
  filename: string;
  format: string | undefined;
  count: number;
  depth: number;
  offset: number;
  bytes: number;
  /** 0: as `bytes`. */
  stepBytes: number;
  pattern: number;
  flushInterval: number;
  cache: NonNullable<ReturnType<typeof parseCacheMode>>;
  /** Those options that are there or not, by their names in commands.ts. */
  readonly flags: Set<string>;
}

export async function run(args: Getopt, context: CliContext): Promise<number> {
  const wanted = parse(args, context);
  useThreads(DISK_THREADS);
  const { filename, format, cache, flags, count, depth, bytes, offset, flushInterval } = wanted;
  const { direct, noFlush, writethrough } = cache;
  const writes = flags.has("write");
  let failed = false;
  // qemu-img closes nothing after a failure: so nothing is said then of what can't be written while closing.
  const environment = {
    ...context.environment,
    error: (text: string) => {
      if (!failed) context.error(text);
    },
  };
  const request = {
    filename,
    imageOpts: flags.has("image-opts"),
    format,
    flags: {
      direct,
      noFlush,
      nativeAio: flags.has("native"),
      readOnly: !writes,
      forceShare: flags.has("force-share"),
    },
    writethrough,
  };
  return withImage(request, { ...context, environment }, async (image) => {
    const stepBytes = wanted.stepBytes || bytes;
    context.stdout.write(
      `Sending ${count} ${writes ? "write" : "read"} requests, ${bytes} bytes each, ${depth} in parallel ` +
        `(starting at offset ${offset}, step size ${stepBytes})\n`,
    );
    if (flushInterval > 0) context.stdout.write(`Sending flush every ${flushInterval} requests\n`);
    const pattern = writes ? wanted.pattern : undefined;
    const { signal } = context;
    const request = { image, count, depth, bytes, offset, stepBytes, pattern, flushInterval, signal };
    const seconds = await benchImage({ ...request, noDrain: flags.has("no-drain") }).catch(
      (error: unknown) => {
        failed = true;
        throw new CommandError([`Failed request: ${strerror(toBlockError(error).errno)}`]);
      },
    );
    context.stdout.write(`Run completed in ${toFixed(seconds, 3)} seconds.\n`);
    return 0;
  });
}

function parse(args: Getopt, context: CliContext): BenchArguments {
  const wanted: BenchArguments = {
    filename: "",
    format: undefined,
    count: 75_000,
    depth: 64,
    offset: 0,
    bytes: 4096,
    stepBytes: 0,
    pattern: 0,
    flushInterval: 0,
    cache: { direct: false, noFlush: false, writethrough: false },
    flags: new Set(),
  };
  for (const { name, value } of args) take(wanted, name, value, context);
  const [filename, ...more] = args.operands;
  if (filename === undefined || more.length > 0) throw new UsageError("Expecting one image file name");
  const { flushInterval, depth, flags } = wanted;
  if (flushInterval > 0 && !flags.has("write"))
    throw new CommandError(["--flush-interval is only available in write tests"]);
  if (flushInterval > 0 && flushInterval < depth)
    throw new CommandError(["Flush interval can't be smaller than depth"]);
  return { ...wanted, filename };
}

function take(wanted: BenchArguments, name: string, value: string, { warn }: CliContext): void {
  const int = { max: MAX_INT };
  if (name === "format") wanted.format = value;
  else if (name === "count") wanted.count = parseNumber(value, 0, MAX_INT, "request count");
  // qemu-img takes a depth of 0 too, and waits forever.
  else if (name === "depth") wanted.depth = parseNumber(value, 1, MAX_INT, "queue depth");
  else if (name === "flush-interval") wanted.flushInterval = parseNumber(value, 0, MAX_INT, "flush interval");
  else if (name === "pattern") wanted.pattern = parseNumber(value, 0, 0xff, "pattern byte");
  else if (name === "offset") wanted.offset = parseSizeArgument("offset", value, warn);
  else if (name === "buffer-size") wanted.bytes = parseSizeArgument("buffer size", value, warn, int);
  else if (name === "step-size") wanted.stepBytes = parseSizeArgument("step_size", value, warn, int);
  else if (name === "cache") wanted.cache = parseCache(value);
  else if (name === "aio" && !AIO_NAMES.includes(value))
    throw new CommandError([`Invalid aio option: ${value}`]);
  // As with qemu-img, no other one that follows takes native back.
  else wanted.flags.add(name === "aio" ? value : name);
}

function parseNumber(text: string, min: number, max: number, what: string): number {
  const number = parseInteger(text);
  if (number === undefined || number < min || number > max)
    throw new CommandError([`Invalid ${what} specified`]);
  return number;
}

function parseCache(name: string): BenchArguments["cache"] {
  const mode = parseCacheMode(name);
  if (!mode) throw new CommandError(["Invalid cache mode"]);
  return mode;
}
