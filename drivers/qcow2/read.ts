/** Reading guest data.  @qemu qcow2_co_preadv_part */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { type IoVector, iovFill, iovLength, iovSlice } from "../../src/block/iov.ts";
import { checkUsable, signalCorruption } from "./corruption.ts";
import { readData } from "./crypto.ts";
import { runPieces } from "./in-flight.ts";
import { Kind, loadSlice, type Mapping, peekMapping } from "./mapping.ts";
import { compressedRun, readCompressed, readCompressedRun } from "./read-compressed.ts";
import type { Qcow2State } from "./state.ts";

/** Fills `iov` from `guestOffset`. What is cached and in one piece costs one read of the file and no other wait. */
export function pread(
  co: Coroutine<"read">,
  state: Qcow2State,
  guestOffset: number,
  iov: IoVector,
): Promise<void> {
  checkUsable(state);
  const bytes = iovLength(iov);
  const mapping = peekMapping(state, guestOffset, bytes);
  if (mapping && mapping.bytes === bytes) return readPiece(co, state, mapping, guestOffset, iov, true);
  return readPieces(co, state, guestOffset, iov, bytes);
}

function readPieces(
  co: Coroutine<"read">,
  state: Qcow2State,
  guestOffset: number,
  iov: IoVector,
  bytes: number,
): Promise<void> {
  return runPieces(async (pieces) => {
    for (let done = 0; done < bytes && !pieces.failed; ) {
      co.checkAborted();
      const at = guestOffset + done;
      const mapping = peekMapping(state, at, bytes - done);
      if (!mapping) {
        await loadSlice(co, state, at);
        continue;
      }
      const run = mapping.kind === Kind.Compressed ? compressedRun(state, at, bytes - done) : [];
      if (run.length > 1) {
        const target = iovSlice(iov, done, done + run.length * state.clusterSize);
        done += run.length * state.clusterSize;
        const full = pieces.add(readCompressedRun(co, state, run, target));
        if (full) await full;
        continue;
      }
      extend(state, mapping, at, bytes - done);
      const alone = mapping.bytes === bytes;
      const target = iovSlice(iov, done, done + mapping.bytes);
      done += mapping.bytes;
      const full = pieces.add(readPiece(co, state, mapping, at, target, alone));
      if (full) await full;
    }
  });
}

/** Goes on past the end of a slice, and past a change that makes no difference to a reader, as far as is cached. */
function extend(state: Qcow2State, mapping: Mapping, guestOffset: number, bytes: number): void {
  if (mapping.kind !== Kind.Normal && mapping.kind !== Kind.UnallocatedPlain) return;
  while (mapping.bytes < bytes) {
    const next = peekMapping(state, guestOffset + mapping.bytes, bytes - mapping.bytes);
    if (next?.kind !== mapping.kind) return;
    if (mapping.kind === Kind.Normal && next.hostOffset !== mapping.hostOffset + mapping.bytes) return;
    mapping.bytes += next.bytes;
  }
}

/** Nothing is awaited between the lookup that made `mapping` and the start of the transfer. */
function readPiece(
  co: Coroutine<"read">,
  state: Qcow2State,
  mapping: Mapping,
  guestOffset: number,
  iov: IoVector,
  alone: boolean,
): Promise<void> {
  switch (mapping.kind) {
    case Kind.Normal:
      return readHost(co, state, guestOffset, mapping.hostOffset, iov);
    case Kind.Compressed:
      return readCompressed(co, state, mapping, guestOffset % state.clusterSize, iov, alone);
    case Kind.ZeroPlain:
    case Kind.ZeroAlloc:
      iovFill(iov, 0);
      return DONE;
    case Kind.Invalid:
      return signalCorruption(co, state, mapping.problem as string).then((error) => {
        throw error;
      });
    case Kind.UnallocatedPlain:
    case Kind.UnallocatedAlloc:
      return readBacking(co, state, guestOffset, iov);
  }
}

const DONE = Promise.resolve();

async function readHost(
  co: Coroutine<"read">,
  state: Qcow2State,
  guestOffset: number,
  hostOffset: number,
  iov: IoVector,
): Promise<void> {
  const { transfers } = state;
  const epoch = transfers.begin();
  try {
    if (state.file.debug) await state.file.debug.event(co, "read_aio");
    await readData(co, state, guestOffset, hostOffset, iov);
  } finally {
    transfers.end(epoch);
  }
}

async function readBacking(
  co: Coroutine<"read">,
  state: Qcow2State,
  guestOffset: number,
  iov: IoVector,
): Promise<void> {
  const { backing } = state.node;
  if (!backing) {
    iovFill(iov, 0);
    return;
  }
  if (state.file.debug) await state.file.debug.event(co, "read_backing_aio");
  await backing.pread(co, guestOffset, iov);
}
