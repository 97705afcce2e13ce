/** `read`, `readv` and `aio_read`.  @qemu qemu-io-cmds.c: read_f, readv_f, aio_read_f */

import { BlockError } from "../../block/errors.ts";
import { type IoVector, iovFlatten, iovLength } from "../../block/iov.ts";
import { SECTOR_SIZE } from "../../block/units.ts";
import type { AioOutcome } from "./aio.ts";
import { scratchVector } from "./buffers.ts";
import { CommandFault, type IoCommand, parseArguments, UsageFault } from "./command.ts";
import { parseBytes, parseLength, parseLengths, parsePattern } from "./numbers.ts";
import { dumpBuffer, hasPattern, now, type ReportStyle, reportRequest } from "./report.ts";
import type { IoSession } from "./session.ts";

/** What is done with the bytes that were read. */
interface ReadOptions extends ReportStyle {
  /** `-v` */
  readonly dump: boolean;
  /** `-P`: every byte of the range [start, start + bytes) of the buffer must be this. */
  readonly pattern: number | undefined;
  readonly patternStart: number;
  readonly patternBytes: number;
}

interface ParsedRead extends ReadOptions {
  readonly offset: number;
  readonly bytes: number;
  readonly vmState: boolean;
}

const SUMMARY = "reads a number of bytes at a specified offset";

export const read: IoCommand = {
  name: "read",
  alias: "r",
  minArgs: 2,
  args: "[-abCqv] [-P pattern [-s off] [-l len]] off len",
  summary: SUMMARY,
  help: `
 reads a range of bytes from the given offset

 Example:
 'read -v 512 1k' - dumps 1 kilobyte read from 512 bytes into the file

 Reads a segment of the currently open file, optionally dumping it to the
 standard output stream (with -v option) for subsequent inspection.
 -b, -- read from the VM state rather than the virtual disk
 -C, -- report statistics in a machine parsable format
 -l, -- length for pattern verification (only with -P)
 -p, -- ignored for backwards compatibility
 -P, -- use a pattern to verify read data
 -q, -- quiet mode, do not show I/O statistics
 -s, -- start offset for pattern verification (only with -P)
 -v, -- dump buffer to standard output
`,
  async run(session, argv) {
    const wanted = parseRead(session, argv);
    const { offset, bytes } = wanted;
    const iov = needsContent(wanted) ? Buffer.alloc(bytes) : scratchVector(bytes);
    return timedRead(session, "read", offset, iov, wanted, async () => {
      if (wanted.vmState) await session.backend.snapshots.loadVmState(offset, iov);
      else await session.readInto(offset, iov);
    });
  },
};

export const readv: IoCommand = {
  name: "readv",
  minArgs: 2,
  args: "[-Cqv] [-P pattern] off len [len..]",
  summary: SUMMARY,
  help: `
 reads a range of bytes from the given offset into multiple buffers

 Example:
 'readv -v 512 1k 1k ' - dumps 2 kilobytes read from 512 bytes into the file

 Reads a segment of the currently open file, optionally dumping it to the
 standard output stream (with -v option) for subsequent inspection.
 Uses multiple iovec buffers if more than one byte range is specified.
 -C, -- report statistics in a machine parsable format
 -P, -- use a pattern to verify read data
 -v, -- dump buffer to standard output
 -q, -- quiet mode, do not show I/O statistics
`,
  async run(session, argv) {
    const parsed = parseVectorRead(session, argv, "CP:qv");
    const { offset, iov } = parsed;
    return timedRead(session, "readv", offset, iov, parsed.options, () => session.readInto(offset, iov));
  },
};

export const aioRead: IoCommand = {
  name: "aio_read",
  minArgs: 2,
  args: "[-Ciqv] [-P pattern] off len [len..]",
  summary: "asynchronously reads a number of bytes",
  help: `
 asynchronously reads a range of bytes from the given offset

 Example:
 'aio_read -v 512 1k 1k ' - dumps 2 kilobytes read from 512 bytes into the file

 Reads a segment of the currently open file, optionally dumping it to the
 standard output stream (with -v option) for subsequent inspection.
 The read is performed asynchronously and the aio_flush command must be
 used to ensure all outstanding aio requests have been completed.
 Note that due to its asynchronous nature, this command will be
 considered successful once the request is submitted, independently
 of potential I/O errors or pattern mismatches.
 -C, -- report statistics in a machine parsable format
 -P, -- use a pattern to verify read data
 -i, -- treat request as invalid, for exercising stats
 -v, -- dump buffer to standard output
 -q, -- quiet mode, do not show I/O statistics
`,
  async run(session, argv) {
    const parsed = parseVectorRead(session, argv, "CP:iqv");
    if (parsed.invalid) {
      session.context.stdout.write("injecting invalid read request\n");
      return true;
    }
    await session.aio.add("read", asynchronousRead(session, parsed));
    return true;
  },
};

