/**
 * Random operations that run alone, with nothing else under way: each kind has one entry that says how often it comes,
 * how it is made, and what it does to image and model. A new kind is a new entry, and a member of `LoneOp`.
 */

import assert from "node:assert/strict";
import type { BlockBackend } from "../src/block/backend.ts";
import { BlockError } from "../src/block/errors.ts";
import { createSnapshot, deleteSnapshot, gotoSnapshot, loadSnapshot } from "../src/block/snapshot.ts";
import { commitImage } from "../src/jobs/commit.ts";
import { type BitmapOp, bitmapKinds, resizeBitmaps } from "./random-bitmaps.ts";
import type { OpsProfile, OpsTarget } from "./random-ops.ts";
import { type RepairOp, repairKinds } from "./random-repair.ts";
import type { Random } from "./support/random.ts";

export type LoneOp =
  | { readonly kind: "truncate"; readonly bytes: number }
  | { readonly kind: "snapshot"; readonly name: string }
  | { readonly kind: "goto"; readonly name: string }
  | { readonly kind: "delete"; readonly name: string }
  /** Reads what every snapshot holds. */
  | { readonly kind: "snapshots" }
  /** What the image has goes to its backing file. */
  | { readonly kind: "commit" }
  | BitmapOp
  | RepairOp;

/** What will be when the steps made so far have run, as far as it can be known. */
export interface Outlook {
  /** Length in bytes. */
  size: number;
  /** Lengths of snapshots by their names. */
  readonly snapshots: Map<string, number>;
}

/** What a step works on. */
export interface LoneRun {
  readonly profile: OpsProfile;
  readonly target: OpsTarget;
  /** Another one after each `reopen`. */
  readonly image: BlockBackend;
  /** Closes the image, runs `fn`, and opens it again. */
  readonly closed: (fn?: () => Promise<void>) => Promise<void>;
}

export interface LoneKind<O extends LoneOp> {
  /** Of a hundred steps. */
  readonly percent: number;
  readonly isFor: (profile: OpsProfile) => boolean;
  /** Undefined: nothing to be done now. Sets `outlook` to what holds afterwards. */
  readonly make: (dice: Random, profile: OpsProfile, outlook: Outlook) => O | undefined;
  /** Cut down, a run may lack the steps that this one builds on: then it does nothing. */
  readonly run: (run: LoneRun, op: O) => Promise<void>;
}

/** So many that tables with several rows and clusters with several users come about. */
const MAX_SNAPSHOTS = 5;

