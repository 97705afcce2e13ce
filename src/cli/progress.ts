/**
 * The progress line of `-p`: "    (12.34/100%)" and a carriage return, in steps of a percent or what is asked for.
 * Without `-p` there is a line on stderr for each SIGUSR1.  @qemu qemu-progress.c
 */

import type { CliContext } from "./command.ts";
import { toFixed } from "./format.ts";

export class Progress {
  readonly #context: CliContext;
  readonly #isShown: boolean;
  readonly #stepPercent: number;
  #shown = 0;
  /** By `advance`. */
  #reached = 0;

  /** Shows 0 at once, if it `isShown`. */
  constructor(context: CliContext, isShown: boolean, stepPercent = 1) {
    this.#context = context;
    this.#isShown = isShown;
    this.#stepPercent = stepPercent;
    if (isShown) this.#show(0);
  }

  /** Somebody wants to see the figures of the next call: for work that has to find them out. */
  get isWanted(): boolean {
    return this.#isShown || (this.#context.progressRequest?.isPending ?? false);
  }

  update(done: number, total: number): void {
    const percent = total > 0 ? (done / total) * 100 : 0;
    this.#pass(percent, percent - this.#shown >= this.#stepPercent || (percent >= 100 && this.#shown < 100));
  }

  /** Goes on by so many percent, counted in single precision as by qemu-img, which repeats the 100.  @qemu qemu_progress_print */
  advance(percent: number): void {
    this.#reached = Math.min(Math.fround(this.#reached + Math.fround(percent)), 100);
    this.#pass(this.#reached, this.#reached > this.#shown + this.#stepPercent || this.#reached === 100);
  }

  /** For work that learns on the way how much it is: also back, and each time that it is at an end.  @qemu qemu_progress_print */
  jump(done: number, total: number): void {
    const percent = Math.min(Math.fround(Math.fround(100 * done) / total), 100);
    const isAtEnd = percent === 0 || percent === 100;
    this.#pass(percent, isAtEnd || Math.abs(percent - this.#shown) > this.#stepPercent);
  }

  /** The line shows 100 % if all went well, and ends. */
  end(succeeded: boolean): void {
    if (succeeded) this.#pass(100, true);
    if (this.#isShown) this.#context.stdout.write("\n");
  }

  #pass(percent: number, isDue: boolean): void {
    if (this.#isShown && isDue) this.#show(percent);
    const { progressRequest: request, stderr } = this.#context;
    if (this.#isShown || !request?.isPending) return;
    request.isPending = false;
    stderr.write(`${line(percent)}\n`);
  }

  #show(percent: number): void {
    this.#shown = percent;
    this.#context.stdout.write(`${line(percent)}\r`);
    this.#context.stdout.flush();
  }
}

function line(percent: number): string {
  return `    (${toFixed(percent, 2)}/100%)`;
}
