/**
 * Writing guest data: in place where it has one; else into new grains at the end of the extent's file, in the order of
 * the calls.  @qemu vmdk_pwritev
 *
 * 1. A grain is written whole, with what the guest saw around the data, before its table names it (grain-tables.ts).
 * 2. A grain that was given up is not used again: whoever reads it meanwhile reads what was there.
 */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { type IoVector, iovConcat, iovFlatten, iovLength, iovSlice } from "../../src/block/iov.ts";
import { alignDown, alignUp, MiB, SECTOR_SIZE } from "../../src/block/units.ts";
import { ZEROED } from "./grain-tables.ts";
import { GrainMarker } from "./layout.ts";
import { checkReadable, findRun, grainIndex, peekRun, type Run } from "./mapping.ts";
import { checkParent, renewCid } from "./parent.ts";
import type { Extent, SparseExtent, VmdkState } from "./state.ts";

export async function pwrite(
  co: Coroutine<"read">,
  state: VmdkState,
  guestOffset: number,
  iov: IoVector,
): Promise<void> {
  const bytes = iovLength(iov);
  if (state.isCidNew) {
    const run = peekRun(state, guestOffset, bytes);
    if (run?.bytes === bytes && (run.kind === "flat" || run.kind === "data"))
      return writeInPlace(co, run, iov);
  }
  // Places are given in the order of the calls, though packing takes its time: the same writes make the same file.
  const previous = state.turn;
  let pass: () => void = () => {};
  state.turn = new Promise((resolve) => {
    pass = resolve;
  });
  try {
    const packed = await packGrains(state, guestOffset, iov);
    await previous;
    await state.lock.run(() => {
      pass();
      return writeRuns(co, state, guestOffset, iov, packed);
    });
  } finally {
    pass();
  }
}

/** With the lock held. */
async function writeRuns(
  co: Coroutine<"read">,
  state: VmdkState,
  guestOffset: number,
  iov: IoVector,
  packed: ReadonlyMap<number, Uint8Array>,
): Promise<void> {
  const bytes = iovLength(iov);
  for (let done = 0; done < bytes; ) {
    const at = guestOffset + done;
    const run = await findRun(co, state, at, bytes - done);
    done += await writeRun(co, state, run, at, iovSlice(iov, done, done + run.bytes), packed);
    await renewCid(co, state);
  }
}

function checkWritable(extent: Extent): void {
  checkReadable(extent);
  if (extent.access !== "RW" || extent.kind === "zero") throw new BlockError("EACCES");
}

async function writeInPlace(
  co: Coroutine<"read">,
  run: Extract<Run, { kind: "flat" | "data" }>,
  iov: IoVector,
): Promise<void> {
  checkWritable(run.extent);
  const { file } = run.extent;
  if (file.debug && run.kind === "data") await file.debug.event(co, "write_aio");
  await file.pwrite(co, run.hostOffset, iov);
}

/** The bytes that were written: a run may be taken in several steps. */
async function writeRun(
  co: Coroutine<"read">,
  state: VmdkState,
  run: Run,
  guestOffset: number,
  iov: IoVector,
  packed: ReadonlyMap<number, Uint8Array>,
): Promise<number> {
  checkWritable(run.extent);
  switch (run.kind) {
    case "flat":
    case "data":
      await writeInPlace(co, run, iov);
      return run.bytes;
    case "compressed": {
      const message = "Could not write to allocated cluster for streamOptimized";
      (state.environment.error ?? state.environment.warn)(message);
      throw new BlockError("EIO");
    }
    case "fixed zeroes":
      throw new BlockError("EACCES");
    case "none":
    case "zero":
      if (run.extent.isCompressed) return writePacked(co, state, run, guestOffset, packed.get(guestOffset));
      return allocate(co, state, run, guestOffset, iov);
  }
}

type NewRun = Extract<Run, { kind: "none" | "zero" }>;

/** Grains that are written at once. */
const MAX_BATCH_BYTES = 2 * MiB;

/** Gives grains of a run their places in a row, as far as one table has them. */
async function allocate(
  co: Coroutine<"read">,
  state: VmdkState,
  run: NewRun,
  guestOffset: number,
  iov: IoVector,
): Promise<number> {
  const { extent } = run;
  const { grainBytes, tables } = extent;
  const copiesBacking = await coversBacking(co, state, run);
  const index = grainIndex(extent, guestOffset);
  const start = extent.start + index * grainBytes;
  const inTable = tables.tableEntries - (index % tables.tableEntries);
  const inBatch = Math.max(Math.floor(MAX_BATCH_BYTES / grainBytes), 1);
  const end = Math.min(guestOffset + iovLength(iov), start + Math.min(inTable, inBatch) * grainBytes);
  const grains = Math.ceil((end - start) / grainBytes);
  await ensureTable(co, extent, index);
  const hostOffset = extent.nextHostOffset;
  checkPlace(hostOffset + grains * grainBytes);
  // Taken, whatever comes: what a failed write has left is not written over by another.
  extent.nextHostOffset = hostOffset + grains * grainBytes;
  const data = iovSlice(iov, 0, end - guestOffset);
  await writeAround(co, state, { extent, start, hostOffset, copiesBacking }, guestOffset, data, grains);
  const entries = Array.from(
    { length: grains },
    (_, grain) => (hostOffset + grain * grainBytes) / SECTOR_SIZE,
  );
  await setEntries(co, extent, index, entries);
  return end - guestOffset;
}

