/** Opening a VHD: by the footer at its start, or, of a fixed image, at its end; every number is checked before it is used.  @qemu vpc_open */

import type { BlockChild } from "../../src/block/child.ts";
import { type Coroutine, graphRdlock } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import type { OpeningNode } from "../../src/block/open.ts";
import { alignUp, divideRoundUp, isPowerOfTwo, KiB, MiB, SECTOR_SIZE } from "../../src/block/units.ts";
import { openFailed, refuseBacking } from "../opening.ts";
import { PagedTable } from "../paged-table.ts";
import { Mutex } from "../qcow2/mutex.ts";
import { TableCache } from "../qcow2/table-cache.ts";
import { diskSectors, type SizeRule } from "./geometry.ts";
import {
  BATMAP_COOKIE,
  Batmap,
  checksumOf,
  DiskType,
  DynamicHeader,
  FOOTER_BYTES,
  FOOTER_COOKIE,
  Footer,
  HEADER_COOKIE,
  MAX_DISK_BYTES,
  MAX_TABLE_BYTES,
  text,
  UNUSED,
} from "./layout.ts";
import { locatorsEnd, parentFilename } from "./parent.ts";
import type { Blocks, Differencing, VpcState } from "./state.ts";

export const options = {
  /** "chs" or "current_size": what says how long the disk is, whoever made it. */
  force_size_calc: { type: "string", strong: true },
} as const;

export async function openState(
  co: Coroutine<"none">,
  opening: OpeningNode<typeof options>,
): Promise<VpcState> {
  const { node } = opening;
  const file = await opening.openFileChild(co);
  const rule = opening.options.force_size_calc;
  if (rule !== undefined && rule !== "chs" && rule !== "current_size")
    throw new BlockError("EINVAL", `Invalid size calculation mode: '${rule}'`);
  return graphRdlock(co, async (reader) => {
    const found = await readFooter(reader, file);
    const { footer } = found;
    if (checksumOf(found.bytes, Footer.offsetOf.checksum) !== footer.checksum)
      throw new BlockError("EINVAL", "Incorrect header checksum");
    node.totalSectors = checkedSectors(file, footer, rule);
    const header = found.isAtEnd ? undefined : await readHeader(reader, file, footer);
    if (header) await checkTable(reader, file, header, node.totalSectors);
    const isFixed = footer.diskType === DiskType.Fixed;
    const isDifferencing = header !== undefined && footer.diskType === DiskType.Differencing;
    if (isDifferencing) {
      node.backingFilename = await parentFilename(reader, file, header);
      node.backingFormat = node.backingFilename === undefined ? undefined : "vpc";
    } else refuseBacking(opening);
    const blocks = header && (await makeBlocks(reader, file, found.bytes, header, isDifferencing));
    return { node, file, footer, blocks: isFixed ? undefined : blocks };
  });
}

interface FoundFooter {
  readonly bytes: Uint8Array;
  readonly footer: Footer;
  /** Then the image is a fixed one. */
  readonly isAtEnd: boolean;
}

async function readFooter(co: Coroutine<"read">, file: BlockChild): Promise<FoundFooter> {
  const read = async (offset: number): Promise<FoundFooter> => {
    let bytes: Uint8Array;
    try {
      bytes = await file.preadBytes(co, offset, FOOTER_BYTES);
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      throw new BlockError(error.errno, "Unable to read VHD header", { cause: error });
    }
    return { bytes, footer: Footer.read(bytes), isAtEnd: offset > 0 };
  };
  const fileBytes = await fileLength(co, file);
  const head = await read(0);
  const isFooter = text(head.footer.cookie) === FOOTER_COOKIE;
  // Nothing stands before the footer of a fixed image of no length.
  if (isFooter && head.footer.diskType === DiskType.Fixed && fileBytes === FOOTER_BYTES)
    return { ...head, isAtEnd: true };
  if (isFooter) return head;
  if (fileBytes < FOOTER_BYTES) throw new BlockError("EINVAL", "File too small for a VHD header");
  const tail = await read(fileBytes - FOOTER_BYTES);
  if (text(tail.footer.cookie) !== FOOTER_COOKIE || tail.footer.diskType !== DiskType.Fixed)
    throw new BlockError("EINVAL", "invalid VPC image");
  return { ...tail, isAtEnd: true };
}

async function fileLength(co: Coroutine<"read">, file: BlockChild): Promise<number> {
  try {
    return await file.getLength(co);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new BlockError(error.errno, "Unable to learn image size", { cause: error });
  }
}

function checkedSectors(file: BlockChild, footer: Footer, rule: SizeRule | undefined): number {
  const sectors = diskSectors(footer, rule);
  if (sectors > MAX_DISK_BYTES / SECTOR_SIZE) throw openFailed(file, "EFBIG");
  return sectors;
}

async function readHeader(co: Coroutine<"read">, file: BlockChild, footer: Footer): Promise<DynamicHeader> {
  let header: DynamicHeader;
  try {
    header = DynamicHeader.read(await file.preadBytes(co, footer.dataOffset, DynamicHeader.size));
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new BlockError(error.errno, "Error reading dynamic VHD header", { cause: error });
  }
  if (text(header.cookie) !== HEADER_COOKIE) throw new BlockError("EINVAL", "Invalid header magic");
  return header;
}

