/**
 * The header of LUKS version 1: read with every field checked, and written as qemu-img does. Source: LUKS On-Disk
 * Format Specification 1.2.  @qemu crypto/block-luks.c
 */

import { BlockError } from "../../src/block/errors.ts";
import { bytes, type Infer, layout, u16, u32 } from "../../src/block/layout.ts";
import { alignUp, divideRoundUp, SECTOR_SIZE } from "../../src/block/units.ts";
import {
  type CipherMode,
  cipherByLuksName,
  HASHES,
  type HashName,
  IV_GENERATORS,
  type IvGenerator,
  MODES,
} from "./algorithms.ts";
import { type CipherSpec, essivAlgorithm, keyBytesOf } from "./sector-cipher.ts";

/** "LUKS\xba\xbe" */
const LUKS_MAGIC = Uint8Array.of(0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe);

/** Figure 1 of the specification, without the key slots. Texts end at a zero byte. */
const Fixed = layout("big", {
  magic: bytes(6),
  /** 1. */
  version: u16,
  /** "aes"; how long its key is follows from `keyBytes`. */
  cipherName: bytes(32),
  /** Mode and initialisation vectors: "xts-plain64", "cbc-essiv:sha256". */
  cipherMode: bytes(32),
  /** For all key derivations and the anti-forensic splitter. */
  hashSpec: bytes(32),
  /** Where the data starts, in sectors. */
  payloadSectors: u32,
  /** Bytes of the master key. */
  keyBytes: u32,
  masterKeyDigest: bytes(20),
  masterKeySalt: bytes(32),
  masterKeyIterations: u32,
  /** In text. */
  uuid: bytes(40),
});

/** Figure 2: a slot that holds the master key for one passphrase. */
const Slot = layout("big", {
  /** `SlotState`. */
  active: u32,
  iterations: u32,
  salt: bytes(32),
  /** Where the split master key lies, in sectors. */
  keySectors: u32,
  /** Always 4000. */
  stripes: u32,
});

export type KeySlot = Infer<typeof Slot>;

/** The header, with its key slots. */
export interface LuksHeader extends Infer<typeof Fixed> {
  readonly slots: KeySlot[];
}

export const SlotState = { Active: 0x00ac71f3, Disabled: 0x0000dead } as const;
export const SLOTS = 8;
export const STRIPES = 4000;
export const LUKS_HEADER_BYTES = Fixed.size + SLOTS * Slot.size;

/** Bytes before the first key slot's material, which is aligned to as much. */
const HEADER_AREA_BYTES = 4096;

/** Longer master keys are no cipher's. */
const MAX_KEY_BYTES = 128;

/** What a header says of how sectors are encrypted. */
export interface LuksSpec extends CipherSpec {
  readonly hash: HashName;
}

/** A header as it is on the disk; `data` holds LUKS_HEADER_BYTES.  @qemu qcrypto_block_luks_load_header, _check_header */
export function parseLuksHeader(data: Uint8Array): LuksHeader {
  const slots = Array.from({ length: SLOTS }, (_, slot) => Slot.read(data, Fixed.size + slot * Slot.size));
  const header: LuksHeader = { ...Fixed.read(data), slots };
  checkFixed(header);
  for (const slot of slots.keys()) checkSlot(header, slot);
  return header;
}

export function serializeLuksHeader(header: LuksHeader): Uint8Array {
  const data = new Uint8Array(LUKS_HEADER_BYTES);
  Fixed.write(header, data);
  for (const [index, slot] of header.slots.entries()) Slot.write(slot, data, Fixed.size + index * Slot.size);
  return data;
}

function checkFixed(header: LuksHeader): void {
  if (Buffer.compare(header.magic, LUKS_MAGIC) !== 0) throw invalid("Volume is not in LUKS format");
  if (header.version !== 1)
    throw new BlockError("ENOTSUP", `LUKS version ${header.version} is not supported`);
  const texts = {
    "cipher name": header.cipherName,
    "cipher mode": header.cipherMode,
    "hash spec": header.hashSpec,
  };
  for (const [what, text] of Object.entries(texts))
    if (!text.includes(0)) throw invalid(`LUKS header ${what} is not NUL terminated`);
  if (header.payloadSectors * SECTOR_SIZE < HEADER_AREA_BYTES)
    throw invalid("LUKS payload is overlapping with the header");
  if (header.masterKeyIterations === 0) throw invalid("LUKS key iteration count is zero");
}

