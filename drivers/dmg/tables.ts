/** Finds the tables of chunks: by the trailer, in the resource fork or in the property list.  @qemu dmg_open */

import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import type { OpenEnvironment } from "../../src/block/open.ts";
import { MiB, SECTOR_SIZE } from "../../src/block/units.ts";
import { openFailed } from "../opening.ts";
import { ChunkTable, ChunkTooLarge } from "./chunks.ts";
import { findCodec } from "./codecs.ts";
import { ChunkType, KOLY_MAGIC, Koly } from "./layout.ts";

/** A property list, or a resource fork, is read whole. */
const MAX_TABLES_BYTES = 16 * MiB;

export interface Tables {
  readonly chunks: ChunkTable;
  /** Virtual size in sectors. */
  readonly sectors: number;
}

export async function readTables(
  co: Coroutine<"read">,
  file: BlockChild,
  environment: OpenEnvironment,
): Promise<Tables> {
  const kolyOffset = await findKoly(co, file);
  const koly = Koly.read(await file.preadBytes(co, kolyOffset, Koly.size));
  const { resourceForkOffset, resourceForkLength, plistOffset, plistLength } = koly;
  const isBefore = (offset: number, length: number) => offset < kolyOffset && length <= kolyOffset - offset;
  if (
    koly.dataForkOffset > kolyOffset ||
    !isBefore(resourceForkOffset, resourceForkLength) ||
    !isBefore(plistOffset, plistLength)
  )
    throw openFailed(file, "EINVAL");
  const chunks = new ChunkTable(isKnown);
  let add: typeof addFork;
  let [offset, length] = [resourceForkOffset, resourceForkLength];
  if (length > 0) add = addFork;
  else {
    add = addPlist;
    [offset, length] = [plistOffset, plistLength];
  }
  if (length === 0 || length > MAX_TABLES_BYTES) throw openFailed(file, "EINVAL");
  const tables = await file.preadBytes(co, offset, length);
  try {
    if (!add(chunks, tables, koly.dataForkOffset)) throw openFailed(file, "EINVAL");
  } catch (error) {
    if (!(error instanceof ChunkTooLarge)) throw error;
    (environment.error ?? environment.warn)(error.message);
    throw openFailed(file, "EINVAL");
  }
  if (koly.sectorCount >= 2 ** 63) throw openFailed(file, "EINVAL");
  chunks.sort();
  return { chunks, sectors: koly.sectorCount };
}

const CONTENT_TYPES: readonly number[] = [ChunkType.Zero, ChunkType.Raw, ChunkType.Ignore];

function isKnown(type: number): boolean {
  return CONTENT_TYPES.includes(type) || findCodec(type) !== undefined;
}

/** The length of the file is known in whole sectors only, so the trailer is looked for in the last two.  @qemu dmg_find_koly_offset */
async function findKoly(co: Coroutine<"read">, file: BlockChild): Promise<number> {
  const length = await file.getLength(co);
  if (length < SECTOR_SIZE) throw new BlockError("EINVAL", "dmg file must be at least 512 bytes long");
  const start = Math.max(0, length - (2 * SECTOR_SIZE - 1));
  let tail: Uint8Array;
  try {
    tail = await file.preadBytes(co, start, Math.min(length, SECTOR_SIZE + 3));
  } catch (error) {
    throw BlockError.wrap("Failed while reading UDIF trailer", error);
  }
  const view = new DataView(tail.buffer, tail.byteOffset, tail.length);
  for (let at = 0; at + 4 <= tail.length; at++) if (view.getUint32(at) === KOLY_MAGIC) return start + at;
  throw new BlockError("EINVAL", "Could not locate UDIF trailer in dmg file");
}

/** The fork's data is items, each with its length before it; those that are no tables are passed over.  @qemu dmg_read_resource_fork */
function addFork(chunks: ChunkTable, fork: Uint8Array, dataForkOffset: number): boolean {
  const view = new DataView(fork.buffer, fork.byteOffset, fork.length);
  if (fork.length < 12) return false;
  const dataOffset = view.getUint32(0);
  const dataLength = view.getUint32(8);
  if (dataLength === 0 || dataOffset + dataLength > fork.length) return false;
  const end = dataOffset + dataLength;
  for (let at = dataOffset; at < end; ) {
    if (at + 4 > end) return false;
    const length = view.getUint32(at);
    if (length === 0 || length > end - at - 4) return false;
    chunks.add(fork.subarray(at + 4, at + 4 + length), dataForkOffset);
    at += 4 + length;
  }
  return true;
}

/** What stands between tags of data, in base64, are the tables.  @qemu dmg_read_plist_xml */
function addPlist(chunks: ChunkTable, plist: Uint8Array, dataForkOffset: number): boolean {
  const end = plist.indexOf(0);
  const text = Buffer.from(end < 0 ? plist : plist.subarray(0, end)).toString("latin1");
  for (const [, data] of text.matchAll(/<data>([^]*?)<\/data>/g))
    chunks.add(Buffer.from(data as string, "base64"), dataForkOffset);
  return true;
}
