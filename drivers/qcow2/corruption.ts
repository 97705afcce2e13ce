/**
 * What is done when the image contradicts itself: it is marked corrupt and no longer used. And the check before
 * each write that it does not land in the image's own tables.  @qemu qcow2_signal_corruption
 */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { mask64 } from "../../src/block/layout.ts";
import { isAligned } from "../../src/block/units.ts";
import { tableOffset } from "./entries.ts";
import { HeaderV2, HeaderV3, Incompatible, MAX_L1_BYTES } from "./layout.ts";
import type { MetadataIndex, Qcow2State } from "./state.ts";

/**
 * Tells of a corruption, once, and gives the error to be thrown. A node that can be written is marked corrupt in its
 * header and answers nothing any more; one that is only read goes on with what is whole, as does any where the
 * corruption is not fatal.
 */
export async function signalCorruption(
  co: Coroutine<"read">,
  state: Qcow2State,
  text: string,
  mayBeFatal = true,
): Promise<BlockError> {
  const error = new BlockError("EIO", undefined, { node: state.node.nodeName, cause: new Error(text) });
  if (state.isBroken) return error;
  const isFatal = mayBeFatal && !state.node.readOnly;
  if (isFatal || !state.isCorruptionReported) {
    report(
      state,
      isFatal
        ? `qcow2: Marking image as corrupt: ${text}; further corruption events will be suppressed`
        : `qcow2: Image is corrupt: ${text}; further non-fatal corruption events will be suppressed`,
    );
    state.isCorruptionReported = true;
  }
  if (!isFatal) return error;
  state.isBroken = true;
  if (state.version >= 3) {
    state.incompatibleFeatures |= Incompatible.Corrupt;
    // The error to be thrown counts more than that the mark could not be made.
    await writeIncompatible(co, state).catch(() => {});
  }
  return error;
}

/** The line as it is meant for stderr. */
function report(state: Qcow2State, line: string): void {
  (state.environment.message ?? state.environment.warn)(line);
}

/** Throws once the node has been found corrupt. */
export function checkUsable(state: Qcow2State): void {
  if (state.isBroken) throw new BlockError("ENOMEDIUM", undefined, { node: state.node.nodeName });
}

/** Writes the incompatible feature bits of the header and makes them stable. */
export async function writeIncompatible(co: Coroutine<"read">, state: Qcow2State): Promise<void> {
  const { file } = state;
  await file.pwrite(
    co,
    HeaderV2.size + HeaderV3.offsetOf.incompatibleFeatures,
    bits(state.incompatibleFeatures),
  );
  await file.flush(co);
}

function bits(mask: bigint): Uint8Array {
  const buffer = new Uint8Array(8);
  mask64.write(new DataView(buffer.buffer), 0, mask, false);
  return buffer;
}

/** What a write may overlap, in the order in which it is looked for; the names are for messages.  @qemu QCow2MetadataOverlap */
export const METADATA_KINDS = [
  "qcow2_header",
  "active L1 table",
  "refcount table",
  "snapshot table",
  "inactive L1 table",
  "active L2 table",
  "refcount block",
  "inactive L2 table",
  "bitmap directory",
] as const;

export type MetadataKind = (typeof METADATA_KINDS)[number];

/**
 * Throws if a write of [offset, offset + bytes) of `file` would hit a table. `exempt`: what the write is meant for.
 * What it costs is a look at a set or two for each cluster written.  @qemu qcow2_pre_write_overlap_check
 */
export function checkOverlap(
  co: Coroutine<"read">,
  state: Qcow2State,
  offset: number,
  bytes: number,
  ...exempt: readonly MetadataKind[]
): Promise<void> | undefined {
  if (state.overlapChecks.size === 0 || bytes === 0) return undefined;
  if (state.overlapChecks.has("inactive L2 table") && !state.metadataIndex?.inactiveL2Tables)
    return loadInactiveL2(co, state).then(() => checkOverlap(co, state, offset, bytes, ...exempt));
  const hit = findOverlap(state, offset, bytes, exempt);
  if (hit === undefined) return undefined;
  return signalCorruption(co, state, `Preventing invalid write on metadata (overlaps with ${hit})`).then(
    (error) => {
      throw error;
    },
  );
}

