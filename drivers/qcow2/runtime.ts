/** What the options of a node decide while it is open: its caches, checks and discards. A reopen may change all of it.  @qemu qcow2_update_options */

import type { BlockChild } from "../../src/block/child.ts";
import { BlockError } from "../../src/block/errors.ts";
import type { OptionValues } from "../../src/block/options.ts";
import { checkOverlap } from "./corruption.ts";
import { Compatible } from "./layout.ts";
import {
  type CacheSizes,
  cacheSizes,
  cleanIntervalSeconds,
  type options,
  overlapChecks,
} from "./runtime-options.ts";
import type { Qcow2State } from "./state.ts";
import { TableCache } from "./table-cache.ts";

type Given = OptionValues<typeof options>;

/** What of an image decides what its options come to. */
type Facts = Pick<Qcow2State, "version" | "compatibleFeatures" | "size" | "clusterSize" | "l2EntryBytes">;

/** What the options come to. */
export type Runtime = Pick<Qcow2State, "passDiscard" | "useLazyRefcounts" | "overlapChecks"> & {
  readonly sizes: CacheSizes;
  /** 0: tables are kept. */
  readonly cleanSeconds: number;
};

/** `unmap`: discards of the guest are passed on where no option says otherwise. */
export function runtimeOf(given: Given, image: Facts, unmap: boolean): Runtime {
  return {
    sizes: cacheSizes(given, image.size, image.clusterSize, image.l2EntryBytes),
    cleanSeconds: cleanIntervalSeconds(given),
    useLazyRefcounts: usesLazyRefcounts(given, image),
    overlapChecks: overlapChecks(given),
    passDiscard: {
      never: false,
      always: true,
      request: given["pass-discard-request"] ?? unmap,
      snapshot: given["pass-discard-snapshot"] ?? true,
      other: given["pass-discard-other"] ?? false,
    },
  };
}

function usesLazyRefcounts(given: Given, { version, compatibleFeatures }: Facts): boolean {
  const lazy = given["lazy-refcounts"] ?? (compatibleFeatures & Compatible.LazyRefcounts) !== 0n;
  if (lazy && version < 3)
    throw new BlockError(
      "EINVAL",
      "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level",
    );
  return lazy;
}

/** Each may write its own kind of tables only. */
export function makeCaches(
  file: BlockChild,
  dataFile: BlockChild,
  { sizes }: Runtime,
  clusterSize: number,
  stateOf: () => Qcow2State,
) {
  return {
    l2Cache: new TableCache({
      file,
      dataFile,
      tableBytes: sizes.l2EntryBytes,
      capacity: sizes.l2Tables,
      loadEvent: "l2_load",
      writeEvent: "l2_update",
      checkWrite: (co, offset, bytes) => checkOverlap(co, stateOf(), offset, bytes, "active L2 table"),
    }),
    refcountCache: new TableCache({
      file,
      dataFile,
      tableBytes: clusterSize,
      capacity: sizes.refcountTables,
      writeEvent: "refblock_update_part",
      checkWrite: (co, offset, bytes) => checkOverlap(co, stateOf(), offset, bytes, "refcount block"),
    }),
  };
}

const MAX_TIMER_SECONDS = (2 ** 31 - 1) / 1000;

/** Forgets tables that were not used for so long, from now on. It keeps no process alive.  @qemu cache_clean_timer_init */
export function startCleaning(state: Qcow2State, seconds: number): void {
  clearInterval(state.cleaning);
  state.cleaning = undefined;
  if (seconds <= 0) return;
  const clean = () => {
    if (state.lock.isHeld) return;
    state.l2Cache.dropUnused();
    state.refcountCache.dropUnused();
  };
  state.cleaning = setInterval(clean, Math.min(seconds, MAX_TIMER_SECONDS) * 1000).unref();
}
