/** The command's entry: sets up the process, runs the program, and ends with its exit code. */

import { DescriptorOutput } from "./output.ts";
import { main } from "./program.ts";

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

const stdout = new DescriptorOutput(1, true);
const stderr = new DescriptorOutput(2, false);

async function start(): Promise<void> {
  process.on("uncaughtException", crash);
  process.on("unhandledRejection", crash);
  // Made when it is wanted: that takes 0.3 ms.
  let made: AbortController | undefined;
  const abort = () => {
    made ??= new AbortController();
    return made;
  };
  let received: NodeJS.Signals | undefined;
  for (const signal of SIGNALS)
    process.once(signal, () => {
      received = signal;
      abort().abort();
    });
  const progressRequest = { isPending: false };
  // Node's own answer to this signal would be a debugger.
  process.on("SIGUSR1", () => {
    progressRequest.isPending = true;
  });
  const exitCode = await main(process.argv.slice(1), {
    stdout,
    stderr,
    stdin: () => process.stdin,
    get signal() {
      return abort().signal;
    },
    progressRequest,
  });
  stdout.flush();
  // The handler is off by now, so this ends the process as the signal would have, and the shell sees which it was.
  if (received) process.kill(process.pid, received);
  // Whatever still holds the event loop (an idle pipe, a timer) must not keep the command alive.
  process.exit(exitCode);
}

/** An error that is no BlockError is a bug of ours: all that helps to find it is shown. */
function crash(error: unknown): never {
  stdout.flush();
  stderr.write(`${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`);
  process.exit(1);
}

start().catch(crash);
