/**
 * Writing guest data: in place where the cluster is the image's own, else into new clusters, with the rest of them
 * copied from what the guest saw there.  @qemu qcow2_co_pwritev_part
 *
 * Invariants:
 * 1. Clusters are chosen and entries are set with the lock held; data moves without it, as a transfer where the
 *    cluster is in use already, and as an allocation (in-flight.ts) where it is not yet.
 * 2. An entry is set after the data that it shows, old and new, has been handed to the file; data that was there
 *    before is on the disk before the entry is (`dependsOnFlush`).
 * 3. A write that fails gives back what it has chosen and leaves the entries as they were.
 */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { Req } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import { iovConcat } from "../../src/block/iov.ts";
import { KiB } from "../../src/block/units.ts";
import { type Content, contentLength, contentSlice, isHostRange, writeContent } from "./content.ts";
import { checkOverlap, checkUsable } from "./corruption.ts";
import { COMPRESSED_HIGH, COPIED_HIGH, setEntry } from "./entries.ts";
import { type Allocation, runPieces } from "./in-flight.ts";
import { beforeLink, ensureL2, exclusively, freeEntries, type RawEntry, readEntry, sliceFor } from "./l2.ts";
import {
  bitRange,
  checkWritable,
  isL2Copied,
  Kind,
  loadSlice,
  lookUpToWrite,
  type Mapping,
  peekMapping,
  sliceEntries,
} from "./mapping.ts";
import { pread } from "./read.ts";
import { allocateClusters, allocateClustersAt, freeClusters } from "./refcount.ts";
import type { Qcow2State } from "./state.ts";
import type { Table } from "./table-cache.ts";

/** Clusters that a write has got, and what of them must be copied. Guest offsets, but for `hostOffset`.  @qemu QCowL2Meta */
interface Plan {
  readonly allocation: Allocation;
  /** Of the first cluster. */
  readonly start: number;
  readonly clusters: number;
  /** Host offset of the first cluster. */
  readonly hostOffset: number;
  /** The host clusters were there already: they only get their entries changed. */
  readonly reuses: boolean;
  readonly writeStart: number;
  readonly writeEnd: number;
  /** What becomes data of this image: [copyStart, copyEnd) around the write. */
  readonly copyStart: number;
  readonly copyEnd: number;
  /** Content that the guest could see is replaced by the entries. */
  readonly replaces: boolean;
}

/** Writes `content` at `guestOffset`. What is cached and in place costs one write of the file and no other wait. */
export function pwrite(
  co: Coroutine<"read">,
  state: Qcow2State,
  guestOffset: number,
  content: Content,
): Promise<void> {
  checkUsable(state);
  const bytes = contentLength(content);
  if (state.allocations.isEmpty) {
    const mapping = peekMapping(state, guestOffset, bytes);
    if (mapping && mapping.bytes === bytes && isInPlace(state, mapping, guestOffset))
      return writeHost(co, state, guestOffset, mapping.hostOffset, content);
  }
  return writePieces(co, state, guestOffset, content, bytes);
}

function isInPlace(state: Qcow2State, mapping: Mapping, guestOffset: number): boolean {
  return mapping.kind === Kind.Normal && mapping.copied && isL2Copied(state, guestOffset);
}

async function writeHost(
  co: Coroutine<"read">,
  state: Qcow2State,
  guestOffset: number,
  hostOffset: number,
  content: Content,
): Promise<void> {
  const { file, transfers } = state;
  const epoch = transfers.begin();
  try {
    if (!state.hasDataFile) {
      const refused = checkOverlap(co, state, hostOffset, contentLength(content));
      if (refused) await refused;
    }
    if (file.debug) await file.debug.event(co, "write_aio");
    await writeContent(co, state, guestOffset, hostOffset, content);
  } finally {
    transfers.end(epoch);
  }
}

function writePieces(
  co: Coroutine<"read">,
  state: Qcow2State,
  guestOffset: number,
  content: Content,
  bytes: number,
): Promise<void> {
  return runPieces(async (pieces) => {
    let hostEnd = 0;
    for (let done = 0; done < bytes && !pieces.failed; ) {
      const piece = await nextPiece(co, state, guestOffset + done, bytes - done, hostEnd);
      if (!piece) continue;
      const data = contentSlice(content, done, done + piece.bytes);
      const full = pieces.add(piece.run(data));
      done += piece.bytes;
      hostEnd = piece.hostEnd;
      if (full) await full;
    }
  });
}

interface WritePiece {
  readonly bytes: number;
  /** Where it ends in the file: what follows is put there if that is free. */
  readonly hostEnd: number;
  readonly run: (data: Content) => Promise<void>;
}

