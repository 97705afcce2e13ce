/** UDIF (dmg): a trailer, and tables of chunks in a property list. Source: "Demystifying the DMG File Format". */

import { deflateSync } from "node:zlib";
import { Chunk, Koly, Mish } from "../../../drivers/dmg/layout.ts";
import { type FuzzFormat, type Region, recordRegions } from "../format.ts";

const SECTOR = 512;
const CHUNK_SECTORS = 64;

export const dmg: FuzzFormat = {
  formatName: "dmg",
  writable: false,
  bases: async () => [
    { name: "zlib", content: makeImage(false) },
    { name: "resource fork", content: makeImage(true) },
  ],

  regions(image) {
    const trailer = image.length - Koly.size;
    const koly = Koly.read(image, trailer);
    const found: Region[] = recordRegions("trailer", Koly, trailer).map((region) =>
      region.name.endsWith("Offset") ? { ...region, unit: 1 } : region,
    );
    found.push({ name: "list", offset: koly.plistOffset, width: "text", count: koly.plistLength });
    const table = image.indexOf("mish");
    if (table >= 0) {
      found.push(...recordRegions("table", Mish, table));
      for (const index of [0, 1, 2])
        found.push(...recordRegions("chunk", Chunk, table + Mish.size + index * Chunk.size));
    }
    found.push({ name: "data", offset: 0, width: "bytes", count: 200 });
    return found;
  },
};

/** Three chunks: compressed, plain, zeroes. */
function makeImage(asFork: boolean): Buffer {
  const packed = deflateSync(Buffer.alloc(CHUNK_SECTORS * SECTOR, "some text "));
  const plain = Buffer.alloc(CHUNK_SECTORS * SECTOR, 7);
  const data = Buffer.concat([packed, plain]);
  const chunks = [
    { type: 0x80000005, sector: 0, offset: 0, length: packed.length },
    { type: 1, sector: CHUNK_SECTORS, offset: packed.length, length: plain.length },
    { type: 0, sector: 2 * CHUNK_SECTORS, offset: 0, length: 0 },
    { type: 0xffffffff, sector: 3 * CHUNK_SECTORS, offset: 0, length: 0 },
  ];
  const sectorCount = 3 * CHUNK_SECTORS;
  // How many chunks there are is the last number before them.
  const rest = Buffer.alloc(172);
  rest.writeUInt32BE(chunks.length, 168);
  const mish = Buffer.concat([
    Mish.write({
      magic: 0x6d697368,
      version: 1,
      firstSector: 0,
      sectorCount,
      dataOffset: 0,
      rest,
    }),
    ...chunks.map((chunk) => Chunk.write({ ...chunk, comment: 0, sectors: CHUNK_SECTORS })),
  ]);
  const list = Buffer.from(
    `<?xml version="1.0"?>\n<plist><dict><key>resource-fork</key><dict><key>blkx</key><array><dict><key>Data</key><data>\n${mish.toString("base64")}\n</data></dict></array></dict></dict></plist>\n`,
  );
  const fork = resourceFork(mish);
  const body = asFork ? fork : list;
  const zeroes = new Uint8Array(136);
  const koly = Koly.write({
    magic: 0x6b6f6c79,
    version: 4,
    headerSize: 512,
    flags: 1,
    runningDataForkOffset: 0,
    dataForkOffset: 0,
    dataForkLength: data.length,
    resourceForkOffset: asFork ? data.length : 0,
    resourceForkLength: asFork ? fork.length : 0,
    segment: zeroes.subarray(0, 24),
    dataChecksum: zeroes,
    plistOffset: asFork ? 0 : data.length,
    plistLength: asFork ? 0 : list.length,
    reserved: zeroes.subarray(0, 120),
    checksum: zeroes,
    imageVariant: 1,
    sectorCount,
    end: zeroes.subarray(0, 12),
  });
  return Buffer.concat([data, body, koly]);
}

/** Its header, then each table behind its length. */
function resourceFork(mish: Buffer): Buffer {
  const head = Buffer.alloc(256 + 4);
  head.writeUInt32BE(256, 0);
  head.writeUInt32BE(256 + 4 + mish.length, 4);
  head.writeUInt32BE(4 + mish.length, 8);
  head.writeUInt32BE(mish.length, 256);
  return Buffer.concat([head, mish]);
}
