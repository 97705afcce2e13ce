/** What `bdrv io` prints of requests that have ended.  @qemu qemu-io-cmds.c: print_report, dump_buffer */

import type { Output } from "../output.ts";
import { formatBytes, formatTime } from "./numbers.ts";

/** How a request's end is to be shown. */
export interface ReportStyle {
  /** `-q`: not at all. */
  readonly quiet: boolean;
  /** `-C`: numbers between commas. */
  readonly machine: boolean;
}

/** Nanoseconds on the system's monotonic clock, whose zero is the start of the machine. */
export function now(): number {
  return Number(process.hrtime.bigint());
}

/** `verb` is "read", "wrote" or "discard". */
export function reportRequest(
  stdout: Output,
  verb: string,
  nanoseconds: number,
  offset: number,
  bytes: number,
  style: ReportStyle,
): void {
  if (style.quiet) return;
  const seconds = nanoseconds / 1e9;
  const time = formatTime(nanoseconds, style.machine);
  if (style.machine) {
    stdout.write(`${bytes},1,${time},${(bytes / seconds).toFixed(3)},${(1 / seconds).toFixed(3)}\n`);
    return;
  }
  const rate = `${formatBytes(bytes / seconds)}/sec and ${(1 / seconds).toFixed(4)} ops/sec`;
  stdout.write(
    `${verb} ${bytes}/${bytes} bytes at offset ${offset}\n` +
      `${formatBytes(bytes)}, 1 ops; ${time} (${rate})\n`,
  );
}

const LINE_BYTES = 16;

/** Sixteen bytes a line, in hexadecimal and, where they are letters or digits, as they are. */
export function dumpBuffer(stdout: Output, buffer: Uint8Array, offset: number): void {
  for (let start = 0; start < buffer.length; start += LINE_BYTES) {
    const line = buffer.subarray(start, start + LINE_BYTES);
    let hex = "";
    let text = "";
    for (const byte of line) {
      hex += `${byte.toString(16).padStart(2, "0")} `;
      const char = String.fromCharCode(byte);
      text += /[0-9A-Za-z]/.test(char) ? char : ".";
    }
    stdout.write(`${(offset + start).toString(16).padStart(8, "0")}:  ${hex} ${text}\n`);
  }
}

/** Whether every byte of `buffer` is `pattern`. */
export function hasPattern(buffer: Uint8Array, pattern: number): boolean {
  if (buffer.length === 0) return true;
  // The first byte is right, and each other is as the one before it.
  return buffer[0] === pattern && Buffer.compare(buffer.subarray(1), buffer.subarray(0, -1)) === 0;
}