/** Whether a new grain shows what lies below; zeroes of this image hide it. It must be what the image was made for. */
async function coversBacking(co: Coroutine<"read">, state: VmdkState, run: NewRun): Promise<boolean> {
  if (run.kind === "zero" || !state.node.backing) return false;
  await checkParent(co, state);
  return true;
}

/** Entries count sectors in 32 bits. */
function checkPlace(hostEnd: number): void {
  if (hostEnd / SECTOR_SIZE >= 2 ** 32) throw new BlockError("EFBIG");
}

async function setEntries(
  co: Coroutine<"read">,
  { tables }: SparseExtent,
  index: number,
  entries: readonly number[],
): Promise<void> {
  await tables.set(co, index, entries);
  await tables.write(co);
}

/** Extents of ESX and of streams have tables only where there are grains. QEMU can't write there. */
async function ensureTable(co: Coroutine<"read">, extent: SparseExtent, index: number): Promise<void> {
  const { tables, file, endHeader } = extent;
  if (endHeader) {
    await file.pwrite(co, 0, endHeader);
    await file.flush(co);
    extent.endHeader = undefined;
  }
  if (!(await tables.lacksTable(co, index))) return;
  const hostOffset = extent.nextHostOffset;
  const hostEnd = hostOffset + alignUp(tables.newTableBytes, SECTOR_SIZE);
  checkPlace(hostEnd);
  extent.nextHostOffset = extent.isCompressed ? hostEnd : alignUp(hostEnd, extent.grainBytes);
  await tables.addTable(co, index, hostOffset);
}

interface Place {
  readonly extent: SparseExtent;
  /** Guest offset of the first grain, and where it lies. */
  readonly start: number;
  readonly hostOffset: number;
  readonly copiesBacking: boolean;
}

/** Writes whole grains: the data, and around it what the guest saw there.  @qemu get_whole_cluster */
async function writeAround(
  co: Coroutine<"read">,
  state: VmdkState,
  place: Place,
  guestOffset: number,
  data: IoVector,
  grains: number,
): Promise<void> {
  const { file, grainBytes } = place.extent;
  const dataEnd = guestOffset + iovLength(data);
  const end = place.start + grains * grainBytes;
  const hostOf = (offset: number) => place.hostOffset + (offset - place.start);
  if (end - place.start <= MAX_BATCH_BYTES) {
    const head = await readAround(co, state, place, place.start, guestOffset);
    const tail = await readAround(co, state, place, dataEnd, end);
    if (file.debug) await file.debug.event(co, "write_aio");
    return file.pwrite(co, place.hostOffset, iovConcat(head, data, tail));
  }
  // One large grain.
  for (const [from, to] of [
    [place.start, guestOffset],
    [dataEnd, end],
  ] as const) {
    for (let at = from; at < to; at += MAX_BATCH_BYTES) {
      co.checkAborted();
      const piece = await readAround(co, state, place, at, Math.min(at + MAX_BATCH_BYTES, to));
      await file.pwrite(co, hostOf(at), piece);
    }
  }
  await file.pwrite(co, hostOf(guestOffset), data);
}

async function readAround(
  co: Coroutine<"read">,
  state: VmdkState,
  { extent, copiesBacking }: Place,
  from: number,
  to: number,
): Promise<Uint8Array> {
  const buffer = new Uint8Array(to - from);
  const { debug } = extent.file;
  if (buffer.length === 0) return buffer;
  if (copiesBacking) {
    if (debug) await debug.event(co, "cow_read");
    await state.node.backing?.pread(co, from, buffer);
  }
  if (debug) await debug.event(co, "cow_write");
  return buffer;
}

/** Whether the range from `guestOffset` is a whole grain, or ends one at the end of its extent. */
function isWholeGrain({ start, end, grainBytes }: SparseExtent, guestOffset: number, bytes: number): boolean {
  return (guestOffset - start) % grainBytes === 0 && (bytes === grainBytes || guestOffset + bytes === end);
}

