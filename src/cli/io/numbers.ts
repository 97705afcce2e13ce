/** Numbers as `bdrv io` reads and prints them: sizes, pattern bytes, times.  @qemu qemu-io-cmds.c: cvtnum, cvtstr, timestr */

import { parseSize } from "../../block/options.ts";
import { MAX_REQUEST_BYTES } from "../../block/units.ts";
import { CommandFault } from "./command.ts";
import type { IoSession } from "./session.ts";

const MAX_INT64 = 2n ** 63n - 1n;

/** An offset or length in bytes, with an optional suffix. Throws CommandFault, which says that `named` is wrong. */
export function parseBytes(session: IoSession, text: string, named = text): number {
  const size = parseSize(text);
  if (size === undefined)
    throw new CommandFault(
      `Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- ${named}`,
    );
  // The largest 64-bit number itself is no longer exact as a number of ours.
  const isLargest = /^\s*\+?[0-9]+$/.test(text) && BigInt(text.trim().replace("+", "")) === MAX_INT64;
  if (size === "range" || (size > Number(MAX_INT64) - 1024 && !isLargest))
    throw new CommandFault(`Parsing error: argument too large -- ${named}`);
  if (/^\s*\+?0x[0-9a-f]+[kmgtp]$/i.test(text))
    session.context.warn(`Using a multiplier suffix on hex numbers is deprecated: ${text}`);
  return size;
}

/** The length of one request. */
export function parseLength(session: IoSession, text: string): number {
  const bytes = parseBytes(session, text);
  if (bytes > MAX_REQUEST_BYTES)
    throw new CommandFault(`length cannot exceed ${MAX_REQUEST_BYTES}, given ${text}`);
  return bytes;
}

/** Lengths of the buffers of one request. */
export function parseLengths(session: IoSession, texts: readonly string[]): number[] {
  const lengths: number[] = [];
  let total = 0;
  for (const text of texts) {
    const bytes = parseBytes(session, text);
    if (bytes > MAX_REQUEST_BYTES)
      throw new CommandFault(`Argument '${text}' exceeds maximum size ${MAX_REQUEST_BYTES}`);
    if (total > MAX_REQUEST_BYTES - bytes)
      throw new CommandFault(`The total number of bytes exceed the maximum size ${MAX_REQUEST_BYTES}`);
    total += bytes;
    lengths.push(bytes);
  }
  return lengths;
}

/** A byte's value as strtol reads it: decimal, 0x or 0. */
export function parsePattern(text: string): number {
  const value = parseLong(text);
  if (value === undefined || value < 0n || value > 255n)
    throw new CommandFault(`${text} is not a valid pattern byte`);
  return Number(value);
}

/** A whole number as strtol with base 0 reads it, clamped to 64 bits; undefined if it is none. */
export function parseLong(text: string): bigint | undefined {
  const match = /^[\t\n\v\f\r ]*([+-]?)(0x[0-9a-f]+|0[0-7]*|[1-9][0-9]*)$/i.exec(text);
  if (!match) return undefined;
  const digits = match[2] as string;
  const magnitude = BigInt(/^0[0-7]/.test(digits) ? `0o${digits.slice(1)}` : digits);
  const value = match[1] === "-" ? -magnitude : magnitude;
  if (value > MAX_INT64) return MAX_INT64;
  return value < -MAX_INT64 - 1n ? -MAX_INT64 - 1n : value;
}

const UNITS = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] as const;

/** "1 MiB", "1.500 KiB", "0.665923 bytes".  @qemu cvtstr */
export function formatBytes(value: number): string {
  let unit = "bytes";
  let text = toFixed(value, 6);
  for (const [index, name] of UNITS.entries()) {
    const scale = 1024 ** (index + 1);
    if (value < scale) break;
    unit = name;
    text = toFixed(value / scale, 3);
  }
  const zeroes = text.indexOf(".000");
  return `${zeroes < 0 ? text : text.slice(0, zeroes)} ${unit}`;
}

/** As printf rounds: what lies in the middle goes to the even digit, where Number.toFixed takes the larger. */
function toFixed(value: number, digits: number): string {
  const longer = value.toFixed(digits + 1);
  // A fraction with one digit more that ends in 5 is exact in binary only as a multiple of this.
  const isMiddle = longer.endsWith("5") && Number.isInteger(value * 2 ** (digits + 1));
  return isMiddle && /[02468]5$/.test(longer) ? longer.slice(0, -1) : value.toFixed(digits);
}

export function formatHex(value: number): string {
  return `0x${value.toString(16)}`;
}

const two = (value: number) => String(value).padStart(2, "0");

/** "00.25 sec" below a second where that form is wanted, else "0:00:01.50".  @qemu timestr */
export function formatTime(nanoseconds: number, machine: boolean): string {
  const hundredths = Math.floor(nanoseconds / 1e7);
  const seconds = Math.floor(hundredths / 100);
  const fraction = two(hundredths % 100);
  if (seconds === 0 && !machine) return `00.${fraction} sec`;
  const minutes = Math.floor(seconds / 60);
  return `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${two(seconds % 60)}.${fraction}`;
}
