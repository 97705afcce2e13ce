/** Commands from stdin: a script, or a person at a terminal.  @qemu qemu-io.c: command_loop, readline */

import readline from "node:readline";
import type { CliContext } from "../command.ts";
import { runLine } from "./command.ts";
import type { IoSession } from "./session.ts";

/** A longer line counts as several.  @qemu MAXREADLINESZ, without its zero byte */
const MAX_LINE_BYTES = 1023;

const NEWLINE = 10;

/** Runs commands until `quit` or the end of the input. False: one has failed. */
export async function runScript(session: IoSession): Promise<boolean> {
  const input = session.context.stdin();
  const isTerminal = "isTTY" in input && input.isTTY === true;
  return isTerminal ? runTerminal(session, input) : runLines(session, input);
}

async function runLines(session: IoSession, input: NodeJS.ReadableStream): Promise<boolean> {
  const { stdout, program } = session.context;
  const prompt = () => {
    stdout.write(`${program}> `);
    stdout.flush();
  };
  const chunks = input[Symbol.asyncIterator]();
  let rest = Buffer.alloc(0);
  let atEnd = false;
  let succeeded = true;
  prompt();
  while (!session.ended) {
    const length = lineLength(rest, atEnd);
    if (length > 0) {
      const line = lineText(rest.subarray(0, length));
      rest = rest.subarray(length);
      if (!(await runLine(session, line))) succeeded = false;
      if (!session.ended) prompt();
    } else if (atEnd) break;
    else {
      const next = await session.aio.poll(chunks.next());
      if (next.done) atEnd = true;
      else rest = Buffer.concat([rest, Buffer.from(next.value)]);
    }
  }
  return succeeded;
}

/** Bytes of the first line with its newline; 0: there is no whole one. */
function lineLength(bytes: Uint8Array, atEnd: boolean): number {
  const newline = bytes.subarray(0, MAX_LINE_BYTES).indexOf(NEWLINE);
  if (newline >= 0) return newline + 1;
  return atEnd || bytes.length >= MAX_LINE_BYTES ? Math.min(bytes.length, MAX_LINE_BYTES) : 0;
}

/** Without its newline, and only up to a zero byte, as C takes it. */
function lineText(bytes: Uint8Array): string {
  const zero = bytes.indexOf(0);
  const text = Buffer.from(zero < 0 ? bytes : bytes.subarray(0, zero)).toString();
  return text.endsWith("\n") ? text.slice(0, -1) : text;
}

/** With editing, history and completion of command names. */
async function runTerminal(session: IoSession, input: NodeJS.ReadableStream): Promise<boolean> {
  const names = session.commands.flatMap(({ name, alias }) => (alias === undefined ? [name] : [name, alias]));
  const editor = readline.createInterface({
    input,
    output: process.stdout,
    terminal: true,
    prompt: `${session.context.program}> `,
    completer: (typed: string) => [
      names.filter((name) => name.startsWith(typed)).map((name) => `${name} `),
      typed,
    ],
  });
  // The editor takes the terminal's keys; this one means the process.
  editor.on("SIGINT", () => process.kill(process.pid, "SIGINT"));
  let succeeded = true;
  try {
    editor.prompt();
    const lines = editor[Symbol.asyncIterator]();
    while (!session.ended) {
      const next = await session.aio.poll(lines.next());
      if (next.done) {
        writeEnd(session.context);
        break;
      }
      if (!(await runLine(session, next.value))) succeeded = false;
      if (!session.ended) editor.prompt();
    }
  } finally {
    editor.close();
  }
  return succeeded;
}

/** The shell's prompt goes on a line of its own. */
function writeEnd({ stdout }: CliContext): void {
  stdout.write("\n");
}
