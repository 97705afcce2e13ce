/** `write`, `writev` and `aio_write`.  @qemu qemu-io-cmds.c: write_f, writev_f, aio_write_f */

import type { RequestOptions } from "../../block/backend.ts";
import { BlockError } from "../../block/errors.ts";
import type { IoVector } from "../../block/iov.ts";
import { MAX_REQUEST_BYTES } from "../../block/units.ts";
import type { AioOutcome } from "./aio.ts";
import { fileVector, patternVector } from "./buffers.ts";
import { CommandFault, type IoCommand, parseArguments, UsageFault } from "./command.ts";
import { parseBytes, parseLengths, parsePattern } from "./numbers.ts";
import { checkSectors } from "./read.ts";
import { now, type ReportStyle, reportRequest } from "./report.ts";
import type { IoSession } from "./session.ts";

/** What is written where nothing else is said. */
const DEFAULT_PATTERN = 0xcd;

const SUMMARY = "writes a number of bytes at a specified offset";

export const write: IoCommand = {
  name: "write",
  alias: "w",
  minArgs: 2,
  writes: true,
  args: "[-bcCfnquz] [-P pattern | -s source_file] off len",
  summary: SUMMARY,
  help: `
 writes a range of bytes from the given offset

 Example:
 'write 512 1k' - writes 1 kilobyte at 512 bytes into the open file

 Writes into a segment of the currently open file, using a buffer
 filled with a set pattern (0xcdcdcdcd).
 -b, -- write to the VM state rather than the virtual disk
 -c, -- write compressed data with blk_write_compressed
 -f, -- use Force Unit Access semantics
 -n, -- with -z, don't allow slow fallback
 -p, -- ignored for backwards compatibility
 -P, -- use different pattern to fill file
 -s, -- use a pattern file to fill the write buffer
 -C, -- report statistics in a machine parsable format
 -q, -- quiet mode, do not show I/O statistics
 -u, -- with -z, allow unmapping
 -z, -- write zeroes using blk_co_pwrite_zeroes
`,
  async run(session, argv) {
    const wanted = parseWrite(session, argv);
    const { offset, bytes, sourceFile, pattern } = wanted;
    let iov: IoVector = [];
    if (sourceFile !== undefined) iov = fileVector(sourceFile, bytes);
    else if (!wanted.zeroes) iov = patternVector(pattern ?? DEFAULT_PATTERN, bytes);
    const { backend } = session;
    const options = requestOptions(session, wanted);
    return timedWrite(session, "write", offset, bytes, wanted, async () => {
      if (wanted.vmState) {
        await backend.snapshots.saveVmState(offset, iov);
        if (session.opened.writethrough) await backend.flush();
      } else if (wanted.zeroes) await backend.writeZeroes(offset, bytes, options);
      else await backend.write(offset, iov, { ...options, compressed: wanted.compressed });
    });
  },
};

export const writev: IoCommand = {
  name: "writev",
  minArgs: 2,
  writes: true,
  args: "[-Cfq] [-P pattern] off len [len..]",
  summary: SUMMARY,
  help: `
 writes a range of bytes from the given offset source from multiple buffers

 Example:
 'writev 512 1k 1k' - writes 2 kilobytes at 512 bytes into the open file

 Writes into a segment of the currently open file, using a buffer
 filled with a set pattern (0xcdcdcdcd).
 -P, -- use different pattern to fill file
 -C, -- report statistics in a machine parsable format
 -f, -- use Force Unit Access semantics
 -q, -- quiet mode, do not show I/O statistics
`,
  async run(session, argv) {
    const given: WriteFlags = { ...NO_FLAGS };
    let pattern = DEFAULT_PATTERN;
    const { options, operands } = parseArguments(argv, "CfqP:");
    for (const { name, value } of options) {
      if (name === "P") pattern = parsePattern(value);
      else setFlag(given, name);
    }
    const [offsetText, ...lengthTexts] = operands;
    if (offsetText === undefined || lengthTexts.length === 0) throw new UsageFault();
    const offset = parseBytes(session, offsetText);
    const { iov, bytes } = vectorOf(session, lengthTexts, pattern);
    return timedWrite(session, "writev", offset, bytes, given, () =>
      session.backend.write(offset, iov, requestOptions(session, given)),
    );
  },
};

