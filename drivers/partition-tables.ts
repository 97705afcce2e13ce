/**
 * Partition tables: MBR with the chain of EBRs that holds logical partitions, and GPT with its backup. Partitions are
 * numbered as Linux does. Sources: UEFI specification, chapter 5; for EBRs, what fdisk writes.
 */

import type { BlockChild } from "../src/block/child.ts";
import type { Coroutine } from "../src/block/coroutine.ts";
import { BlockError } from "../src/block/errors.ts";
import { bytes, layout, mask64, u8, u16, u32, u64 } from "../src/block/layout.ts";
import { isPowerOfTwo, MiB, SECTOR_SIZE } from "../src/block/units.ts";

/** A part of the disk, in bytes. */
interface Extent {
  readonly offset: number;
  readonly bytes: number;
}

interface Disk extends Extent {
  readonly file: BlockChild;
  /** The unit of a table's numbers. Undefined: 512, or for a GPT whichever its place tells. */
  readonly sectorSize: number | undefined;
  readonly warn: (message: string) => void;
}

const MbrEntry = layout("little", {
  /** 0x80: bootable; else 0. */
  status: u8,
  firstChs: bytes(3),
  type: u8,
  lastChs: bytes(3),
  /** Counted from the start of the disk; in an EBR as `readLogical` says. */
  firstSector: u32,
  sectors: u32,
});
const Mbr = layout("little", {
  code: bytes(446),
  entries: bytes(4 * MbrEntry.size),
  signature: u16,
});
const MBR_SIGNATURE = 0xaa55;
const BOOTABLE = 0x80;
/** The one entry of an MBR that is there so that old programs take the disk for full. */
const TYPE_GPT = 0xee;
/** Hold an EBR in place of a file system: CHS, LBA, and Linux's own. */
const EXTENDED_TYPES: readonly number[] = [0x05, 0x0f, 0x85];
const FIRST_LOGICAL = 5;
const MAX_EBRS = 256;

const GptHeader = layout("little", {
  signature: bytes(8),
  revision: u32,
  headerBytes: u32,
  /** CRC-32 of the first `headerBytes`, with zero in its own place. */
  headerCrc: u32,
  reserved: u32,
  ownSector: u64,
  /** Where the other copy is. */
  otherSector: u64,
  firstUsable: u64,
  /** Inclusive. */
  lastUsable: u64,
  diskGuid: bytes(16),
  entriesSector: u64,
  entries: u32,
  /** 128 times a power of two. */
  entryBytes: u32,
  entriesCrc: u32,
});
const GptEntry = layout("little", {
  /** All zero: the entry is free. */
  type: bytes(16),
  guid: bytes(16),
  firstSector: u64,
  /** Inclusive. */
  lastSector: u64,
  attributes: mask64,
  name: bytes(72),
});
/** The usual table has 16 KiB. */
const MAX_GPT_TABLE_BYTES = MiB;
const GPT_SECTOR_SIZES: readonly number[] = [512, 4096];

interface Named extends Extent {
  readonly name: string;
}

/** What a table says; of `partitions` some may be no place to read from. */
interface Table {
  readonly partitions: ReadonlyMap<number, Extent>;
  /** Where a partition must lie. */
  readonly bounds: (number: number) => Named;
  /** What it must not overlap. */
  readonly taken: readonly Named[];
}

/** Where partition `number` lies: within the disk, and over nothing else. */
export async function findPartition(co: Coroutine<"read">, disk: Disk, number: number): Promise<Extent> {
  const table = await readTable(co, disk, number);
  const found = table.partitions.get(number);
  if (!found) {
    const numbers = [...table.partitions.keys()].sort((a, b) => a - b).join(", ");
    throw refusal(
      `There is no partition ${number}: the table has ${numbers === "" ? "none" : numbers}`,
      "ENOENT",
    );
  }
  if (found.bytes === 0) throw refusal(`Partition ${number} ends before it starts`);
  for (const bounds of [table.bounds(number), { name: "disk", offset: 0, bytes: disk.bytes }]) {
    if (found.offset >= bounds.offset && endOf(found) <= endOf(bounds)) continue;
    throw refusal(
      `Partition ${number} (${extentText(found)}) is not within the ${bounds.name} (${extentText(bounds)})`,
    );
  }
  const others = [...table.partitions].map(([other, extent]) => ({
    ...extent,
    name: `partition ${other}`,
    number: other,
  }));
  for (const other of [...others.filter((one) => one.number !== number), ...table.taken])
    if (found.offset < endOf(other) && other.offset < endOf(found))
      throw refusal(
        `Partition ${number} (${extentText(found)}) overlaps ${other.name} (${extentText(other)})`,
      );
  return found;
}

