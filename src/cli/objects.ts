/** `--object`: definitions of secrets, throttle groups and others, which drivers ask for by their id.  @qemu user_creatable_add_opts */

import fs from "node:fs";
import { BlockError, toBlockError } from "../block/errors.ts";
import { parseJson } from "../block/json.ts";
import type { Secret } from "../block/open.ts";
import { flattenOptions, type NestedOptions, type Options } from "../block/options.ts";
import type { ThrottleGroup } from "../block/throttle.ts";
import { type CliContext, ExitError } from "./command.ts";
import { parseStrictKeyValues } from "./keyval.ts";
import {
  checkForeign,
  findObjectType,
  objectHelp,
  type PropertyValues,
  refuseLeftOver,
  takeProperties,
} from "./object-types.ts";
import { makeThrottleGroup } from "./throttle-group.ts";

/** An object that was defined. Of those that nothing here has a use for, only the type is kept. */
export interface CliObject {
  readonly type: string;
  readonly secret?: Secret;
  readonly throttleGroup?: ThrottleGroup;
}

/** Adds the object of one definition to the context's. `exitCode` is the command's for a bad one. */
export function defineObject(text: string, context: CliContext, exitCode = 1): void {
  try {
    define(text, context);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    context.report(error);
    throw new ExitError(exitCode);
  }
}

function define(text: string, context: CliContext): void {
  const { objects } = context;
  const typed = text.startsWith("{");
  const options = typed ? parseTyped(text) : parseText(text, context);
  const name = takeWord(options, "qom-type", typed);
  const type = findObjectType(name);
  const id = takeWord(options, "id", typed);
  const values = type ? takeProperties(type, options, typed) : {};
  if (type) refuseLeftOver(type, options, typed);
  else checkForeign(name, options);
  if (!/^[A-Za-z][A-Za-z0-9._-]*$/.test(id))
    throw new BlockError("EINVAL", "Parameter 'id' expects an identifier", {
      hint: "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
    });
  if (!type) throw invalid(`invalid object type: ${name}`);
  if (values["loaded"] !== undefined) throw invalid(`Property '${name}.loaded' is not writable`);
  const throttleGroup =
    name === "throttle-group" ? makeThrottleGroup(withValues(options, values)) : undefined;
  if (objects.has(id))
    throw invalid(`attempt to add duplicate property '${id}' to object (type 'container')`);
  if (name === "secret") objects.set(id, { type: name, secret: makeSecret(values, id, objects) });
  else {
    complete(name, values);
    objects.set(id, { type: name, ...(throttleGroup && { throttleGroup }) });
  }
}

function parseText(text: string, context: CliContext): Options {
  const { options, wantsHelp } = parseStrictKeyValues(text, "qom-type");
  if (!wantsHelp) return options;
  const name = options.get("qom-type");
  context.stdout.write(objectHelp(name === undefined ? undefined : String(name)));
  throw new ExitError(0);
}

function parseTyped(text: string): Options {
  return flattenOptions(parseJson(text) as NestedOptions);
}

function takeWord(options: Options, key: string, typed: boolean): string {
  const value = options.get(key);
  options.delete(key);
  if (value === undefined) throw invalid(`Parameter '${key}' is missing`);
  if (typed && typeof value !== "string")
    throw invalid(`Invalid parameter type for '${key}', expected: string`);
  return String(value);
}

function withValues(options: Options, values: PropertyValues): Options {
  const all = new Map(options);
  for (const [key, value] of Object.entries(values)) if (value !== undefined) all.set(key, value);
  return all;
}

/** What the rest of the types ask of their surroundings when they are made. */
function complete(name: string, { dir, endpoint, priority, serial, path }: PropertyValues): void {
  if (name === "tls-creds-psk" || name === "tls-creds-x509") {
    if (dir === undefined) throw invalid("Missing 'dir' property value");
    const own = endpoint === "server" ? ["server-cert.pem", "server-key.pem"] : [];
    const files = name === "tls-creds-psk" ? ["keys.psk"] : ["ca-cert.pem", ...own];
    for (const file of files) checkAccess(`${dir}/${file}`);
  }
  if (name === "tls-cipher-suites" && priority === undefined) throw invalid("'priority' property is not set");
  if (name === "secret_keyring") {
    const hex = Number(serial).toString(16).padStart(8, "0");
    throw invalid(`Unable to read serial key ${hex}: Required key not available`);
  }
  // A helper's socket: there is no use for one here, but a wrong name is told.
  if (name === "pr-manager-helper" && !fs.existsSync(String(path)))
    throw invalid(`Failed to connect to '${path}': No such file or directory`);
}

