/** What an image must be after a cut: it opens, has no corruption beyond leaks, holds what was flushed, and goes on working. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import type { BlockBackend } from "../../src/block/backend.ts";
import { BlockError } from "../../src/block/errors.ts";
import { listSnapshots, loadSnapshot } from "../../src/block/snapshot.ts";
import { checkImage } from "../../src/jobs/check.ts";
import type { Op } from "../random-ops.ts";
import type { Random } from "../support/random.ts";
import { run } from "../support/tools.ts";
import type { Disk } from "./disk.ts";
import { checkContent, checkSnapshot, type Outlook } from "./history.ts";
import { layerName, openLayer, readAll, topProfile } from "./image.ts";
import type { Variant } from "./variants.ts";

export async function inspect(
  variant: Variant,
  disk: Disk,
  outlook: Outlook,
  dice: Random,
  directory: string | undefined,
): Promise<void> {
  const top = variant.layers.length - 1;
  const image = await openRepaired(variant, top);
  const content = await readAll(image);
  const needsRepair = await isDirty(variant, image);
  try {
    checkContent(content, outlook);
    await checkSnapshots(variant, image, outlook);
    await checkBitmaps(image, outlook);
  } finally {
    await image.close();
  }
  const harmless = outlook.open.some(({ op }) => SHARING.has(op.kind)) ? LOOSE_FLAG : undefined;
  if (directory !== undefined) askQemu(variant, disk, harmless, needsRepair, directory);
  for (const index of variant.layers.keys()) await checkLayer(variant, index, harmless);
  if (harmless || dice.chance(0.2)) await goOn(variant, content, harmless, dice);
  assert.equal(disk.openNodes, 0, "nodes that are still open");
}

/**
 * While such a step runs, refcounts have risen and the entries do not say so yet, or the other way round: `check` calls
 * that an error, here as in QEMU, though nothing comes of it. That nothing does is what `goOn` is to show then.
 */
const SHARING: ReadonlySet<string> = new Set(["snapshot", "goto", "delete"] satisfies Op["kind"][]);
const LOOSE_FLAG = /^ERROR OFLAG_COPIED /;

function countHarmless({ isLeak }: Variant, lines: readonly string[], harmless: RegExp | undefined): number {
  return lines.filter((line) => isLeak?.(line) || harmless?.test(line)).length;
}

/** Opens it to be read, after the repair that it may ask for. */
export async function openRepaired(variant: Variant, index: number): Promise<BlockBackend> {
  const image = await openLayer(variant, index, { readOnly: true }).catch((error: unknown) => {
    if (!(error instanceof BlockError && variant.asksForRepair?.test(error.message))) throw error;
    return undefined;
  });
  if (image && !(variant.needsRepair && (await isDirty(variant, image)))) return image;
  await image?.close();
  await repair(variant, index);
  return openLayer(variant, index, { readOnly: true });
}

/** As the driver says, or as the header does. */
async function isDirty({ needsRepair }: Variant, image: BlockBackend): Promise<boolean> {
  const { node } = image;
  if (needsRepair)
    return needsRepair(
      await image.run(async (co) => node.children.get("file")?.preadBytes(co, 0, 512) ?? new Uint8Array()),
    );
  const info = await image.run(async (co) => node.ops.getInfo?.(co));
  return info?.isDirty ?? false;
}

/** Opens it to be written, after the repair that it may ask for. */
async function openToWrite(variant: Variant, index: number): Promise<BlockBackend> {
  try {
    return await openLayer(variant, index, { readOnly: false });
  } catch (error) {
    if (!(error instanceof BlockError && variant.asksForRepair?.test(error.message))) throw error;
    await repair(variant, index);
    return openLayer(variant, index, { readOnly: false });
  }
}

async function checkSnapshots(variant: Variant, image: BlockBackend, outlook: Outlook): Promise<void> {
  if (!image.node.ops.listSnapshots) return;
  const found = await image.run((co, { node }) => listSnapshots(co, node));
  for (const name of outlook.surely)
    assert.ok(
      found.some((each) => each.name === name),
      `the snapshot '${name}' is gone`,
    );
  for (const { name } of found) {
    await using shown = await openLayer(variant, variant.layers.length - 1, { readOnly: true });
    await shown.run((co, { node }) => loadSnapshot(co, node, { name }));
    checkSnapshot(name, await readAll(shown), outlook);
  }
}

