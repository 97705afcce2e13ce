/** Commands about the open image as a whole: its length, its allocation, what it says of itself, discards, flushes.  @qemu qemu-io-cmds.c */

import type { BlockBackend } from "../../block/backend.ts";
import { blockStatus } from "../../block/block-status.ts";
import type { Prealloc } from "../../block/driver.ts";
import { BlockError } from "../../block/errors.ts";
import { driverInfo } from "../../block/info.ts";
import { SECTOR_SIZE } from "../../block/units.ts";
import { humanMembers } from "../info-text.ts";
import { CommandFault, type IoCommand, parseArguments, UsageFault } from "./command.ts";
import { formatBytes, formatHex, parseBytes, parseLength } from "./numbers.ts";
import { now, reportRequest } from "./report.ts";

export const length: IoCommand = {
  name: "length",
  alias: "l",
  minArgs: 0,
  maxArgs: 0,
  summary: "gets the length of the current file",
  async run({ backend, context }) {
    context.stdout.write(`${formatBytes(await named("getlength: ", backend.getLength()))}\n`);
    return true;
  },
};

export const truncate: IoCommand = {
  name: "truncate",
  alias: "t",
  minArgs: 1,
  maxArgs: 3,
  writes: true,
  args: "[-m prealloc_mode] off",
  summary: "truncates the current file at the given offset",
  async run(session, argv) {
    let prealloc: Prealloc = "off";
    const { options, operands } = parseArguments(argv, "m:");
    for (const { value } of options) prealloc = parsePrealloc(value);
    const [lengthText] = operands;
    // qemu-io crashes here, and takes no notice of more than one.
    if (lengthText === undefined) throw new UsageFault();
    const bytes = parseBytes(session, lengthText, firstAfterGetopt(argv));
    await session.aio.poll(session.backend.truncate(bytes, prealloc));
    return true;
  },
};

/** What getopt leaves behind the command's name, options sorted to the front: qemu-io names it for a bad length. */
function firstAfterGetopt([, ...args]: readonly string[]): string {
  return args.find((word) => word.startsWith("-") && word !== "-") ?? (args[0] as string);
}

const PREALLOC_MODES: readonly Prealloc[] = ["off", "metadata", "falloc", "full"];

function parsePrealloc(text: string): Prealloc {
  const mode = PREALLOC_MODES.find((name) => name === text);
  if (!mode) throw new BlockError("EINVAL", `Invalid preallocation mode '${text}'`);
  return mode;
}

export const discard: IoCommand = {
  name: "discard",
  alias: "d",
  minArgs: 2,
  writes: true,
  args: "[-Cq] off len",
  summary: "discards a number of bytes at a specified offset",
  help: `
 discards a range of bytes from the given offset

 Example:
 'discard 512 1k' - discards 1 kilobyte from 512 bytes into the file

 Discards a segment of the currently open file.
 -C, -- report statistics in a machine parsable format
 -q, -- quiet mode, do not show I/O statistics
`,
  async run(session, argv) {
    const style = { quiet: false, machine: false };
    const { options, operands } = parseArguments(argv, "Cq");
    for (const { name } of options) style[name === "q" ? "quiet" : "machine"] = true;
    const [offsetText, bytesText, ...more] = operands;
    if (offsetText === undefined || bytesText === undefined || more.length > 0) throw new UsageFault();
    const offset = parseBytes(session, offsetText);
    const bytes = parseLength(session, bytesText);
    const { stdout, signal } = session.context;
    const start = now();
    await named("discard failed: ", session.aio.poll(session.backend.discard(offset, bytes, { signal })));
    reportRequest(stdout, "discard", now() - start, offset, bytes, style);
    return true;
  },
};

export const flush: IoCommand = {
  name: "flush",
  alias: "f",
  minArgs: 0,
  maxArgs: 0,
  summary: "flush all in-core file state to disk",
  async run({ backend, aio }) {
    try {
      // Where nothing was written since the last one, qemu-io does not wait.
      const { node } = backend;
      const flushed = backend.flush();
      await (node.writeGeneration > node.flushedGeneration ? aio.poll(flushed) : flushed);
    } catch (error) {
      // It failed in silence: only the exit code tells.
      if (!(error instanceof BlockError)) throw error;
      return false;
    }
    return true;
  },
};