async function readTable(co: Coroutine<"read">, disk: Disk, number: number): Promise<Table> {
  const mbr = Mbr.read(await disk.file.preadBytes(co, 0, Mbr.size));
  const entries = readMbrEntries(mbr.entries);
  // A boot sector of a file system has the same signature, and code or text in the place of the entries.
  const isMbr =
    mbr.signature === MBR_SIGNATURE && entries.every(({ status }) => status === 0 || status === BOOTABLE);
  if (!isMbr) throw refusal("The disk has no partition table (MBR or GPT)");
  if (entries.some(({ type }) => type === TYPE_GPT)) return readGpt(co, disk);
  const sectorSize = disk.sectorSize ?? SECTOR_SIZE;
  const used = [...entries.entries()]
    .filter(([, { type, sectors }]) => type !== 0 && sectors > 0)
    .map(([index, { type, firstSector, sectors }]) => ({
      number: index + 1,
      isExtended: EXTENDED_TYPES.includes(type),
      extent: { offset: firstSector * sectorSize, bytes: sectors * sectorSize },
    }));
  const whole = { name: "disk", offset: 0, bytes: disk.bytes };
  const own = { name: "the partition table", offset: 0, bytes: sectorSize };
  const primary = new Map(used.filter((one) => !one.isExtended).map((one) => [one.number, one.extent]));
  const extended = used.filter((one) => one.isExtended);
  const named = (one: (typeof used)[number]) => ({ ...one.extent, name: `extended partition ${one.number}` });
  if (extended.some((one) => one.number === number))
    throw refusal(`Partition ${number} is an extended one: what it holds is counted from ${FIRST_LOGICAL}`);
  // A primary partition can be read whatever the chain is like.
  if (number < FIRST_LOGICAL && primary.has(number))
    return { partitions: primary, bounds: () => whole, taken: [own, ...extended.map(named)] };
  const partitions = new Map(primary);
  const bounds = new Map<number, Named>();
  const taken: Named[] = [own];
  for (const one of extended) {
    const { logical, ebrs } = await readLogical(co, disk, one.extent, sectorSize);
    for (const extent of logical) {
      const next = FIRST_LOGICAL + bounds.size;
      partitions.set(next, extent);
      bounds.set(next, named(one));
    }
    taken.push(...ebrs);
  }
  return { partitions, bounds: (of) => bounds.get(of) ?? whole, taken };
}

function readMbrEntries(buffer: Uint8Array) {
  return [0, 1, 2, 3].map((index) => MbrEntry.read(buffer, index * MbrEntry.size));
}

/** The chain of EBRs: of two entries in each, one is a partition, counted from the EBR, one the next EBR, counted from the first. */
async function readLogical(
  co: Coroutine<"read">,
  disk: Disk,
  extended: Extent,
  sectorSize: number,
): Promise<{ readonly logical: readonly Extent[]; readonly ebrs: readonly Named[] }> {
  const logical: Extent[] = [];
  const ebrs: Named[] = [];
  for (let next: number | undefined = extended.offset; next !== undefined; ) {
    const offset: number = next;
    const what = `The extended boot record at offset ${offset}`;
    if (offset < extended.offset || offset + sectorSize > Math.min(endOf(extended), disk.bytes))
      throw refusal(`${what} is not within its extended partition and the disk`);
    if (ebrs.some((ebr) => ebr.offset === offset))
      throw refusal(`${what} is in its own chain: it has no end`);
    if (ebrs.length === MAX_EBRS) throw refusal(`The chain of extended boot records has over ${MAX_EBRS}`);
    ebrs.push({ name: "an extended boot record", offset, bytes: sectorSize });
    const ebr = Mbr.read(await disk.file.preadBytes(co, offset, Mbr.size));
    if (ebr.signature !== MBR_SIGNATURE) throw refusal(`${what} has no signature`);
    next = undefined;
    for (const { type, firstSector, sectors } of readMbrEntries(ebr.entries).slice(0, 2)) {
      if (type === 0 || sectors === 0) continue;
      if (EXTENDED_TYPES.includes(type)) next ??= extended.offset + firstSector * sectorSize;
      else logical.push({ offset: offset + firstSector * sectorSize, bytes: sectors * sectorSize });
    }
  }
  return { logical, ebrs };
}

