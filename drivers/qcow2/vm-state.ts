/** Saved machine state: it lies behind the end of the disk, from the first guest offset with an L2 table of its own.  @qemu qcow2_save_vmstate */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { type IoVector, iovConcat, iovLength } from "../../src/block/iov.ts";
import { alignDown, alignUp, SECTOR_SIZE } from "../../src/block/units.ts";
import { pread } from "./read.ts";
import { type Qcow2State, vmStateOffset } from "./state.ts";
import { pwrite } from "./write.ts";

export async function saveVmState(
  co: Coroutine<"read">,
  state: Qcow2State,
  offset: number,
  iov: IoVector,
): Promise<void> {
  if (state.file.debug) await state.file.debug.event(co, "vmstate_save");
  await inSectors(co, state, vmStateOffset(state) + offset, iov, (at, padded) =>
    pwrite(co, state, at, padded),
  );
}

export async function loadVmState(
  co: Coroutine<"read">,
  state: Qcow2State,
  offset: number,
  iov: IoVector,
): Promise<void> {
  if (state.file.debug) await state.file.debug.event(co, "vmstate_load");
  await inSectors(co, state, vmStateOffset(state) + offset, iov, (at, padded) =>
    pread(co, state, at, padded),
  );
}

/** Such requests don't go by the node's limits, and an encrypted image knows only whole sectors: they get what is around them too. */
async function inSectors(
  co: Coroutine<"read">,
  state: Qcow2State,
  offset: number,
  iov: IoVector,
  run: (offset: number, iov: IoVector) => Promise<void>,
): Promise<void> {
  const bytes = iovLength(iov);
  const start = alignDown(offset, SECTOR_SIZE);
  const end = alignUp(offset + bytes, SECTOR_SIZE);
  if (!state.crypto || end - start === bytes) return run(offset, iov);
  const around = new Uint8Array(end - start);
  await pread(co, state, start, around);
  const tail = around.subarray(offset - start + bytes);
  await run(start, iovConcat(around.subarray(0, offset - start), iov, tail));
}
