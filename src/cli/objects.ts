/** `--object`: definitions of secrets, which drivers ask for by their id.  @qemu user_creatable_add_opts */

import fs from "node:fs";
import { toBlockError } from "../block/errors.ts";
import { type Options, parseKeyValues, takeString } from "../block/options.ts";
import { type CliContext, CommandError } from "./command.ts";

/** Reads one definition into the context's secrets. `exitCode` is the command's for a bad one. */
export function defineObject(text: string, context: CliContext, exitCode = 1): void {
  const fail = (message: string): never => {
    throw new CommandError([message], exitCode);
  };
  const options = parseKeyValues(text, "qom-type");
  const type = takeString(options, "qom-type");
  if (type === undefined) return fail("Parameter 'qom-type' is missing");
  if (type !== "secret") return fail(`Parameter 'qom-type' does not accept value '${type}'`);
  const id = takeString(options, "id");
  if (id === undefined) return fail("Parameter 'id' is missing");
  if (context.secrets.has(id))
    return fail(`attempt to add duplicate property '${id}' to object (type 'container')`);
  context.secrets.set(id, { data: secretData(options, fail) });
}

function secretData(options: Options, fail: (message: string) => never): Uint8Array {
  const data = takeString(options, "data");
  const file = takeString(options, "file");
  const format = takeString(options, "format") ?? "raw";
  const [unknown] = options.keys();
  if (unknown === "keyid" || unknown === "iv") fail("Encrypted secrets are not supported");
  if (unknown !== undefined) fail(`Parameter '${unknown}' is unexpected`);
  if (format !== "raw" && format !== "base64") fail(`Parameter 'format' does not accept value '${format}'`);
  if (data !== undefined && file !== undefined) fail("'file' and 'data' are mutually exclusive");
  const raw =
    data !== undefined ? Buffer.from(data) : file !== undefined ? readSecret(file, fail) : undefined;
  if (!raw) return fail("Either 'file' or 'data' must be provided");
  if (format === "raw") return raw;
  return Buffer.from(raw.toString("latin1"), "base64");
}

function readSecret(file: string, fail: (message: string) => never): Buffer {
  try {
    return fs.readFileSync(file);
  } catch (error) {
    return fail(`Unable to read ${file}: Failed to open file “${file}”: ${toBlockError(error).message}`);
  }
}
