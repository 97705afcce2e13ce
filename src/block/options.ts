/**
 * Options of nodes: flat maps with dotted keys ("file.filename"), made from nested objects, `json:{...}` names
 * or `key=value,...` strings, and read by a driver's table.  @qemu QDict, QemuOpts, keyval
 */

import { BlockError } from "./errors.ts";
import { type JsonValue, parseJson } from "./json.ts";

export type OptionScalar = string | number | boolean | null;

/** Flattened. A value is still a string where it came from text; the driver's table gives it its type. */
export type Options = Map<string, OptionScalar>;

/** What a user of the library writes. */
export interface NestedOptions {
  readonly [key: string]:
    | OptionScalar
    | undefined
    | NestedOptions
    | readonly (OptionScalar | NestedOptions)[];
}

export interface OptionSpec {
  readonly type: "string" | "bool" | "number" | "size";
  /** The only words that a string may be. */
  readonly values?: readonly string[];
  /** What is said of a string that is not among `values`, which stands for its `%s`: qemu has two wordings. */
  readonly refusal?: string;
  /** Part of what the guest sees: it appears in `json:` names.  @qemu strong_runtime_opts */
  readonly strong?: boolean;
  /** A reopen may give it another value. */
  readonly changeable?: boolean;
  /** As `create -o help` prints it. */
  readonly help?: string;
  /** As `create` shows it where the user gave none ("65536"): the driver's own default, in text. */
  readonly default?: string;
}

export type OptionTable = Readonly<Record<string, OptionSpec>>;

type ValueOf<S extends OptionSpec> = S["type"] extends "string"
  ? S extends { readonly values: readonly (infer V extends string)[] }
    ? V
    : string
  : S["type"] extends "bool"
    ? boolean
    : number;

/** The typed values that a table gives; what was not set is absent. Sizes are in bytes. */
export type OptionValues<T extends OptionTable> = { readonly [K in keyof T]?: ValueOf<T[K]> };

/** Nested objects and arrays become dotted keys: `{file: {driver: "file"}}` is `file.driver`.  @qemu qdict_flatten */
export function flattenOptions(nested: NestedOptions, prefix = "", into: Options = new Map()): Options {
  for (const [key, value] of Object.entries(nested)) {
    if (value === undefined) continue;
    if (value === null || typeof value !== "object") into.set(prefix + key, value);
    else if (Array.isArray(value))
      flattenOptions(
        Object.fromEntries((value as readonly (OptionScalar | NestedOptions)[]).entries()),
        `${prefix}${key}.`,
        into,
      );
    else flattenOptions(value as NestedOptions, `${prefix}${key}.`, into);
  }
  return into;
}

/** The options under `prefix` ("file."), taken out of `options`, with the prefix cut off.  @qemu qdict_extract_subqdict */
export function takePrefix(options: Options, prefix: string): Options {
  const taken: Options = new Map();
  for (const [key, value] of options) {
    if (!key.startsWith(prefix)) continue;
    taken.set(key.slice(prefix.length), value);
    options.delete(key);
  }
  return taken;
}

/** Takes one option out of `options`, as a string. */
export function takeString(options: Options, key: string): string | undefined {
  const value = options.get(key);
  options.delete(key);
  return value === undefined || value === null ? undefined : String(value);
}

export function takeBool(options: Options, key: string): boolean | undefined {
  const value = options.get(key);
  options.delete(key);
  return value === undefined ? undefined : parseBool(key, value);
}

/** Takes the options of `table` out of `options` and gives each its type. */
export function takeOptions<T extends OptionTable>(table: T, options: Options): OptionValues<T> {
  const values: Record<string, string | number | boolean> = {};
  for (const [key, spec] of Object.entries(table)) {
    const value = options.get(key);
    if (value === undefined) continue;
    options.delete(key);
    values[key] = parseValue(key, spec, value);
  }
  return values as OptionValues<T>;
}

function parseValue(key: string, spec: OptionSpec, value: OptionScalar): string | number | boolean {
  switch (spec.type) {
    case "string":
      if (spec.values && !spec.values.includes(String(value)))
        throw new BlockError(
          "EINVAL",
          spec.refusal?.replace("%s", String(value)) ?? `invalid parameter value: ${value}`,
        );
      return String(value);
    case "bool":
      return parseBool(key, value);
    case "number":
      return parseNumber(key, value);
    case "size":
      return parseSizeOption(key, value);
  }
}

function parseBool(key: string, value: OptionScalar): boolean {
  if (value === true || value === "on" || value === "yes" || value === "true" || value === "y") return true;
  if (value === false || value === "off" || value === "no" || value === "false" || value === "n")
    return false;
  throw new BlockError("EINVAL", `Parameter '${key}' expects 'on' or 'off'`);
}

function parseNumber(key: string, value: OptionScalar): number {
  const number = typeof value === "number" ? value : parseInteger(String(value));
  if (number === undefined) throw new BlockError("EINVAL", `Parameter '${key}' expects a number`);
  return number;
}

