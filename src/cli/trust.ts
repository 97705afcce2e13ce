/** `--untrusted` and `--limits`: how far the images of one command line are trusted. */

import { Guard, limitsFrom } from "../block/guard.ts";
import type { OpenEnvironment } from "../block/open.ts";
import { parseKeyValues } from "../block/options.ts";
import type { OptionSpec, ParsedOption } from "./getopt.ts";

/** Every command has them. No option of qemu-img begins like them, so that its abbreviations mean what they mean. */
export const TRUST_OPTIONS: readonly OptionSpec[] = [
  {
    name: "untrusted",
    long: "untrusted",
    help: "Follow nothing that images name, guess no format, set limits",
  },
  {
    name: "limits",
    long: "limits",
    value: "LIMITS",
    help: "Limits of --untrusted: virtual-size=2T,table-size=64M,decompressed=64G,time=300",
  },
];

/** The environment as the options that come by make it; `base` is that of trusted images. */
export class Trust {
  readonly #base: OpenEnvironment;
  #guard: Guard | undefined;
  #environment: OpenEnvironment | undefined;
  #watchdog: { terminate(): Promise<number> } | undefined;

  constructor(base: OpenEnvironment) {
    this.#base = base;
  }

  /** Limits alone are a reason to distrust, too. */
  take({ name, value }: ParsedOption): boolean {
    if (name === "limits") this.#guard = new Guard(limitsFrom(parseKeyValues(value)));
    else if (name !== "untrusted") return false;
    else this.#guard ??= new Guard();
    return true;
  }

  /** Asked for when all options have been taken. */
  get environment(): OpenEnvironment {
    if (!this.#guard) return this.#base;
    if (!this.#environment) {
      this.#environment = { ...this.#base, guard: this.#guard };
      this.#watchdog = startWatchdog(this.#guard.limits.seconds);
    }
    return this.#environment;
  }

  /** The command is through. */
  async end(): Promise<void> {
    await this.#watchdog?.terminate();
  }
}

/** What is still at work so long after its time has not asked the guard in between: a loop of ours. */
const GRACE_SECONDS = 10;

/** Longer timers would fire at once. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/** Another thread ends the process when the time is over, whatever this one does. */
function startWatchdog(seconds: number): { terminate(): Promise<number> } {
  // Not imported: who trusts his images has no use for it.
  const { Worker } = process.getBuiltinModule("node:worker_threads");
  const milliseconds = Math.min((seconds + GRACE_SECONDS) * 1000, MAX_TIMER_MS);
  const text = `bdrv: the untrusted image keeps the command longer than its limit of ${seconds} s\n`;
  const code = `setTimeout(() => {
    require("node:fs").writeSync(2, ${JSON.stringify(text)});
    process.kill(process.pid, "SIGKILL");
  }, ${milliseconds});`;
  const worker = new Worker(code, { eval: true });
  worker.unref();
  return worker;
}