/** Packs what goes to compressed extents, by guest offset, before the lock is taken: several requests side by side. */
async function packGrains(
  state: VmdkState,
  guestOffset: number,
  iov: IoVector,
): Promise<ReadonlyMap<number, Uint8Array>> {
  const packed = new Map<number, Uint8Array>();
  const bytes = iovLength(iov);
  for (const extent of state.extents) {
    if (extent.kind !== "sparse" || !extent.isCompressed) continue;
    const end = Math.min(guestOffset + bytes, extent.end);
    for (let at = Math.max(guestOffset, extent.start); at < end; ) {
      const within = (at - extent.start) % extent.grainBytes;
      const pieceEnd = Math.min(at - within + extent.grainBytes, end);
      if (isWholeGrain(extent, at, pieceEnd - at) && extent.hasMarkers) {
        const content = iovFlatten(iovSlice(iov, at - guestOffset, pieceEnd - guestOffset));
        packed.set(at, await deflate(content));
      }
      at = pieceEnd;
    }
  }
  return packed;
}

function deflate(content: Uint8Array): Promise<Uint8Array> {
  const zlib = process.getBuiltinModule("node:zlib");
  return new Promise((resolve, reject) => {
    zlib.deflate(content, (error, output) =>
      error ? reject(new BlockError("EIO", undefined, { cause: error })) : resolve(output),
    );
  });
}

/**
 * One compressed grain. Where it comes, there is first a whole one as QEMU leaves it: what it is too short for stays
 * what the guest saw, or zeroes.  @qemu vmdk_write_extent
 */
async function writePacked(
  co: Coroutine<"read">,
  state: VmdkState,
  run: NewRun,
  guestOffset: number,
  packed: Uint8Array | undefined,
): Promise<number> {
  if (!packed) throw new BlockError("EINVAL");
  const { extent } = run;
  const copiesBacking = await coversBacking(co, state, run);
  const { file, grainBytes } = extent;
  const index = grainIndex(extent, guestOffset);
  await ensureTable(co, extent, index);
  const hostOffset = extent.nextHostOffset;
  const used = GrainMarker.size + packed.length;
  const place = { extent, start: guestOffset, hostOffset, copiesBacking };
  const before = await readAround(co, state, place, guestOffset, guestOffset + grainBytes);
  const content = new Uint8Array(Math.max(used, grainBytes));
  content.set(before);
  const sector = (guestOffset - extent.start) / SECTOR_SIZE;
  GrainMarker.write({ sector, size: packed.length }, content);
  content.set(packed, GrainMarker.size);
  checkPlace(hostOffset + content.length);
  extent.nextHostOffset = alignUp(hostOffset + used, SECTOR_SIZE);
  if (file.debug) await file.debug.event(co, "write_compressed");
  await file.pwrite(co, hostOffset, content);
  await setEntries(co, extent, index, [hostOffset / SECTOR_SIZE]);
  return Math.min(grainBytes, extent.end - guestOffset);
}

/** An empty write ends the writes of a stream. Images that are none take these writes as any other.  @qemu vmdk_co_pwritev_compressed */
export async function pwriteCompressed(
  co: Coroutine<"read">,
  state: VmdkState,
  guestOffset: number,
  iov: IoVector,
): Promise<void> {
  if (iovLength(iov) > 0) return pwrite(co, state, guestOffset, iov);
  const [extent, ...others] = state.extents;
  if (others.length > 0 || extent?.kind !== "sparse" || !extent.isCompressed) return;
  // Readers take whole sectors.
  await state.lock.run(async () => extent.file.truncate(co, await extent.file.getLength(co), false));
}

/**
 * Marks whole grains as zeroes. What can't be marked is ENOTSUP before anything is changed, and zeroes are written.
 * @qemu vmdk_co_pwrite_zeroes
 */
export async function pwriteZeroes(
  co: Coroutine<"read">,
  state: VmdkState,
  guestOffset: number,
  bytes: number,
): Promise<void> {
  await state.lock.run(async () => {
    await zeroGrains(co, state, guestOffset, bytes, false);
    await zeroGrains(co, state, guestOffset, bytes, true);
  });
}

async function zeroGrains(
  co: Coroutine<"read">,
  state: VmdkState,
  guestOffset: number,
  bytes: number,
  isReal: boolean,
): Promise<void> {
  for (let done = 0; done < bytes; ) {
    const at = guestOffset + done;
    const run = await findRun(co, state, at, bytes - done);
    const { extent } = run;
    if (extent.kind !== "sparse" || !extent.hasZeroGrains || !("tables" in extent))
      throw new BlockError("ENOTSUP");
    checkWritable(extent);
    if (run.kind === "compressed") await writeRun(co, state, run, at, new Uint8Array(0), new Map());
    const index = grainIndex(extent, at);
    const { grainBytes, tables } = extent;
    const inTable = (tables.tableEntries - (index % tables.tableEntries)) * grainBytes;
    const piece = alignDown(Math.min(run.bytes, inTable), grainBytes);
    if ((at - extent.start) % grainBytes !== 0 || piece === 0) throw new BlockError("ENOTSUP");
    if (isReal) {
      await ensureTable(co, extent, index);
      await setEntries(
        co,
        extent,
        index,
        Array.from({ length: piece / grainBytes }, () => ZEROED),
      );
      await renewCid(co, state);
    }
    done += piece;
  }
}