async function asynchronousRead(session: IoSession, parsed: ParsedVectorRead): Promise<AioOutcome> {
  const { offset, iov, options } = parsed;
  const { stdout } = session.context;
  const start = now();
  try {
    await session.readInto(offset, iov);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    return { failed: true, print: () => stdout.write(`readv failed: ${error.message}\n`) };
  }
  const elapsed = now() - start;
  const print = () => {
    showRead(session, offset, iov, options);
    reportRequest(stdout, "read", elapsed, offset, iovLength(iov), options);
  };
  return { failed: false, print };
}

/** Runs one request that is waited for, and shows how it went. */
async function timedRead(
  session: IoSession,
  name: string,
  offset: number,
  iov: IoVector,
  options: ReadOptions,
  request: () => Promise<void>,
): Promise<boolean> {
  const { stdout } = session.context;
  const start = now();
  try {
    // The vector commands are asynchronous requests in qemu-io, and run its event loop in any case.
    await session.aio.poll(request(), name === "readv");
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new CommandFault(`${name} failed: ${error.message}`);
  }
  const elapsed = now() - start;
  const matches = showRead(session, offset, iov, options);
  reportRequest(stdout, "read", elapsed, offset, iovLength(iov), options);
  return matches;
}

/** Verifies and dumps. False: the bytes are not as expected. */
function showRead(session: IoSession, offset: number, iov: IoVector, options: ReadOptions): boolean {
  if (!needsContent(options)) return true;
  const { stdout } = session.context;
  const { pattern, patternStart, patternBytes } = options;
  const buffer = iovFlatten(iov);
  let matches = true;
  if (
    pattern !== undefined &&
    !hasPattern(buffer.subarray(patternStart, patternStart + patternBytes), pattern)
  ) {
    stdout.write(`Pattern verification failed at offset ${offset + patternStart}, ${patternBytes} bytes\n`);
    matches = false;
  }
  if (options.dump && !options.quiet) dumpBuffer(stdout, buffer, offset);
  return matches;
}

function needsContent({ dump, pattern }: ReadOptions): boolean {
  return dump || pattern !== undefined;
}

function parseRead(session: IoSession, argv: readonly string[]): ParsedRead {
  let quiet = false;
  let machine = false;
  let dump = false;
  let vmState = false;
  let pattern: number | undefined;
  let start: number | undefined;
  let length: number | undefined;
  const { options, operands } = parseArguments(argv, "bCl:pP:qs:v");
  for (const { name, value } of options) {
    if (name === "b") vmState = true;
    else if (name === "C") machine = true;
    else if (name === "l") length = parseBytes(session, value);
    else if (name === "P") pattern = parsePattern(value);
    else if (name === "q") quiet = true;
    else if (name === "s") start = parseBytes(session, value);
    else if (name === "v") dump = true;
  }
  const [offsetText, bytesText, ...more] = operands;
  if (offsetText === undefined || bytesText === undefined || more.length > 0) throw new UsageFault();
  const offset = parseBytes(session, offsetText);
  const bytes = parseLength(session, bytesText);
  if (pattern === undefined && (start !== undefined || length !== undefined)) throw new UsageFault();
  const patternStart = start ?? 0;
  const patternBytes = length ?? bytes - patternStart;
  if (patternBytes < 0 || patternStart + patternBytes > bytes)
    throw new CommandFault("pattern verification range exceeds end of read data");
  if (vmState) checkSectors(offset, bytes);
  return { quiet, machine, dump, vmState, pattern, patternStart, patternBytes, offset, bytes };
}

/** For requests that know only whole sectors. */
export function checkSectors(offset: number, bytes: number): void {
  for (const [name, value] of Object.entries({ offset, count: bytes }))
    if (value % SECTOR_SIZE !== 0)
      throw new CommandFault(`${value} is not a sector-aligned value for '${name}'`);
}

interface ParsedVectorRead {
  readonly offset: number;
  readonly iov: IoVector;
  /** `-i` */
  readonly invalid: boolean;
  readonly options: ReadOptions;
}

function parseVectorRead(session: IoSession, argv: readonly string[], letters: string): ParsedVectorRead {
  let quiet = false;
  let machine = false;
  let dump = false;
  let pattern: number | undefined;
  const { options, operands } = parseArguments(argv, letters);
  const result = (offset: number, iov: IoVector, invalid: boolean): ParsedVectorRead => {
    const patternBytes = iovLength(iov);
    return {
      offset,
      iov,
      invalid,
      options: { quiet, machine, dump, pattern, patternStart: 0, patternBytes },
    };
  };
  for (const { name, value } of options) {
    if (name === "C") machine = true;
    else if (name === "P") pattern = parsePattern(value);
    // Whatever else is on the line is not looked at.
    else if (name === "i") return result(0, [], true);
    else if (name === "q") quiet = true;
    else if (name === "v") dump = true;
  }
  const [offsetText, ...lengthTexts] = operands;
  if (offsetText === undefined || lengthTexts.length === 0) throw new UsageFault();
  const offset = parseBytes(session, offsetText);
  const lengths = parseLengths(session, lengthTexts);
  return result(
    offset,
    lengths.filter((bytes) => bytes > 0).map((bytes) => Buffer.alloc(bytes)),
    false,
  );
}