function checkSlot({ slots, keyBytes, payloadSectors }: LuksHeader, index: number): void {
  const slot = slots[index] as KeySlot;
  if (slot.stripes !== STRIPES)
    throw invalid(`Keyslot ${index} is corrupted (stripes ${slot.stripes | 0} != ${STRIPES})`);
  if (slot.active !== SlotState.Active && slot.active !== SlotState.Disabled)
    throw invalid(`Keyslot ${index} state (active/disable) is corrupted`);
  if (slot.active === SlotState.Active && slot.iterations === 0)
    throw invalid(`Keyslot ${index} iteration count is zero`);
  const start = slot.keySectors;
  const end = start + materialSectors(keyBytes);
  if (start * SECTOR_SIZE < HEADER_AREA_BYTES)
    throw invalid(`Keyslot ${index} is overlapping with the LUKS header`);
  if (end > payloadSectors) throw invalid(`Keyslot ${index} is overlapping with the encrypted payload`);
  for (let other = index + 1; other < slots.length; other++) {
    const { keySectors, stripes } = slots[other] as KeySlot;
    if (start < keySectors + materialSectors(keyBytes, stripes) && keySectors < end)
      throw invalid(`Keyslots ${index} and ${other} are overlapping in the header`);
  }
}

/** Sectors that are set aside for the split master key of a slot. */
function materialSectors(keyBytes: number, stripes = STRIPES): number {
  return alignUp(keyBytes * stripes, HEADER_AREA_BYTES) / SECTOR_SIZE;
}

/** Bytes of a slot's split master key, in whole sectors. */
export function materialBytes(keyBytes: number): number {
  return divideRoundUp(keyBytes * STRIPES, SECTOR_SIZE) * SECTOR_SIZE;
}

/** Finds the algorithms that a header names.  @qemu qcrypto_block_luks_parse_header */
export function parseSpec(header: LuksHeader): LuksSpec {
  const modeText = textOf(header.cipherMode);
  const dash = modeText.indexOf("-");
  if (dash < 0) throw invalid(`Unexpected cipher mode string format '${modeText}'`);
  const ivText = modeText.slice(dash + 1);
  const colon = ivText.indexOf(":");
  const ivHash = colon < 0 ? undefined : known(HASHES, ivText.slice(colon + 1), "Hash algorithm");
  const mode: CipherMode = known(MODES, modeText.slice(0, dash), "Cipher mode");
  const keyBytes = mode === "xts" ? Math.floor(header.keyBytes / 2) : header.keyBytes;
  const algorithm = cipherByLuksName(textOf(header.cipherName), keyBytes);
  const hash = known(HASHES, textOf(header.hashSpec), "Hash algorithm");
  const ivName = colon < 0 ? ivText : ivText.slice(0, colon);
  const ivGenerator: IvGenerator = known(IV_GENERATORS, ivName, "IV generator");
  if (ivGenerator === "essiv" && ivHash === undefined)
    throw invalid("Missing IV generator hash specification");
  // An odd byte of an XTS key belongs to neither half.
  if (header.keyBytes > MAX_KEY_BYTES || header.keyBytes !== keyBytesOf({ algorithm, mode }))
    throw invalid("XTS cipher key length should be a multiple of 2");
  const spec = { algorithm, mode, ivGenerator, ivHash, hash };
  if (ivGenerator === "essiv") essivAlgorithm(spec);
  return spec;
}

function known<T extends string>(names: readonly T[], name: string, what: string): T {
  const found = names.find((candidate) => candidate === name);
  if (found === undefined) throw new BlockError("ENOTSUP", `${what} '${name}' not supported`);
  return found;
}

/** A header whose slots are all free, with no key yet: its lengths and places are final. */
export function newLuksHeader(spec: LuksSpec, uuid: string): LuksHeader {
  const { algorithm, mode, ivGenerator, ivHash, hash } = spec;
  const keyBytes = keyBytesOf(spec);
  const firstSector = HEADER_AREA_BYTES / SECTOR_SIZE;
  const slot = (index: number): KeySlot => ({
    active: SlotState.Disabled,
    iterations: 0,
    salt: new Uint8Array(32),
    keySectors: firstSector + index * materialSectors(keyBytes),
    stripes: STRIPES,
  });
  return {
    magic: LUKS_MAGIC,
    version: 1,
    cipherName: Buffer.from(algorithm.luksName ?? ""),
    cipherMode: Buffer.from(`${mode}-${ivGenerator}${ivHash === undefined ? "" : `:${ivHash}`}`),
    hashSpec: Buffer.from(hash),
    payloadSectors: firstSector + SLOTS * materialSectors(keyBytes),
    keyBytes,
    masterKeyDigest: new Uint8Array(20),
    masterKeySalt: new Uint8Array(32),
    masterKeyIterations: 0,
    uuid: Buffer.from(uuid),
    slots: Array.from({ length: SLOTS }, (_, index) => slot(index)),
  };
}

/** Up to the zero byte. */
export function textOf(field: Uint8Array): string {
  const end = field.indexOf(0);
  return Buffer.from(end < 0 ? field : field.subarray(0, end)).toString();
}

function invalid(message: string): BlockError {
  return new BlockError("EINVAL", message);
}
