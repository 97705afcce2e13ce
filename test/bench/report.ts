/** What a run of the benchmark found, as BENCHMARKS.md has it, and the table in README.md. */

import fs from "node:fs";
import type { Usage } from "./measure.ts";

/** Middle and ends of one figure over all pairs. */
export interface Spread {
  readonly median: number;
  readonly min: number;
  readonly max: number;
}

export interface JobResult {
  readonly name: string;
  readonly what: string;
  /** What bdrv is compared with: qemu-img unless told otherwise. */
  readonly beside: string;
  /** By its better setting: the options that were given as well. */
  readonly other: readonly Usage[];
  readonly alternative: readonly string[];
  readonly bdrv: readonly Usage[];
  /** The start of a bare node is not in bdrv's ratio. */
  readonly lessStart: boolean;
  /** Median of another tool that does the same. */
  readonly yardstickSeconds?: number;
  /** Wall clock and CPU time, bdrv by the other, pair by pair. */
  readonly wallRatio: Spread;
  readonly cpuRatio: Spread;
  /** Disk space of what was made, in bytes. */
  readonly targetBytes?: { readonly other: number; readonly bdrv: number };
}

export function spread(values: readonly number[]): Spread {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (index: number) => sorted[index] as number;
  const middle = sorted.length / 2;
  const median = sorted.length % 2 === 1 ? at(Math.floor(middle)) : (at(middle - 1) + at(middle)) / 2;
  return { median, min: at(0), max: at(sorted.length - 1) };
}

export function medianOf(usages: readonly Usage[], figure: keyof Usage): number {
  return usages.length > 0 ? spread(usages.map((usage) => usage[figure])).median : 0;
}

const MIB = 2 ** 20;
const START = "<!-- benchmark -->";
const END = "<!-- end of benchmark -->";

/** Writes the run to BENCHMARKS.md between its marks, and its ratios to README.md between the same. */
export function writeReport(root: URL, machine: string, results: readonly JobResult[]): void {
  replace(new URL("BENCHMARKS.md", root), `${machine}\n\n${fullTable(results)}`);
  replace(new URL("README.md", root), shortTable(results));
}

function replace(file: URL, text: string): void {
  const old = fs.readFileSync(file, "utf8");
  const start = old.indexOf(START);
  const end = old.indexOf(END);
  if (start < 0 || end < start) throw new Error(`${file.pathname} has no ${START} ... ${END}`);
  fs.writeFileSync(file, `${old.slice(0, start + START.length)}\n\n${text}\n\n${old.slice(end)}`);
}

function table(rows: readonly (readonly string[])[], left: number): string {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  const line = (row: readonly string[]) =>
    `| ${row.map((cell, column) => (column < left ? cell.padEnd(widths[column] ?? 0) : cell.padStart(widths[column] ?? 0))).join(" | ")} |`;
  const rule = widths.map((width, column) =>
    column < left ? "-".repeat(width) : `${"-".repeat(width - 1)}:`,
  );
  const [head = [], ...body] = rows;
  return [line(head), `| ${rule.join(" | ")} |`, ...body.map(line)].join("\n");
}

function fullTable(results: readonly JobResult[]): string {
  const head = [
    "job",
    "what",
    "beside",
    "other s",
    "bdrv s",
    "ratio (min-max)",
    "CPU ratio",
    "peak MiB",
    "size",
  ];
  const rows = results.map((result) => {
    const { wallRatio: wall, targetBytes: size } = result;
    const seconds = (usages: readonly Usage[]) => medianOf(usages, "wallSeconds").toFixed(3);
    return [
      result.name,
      result.what,
      besideText(result),
      seconds(result.other),
      seconds(result.bdrv),
      `${wall.median.toFixed(2)} (${wall.min.toFixed(2)}-${wall.max.toFixed(2)})${result.lessStart ? " *" : ""}`,
      result.cpuRatio.median.toFixed(2),
      (medianOf(result.bdrv, "peakRssBytes") / MIB).toFixed(0),
      size ? (size.bdrv / size.other).toFixed(2) : "",
    ];
  });
  const yardsticks = results.flatMap(({ name, yardstickSeconds }) =>
    yardstickSeconds === undefined ? [] : [`\`cp\` does ${name} in ${yardstickSeconds.toFixed(3)} s.`],
  );
  return [table([head, ...rows], 3), "", "\\* less the start of a bare node.", ...yardsticks].join("\n");
}

function besideText({ beside, alternative }: JobResult): string {
  return [beside, ...alternative].join(" ");
}

function shortTable(results: readonly JobResult[]): string {
  const rows = results.map(({ what, other, bdrv, wallRatio, lessStart }) => {
    const seconds = (usages: readonly Usage[]) => medianOf(usages, "wallSeconds").toFixed(2);
    return [what, seconds(other), seconds(bdrv), `${wallRatio.median.toFixed(2)}${lessStart ? " *" : ""}`];
  });
  return table([["job", "qemu-img s", "bdrv s", "ratio"], ...rows], 1);
}