async function checkTable(
  co: Coroutine<"read">,
  file: BlockChild,
  { blockSize, maxTableEntries, tableOffset }: DynamicHeader,
  totalSectors: number,
): Promise<void> {
  if (!isPowerOfTwo(blockSize) || blockSize < SECTOR_SIZE)
    throw new BlockError("EINVAL", `Invalid block size ${blockSize}`);
  if (maxTableEntries * 4 > MAX_TABLE_BYTES)
    throw new BlockError("EINVAL", `Max Table Entries too large (${maxTableEntries | 0})`);
  if (maxTableEntries * blockSize < totalSectors * SECTOR_SIZE)
    throw new BlockError("EINVAL", "Page table too small");
  const fileBytes = await fileLength(co, file);
  if (tableOffset + maxTableEntries * 4 <= fileBytes) return;
  // What lies behind the file's end can be read all the same, and is found to be wrong then.
  try {
    await file.preadBytes(co, tableOffset, 1);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new BlockError(error.errno, "Error reading pagetable", { cause: error });
  }
  if (alignUp(tableOffset + maxTableEntries * 4, SECTOR_SIZE) > fileBytes) throw truncated();
}

function truncated(): BlockError {
  return new BlockError(
    "ENOTSUP",
    "block-vpc: free_data_block_offset points after the end of file. The image has been truncated.",
  );
}

async function makeBlocks(
  co: Coroutine<"read">,
  file: BlockChild,
  footerBytes: Uint8Array,
  header: DynamicHeader,
  isDifferencing: boolean,
): Promise<Blocks> {
  const { blockSize, tableOffset, maxTableEntries } = header;
  const bitmapBytes = alignUp(divideRoundUp(blockSize / SECTOR_SIZE, 8), SECTOR_SIZE);
  const tableEnd = tableOffset + maxTableEntries * 4;
  const usedEnd = await fileLength(co, file);
  const lastBlock = await lastEntry(co, file, tableOffset, maxTableEntries);
  let freeOffset = alignUp(tableEnd, SECTOR_SIZE);
  if (lastBlock !== undefined)
    freeOffset = Math.max(freeOffset, lastBlock * SECTOR_SIZE + bitmapBytes + blockSize);
  if (freeOffset > usedEnd) throw truncated();
  const batmap = await readBatmap(co, file, alignUp(tableEnd, SECTOR_SIZE), maxTableEntries);
  // What else the image has must not be written over by its first block.
  freeOffset = alignUp(Math.max(freeOffset, batmap?.end ?? 0, locatorsEnd(header)), SECTOR_SIZE);
  const table = new PagedTable({
    file,
    offset: tableOffset,
    entries: maxTableEntries,
    entryBytes: 4,
    littleEndian: false,
  });
  // A small table is in memory from here on, as all tables are with QEMU.
  if (maxTableEntries > 0) await table.get(co, 0);
  return {
    blockSize,
    bitmapBytes,
    table,
    footerBytes,
    lock: new Mutex(),
    freeOffset,
    usedEnd,
    lastBitmap: -1,
    differencing: isDifferencing ? differencingOf(file, header, bitmapBytes, batmap?.bits) : undefined,
  };
}

/** The largest entry of the table, in sectors; undefined: no block has a place. */
async function lastEntry(
  co: Coroutine<"read">,
  file: BlockChild,
  tableOffset: number,
  entries: number,
): Promise<number | undefined> {
  let last: number | undefined;
  for (let done = 0; done < entries * 4; ) {
    co.checkAborted();
    const bytes = Math.min(entries * 4 - done, 256 * KiB);
    const buffer = await file.preadBytes(co, tableOffset + done, bytes).catch((error: unknown) => {
      throw error instanceof BlockError
        ? new BlockError(error.errno, "Error reading pagetable", { cause: error })
        : error;
    });
    const view = new DataView(buffer.buffer, buffer.byteOffset, bytes);
    for (let at = 0; at < bytes; at += 4) {
      const entry = view.getUint32(at);
      if (entry !== UNUSED && entry > (last ?? -1)) last = entry;
    }
    done += bytes;
  }
  return last;
}

function differencingOf(
  file: BlockChild,
  { parentUniqueId }: DynamicHeader,
  bitmapBytes: number,
  batmap: Uint8Array | undefined,
): Differencing {
  const capacity = Math.max(2, Math.floor(MiB / bitmapBytes));
  return {
    parentUniqueId,
    parentChecked: false,
    bitmaps: new TableCache({ file, tableBytes: bitmapBytes, capacity }),
    batmap,
  };
}

/** XenServer's map of whole blocks, and where it ends; undefined: there is none that could be trusted. */
async function readBatmap(
  co: Coroutine<"read">,
  file: BlockChild,
  offset: number,
  entries: number,
): Promise<{ readonly bits: Uint8Array; readonly end: number } | undefined> {
  const map = Batmap.read(await file.preadBytes(co, offset, SECTOR_SIZE));
  const bytes = map.sectors * SECTOR_SIZE;
  const isMap = text(map.cookie) === BATMAP_COOKIE && map.sectors === divideRoundUp(entries, 8 * SECTOR_SIZE);
  if (!isMap || map.offset % SECTOR_SIZE !== 0 || map.offset + bytes > (await file.getLength(co)))
    return undefined;
  const bits = await file.preadBytes(co, map.offset, bytes);
  if (checksumOf(bits) !== map.checksum) return undefined;
  return { bits, end: Math.max(map.offset + bytes, offset + SECTOR_SIZE) };
}