/** Undefined: something was waited for, look again. */
async function nextPiece(
  co: Coroutine<"read">,
  state: Qcow2State,
  at: number,
  bytes: number,
  wantedHost: number,
): Promise<WritePiece | undefined> {
  const cluster = at - (at % state.clusterSize);
  const other = state.allocations.overlapping(cluster, cluster + state.clusterSize);
  if (other) {
    await other.ended;
    return undefined;
  }
  const mapping = peekMapping(state, at, bytes);
  // A table that is not the image's alone is copied first, and read for that.
  if (!mapping && isL2Copied(state, at)) {
    await loadSlice(co, state, at);
    return undefined;
  }
  if (mapping?.kind === Kind.Invalid) await checkWritable(co, state, mapping, at);
  if (mapping && isInPlace(state, mapping, at)) {
    const free = state.allocations.freeBytes(at, mapping.bytes);
    // This function's promise hands over a turn later; the transfer must begin in the turn of the lookup.
    const epoch = state.transfers.begin();
    return {
      bytes: free,
      hostEnd: mapping.hostOffset + free,
      run: (data) =>
        writeHost(co, state, at, mapping.hostOffset, data).finally(() => state.transfers.end(epoch)),
    };
  }
  const plan = await allocate(co, state, at, bytes, wantedHost);
  return (
    plan && {
      bytes: plan.writeEnd - plan.writeStart,
      hostEnd: plan.hostOffset + (plan.writeEnd - plan.start),
      run: (data) => fulfil(co, state, plan, data),
    }
  );
}

/**
 * Chooses host clusters for a write from `at` on, those from `wantedHost` on if they are free. Undefined: it has become
 * a write in place meanwhile.  @qemu qcow2_alloc_host_offset
 */
function allocate(
  co: Coroutine<"read">,
  state: Qcow2State,
  at: number,
  bytes: number,
  wantedHost: number,
): Promise<Plan | undefined> {
  const start = at - (at % state.clusterSize);
  return exclusively(state, start, start + state.clusterSize, async () => {
    await ensureL2(co, state, at);
    const mapping = await lookUpToWrite(co, state, at, bytes);
    if (isInPlace(state, mapping, at)) return undefined;
    const { slice, index } = await sliceFor(co, state, at);
    const reuses = canReuse(mapping);
    let extent = reuses
      ? reusedExtent(state, slice, index, mapping, at, bytes)
      : newExtent(state, slice, index, start, at, bytes);
    let hostOffset = at - (at % state.clusterSize);
    if (reuses) hostOffset = mapping.hostOffset - (at % state.clusterSize);
    else if (!state.hasDataFile) {
      const found = await findHost(co, state, extent.clusters, at === start ? wantedHost : 0);
      if (found.clusters < extent.clusters)
        extent = newExtent(state, slice, index, start, at, found.clusters * state.clusterSize);
      hostOffset = found.hostOffset;
    }
    return {
      ...extent,
      start,
      hostOffset,
      reuses,
      writeStart: at,
      allocation: state.allocations.begin(start, start + extent.clusters * state.clusterSize),
    };
  });
}

/** Right behind what comes before, as far as there is room; else wherever there is for all of them. */
async function findHost(
  co: Coroutine<"read">,
  state: Qcow2State,
  clusters: number,
  wantedHost: number,
): Promise<{ readonly hostOffset: number; readonly clusters: number }> {
  const free = wantedHost > 0 ? await allocateClustersAt(co, state, wantedHost, clusters) : 0;
  if (free > 0) return { hostOffset: wantedHost, clusters: free };
  const bytes = clusters * state.clusterSize;
  return { hostOffset: await allocateClusters(co, state, bytes, "data cluster"), clusters };
}

/** A cluster that is set aside, or has other subclusters already, and is the active image's alone. */
function canReuse({ kind, copied }: Mapping): boolean {
  return copied && (kind === Kind.ZeroAlloc || kind === Kind.UnallocatedAlloc);
}

type Extent = Pick<Plan, "clusters" | "writeEnd" | "copyStart" | "copyEnd" | "replaces">;

/** The run of set-aside clusters; with extended L2 one cluster, of which only the touched subclusters change. */
function reusedExtent(
  state: Qcow2State,
  slice: Table,
  index: number,
  mapping: Mapping,
  at: number,
  bytes: number,
): Extent {
  const { clusterSize, subclusterSize } = state;
  const start = at - (at % clusterSize);
  if (!state.extendedL2) {
    const free = state.allocations.freeBytes(at, mapping.bytes);
    const writeEnd = at + free;
    const clusters = Math.ceil((writeEnd - start) / clusterSize);
    return { clusters, writeEnd, copyStart: start, copyEnd: start + clusters * clusterSize, replaces: true };
  }
  const writeEnd = Math.min(at + bytes, start + clusterSize);
  const { allocatedBits } = readEntry(state, slice, index);
  const lastSubcluster = Math.floor(((writeEnd - 1) % clusterSize) / subclusterSize);
  const endsInData = ((allocatedBits >>> lastSubcluster) & 1) === 1;
  return {
    clusters: 1,
    writeEnd,
    copyStart: at - (at % subclusterSize),
    copyEnd: endsInData ? writeEnd : Math.ceil(writeEnd / subclusterSize) * subclusterSize,
    replaces: true,
  };
}

