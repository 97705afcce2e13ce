/** `bdrv io`: reads and writes an image piece by piece, as qemu-io does.  @qemu qemu-io.c */

import type { CliContext } from "./command.ts";
import { CommandError } from "./command.ts";
import { Getopt, OptionError, type OptionSpec } from "./getopt.ts";
import { runLine } from "./io/command.ts";
import { defaultFlags, type ImageFlags, openImage, parseOptionString, takeImageFlag } from "./io/open.ts";
import { runScript } from "./io/script.ts";
import { IoSession } from "./io/session.ts";
import { ioCommands } from "./io/table.ts";
import { defineObject } from "./objects.ts";
import { TRUST_OPTIONS } from "./trust.ts";

/** In the order in which the C library names those that an abbreviation may mean. */
const OPTIONS: readonly OptionSpec[] = [
  { name: "help", short: "h", long: "help" },
  { name: "version", short: "V", long: "version" },
  { name: "cmd", short: "c", long: "cmd", value: "STRING" },
  { name: "format", short: "f", long: "format", value: "FMT" },
  { name: "r", short: "r", long: "read-only" },
  { name: "s", short: "s", long: "snapshot" },
  { name: "n", short: "n", long: "nocache" },
  { name: "C", short: "C", long: "copy-on-read" },
  { name: "misalign", short: "m", long: "misalign" },
  { name: "k", short: "k", long: "native-aio" },
  { name: "i", short: "i", long: "aio", value: "MODE" },
  { name: "d", short: "d", long: "discard", value: "MODE" },
  { name: "t", short: "t", long: "cache", value: "MODE" },
  { name: "trace", short: "T", long: "trace", value: "OPTIONS" },
  { name: "U", short: "U", long: "force-share" },
  { name: "object", long: "object", value: "OBJECTDEF" },
  { name: "image-opts", long: "image-opts" },
  ...TRUST_OPTIONS,
];

interface IoArguments {
  readonly lines: string[];
  readonly objects: string[];
  readonly flags: ImageFlags;
  format: string | undefined;
  imageOpts: boolean;
  filename: string | undefined;
}

/** Runs one command line of `qemu-io`, without the tool's name, and gives its exit code. */
export async function runIo(args: readonly string[], context: CliContext): Promise<number> {
  let parsed: IoArguments | number;
  try {
    parsed = await parse(args, context);
  } catch (error) {
    if (!(error instanceof OptionError)) throw error;
    context.stderr.write(`${context.program}: ${error.fault.text}\n`);
    context.stdout.write(usage(context.program));
    return 1;
  }
  if (typeof parsed === "number") return parsed;
  for (const definition of parsed.objects) defineObject(definition, context);
  const session = new IoSession(context, ioCommands, parsed.imageOpts);
  // Whoever waits for a request that stands at a breakpoint waits; the process must not end under it.
  const alive = setInterval(() => {}, 2 ** 30);
  try {
    return (await runSession(session, parsed)) ? 0 : 1;
  } finally {
    clearInterval(alive);
  }
}

async function runSession(session: IoSession, parsed: IoArguments): Promise<boolean> {
  if (!(await openFirst(session, parsed))) return false;
  let succeeded = true;
  try {
    for (const line of parsed.lines) {
      if (!(await runLine(session, line))) succeeded = false;
      if (session.ended) break;
    }
    if (parsed.lines.length === 0 && !(await runScript(session))) succeeded = false;
  } finally {
    await session.close();
  }
  return succeeded;
}

async function openFirst(session: IoSession, parsed: IoArguments): Promise<boolean> {
  const { filename, flags, format } = parsed;
  if (filename === undefined) return true;
  if (!parsed.imageOpts)
    return openImage(session, filename, flags, new Map(format === undefined ? [] : [["driver", format]]));
  if (format !== undefined) throw new CommandError(["--image-opts and -f are mutually exclusive"]);
  return openImage(session, undefined, flags, parseOptionString(filename, session.context));
}

/** A number is the exit code of what has been done already. */
async function parse(args: readonly string[], context: CliContext): Promise<IoArguments | number> {
  const parsed: IoArguments = {
    lines: [],
    objects: [],
    flags: defaultFlags(),
    format: undefined,
    imageOpts: false,
    filename: undefined,
  };
  const getopt = new Getopt(context.program, args, OPTIONS, { takeCommon: context.takeTrustOption });
  for (let option = getopt.next(); option; option = getopt.next()) {
    const { name, value } = option;
    if (name === "help") {
      context.stdout.write(usage(context.program));
      return 0;
    }
    if (name === "version") return (await import("./help.ts")).standardOption("version", context);
    if (name === "cmd") parsed.lines.push(value);
    else if (name === "format") parsed.format = value;
    else if (name === "object") parsed.objects.push(value);
    else if (name === "image-opts") parsed.imageOpts = true;
    else if (name === "trace") (await import("./trace.ts")).applyTrace(value, context);
    else takeImageFlag(parsed.flags, name, value);
  }
  const [filename, ...more] = getopt.operands;
  if (more.length > 0) {
    context.stdout.write(usage(context.program));
    return 1;
  }
  parsed.filename = filename;
  return parsed;
}

const TRUST_USAGE = `  --untrusted          follow nothing that images name, guess no format
  --limits=LIMITS      limits of --untrusted
`;

function usage(tool: string): string {
  const program = tool === "bdrv" ? "bdrv io" : tool;
  return `Usage: ${program} [OPTIONS]... [-c STRING]... [file]
QEMU Disk exerciser

  --object OBJECTDEF   define an object such as 'secret' for
                       passwords and/or encryption keys
  --image-opts         treat file as option string
  -c, --cmd STRING     execute command with its arguments
                       from the given string
  -f, --format FMT     specifies the block driver to use
  -r, --read-only      export read-only
  -s, --snapshot       use snapshot file
  -n, --nocache        disable host cache, short for -t none
  -C, --copy-on-read   enable copy-on-read
  -m, --misalign       misalign allocations for O_DIRECT
  -k, --native-aio     use kernel AIO implementation
                       (Linux only, prefer use of -i)
  -i, --aio=MODE       use AIO mode (threads, native or io_uring)
  -t, --cache=MODE     use the given cache mode for the image
  -d, --discard=MODE   use the given discard mode for the image
  -T, --trace [[enable=]<pattern>][,events=<file>][,file=<file>]
                       specify tracing options
                       see qemu-img(1) man page for full description
  -U, --force-share    force shared permissions
${tool === "bdrv" ? TRUST_USAGE : ""}  -h, --help           display this help and exit
  -V, --version        output version information and exit

See '${program} -c help' for information on available commands.

See <https://qemu.org/contribute/report-a-bug> for how to report bugs.
More information on the QEMU project at <https://qemu.org>.
`;
}
