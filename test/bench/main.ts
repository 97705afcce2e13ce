/** `npm run bench`: qemu-img and bdrv in turn at the same jobs, and how they compare. */

import { execFileSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { parseSize } from "../../src/block/options.ts";
import { type BenchImages, makeImages } from "./images.ts";
import { type Job, jobs } from "./jobs.ts";
import { measure, type Run, type Usage } from "./measure.ts";

const USAGE = `usage: npm run bench -- [--quick] [--size 1G] [--pairs 5] [--job NAME]... [--dir DIR] [--json]

  --quick      64 MiB and 2 pairs, to see that it works
  --size SIZE  of the file system that is converted; default 1G
  --pairs N    runs of each tool, in turn; default 5
  --job NAME   only these jobs: ${jobs.map(({ name }) => name).join(", ")}
  --dir DIR    make the images there and keep them; default: a temporary directory
  --json       figures of every run, for a program
`;

const BDRV = fileURLToPath(new URL("../../dist/bdrv.cjs", import.meta.url));
const TOOLS = {
  qemuImg: ["qemu-img"],
  bdrv: [process.execPath, BDRV],
} as const;

/** Middle and ends of one figure over all pairs. */
interface Spread {
  readonly median: number;
  readonly min: number;
  readonly max: number;
}

interface JobResult {
  readonly name: string;
  readonly what: string;
  readonly qemuImg: readonly Usage[];
  readonly bdrv: readonly Usage[];
  /** Wall clock and CPU time, bdrv by qemu-img, pair by pair. */
  readonly wallRatio: Spread;
  readonly cpuRatio: Spread;
  /** Disk space of what was made, in bytes. */
  readonly targetBytes?: { readonly qemuImg: number; readonly bdrv: number };
}

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
      if (!settings.json) console.log(`${job.name.padEnd(13)} FAILED`);
    }
  }
  if (settings.json) {
    const machine = describeMachine(settings.bytes);
    console.log(JSON.stringify({ machine, pairs: settings.pairs, results, failures }, undefined, 2));
  }
  for (const failure of failures) console.error(failure);
  process.exitCode = failures.length > 0 ? 1 : 0;
}

interface Settings {
  readonly bytes: number;
  readonly pairs: number;
  readonly jobs: readonly Job[];
  readonly directory: string | undefined;
  readonly json: boolean;
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
      },
    });
    const pairs = Number(values.pairs ?? (values.quick ? 2 : 5));
    if (!Number.isInteger(pairs) || pairs < 1) throw new Error(`--pairs ${values.pairs} is not a count`);
    const names = values.job.flatMap((list) => list.split(","));
    const unknown = names.find((name) => !jobs.some((job) => job.name === name));
    if (unknown !== undefined) throw new Error(`There is no job ${unknown}`);
    const bytes = parseSize(values.size ?? (values.quick ? "64M" : "1G"));
    if (typeof bytes !== "number") throw new Error(`--size ${values.size} is not a size`);
    if (!fs.existsSync(BDRV)) throw new Error(`${BDRV} is missing: npm run build`);
    return {
      bytes,
      pairs,
      jobs: jobs.filter(({ name }) => names.length === 0 || names.includes(name)),
      directory: values.dir && path.resolve(values.dir),
      json: values.json,
    };
  } catch (error) {
    console.error(`${(error as Error).message}\n\n${USAGE}`);
    process.exit(2);
  }
}