/** The run of clusters that need new host clusters, up to the slice's end. */
function newExtent(
  state: Qcow2State,
  slice: Table,
  index: number,
  start: number,
  at: number,
  bytes: number,
): Extent {
  const { clusterSize, subclusterSize } = state;
  const wanted = Math.min(Math.ceil((at + bytes - start) / clusterSize), sliceEntries(state) - index);
  const free = state.allocations.freeBytes(start, wanted * clusterSize) / clusterSize;
  const first = readEntry(state, slice, index);
  let last = first;
  let clusters = 1;
  let replaces = state.node.backing !== undefined || hasContent(first);
  while (clusters < free) {
    const entry = readEntry(state, slice, index + clusters);
    if (entry.high >= COPIED_HIGH && !(entry.high & COMPRESSED_HIGH)) break;
    last = entry;
    replaces ||= hasContent(entry);
    clusters++;
  }
  const end = start + clusters * clusterSize;
  const writeEnd = Math.min(at + bytes, end);
  let copyStart = start;
  let copyEnd = end;
  if (state.extendedL2) {
    const lastStart = end - clusterSize;
    copyStart = Math.min(at - (at % subclusterSize), start + firstContent(first) * subclusterSize);
    copyEnd = Math.max(
      Math.ceil(writeEnd / subclusterSize) * subclusterSize,
      lastStart + contentEnd(last) * subclusterSize,
    );
  }
  return { clusters, writeEnd, copyStart, copyEnd, replaces };
}

function hasContent(entry: RawEntry): boolean {
  return entry.high !== 0 || entry.low !== 0;
}

/** The first subcluster whose data would be lost with the old cluster; 32: none. */
function firstContent({ high, allocatedBits }: RawEntry): number {
  if (high & COMPRESSED_HIGH) return 0;
  return allocatedBits === 0 ? 32 : 31 - Math.clz32(allocatedBits & -allocatedBits);
}

/** Behind the last such subcluster; 0: none. */
function contentEnd({ high, allocatedBits }: RawEntry): number {
  if (high & COMPRESSED_HIGH) return 32;
  return 32 - Math.clz32(allocatedBits);
}

/** Moves the data and sets the entries. */
async function fulfil(co: Coroutine<"read">, state: Qcow2State, plan: Plan, data: Content): Promise<void> {
  try {
    await fill(co, state, plan, data);
    await state.lock.run(() => link(co, state, plan));
  } catch (error) {
    if (!plan.reuses && !state.hasDataFile)
      await state.lock.run(() =>
        freeClusters(co, state, plan.hostOffset, plan.clusters * state.clusterSize, "never"),
      );
    throw error;
  } finally {
    plan.allocation.finish();
  }
}

/** Writes the data and around it what the guest saw there before, in one go where that is not just zeroes. */
async function fill(co: Coroutine<"read">, state: Qcow2State, plan: Plan, data: Content): Promise<void> {
  const { debug } = state.file;
  const { copyStart, copyEnd, writeStart, writeEnd } = plan;
  const hostOf = (guestOffset: number) => plan.hostOffset + (guestOffset - plan.start);
  if (!state.hasDataFile) await checkOverlap(co, state, hostOf(copyStart), copyEnd - copyStart);
  const isAlone = copyStart === writeStart && writeEnd === copyEnd;
  const isZero =
    !isAlone &&
    !isHostRange(data) &&
    // Zeroes in the file are none to the guest of an encrypted image.
    !state.crypto &&
    readsZero(state, copyStart, writeStart - copyStart) &&
    readsZero(state, writeEnd, copyEnd - writeEnd);
  if (isAlone || (isZero && (await tryZeroes(co, state, hostOf(copyStart), copyEnd - copyStart)))) {
    if (debug) await debug.event(co, "write_aio");
    return writeContent(co, state, writeStart, hostOf(writeStart), data);
  }
  const [head, tail] = await readAround(co, state, plan);
  // QEMU's two names for what is one write.
  if (debug) await debug.event(co, "write_aio");
  if (debug) await debug.event(co, "cow_write");
  const parts = isHostRange(data) ? [head, data, tail] : [iovConcat(head, data, tail)];
  let at = copyStart;
  for (const part of parts) {
    await writeContent(co, state, at, hostOf(at), part);
    at += contentLength(part);
  }
}