export const aioWrite: IoCommand = {
  name: "aio_write",
  minArgs: 2,
  writes: true,
  args: "[-Cfiquz] [-P pattern] off len [len..]",
  summary: "asynchronously writes a number of bytes",
  help: `
 asynchronously writes a range of bytes from the given offset source
 from multiple buffers

 Example:
 'aio_write 512 1k 1k' - writes 2 kilobytes at 512 bytes into the open file

 Writes into a segment of the currently open file, using a buffer
 filled with a set pattern (0xcdcdcdcd).
 The write is performed asynchronously and the aio_flush command must be
 used to ensure all outstanding aio requests have been completed.
 Note that due to its asynchronous nature, this command will be
 considered successful once the request is submitted, independently
 of potential I/O errors or pattern mismatches.
 -P, -- use different pattern to fill file
 -C, -- report statistics in a machine parsable format
 -f, -- use Force Unit Access semantics
 -i, -- treat request as invalid, for exercising stats
 -q, -- quiet mode, do not show I/O statistics
 -u, -- with -z, allow unmapping
 -z, -- write zeroes using blk_aio_pwrite_zeroes
`,
  async run(session, argv) {
    const given: WriteFlags = { ...NO_FLAGS };
    let pattern = DEFAULT_PATTERN;
    const { options, operands } = parseArguments(argv, "CfiqP:uz");
    for (const { name, value } of options) {
      if (name === "P") pattern = parsePattern(value);
      else if (name === "i") {
        // Whatever else is on the line is not looked at.
        session.context.stdout.write("injecting invalid write request\n");
        return true;
      } else setFlag(given, name);
    }
    const [offsetText, ...lengthTexts] = operands;
    if (offsetText === undefined || lengthTexts.length === 0) throw new UsageFault();
    if (given.zeroes && lengthTexts.length !== 1)
      throw new CommandFault("-z supports only a single length parameter");
    if (given.unmap && !given.zeroes) throw new CommandFault("-u requires -z to be specified");
    const offset = parseBytes(session, offsetText);
    const { backend } = session;
    const request = requestOptions(session, given);
    if (given.zeroes) {
      const bytes = parseBytes(session, lengthTexts[0] as string);
      const run = () => backend.writeZeroes(offset, bytes, request);
      // qemu-io forgets to look at the clock here: its figures count from the start of the machine.
      await session.aio.add("write", asynchronousWrite(session, offset, bytes, given, 0, run));
      return true;
    }
    const { iov, bytes } = vectorOf(session, lengthTexts, pattern);
    const run = () => backend.write(offset, iov, request);
    await session.aio.add("write", asynchronousWrite(session, offset, bytes, given, now(), run));
    return true;
  },
};

/** The options without a value, of all three commands. */
interface WriteFlags extends ReportStyle {
  quiet: boolean;
  machine: boolean;
  vmState: boolean;
  compressed: boolean;
  fua: boolean;
  noFallback: boolean;
  unmap: boolean;
  zeroes: boolean;
}

const NO_FLAGS: Readonly<WriteFlags> = {
  quiet: false,
  machine: false,
  vmState: false,
  compressed: false,
  fua: false,
  noFallback: false,
  unmap: false,
  zeroes: false,
};

const FLAG_LETTERS: Readonly<Record<string, keyof WriteFlags>> = {
  b: "vmState",
  c: "compressed",
  C: "machine",
  f: "fua",
  n: "noFallback",
  q: "quiet",
  u: "unmap",
  z: "zeroes",
};

