/** VHDX: two headers, two region tables, metadata, a block allocation table and a log. Source: [MS-VHDX]. */

import { crc32c } from "../../../drivers/vhdx/crc32c.ts";
import {
  Header,
  MetadataEntry,
  MetadataTable,
  RegionEntry,
  RegionTable,
} from "../../../drivers/vhdx/layout.ts";
import { type FuzzFormat, type Region, recordRegions } from "../format.ts";
import { makeBoth } from "./made.ts";

const HEADERS = [65536, 131072];
const REGION_TABLES = [196608, 262144];
const HEADER_BYTES = 4096;
const TABLE_BYTES = 65536;
const CHECKSUM_OFFSET = 4;
const little = { littleEndian: true };
const STATES = [1n, 2n, 3n, 6n, 7n];

export const vhdx: FuzzFormat = {
  formatName: "vhdx",
  writable: true,
  bases: (workshop) =>
    makeBoth(workshop, "vhdx", [
      { name: "dynamic", size: 2 * 2 ** 20, options: { block_size: 2 ** 20, log_size: 2 ** 20 } },
      { name: "empty", size: 2 ** 32, data: 0, options: { log_size: 2 ** 20 } },
    ]),

  regions(image) {
    const found: Region[] = HEADERS.flatMap((offset) => recordRegions("header", Header, offset, little));
    for (const table of REGION_TABLES) found.push(...recordRegions("regions", RegionTable, table, little));
    const entries = REGION_TABLES.flatMap((table) =>
      [0, 1].map((index) => table + RegionTable.size + index * RegionEntry.size),
    );
    for (const at of entries) found.push(...recordRegions("region", RegionEntry, at, little));
    for (const at of entries.slice(0, 2)) {
      const { fileOffset, length } = RegionEntry.read(image, at);
      if (image.toString("latin1", fileOffset, fileOffset + 8) === "metadata")
        found.push(...metadataRegions(image, fileOffset));
      else {
        const bat = { offset: fileOffset, width: 8, ...little, unit: 1, flags: STATES } as const;
        found.push({ ...bat, name: "BAT", count: Math.min(length / 8, 4096) });
        found.push({ ...bat, name: "BAT's start", count: 3 });
      }
    }
    const { logOffset } = Header.read(image, HEADERS[0]);
    found.push({ name: "log", offset: logOffset, width: 4, count: 32, ...little });
    return found;
  },

  mend(image) {
    for (const offset of HEADERS) mendSum(image, offset, HEADER_BYTES);
    for (const offset of REGION_TABLES) mendSum(image, offset, TABLE_BYTES);
  },
};

function metadataRegions(image: Buffer, start: number): Region[] {
  const found = recordRegions("metadata", MetadataTable, start, little);
  for (let index = 0; index < MetadataTable.read(image, start).entryCount; index++) {
    const at = start + MetadataTable.size + index * MetadataEntry.size;
    const { offset, length } = MetadataEntry.read(image, at);
    found.push(...recordRegions("metadata entry", MetadataEntry, at, little));
    found.push({
      name: "metadata item",
      offset: start + offset,
      width: 4,
      count: Math.ceil(length / 4),
      ...little,
    });
  }
  return found;
}

function mendSum(image: Buffer, offset: number, bytes: number): void {
  if (offset + bytes > image.length) return;
  image.writeUInt32LE(0, offset + CHECKSUM_OFFSET);
  image.writeUInt32LE(crc32c(image.subarray(offset, offset + bytes)), offset + CHECKSUM_OFFSET);
}
