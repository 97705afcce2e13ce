/**
 * What is done when the image contradicts itself: it is marked corrupt and no longer used. And the check before
 * each write that it does not land in the image's own tables.  @qemu qcow2_signal_corruption
 */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { mask64 } from "../../src/block/layout.ts";
import { tableOffset } from "./entries.ts";
import { HeaderV2, HeaderV3, Incompatible } from "./layout.ts";
import type { MetadataIndex, Qcow2State } from "./state.ts";

/**
 * Tells of a corruption, once, and gives the error to be thrown. A node that can be written is marked corrupt in its
 * header and answers nothing any more; one that is only read goes on with what is whole.
 */
export async function signalCorruption(
  co: Coroutine<"read">,
  state: Qcow2State,
  text: string,
): Promise<BlockError> {
  const error = new BlockError("EIO", undefined, { node: state.node.nodeName, cause: new Error(text) });
  if (state.isBroken) return error;
  const isFatal = !state.node.readOnly;
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

/** Writes the autoclear feature bits of the header. */
export async function writeAutoclear(co: Coroutine<"read">, state: Qcow2State): Promise<void> {
  await state.file.pwrite(
    co,
    HeaderV2.size + HeaderV3.offsetOf.autoclearFeatures,
    bits(state.autoclearFeatures),
  );
}

function bits(mask: bigint): Uint8Array {
  const buffer = new Uint8Array(8);
  mask64.write(new DataView(buffer.buffer), 0, mask, false);
  return buffer;
}

/** A table that the write is meant for. */
export type OverlapExemption = "active L2 table" | "refcount block" | undefined;

/**
 * Throws if a write of [offset, offset + bytes) of `file` would hit a table. What it costs is a look at a set for
 * each cluster written.  @qemu qcow2_pre_write_overlap_check
 */
export function checkOverlap(
  co: Coroutine<"read">,
  state: Qcow2State,
  offset: number,
  bytes: number,
  exempt?: OverlapExemption,
): Promise<void> | undefined {
  if (!state.checksOverlap) return undefined;
  const hit = findOverlap(state, offset, bytes, exempt);
  if (hit === undefined) return undefined;
  return signalCorruption(co, state, `Preventing invalid write on metadata (overlaps with ${hit})`).then(
    (error) => {
      throw error;
    },
  );
}

function findOverlap(
  state: Qcow2State,
  offset: number,
  bytes: number,
  exempt: OverlapExemption,
): string | undefined {
  const { clusterSize } = state;
  const hits = (start: number, length: number) =>
    length > 0 && start < offset + bytes && offset < start + length;
  if (offset < clusterSize) return "qcow2_header";
  if (hits(state.l1TableOffset, state.l1Size * 8)) return "active L1 table";
  const last = Math.floor((offset + bytes - 1) / clusterSize);
  const { l2Tables, refblocks } = metadataIndex(state);
  for (let index = Math.floor(offset / clusterSize); index <= last; index++) {
    if (l2Tables.has(index) && exempt !== "active L2 table") return "active L2 table";
    if (refblocks.has(index) && exempt !== "refcount block") return "refcount block";
  }
  if (hits(state.refcountTableOffset, state.refcountTableClusters * clusterSize)) return "refcount table";
  if (hits(state.snapshotsOffset, state.snapshotTableBytes)) return "snapshot table";
  for (const snapshot of state.snapshots)
    if (hits(snapshot.l1TableOffset, snapshot.l1Size * 8)) return "inactive L1 table";
  return undefined;
}

/** Larger tables are not indexed, so that memory stays bounded: a check that is left out does no harm by itself. */
const MAX_INDEXED_ENTRIES = 512 * 1024;

function metadataIndex(state: Qcow2State): MetadataIndex {
  if (state.metadataIndex) return state.metadataIndex;
  const collect = (table: DataView, entries: number): Set<number> => {
    const clusters = new Set<number>();
    for (let index = 0; index < Math.min(entries, MAX_INDEXED_ENTRIES); index++) {
      const offset = tableOffset(table, index);
      if (offset > 0) clusters.add(Math.floor(offset / state.clusterSize));
    }
    return clusters;
  };
  state.metadataIndex = {
    l2Tables: collect(state.l1Table, state.l1Size),
    refblocks: collect(state.refcountTable, state.refcountTable.byteLength / 8),
  };
  return state.metadataIndex;
}

/** To be called with each change of a table's place; 0: none. */
export function noteMoved(
  state: Qcow2State,
  kind: keyof MetadataIndex,
  oldOffset: number,
  newOffset: number,
): void {
  const clusters = state.metadataIndex?.[kind];
  if (!clusters) return;
  if (oldOffset > 0) clusters.delete(Math.floor(oldOffset / state.clusterSize));
  if (newOffset > 0) clusters.add(Math.floor(newOffset / state.clusterSize));
}
