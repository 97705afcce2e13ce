/**
 * A LUKS volume: its header found good, its master key unlocked by a passphrase, key slots written and erased.
 * The header lies at the start of a `HeaderArea`: a file, or clusters of a qcow2 image.
 *
 * Order of writes: a slot's key material is on the disk before the header says that the slot is in use, and the
 * header says that it is not before the material is overwritten.  @qemu crypto/block-luks.c
 */

import { randomBytes, randomUUID, timingSafeEqual } from "node:crypto";
import type { Coroutine } from "../../src/block/coroutine.ts";
import type { InfoValue } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import type { Guard } from "../../src/block/guard.ts";
import { SECTOR_SIZE } from "../../src/block/units.ts";
import { afMerge, afSplit } from "./af-splitter.ts";
import { deriveKey, iterationsFor } from "./key-derivation.ts";
import {
  type KeySlot,
  LUKS_HEADER_BYTES,
  type LuksHeader,
  type LuksSpec,
  materialBytes,
  newLuksHeader,
  parseLuksHeader,
  parseSpec,
  SlotState,
  STRIPES,
  serializeLuksHeader,
  textOf,
} from "./luks-header.ts";
import { keyBytesOf, type SectorCipher, sectorCipher } from "./sector-cipher.ts";

/** Where a header lies; offsets count from its start. */
export interface HeaderArea {
  readonly read: (co: Coroutine<"read">, offset: number, bytes: number) => Promise<Uint8Array>;
  readonly write: (co: Coroutine<"read">, offset: number, data: Uint8Array) => Promise<void>;
  readonly flush: (co: Coroutine<"read">) => Promise<void>;
}

export interface LuksVolume {
  readonly header: LuksHeader;
  readonly spec: LuksSpec;
  /** Bytes before the data. */
  readonly payloadOffset: number;
  /** Undefined while the volume is locked: whoever only wants to know about an image needs no passphrase. */
  readonly key: UnlockedKey | undefined;
}

export interface UnlockedKey {
  readonly masterKey: Uint8Array;
  readonly cipher: SectorCipher;
}

/** Reads the header; with a passphrase, unlocks the volume.  @qemu qcrypto_block_luks_open */
export async function openLuks(
  co: Coroutine<"read">,
  area: HeaderArea,
  passphrase: Uint8Array | undefined,
  guard: Guard | undefined,
): Promise<LuksVolume> {
  const header = parseLuksHeader(await area.read(co, 0, LUKS_HEADER_BYTES));
  const spec = parseSpec(header);
  const volume = { header, spec, payloadOffset: header.payloadSectors * SECTOR_SIZE, key: undefined };
  if (!passphrase) return volume;
  for (const slot of header.slots) {
    co.checkAborted();
    // Nobody can end a derivation that has begun.
    if (slot.active === SlotState.Active) guard?.derive(slot.iterations + header.masterKeyIterations);
    const masterKey = await unlockSlot(co, area, volume, slot, passphrase);
    if (masterKey) return { ...volume, key: { masterKey, cipher: sectorCipher(spec, masterKey) } };
  }
  throw new BlockError("EPERM", "Invalid password, cannot unlock any keyslot");
}

/** The master key, if the slot is in use and the passphrase is its own.  @qemu qcrypto_block_luks_load_key */
export async function unlockSlot(
  co: Coroutine<"read">,
  area: HeaderArea,
  { header, spec }: LuksVolume,
  slot: KeySlot,
  passphrase: Uint8Array,
): Promise<Uint8Array | undefined> {
  if (slot.active !== SlotState.Active) return undefined;
  const { keyBytes } = header;
  const slotKey = await deriveKey(spec.hash, passphrase, slot.salt, slot.iterations, keyBytes);
  const cipher = sectorCipher(spec, slotKey);
  const material = await area.read(co, slot.keySectors * SECTOR_SIZE, materialBytes(keyBytes));
  cipher.decrypt(0, material);
  const masterKey = afMerge(spec.hash, material, keyBytes, STRIPES);
  const digest = await digestOf(masterKey, header, spec);
  return timingSafeEqual(digest, header.masterKeyDigest) ? masterKey : undefined;
}

/** By which a master key is known to be right. */
function digestOf(masterKey: Uint8Array, header: LuksHeader, spec: LuksSpec): Promise<Uint8Array> {
  const { masterKeySalt, masterKeyIterations, masterKeyDigest } = header;
  return deriveKey(spec.hash, masterKey, masterKeySalt, masterKeyIterations, masterKeyDigest.length);
}

/** What a new volume starts with, in memory: `write` puts it into its place. */
export interface NewLuks {
  readonly payloadOffset: number;
  readonly write: (co: Coroutine<"read">, area: HeaderArea) => Promise<void>;
}

/** Of the time for a passphrase, the part that goes into the digest of the master key: as cryptsetup has it. */
const DIGEST_TIME_PART = 8;

