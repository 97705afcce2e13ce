/**
 * From guest offsets to host offsets.  @qemu qcow2_get_host_offset
 *
 * A lookup is synchronous where the slice of the L2 table is cached; else the slice is loaded and the lookup is made
 * again. So what a lookup says holds until the next await, and a transfer that begins before that is safe: see
 * in-flight.ts.
 */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { checkUsable, signalCorruption } from "./corruption.ts";
import {
  COMPRESSED_HIGH,
  COPIED_HIGH,
  entryOffset,
  hex,
  isCopied,
  plainRun,
  tableOffset,
  ZERO_LOW,
} from "./entries.ts";
import { l2Coverage, type Qcow2State } from "./state.ts";
import type { Table } from "./table-cache.ts";

/** What a subcluster is; without extended L2 a cluster is one subcluster.  @qemu QCow2SubclusterType */
export const Kind = {
  /** Nothing here: the backing file shows. */
  UnallocatedPlain: 0,
  /** The same, with a host cluster set aside for it. */
  UnallocatedAlloc: 1,
  ZeroPlain: 2,
  /** Reads as zeroes, and keeps its host cluster. */
  ZeroAlloc: 3,
  Normal: 4,
  Compressed: 5,
  /** The table contradicts itself: `problem` says how. */
  Invalid: 6,
} as const;

export type Kind = (typeof Kind)[keyof typeof Kind];

export interface Mapping {
  readonly kind: Kind;
  /** How far it holds from the asked guest offset. */
  bytes: number;
  /** Of the asked guest offset's byte; 0 where there is none. Of compressed clusters nothing. */
  readonly hostOffset: number;
  /** The first cluster's host cluster has no other user. The same for all of the run. */
  readonly copied: boolean;
  /** The first cluster's entry. */
  readonly high: number;
  readonly low: number;
  readonly problem?: string;
  /** The problem is only that the cluster lies where none can: a write may put another in its place. */
  readonly misplaced?: { readonly clusterOffset: number; readonly isZero: boolean };
}

/** Entries in one slice of an L2 table: what the cache holds as a unit. */
export function sliceEntries(state: Qcow2State): number {
  return state.l2Cache.tableBytes / state.l2EntryBytes;
}

/** Where a guest offset's entry is. */
export interface EntryPlace {
  /** Host offset of the slice. */
  readonly sliceOffset: number;
  /** The entry's index in the slice. */
  readonly index: number;
}

/** The place of the entry in the L2 table at `l2Offset`. */
export function placeOf(state: Qcow2State, l2Offset: number, guestOffset: number): EntryPlace {
  const l2Index = Math.floor(guestOffset / state.clusterSize) % state.l2Entries;
  const index = l2Index % sliceEntries(state);
  return { sliceOffset: l2Offset + (l2Index - index) * state.l2EntryBytes, index };
}

/** Host offset of the L2 table for a guest offset; 0: none. */
export function l2OffsetOf(state: Qcow2State, guestOffset: number): number {
  const l1Index = Math.floor(guestOffset / l2Coverage(state));
  return l1Index < state.l1Size ? tableOffset(state.l1Table, l1Index) : 0;
}

/** Whether the L2 table for a guest offset is the active image's alone. */
export function isL2Copied(state: Qcow2State, guestOffset: number): boolean {
  return isCopied(state.l1Table, Math.floor(guestOffset / l2Coverage(state)));
}

