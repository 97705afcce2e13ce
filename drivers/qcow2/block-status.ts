/** What the image says of a guest range.  @qemu qcow2_co_block_status */

import type { BlockStatus } from "../../src/block/block-status.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { checkUsable, signalCorruption } from "./corruption.ts";
import { Kind, loadSlice, type Mapping, peekMapping } from "./mapping.ts";
import { countUsed } from "./refcount.ts";
import type { Qcow2State } from "./state.ts";

/** Slices that are loaded for one answer, so that it comes in good time. */
const MAX_LOADS = 16;

/** Runs are joined over clusters, slices and tables as long as they are one to the caller. */
export async function blockStatus(
  co: Coroutine<"read">,
  state: Qcow2State,
  wantZero: boolean,
  guestOffset: number,
  bytes: number,
): Promise<BlockStatus> {
  checkUsable(state);
  if (wantZero && state.metadataPreallocated === undefined)
    state.metadataPreallocated = await detectPreallocation(co, state);
  let first = peekMapping(state, guestOffset, bytes);
  while (!first) {
    await loadSlice(co, state, guestOffset, true);
    first = peekMapping(state, guestOffset, bytes);
  }
  if (first.kind === Kind.Invalid) throw await signalCorruption(co, state, first.problem as string);
  let run = first.bytes;
  // The file will be asked for holes in what is found, and mostly knows of one at the next table: no need to look farther.
  const isCutBelow = state.metadataPreallocated && first.kind === Kind.Normal;
  for (let loads = 0; run < bytes && !isCutBelow; ) {
    const next = peekMapping(state, guestOffset + run, bytes - run);
    if (!next) {
      if (++loads > MAX_LOADS) break;
      await loadSlice(co, state, guestOffset + run, true);
      continue;
    }
    if (!continues(first, next, run)) break;
    run += next.bytes;
  }
  return describe(state, first, run);
}

function continues(first: Mapping, next: Mapping, run: number): boolean {
  if (next.kind !== first.kind) return false;
  const isPlaced =
    first.kind === Kind.Normal || first.kind === Kind.ZeroAlloc || first.kind === Kind.UnallocatedAlloc;
  return !isPlaced || next.hostOffset === first.hostOffset + run;
}

function describe(state: Qcow2State, { kind, hostOffset }: Mapping, bytes: number): BlockStatus {
  // What lies in the file is not what the guest sees.
  const place = state.crypto ? {} : { offset: hostOffset, file: state.dataFile.node };
  switch (kind) {
    case Kind.Normal:
      return {
        bytes,
        data: true,
        zero: false,
        allocated: true,
        ...place,
        ...(state.metadataPreallocated && !state.crypto && { recurse: true }),
      };
    case Kind.Compressed:
      return { bytes, data: true, zero: false, allocated: true, compressed: true };
    case Kind.ZeroPlain:
      return { bytes, data: false, zero: true, allocated: true };
    case Kind.ZeroAlloc:
      return { bytes, data: false, zero: true, allocated: true, ...place };
    case Kind.UnallocatedAlloc:
      return { bytes, data: false, zero: false, allocated: false, ...place };
    case Kind.UnallocatedPlain:
    case Kind.Invalid:
      return { bytes, data: false, zero: false, allocated: false };
  }
}

/**
 * Whether clusters are allocated that the file has no blocks for: then the file is asked where the holes are. It is
 * so if the refcounts speak of a tenth more clusters than the file takes up.  @qemu qcow2_detect_metadata_preallocation
 */
async function detectPreallocation(co: Coroutine<"read">, state: Qcow2State): Promise<boolean> {
  const { file, clusterSize } = state;
  let used: number | undefined;
  try {
    used = await file.node.ops.getAllocatedFileSize?.(co);
  } catch (error) {
    if (error instanceof BlockError) return false;
    throw error;
  }
  if (used === undefined) return false;
  const length = await file.getLength(co);
  const clusters = Math.ceil(length / clusterSize);
  const real = Math.floor(used / clusterSize);
  const threshold = Math.max(Math.floor((real * 10) / 9), real + 2);
  return state.lock.run(async () => (await countUsed(co, state, clusters, threshold)) >= threshold);
}
