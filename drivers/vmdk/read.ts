/** Reading guest data.  @qemu vmdk_co_preadv */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { type IoVector, iovFill, iovLength, iovSlice, iovWrite } from "../../src/block/iov.ts";
import { runPieces } from "../qcow2/in-flight.ts";
import { zlib } from "../zlib-streams.ts";
import { GrainMarker } from "./layout.ts";
import { checkReadable, findRun, grainIndex, peekRun, type Run } from "./mapping.ts";
import { checkParent } from "./parent.ts";
import type { VmdkState } from "./state.ts";

type CompressedRun = Extract<Run, { kind: "compressed" }>;

/** Fills `iov` from `guestOffset`. What is cached and in one piece costs one read of the file and no other wait. */
export function pread(
  co: Coroutine<"read">,
  state: VmdkState,
  guestOffset: number,
  iov: IoVector,
): Promise<void> {
  const bytes = iovLength(iov);
  return runPieces(async (pieces) => {
    for (let done = 0; done < bytes && !pieces.failed; ) {
      const at = guestOffset + done;
      const run = peekRun(state, at, bytes - done) ?? (await findRun(co, state, at, bytes - done));
      const target = iovSlice(iov, done, done + run.bytes);
      const full = pieces.add(readRun(co, state, run, at, target, run.bytes === bytes));
      done += run.bytes;
      if (full) await full;
    }
  });
}

async function readRun(
  co: Coroutine<"read">,
  state: VmdkState,
  run: Run,
  guestOffset: number,
  iov: IoVector,
  isAlone: boolean,
): Promise<void> {
  const { backing } = state.node;
  checkReadable(run.extent);
  switch (run.kind) {
    case "flat":
      return run.extent.file.pread(co, run.hostOffset, iov);
    case "data": {
      const { file } = run.extent;
      if (file.debug) await file.debug.event(co, "read_aio");
      return file.pread(co, run.hostOffset, iov);
    }
    case "compressed":
      return readCompressed(co, state, run, guestOffset, iov, isAlone);
    case "none":
      if (backing) {
        await checkParent(co, state);
        if (state.file.debug) await state.file.debug.event(co, "read_backing_aio");
        return backing.pread(co, guestOffset, iov);
      }
      return iovFill(iov, 0);
    case "zero":
    case "fixed zeroes":
      return iovFill(iov, 0);
  }
}

/** `isAlone`: the request needs no other grain, so that it is unpacked here and now; else on another thread. */
async function readCompressed(
  co: Coroutine<"read">,
  state: VmdkState,
  run: CompressedRun,
  guestOffset: number,
  iov: IoVector,
  isAlone: boolean,
): Promise<void> {
  const { extent } = run;
  const grain = grainIndex(extent, guestOffset);
  const within = guestOffset - extent.start - grain * extent.grainBytes;
  const end = within + run.bytes;
  const known = state.unpacked;
  let content = known && known.extent === extent && known.grain === grain ? known.content : undefined;
  if (!content) {
    const packed = await readPacked(co, run);
    state.environment.guard?.decompress(extent.grainBytes);
    content = isAlone ? inflateNow(packed, extent.grainBytes) : await inflate(packed, extent.grainBytes);
    // Whoever reads whole grains does not come back for the rest. A grain that is there never changes.
    if (run.bytes < extent.grainBytes) state.unpacked = { extent, grain, content };
  }
  if (end > content.length) throw new BlockError("EINVAL");
  iovWrite(iov, content.subarray(within, end));
}

/** A zlib stream. Without a marker its length is not known, and twice a grain holds it.  @qemu vmdk_read_extent */
async function readPacked(co: Coroutine<"read">, { extent, hostOffset }: CompressedRun): Promise<Uint8Array> {
  const { file, grainBytes, hasMarkers } = extent;
  const maxBytes = 2 * grainBytes;
  if (file.debug) await file.debug.event(co, "read_compressed");
  if (!hasMarkers) return file.preadBytes(co, hostOffset, maxBytes);
  // Most grains come with their markers in one read.
  const first = await file.preadBytes(co, hostOffset, Math.min(grainBytes, maxBytes));
  const { size } = GrainMarker.read(first);
  if (size === 0 || size > maxBytes) throw new BlockError("EINVAL");
  const end = GrainMarker.size + size;
  if (end <= first.length) return first.subarray(GrainMarker.size, end);
  return file.preadBytes(co, hostOffset + GrainMarker.size, size);
}

const limits = (bytes: number) => ({
  maxOutputLength: bytes,
  chunkSize: Math.max(bytes, 64),
  // What follows the stream is no part of it; one that breaks off is refused by its length.
  finishFlush: zlib().constants.Z_FINISH,
});

function inflateNow(packed: Uint8Array, bytes: number): Uint8Array {
  try {
    return zlib().inflateSync(packed, limits(bytes));
  } catch (error) {
    throw new BlockError("EINVAL", undefined, { cause: error });
  }
}

function inflate(packed: Uint8Array, bytes: number): Promise<Uint8Array> {
  return new Promise((resolve, reject) => {
    zlib().inflate(packed, limits(bytes), (error, output) =>
      error ? reject(new BlockError("EINVAL", undefined, { cause: error })) : resolve(output),
    );
  });
}
