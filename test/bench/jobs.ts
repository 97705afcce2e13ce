/** What is measured: the same arguments for qemu-img and bdrv. */

import type { BenchImages } from "./images.ts";

export interface Job {
  readonly name: string;
  readonly what: string;
  /** Arguments of the tool; `target` is the file that it makes, if it makes one. */
  readonly args: (images: BenchImages, target: string) => readonly string[];
  /** The format of the target, to compare the two; without it what they print must be the same. */
  readonly targetFormat?: "raw" | "qcow2";
  /** For short jobs: as many runs for each pair asked for. */
  readonly repeat?: number;
}

const convert =
  (from: string, to: string, source: keyof BenchImages, ...options: string[]): Job["args"] =>
  (images, target) => ["convert", "-f", from, "-O", to, ...options, images[source], target];

export const jobs: readonly Job[] = [
  {
    name: "raw-qcow2",
    what: "raw to qcow2",
    args: convert("raw", "qcow2", "raw"),
    targetFormat: "qcow2",
  },
  {
    name: "qcow2-raw",
    what: "qcow2 to raw",
    args: convert("qcow2", "raw", "qcow2"),
    targetFormat: "raw",
  },
  { name: "raw-raw", what: "raw to raw", args: convert("raw", "raw", "raw"), targetFormat: "raw" },
  {
    name: "raw-zlib",
    what: "raw to qcow2, compressed with zlib",
    args: convert("raw", "qcow2", "raw", "-c"),
    targetFormat: "qcow2",
  },
  {
    name: "zlib-raw",
    what: "zlib qcow2 to raw",
    args: convert("qcow2", "raw", "zlib"),
    targetFormat: "raw",
  },
  {
    name: "raw-zstd",
    what: "raw to qcow2, compressed with zstd",
    args: convert("raw", "qcow2", "raw", "-c", "-o", "compression_type=zstd"),
    targetFormat: "qcow2",
  },
  {
    name: "zstd-raw",
    what: "zstd qcow2 to raw",
    args: convert("qcow2", "raw", "zstd"),
    targetFormat: "raw",
  },
  {
    name: "flatten",
    what: "a chain of three qcow2 to one",
    args: convert("qcow2", "qcow2", "chain"),
    targetFormat: "qcow2",
  },
  {
    name: "sparse-1t",
    what: "1 TiB raw, 64 pieces of data, to qcow2",
    args: convert("raw", "qcow2", "sparse"),
    targetFormat: "qcow2",
    repeat: 3,
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
  {
    name: "map",
    what: "map of the chain, as JSON",
    args: ({ chain }) => ["map", "-f", "qcow2", "--output=json", chain],
    repeat: 3,
  },
  {
    name: "check",
    what: "check of the zlib qcow2",
    args: ({ zlib }) => ["check", "-f", "qcow2", zlib],
    repeat: 3,
  },
  {
    name: "info",
    what: "info of an empty qcow2: start-up",
    args: ({ small }) => ["info", small],
    repeat: 5,
  },
];