function parseSizeOption(key: string, value: OptionScalar): number {
  const size = typeof value === "number" ? value : parseSize(String(value));
  if (size === "range")
    throw new BlockError("EINVAL", `Value '${value}' is out of range for parameter '${key}'`);
  if (size === undefined || size < 0) {
    throw new BlockError("EINVAL", `Parameter '${key}' expects a non-negative number below 2^64`, {
      hint:
        "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n" +
        "and exabytes, respectively.",
    });
  }
  return size;
}

/** A whole number, decimal, 0x hexadecimal or 0 octal, as strtoull takes it; undefined if it is none. */
export function parseInteger(text: string): number | undefined {
  const trimmed = text.trimStart();
  const match = /^([+-]?)(0x[0-9a-f]+|0[0-7]*|[1-9][0-9]*)$/i.exec(trimmed);
  if (!match) return undefined;
  const digits = match[2] as string;
  const isOctal = /^0[0-7]/.test(digits);
  const magnitude = isOctal ? Number.parseInt(digits, 8) : Number(digits);
  return match[1] === "-" ? -magnitude : magnitude;
}

const SUFFIX_EXPONENTS: Readonly<Record<string, number>> = { b: 0, k: 1, m: 2, g: 3, t: 4, p: 5, e: 6 };

/**
 * A size in bytes with an optional suffix (powers of 1024) and fraction: "64k", "1.5G", "0x1000".
 * "range": 2^64 or more; undefined: no size.  @qemu qemu_strtosz
 */
export function parseSize(text: string, defaultSuffix = "b"): number | undefined | "range" {
  const match = /^\s*\+?(0x[0-9a-f]+|[0-9]+(?:\.[0-9]*)?)([bkmgtpe]?)$/i.exec(text);
  if (!match) return undefined;
  const number = match[1] as string;
  const suffix = (match[2] || defaultSuffix).toLowerCase();
  const multiplier = 1024 ** (SUFFIX_EXPONENTS[suffix] as number);
  // A fraction of a byte has no meaning.
  if (multiplier === 1 && /\.[0-9]*[1-9]/.test(number)) return undefined;
  const [whole = "", fraction = ""] = number.split(".");
  const size = Number(whole) * multiplier + Math.floor(Number(`0.${fraction}`) * multiplier + 0.5);
  return size >= 2 ** 64 ? "range" : size;
}

/** Tells of a size that has a suffix behind a hexadecimal number: it is taken, for the time being. */
export function warnOfHexSuffix(size: string, warn: (message: string) => void): void {
  if (/^\s*\+?0x[0-9a-f]+[kmgtp]/i.test(size))
    warn(`Using a multiplier suffix on hex numbers is deprecated: ${size}`);
}

/** Splits "a=b,c=d,,e": a doubled comma stands for one. A key alone is `on`, with "no" before it `off`, and `warn` is told so. Keys are not checked here, "" neither.  @qemu QemuOpts */
export function parseKeyValues(text: string, impliedKey?: string, warn?: (message: string) => void): Options {
  const options: Options = new Map();
  let rest = text;
  while (rest !== "") {
    const isImplied = impliedKey !== undefined && rest === text && /^[^=]*(,|$)/.test(rest);
    // Only in a value is a doubled comma one; a key ends at the first.
    const name = isImplied ? "" : (/^[^=,]*/.exec(rest)?.[0] ?? "");
    const hasValue = isImplied || rest[name.length] === "=";
    const raw = hasValue
      ? (/^(?:[^,]|,,)*/.exec(rest.slice(isImplied ? 0 : name.length + 1))?.[0] ?? "")
      : "";
    const value = raw.replaceAll(",,", ",");
    if (isImplied) options.set(impliedKey, value);
    else if (hasValue) options.set(name, value);
    else {
      const isOff = name.startsWith("no");
      const [key, state] = isOff ? [name.slice(2), "off"] : [name, "on"];
      warn?.(`short-form boolean option '${name}' deprecated\nPlease use ${key}=${state} instead`);
      options.set(key, state);
    }
    rest = rest.slice(isImplied ? raw.length + 1 : name.length + (hasValue ? raw.length + 2 : 1));
  }
  return options;
}

const JSON_PREFIX = "json:";

export function isJsonFilename(filename: string): boolean {
  return filename.startsWith(JSON_PREFIX);
}

/** The options in a `json:{...}` filename.  @qemu parse_json_filename */
export function parseJsonFilename(filename: string): Options {
  let value: JsonValue;
  try {
    value = parseJson(filename.slice(JSON_PREFIX.length));
  } catch (error) {
    throw BlockError.wrap("Could not parse the JSON options", error);
  }
  if (value === null || typeof value !== "object" || Array.isArray(value))
    throw new BlockError("EINVAL", "Invalid JSON object given");
  return flattenOptions(value as NestedOptions);
}
