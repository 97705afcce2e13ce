/** Whether the backing file is the one that an overlay was made for: its content identity tells.  @qemu vmdk_is_cid_valid */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { parseIdentity, readIdentityText, writeCid } from "./descriptor.ts";
import { stateOf, type VmdkState } from "./state.ts";

/** EINVAL where it is another one, or one that has been written to, or no VMDK image at all. */
export async function checkParent(co: Coroutine<"read">, state: VmdkState): Promise<void> {
  const { backing } = state.node;
  if (state.isParentChecked || !backing) return;
  const parent = stateOf.get(backing.node);
  if ((parent && (await currentCid(co, parent))) !== state.parentCid) throw new BlockError("EINVAL");
  state.isParentChecked = true;
}

/** As it stands in the file: somebody else may have written to the image. */
export async function currentCid(
  co: Coroutine<"read">,
  { file, descriptorOffset, descriptorWindow }: VmdkState,
): Promise<number | undefined> {
  return parseIdentity(await readIdentityText(co, file, descriptorOffset, descriptorWindow))?.cid;
}

/** At the first write after an image was opened: what lies over it must not take it for what it was.  @qemu vmdk_co_pwritev */
export async function renewCid(co: Coroutine<"read">, state: VmdkState): Promise<void> {
  if (state.isCidNew) return;
  const cid = newCid();
  await writeCid(co, state.file, state.descriptorOffset, state.descriptorWindow, cid);
  state.cid = cid;
  state.isCidNew = true;
}

export function newCid(): number {
  return (crypto.getRandomValues(new Uint32Array(1)) as unknown as readonly [number])[0];
}
