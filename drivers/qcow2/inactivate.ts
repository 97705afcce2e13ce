/** Leaving a file that is right by itself: when the image is closed, and when it is only read from here on.  @qemu qcow2_inactivate */

import { type Coroutine, graphRdlock } from "../../src/block/coroutine.ts";
import type { ReopenAction } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import { makeBitmapsWritable } from "./bitmap-load.ts";
import { storeBitmaps } from "./bitmap-store.ts";
import { repairDirty } from "./check.ts";
import { writeIncompatible } from "./corruption.ts";
import { Incompatible } from "./layout.ts";
import { settleFreed } from "./refcount.ts";
import { isDirty, type Qcow2State } from "./state.ts";

/** Called with the lock held. A dirty image's refcounts may wait.  @qemu qcow2_write_caches */
export async function writeCaches(co: Coroutine<"read">, state: Qcow2State): Promise<void> {
  if (state.isBroken) return;
  await state.l2Cache.write(co);
  if (!isDirty(state)) await state.refcountCache.write(co);
  await settleFreed(co, state);
}

/** For the close of an image that could be written: each part is tried, and what fails is said. */
export async function inactivate(co: Coroutine<"none">, state: Qcow2State): Promise<void> {
  const failures: BlockError[] = [];
  const attempt = async (what: string, step: () => Promise<void>) => {
    try {
      await step();
    } catch (error) {
      failures.push(BlockError.wrap(what, error));
    }
  };
  await graphRdlock(co, (reader) =>
    state.lock.run(async () => {
      await attempt(`Lost persistent bitmaps during inactivation of node '${state.node.nodeName}'`, () =>
        storeBitmaps(reader, state),
      );
      const lost = failures.length;
      await attempt("Failed to flush the L2 table cache", () => state.l2Cache.flush(reader));
      await attempt("Failed to flush the refcount block cache", () => state.refcountCache.flush(reader));
      if (failures.length > lost) return;
      await settleFreed(reader, state);
      await markClean(reader, state);
    }),
  );
  const { error: report } = state.environment;
  if (report) for (const { message } of failures) report(message);
  else if (failures[0]) throw failures[0];
}

/** @qemu qcow2_mark_clean */
export async function markClean(co: Coroutine<"read">, state: Qcow2State): Promise<void> {
  if (!isDirty(state)) return;
  await state.refcountCache.flush(co);
  await state.file.flush(co);
  state.incompatibleFeatures &= ~Incompatible.Dirty;
  await writeIncompatible(co, state);
}

/** From here on the image is only read. Its bitmaps are stored, so they are marked as in use again if that is taken back. */
export async function reopenReadOnly(co: Coroutine<"none">, state: Qcow2State): Promise<ReopenAction> {
  const { dirtyBitmaps } = state.node;
  try {
    await graphRdlock(co, (reader) =>
      state.lock.run(async () => {
        await storeBitmaps(reader, state);
        for (const bitmap of dirtyBitmaps) bitmap.readOnly = bitmap.persistent;
        await writeCaches(reader, state);
        await markClean(reader, state);
      }),
    );
  } catch (error) {
    if (dirtyBitmaps.some(({ readOnly }) => readOnly)) await reopenBitmaps(co, state);
    throw error;
  }
  return { commit: () => {}, abort: (undo) => reopenBitmaps(undo, state) };
}

/** The image is to be written from here on. */
export function reopenWritable(state: Qcow2State): ReopenAction {
  const { incompatibleFeatures } = state;
  if ((incompatibleFeatures & Incompatible.Corrupt) !== 0n)
    throw new BlockError("EACCES", "qcow2: Image is corrupt; cannot be opened read/write");
  const needsRepair = isDirty(state);
  const committed = async (co: Coroutine<"none">) => {
    await reopenBitmaps(co, state);
    if (needsRepair) await graphRdlock(co, (reader) => state.lock.run(() => repairDirty(reader, state)));
  };
  return { commit: () => {}, committed, abort: () => {} };
}

/** If the file can't say that its bitmaps are in use, nothing may change that they don't tell of. */
async function reopenBitmaps(co: Coroutine<"none">, state: Qcow2State): Promise<void> {
  try {
    await graphRdlock(co, (reader) => state.lock.run(() => makeBitmapsWritable(reader, state)));
  } catch (error) {
    state.isBroken = true;
    throw BlockError.wrap(`${state.node.nodeName}: Failed to make dirty bitmaps writable`, error);
  }
}