/** What [guestOffset, guestOffset + n) is, 0 < n <= bytes; undefined: the slice must be loaded (`loadSlice`). */
export function peekMapping(state: Qcow2State, guestOffset: number, bytes: number): Mapping | undefined {
  const l2Offset = l2OffsetOf(state, guestOffset);
  if (l2Offset === 0) return withoutTable(state, guestOffset, bytes);
  if (l2Offset % state.clusterSize !== 0) {
    const l1Index = Math.floor(guestOffset / l2Coverage(state));
    return invalid(`L2 table offset ${hex(l2Offset)} unaligned (L1 index: ${hex(l1Index)})`);
  }
  const { sliceOffset, index } = placeOf(state, l2Offset, guestOffset);
  const slice = state.l2Cache.peek(sliceOffset);
  if (!slice) return undefined;
  const mapping = state.extendedL2
    ? mapSubclusters(state, slice, index, guestOffset, bytes)
    : mapClusters(state, slice, index, guestOffset, bytes);
  if (
    mapping.kind === Kind.Normal ||
    mapping.kind === Kind.ZeroAlloc ||
    mapping.kind === Kind.UnallocatedAlloc
  )
    return checkHostOffset(state, mapping, guestOffset, l2Offset, index);
  if (mapping.kind === Kind.Invalid || mapping.kind === Kind.Compressed || state.version < 3)
    return checkKind(state, mapping, l2Offset, index);
  return mapping;
}

/**
 * Loads what `peekMapping` found missing. Takes the driver's lock. `once`: it is not likely to be asked for again soon.
 */
export function loadSlice(
  co: Coroutine<"read">,
  state: Qcow2State,
  guestOffset: number,
  once = false,
): Promise<void> {
  return state.lock.run(async () => {
    checkUsable(state);
    const l2Offset = l2OffsetOf(state, guestOffset);
    if (l2Offset === 0 || l2Offset % state.clusterSize !== 0) return;
    const { sliceOffset } = placeOf(state, l2Offset, guestOffset);
    if (once && state.node.readOnly) await state.l2Cache.scan(co, sliceOffset);
    else await state.l2Cache.load(co, sliceOffset);
  });
}

/** `peekMapping` for whoever holds the lock: it loads, and throws on corruption. */
export async function lookUp(
  co: Coroutine<"read">,
  state: Qcow2State,
  guestOffset: number,
  bytes: number,
): Promise<Mapping> {
  const mapping = await findMapping(co, state, guestOffset, bytes);
  if (mapping.kind === Kind.Invalid) throw await signalCorruption(co, state, mapping.problem as string);
  return mapping;
}

async function findMapping(
  co: Coroutine<"read">,
  state: Qcow2State,
  guestOffset: number,
  bytes: number,
): Promise<Mapping> {
  const known = peekMapping(state, guestOffset, bytes);
  if (known) return known;
  await state.l2Cache.load(co, placeOf(state, l2OffsetOf(state, guestOffset), guestOffset).sliceOffset);
  return peekMapping(state, guestOffset, bytes) as Mapping;
}

/** The same for a write from there on, which may put another cluster in the place of one that is misplaced. */
export async function lookUpToWrite(
  co: Coroutine<"read">,
  state: Qcow2State,
  guestOffset: number,
  bytes: number,
): Promise<Mapping> {
  const mapping = await findMapping(co, state, guestOffset, bytes);
  await checkWritable(co, state, mapping, guestOffset);
  return mapping;
}

/** Throws where a write can't do with what the table says.  @qemu handle_copied */
export async function checkWritable(
  co: Coroutine<"read">,
  state: Qcow2State,
  { kind, copied, problem, misplaced }: Mapping,
  guestOffset: number,
): Promise<void> {
  if (kind !== Kind.Invalid || (misplaced && !copied)) return;
  const text = misplaced
    ? `${misplaced.isZero ? "Preallocated zero" : "Data"} cluster offset ${hex(misplaced.clusterOffset)} unaligned (guest offset: ${hex(guestOffset)})`
    : (problem as string);
  throw await signalCorruption(co, state, text);
}

function invalid(problem: string): Mapping {
  return { kind: Kind.Invalid, bytes: 1, hostOffset: 0, copied: false, high: 0, low: 0, problem };
}

