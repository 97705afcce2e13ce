/** What is known of an open Parallels image, and where its clusters lie. */

import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { type IoVector, isZero } from "../../src/block/iov.ts";
import type { BlockNode } from "../../src/block/node.ts";
import { alignUp, divideRoundUp, KiB, SECTOR_SIZE } from "../../src/block/units.ts";
import type { PagedTable } from "../paged-table.ts";
import type { Mutex } from "../qcow2/mutex.ts";
import { BAT_ENTRY_BYTES, BAT_OFFSET, Header, type HeaderRecord, IN_USE } from "./layout.ts";

export interface State {
  readonly node: BlockNode;
  readonly file: BlockChild;
  /** What shows where the image has no cluster; undefined: zeroes. Asked each time: backing files change. */
  readonly below: () => ((co: Coroutine<"read">, offset: number, iov: IoVector) => Promise<void>) | undefined;
  /** As it is to be in the file. */
  readonly header: HeaderRecord;
  readonly clusterSize: number;
  /** What an entry of the BAT counts, in bytes. */
  readonly entryUnit: number;
  readonly bat: PagedTable;
  /** Bytes that are set aside beyond what is needed, each time the file grows. */
  readonly preallocBytes: number;
  preallocMode: "falloc" | "truncate";
  /** Somebody who wrote to it did not close it. */
  isUnclean: boolean;
  /** Where the next cluster goes, in bytes. Known only of an image that can be written. */
  dataEnd: number;
  /** Up to here the file may hold anything behind `dataEnd`: it was there when the image was opened. */
  staleEnd: number;
  /** Held while clusters are allocated. */
  readonly lock: Mutex;
}

/** Where header and BAT end, in bytes. */
export function batEnd({ bat }: State): number {
  return BAT_OFFSET + bat.entries * BAT_ENTRY_BYTES;
}

/** Host offset of a cluster; undefined: it is not allocated. */
async function clusterOffset(
  co: Coroutine<"read">,
  state: State,
  cluster: number,
): Promise<number | undefined> {
  const { bat } = state;
  if (cluster >= bat.entries) return undefined;
  const entry = bat.peek(cluster) ?? (await bat.get(co, cluster));
  return placeOf(state, entry);
}

const placeOf = ({ entryUnit }: State, entry: number) => (entry === 0 ? undefined : entry * entryUnit);

/** Bytes from a guest offset on that lie in one piece in the file, or that are not allocated. */
export interface Run {
  readonly bytes: number;
  readonly hostOffset: number | undefined;
}

/** @qemu block_status */
export async function findRun(
  co: Coroutine<"read">,
  state: State,
  guestOffset: number,
  bytes: number,
): Promise<Run> {
  const { clusterSize, bat } = state;
  const inCluster = guestOffset % clusterSize;
  let cluster = Math.floor(guestOffset / clusterSize);
  const start = await clusterOffset(co, state, cluster);
  let found = clusterSize - inCluster;
  while (found < bytes) {
    cluster++;
    // What is in memory needs no wait: there may be millions of clusters that are not allocated.
    const entry = cluster < bat.entries ? bat.peek(cluster) : 0;
    const next = entry === undefined ? await clusterOffset(co, state, cluster) : placeOf(state, entry);
    if (next !== (start === undefined ? undefined : start + inCluster + found)) break;
    found += clusterSize;
    if (cluster % CLUSTERS_PER_LOOK === 0) co.checkAborted();
  }
  return {
    bytes: Math.min(found, bytes),
    hostOffset: start === undefined ? undefined : start + inCluster,
  };
}

const CLUSTERS_PER_LOOK = 2 ** 16;

/** Read at a time when all of the BAT is looked over: more than a window of it is never in memory. */
const SCAN_BYTES = 64 * KiB;

