/** Changing the virtual size, and setting clusters aside for it.  @qemu qcow2_co_truncate */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { type Prealloc, Req, type ReqFlags } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import { isZero } from "../../src/block/iov.ts";
import { u64 } from "../../src/block/layout.ts";
import { alignUp, MAX_LENGTH, SECTOR_SIZE } from "../../src/block/units.ts";
import { checkBitmapsForResize } from "./bitmap-store.ts";
import { checkUsable, noteMoved } from "./corruption.ts";
import { tableOffset } from "./entries.ts";
import { l1EntriesFor } from "./header.ts";
import { growL1 } from "./l2.ts";
import { Autoclear, HeaderV2 } from "./layout.ts";
import { Kind, l2OffsetOf, lookUp } from "./mapping.ts";
import { preallocate } from "./preallocate.ts";
import { pread } from "./read.ts";
import { freeClusters, lastUsed, settleFreed } from "./refcount.ts";
import { dropUnusedRefblocks } from "./refcount-area.ts";
import { flushTables } from "./snapshot-table.ts";
import { l2Coverage, type Qcow2State } from "./state.ts";
import { pwrite } from "./write.ts";
import { discardRange, zeroize } from "./zero.ts";

/** Sets the virtual size to `bytes`, a multiple of 512. */
export async function truncate(
  co: Coroutine<"read">,
  state: Qcow2State,
  bytes: number,
  exact: boolean,
  prealloc: Prealloc,
  flags: ReqFlags,
): Promise<void> {
  checkUsable(state);
  if (bytes % SECTOR_SIZE !== 0)
    throw new BlockError("EINVAL", `The new size must be a multiple of ${SECTOR_SIZE}`);
  if (state.snapshots.length > 0 && state.version < 3)
    throw new BlockError("ENOTSUP", "Can't resize a v2 image which has snapshots");
  checkBitmapsForResize(state);
  const oldBytes = state.node.totalSectors * SECTOR_SIZE;
  if (bytes < oldBytes) {
    if (prealloc !== "off")
      throw new BlockError("EINVAL", "Preallocation can't be used for shrinking an image");
    await shrink(co, state, bytes, oldBytes, exact);
  } else {
    const isDataFileRaw = (state.autoclearFeatures & Autoclear.DataFileRaw) !== 0n;
    // Whoever writes to a raw data file does not map clusters.
    const mode = isDataFileRaw && prealloc === "off" ? "metadata" : prealloc;
    await grow(co, state, bytes, oldBytes, exact, mode, flags);
  }
  await state.lock.run(async () => {
    await writeSize(co, state, bytes);
  });
}

async function writeSize(co: Coroutine<"read">, state: Qcow2State, bytes: number): Promise<void> {
  const field = new Uint8Array(8);
  u64.write(new DataView(field.buffer), 0, bytes, false);
  try {
    await state.file.pwrite(co, HeaderV2.offsetOf.size, field);
    await state.file.flush(co);
  } catch (error) {
    throw BlockError.wrap("Failed to update the image size", error);
  }
  state.size = bytes;
}

async function shrink(
  co: Coroutine<"read">,
  state: Qcow2State,
  bytes: number,
  oldBytes: number,
  exact: boolean,
): Promise<void> {
  const { clusterSize } = state;
  const start = alignUp(bytes, clusterSize);
  const end = alignUp(oldBytes, clusterSize);
  let growsFile: boolean;
  try {
    growsFile = await discardTail(co, state, start, end);
  } catch (error) {
    throw BlockError.wrap("Failed to discard cropped clusters", error);
  }
  await state.lock.run(async () => {
    try {
      await dropL2Tables(co, state, l1EntriesFor(bytes, clusterSize, state.extendedL2));
    } catch (error) {
      throw BlockError.wrap("Failed to reduce the number of L2 tables", error);
    }
    await settleFreed(co, state);
    await state.refcountCache.flush(co);
    try {
      await dropUnusedRefblocks(co, state);
    } catch (error) {
      throw BlockError.wrap("Failed to discard unused refblocks", error);
    }
    await cutTail(co, state, growsFile);
  });
  if (state.hasDataFile) await state.dataFile.truncate(co, bytes, exact);
}

/** L2 tables that are made to no purpose, at most. */
const MAX_FUTILE_TABLES = 64;

/**
 * Frees the clusters of [start, end). QEMU makes the L2 tables that are not there: one of them stays, where `start`
 * is within it; of the others there is left that the file ends with a cluster, and that free clusters were used.
 * Beyond some of them the others are left out: true if so, and the file is to have that length.
 */