/** Whole clusters count.  @qemu qcow2_check_metadata_overlap */
function findOverlap(
  state: Qcow2State,
  offset: number,
  bytes: number,
  exempt: readonly MetadataKind[],
): MetadataKind | undefined {
  const { clusterSize, overlapChecks } = state;
  const first = Math.floor(offset / clusterSize);
  const last = Math.floor((offset + bytes - 1) / clusterSize);
  const isIn = (start: number, length: number) =>
    length > 0 && start < (last + 1) * clusterSize && first * clusterSize < start + length;
  const isAmong = (clusters: ReadonlySet<number> | undefined) => {
    if (!clusters || clusters.size === 0) return false;
    for (let index = first; index <= last; index++) if (clusters.has(index)) return true;
    return false;
  };
  const { l2Tables, refblocks, inactiveL2Tables } = metadataIndex(state);
  for (const kind of METADATA_KINDS) {
    if (!overlapChecks.has(kind) || exempt.includes(kind)) continue;
    if (overlaps(state, kind, { isIn, isAmong, l2Tables, refblocks, inactiveL2Tables })) return kind;
  }
  return undefined;
}

interface OverlapTests extends MetadataIndex {
  readonly isIn: (start: number, length: number) => boolean;
  readonly isAmong: (clusters: ReadonlySet<number> | undefined) => boolean;
}

function overlaps(state: Qcow2State, kind: MetadataKind, tests: OverlapTests): boolean {
  const { isIn, isAmong } = tests;
  switch (kind) {
    case "qcow2_header":
      return isIn(0, state.clusterSize);
    case "active L1 table":
      return isIn(state.l1TableOffset, state.l1Size * 8);
    case "refcount table":
      return isIn(state.refcountTableOffset, state.refcountTableClusters * state.clusterSize);
    case "snapshot table":
      return isIn(state.snapshotsOffset, state.snapshotTableBytes);
    case "inactive L1 table":
      return state.snapshots.some(({ l1TableOffset, l1Size }) => isIn(l1TableOffset, l1Size * 8));
    case "active L2 table":
      return isAmong(tests.l2Tables);
    case "refcount block":
      return isAmong(tests.refblocks);
    case "inactive L2 table":
      return isAmong(tests.inactiveL2Tables);
    case "bitmap directory":
      return state.bitmaps !== undefined && isIn(state.bitmaps.directoryOffset, state.bitmaps.directorySize);
  }
}

/** Larger tables are not indexed, so that memory stays bounded: a check that is left out does no harm by itself. */
const MAX_INDEXED_ENTRIES = 512 * 1024;

function metadataIndex(state: Qcow2State): MetadataIndex {
  if (state.metadataIndex) return state.metadataIndex;
  const l2Tables = new Set<number>();
  const refblocks = new Set<number>();
  collectTables(state, state.l1Table, state.l1Size, l2Tables);
  collectTables(state, state.refcountTable, state.refcountTable.byteLength / 8, refblocks);
  state.metadataIndex = { l2Tables, refblocks, inactiveL2Tables: undefined };
  return state.metadataIndex;
}

function collectTables(state: Qcow2State, table: DataView, entries: number, clusters: Set<number>): void {
  for (let index = 0; index < entries && clusters.size < MAX_INDEXED_ENTRIES; index++) {
    const offset = tableOffset(table, index);
    if (offset > 0) clusters.add(Math.floor(offset / state.clusterSize));
  }
}

/** The L1 tables of snapshots never change: they are read once, until snapshots come or go. */
async function loadInactiveL2(co: Coroutine<"read">, state: Qcow2State): Promise<void> {
  const clusters = new Set<number>();
  for (const { l1TableOffset, l1Size } of state.snapshots) {
    if (!isAligned(l1TableOffset, state.clusterSize) || l1Size * 8 > MAX_L1_BYTES)
      throw new BlockError("EINVAL");
    const table = await state.file.preadBytes(co, l1TableOffset, l1Size * 8);
    collectTables(state, new DataView(table.buffer), l1Size, clusters);
  }
  metadataIndex(state).inactiveL2Tables = clusters;
}

/** To be called with each change of a table's place; 0: none. */
export function noteMoved(
  state: Qcow2State,
  kind: "l2Tables" | "refblocks",
  oldOffset: number,
  newOffset: number,
): void {
  const clusters = state.metadataIndex?.[kind];
  if (!clusters) return;
  if (oldOffset > 0) clusters.delete(Math.floor(oldOffset / state.clusterSize));
  if (newOffset > 0) clusters.add(Math.floor(newOffset / state.clusterSize));
}
