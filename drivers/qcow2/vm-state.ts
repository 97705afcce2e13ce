/** Saved machine state: it lies behind the end of the disk, from the first guest offset with an L2 table of its own.  @qemu qcow2_save_vmstate */

import type { Coroutine } from "../../src/block/coroutine.ts";
import type { IoVector } from "../../src/block/iov.ts";
import { alignUp } from "../../src/block/units.ts";
import { l2Coverage } from "./mapping.ts";
import { pread } from "./read.ts";
import type { Qcow2State } from "./state.ts";
import { pwrite } from "./write.ts";

/** Guest offset where it starts.  @qemu qcow2_vm_state_offset */
export function vmStateOffset(state: Qcow2State): number {
  return alignUp(state.size, l2Coverage(state));
}

export async function saveVmState(
  co: Coroutine<"read">,
  state: Qcow2State,
  offset: number,
  iov: IoVector,
): Promise<void> {
  if (state.file.debug) await state.file.debug.event(co, "vmstate_save");
  await pwrite(co, state, vmStateOffset(state) + offset, iov);
}

export async function loadVmState(
  co: Coroutine<"read">,
  state: Qcow2State,
  offset: number,
  iov: IoVector,
): Promise<void> {
  if (state.file.debug) await state.file.debug.event(co, "vmstate_load");
  await pread(co, state, vmStateOffset(state) + offset, iov);
}
