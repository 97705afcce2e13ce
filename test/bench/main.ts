/** `npm run bench`: qemu-img and bdrv in turn at the same jobs, and how they compare. */

import { execFileSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { parseSize } from "../../src/block/options.ts";
import { type BenchImages, makeImages } from "./images.ts";
import { type Format, type Job, jobs } from "./jobs.ts";
import { measure, type Run, type Usage } from "./measure.ts";
import { type JobResult, medianOf, spread, writeReport } from "./report.ts";

const USAGE = `usage: npm run bench -- [--quick] [--size 1G] [--pairs 5] [--job NAME]... [--dir DIR] [--json]
                            [--report]

  --quick      64 MiB and 2 pairs, to see that it works
  --size SIZE  of the file system that is converted; default 2G
  --pairs N    runs of each tool, in turn; default 5
  --job NAME   only these jobs: ${jobs.map(({ name }) => name).join(", ")}
  --dir DIR    make the images there and keep them; default: a temporary directory
  --json       figures of every run, for a program
  --report     put the figures into BENCHMARKS.md and README.md
`;

const BDRV = fileURLToPath(new URL("../../dist/bdrv.cjs", import.meta.url));
class BenchError extends Error {}

function main(): void {
  const settings = readSettings(process.argv.slice(2));
  const scratch = fs.mkdtempSync(path.join(os.tmpdir(), "bdrv-bench-"));
  // process.exit in the handler of a signal would leave gigabytes behind.
  process.on("exit", () => fs.rmSync(scratch, { recursive: true, force: true }));
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => process.exit(1));
  const directory = settings.directory ?? path.join(scratch, "images");
  fs.mkdirSync(directory, { recursive: true });
  const images = makeImages(directory, settings.bytes, (line) => console.error(line));
  const results: JobResult[] = [];
  const failures: string[] = [];
  if (!settings.json) console.log(`${describeMachine(settings.bytes)}\n\n${HEADING}`);
  for (const job of settings.jobs) {
    try {
      const result = runJob(job, images, settings.pairs * (job.repeat ?? 1), scratch);
      results.push(result);
      if (!settings.json) console.log(tableRow(result));
    } catch (error) {
      if (!(error instanceof BenchError)) throw error;
      failures.push(`${job.name}: ${error.message}`);
      if (!settings.json) console.log(`${job.name.padEnd(14)} FAILED`);
    }
  }
  if (settings.json) {
    const machine = describeMachine(settings.bytes);
    console.log(JSON.stringify({ machine, pairs: settings.pairs, results, failures }, undefined, 2));
  }
  if (settings.report) writeReport(new URL("../../", import.meta.url), describeRun(settings), results);
  for (const failure of failures) console.error(failure);
  process.exitCode = failures.length > 0 ? 1 : 0;
}

interface Settings {
  readonly bytes: number;
  readonly pairs: number;
  readonly jobs: readonly Job[];
  readonly directory: string | undefined;
  readonly json: boolean;
  readonly report: boolean;
}

function readSettings(args: readonly string[]): Settings {
  try {
    const { values } = parseArgs({
      args: [...args],
      options: {
        quick: { type: "boolean", default: false },
        size: { type: "string" },
        pairs: { type: "string" },
        job: { type: "string", multiple: true, default: [] },
        dir: { type: "string" },
        json: { type: "boolean", default: false },
        report: { type: "boolean", default: false },
      },
    });
    const pairs = Number(values.pairs ?? (values.quick ? 2 : 5));
    if (!Number.isInteger(pairs) || pairs < 1) throw new Error(`--pairs ${values.pairs} is not a count`);
    const names = values.job.flatMap((list) => list.split(","));
    const unknown = names.find((name) => !jobs.some((job) => job.name === name));
    if (unknown !== undefined) throw new Error(`There is no job ${unknown}`);
    const bytes = parseSize(values.size ?? (values.quick ? "64M" : "2G"));
    if (typeof bytes !== "number") throw new Error(`--size ${values.size} is not a size`);
    if (!fs.existsSync(BDRV)) throw new Error(`${BDRV} is missing: npm run build`);
    return {
      bytes,
      pairs,
      jobs: jobs.filter(({ name }) => names.length === 0 || names.includes(name)),
      directory: values.dir && path.resolve(values.dir),
      json: values.json,
      report: values.report,
    };
  } catch (error) {
    console.error(`${(error as Error).message}\n\n${USAGE}`);
    process.exit(2);
  }
}

