/** What stands before the files of a FAT disk: partition table, boot sector and two tables of clusters. */

import { SECTOR_SIZE } from "../../src/block/units.ts";
import type { Piece } from "./tree.ts";

const SECTORS_PER_CLUSTER = 16;
const RESERVED_SECTORS = 1;
const FATS = 2;
const ROOT_ENTRIES = 512;
/** Where the partition of a hard disk starts. */
const PARTITION_SECTOR = 63;
const DISK_ID = 0xbe1afdfa;
const VOLUME_ID = 0xfabe1afd;

export interface Geometry {
  readonly fatBits: 12 | 16 | 32;
  readonly isFloppy: boolean;
  readonly cylinders: number;
  readonly heads: number;
  readonly sectorsPerTrack: number;
  /** Of the whole disk. */
  readonly sectors: number;
  /** The boot sector, after a partition table or none. */
  readonly bootSector: number;
  readonly sectorsPerFat: number;
  readonly clusterSize: number;
  /** Where the root folder is, in bytes; clusters are counted from there. */
  readonly rootOffset: number;
  readonly rootEntries: number | undefined;
  readonly clusters: number;
}

/** `fatType` 0: what is usual for such a disk.  @qemu vvfat_open */
export function geometryOf(fatType: number, isFloppy: boolean): Geometry {
  const fatBits = (fatType === 0 ? (isFloppy ? 12 : 16) : fatType) as 12 | 16 | 32;
  const [cylinders, heads, sectorsPerTrack] = isFloppy
    ? [80, 2, fatType === 12 ? 18 : 36]
    : [fatBits === 12 ? 64 : 1024, 16, 63];
  const sectors = cylinders * heads * sectorsPerTrack;
  const bootSector = isFloppy ? 0 : PARTITION_SECTOR;
  const sectorsOfFatSector = 1 + Math.floor((SECTORS_PER_CLUSTER * SECTOR_SIZE * 8) / fatBits);
  const sectorsPerFat = Math.floor((sectors + sectorsOfFatSector) / sectorsOfFatSector);
  const rootSector = bootSector + RESERVED_SECTORS + FATS * sectorsPerFat;
  return {
    fatBits,
    isFloppy,
    cylinders,
    heads,
    sectorsPerTrack,
    sectors,
    bootSector,
    sectorsPerFat,
    clusterSize: SECTORS_PER_CLUSTER * SECTOR_SIZE,
    rootOffset: rootSector * SECTOR_SIZE,
    rootEntries: fatBits === 32 ? undefined : ROOT_ENTRIES,
    clusters: Math.floor((sectors - rootSector) / SECTORS_PER_CLUSTER),
  };
}

/** All from the disk's start to its root folder. */
export function makeHead(geometry: Geometry, pieces: readonly Piece[]): Buffer {
  const { rootOffset, bootSector, isFloppy, sectorsPerFat } = geometry;
  const head = Buffer.alloc(rootOffset);
  if (!isFloppy) writePartitionTable(head, geometry);
  writeBootSector(head.subarray(bootSector * SECTOR_SIZE), geometry);
  const fatBytes = sectorsPerFat * SECTOR_SIZE;
  const fatOffset = (bootSector + RESERVED_SECTORS) * SECTOR_SIZE;
  const fat = head.subarray(fatOffset, fatOffset + fatBytes);
  fillFat(fat, geometry, pieces);
  fat.copy(head, fatOffset + fatBytes);
  return head;
}

function writePartitionTable(
  head: Buffer,
  { fatBits, cylinders, heads, sectorsPerTrack, sectors }: Geometry,
) {
  head.writeUInt32LE(DISK_ID, 440);
  const cylinder = cylinders - 1;
  const types = { 12: 0x01, 16: 0x06, 32: 0x0b } as const;
  // Active; from cylinder 0, head 1, sector 1 on, to the end of the disk.
  head.set([0x80, 1, 1, 0, types[fatBits]], 446);
  head.set([heads - 1, sectorsPerTrack | ((cylinder >> 8) << 6), cylinder & 0xff], 451);
  head.writeUInt32LE(PARTITION_SECTOR, 454);
  head.writeUInt32LE(sectors - PARTITION_SECTOR, 458);
  head.writeUInt16BE(0x55aa, 510);
}

function writeBootSector(boot: Buffer, geometry: Geometry): void {
  const { isFloppy, sectors, bootSector, sectorsPerFat, heads, sectorsPerTrack, fatBits } = geometry;
  boot.set([0xeb, 0x3e, 0x90]);
  boot.write("MSWIN4.1", 3, "latin1");
  boot.writeUInt16LE(SECTOR_SIZE, 11);
  boot[13] = SECTORS_PER_CLUSTER;
  boot.writeUInt16LE(RESERVED_SECTORS, 14);
  boot[16] = FATS;
  boot.writeUInt16LE(ROOT_ENTRIES, 17);
  const partSectors = sectors - bootSector;
  const isShort = partSectors <= 0xffff;
  boot.writeUInt16LE(isShort ? partSectors : 0, 19);
  boot[21] = mediaOf(isFloppy);
  boot.writeUInt16LE(sectorsPerFat, 22);
  boot.writeUInt16LE(sectorsPerTrack, 24);
  boot.writeUInt16LE(heads, 26);
  boot.writeUInt32LE(bootSector, 28);
  boot.writeUInt32LE(isShort ? 0 : partSectors, 32);
  boot[36] = isFloppy ? 0 : 0x80;
  boot[38] = 0x29;
  boot.writeUInt32LE(VOLUME_ID, 39);
  // QEMU calls FAT32 so as well.
  boot.write(`QEMU VVFAT ${fatBits === 12 ? "FAT12" : "FAT16"}   `, 43, "latin1");
  boot.writeUInt16BE(0x55aa, 510);
}

const mediaOf = (isFloppy: boolean) => (isFloppy ? 0xf0 : 0xf8);

/** Each cluster has the number of the one after it; the last, ones. */
function fillFat(fat: Buffer, { fatBits, isFloppy }: Geometry, pieces: readonly Piece[]): void {
  const end = 2 ** (fatBits === 32 ? 28 : fatBits) - 1;
  const set = (cluster: number, value: number) => {
    if (fatBits === 16) fat.writeUInt16LE(value, cluster * 2);
    else if (fatBits === 32) fat.writeUInt32LE(value, cluster * 4);
    else {
      // Two of them share three bytes.
      const at = Math.floor((cluster * 3) / 2);
      const old = fat.readUInt16LE(at);
      fat.writeUInt16LE(cluster % 2 === 0 ? (old & 0xf000) | value : (old & 0x000f) | (value << 4), at);
    }
  };
  set(0, end - 0xff + mediaOf(isFloppy));
  set(1, end);
  for (const { begin, end: behind } of pieces)
    for (let cluster = begin; cluster < behind; cluster++)
      set(cluster, cluster + 1 === behind ? end : cluster + 1);
}
