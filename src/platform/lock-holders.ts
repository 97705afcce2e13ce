/**
 * Which processes hold locks on a file. The kernel's list of locks does not say it of locks that belong to an open
 * file; but each process shows what its descriptors lead to, and which locks they hold (proc_pid_fdinfo(5)).
 */

import fs from "node:fs";

export interface LockHolder {
  readonly pid: number;
  /** The name of its program, cut off after 15 characters. */
  readonly name: string;
}

/** Those that may be looked at: one's own, for root all. None where there is no /proc. */
export function lockHolders(filename: string): LockHolder[] {
  try {
    const { dev, ino } = fs.statSync(filename, { bigint: true });
    return fs
      .readdirSync("/proc")
      .filter((name) => /^\d+$/.test(name) && holdsLock(`/proc/${name}`, dev, ino))
      .map((name) => ({ pid: Number(name), name: fs.readFileSync(`/proc/${name}/comm`, "utf8").trimEnd() }));
  } catch {
    return []; // No /proc, or a process that has just ended: it is not in the way any more.
  }
}

function holdsLock(process: string, dev: bigint, ino: bigint): boolean {
  try {
    return fs.readdirSync(`${process}/fd`).some((fd) => {
      const stat = fs.statSync(`${process}/fd/${fd}`, { bigint: true, throwIfNoEntry: false });
      if (stat?.dev !== dev || stat.ino !== ino) return false;
      return fs.readFileSync(`${process}/fdinfo/${fd}`, "latin1").includes("OFDLCK");
    });
  } catch {
    return false; // Another user's, or gone meanwhile.
  }
}