/** The machine, and how the run was made. */
function describeRun({ bytes, pairs }: Settings): string {
  const day = new Date().toISOString().slice(0, 10);
  return `${day}; ${describeMachine(bytes)}; ${pairs} pairs, medians.`;
}

/** What is run in turn. */
type Runner = "qemuImg" | "alternative" | "bdrv" | "yardstick" | "start";

/** The command line of a runner; undefined: this job has none. */
function commandOf(
  runner: Runner,
  job: Job,
  images: BenchImages,
  target: string,
): readonly string[] | undefined {
  const [command = "", ...args] = job.args(images, target);
  switch (runner) {
    case "qemuImg":
      return job.baseline?.(images) ?? ["qemu-img", command, ...args];
    case "alternative":
      return job.alternative && ["qemu-img", command, ...job.alternative, ...args];
    case "bdrv":
      if (job.baseline) return [command, ...args];
      return [process.execPath, BDRV, command, ...args];
    case "yardstick":
      return job.yardstick?.(images, target);
    case "start":
      return job.lessStart ? [process.execPath, "-e", "0"] : undefined;
  }
}

/** Runs the tools in turn; their first runs are also compared, and fill the page cache. */
function runJob(job: Job, images: BenchImages, pairs: number, scratch: string): JobResult {
  const target = (runner: Runner) => path.join(scratch, `target-${runner}`);
  const run = (runner: Runner): Run | undefined => {
    const command = commandOf(runner, job, images, target(runner));
    if (!command) return undefined;
    fs.rmSync(target(runner), { force: true });
    if (job.copyOf) fs.copyFileSync(images[job.copyOf], target(runner));
    const result = measure(command, scratch);
    if (result.exitCode !== 0)
      throw new BenchError(`${runner} ends with exit code ${result.exitCode}: ${result.stderr.trim()}`);
    return result;
  };
  const runners: readonly Runner[] = ["qemuImg", "alternative", "bdrv", "yardstick", "start"];
  const usages: Record<Runner, Usage[]> = {
    qemuImg: [],
    alternative: [],
    bdrv: [],
    yardstick: [],
    start: [],
  };
  try {
    const expected = run("qemuImg");
    const actual = run("bdrv");
    const format = job.targetFormat ?? (job.copyOf === "qcow2" ? "qcow2" : job.copyOf && "raw");
    const targetBytes = format && {
      other: fs.statSync(target("qemuImg")).blocks * 512,
      bdrv: fs.statSync(target("bdrv")).blocks * 512,
    };
    const isStrict = !job.args(images, "").includes("-c");
    if (format) compareTargets(format, target("qemuImg"), target("bdrv"), isStrict);
    else if (withoutTimes(expected?.stdout) !== withoutTimes(actual?.stdout))
      throw new BenchError(`the tools print different things:\n${expected?.stdout}\n${actual?.stdout}`);
    for (let pair = 0; pair < pairs; pair++)
      for (const runner of runners) {
        const result = run(runner);
        if (result) usages[runner].push(result.usage);
      }
    return summary(job, usages, targetBytes);
  } finally {
    for (const runner of runners) fs.rmSync(target(runner), { force: true });
  }
}

/** What bench tells of its own time. */
function withoutTimes(output = ""): string {
  return output.replace(/completed in [\d.]+ seconds/, "completed");
}

