/**
 * Seeded random chains that both tools commit and rebase, each on a copy of its own: what they print, what the images
 * hold, how they are allocated, and what a check says must be the same. After a rebase the files are the same byte by
 * byte. `BDRV_SEED` starts elsewhere, `BDRV_RUNS` says how many chains.
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { describe, it } from "node:test";
import { type Random, random } from "../support/random.ts";
import { tempDir } from "../support/temp.ts";
import { missing, mustRun, run } from "../support/tools.ts";
import { runOurs, runTheirs } from "./differential.ts";

const FIRST_SEED = Number(process.env["BDRV_SEED"] ?? 1);
const RUNS = Number(process.env["BDRV_RUNS"] ?? 6);
const KiB = 1024;

interface Layer {
  readonly name: string;
  readonly format: "raw" | "qcow2";
  readonly bytes: number;
}

/** Makes images of random sizes and options, with random writes. */
class Maker {
  readonly #directory: string;
  readonly #dice: Random;
  readonly #maxKib: number;

  constructor(directory: string, dice: Random) {
    this.#directory = directory;
    this.#dice = dice;
    this.#maxKib = dice.pick([300, 2000, 6000]);
  }

  make(name: string, backing: Layer | undefined): Layer {
    const dice = this.#dice;
    const bytes = dice.between(1, this.#maxKib) * KiB + dice.pick([0, 0, 512]);
    const clusterBytes = dice.pick([
      512,
      2 * KiB,
      4 * KiB,
      16 * KiB,
      64 * KiB,
      64 * KiB,
      256 * KiB,
      2048 * KiB,
    ]);
    const format = backing || dice.chance(0.6) ? "qcow2" : "raw";
    const options = format === "raw" ? [] : ["-o", this.#options(clusterBytes, backing !== undefined)];
    const below = backing ? ["-b", backing.name, "-F", backing.format] : [];
    const filename = path.join(this.#directory, name);
    mustRun("qemu-img", ["create", "-q", "-f", format, ...options, ...below, filename, String(bytes)]);
    const layer: Layer = { name, format, bytes };
    const commands = Array.from({ length: dice.below(dice.pick([1, 4, 14])) }, () =>
      this.#command(layer, clusterBytes),
    );
    if (commands.length > 0)
      mustRun("qemu-io", ["-f", format, ...commands.flatMap((each) => ["-c", each]), filename]);
    return layer;
  }

  #options(clusterBytes: number, hasBacking: boolean): string {
    const dice = this.#dice;
    const extended = clusterBytes >= 16 * KiB && dice.chance(0.3);
    const options = [`cluster_size=${clusterBytes}`, `extended_l2=${extended ? "on" : "off"}`];
    if (!extended && dice.chance(0.3)) options.push("compat=0.10");
    else options.push(`refcount_bits=${dice.pick([1, 16, 64])}`);
    if (!hasBacking && dice.chance(0.2)) options.push("preallocation=metadata");
    return options.join(",");
  }

  #command({ bytes: size }: Layer, clusterBytes: number): string {
    const dice = this.#dice;
    const anywhere = dice.below(size);
    const offset = dice.pick([
      anywhere,
      anywhere - (anywhere % 512),
      anywhere - (anywhere % clusterBytes),
      0,
    ]);
    const wanted = dice.pick([
      1 + dice.below(600),
      dice.below(20 * KiB),
      dice.below(300 * KiB),
      clusterBytes,
      2 * clusterBytes,
      dice.below(size),
    ]);
    const range = `${offset} ${Math.max(1, Math.min(wanted, size - offset))}`;
    return dice.pick([
      `discard ${range}`,
      `write -z ${range}`,
      `write -z -u ${range}`,
      `write -P 0 ${range}`,
      ...[1, 2, 3, dice.between(4, 255)].map((pattern) => `write -P ${pattern} ${range}`),
    ]);
  }
}

function commitArguments(dice: Random, chain: readonly Layer[]): string[] {
  const top = (chain.at(-1) as Layer).name;
  const base = chain[dice.below(chain.length - 1)] as Layer;
  const how = dice.pick([["-d"], ["-b", base.name], [], []]);
  return ["commit", "-f", "qcow2", ...how, ...dice.pick([[], [], ["-t", "unsafe"]]), top];
}

function rebaseArguments(dice: Random, chain: readonly Layer[], maker: Maker): string[] {
  const top = (chain.at(-1) as Layer).name;
  const lower = () => chain[dice.below(chain.length - 1)] as Layer;
  const onto = dice.pick([
    () => undefined,
    lower,
    () => maker.make("other.img", undefined),
    () => maker.make("above.img", maker.make("other.img", undefined)),
    () => maker.make("above.img", lower()),
  ])();
  const backing = onto ? ["-b", onto.name, "-F", onto.format] : ["-b", ""];
  return ["rebase", "-f", "qcow2", ...backing, top];
}

/** Where a map's runs begin, and what they are; host offsets and holes of the host's files aside. */
function allocation(filename: string, format: string): string {
  const json = mustRun("qemu-img", ["map", "-f", format, "--output=json", filename]);
  const runs: { start: number; kind: string }[] = [];
  for (const { start, depth, present, zero, data } of JSON.parse(json) as Record<
    string,
    number | boolean
  >[]) {
    const kind = [depth, present, data, zero && !data].join();
    if (runs.at(-1)?.kind !== kind) runs.push({ start: start as number, kind });
  }
  return runs.map(({ start, kind }) => `${start}:${kind}`).join(" ");
}

/** Errors, leaks and the count of clusters: what does not depend on where they lie. */
function verdict(filename: string): string {
  const { stdout } = run("qemu-img", ["check", "-f", "qcow2", "--output=json", filename]);
  const result = JSON.parse(stdout) as Record<string, number | undefined>;
  return [
    "corruptions",
    "leaks",
    "check-errors",
    "allocated-clusters",
    "total-clusters",
    "compressed-clusters",
  ]
    .map((key) => `${key} ${result[key] ?? 0}`)
    .join(", ");
}

describe("random chains, committed and rebased", { skip: missing("qemu-img") }, () => {
  for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++)
    it(`seed ${seed}`, async (t) => {
      const dice = random(seed);
      const root = tempDir(t);
      const [start, theirs, ours] = ["start", "theirs", "ours"].map((name) => path.join(root, name)) as [
        string,
        string,
        string,
      ];
      fs.mkdirSync(start);
      const maker = new Maker(start, dice);
      const chain: Layer[] = [];
      for (let left = dice.between(2, 4); left > 0; left--)
        chain.push(maker.make(`layer${chain.length}.img`, chain.at(-1)));
      const isCommit = seed % 2 === 0;
      const args = isCommit ? commitArguments(dice, chain) : rebaseArguments(dice, chain, maker);
      for (const copy of [theirs, ours])
        assert.equal(spawnSync("cp", ["-a", "--sparse=always", start, copy]).status, 0);

      assert.deepEqual(await runOurs(args, ours), runTheirs(args, theirs), args.join(" "));

      for (const name of fs.readdirSync(start)) {
        const what = `${name} after ${args.join(" ")}`;
        const [a, b] = [path.join(theirs, name), path.join(ours, name)];
        const { format } = chain.find((layer) => layer.name === name) ?? { format: formatOf(a) };
        const compared = run("qemu-img", ["compare", "-f", format, "-F", format, a, b]);
        assert.equal(compared.stdout, "Images are identical.\n", what);
        assert.equal(allocation(b, format), allocation(a, format), what);
        if (format === "qcow2") assert.equal(verdict(b), verdict(a), what);
        // In which order qemu-img commits is chance: so are the places in the base.
        if (!isCommit) assert.ok(fs.readFileSync(a).equals(fs.readFileSync(b)), `the bytes of ${what}`);
      }
    });
});

function formatOf(filename: string): Layer["format"] {
  return fs.readFileSync(filename).subarray(0, 4).toString("latin1") === "QFI\u00fb" ? "qcow2" : "raw";
}