export const loneKinds: {
  readonly [K in LoneOp["kind"]]: LoneKind<Extract<LoneOp, { readonly kind: K }>>;
} = {
  truncate: {
    percent: 3,
    isFor: ({ resize }) => Boolean(resize),
    make(dice, profile, outlook) {
      const wanted = makeSize(dice, profile, outlook.size);
      const bytes = profile.resize === "grow" ? Math.max(wanted, outlook.size) : wanted;
      if (!profile.v2 || outlook.snapshots.size === 0) outlook.size = bytes;
      return { kind: "truncate", bytes };
    },
    async run({ image, target, profile }, { bytes }) {
      if (profile.v2 && snapshotsOf(target).size > 0)
        return assert.rejects(image.truncate(bytes), (error) => hasErrno(error, "ENOTSUP"));
      await image.truncate(bytes);
      const resized = new Uint8Array(bytes);
      resized.set(target.model.subarray(0, bytes));
      resizeBitmaps(target, resized);
      target.model = resized;
      assert.equal(await image.getLength(), bytes, "length after truncate");
    },
  },

  snapshot: {
    percent: 4,
    isFor: ({ snapshots }) => Boolean(snapshots),
    make(dice, _, { snapshots, size }) {
      const name = `snapshot ${dice.below(1000)}`;
      if (snapshots.size >= MAX_SNAPSHOTS || snapshots.has(name)) return undefined;
      snapshots.set(name, size);
      return { kind: "snapshot", name };
    },
    async run({ image, target, profile }, { name }) {
      const info = { name, dateSec: 1, dateNsec: 2, vmClockNsec: 3n, vmStateSize: 0 };
      const isTaken = await succeeds(
        profile,
        image.context.run((main) => createSnapshot(main, image.node, info)),
      );
      if (isTaken) snapshotsOf(target).set(name, target.model.slice());
    },
  },

  goto: {
    percent: 3,
    isFor: ({ snapshots }) => Boolean(snapshots),
    make(dice, _, outlook) {
      const found = pickSnapshot(dice, outlook);
      if (found) outlook.size = found.size;
      return found && { kind: "goto", name: found.name };
    },
    async run({ image, target, profile }, { name }) {
      const content = snapshotsOf(target).get(name);
      if (!content) return;
      if (target.bitmaps && target.bitmaps.size > 0)
        return assert.rejects(
          image.context.run((main) => gotoSnapshot(main, image.node, name)),
          (error) => hasErrno(error, "EBUSY"),
        );
      const isDone = await succeeds(
        profile,
        image.context.run((main) => gotoSnapshot(main, image.node, name)),
      );
      if (isDone) target.model = content.slice();
      assert.equal(await image.getLength(), target.model.length, "length after going to a snapshot");
    },
  },

  delete: {
    percent: 3,
    isFor: ({ snapshots }) => Boolean(snapshots),
    make(dice, _, outlook) {
      const found = pickSnapshot(dice, outlook);
      if (found) outlook.snapshots.delete(found.name);
      return found && { kind: "delete", name: found.name };
    },
    async run({ image, target }, { name }) {
      if (!snapshotsOf(target).has(name)) return;
      // What failed at freeing clusters has taken the snapshot out of the table all the same.
      const isGone = target.mayFail && !(await image.snapshots.list()).some((each) => each.name === name);
      if (!isGone) await image.context.run((main) => deleteSnapshot(main, image.node, { name }));
      snapshotsOf(target).delete(name);
    },
  },

  snapshots: {
    percent: 1,
    isFor: ({ snapshots }) => Boolean(snapshots),
    make: () => ({ kind: "snapshots" }),
    run: (run) => run.closed(() => verifySnapshots(run.target)),
  },

  commit: {
    percent: 4,
    isFor: ({ commit }) => commit === true,
    make: () => ({ kind: "commit" }),
    async run(run) {
      const { image, target } = run;
      try {
        await commitImage(image);
      } catch (error) {
        // All was copied; but an image that could not be emptied is of no use before it is opened again.
        if (!target.mayFail || !hasErrno(error, "ENOMEDIUM")) throw error;
        await run.closed();
      }
      target.below = target.model.slice();
    },
  },

  ...bitmapKinds,
  ...repairKinds,
};

function snapshotsOf({ snapshots }: OpsTarget): Map<string, Uint8Array> {
  assert.ok(snapshots, "the target keeps no snapshots");
  return snapshots;
}

/** Reads every snapshot of an image that is not open. */
async function verifySnapshots(target: OpsTarget): Promise<void> {
  for (const [name, content] of snapshotsOf(target)) {
    const image = await target.openReadOnly?.();
    assert.ok(image, "the target can't be opened to be read only");
    try {
      await image.run((co, { node }) => loadSnapshot(co, node, { name }));
      // The length stays that of the active content.
      const bytes = Math.min(content.length, await image.getLength());
      const wrong = Buffer.compare(await image.read(0, bytes), content.subarray(0, bytes)) !== 0;
      assert.ok(!wrong, `${name} holds something else`);
    } finally {
      await image.close();
    }
  }
}

/** False: a refcount can't grow any more, and nothing was done. */
async function succeeds({ snapshots }: OpsProfile, step: Promise<void>): Promise<boolean> {
  try {
    await step;
    return true;
  } catch (error) {
    if (snapshots === "overflow" && hasErrno(error, "EINVAL")) return false;
    throw error;
  }
}

function hasErrno(error: unknown, errno: string): boolean {
  return error instanceof BlockError && error.errno === errno;
}

function pickSnapshot(
  dice: Random,
  { snapshots }: Outlook,
): { readonly name: string; readonly size: number } | undefined {
  if (snapshots.size === 0) return undefined;
  const [name, size] = dice.pick([...snapshots]);
  return { name, size };
}

/** A bit longer or shorter, so that tables grow at times; within a factor of two of the first size. */
function makeSize(dice: Random, profile: OpsProfile, size: number): number {
  const least = profile.size / 2;
  const most = profile.size * 2;
  const change = dice.pick([512, 4096, profile.clusterSize, profile.size / 4]) * dice.between(-3, 3);
  return Math.floor(Math.min(Math.max(size + change, least), most) / 512) * 512;
}
