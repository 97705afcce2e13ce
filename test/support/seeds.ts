/** The command line of the long runs: `-- --seed N --seconds S --format F`, and what they print. */

import { parseArgs } from "node:util";

export interface SeedRun<V extends { readonly name: string }> {
  /** Of `npm run`. */
  readonly command: string;
  /** What is counted. */
  readonly unit: string;
  readonly variants: readonly V[];
  /** One run from a seed: how many cases it had. Throws where one failed. */
  readonly run: (variant: V, seed: number) => Promise<number>;
}

interface Settings {
  readonly seed: number;
  readonly seconds: number;
  readonly format: string;
}

/** Runs one seed after the other on all variants until the time is over, or one seed; the exit code says whether one failed. */
export async function runSeeds<V extends { readonly name: string }>(what: SeedRun<V>): Promise<void> {
  const { seed: first, seconds, format } = readSettings(what);
  const variants = what.variants.filter(({ name }) => name.includes(format));
  if (variants.length === 0) return usage(what, `No variant has '${format}' in its name`);
  const start = performance.now();
  const isOver = () => seconds > 0 && performance.now() - start >= seconds * 1000;
  const counts = new Map<string, { runs: number; cases: number; failures: number }>();
  for (let seed = first; seed === first || (seconds > 0 && !isOver()); seed++)
    // Each seed begins with another one, so that all have their turn in a short time too.
    for (const variant of [
      ...variants.slice(seed % variants.length),
      ...variants.slice(0, seed % variants.length),
    ]) {
      if (isOver()) break;
      const count = counts.get(variant.name) ?? { runs: 0, cases: 0, failures: 0 };
      counts.set(variant.name, count);
      count.runs++;
      try {
        count.cases += await what.run(variant, seed);
      } catch (error) {
        count.failures++;
        process.exitCode = 1;
        console.log(
          `FAILED: ${variant.name}, seed ${seed}: ${error instanceof Error ? error.message : String(error)}`,
        );
        console.log(`        npm run ${what.command} -- --seed ${seed} --format '${variant.name}'`);
      }
    }
  const elapsed = ((performance.now() - start) / 1000).toFixed(0);
  for (const [name, { runs, cases, failures }] of counts)
    console.log(`${name}: ${runs} runs, ${cases} ${what.unit}, ${failures} failed`);
  const all = [...counts.values()].reduce((sum, { cases }) => sum + cases, 0);
  console.log(`all: ${all} ${what.unit} in ${elapsed} s, from seed ${first}`);
}

function readSettings<V extends { readonly name: string }>(what: SeedRun<V>): Settings {
  try {
    const { values } = parseArgs({
      options: {
        seed: { type: "string", default: "1" },
        seconds: { type: "string", default: "0" },
        format: { type: "string", default: "" },
      },
    });
    const [seed, seconds] = [Number(values.seed), Number(values.seconds)];
    if (!Number.isSafeInteger(seed) || !(seconds >= 0)) throw new Error("--seed and --seconds take numbers");
    return { seed, seconds, format: values.format };
  } catch (error) {
    usage(what, error instanceof Error ? error.message : String(error));
    process.exit(2);
  }
}

function usage<V extends { readonly name: string }>(
  { command, variants }: SeedRun<V>,
  message: string,
): void {
  console.error(`${message}
usage: npm run ${command} -- [--seed 1] [--seconds 0] [--format PART]

  --seed N      where to begin; each seed makes the same cases again
  --seconds S   goes on with the next seed until so much time has passed; by default one seed is all
  --format PART only those with this in their names:
${variants.map(({ name }) => `                ${name}`).join("\n")}`);
  process.exitCode = 2;
}