/** No L2 table, nor the next ones. */
function withoutTable(state: Qcow2State, guestOffset: number, bytes: number): Mapping {
  const coverage = l2Coverage(state);
  const end = guestOffset + bytes;
  let index = Math.floor(guestOffset / coverage) + 1;
  while (index * coverage < end && index < state.l1Size && tableOffset(state.l1Table, index) === 0) index++;
  const reached = index >= state.l1Size ? end : Math.min(index * coverage, end);
  return {
    kind: Kind.UnallocatedPlain,
    bytes: reached - guestOffset,
    hostOffset: 0,
    copied: false,
    high: 0,
    low: 0,
  };
}

/** @qemu qcow2_get_cluster_type */
function clusterKind(state: Qcow2State, high: number, low: number): Kind {
  if (high & COMPRESSED_HIGH) return Kind.Compressed;
  const hasOffset = (high & 0x00ffffff) !== 0 || low >= 512;
  if (low & ZERO_LOW && !state.extendedL2) return hasOffset ? Kind.ZeroAlloc : Kind.ZeroPlain;
  if (hasOffset) return Kind.Normal;
  // In a data file the first cluster is at offset 0.
  return state.hasDataFile && high >= COPIED_HIGH ? Kind.Normal : Kind.UnallocatedPlain;
}

function mapClusters(
  state: Qcow2State,
  slice: Table,
  index: number,
  guestOffset: number,
  bytes: number,
): Mapping {
  const { view } = slice;
  const { clusterSize } = state;
  const high = view.getUint32(index * 8);
  const low = view.getUint32(index * 8 + 4);
  const copied = high >= COPIED_HIGH;
  const within = guestOffset % clusterSize;
  const wanted = Math.min(index + Math.ceil((within + bytes) / clusterSize), sliceEntries(state));
  const plain = plainRun(view, index, wanted, clusterSize);
  if (plain > 0) {
    const run = Math.min(plain * clusterSize - within, bytes);
    return { kind: Kind.Normal, bytes: run, hostOffset: entryOffset(high, low) + within, copied, high, low };
  }
  const kind = clusterKind(state, high, low);
  const first = clusterSize - within;
  if (kind === Kind.Compressed)
    return { kind, bytes: Math.min(first, bytes), hostOffset: 0, copied, high, low };
  const start = entryOffset(high, low);
  const isPlaced = kind === Kind.Normal || kind === Kind.ZeroAlloc;
  let run = first;
  let expected = start;
  const last = sliceEntries(state);
  for (let next = index + 1; run < bytes && next < last; next++) {
    const nextHigh = view.getUint32(next * 8);
    const nextLow = view.getUint32(next * 8 + 4);
    if (clusterKind(state, nextHigh, nextLow) !== kind) break;
    if (isPlaced) {
      expected += clusterSize;
      if (entryOffset(nextHigh, nextLow) !== expected || nextHigh >= COPIED_HIGH !== copied) break;
    }
    run += clusterSize;
  }
  return {
    kind,
    bytes: Math.min(run, bytes),
    hostOffset: isPlaced ? start + within : 0,
    copied,
    high,
    low,
  };
}

/** The bitmap of an extended entry: which subclusters are allocated, which read as zeroes. */
export interface SubclusterBits {
  readonly allocated: number;
  readonly zero: number;
}

function subclusterBits(view: DataView, index: number): SubclusterBits {
  return { zero: view.getUint32(index * 16 + 8), allocated: view.getUint32(index * 16 + 12) };
}

/** Bits [from, to) of a 32-bit mask. */
export function bitRange(from: number, to: number): number {
  const upTo = to >= 32 ? 0xffffffff : 2 ** to - 1;
  return (upTo & ~(2 ** from - 1)) >>> 0;
}

