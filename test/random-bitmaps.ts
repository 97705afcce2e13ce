/** Dirty bitmaps among the random operations: what a model says must be dirty, is. */

import assert from "node:assert/strict";
import type { BlockBackend } from "../src/block/backend.ts";
import type { LoneKind } from "./random-lone-ops.ts";
import type { OpsProfile, OpsTarget } from "./random-ops.ts";
import type { Random } from "./support/random.ts";

export type BitmapOp =
  | {
      readonly kind: "bitmap";
      readonly action: (typeof ACTIONS)[number];
      readonly name: string;
      /** For "merge". */
      readonly source: string;
      /** For "add". */
      readonly granularity: number;
    }
  /** Stores and loads all bitmaps, and looks whether they know what has changed. */
  | { readonly kind: "bitmaps" };

const ACTIONS = ["add", "add", "remove", "enable", "disable", "clear", "merge"] as const;

const NAMES = ["red", "green", "blue"];

/** What a bitmap must know. */
export interface BitmapModel {
  enabled: boolean;
  /** Non-zero for each byte that must lie in a dirty granule, whatever it was since `since`. */
  changed: Uint8Array;
  /** The content from which on changes count, while it is enabled. */
  since: Uint8Array;
}

type BitmapKinds = {
  readonly [K in BitmapOp["kind"]]: LoneKind<Extract<BitmapOp, { readonly kind: K }>>;
};

export const bitmapKinds: BitmapKinds = {
  bitmap: {
    percent: 6,
    isFor: ({ bitmaps }: OpsProfile) => Boolean(bitmaps),
    make: (dice: Random, { clusterSize }: OpsProfile) => ({
      kind: "bitmap",
      action: dice.pick(ACTIONS),
      name: dice.pick(NAMES),
      source: dice.pick(NAMES),
      granularity: dice.pick([512, 4096, 65536, clusterSize]),
    }),
    async run({ image, target }, op) {
      const { action, name } = op;
      const models = bitmapsOf(target);
      const bitmap = models.get(name);
      if (action === "add") {
        if (!bitmap) await add(image, target, op);
      } else if (bitmap && (action !== "merge" || models.has(op.source)))
        await change(image, target, bitmap, op);
    },
  },

  bitmaps: {
    percent: 2,
    isFor: ({ bitmaps }: OpsProfile) => Boolean(bitmaps),
    make: () => ({ kind: "bitmaps" }),
    async run(run) {
      await run.closed();
      await verifyBitmaps(run.image, run.target);
    },
  },
};

function bitmapsOf({ bitmaps }: OpsTarget): Map<string, BitmapModel> {
  assert.ok(bitmaps, "the target keeps no bitmaps");
  return bitmaps;
}

type ChangeOp = Extract<BitmapOp, { readonly kind: "bitmap" }>;

async function add(image: BlockBackend, target: OpsTarget, { name, granularity }: ChangeOp): Promise<void> {
  await image.bitmaps.add(name, { persistent: true, granularity });
  const { model } = target;
  bitmapsOf(target).set(name, { enabled: true, changed: new Uint8Array(model.length), since: model.slice() });
}

async function change(
  { bitmaps }: BlockBackend,
  target: OpsTarget,
  bitmap: BitmapModel,
  { action, name, source }: ChangeOp,
): Promise<void> {
  const { model } = target;
  noteChanges(bitmap, model);
  if (action === "merge") {
    await bitmaps.merge(name, [source]);
    const from = bitmapsOf(target).get(source) as BitmapModel;
    noteChanges(from, model);
    for (let at = 0; at < model.length; at++) if (from.changed[at] !== 0) bitmap.changed[at] = 1;
  } else if (action === "remove") {
    await bitmaps.remove(name);
    bitmapsOf(target).delete(name);
  } else if (action === "clear") {
    await bitmaps.clear(name);
    bitmap.changed.fill(0);
  } else if (action === "enable") {
    await bitmaps.enable(name);
    bitmap.enabled = true;
  } else {
    await bitmaps.disable(name);
    bitmap.enabled = false;
  }
}

/** Takes note of what has changed up to now. */
export function noteChanges(bitmap: BitmapModel, model: Uint8Array): void {
  const { changed, since, enabled } = bitmap;
  if (enabled) for (let at = 0; at < model.length; at++) if (model[at] !== since[at]) changed[at] = 1;
  bitmap.since = model.slice();
}

/** To be called before the model gets another length: what is cut off comes back clean, and new bytes are no change. */
export function resizeBitmaps(target: OpsTarget, resized: Uint8Array): void {
  for (const bitmap of target.bitmaps?.values() ?? []) {
    noteChanges(bitmap, target.model);
    const { changed } = bitmap;
    bitmap.changed = new Uint8Array(resized.length);
    bitmap.changed.set(changed.subarray(0, resized.length));
    bitmap.since = resized.slice();
  }
}

/** Every byte that changed since a bitmap was made or cleared lies in a dirty granule. */
export async function verifyBitmaps(image: BlockBackend, target: OpsTarget): Promise<void> {
  if (!target.bitmaps) return;
  const { model, bitmaps } = target;
  assert.deepEqual(
    image.bitmaps
      .list()
      .map(({ name, enabled, inconsistent }) => ({ name, enabled, inconsistent }))
      .sort((a, b) => (a.name < b.name ? -1 : 1)),
    [...bitmaps]
      .map(([name, { enabled }]) => ({ name, enabled, inconsistent: false }))
      .sort((a, b) => (a.name < b.name ? -1 : 1)),
  );
  for (const [name, bitmap] of bitmaps) {
    noteChanges(bitmap, model);
    let clean = 0;
    const look = (end: number) => {
      const missed = bitmap.changed.subarray(clean, end).indexOf(1);
      assert.equal(missed, -1, `offset ${clean + missed} has changed, and '${name}' says that it is clean`);
    };
    for await (const { offset, bytes } of image.bitmaps.extents(name)) {
      look(offset);
      clean = offset + bytes;
    }
    look(model.length);
  }
}
