/** Changing the key slots of an unlocked LUKS volume.  @qemu qcrypto_block_luks_amend_options */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import type { OpenEnvironment } from "../../src/block/open.ts";
import type { OptionValues } from "../../src/block/options.ts";
import { eraseSlot, type HeaderArea, type LuksVolume, storeKey, unlockSlot } from "./luks.ts";
import { type KeySlot, SLOTS, SlotState } from "./luks-header.ts";
import { DEFAULT_ITERATION_MILLISECONDS } from "./luks-options.ts";
import { lookUpPassphrase } from "./secrets.ts";

export const luksAmendOptions = {
  state: { type: "string", help: "Select new state of affected keyslots (active/inactive)" },
  "new-secret": { type: "string", help: "New secret to set in the matching keyslots. Empty string to erase" },
  "old-secret": { type: "string", help: "Select all keyslots that match this password" },
  keyslot: { type: "number", help: "Select a single keyslot to modify explicitly" },
  "iter-time": { type: "number", help: "Time to spend in PBKDF in milliseconds" },
} as const;

type AmendValues = OptionValues<typeof luksAmendOptions>;

/** What is changed, and with which rights. */
export interface LuksAmendment {
  readonly area: HeaderArea;
  readonly volume: LuksVolume;
  readonly options: AmendValues;
  /** Also what loses a key that is in use, or all of them. */
  readonly force: boolean;
  readonly environment: OpenEnvironment;
}

export async function amendLuks(co: Coroutine<"read">, amendment: LuksAmendment): Promise<void> {
  const { state } = amendment.options;
  if (state === undefined) throw invalid("Parameter 'state' is missing");
  if (state === "active") await addKey(co, amendment);
  else if (state === "inactive") await eraseKeys(co, amendment);
  else throw invalid(`Parameter 'state' does not accept value '${state}'`);
}

/** @qemu qcrypto_block_luks_amend_add_keyslot */
async function addKey(co: Coroutine<"read">, amendment: LuksAmendment): Promise<void> {
  const { area, volume, options, force, environment } = amendment;
  const newSecret = options["new-secret"];
  if (newSecret === undefined) throw invalid("'new-secret' is required to activate a keyslot");
  if (options["old-secret"] !== undefined)
    throw invalid("'old-secret' must not be given when activating keyslots");
  const { keyslot } = options;
  // To QEMU the number is one of 32 bits.
  const slot = keyslot === undefined ? findFree(volume) : checkFree(volume, keyslot >>> 0, force);
  const passphrase = lookUpPassphrase(environment, newSecret);
  const milliseconds = options["iter-time"] ?? DEFAULT_ITERATION_MILLISECONDS;
  await storeKey(co, area, volume, slot, passphrase, milliseconds);
}

function findFree(volume: LuksVolume): number {
  const free = volume.header.slots.findIndex((_, index) => !isActive(volume, index));
  if (free < 0) throw invalid("Can't add a keyslot - all keyslots are in use");
  return free;
}

function checkFree(volume: LuksVolume, index: number, force: boolean): number {
  if (index >= SLOTS) throw invalid(`Invalid keyslot ${index} specified, must be between 0 and ${SLOTS - 1}`);
  if (isActive(volume, index) && !force)
    throw invalid(`Refusing to overwrite active keyslot ${index} - please erase it first`);
  return index;
}

/** @qemu qcrypto_block_luks_amend_erase_keyslots */
async function eraseKeys(co: Coroutine<"read">, amendment: LuksAmendment): Promise<void> {
  const { area, volume, options, environment } = amendment;
  const { keyslot } = options;
  const oldSecret = options["old-secret"];
  if (options["new-secret"] !== undefined)
    throw invalid("'new-secret' must not be given when erasing keyslots");
  if (options["iter-time"] !== undefined)
    throw invalid("'iter-time' must not be given when erasing keyslots");
  const passphrase = oldSecret === undefined ? undefined : lookUpPassphrase(environment, oldSecret);
  let slots: readonly number[];
  if (keyslot !== undefined) slots = [await checkErasable(co, amendment, keyslot | 0, passphrase)];
  else if (passphrase) slots = await findErasable(co, amendment, passphrase);
  else
    throw invalid(
      "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be given",
    );
  for (const slot of slots) await eraseSlot(co, area, volume, slot);
}

async function checkErasable(
  co: Coroutine<"read">,
  { area, volume, force }: LuksAmendment,
  index: number,
  passphrase: Uint8Array | undefined,
): Promise<number> {
  const slot: KeySlot | undefined = volume.header.slots[index];
  if (!slot) throw invalid(`Invalid keyslot ${index} specified, must be between 0 and ${SLOTS - 1}`);
  if (passphrase && !(await unlockSlot(co, area, volume, slot, passphrase)))
    throw invalid(`Given keyslot ${index} doesn't contain the given old password for erase operation`);
  if (!force && !isActive(volume, index))
    throw invalid(`Given keyslot ${index} is already erased (inactive) `);
  if (!force && countActive(volume) === 1)
    throw invalid(
      `Attempt to erase the only active keyslot ${index} which will erase all the data in the image irreversibly - refusing operation`,
    );
  return index;
}

/** All slots that the passphrase unlocks. */
async function findErasable(
  co: Coroutine<"read">,
  { area, volume, force }: LuksAmendment,
  passphrase: Uint8Array,
): Promise<readonly number[]> {
  const found: number[] = [];
  for (const [index, slot] of volume.header.slots.entries())
    if (await unlockSlot(co, area, volume, slot, passphrase)) found.push(index);
  if (found.length === 0) throw invalid("No keyslots match given (old) password for erase operation");
  if (!force && found.length === countActive(volume))
    throw invalid(
      "All the active keyslots match the (old) password that was given and erasing them will erase all the data in the image irreversibly - refusing operation",
    );
  return found;
}

function isActive({ header }: LuksVolume, index: number): boolean {
  return header.slots[index]?.active === SlotState.Active;
}

function countActive({ header }: LuksVolume): number {
  return header.slots.filter(({ active }) => active === SlotState.Active).length;
}

function invalid(message: string): BlockError {
  return new BlockError("EINVAL", message);
}
