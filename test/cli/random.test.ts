/**
 * Seeded random backing chains, made by qemu-img and qemu-io, described by both tools: info, map, check, and compare
 * of every pair. `BDRV_SEED` starts elsewhere, `BDRV_RUNS` says how many chains.
 */

import { spawnSync } from "node:child_process";
import { describe, it } from "node:test";
import { Fixture, missingTool } from "./differential.ts";

const FIRST_SEED = Number(process.env["BDRV_SEED"] ?? 1);
const RUNS = Number(process.env["BDRV_RUNS"] ?? 3);
const KiB = 1024;

describe("random chains", { skip: missingTool }, () => {
  for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++)
    it(`seed ${seed}`, async () => {
      const names: string[] = [];
      const fixture = new Fixture((directory) => names.push(...makeChain(directory, seed)));
      try {
        for (const name of names) {
          for (const command of ["info", "map", "check"]) {
            await fixture.sameOutput([command, name]);
            await fixture.sameOutput([command, "--output=json", name]);
          }
          await fixture.sameOutput(["info", "--backing-chain", name]);
          await fixture.sameOutput(["map", "--output=json", "-s", "70000", "-l", "1000000", name]);
          for (const other of names) {
            await fixture.sameOutput(["compare", name, other]);
            await fixture.sameOutput(["compare", "-s", name, other]);
          }
        }
      } finally {
        fixture.remove();
      }
    });
});

/** Numbers from 0 to 1 that depend on the seed alone.  (mulberry32) */
function randomNumbers(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** A base, overlays over it, and a copy of one of them that differs in a byte or not at all. */
function makeChain(directory: string, seed: number): string[] {
  const random = randomNumbers(seed);
  const below = (limit: number) => Math.floor(random() * limit);
  const pick = <T>(...items: readonly T[]): T => items[below(items.length)] as T;
  const run = (tool: string, ...args: string[]) => {
    const { status, stderr, stdout } = spawnSync(tool, args, { cwd: directory, encoding: "utf8" });
    if (status !== 0) throw new Error(`seed ${seed}: ${tool} ${args.join(" ")}: ${stdout}${stderr}`);
  };
  const names: string[] = [];
  let format = "raw";
  for (let layer = 0; layer < 3; layer++) {
    const sizeKib = 512 + below(7) * 512 + (random() < 0.3 ? 0.5 : 0);
    const options: string[] = [];
    if (layer > 0 || random() < 0.5) {
      const clusterBytes = pick(512, 4 * KiB, 16 * KiB, 64 * KiB, 256 * KiB);
      const hasSubclusters = clusterBytes >= 16 * KiB && random() < 0.4;
      options.push(`cluster_size=${clusterBytes}`, `extended_l2=${hasSubclusters ? "on" : "off"}`);
      if (!hasSubclusters && random() < 0.3) options.push("compat=0.10");
      else options.push(`compression_type=${pick("zlib", "zstd")}`, `refcount_bits=${pick(1, 8, 16, 64)}`);
      if (layer === 0 && random() < 0.3) options.push("preallocation=metadata");
    }
    const name = `layer${layer}.${options.length > 0 ? "qcow2" : "raw"}`;
    const backing = layer > 0 ? ["-b", names.at(-1) as string, "-F", format] : [];
    format = options.length > 0 ? "qcow2" : "raw";
    const option = options.length > 0 ? ["-o", options.join(",")] : [];
    run("qemu-img", "create", "-q", "-f", format, ...option, ...backing, name, `${sizeKib * KiB}`);
    run("qemu-io", "-f", format, ...randomWrites(sizeKib * KiB, format, options, below, pick), name);
    names.push(name);
  }
  run("qemu-img", "convert", "-O", "raw", names.at(-1) as string, "copy.raw");
  if (random() < 0.5) run("qemu-io", "-f", "raw", "-c", `write -P 77 ${below(512) * KiB + 17} 3`, "copy.raw");
  return [...names, "copy.raw"];
}

function randomWrites(
  sizeBytes: number,
  format: string,
  options: readonly string[],
  below: (limit: number) => number,
  pick: <T>(...items: readonly T[]) => T,
): string[] {
  const clusterBytes = Number(options[0]?.split("=")[1] ?? 512);
  const commands: string[] = [];
  const compressed = new Set<number>();
  for (let count = 5 + below(15); count > 0; count--) {
    const kind = pick("", "", "-z", "-z -u", "-P 0", format === "qcow2" ? "-c" : "");
    if (kind === "-c") {
      const cluster = below(Math.floor(sizeBytes / clusterBytes));
      // A compressed write over what is there already is refused.
      if (commands.length > 0 || compressed.has(cluster)) continue;
      compressed.add(cluster);
      commands.push("-c", `write -c -P ${1 + below(200)} ${cluster * clusterBytes} ${clusterBytes}`);
      continue;
    }
    const offset = pick(below(sizeBytes), below(sizeBytes / 512) * 512);
    const bytes = Math.min(1 + below(pick(600, 20 * KiB, 300 * KiB)), sizeBytes - offset);
    const pattern = kind === "" ? `-P ${1 + below(200)}` : kind;
    commands.push("-c", `${pick(0, 1, 2, 3) === 0 ? "discard" : `write ${pattern}`} ${offset} ${bytes}`);
  }
  return commands.length > 0 ? commands : ["-c", "write -P 9 0 512"];
}
