/** `info`: prints what an image says of itself.  @qemu img_info */

import { BlockError } from "../block/errors.ts";
import { type ImageInfo, imageInfo } from "../jobs/info.ts";
import { type CliContext, UsageError } from "./command.ts";
import { outputFormat, prettyJson } from "./format.ts";
import type { Getopt } from "./getopt.ts";
import { humanInfo, jsonInfo } from "./info-text.ts";
import { defineObject } from "./objects.ts";
import { withImage } from "./open-image.ts";

interface InfoArguments {
  readonly filename: string;
  readonly format: string | undefined;
  readonly output: "human" | "json";
  readonly chain: boolean;
  readonly imageOpts: boolean;
  readonly forceShare: boolean;
}

export async function run(args: Getopt, context: CliContext): Promise<number> {
  const wanted = parse(args, context);
  const infos = await collect(wanted, context);
  const { stdout } = context;
  if (wanted.output === "json") {
    const values = infos.map(jsonInfo);
    stdout.write(`${prettyJson(wanted.chain ? values : (values[0] ?? null))}\n`);
  } else stdout.write(infos.map(humanInfo).join("\n"));
  return 0;
}

function parse(args: Getopt, context: CliContext): InfoArguments {
  let format: string | undefined;
  let output: string | undefined;
  let chain = false;
  let imageOpts = false;
  let forceShare = false;
  for (const { name, value } of args) {
    if (name === "format") format = value;
    else if (name === "output") output = value;
    else if (name === "backing-chain") chain = true;
    else if (name === "object") defineObject(value, context);
    else if (name === "image-opts") imageOpts = true;
    else if (name === "force-share") forceShare = true;
  }
  const [filename, ...more] = args.operands;
  if (filename === undefined || more.length > 0) throw new UsageError("Expecting one image file name");
  return { filename, format, output: outputFormat(output), chain, imageOpts, forceShare };
}

/** The image, and with `--backing-chain` what is below it, each opened by itself. */
async function collect(wanted: InfoArguments, context: CliContext): Promise<ImageInfo[]> {
  const infos: ImageInfo[] = [];
  const seen = new Set<string>();
  let { imageOpts } = wanted;
  let filename: string | undefined = wanted.filename;
  let format = wanted.format;
  while (filename !== undefined) {
    if (seen.has(filename))
      throw new BlockError("ELOOP", `Backing file '${filename}' creates an infinite loop.`);
    seen.add(filename);
    const info = await one(filename, format, imageOpts, wanted, context);
    infos.push(info);
    filename = wanted.chain ? info.fullBackingFilename : undefined;
    format = info.backingFormat;
    imageOpts = false;
  }
  return infos;
}

async function one(
  filename: string,
  format: string | undefined,
  imageOpts: boolean,
  { forceShare, chain }: InfoArguments,
  context: CliContext,
): Promise<ImageInfo> {
  const flags = { noBacking: true, noIo: true, forceShare };
  return withImage({ filename, imageOpts, format, flags }, context, async (image) => {
    const info = await imageInfo(image);
    const below = info.fullBackingFilename;
    if (chain && below !== undefined) context.environment.guard?.refuseReference("backing file", below);
    return info;
  });
}
