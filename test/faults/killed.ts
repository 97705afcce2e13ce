/** The command as a process that gets a signal at a certain one of its calls on the files of a directory. */

import { watchSyscalls } from "./syscalls.ts";

const { BDRV_TEST_DIRECTORY = "", BDRV_TEST_AT = "0", BDRV_TEST_SIGNAL = "SIGKILL" } = process.env;

/** What the kernel writes in one piece. */
const SECTOR = 512;

const at = Number(BDRV_TEST_AT);
let calls = 0;
let isDue = false;
watchSyscalls(BDRV_TEST_DIRECTORY, ({ kind, bytes }) => {
  if (kind === "read") return undefined;
  calls++;
  // Half of a write is done, and the end comes when the other half is to be.
  const half =
    calls === at && kind === "write" ? bytes - (bytes % SECTOR) - SECTOR * Math.ceil(bytes / SECTOR / 2) : 0;
  if (half > 0) {
    isDue = true;
    return { bytes: half };
  }
  if (calls === at || isDue) process.kill(process.pid, BDRV_TEST_SIGNAL);
  isDue = false;
  return undefined;
});

await import("../../src/cli/main.ts");
