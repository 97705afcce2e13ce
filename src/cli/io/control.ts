/** Commands about the run itself: help, sleeping, signals, waiting for requests, blkdebug's breakpoints.  @qemu qemu-io-cmds.c */

import { setTimeout as delay } from "node:timers/promises";
import type { DebugOps } from "../../block/driver.ts";
import { BlockError } from "../../block/errors.ts";
import type { BlockNode } from "../../block/node.ts";
import { CommandFault, type IoCommand, usageLine } from "./command.ts";
import { parseBytes, parseLong } from "./numbers.ts";
import type { IoSession } from "./session.ts";

export const help: IoCommand = {
  name: "help",
  alias: "?",
  minArgs: 0,
  maxArgs: 1,
  withoutImage: true,
  args: "[command]",
  summary: "help for one or all commands",
  async run(session, [, name]) {
    const { stdout } = session.context;
    if (name === undefined) {
      for (const command of session.commands) stdout.write(usageLine(command.name, command));
      stdout.write("\nUse 'help commandname' for extended help.\n");
      return true;
    }
    const command = session.findCommand(name);
    if (!command) throw new CommandFault(`command ${name} not found`);
    stdout.write(usageLine(name, command));
    if (command.help !== undefined) stdout.write(`${command.help}\n`);
    return true;
  },
};

export const quit: IoCommand = {
  name: "quit",
  alias: "q",
  minArgs: 0,
  withoutImage: true,
  summary: "exit the program",
  async run(session) {
    session.ended = true;
    return true;
  },
};

export const sleep: IoCommand = {
  name: "sleep",
  minArgs: 1,
  maxArgs: 1,
  withoutImage: true,
  summary: "waits for the given value in milliseconds",
  async run({ aio }, argv) {
    const text = argv[1] as string;
    const milliseconds = parseLong(text);
    if (milliseconds === undefined || milliseconds < 0n)
      throw new CommandFault(`${text} is not a valid number`);
    // qemu-io counts nanoseconds in 64 bits: beyond 292 years it does not wait at all.
    const nanoseconds = BigInt.asIntN(64, milliseconds * 1_000_000n);
    await aio.poll(wait(Number(nanoseconds) / 1e6));
    return true;
  },
};

/** The longest that a timer of Node takes. */
const MAX_TIMER = 2 ** 31 - 1;

async function wait(milliseconds: number): Promise<void> {
  for (let left = milliseconds; left > 0; left -= MAX_TIMER) await delay(Math.min(left, MAX_TIMER));
}

export const aioFlush: IoCommand = {
  name: "aio_flush",
  minArgs: 0,
  maxArgs: 0,
  summary: "completes all outstanding aio requests",
  async run(session) {
    await session.drain();
    return true;
  },
};

/** The C library's number of signals. */
const SIGNALS = 65;

export const sigraise: IoCommand = {
  name: "sigraise",
  minArgs: 1,
  maxArgs: 1,
  withoutImage: true,
  args: "signal",
  summary: "raises a signal",
  help: `
 raises the given signal

 Example:
 'sigraise 15' - raises SIGTERM

 Invokes raise(signal), where "signal" is the mandatory integer argument
 given to sigraise.
`,
  async run(session, argv) {
    const text = argv[1] as string;
    const signal = parseBytes(session, text);
    if (signal > SIGNALS)
      throw new CommandFault(`signal argument '${text}' is too large to be a valid signal`);
    session.context.stdout.flush();
    raise(signal);
    return true;
  },
};

export const abort: IoCommand = {
  name: "abort",
  minArgs: 0,
  maxArgs: 0,
  withoutImage: true,
  summary: "simulate a program crash using abort(3)",
  async run() {
    // What stdout has not passed on is lost, as in a crash.
    raise(SIGABRT);
    return true;
  },
};

const SIGABRT = 6;

/** Signals 32 and 33 are the C library's own, and 65 is none. */
function raise(signal: number): void {
  if (signal === 32 || signal === 33 || signal === SIGNALS) return;
  // No handler of ours may stand between the signal and its default action.
  for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.removeAllListeners(name);
  process.kill(process.pid, signal);
}

export const breakpoint: IoCommand = {
  name: "break",
  minArgs: 2,
  maxArgs: 2,
  args: "event tag",
  summary: "sets a breakpoint on event and tags the stopped request as tag",
  async run(session, [, event = "", tag = ""]) {
    debug(session, "Could not set breakpoint", (ops) => ops.addBreakpoint(event, tag));
    return true;
  },
};

export const removeBreak: IoCommand = {
  name: "remove_break",
  minArgs: 1,
  maxArgs: 1,
  args: "tag",
  summary: "remove a breakpoint by tag",
  async run(session, [, tag = ""]) {
    debug(session, `Could not remove breakpoint ${tag}`, (ops) => ops.removeBreakpoint(tag));
    await turn();
    return true;
  },
};

export const resume: IoCommand = {
  name: "resume",
  minArgs: 1,
  maxArgs: 1,
  args: "tag",
  summary: "resumes the request tagged as tag",
  async run(session, [, tag = ""]) {
    debug(session, "Could not resume request", (ops) => ops.resume(tag));
    await turn();
    return true;
  },
};

/** How often a request that is to stop is looked for. */
const WAIT_BREAK_MS = 1;

export const waitBreak: IoCommand = {
  name: "wait_break",
  minArgs: 1,
  maxArgs: 1,
  args: "tag",
  summary: "waits for the suspension of a request",
  async run({ aio, backend, context }, [, tag = ""]) {
    const suspended = async () => {
      while (!debugOps(backend.node)?.isSuspended(tag))
        await delay(WAIT_BREAK_MS, undefined, { signal: context.signal });
    };
    await aio.poll(suspended());
    return true;
  },
};

/** blkdebug stands at the image itself or below it.  @qemu bdrv_debug_breakpoint */
function debugOps(root: BlockNode): DebugOps | undefined {
  for (let node: BlockNode | undefined = root; node; node = node.primary?.node)
    if (node.ops.debug) return node.ops.debug;
  return undefined;
}

function debug(session: IoSession, failure: string, action: (ops: DebugOps) => void): void {
  try {
    const ops = debugOps(session.backend.node);
    if (!ops) throw new BlockError("ENOTSUP");
    action(ops);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new CommandFault(`${failure}: ${error.message}`);
  }
}

/** A request that was let go says so before the next command. */
function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
