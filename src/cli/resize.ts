/** `resize`: changes the size of an image.  @qemu img_resize */

import type { Prealloc } from "../block/driver.ts";
import { takeOptions, warnOfHexSuffix } from "../block/options.ts";
import { resizeImage, ShrinkError } from "../jobs/resize.ts";
import { type CliContext, CommandError, UsageError } from "./command.ts";
import type { Getopt } from "./getopt.ts";
import { defineObject } from "./objects.ts";
import { withImage } from "./open-image.ts";

const PREALLOCATIONS: readonly string[] = ["off", "metadata", "falloc", "full"] satisfies Prealloc[];

const SHRINK_WARNING =
  "Shrinking an image will delete all data beyond the shrunken image's end. " +
  "Before performing such an operation, make sure there is no important data there.";

interface ResizeArguments {
  readonly filename: string;
  readonly format: string | undefined;
  /** As it was given: "1G", "+1G", "-1G". */
  readonly size: string;
  readonly preallocation: Prealloc;
  readonly imageOpts: boolean;
  readonly shrink: boolean;
  readonly quiet: boolean;
}

export async function run(args: Getopt, context: CliContext): Promise<number> {
  const wanted = parse(args, context);
  const { signal, warn } = context;
  const newSize = sizeChange(wanted.size, warn);
  await withImage({ ...wanted, flags: { readOnly: false, resize: true } }, context, async (image) => {
    try {
      await resizeImage(image, { ...wanted, newSize, signal });
    } catch (error) {
      if (error instanceof ShrinkError) throw new CommandError([error.message, `warning: ${SHRINK_WARNING}`]);
      throw error;
    }
  });
  if (!wanted.quiet) context.stdout.write("Image resized.\n");
  return 0;
}

function parse(args: Getopt, context: CliContext): ResizeArguments {
  // The last word is the size even where it looks like an option: "-1G".
  const size = args.takeLast();
  if (size === undefined || args.isEmpty) throw new UsageError("Not enough arguments");
  let format: string | undefined;
  let preallocation = "off";
  let imageOpts = false;
  let shrink = false;
  let quiet = false;
  for (const { name, value } of args) {
    if (name === "format") format = value;
    else if (name === "preallocation") {
      if (!PREALLOCATIONS.includes(value)) throw new CommandError([`Invalid preallocation mode '${value}'`]);
      preallocation = value;
    } else if (name === "object") defineObject(value, context);
    else if (name === "image-opts") imageOpts = true;
    else if (name === "shrink") shrink = true;
    else if (name === "quiet") quiet = true;
  }
  const [filename, ...more] = args.operands;
  if (filename === undefined || more.length > 0) throw new UsageError("Expecting image file name and size");
  return { filename, format, size, preallocation: preallocation as Prealloc, imageOpts, shrink, quiet };
}

/** What a size on the command line makes of the old size. Both count in 64 bits, as qemu-img's do. */
function sizeChange(text: string, warn: (message: string) => void): (oldBytes: number) => number {
  const sign = text.startsWith("+") ? 1n : text.startsWith("-") ? -1n : 0n;
  const size = sign === 0n ? text : text.slice(1);
  warnOfHexSuffix(size, warn);
  const bytes = BigInt(takeOptions({ size: { type: "size" } } as const, new Map([["size", size]])).size ?? 0);
  return (oldBytes) => Number(BigInt.asIntN(64, sign === 0n ? bytes : BigInt(oldBytes) + bytes * sign));
}
