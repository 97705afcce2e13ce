/** Both headers: which one is in force, and how they are written.  @qemu vhdx_parse_header, vhdx_update_headers */

import { randomBytes } from "node:crypto";
import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { MAX_LENGTH } from "../../src/block/units.ts";
import {
  checksumOf,
  HEADER_BYTES,
  HEADER_OFFSETS,
  Header,
  hex,
  NO_GUID,
  Signature,
  UNIT_BYTES,
} from "./layout.ts";
import type { Headers, VhdxState } from "./state.ts";

export async function readHeaders(co: Coroutine<"read">, file: BlockChild): Promise<Headers> {
  const raw = await Promise.all(HEADER_OFFSETS.map((offset) => file.preadBytes(co, offset, HEADER_BYTES)));
  const [first, second] = raw.map(validHeader);
  if (!first && !second) throw noHeader();
  if (first && second) {
    const isSame = Buffer.compare(raw[0] as Uint8Array, raw[1] as Uint8Array) === 0;
    if (first.sequenceNumber === second.sequenceNumber && !isSame) throw noHeader();
    return second.sequenceNumber > first.sequenceNumber
      ? { current: second, slot: 1, differ: differ(first, second) }
      : { current: first, slot: 0, differ: differ(first, second) };
  }
  return { current: (first ?? second) as Header, slot: first ? 0 : 1, differ: true };
}

function noHeader(): BlockError {
  return new BlockError("EINVAL", "No valid VHDX header found");
}

function validHeader(record: Uint8Array): Header | undefined {
  const header = Header.read(record);
  const isValid =
    header.signature === Signature.Header && header.checksum === checksumOf(record) && header.version === 1;
  return isValid ? header : undefined;
}

/** In what matters: they never have the same number. */
function differ(one: Header, other: Header): boolean {
  return hex(one.logGuid) !== hex(other.logGuid);
}

export function isLogEmpty({ logGuid }: Header): boolean {
  return hex(logGuid) === hex(NO_GUID);
}

/** While nothing is logged its place must be one all the same; how long it is does not matter then. */
export function isLogPlaced({ logOffset, logLength, logVersion }: Header, isUsed: boolean): boolean {
  const isAligned = logOffset % UNIT_BYTES === 0 && (!isUsed || logLength % UNIT_BYTES === 0);
  return logVersion === 0 && logOffset >= UNIT_BYTES && logOffset <= MAX_LENGTH && isAligned;
}

/** Brings a new header into force: in the place of the one that is not. It is not stable before the next flush. */
export async function writeHeader(
  co: Coroutine<"read">,
  state: Pick<VhdxState, "file" | "headers">,
  changes: Partial<Pick<Header, "fileWriteGuid" | "dataWriteGuid" | "logGuid">>,
): Promise<void> {
  const { current, slot } = state.headers;
  const next = { ...current, ...changes, sequenceNumber: current.sequenceNumber + 1n };
  const nextSlot = slot === 0 ? 1 : 0;
  await state.file.pwrite(co, HEADER_OFFSETS[nextSlot], serializeHeader(next));
  state.headers = { current: next, slot: nextSlot, differ: true };
}

/** Makes both headers say the same, the one in force stable before. */
export async function settleHeaders(
  co: Coroutine<"read">,
  state: Pick<VhdxState, "file" | "headers">,
): Promise<void> {
  if (!state.headers.differ) return;
  await state.file.flush(co);
  await writeHeader(co, state, {});
  state.headers = { ...state.headers, differ: false };
}

/** The image counts as changed from here on: a child that was made of it will know.  @qemu vhdx_user_visible_write */
export async function markChanged(co: Coroutine<"read">, state: VhdxState): Promise<void> {
  if (state.isMarked) return;
  const guids = { fileWriteGuid: newGuid(), dataWriteGuid: newGuid() };
  await writeHeader(co, state, guids);
  await settleHeaders(co, state);
  state.isMarked = true;
}

export function serializeHeader(header: Header): Uint8Array {
  const record = new Uint8Array(HEADER_BYTES);
  Header.write({ ...header, signature: Signature.Header, checksum: 0 }, record);
  new DataView(record.buffer).setUint32(Header.offsetOf.checksum, checksumOf(record), true);
  return record;
}

/** A random one, of version 4, in Windows' order of bytes. */
export function newGuid(): Uint8Array {
  const guid = randomBytes(16);
  guid[7] = ((guid[7] as number) & 0x0f) | 0x40;
  guid[8] = ((guid[8] as number) & 0x3f) | 0x80;
  return guid;
}
