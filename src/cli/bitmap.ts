/** `bitmap`: changes the dirty bitmaps that are stored in an image.  @qemu img_bitmap */

import type { BlockBackend } from "../block/backend.ts";
import type { BitmapSource } from "../block/image-bitmaps.ts";
import { type CliContext, CommandError, ExitError } from "./command.ts";
import { parseSizeArgument } from "./format.ts";
import type { Getopt } from "./getopt.ts";
import { defineObject } from "./objects.ts";
import { openImage, withImage } from "./open-image.ts";

const ACTIONS = ["add", "remove", "clear", "enable", "disable", "merge"] as const;

interface Action {
  readonly name: (typeof ACTIONS)[number];
  /** What is merged. */
  readonly source: string;
}

interface BitmapArguments {
  readonly filename: string;
  readonly bitmap: string;
  /** In the order in which they are done. */
  readonly actions: readonly Action[];
  /** 0: none was given, or 0 was. */
  readonly granularity: number;
  readonly sourceFile: string | undefined;
  readonly sourceFormat: string | undefined;
  readonly format: string | undefined;
  readonly imageOpts: boolean;
}

/** Granularities are numbers of 32 bits there: what does not fit is cut off. */
const GRANULARITY_RANGE = 2 ** 32;

export async function run(args: Getopt, context: CliContext): Promise<number> {
  const wanted = parse(args, context);
  const { environment } = context;
  await withImage({ ...wanted, flags: { readOnly: false, noBacking: true } }, context, async (image) => {
    let source: BlockBackend | undefined;
    try {
      if (wanted.sourceFile !== undefined) {
        const { sourceFile: filename, sourceFormat: format } = wanted;
        source = await openImage({
          filename,
          format,
          imageOpts: false,
          flags: { noBacking: true },
          environment,
        });
      }
      for (const action of wanted.actions) await runAction(image, action, source, wanted, context);
    } finally {
      await source?.close();
    }
  });
  return 0;
}

function parse(args: Getopt, context: CliContext): BitmapArguments {
  const actions: Action[] = [];
  let granularity = 0;
  let sourceFile: string | undefined;
  let sourceFormat: string | undefined;
  let format: string | undefined;
  let imageOpts = false;
  for (const { name, value } of args) {
    const action = ACTIONS.find((each) => each === name);
    if (action) actions.push({ name: action, source: value });
    else if (name === "source-file") sourceFile = value;
    else if (name === "source-format") sourceFormat = value;
    else if (name === "format") format = value;
    else if (name === "granularity") granularity = parseSizeArgument("granularity", value);
    else if (name === "object") defineObject(value, context);
    else if (name === "image-opts") imageOpts = true;
  }
  const has = (name: Action["name"]) => actions.some((action) => action.name === name);
  const fail = (message: string): never => {
    throw new CommandError([message]);
  };
  if (actions.length === 0)
    fail("Need at least one of --add, --remove, --clear, --enable, --disable, or --merge");
  if (granularity !== 0 && !has("add")) fail("granularity only supported with --add");
  if (sourceFormat !== undefined && sourceFile === undefined) fail("-F only supported with -b");
  if (sourceFile !== undefined && !has("merge")) fail("Merge bitmap source file only supported with --merge");
  const [filename, bitmap, ...more] = args.operands;
  if (filename === undefined || bitmap === undefined || more.length > 0)
    return fail("Expecting filename and bitmap name");
  return { filename, bitmap, actions, granularity, sourceFile, sourceFormat, format, imageOpts };
}

/** What was done before an action that fails stays done. */
async function runAction(
  image: BlockBackend,
  { name, source }: Action,
  sourceImage: BlockBackend | undefined,
  { bitmap, granularity }: BitmapArguments,
  context: CliContext,
): Promise<void> {
  const { bitmaps } = image;
  try {
    if (name === "add")
      await bitmaps.add(bitmap, {
        persistent: true,
        granularity: granularity === 0 ? undefined : granularity % GRANULARITY_RANGE,
      });
    else if (name === "merge") {
      const merged: BitmapSource = sourceImage ? { image: sourceImage, name: source } : source;
      await bitmaps.merge(bitmap, [merged]);
    } else await bitmaps[name](bitmap);
  } catch (error) {
    context.report(error, `Operation ${name} on bitmap ${bitmap} failed`);
    throw new ExitError(1);
  }
}
