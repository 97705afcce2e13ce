/** Every command that writes, with images for it, and what must hold of them when it ends before its time. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import type { BlockBackend } from "../../src/block/backend.ts";
import { BlockError } from "../../src/block/errors.ts";
import { checkImage } from "../../src/jobs/check.ts";
import { runOurs, words } from "../cli/differential.ts";
import { openBackend } from "../support/graph.ts";
import { random } from "../support/random.ts";

export interface Scenario {
  readonly name: string;
  readonly tool?: "qemu-io";
  readonly args: readonly string[];
  /** Images that read as before afterwards, as far as they were long, whatever happens. */
  readonly keeps: readonly string[];
  /** Files that are as they were before, if they were there at all, or as the command makes them. */
  readonly atomic: readonly string[];
  /** Images that have no corruption beyond leaks. */
  readonly sound: readonly string[];
  /** What `check` says meanwhile without anything coming of it. */
  readonly harmless?: RegExp;
  /** The command can be run again when it has worked. */
  readonly again: boolean;
}

const KiB = 1024;

/** The images of all scenarios. A name's end says its format: .raw, .q (qcow2). */
export async function makeImages(directory: string): Promise<void> {
  const dice = random(7);
  const data = new Uint8Array(1024 * KiB);
  for (let at = 0; at < data.length; at += 64 * KiB)
    if (dice.chance(0.6)) data.set(dice.bytes(dice.between(1, 48) * KiB), at);
  fs.writeFileSync(path.join(directory, "source.raw"), data);
  for (const line of [
    "create -q -f qcow2 -o cluster_size=4k base.q 1M",
    "create -q -f qcow2 -o cluster_size=4k other.q 1M",
    "create -q -f qcow2 -o cluster_size=4k -b base.q -F qcow2 top.q",
    "create -q -f qcow2 -o cluster_size=4k lone.q 1M",
    "create -q -f qcow2 -o cluster_size=4k plain.q 1M",
    "create -q -f qcow2 -o cluster_size=4k old.q 2M",
    "create -q -f raw old.raw 256k",
    "create -q -f raw low.raw 1M",
    "create -q -f qcow2 -o cluster_size=4k -b low.raw -F raw overlow.q",
    "bitmap --add -g 4k lone.q one",
  ])
    await mustRunOurs(words(line), directory);
  for (const [name, pattern] of [
    ["base.q", "-c 'write -P 1 0 400k'"],
    ["other.q", "-c 'write -P 1 0 50k' -c 'write -P 9 500k 100k'"],
    ["top.q", "-c 'write -P 2 100k 300k' -c 'write -z 500k 100k' -c 'write -P 3 900k 20k'"],
    ["lone.q", "-c 'write -P 4 0 500k' -c 'write -P 5 700k 3k'"],
    ["plain.q", "-c 'write -P 4 0 500k' -c 'write -P 5 700k 3k'"],
    ["overlow.q", "-c 'write -P 6 10k 300k' -c 'write -z 400k 64k'"],
  ] as const)
    await mustRunOurs(words(`${pattern} ${name}`), directory, "qemu-io");
  for (const image of ["lone.q", "plain.q"]) {
    await mustRunOurs(words(`snapshot -c first ${image}`), directory);
    await mustRunOurs(words(`-c 'write -P 6 200k 300k' ${image}`), directory, "qemu-io");
  }
}

async function mustRunOurs(args: readonly string[], directory: string, tool?: string): Promise<void> {
  const { exitCode, stderr, stdout } = await runOurs(args, directory, tool);
  assert.equal(exitCode, 0, `${args.join(" ")}: ${stderr}${stdout}`);
}

type Line = readonly [line: string, promises?: Partial<Omit<Scenario, "name" | "args">>];

const makes = (...atomic: string[]) => ({ atomic, keeps: ["source.raw", "lone.q"], again: true });
const changes = (image: string, more: Partial<Scenario> = {}) => ({
  keeps: [image],
  sound: [image],
  ...more,
});
/** Refcounts have risen, and the entries do not say so yet. */
const LOOSE_FLAGS = { harmless: /^ERROR OFLAG_COPIED / };

