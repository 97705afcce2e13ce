/** The benchmark's measuring: what a command printed, how it ended, and memory that is its own. */

import assert from "node:assert/strict";
import { after, describe, test } from "node:test";
import { tempDir } from "../support/temp.ts";
import { missing } from "../support/tools.ts";
import { measure } from "./measure.ts";

const MIB = 2 ** 20;
const skip = missing("perl") || (process.platform === "linux" ? false : "measures on Linux only");

describe("measure", { skip }, () => {
  const scratch = tempDir({ after });

  test("gives output and exit code", () => {
    const { stdout, stderr, exitCode } = measure(["sh", "-c", "echo out; echo err >&2; exit 3"], scratch);
    assert.deepEqual({ stdout, stderr, exitCode }, { stdout: "out\n", stderr: "err\n", exitCode: 3 });
  });

  test("gives a signal as a shell does", () => {
    assert.equal(measure(["sh", "-c", "kill -KILL $$"], scratch).exitCode, 137);
  });

  test("says that there is no such command", () => {
    const { stderr, exitCode } = measure(["bdrv-no-such-command"], scratch);
    assert.notEqual(exitCode, 0);
    assert.match(stderr, /^bdrv-no-such-command: No such file/);
  });

  test("memory and time are the command's, without ours", () => {
    const ours = Buffer.alloc(64 * MIB, 1);
    const idle = measure(["true"], scratch).usage;
    assert.ok(idle.peakRssBytes > 0 && idle.peakRssBytes < 32 * MIB, `true: ${idle.peakRssBytes} bytes`);
    const busy = measure([process.execPath, "-e", `Buffer.alloc(${ours.length}, 1)`], scratch).usage;
    assert.ok(busy.peakRssBytes > ours.length, `node: ${busy.peakRssBytes} bytes`);
    assert.ok(busy.wallSeconds > 0 && busy.cpuSeconds > 0);
  });
});
