/**
 * Reading and writing qcow's guest data.  @qemu qcow_co_preadv, qcow_co_pwritev, qcow_co_pwritev_compressed
 *
 * Invariants:
 * 1. Clusters are taken behind the end of the file, and entries set, with the lock held, in the order in which requests
 *    came; nothing in the file is ever given free.
 * 2. Before an entry is written, what it refers to is on the disk: a cluster behind the end that a power cut leaves would
 *    be taken a second time.
 */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import {
  type IoVector,
  iovConcat,
  iovFill,
  iovFlatten,
  iovLength,
  iovSlice,
  iovWrite,
} from "../../src/block/iov.ts";
import { alignUp, MAX_LENGTH, MiB, SECTOR_SIZE } from "../../src/block/units.ts";
import { compressAsync, decompressNow } from "../qcow2/codec.ts";
import { COMPRESSED_HIGH, ENTRY_BYTES } from "./layout.ts";
import { findRun, l2Index, peekRun, type QcowState, type Run } from "./state.ts";

export async function pread(
  co: Coroutine<"read">,
  state: QcowState,
  guestOffset: number,
  iov: IoVector,
): Promise<void> {
  const bytes = iovLength(iov);
  for (let done = 0; done < bytes; ) {
    const run = await findRun(co, state, guestOffset + done, bytes - done);
    await readRun(co, state, run, guestOffset + done, iovSlice(iov, done, done + run.bytes));
    done += run.bytes;
  }
}

async function readRun(
  co: Coroutine<"read">,
  state: QcowState,
  run: Run,
  guestOffset: number,
  iov: IoVector,
): Promise<void> {
  const { file, node } = state;
  if (run.kind === "data") return readData(co, state, guestOffset, run.hostOffset, iov);
  if (run.kind === "compressed") {
    const content = await readCompressed(co, state, run);
    const within = guestOffset % state.clusterSize;
    return iovWrite(iov, content.subarray(within, within + iovLength(iov)));
  }
  if (!node.backing) return iovFill(iov, 0);
  if (file.debug) await file.debug.event(co, "read_backing_aio");
  await node.backing.pread(co, guestOffset, iov);
}

/** What goes through the cipher at once, beside the caller's own buffers. */
const WINDOW_BYTES = MiB;

async function readData(
  co: Coroutine<"read">,
  state: QcowState,
  guestOffset: number,
  hostOffset: number,
  iov: IoVector,
): Promise<void> {
  const { file, isEncrypted } = state;
  if (file.debug) await file.debug.event(co, "read_aio");
  if (!isEncrypted) return file.pread(co, hostOffset, iov);
  const cipher = cipherOf(state);
  const bytes = iovLength(iov);
  for (let done = 0; done < bytes; done += WINDOW_BYTES) {
    const piece = new Uint8Array(Math.min(WINDOW_BYTES, bytes - done));
    await file.pread(co, hostOffset + done, piece);
    cipher.decrypt((guestOffset + done) / SECTOR_SIZE, piece);
    iovWrite(iovSlice(iov, done, done + piece.length), piece);
  }
}

/** The caller's buffers stay as they are. */
async function writeData(
  co: Coroutine<"read">,
  state: QcowState,
  guestOffset: number,
  hostOffset: number,
  iov: IoVector,
): Promise<void> {
  const { file, isEncrypted } = state;
  if (file.debug) await file.debug.event(co, "write_aio");
  if (!isEncrypted) return file.pwrite(co, hostOffset, iov);
  const cipher = cipherOf(state);
  const bytes = iovLength(iov);
  for (let done = 0; done < bytes; done += WINDOW_BYTES) {
    const piece = new Uint8Array(iovFlatten(iovSlice(iov, done, Math.min(done + WINDOW_BYTES, bytes))));
    cipher.encrypt((guestOffset + done) / SECTOR_SIZE, piece);
    await file.pwrite(co, hostOffset + done, piece);
  }
}

function cipherOf({ cipher }: QcowState) {
  if (!cipher) throw new BlockError("EIO", "The image was opened without its key");
  return cipher;
}

