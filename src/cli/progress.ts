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
    this.#output.write(`    (${percent.toFixed(2)}/100%)\r`);
    this.#output.flush();
  }
}
