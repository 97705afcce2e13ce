/** The state of an open qcow node, and what its tables say of guest data.  @qemu block/qcow.c: get_cluster_offset */

import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import type { Guard } from "../../src/block/guard.ts";
import type { BlockNode } from "../../src/block/node.ts";
import { MiB } from "../../src/block/units.ts";
import type { SectorCipher } from "../crypto/sector-cipher.ts";
import { PagedTable } from "../paged-table.ts";
import type { Mutex } from "../qcow2/mutex.ts";
import { TableCache } from "../qcow2/table-cache.ts";
import { COMPRESSED_HIGH, ENTRY_BYTES, type HeaderRecord, l1EntriesFor } from "./layout.ts";

export interface QcowState {
  readonly node: BlockNode;
  readonly file: BlockChild;
  readonly guard: Guard | undefined;
  readonly clusterBits: number;
  readonly clusterSize: number;
  /** Bytes of an L2 table. */
  readonly l2Bytes: number;
  /** Guest bytes that an L2 table is for. */
  readonly l2Span: number;
  readonly l1TableOffset: number;
  /** Exchanged where the image is emptied, as is the cache. */
  l1: PagedTable;
  /** L2 tables. Its calls, but for `peek`, are made with `tableLock` held. */
  l2Cache: TableCache;
  readonly tableLock: Mutex;
  /** Held while clusters are taken and entries change; requests pass in the order in which they came. */
  readonly lock: Mutex;
  readonly isEncrypted: boolean;
  /** Undefined in an encrypted image that is open only to be told about. */
  readonly cipher: SectorCipher | undefined;
  /** The cluster that was decompressed last, and its L2 entry. */
  inflated: { readonly high: number; readonly low: number; readonly content: Uint8Array } | undefined;
}

const L2_CACHE_BYTES = MiB;

export function makeTables(file: BlockChild, header: HeaderRecord): Pick<QcowState, "l1" | "l2Cache"> {
  const tableBytes = 2 ** header.l2Bits * ENTRY_BYTES;
  return {
    l1: new PagedTable({
      file,
      offset: header.l1TableOffset,
      entries: l1EntriesFor(header.size, header),
      entryBytes: ENTRY_BYTES,
      littleEndian: false,
      writeEvent: "l1_update",
    }),
    l2Cache: new TableCache({
      file,
      tableBytes,
      capacity: L2_CACHE_BYTES / tableBytes,
      loadEvent: "l2_load",
      writeEvent: "l2_update",
    }),
  };
}

/** What a guest range is: in one piece in the file, one compressed cluster, or the backing file's, with an L2 table or without. */
export interface Run {
  readonly kind: "data" | "compressed" | "none" | "no-table";
  readonly bytes: number;
  /** Of data. */
  readonly hostOffset: number;
  /** The halves of the first L2 entry. */
  readonly high: number;
  readonly low: number;
}

export function l2Index({ l2Span, clusterSize }: QcowState, guestOffset: number): number {
  return Math.floor((guestOffset % l2Span) / clusterSize);
}

/** As far as the tables are in memory; undefined: what it begins with is not. */
export function peekRun(state: QcowState, guestOffset: number, bytes: number): Run | undefined {
  const { clusterSize, l2Span } = state;
  const l2Offset = state.l1.peek(Math.floor(guestOffset / l2Span));
  if (l2Offset === undefined) return undefined;
  const left = Math.min(bytes, l2Span - (guestOffset % l2Span));
  if (l2Offset === 0) return { kind: "no-table", bytes: left, hostOffset: 0, high: 0, low: 0 };
  const table = state.l2Cache.peek(l2Offset);
  if (!table) return undefined;
  const { view } = table;
  const within = guestOffset % clusterSize;
  const first = l2Index(state, guestOffset) * ENTRY_BYTES;
  const high = view.getUint32(first);
  const low = view.getUint32(first + 4);
  if (high >= COMPRESSED_HIGH)
    return { kind: "compressed", bytes: Math.min(clusterSize - within, left), hostOffset: 0, high, low };
  const offset = high * 2 ** 32 + low;
  const step = offset === 0 ? 0 : clusterSize;
  const wanted = Math.ceil((within + left) / clusterSize);
  let clusters = 1;
  for (; clusters < wanted; clusters++) {
    const at = first + clusters * ENTRY_BYTES;
    if (view.getUint32(at) * 2 ** 32 + view.getUint32(at + 4) !== offset + clusters * step) break;
  }
  const run = { bytes: Math.min(clusters * clusterSize - within, left), high, low };
  return offset === 0
    ? { kind: "none", hostOffset: 0, ...run }
    : { kind: "data", hostOffset: offset + within, ...run };
}

export async function findRun(
  co: Coroutine<"read">,
  state: QcowState,
  guestOffset: number,
  bytes: number,
): Promise<Run> {
  co.checkAborted();
  for (;;) {
    const run = peekRun(state, guestOffset, bytes);
    if (run) return run;
    const l2Offset = await state.l1.get(co, Math.floor(guestOffset / state.l2Span));
    if (l2Offset !== 0) await state.tableLock.run(() => state.l2Cache.load(co, l2Offset));
  }
}