/** @qemu qcow2_get_subcluster_type */
function subclusterKind(kind: Kind, bits: SubclusterBits, subcluster: number): Kind {
  const isAllocated = (bits.allocated >>> subcluster) & 1;
  const isZero = (bits.zero >>> subcluster) & 1;
  if (kind === Kind.Compressed) return kind;
  if (isAllocated && isZero) return Kind.Invalid;
  if (kind === Kind.Normal) {
    if (isZero) return Kind.ZeroAlloc;
    return isAllocated ? Kind.Normal : Kind.UnallocatedAlloc;
  }
  if (isAllocated) return Kind.Invalid;
  return isZero ? Kind.ZeroPlain : Kind.UnallocatedPlain;
}

function mapSubclusters(
  state: Qcow2State,
  slice: Table,
  index: number,
  guestOffset: number,
  bytes: number,
): Mapping {
  const { view } = slice;
  const { clusterSize, subclusterSize } = state;
  const high = view.getUint32(index * 16);
  const low = view.getUint32(index * 16 + 4);
  const copied = high >= COPIED_HIGH;
  const cluster = clusterKind(state, high, low);
  const within = guestOffset % clusterSize;
  let subcluster = Math.floor(within / subclusterSize);
  let bits = subclusterBits(view, index);
  const kind = subclusterKind(cluster, bits, subcluster);
  const base = { kind, copied, high, low };
  if (kind === Kind.Compressed)
    return { ...base, bytes: Math.min(clusterSize - within, bytes), hostOffset: 0 };
  const start = entryOffset(high, low);
  const isPlaced = cluster === Kind.Normal;
  let run = (subcluster + 1) * subclusterSize - within;
  let at = index;
  let expected = start;
  const last = sliceEntries(state);
  while (run < bytes) {
    subcluster++;
    if (subcluster === 32) {
      subcluster = 0;
      at++;
      if (at === last) break;
      const nextHigh = view.getUint32(at * 16);
      const nextLow = view.getUint32(at * 16 + 4);
      if (clusterKind(state, nextHigh, nextLow) !== cluster) break;
      expected += clusterSize;
      if (isPlaced && (entryOffset(nextHigh, nextLow) !== expected || nextHigh >= COPIED_HIGH !== copied))
        break;
      bits = subclusterBits(view, at);
    }
    if (subclusterKind(cluster, bits, subcluster) !== kind) break;
    run += subclusterSize;
  }
  return { ...base, bytes: Math.min(run, bytes), hostOffset: isPlaced ? start + within : 0 };
}

function checkHostOffset(
  state: Qcow2State,
  mapping: Mapping,
  guestOffset: number,
  l2Offset: number,
  index: number,
): Mapping {
  const within = guestOffset % state.clusterSize;
  const clusterOffset = mapping.hostOffset - within;
  if (clusterOffset % state.clusterSize !== 0) {
    const problem = `Cluster allocation offset ${hex(clusterOffset)} unaligned (L2 offset: ${hex(l2Offset)}, L2 index: ${hex(index)})`;
    const misplaced = { clusterOffset, isZero: mapping.kind === Kind.ZeroAlloc };
    return { ...invalid(problem), copied: mapping.copied, misplaced };
  }
  if (state.hasDataFile && mapping.hostOffset !== guestOffset)
    return invalid(
      `External data file host cluster offset ${hex(clusterOffset)} does not match guest cluster offset: ` +
        `${hex(guestOffset)}, L2 index: ${hex(index)})`,
    );
  return state.version < 3 ? checkKind(state, mapping, l2Offset, index) : mapping;
}

function checkKind(state: Qcow2State, mapping: Mapping, l2Offset: number, index: number): Mapping {
  const place = `(L2 offset: ${hex(l2Offset)}, L2 index: ${hex(index)})`;
  if (mapping.kind === Kind.Invalid) return invalid(`Invalid cluster entry found  ${place}`);
  if (state.version < 3 && (mapping.kind === Kind.ZeroPlain || mapping.kind === Kind.ZeroAlloc))
    return invalid(`Zero cluster entry found in pre-v3 image ${place}`);
  if (state.hasDataFile && mapping.kind === Kind.Compressed)
    return invalid(`Compressed cluster entry found in image with external data file ${place}`);
  return mapping;
}
