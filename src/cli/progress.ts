/** The progress line of `-p`: "    (12.34/100%)" and a carriage return, in steps of a percent or what is asked for.  @qemu qemu-progress.c */

import type { Output } from "./output.ts";

export class Progress {
  readonly #output: Output | undefined;
  readonly #stepPercent: number;
  #shown = 0;

  /** Shows 0 at once; nothing is ever shown where there is no `output`. */
  constructor(output: Output | undefined, stepPercent = 1) {
    this.#output = output;
    this.#stepPercent = stepPercent;
    this.#show(0);
  }

  update(done: number, total: number): void {
    const percent = total > 0 ? (done / total) * 100 : 0;
    if (percent - this.#shown >= this.#stepPercent || (percent >= 100 && this.#shown < 100))
      this.#show(percent);
  }

  /** The line shows 100 % if all went well, and ends. */
  end(succeeded: boolean): void {
    if (succeeded) this.#show(100);
    this.#output?.write("\n");
  }

  #show(percent: number): void {
    this.#shown = percent;
    if (!this.#output) return;
    this.#output.write(`    (${twoDigits(percent)}/100%)\r`);
    this.#output.flush();
  }
}

/** As printf has it: halfway between two, the even one; toFixed takes the larger. */
function twoDigits(percent: number): string {
  const eighths = percent * 8;
  const isHalfway = Number.isInteger(eighths) && eighths % 2 === 1;
  if (!isHalfway) return percent.toFixed(2);
  const below = Math.floor(percent * 100);
  return ((below % 2 === 0 ? below : below + 1) / 100).toFixed(2);
}
