/**
 * Reading and writing QED's guest data.  @qemu block/qed.c
 *
 * Invariants:
 * 1. Clusters are taken, and entries set, with the lock held, in the order in which requests came.
 * 2. What can be lost by a power cut between the two is put right: without a backing file the header has said "need
 *    check" before the first change, and is on the disk; with one, data is on the disk before the entry that replaces
 *    what the guest saw, and an L2 table before the L1 entry.
 */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { type IoVector, iovConcat, iovFill, iovLength, iovSlice } from "../../src/block/iov.ts";
import { MAX_LENGTH, MiB } from "../../src/block/units.ts";
import { ENTRY_BYTES, Feature, ZERO_CLUSTER } from "./layout.ts";
import { findRun, l2Index, peekRun, type QedState, type Run, SLICE_BYTES, writeHeader } from "./state.ts";

/** @qemu qed_aio_read_data */
export async function pread(
  co: Coroutine<"read">,
  state: QedState,
  guestOffset: number,
  iov: IoVector,
): Promise<void> {
  const bytes = iovLength(iov);
  const { file } = state;
  for (let done = 0; done < bytes; ) {
    const run = await findRun(co, state, guestOffset + done, bytes - done);
    const part = iovSlice(iov, done, done + run.bytes);
    if (run.kind === "data") {
      if (file.debug) await file.debug.event(co, "read_aio");
      await file.pread(co, run.hostOffset, part);
    } else await readBelow(co, state, run, guestOffset + done, part);
    done += run.bytes;
  }
}

/** What the guest sees where the image has no data. */
async function readBelow(
  co: Coroutine<"read">,
  { node, file }: QedState,
  { kind }: Run,
  guestOffset: number,
  iov: IoVector,
): Promise<void> {
  const { backing } = node;
  if (kind === "zero" || !backing) {
    iovFill(iov, 0);
    return;
  }
  if (file.debug) await file.debug.event(co, "read_backing_aio");
  await backing.pread(co, guestOffset, iov);
}

/** What is in place and known needs no lock. */
export function pwrite(
  co: Coroutine<"read">,
  state: QedState,
  guestOffset: number,
  iov: IoVector,
): Promise<void> {
  const bytes = iovLength(iov);
  const run = peekRun(state, guestOffset, bytes);
  if (run?.kind === "data" && run.bytes === bytes) return writeInPlace(co, state, run, iov);
  return state.lock.run(async () => {
    for (let done = 0; done < bytes; ) {
      const run = await findRun(co, state, guestOffset + done, bytes - done);
      const part = iovSlice(iov, done, done + run.bytes);
      if (run.kind === "data") await writeInPlace(co, state, run, part);
      else await allocate(co, state, run, guestOffset + done, part);
      done += run.bytes;
    }
  });
}

async function writeInPlace(
  co: Coroutine<"read">,
  { file }: QedState,
  { hostOffset }: Run,
  iov: IoVector,
): Promise<void> {
  if (file.debug) await file.debug.event(co, "write_aio");
  await file.pwrite(co, hostOffset, iov);
}

/** Whole clusters only; those that have data get zeroes for data.  @qemu bdrv_qed_co_pwrite_zeroes */
export function pwriteZeroes(
  co: Coroutine<"read">,
  state: QedState,
  guestOffset: number,
  bytes: number,
): Promise<void> {
  const { clusterSize } = state;
  if (guestOffset % clusterSize !== 0 || bytes % clusterSize !== 0) throw new BlockError("ENOTSUP");
  return state.lock.run(async () => {
    for (let done = 0; done < bytes; ) {
      const at = guestOffset + done;
      const run = await findRun(co, state, at, bytes - done);
      if (run.kind === "data") await writeZeroData(co, state, run);
      else if (run.kind !== "zero") {
        await markNeedCheck(co, state);
        await setEntries(co, state, at, run.bytes / clusterSize, ZERO_CLUSTER, 0);
      }
      done += run.bytes;
    }
  });
}

/** What is written at a time where much is zeroes. */
const PIECE_BYTES = MiB;

async function writeZeroData(co: Coroutine<"read">, state: QedState, run: Run): Promise<void> {
  const zeroes = new Uint8Array(Math.min(run.bytes, PIECE_BYTES));
  for (let done = 0; done < run.bytes; done += zeroes.length) {
    const piece = { ...run, hostOffset: run.hostOffset + done };
    await writeInPlace(co, state, piece, zeroes.subarray(0, run.bytes - done));
  }
}

