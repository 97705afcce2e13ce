/** What is measured: the same arguments for qemu-img and bdrv. */

import { fileURLToPath } from "node:url";
import type { BenchImages } from "./images.ts";

export type Format = "raw" | "qcow2" | "vmdk";

export interface Job {
  readonly name: string;
  readonly what: string;
  /** Arguments of the tool; `target` is the file that it makes, if it makes one. */
  readonly args: (images: BenchImages, target: string) => readonly string[];
  /** The format of the target, to compare the two; without it what they print must be the same. */
  readonly targetFormat?: Format;
  /** For short jobs: as many runs for each pair asked for. */
  readonly repeat?: number;
  /** What qemu-img is given as well, right behind the command's name: the faster of the two counts. */
  readonly alternative?: readonly string[];
  /** The start of a bare node is taken off ours: the job is so short that it would be all that is seen. */
  readonly lessStart?: boolean;
  /** It changes its image: each tool works on a copy of this one, at `target`. */
  readonly copyOf?: keyof BenchImages;
  /** A command that takes the place of qemu-img; `args` is a whole command then. */
  readonly baseline?: (images: BenchImages) => readonly string[];
  /** What else can do it: a yardstick beside the two. */
  readonly yardstick?: (images: BenchImages, target: string) => readonly string[];
}

/** More requests in flight, and writes in any order. */
const FASTER_CONVERT = ["-m", "16", "-W"];

const convert = (
  from: Format,
  to: Format,
  source: keyof BenchImages,
  ...options: string[]
): Pick<Job, "args" | "targetFormat" | "alternative"> => ({
  args: (images, target) => ["convert", "-f", from, "-O", to, ...options, images[source], target],
  targetFormat: to,
  alternative: FASTER_CONVERT,
});

/** Steps that lead all over the disk, and come back to where they were late. */
const SCATTERED = String(7 * 2 ** 20 + 4096);

const bench = (format: "raw" | "qcow2", depth: number, ...options: string[]): string[] => [
  "bench",
  "-f",
  format,
  "-c",
  "100000",
  "-d",
  String(depth),
  "-s",
  "4096",
  "-S",
  SCATTERED,
  ...options,
];

const reads = (format: "raw" | "qcow2", depth: number, ...options: string[]): Pick<Job, "args"> => ({
  args: (images) => [...bench(format, depth, ...options), images[format]],
});

const writes = (format: "raw" | "qcow2", depth: number): Pick<Job, "args" | "copyOf"> => ({
  args: (_, target) => [...bench(format, depth, "-w"), target],
  copyOf: format,
});

const libraryReads = (how: "plain" | "filter", image: string): readonly string[] => [
  process.execPath,
  fileURLToPath(new URL("library-reads.mjs", import.meta.url)),
  how,
  image,
];