/** A bitmap that is not marked as in use knows all that has changed. */
async function checkBitmaps(image: BlockBackend, { bitmaps }: Outlook): Promise<void> {
  for (const { name, inconsistent } of image.bitmaps.list()) {
    const changed = bitmaps.changed.get(name);
    if (inconsistent || !changed) continue;
    let clean = 0;
    const look = (end: number) =>
      assert.equal(changed.subarray(clean, end).indexOf(1), -1, `'${name}' does not know what has changed`);
    for await (const { offset, bytes } of image.bitmaps.extents(name)) {
      look(offset);
      clean = offset + bytes;
    }
    look(changed.length);
  }
}

const NO_REPAIR = { fixLeaks: false, fixErrors: false };

/** Where the image says that it was not closed, its repair comes first, as when it is next written. */
export async function checkLayer(
  variant: Variant,
  index: number,
  harmless: RegExp | undefined,
): Promise<void> {
  let image = await openLayer(variant, index, { readOnly: true });
  try {
    if (!image.node.ops.check) return;
    if (await isDirty(variant, image)) {
      await image.close();
      await repair(variant, index);
      image = await openLayer(variant, index, { readOnly: true });
    }
    const lines: string[] = [];
    const { corruptions, checkErrors } = await checkImage(image, {
      ...NO_REPAIR,
      report: (line) => lines.push(line),
    });
    const borne = countHarmless(variant, lines, harmless);
    assert.deepEqual([corruptions - borne, checkErrors], [0, 0], lines.join("\n"));
  } finally {
    if (image.isOpen) await image.close();
  }
}

async function repair(variant: Variant, index: number): Promise<void> {
  await using image = await openLayer(variant, index, { readOnly: false, check: true });
  if (image.node.ops.check) await checkImage(image, { fixLeaks: true, fixErrors: true, report: () => {} });
}

async function readSnapshots(variant: Variant): Promise<ReadonlyMap<string, Uint8Array>> {
  const top = variant.layers.length - 1;
  const all = new Map<string, Uint8Array>();
  await using image = await openLayer(variant, top, { readOnly: true });
  if (!image.node.ops.listSnapshots) return all;
  for (const { name } of await image.run((co, { node }) => listSnapshots(co, node))) {
    await using shown = await openLayer(variant, top, { readOnly: true });
    await shown.run((co, { node }) => loadSnapshot(co, node, { name }));
    all.set(name, await readAll(shown));
  }
  return all;
}

/** The image is of use after the cut: what is written to it is there, and nothing else has changed. */
async function goOn(
  variant: Variant,
  content: Uint8Array,
  harmless: RegExp | undefined,
  dice: Random,
): Promise<void> {
  const top = variant.layers.length - 1;
  const { clusterSize } = topProfile(variant);
  const snapshots = await readSnapshots(variant);
  const model = content.slice();
  {
    await using image = await openToWrite(variant, top);
    for (let count = 0; count < 6 && model.length > 0; count++) {
      const offset = dice.below(Math.ceil(model.length / clusterSize)) * clusterSize;
      const bytes = Math.min(clusterSize * dice.between(1, 3), model.length - offset);
      const data = new Uint8Array(bytes).fill(dice.between(1, 255));
      await image.write(offset, data);
      model.set(data, offset);
    }
  }
  await using image = await openLayer(variant, top, { readOnly: true });
  expectSame(await readAll(image), model, "more was written");
  for (const [name, found] of await readSnapshots(variant))
    expectSame(found, snapshots.get(name), `more was written, in snapshot '${name}'`);
  await checkLayer(variant, top, harmless);
}

function expectSame(found: Uint8Array, wanted: Uint8Array | undefined, after: string): void {
  assert.ok(wanted);
  const wrong = Buffer.compare(found, wanted) === 0 ? -1 : found.findIndex((byte, at) => byte !== wanted[at]);
  assert.equal(wrong, -1, `byte ${wrong} is another one after ${after}`);
}

function askQemu(
  variant: Variant,
  disk: Disk,
  harmless: RegExp | undefined,
  needsRepair: boolean,
  directory: string,
): void {
  const { format } = variant.layers[0] as (typeof variant.layers)[number];
  const filename = path.join(directory, "cut");
  fs.writeFileSync(filename, disk.files.get(layerName(0)) ?? new Uint8Array());
  // What was not closed is repaired first.
  if (needsRepair) run("qemu-img", ["check", "-q", "-r", "all", "-f", format, filename]);
  const { stdout, stderr } = run("qemu-img", ["check", "-f", format, "--output=json", filename]);
  const result = JSON.parse(stdout || "{}") as { corruptions?: number; "check-errors"?: number };
  const borne = countHarmless(variant, stderr.split("\n"), harmless);
  assert.deepEqual(
    [(result.corruptions ?? 0) - borne, result["check-errors"]],
    [0, 0],
    `qemu-img check: ${stderr}`,
  );
}