function setFlag(flags: WriteFlags, letter: string): void {
  const name = FLAG_LETTERS[letter];
  if (name) flags[name] = true;
}

interface ParsedWrite extends WriteFlags {
  readonly offset: number;
  readonly bytes: number;
  readonly pattern: number | undefined;
  readonly sourceFile: string | undefined;
}

function parseWrite(session: IoSession, argv: readonly string[]): ParsedWrite {
  const flags: WriteFlags = { ...NO_FLAGS };
  let pattern: number | undefined;
  let sourceFile: string | undefined;
  const { options, operands } = parseArguments(argv, "bcCfnpP:qs:uz");
  for (const { name, value } of options) {
    if (name === "P") pattern = parsePattern(value);
    else if (name === "s") sourceFile = value;
    else setFlag(flags, name);
  }
  const [offsetText, bytesText, ...more] = operands;
  if (offsetText === undefined || bytesText === undefined || more.length > 0) throw new UsageFault();
  const contents = [flags.zeroes, pattern !== undefined, sourceFile !== undefined];
  if (flags.vmState && flags.zeroes) throw new CommandFault("-b and -z cannot be specified at the same time");
  if (flags.fua && (flags.vmState || flags.compressed))
    throw new CommandFault("-f and -b or -c cannot be specified at the same time");
  if (flags.noFallback && !flags.zeroes) throw new CommandFault("-n requires -z to be specified");
  if (flags.unmap && !flags.zeroes) throw new CommandFault("-u requires -z to be specified");
  if (contents.filter(Boolean).length > 1)
    throw new CommandFault("Only one of -z, -P, and -s can be specified at the same time");
  const offset = parseBytes(session, offsetText);
  const bytes = parseBytes(session, bytesText);
  if (bytes > MAX_REQUEST_BYTES && !flags.noFallback)
    throw new CommandFault(`length cannot exceed ${MAX_REQUEST_BYTES} without -n, given ${bytesText}`);
  if (flags.vmState || flags.compressed) checkSectors(offset, bytes);
  return { ...flags, offset, bytes, pattern, sourceFile };
}

function requestOptions(session: IoSession, flags: WriteFlags): RequestOptions {
  return {
    fua: flags.fua || session.opened.writethrough,
    mayUnmap: flags.unmap,
    noFallback: flags.noFallback,
    signal: session.context.signal,
  };
}

/** One buffer for each length. */
function vectorOf(
  session: IoSession,
  texts: readonly string[],
  pattern: number,
): { readonly iov: IoVector; readonly bytes: number } {
  const lengths = parseLengths(session, texts);
  const parts = lengths
    .filter((bytes) => bytes > 0)
    .map((bytes) => patternVector(pattern, bytes))
    .flatMap((iov) => (iov instanceof Uint8Array ? [iov] : iov));
  return { iov: parts, bytes: lengths.reduce((sum, bytes) => sum + bytes, 0) };
}

/** Runs one request that is waited for, and says how it went. */
async function timedWrite(
  session: IoSession,
  name: string,
  offset: number,
  bytes: number,
  style: ReportStyle,
  request: () => Promise<void>,
): Promise<boolean> {
  const start = now();
  try {
    // The vector commands are asynchronous requests in qemu-io, and run its event loop in any case.
    await session.aio.poll(request(), name === "writev");
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new CommandFault(`${name} failed: ${error.message}`);
  }
  reportRequest(session.context.stdout, "wrote", now() - start, offset, bytes, style);
  return true;
}

async function asynchronousWrite(
  session: IoSession,
  offset: number,
  bytes: number,
  style: ReportStyle,
  start: number,
  request: () => Promise<void>,
): Promise<AioOutcome> {
  const { stdout } = session.context;
  try {
    await request();
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    return { failed: true, print: () => stdout.write(`aio_write failed: ${error.message}\n`) };
  }
  const elapsed = now() - start;
  return { failed: false, print: () => reportRequest(stdout, "wrote", elapsed, offset, bytes, style) };
}