export const jobs: readonly Job[] = [
  {
    name: "raw-qcow2",
    what: "raw to qcow2",
    ...convert("raw", "qcow2", "raw"),
  },
  {
    name: "qcow2-raw",
    what: "qcow2 to raw",
    ...convert("qcow2", "raw", "qcow2"),
  },
  {
    name: "raw-raw",
    what: "raw to raw",
    ...convert("raw", "raw", "raw"),
    yardstick: ({ raw }, target) => ["cp", raw, target],
  },
  { name: "qcow2-qcow2", what: "qcow2 to qcow2", ...convert("qcow2", "qcow2", "qcow2") },
  {
    name: "raw-zlib",
    what: "raw to qcow2, compressed with zlib",
    ...convert("raw", "qcow2", "raw", "-c"),
  },
  {
    name: "zlib-raw",
    what: "zlib qcow2 to raw",
    ...convert("qcow2", "raw", "zlib"),
  },
  {
    name: "raw-zstd",
    what: "raw to qcow2, compressed with zstd",
    ...convert("raw", "qcow2", "raw", "-c", "-o", "compression_type=zstd"),
  },
  {
    name: "zstd-raw",
    what: "zstd qcow2 to raw",
    ...convert("qcow2", "raw", "zstd"),
  },
  {
    name: "flatten",
    what: "a chain of three qcow2 to one",
    ...convert("qcow2", "qcow2", "chain"),
  },
  {
    name: "sparse-1t",
    what: "1 TiB raw with 64 MiB of data to qcow2",
    ...convert("raw", "qcow2", "sparse"),
    repeat: 3,
    lessStart: true,
  },
  {
    name: "fragmented",
    what: "qcow2 with its clusters in any order to raw",
    ...convert("qcow2", "raw", "fragmented"),
  },
  {
    name: "vmdk-raw",
    what: "vmdk to raw",
    ...convert("vmdk", "raw", "vmdk"),
  },
  {
    name: "raw-vmdk",
    what: "raw to vmdk",
    ...convert("raw", "vmdk", "raw"),
  },
  {
    name: "compare",
    what: "compare raw with qcow2",
    args: ({ raw, qcow2 }) => ["compare", "-f", "raw", "-F", "qcow2", raw, qcow2],
  },
  {
    name: "compare-zlib",
    what: "compare raw with zlib qcow2",
    args: ({ raw, zlib }) => ["compare", "-f", "raw", "-F", "qcow2", raw, zlib],
  },
  { name: "read-raw-1", what: "4 KiB reads of raw, cached, depth 1", ...reads("raw", 1) },
  { name: "read-raw-32", what: "4 KiB reads of raw, cached, depth 32", ...reads("raw", 32) },
  { name: "read-qcow2-1", what: "4 KiB reads of qcow2, cached, depth 1", ...reads("qcow2", 1) },
  { name: "read-qcow2-32", what: "4 KiB reads of qcow2, cached, depth 32", ...reads("qcow2", 32) },
  { name: "read-direct", what: "4 KiB reads of raw, O_DIRECT, depth 32", ...reads("raw", 32, "-t", "none") },
  { name: "write-raw-1", what: "4 KiB writes to raw, cached, depth 1", ...writes("raw", 1) },
  { name: "write-raw-32", what: "4 KiB writes to raw, cached, depth 32", ...writes("raw", 32) },
  { name: "write-qcow2-1", what: "4 KiB writes to qcow2, cached, depth 1", ...writes("qcow2", 1) },
  { name: "write-qcow2-32", what: "4 KiB writes to qcow2, cached, depth 32", ...writes("qcow2", 32) },
  {
    name: "filter",
    what: "4 KiB reads by the library, through the compress filter over qcow2",
    baseline: ({ qcow2 }) => libraryReads("plain", qcow2),
    args: ({ qcow2 }) => libraryReads("filter", qcow2),
  },
  {
    name: "map",
    what: "map of the chain, as JSON",
    args: ({ chain }) => ["map", "-f", "qcow2", "--output=json", chain],
    repeat: 3,
    lessStart: true,
  },
  {
    name: "check",
    what: "check of the zlib qcow2",
    args: ({ zlib }) => ["check", "-f", "qcow2", zlib],
    repeat: 3,
    lessStart: true,
  },
  {
    name: "map-100g",
    what: "map of 100 GiB of qcow2, 1.6 million clusters",
    args: ({ wide }) => ["map", "-f", "qcow2", "--output=json", wide],
    lessStart: true,
  },
  {
    name: "check-100g",
    what: "check of the same",
    args: ({ wide }) => ["check", "-f", "qcow2", wide],
    lessStart: true,
  },
  {
    name: "measure-100g",
    what: "measure of the same",
    args: ({ wide }) => ["measure", "-f", "qcow2", "-O", "qcow2", wide],
    lessStart: true,
  },
  {
    name: "info",
    what: "info of an empty qcow2: start-up",
    args: ({ small }) => ["info", small],
    repeat: 5,
  },
];