/** A failure of `request` is told with `prefix` before it. */
async function named<T>(prefix: string, request: Promise<T>): Promise<T> {
  try {
    return await request;
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new CommandFault(prefix + error.message);
  }
}

export const alloc: IoCommand = {
  name: "alloc",
  alias: "a",
  minArgs: 1,
  maxArgs: 2,
  args: "offset [count]",
  summary: "checks if offset is allocated in the file",
  async run(session, argv) {
    const offset = parseBytes(session, argv[1] as string);
    let left = argv[2] === undefined ? SECTOR_SIZE : parseBytes(session, argv[2]);
    let checked = 0;
    let allocated = 0;
    while (left > 0) {
      const asked = allocatedRun(session.backend, offset + checked, left);
      const run = await named("is_allocated failed: ", asked);
      if (run.bytes === 0) break;
      if (run.allocated) allocated += run.bytes;
      checked += run.bytes;
      left -= run.bytes;
    }
    session.context.stdout.write(
      `${allocated}/${checked} bytes allocated at offset ${formatBytes(offset)}\n`,
    );
    return true;
  },
};

export const map: IoCommand = {
  name: "map",
  minArgs: 0,
  maxArgs: 0,
  args: "",
  summary: "prints the allocated areas of a file",
  async run({ backend, context }) {
    const end = await backend.getLength();
    let offset = 0;
    while (offset < end) {
      const run = await allocatedRun(backend, offset, end - offset).catch((error: unknown) => {
        throw BlockError.wrap("Failed to get allocation status", error);
      });
      if (run.bytes === 0) throw new BlockError("EIO", "Unexpected end of image");
      const state = run.allocated ? "    allocated" : "not allocated";
      context.stdout.write(
        `${formatBytes(run.bytes)} (${formatHex(run.bytes)}) bytes ${state} ` +
          `at offset ${formatBytes(offset)} (${formatHex(offset)})\n`,
      );
      offset += run.bytes;
    }
    return true;
  },
};

/** How far from `offset` the top layer has, or has not, content of its own; 0 bytes at the end.  @qemu map_is_allocated */
async function allocatedRun(
  backend: BlockBackend,
  offset: number,
  bytes: number,
): Promise<{ readonly allocated: boolean; readonly bytes: number }> {
  const status = (at: number, left: number) =>
    backend.run((co) => blockStatus(co, backend.node, false, at, left));
  const first = await status(offset, bytes);
  let length = first.bytes;
  while (length > 0 && length < bytes) {
    const next = await status(offset + length, bytes - length);
    if (next.bytes === 0 || next.allocated !== first.allocated) break;
    length += next.bytes;
  }
  return { allocated: first.allocated, bytes: length };
}

export const info: IoCommand = {
  name: "info",
  alias: "i",
  minArgs: 0,
  maxArgs: 0,
  summary: "prints information about the current file",
  async run({ backend, context: { stdout } }) {
    const { driver, ops } = backend.node;
    stdout.write(`format name: ${driver.formatName}\n`);
    // A protocol has a name of its own for filenames.
    if (driver.kind !== "format" && driver.prefix !== undefined)
      stdout.write(`format name: ${driver.prefix}\n`);
    const geometry = await backend.run((co) => driverInfo(co, backend.node));
    if (!geometry) return false;
    stdout.write(`cluster size: ${formatBytes(geometry.clusterSize ?? 0)}\n`);
    stdout.write(`vm state offset: ${formatBytes(geometry.vmStateOffset ?? 0)}\n`);
    const specific = await backend.run(async (co) => ops.getSpecificInfo?.(co));
    if (specific && Object.keys(specific.data).length > 0)
      stdout.write(`Format specific information:\n${humanMembers(specific.data, 1).join("\n")}\n`);
    return true;
  },
};
