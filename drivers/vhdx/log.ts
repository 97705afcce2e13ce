/** The log: what it holds is brought into the file when the image is opened, and each change of the table goes through it.  @qemu block/vhdx-log.c */

import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { alignDown, alignUp, isAligned, MAX_LENGTH, MiB } from "../../src/block/units.ts";
import { openFailed } from "../opening.ts";
import { crc32c } from "./crc32c.ts";
import { newGuid, writeHeader } from "./headers.ts";
import {
  hex,
  LOG_SECTOR_BYTES,
  LogData,
  LogDescriptor,
  LogEntry,
  NO_GUID,
  Signature,
  UNIT_BYTES,
} from "./layout.ts";
import type { Region, VhdxState } from "./state.ts";

/** An entry that is whole. */
interface FoundEntry {
  /** From the start of the log. */
  readonly position: number;
  readonly entry: LogEntry;
}

/** The entries that are to be brought into the file, in order; none: the log is as good as empty. */
export async function findSequence(
  co: Coroutine<"read">,
  file: BlockChild,
  log: Region,
  logGuid: Uint8Array,
): Promise<readonly FoundEntry[]> {
  const found = await findEntries(co, file, log, hex(logGuid));
  let last: FoundEntry | undefined;
  for (const each of found.values())
    if (!last || each.entry.sequenceNumber > last.entry.sequenceNumber) last = each;
  if (!last) return [];
  // Back from the last one to where it says that its sequence begins.
  const byEnd = new Map<number, FoundEntry>();
  for (const each of found.values()) byEnd.set(endOf(each, log), each);
  const sequence = [last];
  for (let first = last; first.position !== last.entry.tail; ) {
    const before = byEnd.get(first.position);
    if (!before || before.entry.sequenceNumber !== first.entry.sequenceNumber - 1n) break;
    sequence.unshift(before);
    first = before;
  }
  return sequence;
}

function endOf({ position, entry }: FoundEntry, log: Region): number {
  return (position + entry.entryLength) % log.bytes;
}

/** By position. Each byte of the log is looked at a few times at most, whatever entries say of their length. */
async function findEntries(
  co: Coroutine<"read">,
  file: BlockChild,
  log: Region,
  logGuid: string,
): Promise<ReadonlyMap<number, FoundEntry>> {
  const found = new Map<number, FoundEntry>();
  const fileBytes = await file.getLength(co);
  const end = Math.min(log.bytes, Math.max(fileBytes - log.offset, 0));
  let budget = 4 * log.bytes;
  for (let start = 0; start < end; start += MiB) {
    co.checkAborted();
    const piece = await file.preadBytes(co, log.offset + start, Math.min(MiB, log.bytes - start));
    for (let at = 0; at + LOG_SECTOR_BYTES <= piece.length; at += LOG_SECTOR_BYTES) {
      const entry = LogEntry.read(piece, at);
      if (entry.signature !== Signature.LogEntry || hex(entry.logGuid) !== logGuid) continue;
      if (!isPlausible(entry, log)) continue;
      budget -= entry.entryLength;
      if (budget < 0) throw openFailed(file, "EINVAL");
      const position = start + at;
      if ((await entryChecksum(co, file, log, position, entry.entryLength)) === entry.checksum)
        found.set(position, { position, entry });
    }
  }
  return found;
}

function isPlausible({ entryLength, sequenceNumber, descriptorCount }: LogEntry, log: Region): boolean {
  const isLength =
    isAligned(entryLength, LOG_SECTOR_BYTES) && entryLength >= LOG_SECTOR_BYTES && entryLength <= log.bytes;
  const headBytes = LogEntry.size + descriptorCount * LogDescriptor.size;
  return isLength && sequenceNumber > 0n && headBytes <= entryLength;
}

/** Bytes of the log, which goes on at its start where it ends. */
async function readLog(
  co: Coroutine<"read">,
  file: BlockChild,
  log: Region,
  position: number,
  bytes: number,
): Promise<Uint8Array> {
  const data = new Uint8Array(bytes);
  const start = position % log.bytes;
  const head = Math.min(bytes, log.bytes - start);
  await file.pread(co, log.offset + start, data.subarray(0, head));
  if (head < bytes) await file.pread(co, log.offset, data.subarray(head));
  return data;
}