/** Around so short a write one read is cheaper than two.  @qemu perform_cow */
const MAX_READ_OVER_BYTES = 16 * KiB;

/** What the guest sees before and behind the range of the write, as far as it is copied. */
async function readAround(
  co: Coroutine<"read">,
  state: Qcow2State,
  { copyStart, copyEnd, writeStart, writeEnd }: Plan,
): Promise<readonly [head: Uint8Array, tail: Uint8Array]> {
  const { debug } = state.file;
  const all = new Uint8Array(copyEnd - copyStart);
  const head = all.subarray(0, writeStart - copyStart);
  const tail = all.subarray(writeEnd - copyStart);
  const isOne = head.length > 0 && tail.length > 0 && writeEnd - writeStart <= MAX_READ_OVER_BYTES;
  const reads = isOne
    ? [[copyStart, all] as const]
    : ([
        [copyStart, head],
        [writeEnd, tail],
      ] as const);
  for (const [at, buffer] of reads) {
    if (buffer.length === 0) continue;
    if (debug) await debug.event(co, "cow_read");
    await pread(co, state, at, buffer);
  }
  return [head, tail];
}

/** Known without a read: nothing is there, or zeroes are. */
function readsZero(state: Qcow2State, guestOffset: number, bytes: number): boolean {
  if (bytes === 0) return true;
  const mapping = peekMapping(state, guestOffset, bytes);
  if (!mapping || mapping.bytes < bytes) return false;
  if (mapping.kind === Kind.ZeroPlain || mapping.kind === Kind.ZeroAlloc) return true;
  if (mapping.kind !== Kind.UnallocatedPlain && mapping.kind !== Kind.UnallocatedAlloc) return false;
  const { backing } = state.node;
  return !backing || backing.node.totalSectors * 512 <= guestOffset;
}

/** Zeroes by a call of the file that writes none; false where it can't. */
async function tryZeroes(
  co: Coroutine<"read">,
  state: Qcow2State,
  hostOffset: number,
  bytes: number,
): Promise<boolean> {
  const { dataFile } = state;
  if (!(dataFile.node.supportedZeroFlags & Req.NoFallback)) return false;
  try {
    if (state.file.debug) await state.file.debug.event(co, "cluster_alloc_space");
    await dataFile.pwriteZeroes(co, hostOffset, bytes, Req.NoFallback);
    return true;
  } catch (error) {
    if (error instanceof BlockError && (error.errno === "ENOTSUP" || error.errno === "EAGAIN")) return false;
    throw error;
  }
}

/** Sets the entries, and frees what they referred to before.  @qemu qcow2_alloc_cluster_link_l2 */
async function link(co: Coroutine<"read">, state: Qcow2State, plan: Plan): Promise<void> {
  checkUsable(state);
  const { clusterSize, l2Cache } = state;
  await ensureL2(co, state, plan.start);
  await beforeLink(co, state);
  const { slice, index } = await sliceFor(co, state, plan.start);
  const isCopying = plan.copyStart < plan.writeStart || plan.writeEnd < plan.copyEnd;
  if (plan.replaces || isCopying) l2Cache.dependsOnFlush = true;
  const { view } = slice;
  const start = index * state.l2EntryBytes;
  const end = start + plan.clusters * state.l2EntryBytes;
  const old: RawEntry[] = [];
  for (let at = start, cluster = 0; at < end; at += state.l2EntryBytes, cluster++) {
    const before = readEntry(state, slice, index + cluster);
    if (!plan.reuses && hasContent(before)) old.push(before);
    setEntry(view, at, plan.hostOffset + cluster * clusterSize, true);
    if (!state.extendedL2) continue;
    const bits = bitsAfter(state, plan, plan.start + cluster * clusterSize, before);
    view.setUint32(at + 8, bits.zeroBits);
    view.setUint32(at + 12, bits.allocatedBits);
  }
  slice.markDirty(start, end);
  await freeEntries(co, state, state.hasDataFile ? [] : old, "other");
}

/** The subcluster bits of the cluster at `guestOffset` once the plan's range of it is data. */
function bitsAfter(
  state: Qcow2State,
  plan: Plan,
  guestOffset: number,
  before: RawEntry,
): Pick<RawEntry, "zeroBits" | "allocatedBits"> {
  const { clusterSize, subclusterSize } = state;
  const from = Math.max(plan.copyStart - guestOffset, 0);
  const to = Math.min(plan.copyEnd - guestOffset, clusterSize);
  const data = bitRange(Math.floor(from / subclusterSize), Math.ceil(to / subclusterSize));
  const kept = plan.reuses ? before.allocatedBits : 0;
  const zeroBits = before.high & COMPRESSED_HIGH ? 0 : before.zeroBits;
  return { allocatedBits: (kept | data) >>> 0, zeroBits: (zeroBits & ~data) >>> 0 };
}
