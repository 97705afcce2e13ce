/** Opening, closing and reopening the image of `bdrv io`.  @qemu qemu-io.c: openfile, open_f; qemu-io-cmds.c: reopen_f */

import { BlockBackend } from "../../block/backend.ts";
import { BlockError } from "../../block/errors.ts";
import type { BlockNode } from "../../block/node.ts";
import type { OpenRequest } from "../../block/open.ts";
import { DEFAULT_FLAGS, type OpenFlags, parseCacheMode } from "../../block/open-flags.ts";
import { type Options, parseKeyValues } from "../../block/options.ts";
import type { CliContext } from "../command.ts";
import { CommandFault, type IoCommand, parseArguments, UsageFault } from "./command.ts";
import { changeImage } from "./reopen.ts";
import type { IoSession } from "./session.ts";
import { openSnapshot } from "./snapshot.ts";

/** What `open` and the command line take alike. */
export interface ImageFlags {
  readOnly: boolean;
  /** `-s`: writes go to a temporary overlay. */
  snapshot: boolean;
  copyOnRead: boolean;
  forceShare: boolean;
  direct: boolean;
  noFlush: boolean;
  writethrough: boolean;
  unmap: boolean;
  /** `-i`, `-k` */
  aio: "threads" | "native" | "io_uring";
}

export function defaultFlags(): ImageFlags {
  return {
    readOnly: false,
    snapshot: false,
    copyOnRead: false,
    forceShare: false,
    direct: false,
    noFlush: false,
    // Unlike qemu-img's: without a cache mode every write waits for the disk.
    writethrough: true,
    unmap: true,
    aio: "threads",
  };
}

/** Takes one option that `open` and the command line share. False: it is none of them. */
export function takeImageFlag(flags: ImageFlags, letter: string, value: string): boolean {
  if (letter === "r") flags.readOnly = true;
  else if (letter === "s") flags.snapshot = true;
  else if (letter === "C") flags.copyOnRead = true;
  else if (letter === "U") flags.forceShare = true;
  else if (letter === "n") Object.assign(flags, { direct: true, writethrough: false });
  else if (letter === "k") flags.aio = "native";
  else if (letter === "i") flags.aio = parseAio(value);
  else if (letter === "t") takeCacheMode(flags, value);
  else if (letter === "d") flags.unmap = parseDiscard(value);
  else return false;
  return true;
}

function parseAio(text: string): ImageFlags["aio"] {
  if (text === "threads" || text === "native" || text === "io_uring") return text;
  throw new BlockError("EINVAL", `Invalid aio option: ${text}`);
}

/** @qemu bdrv_parse_discard_flags */
function parseDiscard(text: string): boolean {
  if (text === "on" || text === "unmap") return true;
  if (text === "off" || text === "ignore") return false;
  throw new BlockError("EINVAL", `Invalid discard option: ${text}`);
}

function takeCacheMode(flags: ImageFlags, text: string): void {
  const mode = parseCacheMode(text);
  if (!mode) throw new BlockError("EINVAL", `Invalid cache option: ${text}`);
  Object.assign(flags, mode);
}

/** Options in one string; a word without a value is said to be out of date.  @qemu qemu_opts_parse_noisily */
export function parseOptionString(text: string, { warn }: CliContext): Options {
  const options = parseKeyValues(text);
  for (const word of shortForms(text)) {
    const [name, value] = word.startsWith("no") ? [word.slice(2), "off"] : [word, "on"];
    warn(`short-form boolean option '${word}' deprecated\nPlease use ${name}=${value} instead`);
  }
  return options;
}

/** The words of an option string that have no `=`. */
function shortForms(text: string): string[] {
  const found: string[] = [];
  for (let rest = text; rest !== ""; ) {
    const name = /^[^=,]*/.exec(rest)?.[0] ?? "";
    if (rest[name.length] !== "=") found.push(name);
    const value = rest[name.length] === "=" ? (/^(?:[^,]|,,)*/.exec(rest.slice(name.length))?.[0] ?? "") : "";
    rest = rest.slice(name.length + value.length + 1);
  }
  return found;
}