/** Runs both tools in turn; the first two runs are also compared, and a warm-up before them fills the page cache. */
function runJob(job: Job, images: BenchImages, pairs: number, scratch: string): JobResult {
  const target = (tool: keyof typeof TOOLS) => path.join(scratch, `target-${tool}`);
  const run = (tool: keyof typeof TOOLS): Run => {
    fs.rmSync(target(tool), { force: true });
    const result = measure([...TOOLS[tool], ...job.args(images, target(tool))], scratch);
    if (result.exitCode !== 0)
      throw new BenchError(`${tool} ends with exit code ${result.exitCode}: ${result.stderr.trim()}`);
    return result;
  };
  const qemuImg: Usage[] = [];
  const bdrv: Usage[] = [];
  try {
    const expected = run("qemuImg");
    const actual = run("bdrv");
    const targetBytes = job.targetFormat && {
      qemuImg: fs.statSync(target("qemuImg")).blocks * 512,
      bdrv: fs.statSync(target("bdrv")).blocks * 512,
    };
    if (job.targetFormat) compareTargets(job.targetFormat, target("qemuImg"), target("bdrv"));
    else if (expected.stdout !== actual.stdout)
      throw new BenchError(`the tools print different things:\n${expected.stdout}\n${actual.stdout}`);
    for (let pair = 0; pair < pairs; pair++) {
      qemuImg.push(run("qemuImg").usage);
      bdrv.push(run("bdrv").usage);
    }
    const ratio = (figure: (usage: Usage) => number) =>
      spread(bdrv.map((usage, pair) => figure(usage) / figure(qemuImg[pair] as Usage)));
    return {
      name: job.name,
      what: job.what,
      qemuImg,
      bdrv,
      wallRatio: ratio(({ wallSeconds }) => wallSeconds),
      cpuRatio: ratio(({ cpuSeconds }) => cpuSeconds),
      ...(targetBytes && { targetBytes }),
    };
  } finally {
    fs.rmSync(target("qemuImg"), { force: true });
    fs.rmSync(target("bdrv"), { force: true });
  }
}

/** Content by qemu-img compare; a qcow2 of ours must also pass qemu-img check. */
function compareTargets(format: "raw" | "qcow2", expected: string, actual: string): void {
  const qemuImg = (...args: string[]) => {
    try {
      execFileSync("qemu-img", args, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
    } catch (error) {
      const { stdout, stderr } = error as { readonly stdout?: string; readonly stderr?: string };
      throw new BenchError(`qemu-img ${args.join(" ")}: ${stdout}${stderr}`);
    }
  };
  qemuImg("compare", "-s", "-f", format, "-F", format, expected, actual);
  if (format === "qcow2") qemuImg("check", "-q", "-f", format, actual);
}

function spread(values: readonly number[]): Spread {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (index: number) => sorted[index] as number;
  const middle = sorted.length / 2;
  const median = sorted.length % 2 === 1 ? at(Math.floor(middle)) : (at(middle - 1) + at(middle)) / 2;
  return { median, min: at(0), max: at(sorted.length - 1) };
}

function describeMachine(bytes: number): string {
  const [version = ""] = execFileSync("qemu-img", ["--version"], { encoding: "utf8" }).split("\n");
  const { model } = os.cpus()[0] ?? { model: "?" };
  return `${version}; node ${process.version}; ${os.availableParallelism()} x ${model}; disk of ${bytes / 2 ** 20} MiB`;
}

const HEADING = [
  "job          ",
  "qemu-img s".padStart(10),
  "bdrv s".padStart(9),
  "ratio (min-max)".padStart(19),
  "CPU s".padStart(17),
  "ratio".padStart(7),
  "peak MiB".padStart(11),
  "size".padStart(6),
].join(" ");

function tableRow({ name, qemuImg, bdrv, wallRatio, cpuRatio, targetBytes }: JobResult): string {
  const median = (usages: readonly Usage[], figure: keyof Usage) =>
    spread(usages.map((usage) => usage[figure])).median;
  const both = (figure: keyof Usage, show: (value: number) => string) =>
    `${show(median(qemuImg, figure))} / ${show(median(bdrv, figure))}`;
  const seconds = (value: number) => value.toFixed(3);
  const mebibytes = (value: number) => (value / 2 ** 20).toFixed(0);
  return [
    name.padEnd(13),
    seconds(median(qemuImg, "wallSeconds")).padStart(10),
    seconds(median(bdrv, "wallSeconds")).padStart(9),
    `${wallRatio.median.toFixed(2)} (${wallRatio.min.toFixed(2)}-${wallRatio.max.toFixed(2)})`.padStart(19),
    both("cpuSeconds", seconds).padStart(17),
    cpuRatio.median.toFixed(2).padStart(7),
    both("peakRssBytes", mebibytes).padStart(11),
    (targetBytes ? (targetBytes.bdrv / targetBytes.qemuImg).toFixed(2) : "").padStart(6),
  ].join(" ");
}

main();