function summary(
  job: Job,
  { qemuImg, alternative, bdrv, yardstick, start }: Record<Runner, Usage[]>,
  targetBytes: JobResult["targetBytes"] | undefined,
): JobResult {
  const wall = (usages: readonly Usage[]) => medianOf(usages, "wallSeconds");
  const isFaster = alternative.length > 0 && wall(alternative) < wall(qemuImg);
  const best = isFaster ? alternative : qemuImg;
  const ratio = (figure: "wallSeconds" | "cpuSeconds") => {
    const started = medianOf(start, figure);
    return spread(bdrv.map((usage, pair) => (usage[figure] - started) / (best[pair] as Usage)[figure]));
  };
  return {
    name: job.name,
    what: job.what,
    beside: job.baseline ? "bdrv" : "qemu-img",
    lessStart: job.lessStart ?? false,
    other: best,
    alternative: isFaster ? (job.alternative ?? []) : [],
    bdrv,
    wallRatio: ratio("wallSeconds"),
    cpuRatio: ratio("cpuSeconds"),
    ...(yardstick.length > 0 && { yardstickSeconds: wall(yardstick) }),
    ...(targetBytes && { targetBytes }),
  };
}

/** Content by qemu-img compare; a qcow2 of ours must also pass qemu-img check. */
function compareTargets(format: Format, expected: string, actual: string, isStrict: boolean): void {
  const qemuImg = (...args: string[]) => {
    try {
      execFileSync("qemu-img", args, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
    } catch (error) {
      const { stdout, stderr } = error as { readonly stdout?: string; readonly stderr?: string };
      throw new BenchError(`qemu-img ${args.join(" ")}: ${stdout}${stderr}`);
    }
  };
  // Which cluster does not get smaller, and is stored as it is, is up to the codec.
  qemuImg("compare", ...(isStrict ? ["-s"] : []), "-f", format, "-F", format, expected, actual);
  if (format === "qcow2") qemuImg("check", "-q", "-f", format, actual);
}

function describeMachine(bytes: number): string {
  const [version = ""] = execFileSync("qemu-img", ["--version"], { encoding: "utf8" }).split("\n");
  const { model } = os.cpus()[0] ?? { model: "?" };
  return `${version}; node ${process.version}; ${os.availableParallelism()} x ${model}; disk of ${bytes / 2 ** 20} MiB`;
}

const HEADING = [
  "job           ",
  "qemu-img s".padStart(10),
  "bdrv s".padStart(9),
  "ratio (min-max)".padStart(19),
  "CPU s".padStart(17),
  "ratio".padStart(7),
  "peak MiB".padStart(11),
  "size".padStart(6),
].join(" ");

function tableRow({ name, other, bdrv, wallRatio, cpuRatio, ...result }: JobResult): string {
  const { targetBytes, alternative, yardstickSeconds } = result;
  const both = (figure: keyof Usage, show: (value: number) => string) =>
    `${show(medianOf(other, figure))} / ${show(medianOf(bdrv, figure))}`;
  const seconds = (value: number) => value.toFixed(3);
  const mebibytes = (value: number) => (value / 2 ** 20).toFixed(0);
  return [
    name.padEnd(14),
    seconds(medianOf(other, "wallSeconds")).padStart(10),
    seconds(medianOf(bdrv, "wallSeconds")).padStart(9),
    `${wallRatio.median.toFixed(2)} (${wallRatio.min.toFixed(2)}-${wallRatio.max.toFixed(2)})`.padStart(19),
    both("cpuSeconds", seconds).padStart(17),
    cpuRatio.median.toFixed(2).padStart(7),
    both("peakRssBytes", mebibytes).padStart(11),
    (targetBytes ? (targetBytes.bdrv / targetBytes.other).toFixed(2) : "").padStart(6),
    ...(alternative.length > 0 ? [` qemu-img ${alternative.join(" ")}`] : []),
    ...(yardstickSeconds === undefined ? [] : [` cp ${seconds(yardstickSeconds)}`]),
  ].join(" ");
}

main();