/** Opens the image of the session; what goes wrong is printed. */
export async function openImage(
  session: IoSession,
  filename: string | undefined,
  flags: ImageFlags,
  options: Options,
): Promise<boolean> {
  const { context } = session;
  if (session.image) {
    context.error("file open already, try 'help close'");
    return false;
  }
  const what = filename === undefined ? "can't open" : `can't open device ${filename}`;
  try {
    if (flags.copyOnRead && flags.readOnly)
      throw new BlockError("EINVAL", "Can't use copy-on-read on read-only device");
    const request: OpenRequest = {
      filename,
      options,
      flags: openFlags(flags),
      environment: context.environment,
    };
    session.image = {
      backend: await (flags.snapshot ? openSnapshot(request) : BlockBackend.open(request)),
      request: flags.snapshot ? undefined : request,
      writethrough: flags.writethrough,
      holdsWrite: !flags.readOnly,
      copyOnRead: flags.copyOnRead,
    };
  } catch (error) {
    context.report(error, what);
    return false;
  }
  const refused = refusal(session.image.backend.node, flags);
  if (refused === undefined) return true;
  context.error(`${what}: ${refused}`);
  await session.close();
  return false;
}

function openFlags(flags: ImageFlags): OpenFlags {
  const { readOnly, forceShare, direct, noFlush, unmap, aio } = flags;
  const nativeAio = aio === "native";
  return { ...DEFAULT_FLAGS, readOnly, forceShare, direct, noFlush, unmap, nativeAio };
}

/** What shows only when the image is open; undefined: all is well. */
function refusal(node: BlockNode, { readOnly }: ImageFlags): string | undefined {
  // By its options, where the command line did not say so.
  if (!readOnly && node.readOnly) return "Block node is read-only";
  return undefined;
}

export const open: IoCommand = {
  name: "open",
  alias: "o",
  minArgs: 1,
  withoutImage: true,
  args: "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
  summary: "open the file specified by path",
  help: `
 opens a new file in the requested mode

 Example:
 'open -n -o driver=raw /tmp/data' - opens raw data file read-write, uncached

 Opens a file for subsequent use by all of the other qemu-io commands.
 -r, -- open file read-only
 -s, -- use snapshot file
 -C, -- use copy-on-read
 -n, -- disable host cache, short for -t none
 -U, -- force shared permissions
 -k, -- use kernel AIO implementation (Linux only, prefer use of -i)
 -i, -- use AIO mode (threads, native or io_uring)
 -t, -- use the given cache mode for the image
 -d, -- use the given discard mode for the image
 -o, -- options to be given to the block driver`,
  async run(session, argv) {
    const flags = defaultFlags();
    let given: Options = new Map();
    const { options, operands } = parseArguments(argv, "snCro:ki:t:d:U");
    for (const { name, value } of options) {
      if (name === "o") {
        if (session.imageOpts) throw new CommandFault("--image-opts and 'open -o' are mutually exclusive");
        given = new Map([...given, ...parseOptionString(value, session.context)]);
      } else takeImageFlag(flags, name, value);
    }
    const [operand, ...more] = operands;
    if (more.length > 0) throw new UsageFault();
    if (session.imageOpts && operand !== undefined)
      return openImage(session, undefined, flags, parseOptionString(operand, session.context));
    return openImage(session, operand, flags, given);
  },
};

export const close: IoCommand = {
  name: "close",
  alias: "c",
  minArgs: 0,
  maxArgs: 0,
  summary: "close the current open file",
  async run(session) {
    await session.close();
    return true;
  },
};

export const reopen: IoCommand = {
  name: "reopen",
  minArgs: 0,
  args: "[(-r|-w)] [-c cache] [-o options]",
  summary: "reopens an image with new options",
  help: `
 Changes the open options of an already opened image

 Example:
 'reopen -o lazy-refcounts=on' - activates lazy refcount writeback on a qcow2 image

 -r, -- Reopen the image read-only
 -w, -- Reopen the image read-write
 -c, -- Change the cache mode to the given value
 -o, -- Changes block driver options (cf. 'open' command)
`,
  async run(session, argv) {
    let readOnly: boolean | undefined;
    let cache: ReturnType<typeof parseCacheMode>;
    let given: Options = new Map();
    const { options, operands } = parseArguments(argv, "c:o:rw");
    for (const { name, value } of options) {
      if (name === "c") {
        cache = parseCacheMode(value);
        if (!cache) throw new BlockError("EINVAL", `Invalid cache option: ${value}`);
      } else if (name === "o") given = new Map([...given, ...parseOptionString(value, session.context)]);
      else if (readOnly !== undefined) throw new BlockError("EINVAL", "Only one -r/-w option may be given");
      else readOnly = name === "r";
    }
    if (operands.length > 0) throw new UsageFault();
    await session.drain();
    await changeImage(session.opened, readOnly, cache, given);
    return true;
  },
};
