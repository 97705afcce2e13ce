/** The state of an open QED node, and where its tables say that guest data lies.  @qemu block/qed-cluster.c */

import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import type { BlockNode } from "../../src/block/node.ts";
import { KiB } from "../../src/block/units.ts";
import { PagedTable } from "../paged-table.ts";
import type { Mutex } from "../qcow2/mutex.ts";
import { TableCache } from "../qcow2/table-cache.ts";
import { ENTRY_BYTES, Header, type HeaderRecord, ZERO_CLUSTER } from "./layout.ts";

export interface QedState {
  readonly node: BlockNode;
  readonly file: BlockChild;
  /** As the file has it. */
  readonly header: HeaderRecord;
  readonly clusterSize: number;
  /** Bytes of a table. */
  readonly tableBytes: number;
  /** Guest bytes that an L2 table is for. */
  readonly l2Span: number;
  readonly l1: PagedTable;
  /** Parts of L2 tables. Its calls, but for `peek`, are made with `tableLock` held. */
  readonly l2Cache: TableCache;
  readonly tableLock: Mutex;
  /** Where the next cluster is taken: behind all of the file. */
  fileEnd: number;
  /** Held while clusters are taken and entries change; requests pass in the order in which they came. */
  readonly lock: Mutex;
}

/** Bytes of an L2 table that are read at a time. */
export const SLICE_BYTES = 4 * KiB;

/** 1 MiB of L2 tables. */
const MAX_SLICES = 256;

export function makeTables(
  file: BlockChild,
  { l1TableOffset, tableSize, clusterSize }: HeaderRecord,
): Pick<QedState, "clusterSize" | "tableBytes" | "l2Span" | "l1" | "l2Cache"> {
  const tableBytes = tableSize * clusterSize;
  const entries = tableBytes / ENTRY_BYTES;
  return {
    clusterSize,
    tableBytes,
    l2Span: entries * clusterSize,
    l1: new PagedTable({
      file,
      offset: l1TableOffset,
      entries,
      entryBytes: ENTRY_BYTES,
      littleEndian: true,
      writeEvent: "l1_update",
    }),
    l2Cache: new TableCache({
      file,
      tableBytes: SLICE_BYTES,
      capacity: MAX_SLICES,
      loadEvent: "l2_load",
      writeEvent: "l2_update",
    }),
  };
}

/** Where it is worth knowing: within the file, behind the header.  @qemu qed_check_cluster_offset */
export function isClusterOffset(
  { header, clusterSize, fileEnd }: Pick<QedState, "header" | "clusterSize" | "fileEnd">,
  offset: number,
): boolean {
  return offset % clusterSize === 0 && offset >= header.headerSize * clusterSize && offset < fileEnd;
}

/** Like QEMU it refuses tables of one cluster.  @qemu qed_check_table_offset */
export function isTableOffset(
  state: Pick<QedState, "header" | "clusterSize" | "fileEnd">,
  offset: number,
): boolean {
  const last = offset + (state.header.tableSize - 1) * state.clusterSize;
  return last > offset && isClusterOffset(state, offset) && isClusterOffset(state, last);
}

/** What a guest range is: in one piece in the file, zeroes, or the backing file's, with an L2 table or without. */
export interface Run {
  readonly kind: "data" | "zero" | "none" | "no-table";
  readonly bytes: number;
  /** Of data. */
  readonly hostOffset: number;
}

/** Offsets from 2^53 on lose their low bits, but are behind the end of any file. */
export function readEntry(view: DataView, at: number): number {
  return view.getUint32(at + 4, true) * 2 ** 32 + view.getUint32(at, true);
}

export function l2Index(state: QedState, guestOffset: number): number {
  return Math.floor((guestOffset % state.l2Span) / state.clusterSize);
}

/** As far as the tables are in memory; undefined: what it begins with is not. Throws EINVAL for entries that can't be. */
export function peekRun(state: QedState, guestOffset: number, bytes: number): Run | undefined {
  const { clusterSize, l2Span } = state;
  const l2Offset = state.l1.peek(Math.floor(guestOffset / l2Span));
  if (l2Offset === undefined) return undefined;
  const left = Math.min(bytes, l2Span - (guestOffset % l2Span));
  if (l2Offset === 0) return { kind: "no-table", bytes: left, hostOffset: 0 };
  if (!isTableOffset(state, l2Offset)) throw new BlockError("EINVAL");
  const within = guestOffset % clusterSize;
  const index = l2Index(state, guestOffset);
  const first = peekEntry(state, l2Offset, index);
  if (first === undefined) return undefined;
  const step = first > ZERO_CLUSTER ? clusterSize : 0;
  const wanted = Math.ceil((within + left) / clusterSize);
  let clusters = 1;
  while (clusters < wanted && peekEntry(state, l2Offset, index + clusters) === first + clusters * step)
    clusters++;
  const run = { bytes: Math.min(clusters * clusterSize - within, left), hostOffset: 0 };
  if (first === 0) return { kind: "none", ...run };
  if (first === ZERO_CLUSTER) return { kind: "zero", ...run };
  const last = first + (clusters - 1) * clusterSize;
  if (!isClusterOffset(state, first) || !isClusterOffset(state, last)) throw new BlockError("EINVAL");
  return { kind: "data", ...run, hostOffset: first + within };
}

function peekEntry({ l2Cache }: QedState, l2Offset: number, index: number): number | undefined {
  const at = index * ENTRY_BYTES;
  const slice = l2Cache.peek(l2Offset + at - (at % SLICE_BYTES));
  return slice && readEntry(slice.view, at % SLICE_BYTES);
}

export async function findRun(
  co: Coroutine<"read">,
  state: QedState,
  guestOffset: number,
  bytes: number,
): Promise<Run> {
  co.checkAborted();
  for (;;) {
    const run = peekRun(state, guestOffset, bytes);
    if (run) return run;
    const l2Offset = await state.l1.get(co, Math.floor(guestOffset / state.l2Span));
    if (!isTableOffset(state, l2Offset)) continue;
    const at = l2Index(state, guestOffset) * ENTRY_BYTES;
    await state.tableLock.run(() => state.l2Cache.load(co, l2Offset + at - (at % SLICE_BYTES)));
  }
}

/** @qemu qed_write_header */
export function writeHeader(co: Coroutine<"read">, { file, header }: QedState): Promise<void> {
  return file.pwrite(co, 0, Header.write(header));
}
