/**
 * The fuzzer: `npm run fuzz -- --seed 1 --seconds 60 --format qcow2 --cases 1000`. Cases run in a process of their own,
 * which is looked at from outside: its CPU time for each step, its memory, how it ends. `--from 17 --cases 1 --keep DIR`
 * does one of them again and keeps its image. Exit code 1: there were some.
 */

import { parseArgs } from "node:util";
import { fuzzFormats } from "./formats/index.ts";
import { runFuzz } from "./run.ts";

const { values } = parseArgs({
  options: {
    seed: { type: "string", default: String(Date.now() % 1_000_000) },
    seconds: { type: "string" },
    format: { type: "string" },
    cases: { type: "string" },
    from: { type: "string", default: "0" },
    keep: { type: "string" },
  },
});
const seed = Number(values.seed);
const formats = values.format?.split(",") ?? fuzzFormats.map(({ formatName }) => formatName);
const seconds =
  values.seconds === undefined ? (values.cases === undefined ? 60 : undefined) : Number(values.seconds);
let failed = 0;
for (const format of formats) {
  const { cases, failures, cpuSeconds, readable } = await runFuzz({
    format,
    seed,
    from: Number(values.from),
    cases: values.cases === undefined ? Number.POSITIVE_INFINITY : Number(values.cases),
    milliseconds: seconds === undefined ? Number.POSITIVE_INFINITY : (seconds * 1000) / formats.length,
    keep: values.keep,
    onFailure: (failure) =>
      console.log(
        `${format} seed ${seed} case ${failure.case} (${failure.base}): ${failure.problem}\n    ${failure.steps.join("\n    ")}`,
      ),
  });
  failed += failures.length;
  console.log(
    `${format}: seed ${seed}, ${cases} cases (${readable} readable), ${failures.length} failures, ${cpuSeconds.toFixed(0)} s of CPU`,
  );
}
process.exitCode = failed > 0 ? 1 : 0;