const LINES: readonly Line[] = [
  ["convert -f raw -O qcow2 source.raw new.q", makes("new.q")],
  ["convert -f raw -O raw source.raw new.raw", makes("new.raw")],
  ["convert -O qcow2 -c lone.q new.q", makes("new.q")],
  ["convert -O raw lone.q old.raw", makes("old.raw")],
  ["convert -f raw -O qcow2 source.raw old.q", makes("old.q")],
  ["convert -O qcow2 -o data_file=new.data,data_file_raw=on lone.q new.q", makes("new.q", "new.data")],
  ["convert -O qcow2 -B base.q -F qcow2 top.q new.q", makes("new.q")],
  ["convert -O vdi lone.q new.vdi", makes("new.vdi")],
  ["convert -O vpc lone.q new.vpc", makes("new.vpc")],
  ["convert -n -f raw -O qcow2 source.raw old.q", { keeps: ["source.raw"], sound: ["old.q"], again: true }],
  ["convert -n -f raw -O raw source.raw low.raw", { keeps: ["source.raw"], again: true }],
  ["create -q -f qcow2 new.q 1M", makes("new.q")],
  ["create -q -f qcow2 -o preallocation=full old.q 1M", makes("old.q")],
  ["create -q -f raw -o preallocation=full new.raw 1M", makes("new.raw")],
  ["dd -f raw -O qcow2 bs=64k if=source.raw of=new.q", makes("new.q")],
  ["dd -O raw bs=64k if=lone.q of=old.raw", makes("old.raw")],
  ["commit -q top.q", { keeps: ["top.q"], sound: ["top.q", "base.q"], again: true }],
  ["commit -q -d top.q", { keeps: ["top.q"], sound: ["top.q", "base.q"], again: true }],
  ["commit -q overlow.q", { keeps: ["overlow.q"], sound: ["overlow.q"], again: true }],
  ["rebase -b other.q -F qcow2 top.q", { ...changes("top.q"), again: true }],
  ["rebase -b '' top.q", { ...changes("top.q"), again: true }],
  ["rebase -u -b other.q -F qcow2 lone.q", { sound: ["lone.q"], again: true }],
  ["resize -q plain.q 5M", { ...changes("plain.q"), again: true }],
  ["resize -q --preallocation=full plain.q 3M", changes("plain.q")],
  ["resize -q --shrink base.q 512k", { ...changes("base.q"), again: true }],
  ["resize -q -f raw low.raw 3M", { keeps: ["low.raw"], again: true }],
  ["amend -o lazy_refcounts=on plain.q", { ...changes("plain.q"), again: true }],
  ["amend -o refcount_bits=64 plain.q", { ...changes("plain.q"), again: true }],
  ["amend -o compat=0.10 base.q", { ...changes("base.q"), again: true }],
  ["snapshot -c second plain.q", changes("plain.q", LOOSE_FLAGS)],
  ["snapshot -a first plain.q", { sound: ["plain.q"], again: true, ...LOOSE_FLAGS }],
  ["snapshot -d first plain.q", changes("plain.q", LOOSE_FLAGS)],
  ["snapshot -c second lone.q", changes("lone.q", LOOSE_FLAGS)],
  ["bitmap --add -g 4k lone.q two", changes("lone.q")],
  ["bitmap --remove lone.q one", changes("lone.q")],
  ["bitmap --clear lone.q one", changes("lone.q")],
  ["bitmap --add -g 8k --merge one lone.q two", changes("lone.q")],
  ["check -q -r all lone.q", { ...changes("lone.q"), again: true }],
];

const IO_LINES: readonly Line[] = [
  [
    "-c 'write -P 7 0 300k' -c 'discard 300k 100k' -c 'write -z 500k 100k' lone.q",
    { sound: ["lone.q"], again: true },
  ],
  [
    "-c 'write -P 7 0 300k' -c flush -c 'truncate 2M' top.q",
    { sound: ["top.q"], keeps: ["base.q"], again: true },
  ],
];

const NOTHING = { keeps: [], atomic: [], sound: [], again: false };

