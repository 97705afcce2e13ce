/** Changing the virtual size, and setting clusters aside for it.  @qemu qcow2_co_truncate */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { type Prealloc, Req, type ReqFlags } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import { u64 } from "../../src/block/layout.ts";
import { alignUp, MAX_LENGTH, SECTOR_SIZE } from "../../src/block/units.ts";
import { checkBitmapsForResize } from "./bitmap-store.ts";
import { checkUsable, noteMoved } from "./corruption.ts";
import { COPIED_HIGH, tableOffset } from "./entries.ts";
import { l1EntriesFor } from "./header.ts";
import { beforeChange, ensureL2, growL1, sliceFor, writeEntry } from "./l2.ts";
import { HeaderV2 } from "./layout.ts";
import { Kind, l2Coverage, l2OffsetOf, lookUp } from "./mapping.ts";
import { allocateClusters, freeClusters, getRefcount, refblockEntries, settleFreed } from "./refcount.ts";
import type { Qcow2State } from "./state.ts";
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
  } else await grow(co, state, bytes, oldBytes, exact, prealloc, flags);
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
  try {
    await discardRange(
      co,
      state,
      alignUp(bytes, clusterSize),
      alignUp(oldBytes, clusterSize),
      "always",
      true,
    );
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
    await cutTail(co, state);
  });
  if (state.hasDataFile) await state.dataFile.truncate(co, bytes, exact);
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
async function cutTail(co: Coroutine<"read">, state: Qcow2State): Promise<void> {
  const { file, clusterSize } = state;
  const length = await file.getLength(co);
  let last = Math.ceil(length / clusterSize) - 1;
  while (last > 0 && (await getRefcount(co, state, last)) === 0) last--;
  const end = (last + 1) * clusterSize;
  if (end >= length) return;
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
  await hideOldTail(co, state, bytes, oldBytes);
  await state.lock.run(async () => {
    await beforeChange(co, state);
    try {
      if (bytes > MAX_LENGTH) throw new BlockError("EFBIG");
      await growL1(co, state, l1EntriesFor(bytes, state.clusterSize, state.extendedL2), true);
    } catch (error) {
      throw BlockError.wrap("Failed to grow the L1 table", error);
    }
  });
  if (state.hasDataFile && prealloc === "off") await state.dataFile.truncate(co, bytes, exact);
  if (prealloc !== "off") await preallocate(co, state, oldBytes, bytes, prealloc);
  if (!(flags & Req.ZeroWrite) || bytes <= oldBytes || prealloc !== "off") return;
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

/** The last cluster may still hold what was there before the image shrank: that must not come back. */
async function hideOldTail(
  co: Coroutine<"read">,
  state: Qcow2State,
  bytes: number,
  oldBytes: number,
): Promise<void> {
  const { clusterSize } = state;
  const end = Math.min(alignUp(oldBytes, clusterSize), bytes);
  for (let at = oldBytes; at < end; ) {
    const { kind, bytes: run } = await state.lock.run(() => lookUp(co, state, at, end - at));
    if (kind === Kind.Normal || kind === Kind.Compressed) await pwrite(co, state, at, new Uint8Array(run));
    at += run;
  }
}

/**
 * Sets host clusters aside for the guest range [start, end), which the L1 table covers already: `metadata` maps them
 * to a hole at the end of the file, `falloc` and `full` have the file reserve or write them too.
 * @qemu preallocate_co
 */
async function preallocate(
  co: Coroutine<"read">,
  state: Qcow2State,
  start: number,
  end: number,
  mode: Prealloc,
): Promise<void> {
  const { clusterSize, dataFile } = state;
  const fileMode = mode === "metadata" ? "off" : mode;
  const first = start - (start % clusterSize);
  const last = alignUp(end, clusterSize);
  await state.lock.run(async () => {
    await beforeChange(co, state);
    // Behind the end of the file: a cluster that was used before would show its old content.
    const length = await state.file.getLength(co);
    state.freeClusterIndex = Math.max(state.freeClusterIndex, Math.ceil(length / clusterSize));
    if (state.hasDataFile) await dataFile.truncate(co, alignUp(end, state.subclusterSize), false, fileMode);
  });
  const hostEnd =
    mode === "metadata" || state.hasDataFile
      ? (await mapRange(co, state, first, last, undefined)) - (last - alignUp(end, state.subclusterSize))
      : await mapReserved(co, state, first, last, mode);
  state.metadataPreallocated = undefined;
  if (state.hasDataFile || hostEnd <= (await dataFile.getLength(co))) return;
  await dataFile.truncate(co, hostEnd, false, fileMode);
}

/** Has the file reserve space for all clusters in a row, and maps them; where they end. */
async function mapReserved(
  co: Coroutine<"read">,
  state: Qcow2State,
  first: number,
  last: number,
  mode: Prealloc,
): Promise<number> {
  const { clusterSize, file } = state;
  const host = { next: 0, end: 0 };
  await state.lock.run(async () => {
    const { kind } = await lookUp(co, state, first, clusterSize);
    // The last cluster of what was there before may have data.
    const bytes = last - first - (kind === Kind.UnallocatedPlain ? 0 : clusterSize);
    if (bytes === 0) return;
    const wanted = await lengthWith(co, state, first, last, bytes);
    if (wanted > (await file.getLength(co))) await file.truncate(co, wanted, false, mode);
    host.next = await allocateClusters(co, state, bytes, "data cluster");
    host.end = host.next + bytes;
  });
  try {
    return await mapRange(co, state, first, last, host);
  } catch (error) {
    await state.lock.run(() => freeClusters(co, state, host.next, host.end - host.next, "never"));
    throw error;
  }
}

/** How long the file becomes by `bytes` of data for the guest range, with the tables and refcount blocks for it. */
async function lengthWith(
  co: Coroutine<"read">,
  state: Qcow2State,
  first: number,
  last: number,
  bytes: number,
): Promise<number> {
  const { clusterSize, refcountTable } = state;
  const coverage = l2Coverage(state);
  let clusters = Math.ceil((await state.file.getLength(co)) / clusterSize) + bytes / clusterSize;
  for (let at = first - (first % coverage); at < last; at += coverage)
    if (l2OffsetOf(state, at) === 0) clusters++;
  let blocks = 0;
  for (let index = 0; index * 8 < refcountTable.byteLength; index++)
    if (tableOffset(refcountTable, index) !== 0) blocks++;
  const entries = refblockEntries(state);
  for (; blocks * entries < clusters; blocks++) clusters++;
  return clusters * clusterSize;
}

/** Maps what is unallocated to new clusters, or to those that `host` has; where the last of them ends. */
async function mapRange(
  co: Coroutine<"read">,
  state: Qcow2State,
  first: number,
  last: number,
  host: { next: number; readonly end: number } | undefined,
): Promise<number> {
  const { clusterSize } = state;
  let hostEnd = 0;
  for (let at = first; at < last; ) {
    co.checkAborted();
    await state.lock.run(async () => {
      await ensureL2(co, state, at);
      const { kind, bytes } = await lookUp(co, state, at, last - at);
      const run = alignUp(bytes, clusterSize);
      if (kind === Kind.UnallocatedPlain) {
        let hostOffset = at;
        if (host) hostOffset = host.next;
        else if (!state.hasDataFile) hostOffset = await allocateClusters(co, state, run, "data cluster");
        await setAside(co, state, at, hostOffset, run);
        if (host) host.next += run;
        hostEnd = Math.max(hostEnd, hostOffset + run);
      }
      at += run;
    });
  }
  return hostEnd;
}

/** Maps a run of unallocated clusters within one slice. */
async function setAside(
  co: Coroutine<"read">,
  state: Qcow2State,
  guestOffset: number,
  hostOffset: number,
  bytes: number,
): Promise<void> {
  const { clusterSize } = state;
  if (!state.hasDataFile && !state.useLazyRefcounts)
    await state.l2Cache.setDependency(co, state.refcountCache);
  const { slice, index } = await sliceFor(co, state, guestOffset);
  for (let cluster = 0; cluster * clusterSize < bytes; cluster++) {
    const host = hostOffset + cluster * clusterSize;
    writeEntry(state, slice, index + cluster, {
      high: (Math.floor(host / 2 ** 32) | COPIED_HIGH) >>> 0,
      low: host % 2 ** 32,
      zeroBits: 0,
      allocatedBits: 0,
    });
  }
}