/** Calls `visit` with each cluster that is allocated, as the file has it: the table has been written. */
export async function forEachCluster(
  co: Coroutine<"read">,
  state: State,
  visit: (cluster: number, hostOffset: number) => Promise<void> | undefined,
): Promise<void> {
  const { file, bat, entryUnit } = state;
  const end = Math.min(batEnd(state), await file.getLength(co));
  for (let at = BAT_OFFSET; at < end; at += SCAN_BYTES) {
    co.checkAborted();
    const status = await file.blockStatus(co, true, at, Math.min(SCAN_BYTES, end - at));
    if (status.zero && status.bytes >= Math.min(SCAN_BYTES, end - at)) continue;
    const piece = await file.preadBytes(co, at, Math.min(SCAN_BYTES, batEnd(state) - at));
    if (isZero(piece)) continue;
    const view = new DataView(piece.buffer, piece.byteOffset, piece.length);
    const first = (at - BAT_OFFSET) / BAT_ENTRY_BYTES;
    const count = Math.min(Math.floor(piece.length / BAT_ENTRY_BYTES), bat.entries - first);
    for (let index = 0; index < count; index++) {
      const entry = view.getUint32(index * BAT_ENTRY_BYTES, true);
      if (entry === 0) continue;
      const waiting = visit(first + index, entry * entryUnit);
      if (waiting) await waiting;
    }
  }
}

/** Where the clusters end, in bytes: those of the BAT, and the place that the header has for the first. */
export async function findDataEnd(co: Coroutine<"read">, state: State): Promise<number> {
  const { dataOffset } = state.header;
  const tablesEnd = alignUp(batEnd(state), SECTOR_SIZE);
  // What the header says is not believed where it lies inside of the tables.
  let dataEnd = Math.max(dataOffset * SECTOR_SIZE, tablesEnd);
  await forEachCluster(co, state, (_, hostOffset) => {
    dataEnd = Math.max(dataEnd, hostOffset + state.clusterSize);
    return undefined;
  });
  return alignUp(dataEnd, state.entryUnit);
}

/** Writes the header, so that it is on the disk when this ends. */
async function writeHeader(co: Coroutine<"read">, { file, header }: State): Promise<void> {
  await file.pwrite(co, 0, Header.write(header));
  await file.flush(co);
}

/** From here on it is written to: who opens it while it is marked must check it first. */
export async function beginWriting(co: Coroutine<"read">, state: State): Promise<void> {
  const { header, file } = state;
  const fileBytes = await file.getLength(co);
  state.dataEnd = await findDataEnd(co, state);
  // What the extension holds lies there as well, for as long as nothing is written.
  if (header.extensionOffset !== 0) state.dataEnd = Math.max(state.dataEnd, fileBytes);
  state.staleEnd = fileBytes;
  header.inUse = IN_USE;
  await writeHeader(co, state);
}

/** Nothing is written any more: the tables are in the file. What was set aside goes back. */
export async function endWriting(co: Coroutine<"read">, state: State): Promise<void> {
  const { header, file } = state;
  header.inUse = 0;
  await writeHeader(co, state);
  try {
    await file.truncate(co, state.dataEnd, true);
  } catch (error) {
    // Space is lost, and nothing else.
    if (!(error instanceof BlockError)) throw error;
  }
}

/**
 * The first change makes the bitmaps of the extension wrong, which nobody keeps up to date: it goes. QEMU 7.2 leaves
 * its number in the header and cuts it off with the end of the file, after which the image can't be opened any more.
 */
export async function dropExtension(co: Coroutine<"read">, state: State): Promise<void> {
  state.header.extensionOffset = 0;
  await writeHeader(co, state);
  state.dataEnd = await findDataEnd(co, state);
}

/** How many clusters, counted from the one that holds `guestOffset`, a request of `bytes` touches. */
export function clustersOf(guestOffset: number, bytes: number, clusterSize: number): number {
  return divideRoundUp((guestOffset % clusterSize) + bytes, clusterSize);
}