/** Takes clusters behind the end of the file for a run that has none, and writes them whole.  @qemu qed_aio_write_alloc */
async function allocate(
  co: Coroutine<"read">,
  state: QedState,
  run: Run,
  guestOffset: number,
  iov: IoVector,
): Promise<void> {
  const { clusterSize, file, node } = state;
  const bytes = iovLength(iov);
  const headBytes = guestOffset % clusterSize;
  const clusters = Math.ceil((headBytes + bytes) / clusterSize);
  const hostOffset = takeClusters(state, clusters);
  await markNeedCheck(co, state);
  const head = await readAround(co, state, run, guestOffset - headBytes, headBytes);
  const tailBytes = clusters * clusterSize - headBytes - bytes;
  const tail = await readAround(co, state, run, guestOffset + bytes, tailBytes);
  if (file.debug) await file.debug.event(co, "write_aio");
  await file.pwrite(co, hostOffset, iovConcat(head, iov, tail));
  if (node.backing) await file.flush(co);
  await setEntries(co, state, guestOffset, clusters, hostOffset, clusterSize);
}

/** What the guest sees around a write, to be written with it.  @qemu qed_copy_from_backing */
async function readAround(
  co: Coroutine<"read">,
  state: QedState,
  run: Run,
  guestOffset: number,
  bytes: number,
): Promise<Uint8Array> {
  const content = new Uint8Array(bytes);
  if (bytes === 0) return content;
  const { file } = state;
  if (file.debug) await file.debug.event(co, "cow_read");
  await readBelow(co, state, run, guestOffset, content);
  if (file.debug) await file.debug.event(co, "cow_write");
  return content;
}

/** @qemu qed_alloc_clusters */
function takeClusters(state: QedState, clusters: number): number {
  const offset = state.fileEnd;
  const end = offset + clusters * state.clusterSize;
  if (end > MAX_LENGTH) throw new BlockError("EFBIG");
  state.fileEnd = end;
  return offset;
}

/** Before tables change that no flush keeps in order.  @qemu qed_should_set_need_check */
async function markNeedCheck(co: Coroutine<"read">, state: QedState): Promise<void> {
  const { header, node, file } = state;
  if (node.backing || (header.features & Feature.NeedCheck) !== 0n) return;
  header.features |= Feature.NeedCheck;
  try {
    await writeHeader(co, state);
    await file.flush(co);
  } catch (error) {
    header.features &= ~Feature.NeedCheck;
    throw error;
  }
}

/** Sets entries of one L2 table to `first`, `first + step`, ...; makes the table where there is none.  @qemu qed_aio_write_l2_update */
async function setEntries(
  co: Coroutine<"read">,
  state: QedState,
  guestOffset: number,
  clusters: number,
  first: number,
  step: number,
): Promise<void> {
  const { l1, l2Cache, l2Span, tableLock } = state;
  const l1Index = Math.floor(guestOffset / l2Span);
  const index = l2Index(state, guestOffset);
  const l2Offset = await l1.get(co, l1Index);
  if (l2Offset === 0) return addTable(co, state, l1Index, index, clusters, first, step);
  await tableLock.run(async () => {
    for (let done = 0; done < clusters; ) {
      const at = (index + done) * ENTRY_BYTES;
      const within = at % SLICE_BYTES;
      const slice = await l2Cache.load(co, l2Offset + at - within);
      const count = Math.min(clusters - done, (SLICE_BYTES - within) / ENTRY_BYTES);
      for (let i = 0; i < count; i++)
        writeEntry(slice.view, within + i * ENTRY_BYTES, first + (done + i) * step);
      slice.markDirty(within, within + count * ENTRY_BYTES);
      done += count;
    }
    await l2Cache.write(co);
  });
}

async function addTable(
  co: Coroutine<"read">,
  state: QedState,
  l1Index: number,
  index: number,
  clusters: number,
  first: number,
  step: number,
): Promise<void> {
  const { file, l1, tableBytes, clusterSize, node } = state;
  const l2Offset = takeClusters(state, tableBytes / clusterSize);
  if (file.debug) await file.debug.event(co, "l2_update");
  for (let at = 0; at < tableBytes; at += PIECE_BYTES) {
    const piece = new DataView(new ArrayBuffer(Math.min(tableBytes - at, PIECE_BYTES)));
    const start = at / ENTRY_BYTES;
    const end = Math.min(start + piece.byteLength / ENTRY_BYTES, index + clusters);
    for (let i = Math.max(start, index); i < end; i++)
      writeEntry(piece, (i - start) * ENTRY_BYTES, first + (i - index) * step);
    await file.pwrite(co, l2Offset + at, new Uint8Array(piece.buffer));
  }
  if (node.backing) l1.dependsOnFlush = true;
  await l1.set(co, l1Index, l2Offset);
  await l1.write(co);
}

function writeEntry(view: DataView, at: number, value: number): void {
  const low = value % 2 ** 32;
  view.setUint32(at, low, true);
  view.setUint32(at + 4, (value - low) / 2 ** 32, true);
}