/** The GPT behind the protective MBR; where that is damaged, its backup at the end of the disk. */
async function readGpt(co: Coroutine<"read">, disk: Disk): Promise<Table> {
  const sizes = disk.sectorSize === undefined ? GPT_SECTOR_SIZES : [disk.sectorSize];
  const damages: string[] = [];
  for (const copy of ["primary", "backup"] as const) {
    for (const sectorSize of sizes) {
      const lastSector = Math.floor(disk.bytes / sectorSize) - 1;
      const sector = copy === "primary" ? 1 : lastSector;
      if (sector < 1 || sector > lastSector) continue;
      const found = await readGptCopy(co, disk, sector, sectorSize);
      if (found === undefined) continue;
      if (typeof found === "string") {
        damages.push(`the ${copy} one ${found}`);
        continue;
      }
      if (copy === "backup") disk.warn("The primary GPT is missing or damaged; its backup is used");
      return found;
    }
  }
  throw refusal(`The disk has no valid GPT${damages.length === 0 ? "" : `: ${damages.join(", ")}`}`);
}

/** Undefined: there is none; a text: what is wrong with it. */
async function readGptCopy(
  co: Coroutine<"read">,
  { file, bytes: diskBytes }: Disk,
  sector: number,
  sectorSize: number,
): Promise<Table | string | undefined> {
  const block = await file.preadBytes(co, sector * sectorSize, sectorSize);
  const header = GptHeader.read(block);
  const { headerBytes, firstUsable, lastUsable, entriesSector, entries, entryBytes } = header;
  if (Buffer.from(header.signature).toString("latin1") !== "EFI PART") return undefined;
  if (Math.floor(header.revision / 2 ** 16) !== 1) return "is of an unknown revision";
  if (headerBytes < GptHeader.size || headerBytes > sectorSize) return "has a header of a wrong size";
  block.fill(0, GptHeader.offsetOf.headerCrc, GptHeader.offsetOf.headerCrc + 4);
  if (crc32(block.subarray(0, headerBytes)) !== header.headerCrc) return "has a wrong checksum of its header";
  if (header.ownSector !== sector) return "is not where it says it is";
  if (firstUsable < 2 || lastUsable < firstUsable) return "has no room for partitions";
  if (entryBytes < GptEntry.size || !isPowerOfTwo(entryBytes)) return "has entries of a wrong size";
  const table = { offset: entriesSector * sectorSize, bytes: entries * entryBytes };
  if (table.bytes > MAX_GPT_TABLE_BYTES) return `has over ${MAX_GPT_TABLE_BYTES} bytes of entries`;
  if (entriesSector < 2 || endOf(table) > diskBytes) return "has its entries outside the disk";
  const buffer = await file.preadBytes(co, table.offset, table.bytes);
  if (crc32(buffer) !== header.entriesCrc) return "has a wrong checksum of its entries";
  const partitions = new Map<number, Extent>();
  for (let index = 0; index < entries; index++) {
    const { type, firstSector, lastSector } = GptEntry.read(buffer, index * entryBytes);
    if (type.every((byte) => byte === 0)) continue;
    const sectors = Math.max(lastSector - firstSector + 1, 0);
    partitions.set(index + 1, { offset: firstSector * sectorSize, bytes: sectors * sectorSize });
  }
  const usable = {
    name: "GPT's usable space",
    offset: firstUsable * sectorSize,
    bytes: (lastUsable + 1 - firstUsable) * sectorSize,
  };
  const taken = [
    { ...table, name: "the partition table" },
    { name: "the partition table's header", offset: sector * sectorSize, bytes: sectorSize },
  ];
  return { partitions, bounds: () => usable, taken };
}

function crc32(buffer: Uint8Array): number {
  return process.getBuiltinModule("node:zlib").crc32(buffer);
}

function endOf({ offset, bytes }: Extent): number {
  return offset + bytes;
}

function extentText(extent: Extent): string {
  return `bytes ${extent.offset} to ${endOf(extent)}`;
}

function refusal(message: string, errno: "EINVAL" | "ENOENT" = "EINVAL"): BlockError {
  return new BlockError(errno, message);
}
