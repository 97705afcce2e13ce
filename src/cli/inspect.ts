/** `inspect`: a verdict in JSON on an image from untrusted hands. qemu-img has no such command. */

import { type Inspection, inspectImage } from "../jobs/inspect.ts";
import { type CliContext, UsageError } from "./command.ts";
import { type JsonValue, prettyJson } from "./format.ts";
import type { Getopt } from "./getopt.ts";

/** The exit code for an image that should not be opened; 1: it could not be looked at. */
const UNSAFE = 2;

export async function run(args: Getopt, context: CliContext): Promise<number> {
  let format: string | undefined;
  for (const { name, value } of args) if (name === "format") format = value;
  const [filename, ...more] = args.operands;
  if (filename === undefined || more.length > 0) throw new UsageError("Expecting one image file name");
  const { environment, signal, stdout } = context;
  const inspection = await inspectImage({ filename, format, environment, signal });
  stdout.write(`${prettyJson(describe(inspection))}\n`);
  return inspection.safe ? 0 : UNSAFE;
}

function describe(inspection: Inspection): JsonValue {
  const { check } = inspection;
  return {
    filename: inspection.filename,
    safe: inspection.safe,
    reasons: inspection.anomalies.filter(({ unsafe }) => unsafe).map(({ message }) => message),
    format: inspection.format,
    "matching-formats": inspection.formats,
    "file-size": inspection.fileBytes,
    "virtual-size": inspection.virtualBytes,
    "cluster-size": inspection.clusterBytes,
    encrypted: inspection.encrypted,
    snapshots: inspection.snapshots,
    features: inspection.features,
    references: inspection.references.map(({ kind, filename, format }) => ({ kind, filename, format })),
    check: check && {
      corruptions: check.corruptions,
      leaks: check.leaks,
      "check-errors": check.checkErrors,
      "image-end-offset": check.imageEndOffset,
    },
    anomalies: inspection.anomalies.map(({ code, unsafe, message }) => ({ code, unsafe, message })),
  };
}
