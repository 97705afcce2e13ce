/** Reopening: other options, and reading only or writing from here on.  @qemu qcow2_reopen_prepare */

import { type Coroutine, graphRdlock } from "../../src/block/coroutine.ts";
import type { ReopenAction, ReopenRequest } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import { type Options, takeOptions } from "../../src/block/options.ts";
import { checkFormat } from "./crypto.ts";
import { markClean, reopenReadOnly, reopenWritable } from "./inactivate.ts";
import { makeCaches, runtimeOf, startCleaning } from "./runtime.ts";
import { options } from "./runtime-options.ts";
import type { Qcow2State } from "./state.ts";

/** Options come into force with the mode, or not at all. */
export async function reopen(
  co: Coroutine<"none">,
  state: Qcow2State,
  { readOnly, options: given }: ReopenRequest,
): Promise<ReopenAction> {
  const { node } = state;
  const putInForce = await prepareOptions(co, state, given, node.flags.unmap);
  if (readOnly === node.readOnly) return { commit: putInForce, abort: () => {} };
  const action = await (readOnly ? reopenReadOnly(co, state) : reopenWritable(state));
  return {
    ...action,
    commit: () => {
      putInForce();
      action.commit();
    },
  };
}

/**
 * Checks new options, and leaves nothing in the caches that the file does not have; gives what puts them in force.
 * @qemu qcow2_update_options_prepare
 */
async function prepareOptions(
  co: Coroutine<"none">,
  state: Qcow2State,
  given: Options,
  unmap: boolean,
): Promise<() => void> {
  const values = takeOptions(options, new Map(given));
  checkFormat(values["encrypt.format"], state.crypto?.format);
  const runtime = runtimeOf(values, state, unmap);
  if (!state.node.readOnly && !state.isBroken)
    await graphRdlock(co, (reader) =>
      state.lock.run(async () => {
        await flushing("Failed to flush the L2 table cache", state.l2Cache.flush(reader));
        await flushing("Failed to flush the refcount block cache", state.refcountCache.flush(reader));
        if (state.useLazyRefcounts && !runtime.useLazyRefcounts)
          await flushing("Failed to disable lazy refcounts", markClean(reader, state));
      }),
    );
  const { file, dataFile, clusterSize } = state;
  return () => {
    const { passDiscard, useLazyRefcounts, overlapChecks: checks, cleanSeconds } = runtime;
    Object.assign(
      state,
      makeCaches(file, dataFile, runtime, clusterSize, () => state),
    );
    Object.assign(state, { passDiscard, useLazyRefcounts, overlapChecks: checks });
    startCleaning(state, cleanSeconds);
  };
}

async function flushing(failure: string, work: Promise<void>): Promise<void> {
  try {
    await work;
  } catch (error) {
    throw BlockError.wrap(failure, error);
  }
}