async function entryChecksum(
  co: Coroutine<"read">,
  file: BlockChild,
  log: Region,
  position: number,
  entryLength: number,
): Promise<number> {
  let crc = 0;
  for (let done = 0; done < entryLength; done += MiB) {
    const piece = await readLog(co, file, log, position + done, Math.min(MiB, entryLength - done));
    const { checksum } = LogEntry.offsetOf;
    if (done === 0) piece.fill(0, checksum, checksum + 4);
    crc = crc32c(piece, crc);
  }
  return crc;
}

/** Throws where an entry that is whole says what can't be.  @qemu vhdx_validate_log_entry */
export async function checkSequence(
  co: Coroutine<"read">,
  file: BlockChild,
  log: Region,
  sequence: readonly FoundEntry[],
): Promise<void> {
  for (const { position, entry } of sequence)
    for await (const _ of descriptors(co, file, log, position, entry)) co.checkAborted();
}

type Descriptor = ReturnType<typeof LogDescriptor.read> & {
  /** Position of its data in the log. */
  readonly data: number;
};

async function* descriptors(
  co: Coroutine<"read">,
  file: BlockChild,
  log: Region,
  position: number,
  { descriptorCount, entryLength, sequenceNumber }: LogEntry,
): AsyncGenerator<Descriptor> {
  const headBytes = alignUp(LogEntry.size + descriptorCount * LogDescriptor.size, LOG_SECTOR_BYTES);
  let data = position + headBytes;
  for (let index = 0; index < descriptorCount; index++) {
    const at = position + LogEntry.size + index * LogDescriptor.size;
    const descriptor = LogDescriptor.read(await readLog(co, file, log, at, LogDescriptor.size));
    const { signature, fileOffset } = descriptor;
    const isData = signature === Signature.LogDescriptor;
    const isWhole =
      (isData || signature === Signature.LogZero) &&
      descriptor.sequenceNumber === sequenceNumber &&
      isAligned(fileOffset, LOG_SECTOR_BYTES) &&
      (isData ? data + LOG_SECTOR_BYTES <= position + entryLength : isZeroLength(descriptor));
    if (!isWhole) throw openFailed(file, "EINVAL");
    yield { ...descriptor, data };
    if (isData) data += LOG_SECTOR_BYTES;
  }
}

function zeroLength({ leading }: Descriptor | ReturnType<typeof LogDescriptor.read>): number {
  const view = new DataView(leading.buffer, leading.byteOffset);
  return view.getUint32(4, true) * 2 ** 32 + view.getUint32(0, true);
}

function isZeroLength(descriptor: ReturnType<typeof LogDescriptor.read>): boolean {
  return isAligned(zeroLength(descriptor), LOG_SECTOR_BYTES);
}

/** Brings the entries into the file, and makes that stable. May be done again from the start at any time.  @qemu vhdx_log_flush */
export async function replay(
  co: Coroutine<"read">,
  file: BlockChild,
  log: Region,
  sequence: readonly FoundEntry[],
): Promise<void> {
  const last = (sequence.at(-1) as FoundEntry).entry;
  if (last.flushedFileOffset > (await file.getLength(co))) throw openFailed(file, "EINVAL");
  for (const { position, entry } of sequence)
    for await (const descriptor of descriptors(co, file, log, position, entry))
      await replayOne(co, file, log, descriptor, last.lastFileOffset);
  const fileBytes = await file.getLength(co);
  const wanted = alignUp(last.lastFileOffset, UNIT_BYTES);
  if (wanted > MAX_LENGTH) throw openFailed(file, "EFBIG");
  if (fileBytes < last.lastFileOffset) await file.truncate(co, wanted, false);
  await file.flush(co);
}

