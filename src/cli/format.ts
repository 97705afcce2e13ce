/** Numbers, sizes and JSON as qemu-img prints them. */

import { parseSize, warnOfHexSuffix } from "../block/options.ts";
import { CommandError } from "./command.ts";

const UNITS = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"] as const;

/** "64 MiB", "1.5 GiB", "512 B": three digits, and the next unit from 1000 on.  @qemu size_to_str */
export function humanSize(bytes: number): string {
  let unit = 0;
  let value = bytes;
  while (value >= 1000 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  const decimals = value >= 100 ? 0 : value >= 10 ? 1 : value >= 1 ? 2 : 3;
  const rounded = Number(toFixed(value, decimals));
  // What is rounded up to 1000 has four digits, and is written as the C library writes it then.
  return `${rounded >= 1000 ? "1e+03" : rounded} ${UNITS[unit]}B`;
}

/** As the C library rounds: of two equally near numbers the even one, where JavaScript takes the larger.  @qemu printf */
export function toFixed(value: number, decimals: number): string {
  // A binary fraction lies halfway between two such decimal ones only if it ends at just this bit.
  const isTie = (value * 2 ** (decimals + 1)) % 2 === 1;
  if (!isTie) return value.toFixed(decimals);
  const below = Math.floor(value * 10 ** decimals);
  return ((below % 2 === 0 ? below : below + 1) / 10 ** decimals).toFixed(decimals);
}

const MAX_INT64 = 2 ** 63;

/** A size from the command line; `what` says which for the message: "image size".  @qemu cvtnum_full */
export function parseSizeArgument(
  what: string,
  text: string,
  warn?: (message: string) => void,
  { min = 0, max = MAX_INT64 }: { readonly min?: number; readonly max?: number } = {},
): number {
  if (warn) warnOfHexSuffix(text, warn);
  const size = parseSize(text);
  if (size === undefined) {
    throw new CommandError([
      `Invalid ${what} specified. You may use k, M, G, T, P or E suffixes for`,
      "kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.",
    ]);
  }
  if (size === "range" || size < min || size > max || size >= MAX_INT64) {
    // As a number, the largest of all would be rounded up.
    const most = max === MAX_INT64 ? "9223372036854775807" : max;
    throw new CommandError([`Invalid ${what} specified. Must be between ${min} and ${most}.`]);
  }
  return size;
}

export type JsonValue =
  | string
  | number
  | bigint
  | boolean
  | null
  | readonly JsonValue[]
  | { readonly [key: string]: JsonValue | undefined };

/** Indented by four; members that are undefined are left out.  @qemu qobject_to_json_pretty */
export function prettyJson(value: JsonValue, indent = ""): string {
  const inner = `${indent}    `;
  if (typeof value === "bigint") return value.toString();
  if (value === null || typeof value !== "object")
    return typeof value === "string" ? jsonString(value) : String(value);
  const isArray = Array.isArray(value);
  const parts = isArray
    ? (value as readonly JsonValue[]).map((item) => inner + prettyJson(item, inner))
    : Object.entries(value as { readonly [key: string]: JsonValue | undefined })
        .filter(([, member]) => member !== undefined)
        .map(([key, member]) => `${inner}${jsonString(key)}: ${prettyJson(member as JsonValue, inner)}`);
  const body = parts.length === 0 ? "" : `\n${parts.join(",\n")}\n${indent}`;
  if (isArray) return parts.length === 0 ? `[\n${indent}]` : `[${body}]`;
  return parts.length === 0 ? `{\n${indent}}` : `{${body}}`;
}

/** A JSON string with everything but printable ASCII escaped.  @qemu to_json: QTYPE_QSTRING */
function jsonString(text: string): string {
  const escape = (code: string) => `\\u${code.padStart(4, "0").toUpperCase()}`;
  return JSON.stringify(text)
    .replace(/\\u([0-9a-f]{4})/g, (_, code: string) => escape(code))
    .replace(/[\u007f-\uffff]/g, (char) => escape(char.charCodeAt(0).toString(16)));
}

/** The value of `--output`. */
export function outputFormat(name: string | undefined, exitCode = 1): "human" | "json" {
  if (name === undefined || name === "human") return "human";
  if (name === "json") return "json";
  throw new CommandError(["--output must be used with human or json as argument."], exitCode);
}