/** The content of a compressed cluster: raw deflate, never encrypted.  @qemu decompress_cluster */
async function readCompressed(
  co: Coroutine<"read">,
  state: QcowState,
  { high, low }: Pick<Run, "high" | "low">,
): Promise<Uint8Array> {
  const { file, clusterBits, clusterSize, inflated, guard } = state;
  if (inflated && inflated.high === high && inflated.low === low) return inflated.content;
  const offsetBits = 31 - clusterBits;
  const entry = high % COMPRESSED_HIGH;
  const hostOffset = (entry % 2 ** offsetBits) * 2 ** 32 + low;
  const input = new Uint8Array(Math.floor(entry / 2 ** offsetBits));
  if (file.debug) await file.debug.event(co, "read_compressed");
  await file.pread(co, hostOffset, input);
  guard?.decompress(clusterSize);
  const content = decompressNow("zlib", input, clusterSize);
  state.inflated = { high, low, content };
  return content;
}

/** What is in place and known needs no lock. */
export function pwrite(
  co: Coroutine<"read">,
  state: QcowState,
  guestOffset: number,
  iov: IoVector,
): Promise<void> {
  const bytes = iovLength(iov);
  const run = peekRun(state, guestOffset, bytes);
  if (run?.kind === "data" && run.bytes === bytes)
    return writeData(co, state, guestOffset, run.hostOffset, iov);
  return state.lock.run(() => writePieces(co, state, guestOffset, iov));
}

async function writePieces(
  co: Coroutine<"read">,
  state: QcowState,
  guestOffset: number,
  iov: IoVector,
): Promise<void> {
  const bytes = iovLength(iov);
  for (let done = 0; done < bytes; ) {
    const at = guestOffset + done;
    const run = await findRun(co, state, at, bytes - done);
    const part = iovSlice(iov, done, done + run.bytes);
    if (run.kind === "data") await writeData(co, state, at, run.hostOffset, part);
    else await allocate(co, state, run, at, part);
    done += run.bytes;
  }
}

/** Takes clusters for a run that has none of its own, or a compressed one, with what the guest saw around the write. */
async function allocate(
  co: Coroutine<"read">,
  state: QcowState,
  run: Run,
  guestOffset: number,
  iov: IoVector,
): Promise<void> {
  const { clusterSize, file, node, isEncrypted } = state;
  const bytes = iovLength(iov);
  const headBytes = guestOffset % clusterSize;
  const clusters = Math.ceil((headBytes + bytes) / clusterSize);
  const start = guestOffset - headBytes;
  const end = start + clusters * clusterSize;
  await ensureTable(co, state, guestOffset);
  if (file.debug) await file.debug.event(co, "cluster_alloc");
  const hostOffset = await endOfFile(co, state, end - start);
  await file.truncate(co, hostOffset + end - start, false);
  if (run.kind === "compressed" || node.backing || isEncrypted) {
    const head = new Uint8Array(headBytes);
    const tail = new Uint8Array(end - guestOffset - bytes);
    if (head.length > 0) await readRun(co, state, run, start, head);
    if (tail.length > 0) await readRun(co, state, run, guestOffset + bytes, tail);
    await writeData(co, state, start, hostOffset, iovConcat(head, iov, tail));
  } else await writeData(co, state, guestOffset, hostOffset + headBytes, iov);
  await setEntries(co, state, start, clusters, (index) => split(hostOffset + index * clusterSize));
}

/** Where the next cluster is. */
async function endOfFile(
  co: Coroutine<"read">,
  { file, clusterSize }: QcowState,
  bytes: number,
): Promise<number> {
  const offset = alignUp(await file.getLength(co), clusterSize);
  if (offset + bytes > MAX_LENGTH) throw new BlockError("EFBIG");
  return offset;
}

/** The table is on the disk before the L1 table names it. */
async function ensureTable(co: Coroutine<"read">, state: QcowState, guestOffset: number): Promise<void> {
  const { l1, l2Cache, l2Bytes, l2Span, file, tableLock } = state;
  const l1Index = Math.floor(guestOffset / l2Span);
  if ((await l1.get(co, l1Index)) !== 0) return;
  const l2Offset = await endOfFile(co, state, l2Bytes);
  if (file.debug) await file.debug.event(co, "l2_update");
  await file.pwrite(co, l2Offset, new Uint8Array(l2Bytes));
  await tableLock.run(() => l2Cache.put(co, l2Offset, new Uint8Array(l2Bytes)));
  l1.dependsOnFlush = true;
  await l1.set(co, l1Index, l2Offset);
  await l1.write(co);
}