/** No entry reaches behind the end that the file had when the last one was written. */
async function replayOne(
  co: Coroutine<"read">,
  file: BlockChild,
  log: Region,
  descriptor: Descriptor,
  fileEnd: number,
): Promise<void> {
  const { fileOffset, signature, leading, trailingBytes, sequenceNumber } = descriptor;
  const bytes = signature === Signature.LogZero ? zeroLength(descriptor) : LOG_SECTOR_BYTES;
  if (fileOffset + bytes > alignUp(fileEnd, UNIT_BYTES)) throw openFailed(file, "EFBIG");
  if (signature === Signature.LogZero) {
    await file.pwriteZeroes(co, fileOffset, bytes);
    return;
  }
  const sector = await readLog(co, file, log, descriptor.data, LOG_SECTOR_BYTES);
  const head = LogData.read(sector);
  const low = new DataView(sector.buffer).getUint32(LOG_SECTOR_BYTES - 4, true);
  const number = (BigInt(head.sequenceHigh) << 32n) | BigInt(low);
  if (head.signature !== Signature.LogData || number !== sequenceNumber) throw openFailed(file, "EINVAL");
  sector.set(leading, 0);
  sector.set(trailingBytes, LOG_SECTOR_BYTES - 4);
  await file.pwrite(co, fileOffset, sector);
}

/** Of an entry with one descriptor and one sector of data. */
const ENTRY_BYTES = 2 * LOG_SECTOR_BYTES;

/**
 * Changes one entry of the table. All that was written before is stable when the entry is: see the invariants in
 * `state.ts`. Under the lock.  @qemu vhdx_log_write_and_flush
 */
export async function writeEntry(
  co: Coroutine<"read">,
  state: VhdxState,
  index: number,
  low: number,
  offset: number,
): Promise<void> {
  const { file, log, batOffset, bat } = state;
  if (log.bytes < ENTRY_BYTES) throw new BlockError("EINVAL");
  const at = batOffset + index * 8;
  const sectorOffset = alignDown(at, LOG_SECTOR_BYTES);
  const sector = await file.preadBytes(co, sectorOffset, LOG_SECTOR_BYTES);
  const view = new DataView(sector.buffer);
  view.setUint32(at - sectorOffset, (offset % 2 ** 32) + low, true);
  view.setUint32(at - sectorOffset + 4, Math.floor(offset / 2 ** 32), true);
  const logGuid = newGuid();
  const entry = serializeEntry(logGuid, state, sector, sectorOffset, await file.getLength(co));
  await file.pwrite(co, log.offset + state.logPosition, entry);
  await file.flush(co);
  await writeHeader(co, state, { logGuid });
  await file.flush(co);
  await bat.set(co, index, offset + low);
  await bat.write(co);
  await file.flush(co);
  await writeHeader(co, state, { logGuid: NO_GUID });
  state.logSequence++;
  state.logPosition += ENTRY_BYTES;
  if (state.logPosition + ENTRY_BYTES > log.bytes) state.logPosition = 0;
}

function serializeEntry(
  logGuid: Uint8Array,
  { logPosition, logSequence }: VhdxState,
  sector: Uint8Array,
  fileOffset: number,
  fileBytes: number,
): Uint8Array {
  const entry = new Uint8Array(ENTRY_BYTES);
  const head: LogEntry = {
    signature: Signature.LogEntry,
    checksum: 0,
    entryLength: ENTRY_BYTES,
    tail: logPosition,
    sequenceNumber: logSequence,
    descriptorCount: 1,
    reserved: 0,
    logGuid,
    flushedFileOffset: fileBytes,
    lastFileOffset: fileBytes,
  };
  LogEntry.write(head, entry);
  const descriptor = {
    signature: Signature.LogDescriptor,
    trailingBytes: sector.subarray(LOG_SECTOR_BYTES - 4),
    leading: sector.subarray(0, 8),
    fileOffset,
    sequenceNumber: logSequence,
  };
  LogDescriptor.write(descriptor, entry, LogEntry.size);
  entry.set(sector, LOG_SECTOR_BYTES);
  LogData.write(
    { signature: Signature.LogData, sequenceHigh: Number(logSequence >> 32n) },
    entry,
    LOG_SECTOR_BYTES,
  );
  const view = new DataView(entry.buffer);
  view.setUint32(ENTRY_BYTES - 4, Number(logSequence & 0xffffffffn), true);
  view.setUint32(LogEntry.offsetOf.checksum, crc32c(entry), true);
  return entry;
}
