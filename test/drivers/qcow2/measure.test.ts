/** `measure` beside qemu-img's. */

import assert from "node:assert/strict";
import path from "node:path";
import { after, before, describe, it } from "node:test";
import { qcow2 } from "../../../drivers/qcow2/index.ts";
import { BlockError } from "../../../src/block/errors.ts";
import { openGate } from "../../../src/block/open.ts";
import { parseKeyValues, parseSize, takeOptions } from "../../../src/block/options.ts";
import { openBackend } from "../../support/graph.ts";
import { tempDir } from "../../support/temp.ts";
import { missing, mustRun, noHoles, run } from "../../support/tools.ts";
import { makeImage, qemuIo } from "./patch.ts";

const skip = missing("qemu-img") || missing("qemu-io");
const dir = tempDir({ after });
const image = (name: string) => path.join(dir, name);

type Sizes = Readonly<Record<string, number>> | string;

function theirs(options: string, what: readonly string[]): Sizes {
  const { code, stdout, stderr } = run("qemu-img", [
    "measure",
    "--output=json",
    "-O",
    "qcow2",
    ...(options === "" ? [] : ["-o", options]),
    ...what,
  ]);
  return code === 0 ? (JSON.parse(stdout) as Record<string, number>) : stderr.replace(/^qemu-img: |\n$/g, "");
}

async function measured(options: string, size?: number, source?: { format: string; filename: string }) {
  const { measure, createOptions } = qcow2;
  assert.ok(measure && createOptions);
  const given = parseKeyValues(options);
  if (size !== undefined) given.set("size", size);
  const values = takeOptions(createOptions, given);
  const environment = { gate: openGate, warn: () => {} };
  if (!source) return measure({ options: values, source: undefined, environment });
  const backend = await openBackend(
    { driver: source.format, file: { driver: "file", filename: source.filename } },
    { flags: { readOnly: true } },
  );
  try {
    return await backend.run((co) =>
      measure({ options: values, source: { node: backend.node, co }, environment }),
    );
  } finally {
    await backend.close();
  }
}

async function ours(...request: Parameters<typeof measured>): Promise<Sizes> {
  try {
    const { required, fullyAllocated, bitmaps } = await measured(...request);
    return { required, "fully-allocated": fullyAllocated, ...(bitmaps !== undefined && { bitmaps }) };
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    return error.message;
  }
}

before(() => {
  if (skip) return;
  makeImage(image("data.qcow2"), "64M", "", [
    "write 0 256k",
    "write 1000k 1k",
    "write -z 2M 128k",
    "write -c 4M 64k",
    "write 40M 64k",
  ]);
  mustRun("qemu-img", ["bitmap", "--add", "-g", "512", image("data.qcow2"), "one"]);
  mustRun("qemu-img", ["bitmap", "--add", image("data.qcow2"), "another"]);
  makeImage(image("old.qcow2"), "3M", "compat=v2", ["write 1M 64k"]);
  makeImage(image("odd.qcow2"), "1000k", "cluster_size=512", ["write 7k 1k", "write 300k 40k"]);
  makeImage(image("over.qcow2"), "70M", `backing_file=${image("data.qcow2")},backing_fmt=qcow2`);
  qemuIo(image("over.qcow2"), "write 30M 1M", "write -z 0 64k");
});

describe("qcow2 measure", () => {
  for (const size of ["0", "1000", "1M", "1G", "127G", "1P", "3P"])
    for (const options of [
      "",
      "cluster_size=512",
      "cluster_size=2M",
      "extended_l2=on",
      "refcount_bits=1",
      "refcount_bits=64,cluster_size=4k",
      "preallocation=full",
      "preallocation=metadata",
      "compat=0.10",
      "data_file=x",
      "backing_file=x",
      "extended_l2=on,compat=0.10,lazy_refcounts=on,data_file_raw=on",
    ])
      it(`${size}: ${options}`, { skip }, async () => {
        const bytes = parseSize(size) as number;
        assert.deepEqual(await ours(options, bytes), theirs(options, ["--size", size]));
      });

  for (const options of [
    "cluster_size=3",
    "compat=v2",
    "compat=zz",
    "refcount_bits=3",
    "refcount_bits=8,compat=0.10",
    "extended_l2=on,cluster_size=4k",
  ])
    it(`refuses ${options}`, { skip }, async () => {
      assert.deepEqual(await ours(options, 1024 ** 3), theirs(options, ["--size", "1G"]));
    });

  for (const name of ["data.qcow2", "old.qcow2", "odd.qcow2", "over.qcow2"])
    for (const format of ["qcow2", "raw"])
      for (const options of ["", "cluster_size=4k", "cluster_size=2M", "compat=0.10", "preallocation=falloc"])
        it(`${name} as ${format}: ${options}`, {
          skip: skip || (options === "cluster_size=4k" && noHoles),
        }, async () => {
          const filename = image(name);
          assert.deepEqual(
            await ours(options, undefined, { format, filename }),
            theirs(options, ["-f", format, filename]),
          );
        });
});