function checkAccess(filename: string): void {
  try {
    fs.accessSync(filename);
  } catch (error) {
    throw BlockError.wrap(`Unable to access credentials ${filename}`, error);
  }
}

/** @qemu qcrypto_secret_complete */
function makeSecret(values: PropertyValues, id: string, objects: CliContext["objects"]): Secret {
  const { data, file, keyid, format } = values;
  if (data !== undefined && file !== undefined) throw invalid("'file' and 'data' are mutually exclusive");
  if (data === undefined && file === undefined) throw invalid("Either 'file' or 'data' must be provided");
  const given = data === undefined ? readSecret(String(file)) : Buffer.from(String(data));
  const isBase64 = format === "base64";
  if (keyid === undefined) return { data: isBase64 ? decodeBase64(given) : given };
  if (keyid === id) throw invalid(`Secret with id '${id}' has no data`);
  const key = secretById(objects, String(keyid));
  if (!key) throw invalid(`No secret with id '${keyid}'`);
  return { data: decryptSecret(given, isBase64, key.data, values["iv"]) };
}

/** Undefined: there is no such object. Throws for one that is no secret.  @qemu qcrypto_secret_lookup */
export function secretById(objects: CliContext["objects"], id: string): Secret | undefined {
  const object = objects.get(id);
  if (object && !object.secret) throw invalid(`Object with id '${id}' is not a secret`);
  return object?.secret;
}

function readSecret(file: string): Buffer {
  try {
    return fs.readFileSync(file);
  } catch (error) {
    const { errno, message } = toBlockError(error);
    const what = errno === "EISDIR" ? "Error reading" : "Failed to open";
    throw invalid(`Unable to read ${file}: ${what} file “${file}”: ${message}`);
  }
}

/** @qemu qbase64_decode */
function decodeBase64(text: Buffer): Buffer {
  if (text.includes(0)) throw invalid("Base64 data contains embedded NUL characters");
  const letters = text.toString("latin1");
  if (!/^[A-Za-z0-9+/=\n]*$/.test(letters)) throw invalid("Base64 data contains invalid characters");
  return Buffer.from(letters, "base64");
}

const KEY_BYTES = 32;
const BLOCK_BYTES = 16;

/** AES-256 in CBC mode, padded as PKCS #7 has it.  @qemu qcrypto_secret_decrypt */
function decryptSecret(
  given: Buffer,
  isBase64: boolean,
  key: Uint8Array,
  ivText: PropertyValues[string],
): Buffer {
  if (key.length !== KEY_BYTES) throw invalid(`Key should be ${KEY_BYTES} bytes in length`);
  if (ivText === undefined) throw invalid("IV is required to decrypt secret");
  const iv = decodeBase64(Buffer.from(String(ivText)));
  if (iv.length !== BLOCK_BYTES)
    throw invalid(`IV should be ${BLOCK_BYTES} bytes in length not ${iv.length}`);
  const data = isBase64 ? decodeBase64(given) : given;
  if (data.length % BLOCK_BYTES !== 0)
    throw invalid(`Length ${data.length} must be a multiple of block size ${BLOCK_BYTES}`);
  // Not imported: it takes milliseconds to load, and hardly a command needs it.
  const { createDecipheriv } = process.getBuiltinModule("node:crypto");
  const plain = createDecipheriv("aes-256-cbc", key, iv).setAutoPadding(false).update(data);
  const padding = plain.at(-1) ?? 0;
  if (padding > BLOCK_BYTES || padding > plain.length)
    throw invalid(`Incorrect number of padding bytes (${padding}) found on decrypted data`);
  return plain.subarray(0, plain.length - padding);
}

function invalid(message: string): BlockError {
  return new BlockError("EINVAL", message);
}
