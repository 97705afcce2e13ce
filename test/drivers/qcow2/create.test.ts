/** New qcow2 images beside qemu-img's: the same bytes, the same refusals. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import { BlockError } from "../../../src/block/errors.ts";
import { openGate } from "../../../src/block/open.ts";
import { parseKeyValues, parseSize } from "../../../src/block/options.ts";
import { createImage } from "../../../src/jobs/create.ts";
import "../../../drivers/index.ts";
import { tempDir } from "../../support/temp.ts";
import { missing, mustRun, run } from "../../support/tools.ts";

const skip = missing("qemu-img");
const dir = tempDir({ after });
const OURS = path.join(dir, "ours.qcow2");
const THEIRS = path.join(dir, "them.qcow2");
const OUR_DATA = path.join(dir, "ours.raw");
const THEIR_DATA = path.join(dir, "them.raw");

/** DATA in the options stands for a data file of one's own. Gives the message of a refusal, "" for none. */
function theirs(options: string, size: string | undefined): string {
  const given = options === "" ? [] : ["-o", options.replace("DATA", THEIR_DATA)];
  const position = size === undefined ? [THEIRS] : [THEIRS, size];
  const { code, stderr } = run("qemu-img", ["create", "-q", "-u", "-f", "qcow2", ...given, ...position]);
  return code === 0 ? "" : stderr.trim().replace(/^qemu-img: (\S+them\.qcow2: )?/, "");
}

async function ours(options: string, size: string | undefined): Promise<string> {
  const bytes = size === undefined ? undefined : (parseSize(size) as number);
  try {
    await createImage({
      filename: OURS,
      format: "qcow2",
      size: bytes,
      options: parseKeyValues(options.replace("DATA", OUR_DATA)),
      unsafeBacking: true,
      environment: { gate: openGate, warn: (message) => assert.fail(message) },
    });
    return "";
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    return error.message;
  }
}

/** `exact`: where the layout follows from the options, so are the bytes the same. */
async function compare(options: string, size: string | undefined, exact = true): Promise<void> {
  for (const name of [OURS, THEIRS, OUR_DATA, THEIR_DATA]) fs.rmSync(name, { force: true });
  const expected = theirs(options, size);
  assert.equal(await ours(options, size), expected);
  if (expected !== "") {
    assert.ok(!fs.existsSync(OURS) || fs.statSync(OURS).size === 0, "no file that looks complete");
    return;
  }
  if (exact) {
    const content = fs.readFileSync(OURS);
    const name = content.subarray(0, 4096).indexOf(OUR_DATA);
    if (name >= 0) content.write(THEIR_DATA, name);
    assert.ok(content.equals(fs.readFileSync(THEIRS)), "the images differ");
  }
  if (options.includes("DATA"))
    assert.ok(fs.readFileSync(OUR_DATA).equals(fs.readFileSync(THEIR_DATA)), "the data files differ");
  mustRun("qemu-img", ["check", "-q", OURS]);
}

const backing = path.join(dir, "backing.raw");
fs.writeFileSync(backing, "");

const VARIANTS = [
  "",
  "compat=v2",
  "compat=0.10",
  "extended_l2=on",
  "refcount_bits=1",
  "refcount_bits=64",
  "compression_type=zstd",
  "lazy_refcounts=on",
  "data_file=DATA",
  "data_file=DATA,data_file_raw=on",
  `backing_file=${backing},backing_fmt=raw`,
  `compat=v2,backing_file=${backing},backing_fmt=raw`,
  `backing_file=${backing},backing_fmt=raw,data_file=DATA,extended_l2=on,lazy_refcounts=on`,
  "preallocation=metadata",
  "preallocation=metadata,data_file=DATA",
  `preallocation=metadata,extended_l2=on,backing_file=${backing},backing_fmt=raw`,
];

describe("qcow2 create", () => {
  for (const clusterSize of ["512", "4k", "64k", "2M"])
    for (const variant of VARIANTS) {
      const options = `cluster_size=${clusterSize}${variant === "" ? "" : ","}${variant}`;
      it(options.replaceAll(backing, "B"), { skip }, async () => {
        for (const size of ["0", "1000", "1M"]) await compare(options, size);
        if (clusterSize !== "512" && !/prealloc|DATA/.test(variant)) await compare(options, "10G");
      });
    }

  for (const preallocation of ["falloc", "full"])
    for (const variant of ["", ",data_file=DATA", ",data_file=DATA,data_file_raw=on"])
      it(`preallocation=${preallocation}${variant}`, { skip }, async () => {
        await compare(`preallocation=${preallocation}${variant}`, "3M");
        assert.ok(fs.statSync(variant === "" ? OURS : OUR_DATA).blocks * 512 >= 3 * 2 ** 20);
      });

  for (const options of [
    "cluster_size=512",
    "cluster_size=512,refcount_bits=64",
    "cluster_size=1k,refcount_bits=64",
  ])
    it(`${options}, 10G: several refcount blocks`, { skip }, () =>
      // Where the refcount table outgrows its cluster, QEMU's has another place.
      compare(options, "10G", options !== "cluster_size=512,refcount_bits=64"),
    );

  for (const size of ["1P", "2P", "3P", "7E"])
    it(`${size}, as large as an L1 table can be, or larger`, { skip }, () => compare("", size));
  it("128G with the smallest clusters", { skip }, () => compare("cluster_size=512", "128G", false));
  it("129G with the smallest clusters", { skip }, () => compare("cluster_size=512", "129G"));
});

describe("qcow2 create refuses", () => {
  for (const options of [
    "cluster_size=1000",
    "cluster_size=256",
    "cluster_size=4M",
    "cluster_size=0",
    "refcount_bits=0",
    "refcount_bits=3",
    "refcount_bits=128",
    "refcount_bits=8,compat=0.10",
    "refcount_bits=x",
    "compat=0.9",
    "lazy_refcounts=on,compat=v2",
    "extended_l2=on,compat=v2",
    "extended_l2=on,cluster_size=8k",
    "compression_type=foo",
    "compression_type=zstd,compat=v2",
    "data_file=DATA,compat=v2",
    "data_file_raw=on",
    "data_file=DATA,data_file_raw=on,backing_file=a,backing_fmt=raw",
    "data_file=/nonexistent/e",
    "data_file=",
    "preallocation=foo",
    "preallocation=metadata,backing_file=a,backing_fmt=raw",
    "encrypt.format=foo",
    "encrypt.format=luks,encryption=on",
    "backing_fmt=raw",
    "backing_fmt=foo",
    "backing_file=a,backing_fmt=foo",
    "foo=bar",
    `backing_file=${"x".repeat(1024)},backing_fmt=raw`,
    `backing_file=${"x".repeat(400)},backing_fmt=raw,cluster_size=512`,
    "backing_file=a,backing_fmt=abcdefghijklmnopq",
  ])
    it(options.replace(/x{9,}/, "xxx..."), { skip }, () => compare(options, "1M"));

  it("no size", { skip }, () => compare("", undefined));

  it("an image that is there stays as it is when the options are wrong", { skip }, async () => {
    await compare("", "1M");
    const before = fs.readFileSync(OURS);
    assert.notEqual(await ours("cluster_size=1000", "1M"), "");
    assert.ok(fs.readFileSync(OURS).equals(before));
  });

  it("encryption by a secret that nobody defined", { skip }, async () => {
    assert.match(await ours("encrypt.format=luks,encrypt.key-secret=s", "1M"), /No secret with id 's'/);
  });
});