async function discardTail(
  co: Coroutine<"read">,
  state: Qcow2State,
  start: number,
  end: number,
): Promise<boolean> {
  const coverage = l2Coverage(state);
  let futile = 0;
  for (let at = start; at < end; ) {
    const next = Math.min(at - (at % coverage) + coverage, end);
    if (at % coverage === 0 && l2OffsetOf(state, at) === 0) futile++;
    if (futile <= MAX_FUTILE_TABLES || l2OffsetOf(state, at) !== 0)
      await discardRange(co, state, at, next, "always", true);
    at = next;
  }
  return futile > MAX_FUTILE_TABLES;
}

/** Takes the L2 tables from `firstIndex` on out of the L1 table, which keeps its size.  @qemu qcow2_shrink_l1_table */
async function dropL2Tables(co: Coroutine<"read">, state: Qcow2State, firstIndex: number): Promise<void> {
  const { file, l1Table, l1Size, clusterSize } = state;
  const dropped: number[] = [];
  for (let index = firstIndex; index < l1Size; index++) {
    const offset = tableOffset(l1Table, index);
    if (offset !== 0) dropped.push(offset);
  }
  if (dropped.length === 0) return;
  if (file.debug) await file.debug.event(co, "l1_shrink_write_table");
  await state.l2Cache.write(co);
  await file.pwrite(co, state.l1TableOffset + firstIndex * 8, new Uint8Array((l1Size - firstIndex) * 8));
  await file.flush(co);
  new Uint8Array(l1Table.buffer, l1Table.byteOffset + firstIndex * 8, (l1Size - firstIndex) * 8).fill(0);
  if (file.debug) await file.debug.event(co, "l1_shrink_free_l2_clusters");
  for (const offset of dropped) {
    noteMoved(state, "l2Tables", offset, 0);
    await freeClusters(co, state, offset, clusterSize, "always");
  }
}

/** Gives back what the file has behind the last cluster in use. It may also stay. */
async function cutTail(co: Coroutine<"read">, state: Qcow2State, growsFile: boolean): Promise<void> {
  const { file, clusterSize } = state;
  const length = await file.getLength(co);
  const last = await lastUsed(co, state, Math.ceil(length / clusterSize));
  const end = (last + 1) * clusterSize;
  if (end >= length && !growsFile) return;
  try {
    await file.truncate(co, end, false);
  } catch (error) {
    state.environment.warn(BlockError.wrap("Failed to truncate the tail of the image", error).message);
  }
}

async function grow(
  co: Coroutine<"read">,
  state: Qcow2State,
  bytes: number,
  oldBytes: number,
  exact: boolean,
  prealloc: Prealloc,
  flags: ReqFlags,
): Promise<void> {
  const zeroes = (flags & Req.ZeroWrite) !== 0;
  const relocates = !state.hasDataFile && (prealloc === "falloc" || prealloc === "full");
  if (!zeroes && !relocates) await hideOldTail(co, state, bytes, oldBytes);
  await state.lock.run(async () => {
    try {
      if (bytes > MAX_LENGTH) throw new BlockError("EFBIG");
      await growL1(co, state, l1EntriesFor(bytes, state.clusterSize, state.extendedL2), true);
    } catch (error) {
      throw BlockError.wrap("Failed to grow the L1 table", error);
    }
  });
  if (state.hasDataFile && prealloc === "off") await state.dataFile.truncate(co, bytes, exact);
  if (prealloc !== "off") await preallocate(co, state, oldBytes, bytes, prealloc, zeroes);
  if (!zeroes || relocates || bytes <= oldBytes) return;
  const start = alignUp(oldBytes, state.subclusterSize);
  try {
    // What version 2 refuses comes first.
    if (bytes > start) await zeroize(co, state, start, bytes, 0);
    const head = Math.min(start, bytes) - oldBytes;
    if (head > 0) await pwrite(co, state, oldBytes, new Uint8Array(head));
  } catch (error) {
    throw BlockError.wrap("Failed to zero out new clusters", error);
  }
}

/**
 * The last cluster may still hold what was there before the image shrank. QEMU 7.2 lets that come back unless there
 * is a longer backing file; here it does not.
 */
async function hideOldTail(
  co: Coroutine<"read">,
  state: Qcow2State,
  bytes: number,
  oldBytes: number,
): Promise<void> {
  const { clusterSize } = state;
  const end = Math.min(alignUp(oldBytes, clusterSize), bytes);
  let hides = false;
  for (let at = oldBytes; at < end; ) {
    const { kind, bytes: run } = await state.lock.run(() => lookUp(co, state, at, end - at));
    if (kind === Kind.Normal || kind === Kind.Compressed) {
      const tail = new Uint8Array(run);
      await pread(co, state, at, tail);
      if (!isZero(tail)) {
        await pwrite(co, state, at, tail.fill(0));
        hides = true;
      }
    }
    at += run;
  }
  if (!hides) return;
  // Before the new length: a power cut must not bring it back either.
  if (state.hasDataFile) await state.dataFile.flush(co);
  await state.lock.run(() => flushTables(co, state));
}
