/** Runs cases of one format in worker processes, and holds them to their bounds from outside. */

import { type ChildProcess, spawn } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { BOUNDS } from "./exercise.ts";
import type { Failure, WorkerTask } from "./worker.ts";

export interface FuzzRun {
  readonly format: string;
  readonly seed: number;
  readonly from: number;
  readonly cases: number;
  readonly milliseconds: number;
  /** The image of every case is kept there. */
  readonly keep?: string | undefined;
  readonly onFailure?: (failure: Failure) => void;
}

export interface FuzzResult {
  readonly cases: number;
  readonly failures: readonly Failure[];
  readonly cpuSeconds: number;
  /** Images of batches that ran to their end and could be read. */
  readonly readable: number;
}

/** Cases of one worker: what leaks a little does not add up to a failure. */
const BATCH = 1000;

/** Clock ticks of /proc/PID/stat. */
const TICKS_PER_SECOND = 100;

const POLL_MS = 250;

export async function runFuzz(run: FuzzRun): Promise<FuzzResult> {
  const shm = "/dev/shm";
  const directory = fs.mkdtempSync(path.join(fs.existsSync(shm) ? shm : os.tmpdir(), "bdrv-fuzz-"));
  const failures: Failure[] = [];
  const end = performance.now() + run.milliseconds;
  const last = run.from + run.cases;
  let next = run.from;
  let cpuSeconds = 0;
  let readable = 0;
  const fail = (failure: Failure) => {
    failures.push(failure);
    run.onFailure?.(failure);
  };
  try {
    while (next < last && performance.now() < end) {
      const to = Math.min(last, next + BATCH);
      const task = { format: run.format, seed: run.seed, from: next, to, directory, keep: run.keep };
      const outcome = await runWorker(task, end, fail);
      cpuSeconds += outcome.cpuSeconds;
      readable += outcome.readable ?? 0;
      next = outcome.next;
    }
    return { cases: next - run.from, failures, cpuSeconds, readable };
  } finally {
    fs.rmSync(directory, { recursive: true });
  }
}

/** Until its last case, or until it has to be ended; `next` is the case to go on with. */
async function runWorker(
  task: WorkerTask,
  end: number,
  fail: (failure: Failure) => void,
): Promise<{ next: number; cpuSeconds: number; readable?: number | undefined }> {
  const script = fileURLToPath(new URL("worker.ts", import.meta.url));
  const child = spawn(
    process.execPath,
    ["--import", "tsx", "--enable-source-maps", script, JSON.stringify(task)],
    {
      cwd: path.resolve(import.meta.dirname, "../.."),
      stdio: ["ignore", "pipe", "pipe"],
    },
  );
  let text = "";
  let errors = "";
  child.stdout.on("data", (data: Buffer) => {
    text += data.toString();
  });
  child.stderr.on("data", (data: Buffer) => {
    errors += data.toString();
  });
  const exited = new Promise<string>((resolve) =>
    child.on("close", (code, signal) => resolve(signal ?? String(code))),
  );
  const watch = new Watch(child, path.join(task.directory, "state"));
  let problem: string | undefined;
  let timeIsUp = false;
  const poll = setInterval(() => {
    problem ??= watch.look();
    timeIsUp ||= performance.now() > end;
    if (problem !== undefined || timeIsUp) child.kill("SIGKILL");
  }, POLL_MS);
  const how = await exited;
  clearInterval(poll);
  const at = { case: watch.case ?? task.from, base: "", steps: [] };
  let readable: number | undefined;
  let isTold = false;
  for (const line of text.split("\n").filter((each) => each !== "")) {
    const message = JSON.parse(line) as Failure | { end: number; readable: number };
    if ("end" in message) readable = message.readable;
    else {
      isTold ||= message.case === at.case;
      fail(message);
    }
  }
  if (readable !== undefined) return { next: task.to, cpuSeconds: watch.cpuSeconds, readable };
  if (problem !== undefined) fail({ ...at, problem: `${watch.step}: ${problem}` });
  else if (timeIsUp) return { next: at.case, cpuSeconds: watch.cpuSeconds };
  else if (!isTold) fail({ ...at, problem: `${watch.step}: the process ended by ${how}\n${errors}` });
  return { next: at.case + 1, cpuSeconds: watch.cpuSeconds };
}

/** Looks at a worker by /proc. */
class Watch {
  readonly #child: ChildProcess;
  readonly #state: string;
  #text = "";
  #cpuAtStep = 0;
  cpuSeconds = 0;

  constructor(child: ChildProcess, state: string) {
    this.#child = child;
    this.#state = state;
    fs.rmSync(state, { force: true });
  }

  get case(): number | undefined {
    this.#refresh();
    return this.#text === "" ? undefined : Number.parseInt(this.#text, 10);
  }

  get step(): string {
    return this.#text.replace(/^\d+ /, "");
  }

  #refresh(): boolean {
    const text = fs.existsSync(this.#state) ? fs.readFileSync(this.#state, "latin1").trim() : "";
    const isNew = text !== this.#text;
    this.#text = text;
    return isNew;
  }

  /** What is wrong. */
  look(): string | undefined {
    let stat: readonly string[];
    let pages: number;
    try {
      const directory = `/proc/${this.#child.pid}`;
      stat = fs.readFileSync(`${directory}/stat`, "latin1").split(") ").at(-1)?.split(" ") ?? [];
      pages = Number(fs.readFileSync(`${directory}/statm`, "latin1").split(" ")[1]);
    } catch {
      return undefined;
    }
    this.cpuSeconds = (Number(stat[11]) + Number(stat[12])) / TICKS_PER_SECOND;
    if (this.#refresh()) this.#cpuAtStep = this.cpuSeconds;
    const spent = this.cpuSeconds - this.#cpuAtStep;
    if (spent > BOUNDS.cpuSeconds) return `takes more than ${BOUNDS.cpuSeconds} s of CPU`;
    const rss = pages * 4096;
    return rss > BOUNDS.rssBytes ? `takes ${Math.round(rss / 2 ** 20)} MiB of memory` : undefined;
  }
}