/** A volume with a new master key, and the passphrase in slot 0.  @qemu qcrypto_block_luks_create */
export async function createLuks(
  spec: LuksSpec,
  passphrase: Uint8Array,
  iterationMilliseconds: number,
): Promise<NewLuks> {
  const header = newLuksHeader(spec, randomUUID());
  const masterKey: Uint8Array = randomBytes(keyBytesOf(spec));
  // Refuses what can't be done before the long work.
  const cipher = sectorCipher(spec, masterKey);
  header.masterKeySalt = randomBytes(header.masterKeySalt.length);
  header.masterKeyIterations = await iterationsFor(
    spec.hash,
    header.masterKeyDigest.length,
    iterationMilliseconds / DIGEST_TIME_PART,
  );
  header.masterKeyDigest = await digestOf(masterKey, header, spec);
  const payloadOffset = header.payloadSectors * SECTOR_SIZE;
  const volume: LuksVolume = { header, spec, payloadOffset, key: { masterKey, cipher } };
  const filled = await fillSlot(volume, 0, passphrase, iterationMilliseconds);
  return { payloadOffset, write: (co, area) => writeFilled(co, area, volume, filled) };
}

/** A slot's content, and the key material that goes with it. */
interface FilledSlot {
  readonly index: number;
  readonly slot: KeySlot;
  readonly material: Uint8Array;
}

/** Writes the passphrase into a slot of an unlocked volume.  @qemu qcrypto_block_luks_store_key */
export async function storeKey(
  co: Coroutine<"read">,
  area: HeaderArea,
  volume: LuksVolume,
  index: number,
  passphrase: Uint8Array,
  iterationMilliseconds: number,
): Promise<void> {
  await writeFilled(co, area, volume, await fillSlot(volume, index, passphrase, iterationMilliseconds));
}

async function fillSlot(
  { header, spec, key }: LuksVolume,
  index: number,
  passphrase: Uint8Array,
  iterationMilliseconds: number,
): Promise<FilledSlot> {
  if (!key) throw new BlockError("EINVAL", "The volume is locked");
  const { keyBytes } = header;
  const slot: KeySlot = {
    ...(header.slots[index] as KeySlot),
    active: SlotState.Active,
    iterations: await iterationsFor(spec.hash, keyBytes, iterationMilliseconds),
    salt: randomBytes(32),
  };
  const slotKey = await deriveKey(spec.hash, passphrase, slot.salt, slot.iterations, keyBytes);
  const material = new Uint8Array(materialBytes(keyBytes));
  material.set(afSplit(spec.hash, key.masterKey, STRIPES));
  sectorCipher(spec, slotKey).encrypt(0, material);
  return { index, slot, material };
}

async function writeFilled(
  co: Coroutine<"read">,
  area: HeaderArea,
  { header }: LuksVolume,
  { index, slot, material }: FilledSlot,
): Promise<void> {
  await area.write(co, slot.keySectors * SECTOR_SIZE, material);
  await area.flush(co);
  header.slots[index] = slot;
  await area.write(co, 0, serializeLuksHeader(header));
}

/** Makes a slot useless: first by the header, then by overwriting the key.  @qemu qcrypto_block_luks_erase_key */
export async function eraseSlot(
  co: Coroutine<"read">,
  area: HeaderArea,
  { header }: LuksVolume,
  index: number,
): Promise<void> {
  const slot = header.slots[index] as KeySlot;
  header.slots[index] = { ...slot, active: SlotState.Disabled, iterations: 0, salt: new Uint8Array(32) };
  await area.write(co, 0, serializeLuksHeader(header));
  await area.flush(co);
  await area.write(co, slot.keySectors * SECTOR_SIZE, randomBytes(materialBytes(header.keyBytes)));
  await area.flush(co);
}

/** As `info` shows it; `more` comes where QEMU puts it.  @qemu QCryptoBlockInfoLUKS */
export function luksInfo({ header, spec }: LuksVolume, more: Record<string, InfoValue> = {}) {
  return {
    "ivgen-alg": spec.ivGenerator,
    "hash-alg": spec.hash,
    "cipher-alg": spec.algorithm.name,
    uuid: textOf(header.uuid),
    ...(spec.ivGenerator === "essiv" && { "ivgen-hash-alg": spec.ivHash ?? null }),
    ...more,
    "cipher-mode": spec.mode,
    slots: header.slots.map(slotInfo),
    "payload-offset": header.payloadSectors * SECTOR_SIZE,
    "master-key-iters": header.masterKeyIterations,
  };
}

function slotInfo({ active, iterations, keySectors, stripes }: KeySlot): InfoValue {
  const place = { "key-offset": keySectors * SECTOR_SIZE };
  if (active !== SlotState.Active) return { active: false, ...place };
  return { active: true, iters: iterations, ...place, stripes };
}