export const SCENARIOS: readonly Scenario[] = [
  ...LINES.map(([line, promises]) => ({
    ...NOTHING,
    name: line,
    args: words(line).map(unquote),
    ...promises,
  })),
  ...IO_LINES.map(([line, promises]) => ({
    ...NOTHING,
    name: `io ${line}`,
    tool: "qemu-io" as const,
    args: words(line).map(unquote),
    ...promises,
  })),
];

function unquote(word: string): string {
  return word === "''" ? "" : word;
}

/** What is compared: files byte by byte, images by what the guest sees. */
export interface State {
  readonly files: ReadonlyMap<string, string>;
  readonly contents: ReadonlyMap<string, Uint8Array>;
}

export async function stateOf(directory: string, { keeps }: Scenario): Promise<State> {
  const files = new Map<string, string>();
  for (const name of fs.readdirSync(directory).sort()) {
    const isUnique = HAS_UNIQUE_ID.test(name);
    const bytes = isUnique ? await contentOf(directory, name) : fs.readFileSync(path.join(directory, name));
    files.set(name, createHash("sha1").update(bytes).digest("hex"));
  }
  const contents = new Map<string, Uint8Array>();
  for (const name of keeps) contents.set(name, await contentOf(directory, name));
  return { files, contents };
}

/** Files that are never made the same twice. */
const HAS_UNIQUE_ID = /\.(vdi|vpc|vhdx|vmdk)$/;

async function contentOf(directory: string, name: string): Promise<Uint8Array> {
  await using image = await openIn(directory, name);
  return image.read(0, await image.getLength());
}

function openIn(directory: string, name: string, readOnly = true): Promise<BlockBackend> {
  const ending = path.extname(name).slice(1);
  const driver = { q: "qcow2", data: "raw" }[ending] ?? ending;
  return openBackend(
    { driver, file: { driver: "file", filename: path.join(directory, name) } },
    { flags: { readOnly } },
  );
}

/** Throws where something is not as the scenario promises; `done` is what a run without a fault leaves. */
export async function checkPromises(
  directory: string,
  scenario: Scenario,
  before: State,
  done: State,
  leftovers: RegExp | undefined,
): Promise<void> {
  const now = await stateOf(directory, scenario);
  for (const [name, content] of now.contents) {
    const old = before.contents.get(name) as Uint8Array;
    const bytes = Math.min(old.length, content.length);
    const isSame = Buffer.compare(old.subarray(0, bytes), content.subarray(0, bytes)) === 0;
    assert.ok(isSame, `${name} reads otherwise than before`);
  }
  for (const name of scenario.atomic) {
    const [was, is, whole] = [before, now, done].map(({ files }) => files.get(name));
    assert.ok(is === was || is === whole, `${name} is neither as before nor whole`);
  }
  for (const name of now.files.keys()) {
    const isKnown = before.files.has(name) || done.files.has(name) || leftovers?.test(name);
    assert.ok(isKnown, `${name} is left over`);
  }
  for (const name of scenario.sound) await checkSound(directory, name, scenario.harmless);
}

async function checkSound(directory: string, name: string, harmless: RegExp | undefined): Promise<void> {
  if (await isDirty(directory, name)) await (await openIn(directory, name, false)).close();
  await using image = await openIn(directory, name);
  const lines: string[] = [];
  const report = (line: string) => lines.push(line);
  const result = await checkImage(image, { fixLeaks: false, fixErrors: false, report }).catch(
    (error: unknown) => {
      if (error instanceof BlockError && error.errno === "ENOTSUP") return undefined;
      throw error;
    },
  );
  if (!result) return;
  const borne = harmless ? lines.filter((line) => harmless.test(line)).length : 0;
  assert.deepEqual([result.corruptions - borne, result.checkErrors], [0, 0], `${name}: ${lines.join("\n")}`);
}

/** It says that it was not closed: it is repaired when it is next written. */
async function isDirty(directory: string, name: string): Promise<boolean> {
  await using image = await openIn(directory, name);
  const info = await image.run(async (co, { node }) => node.ops.getInfo?.(co));
  return info?.isDirty ?? false;
}
