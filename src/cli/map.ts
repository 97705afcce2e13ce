/** `map`: lists where an image's data lies.  @qemu img_map */

import { type MapEntry, mapImage } from "../jobs/map.ts";
import { type CliContext, CommandError, UsageError } from "./command.ts";
import { outputFormat, parseSizeArgument } from "./format.ts";
import type { Getopt } from "./getopt.ts";
import { defineObject } from "./objects.ts";
import { withImage } from "./open-image.ts";

interface MapArguments {
  readonly filename: string;
  readonly format: string | undefined;
  readonly output: "human" | "json";
  readonly start: number;
  readonly maxBytes: number | undefined;
  readonly imageOpts: boolean;
  readonly forceShare: boolean;
}

export async function run(args: Getopt, context: CliContext): Promise<number> {
  const { output, start, maxBytes, ...wanted } = parse(args, context);
  await withImage({ ...wanted, flags: { forceShare: wanted.forceShare } }, context, (image) => {
    const entries = mapImage(image, { start, maxBytes, signal: context.signal });
    return output === "json" ? printJson(entries, start, context) : printTable(entries, context);
  });
  return 0;
}

function parse(args: Getopt, context: CliContext): MapArguments {
  let format: string | undefined;
  let output: string | undefined;
  let start = 0;
  let maxBytes: number | undefined;
  let imageOpts = false;
  let forceShare = false;
  for (const { name, value } of args) {
    if (name === "format") format = value;
    else if (name === "output") output = value;
    else if (name === "start-offset") start = parseSizeArgument("start offset", value, context.warn);
    else if (name === "max-length") maxBytes = parseSizeArgument("max length", value, context.warn);
    else if (name === "object") defineObject(value, context);
    else if (name === "image-opts") imageOpts = true;
    else if (name === "force-share") forceShare = true;
  }
  const [filename, ...more] = args.operands;
  if (filename === undefined || more.length > 0) throw new UsageError("Expecting one image file name");
  return { filename, format, output: outputFormat(output), start, maxBytes, imageOpts, forceShare };
}

/** Only what lies plain in a file; data that does not is an error there.  @qemu dump_map_entry */
async function printTable(entries: AsyncIterable<MapEntry>, { stdout }: CliContext): Promise<void> {
  stdout.write(tableLine("Offset", "Length", "Mapped to", "File"));
  for await (const { start, bytes, data, zero, hostOffset, filename } of entries) {
    if (data && hostOffset === undefined)
      throw new CommandError(["File contains external, encrypted or compressed clusters."]);
    if (data && !zero) stdout.write(tableLine(hex(start), hex(bytes), hex(hostOffset ?? 0), filename ?? ""));
  }
}

function tableLine(start: string, length: string, mapped: string, file: string): string {
  return `${start.padEnd(16)}${length.padEnd(16)}${mapped.padEnd(16)}${file}\n`;
}

function hex(value: number): string {
  return value === 0 ? "0" : `0x${value.toString(16)}`;
}

async function printJson(
  entries: AsyncIterable<MapEntry>,
  start: number,
  { stdout }: CliContext,
): Promise<void> {
  stdout.write("[");
  let separator = "";
  for await (const entry of entries) {
    stdout.write(separator + jsonLine(entry));
    separator = ",\n";
  }
  if (separator === "") stdout.write(jsonLine({ ...NOTHING, start }));
  stdout.write("]\n");
}

/** What qemu-img prints of an empty range. */
const NOTHING: MapEntry = {
  start: 0,
  bytes: 0,
  depth: 0,
  present: false,
  zero: false,
  data: false,
  compressed: false,
  hostOffset: undefined,
  filename: undefined,
};

function jsonLine({ start, bytes, depth, present, zero, data, hostOffset }: MapEntry): string {
  const where = hostOffset === undefined ? "" : `, "offset": ${hostOffset}`;
  return (
    `{ "start": ${start}, "length": ${bytes}, "depth": ${depth}, "present": ${present}, ` +
    `"zero": ${zero}, "data": ${data}${where}}`
  );
}
