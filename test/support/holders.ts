/** Images that somebody else holds open: qemu-io or qemu-nbd in a process of its own, and what the kernel says of locks. */

import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import path from "node:path";
import { setTimeout } from "node:timers/promises";
import { posix } from "../../src/platform/posix.ts";
import type { Cleanup } from "./temp.ts";

export interface Holder {
  readonly release: () => Promise<void>;
}

/** Has qemu-io open what `args` say until it is released. Throws what it prints if it can't. */
export async function holdWithQemuIo(
  test: Cleanup,
  args: readonly string[],
  directory: string,
): Promise<Holder> {
  const child = spawn("qemu-io", args, { cwd: directory });
  let errors = "";
  child.stderr.on("data", (data) => {
    errors += data;
  });
  const ended = once(child, "close");
  // The answer comes when the image is open.
  child.stdin.write("length\n");
  await Promise.race([once(child.stdout, "data"), ended]);
  if (child.exitCode !== null) throw new Error(`qemu-io ${args.join(" ")}: ${errors}`);
  const release = async () => {
    child.stdin.end();
    await ended;
  };
  test.after(release);
  return { release };
}

/** Has qemu-nbd serve an image until it is released. */
export function holdWithQemuNbd(test: Cleanup, args: readonly string[], directory: string): Holder {
  const pidFile = path.join(directory, "nbd.pid");
  const service = ["--fork", `--pid-file=${pidFile}`, "-k", path.join(directory, "nbd.socket"), "-t"];
  const { status, stderr } = spawnSync("qemu-nbd", [...service, ...args], {
    cwd: directory,
    encoding: "utf8",
  });
  if (status !== 0) throw new Error(`qemu-nbd ${args.join(" ")}: ${stderr}`);
  const pid = Number(fs.readFileSync(pidFile, "utf8"));
  const release = async () => {
    if (isAlive(pid)) process.kill(pid);
    while (isAlive(pid)) await setTimeout(5);
    fs.rmSync(path.join(directory, "nbd.socket"), { force: true });
    fs.rmSync(pidFile, { force: true });
  };
  test.after(release);
  return { release };
}

/** A process that nobody waits for stays in the table after its end, in a container without an init. */
function isAlive(pid: number): boolean {
  try {
    return !/^\d+ \(.*\) Z/.test(fs.readFileSync(`/proc/${pid}/stat`, "utf8"));
  } catch {
    return false;
  }
}

/** The bytes of a file that anybody has locked, in order. */
export function lockedBytes(filename: string): number[] {
  const { ino } = fs.statSync(filename);
  const bytes = new Set<number>();
  for (const line of fs.readFileSync("/proc/locks", "utf8").split("\n")) {
    const [, kind, , , , file = "", first, last] = line.split(/\s+/);
    if (kind !== "OFDLCK" || !file.endsWith(`:${ino}`)) continue;
    for (let byte = Number(first); byte <= Number(last); byte++) bytes.add(byte);
  }
  return [...bytes].sort((one, other) => one - other);
}

/** For node:test's `skip`: the reason where locks are not to be had or to be seen; `directory` is where files are made. */
export function noLocks(directory: string): string | false {
  const filename = path.join(directory, "lock-probe");
  const fd = fs.openSync(filename, "w+");
  try {
    if (!posix().ofdLock(fd, "read", 7, 1)) return "files can't be locked here";
    return lockedBytes(filename).join() === "7"
      ? false
      : "the kernel does not list locks by the files' numbers here";
  } catch (error) {
    return `no locks to be seen here: ${String(error)}`;
  } finally {
    fs.closeSync(fd);
    fs.rmSync(filename);
  }
}
