/** The conformance suite over bdrv's own drivers, and over each filter above them. */

import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import { findDriver } from "../../src/block/driver.ts";
import type { NestedOptions } from "../../src/block/options.ts";
import { makeThrottleGroup } from "../../src/cli/throttle-group.ts";
import { type ConformanceImage, type ConformanceSubject, conformance } from "../conformance.ts";
import { openBackend } from "../support/graph.ts";
import { tempDir } from "../support/temp.ts";
import { missing, mustRun } from "../support/tools.ts";

const dir = tempDir({ after });
let filesMade = 0;

function freshName(suffix: string): string {
  return path.join(dir, `image${filesMade++}${suffix}`);
}

function fileWith(content: Uint8Array, suffix = ".raw"): string {
  const filename = freshName(suffix);
  fs.writeFileSync(filename, content);
  return filename;
}

/** One group for all, whose limits are never met. */
const unlimited = makeThrottleGroup(new Map());
const environment = { throttleGroup: () => unlimited };

/** An image that is opened by these options. */
function imageOf(options: NestedOptions, ...files: string[]): ConformanceImage {
  return {
    open: ({ readOnly }) => openBackend(options, { flags: { readOnly, unmap: true }, environment }),
    dispose: () => files.forEach((filename) => fs.rmSync(filename, { force: true })),
  };
}

const COMMON = {
  unit: 4096,
  canWrite: true,
  keepsData: true,
  canOverwrite: true,
  canTruncate: true,
  discarded: "any",
} as const;

/** A driver over one file that holds the content. */
function overFile(
  name: string,
  options: (filename: string) => NestedOptions,
  more: Partial<ConformanceSubject> = {},
) {
  const make = async (content: Uint8Array) => {
    const filename = fileWith(content);
    return imageOf(options(filename), filename);
  };
  return { ...COMMON, name, make, ...more };
}

/** A driver over several files that all hold the content. */
function overCopies(
  name: string,
  copies: number,
  options: (filenames: readonly string[]) => NestedOptions,
): ConformanceSubject {
  const make = async (content: Uint8Array) => {
    const filenames = Array.from({ length: copies }, () => fileWith(content));
    return imageOf(options(filenames), ...filenames);
  };
  return { ...COMMON, name, make, canTruncate: false };
}

/** qcow2 made by qemu-img of the content, with these create options; opened with `wrap` around it. */
function qcow2(
  name: string,
  createOptions: string,
  unit: number,
  more: Partial<ConformanceSubject> = {},
  wrap: (options: NestedOptions) => NestedOptions = (options) => options,
): ConformanceSubject {
  const create = (filename: string, args: readonly string[]) =>
    mustRun("qemu-img", [
      "create",
      "-q",
      "-f",
      "qcow2",
      "-o",
      createOptions.replace("DATA", `${filename}.data`),
      ...args,
    ]);
  const nodeOf = (filename: string) => wrap({ driver: "qcow2", file: { driver: "file", filename } });
  return {
    ...COMMON,
    name,
    unit,
    async make(content) {
      const source = fileWith(content);
      const filename = freshName(".qcow2");
      create(filename, [filename, String(content.length)]);
      mustRun("qemu-img", ["convert", "-n", "-f", "raw", "-O", "qcow2", source, filename]);
      fs.rmSync(source);
      return imageOf(nodeOf(filename), filename, `${filename}.data`);
    },
    async makeOverlay(below, bytes) {
      const source = fileWith(below);
      const filename = freshName(".qcow2");
      create(filename, ["-b", source, "-F", "raw", filename, String(bytes)]);
      return imageOf(nodeOf(filename), filename, source, `${filename}.data`);
    },
    ...more,
  };
}