type Entry = readonly [high: number, low: number];

function split(value: number): Entry {
  const low = value % 2 ** 32;
  return [(value - low) / 2 ** 32, low];
}

/** Of one L2 table, which is there. */
function setEntries(
  co: Coroutine<"read">,
  state: QcowState,
  guestOffset: number,
  clusters: number,
  entryOf: (index: number) => Entry,
): Promise<void> {
  const { l1, l2Cache, l2Span, tableLock } = state;
  return tableLock.run(async () => {
    const table = await l2Cache.load(co, await l1.get(co, Math.floor(guestOffset / l2Span)));
    const first = l2Index(state, guestOffset) * ENTRY_BYTES;
    for (let index = 0; index < clusters; index++) {
      const [high, low] = entryOf(index);
      table.view.setUint32(first + index * ENTRY_BYTES, high);
      table.view.setUint32(first + index * ENTRY_BYTES + 4, low);
    }
    table.markDirty(first, first + clusters * ENTRY_BYTES);
    l2Cache.dependsOnFlush = true;
    await l2Cache.write(co);
  });
}

/** Whole clusters, or what of the last one is the guest's. What does not get smaller is written as it is. */
export async function pwriteCompressed(
  co: Coroutine<"read">,
  state: QcowState,
  guestOffset: number,
  iov: IoVector,
): Promise<void> {
  const { clusterSize } = state;
  const bytes = iovLength(iov);
  const ends: Promise<void>[] = [];
  for (let done = 0; done < bytes; done += clusterSize) {
    const part = iovSlice(iov, done, Math.min(done + clusterSize, bytes));
    ends.push(writeCompressed(co, state, guestOffset + done, part));
  }
  for (const end of await Promise.allSettled(ends)) if (end.status === "rejected") throw end.reason;
}

async function writeCompressed(
  co: Coroutine<"read">,
  state: QcowState,
  guestOffset: number,
  iov: IoVector,
): Promise<void> {
  const { clusterSize, node, lock } = state;
  const bytes = iovLength(iov);
  const isEnd = guestOffset + bytes === node.totalSectors * SECTOR_SIZE;
  if (guestOffset % clusterSize !== 0 || (bytes < clusterSize && !isEnd)) throw new BlockError("EINVAL");
  const input = new Uint8Array(clusterSize);
  input.set(iovFlatten(iov));
  // Beside others; the lock is asked for at once, so that clusters come in the order of the calls.
  const compressing = compressAsync("zlib", input);
  compressing.catch(() => {});
  return lock.run(async () => {
    const output = await compressing;
    if (!output) return writePieces(co, state, guestOffset, iov);
    const run = await findRun(co, state, guestOffset, clusterSize);
    // QEMU would write over a cluster that is there, and leave its entry.
    if (run.kind === "data" || run.kind === "compressed") throw new BlockError("EIO");
    await appendCompressed(co, state, guestOffset, output);
  });
}

async function appendCompressed(
  co: Coroutine<"read">,
  state: QcowState,
  guestOffset: number,
  output: Uint8Array,
): Promise<void> {
  const { file, clusterBits } = state;
  await ensureTable(co, state, guestOffset);
  if (file.debug) await file.debug.event(co, "cluster_alloc");
  const hostOffset = await file.getLength(co);
  const offsetBits = 31 - clusterBits;
  const [offsetHigh, low] = split(hostOffset);
  if (offsetHigh >= 2 ** offsetBits) throw new BlockError("EFBIG");
  if (file.debug) await file.debug.event(co, "write_compressed");
  await file.pwrite(co, hostOffset, output);
  const high = COMPRESSED_HIGH + output.length * 2 ** offsetBits + offsetHigh;
  await setEntries(co, state, guestOffset, 1, () => [high, low]);
}
