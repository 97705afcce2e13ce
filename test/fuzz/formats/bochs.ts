/** Bochs's growing disks: a header, a catalog of extents, a bitmap before each. Source: bochs's hdimage.h. */

import type { FuzzFormat } from "../format.ts";

const HEADER_BYTES = 512;
const EXTENT_BYTES = 4096;
const BITMAP_BYTES = 512;
const ENTRIES = 16;

export const bochs: FuzzFormat = {
  formatName: "bochs",
  writable: false,
  bases: async () => [
    { name: "version 1", content: growing(0x00010000) },
    { name: "version 2", content: growing(0x00020000) },
  ],
  regions: () => [
    { name: "magic", offset: 0, width: "text", count: 64 },
    { name: "header", offset: 64, width: 4, count: 8, littleEndian: true },
    { name: "disk", offset: 84, width: 8, count: 1, littleEndian: true },
    { name: "disk of version 2", offset: 88, width: 8, count: 1, littleEndian: true },
    { name: "catalog", offset: HEADER_BYTES, width: 4, count: ENTRIES, littleEndian: true },
    { name: "bitmap", offset: HEADER_BYTES + ENTRIES * 4, width: 1, count: BITMAP_BYTES },
  ],
};

/** With three extents, of which every other sector is there. */
function growing(version: number): Uint8Array {
  const extents = 3;
  const start = HEADER_BYTES + ENTRIES * 4;
  const image = Buffer.alloc(start + extents * (BITMAP_BYTES + EXTENT_BYTES), 0x77);
  image.fill(0, 0, HEADER_BYTES);
  image.write("Bochs Virtual HD Image", 0);
  image.write("Redolog", 32);
  image.write("Growing", 48);
  for (const [index, value] of [version, HEADER_BYTES, ENTRIES, BITMAP_BYTES, EXTENT_BYTES].entries())
    image.writeUInt32LE(value, 64 + index * 4);
  image.writeBigUInt64LE(BigInt(ENTRIES * EXTENT_BYTES), version === 0x00010000 ? 84 : 88);
  image.fill(0xff, HEADER_BYTES, start);
  for (let index = 0; index < extents; index++) {
    image.writeUInt32LE(index, HEADER_BYTES + index * 8);
    image.fill(
      0x55,
      start + index * (BITMAP_BYTES + EXTENT_BYTES),
      start + index * (BITMAP_BYTES + EXTENT_BYTES) + BITMAP_BYTES,
    );
  }
  return image;
}