const SUBJECTS: readonly ConformanceSubject[] = [
  overFile("file", (filename) => ({ driver: "file", filename })),
  overFile("raw", (filename) => ({ driver: "raw", file: { driver: "file", filename } })),
  {
    ...COMMON,
    name: "raw, a window with an offset",
    canTruncate: false,
    async make(content) {
      const filename = fileWith(Buffer.concat([Buffer.alloc(5000, 0xee), content, Buffer.alloc(3000, 0xee)]));
      const file = { driver: "file", filename };
      return imageOf({ driver: "raw", offset: 5000, size: content.length, file }, filename);
    },
  },
  {
    ...COMMON,
    name: "null-co",
    keepsData: false,
    canTruncate: false,
    make: async (content) => imageOf({ driver: "null-co", size: content.length, "read-zeroes": true }),
  },
  overFile("blkdebug", (filename) => ({ driver: "blkdebug", image: { driver: "file", filename } })),
  ...[512, 4096].map((align) =>
    overFile(`raw over blkdebug with requests aligned to ${align} and cut`, (filename) => ({
      driver: "raw",
      file: {
        driver: "blkdebug",
        align,
        "max-transfer": 2 * align,
        "opt-write-zero": align,
        "max-write-zero": 2 * align,
        "opt-discard": 2 * align,
        image: { driver: "file", filename },
      },
    })),
  ),
  overFile("blkdebug over raw", (filename) => ({
    driver: "blkdebug",
    align: 512,
    image: { driver: "raw", file: { driver: "file", filename } },
  })),
];

const FILTER_SUBJECTS: readonly ConformanceSubject[] = [
  overFile("throttle", (filename) => ({
    driver: "throttle",
    "throttle-group": "group",
    file: { driver: "file", filename },
  })),
  overFile("raw over preallocate", (filename) => ({
    driver: "raw",
    file: { driver: "preallocate", "prealloc-size": 100_000, file: { driver: "file", filename } },
  })),
  overFile("blklogwrites", (filename) => {
    fs.writeFileSync(`${filename}.log`, "");
    return {
      driver: "blklogwrites",
      file: { driver: "file", filename },
      log: { driver: "file", filename: `${filename}.log` },
    };
  }),
  {
    ...COMMON,
    name: "null-aio",
    keepsData: false,
    canTruncate: false,
    make: async (content) => imageOf({ driver: "null-aio", size: content.length, "read-zeroes": true }),
  },
  ...["quorum", "fifo"].map((pattern) =>
    overCopies(`quorum, read by ${pattern}`, 3, (files) => ({
      driver: "quorum",
      "vote-threshold": 2,
      "read-pattern": pattern,
      children: files.map((filename) => ({ driver: "file", filename })),
    })),
  ),
  overCopies("blkverify", 2, ([raw, test]) => ({
    driver: "blkverify",
    raw: { driver: "file", filename: raw },
    test: { driver: "file", filename: test },
  })),
];

const QCOW2_SUBJECTS: readonly ConformanceSubject[] = [
  qcow2("qcow2", "cluster_size=4096", 4096),
  qcow2("qcow2, clusters of 512", "cluster_size=512,refcount_bits=1", 512),
  qcow2("qcow2, clusters of 64 KiB", "cluster_size=65536", 65536),
  qcow2("qcow2 v2", "compat=0.10,cluster_size=4096", 4096),
  qcow2("qcow2, extended L2", "cluster_size=16384,extended_l2=on", 16384),
  qcow2("qcow2, data file", "cluster_size=4096,data_file=DATA", 4096),
  qcow2("qcow2 under blkdebug", "cluster_size=4096", 4096, {}, (image) => ({
    driver: "blkdebug",
    align: 512,
    image,
  })),
  // To be read, too, its image must be open for writing; that two do so at once their locks would refuse.
  qcow2("copy-on-read over qcow2", "cluster_size=4096", 4096, {}, (image) => ({
    driver: "copy-on-read",
    file: { ...image, "read-only": false, file: { ...(image["file"] as NestedOptions), locking: "off" } },
  })),
  qcow2("throttle over qcow2", "cluster_size=4096", 4096, {}, (file) => ({
    driver: "throttle",
    "throttle-group": "group",
    file,
  })),
  qcow2("qcow2 over preallocate", "cluster_size=4096", 4096, {}, (image) => ({
    ...image,
    file: { driver: "preallocate", "prealloc-size": 65536, file: image["file"] as NestedOptions },
  })),
  qcow2("compress over qcow2", "cluster_size=4096", 4096, { canOverwrite: false }, (file) => ({
    driver: "compress",
    file,
  })),
];

describe("conformance of filters", () => {
  for (const subject of FILTER_SUBJECTS) conformance(it, subject);
});

describe("conformance", () => {
  for (const subject of SUBJECTS) conformance(it, subject);
});

const withoutQcow2 = findDriver("qcow2") ? missing("qemu-img") : "there is no qcow2 driver";
describe("conformance of qcow2", { skip: withoutQcow2 }, () => {
  for (const subject of QCOW2_SUBJECTS) conformance(it, subject);
});
