/** qcow2: its header, extensions, and all the tables that they lead to. Source: qcow2.txt. */

import fs from "node:fs";
import {
  BitmapDirectoryEntry,
  BitmapsExtension,
  CryptoHeader,
  HeaderAdditional,
  HeaderV2,
  HeaderV3,
  SnapshotHeader,
} from "../../../drivers/qcow2/layout.ts";
import { BlockBackend, open } from "../../../src/index.ts";
import { type Base, type FuzzFormat, type Region, recordRegions, type Workshop } from "../format.ts";

const SIZE = 2 ** 20;

export const qcow2: FuzzFormat = {
  formatName: "qcow2",
  writable: true,
  bases,
  regions,
};

/** Options of create. */
const VARIANTS: readonly {
  readonly name: string;
  readonly options: Readonly<Record<string, string | number | boolean>>;
}[] = [
  { name: "tiny", options: { cluster_size: 512 } },
  { name: "small", options: { cluster_size: 4096, lazy_refcounts: true } },
  { name: "subclusters", options: { cluster_size: 16384, extended_l2: true } },
  { name: "old", options: { cluster_size: 4096, compat: "0.10" } },
  { name: "zstd", options: { cluster_size: 4096, compression_type: "zstd" } },
  { name: "narrow", options: { cluster_size: 512, refcount_bits: 1 } },
  { name: "wide", options: { cluster_size: 1024, refcount_bits: 64 } },
  { name: "default", options: {} },
];

async function bases(workshop: Workshop): Promise<Base[]> {
  const made: Base[] = [];
  const add = (name: string, filename: string, openWith?: Base["options"]) =>
    made.push({ name, content: fs.readFileSync(filename), options: openWith });
  for (const { name, options } of VARIANTS) {
    const filename = workshop.path(`${name}.qcow2`);
    await workshop.create(filename, "qcow2", SIZE, options);
    await fill(filename);
    add(name, filename);
    const theirs = workshop.path(`${name}-qemu.qcow2`);
    const text = Object.entries(options).map(([key, value]) => `${key}=${value === true ? "on" : value}`);
    const given = text.length > 0 ? ["-o", text.join(",")] : [];
    if (!workshop.tool("qemu-img", "create", "-q", "-f", "qcow2", ...given, theirs, "1M")) continue;
    for (const command of ["write -P 7 0 70k", "write -z 128k 64k", "write -c -P 9 512k 64k"])
      workshop.tool("qemu-io", "-c", command, theirs);
    if (name === "small") {
      workshop.tool("qemu-img", "snapshot", "-c", "one", theirs);
      workshop.tool("qemu-img", "bitmap", "--add", "-g", "512", theirs, "dirty");
      workshop.tool("qemu-io", "-c", "write 300k 10k", theirs);
    }
    add(`${name} by qemu`, theirs);
  }
  const overlay = workshop.path("overlay.qcow2");
  fs.writeFileSync(workshop.path("below.raw"), "");
  await workshop.create(overlay, "qcow2", SIZE, {
    cluster_size: 4096,
    backing_file: "below.raw",
    backing_fmt: "raw",
  });
  add("overlay", overlay);
  const split = workshop.path("split.qcow2");
  await workshop.create(split, "qcow2", SIZE, { cluster_size: 4096, data_file: "data.raw" });
  add("data file", split);
  const secret = workshop.path("secret.qcow2");
  await workshop.create(secret, "qcow2", SIZE / 16, {
    cluster_size: 4096,
    "encrypt.format": "luks",
    "encrypt.key-secret": "key",
    "encrypt.iter-time": 1,
  });
  add("encrypted", secret, { "encrypt.key-secret": "key" });
  return made;
}

/** Data, zeroes, compressed data, and where they go a snapshot and a bitmap. */
async function fill(filename: string): Promise<void> {
  await using image: BlockBackend = await open(filename, { format: "qcow2", writable: true });
  const data = new Uint8Array(65536).map((_, index) => index >> 8);
  await image.write(0, data.fill(3, 0, 5000));
  await image.writeZeroes(128 * 1024, 65536);
  await image.write(512 * 1024, data, { compressed: true });
  await image.write(512 * 1024 + 65536, data.fill(8), { compressed: true });
  if (image.node.ops.supportsBitmaps?.())
    await image.bitmaps.add("dirty", { granularity: 4096, persistent: true }).catch(() => {});
  await image.snapshots.create("one").catch(() => {});
  await image.write(100, data.subarray(0, 9000));
}

const OFFSET_MASK = 0x00fffffffffffe00n;
const L1_FLAGS = [1n << 63n];
const L2_FLAGS = [1n << 63n, 1n << 62n, 1n, (1n << 62n) | 0xffn, (1n << 62n) | (0xffn << 48n)];

function regions(image: Buffer): Region[] {
  const header = HeaderV2.read(image);
  const v3 = header.version >= 3 ? HeaderV3.read(image, HeaderV2.size) : undefined;
  const clusterSize = 2 ** header.clusterBits;
  const entryBytes = v3 && (v3.incompatibleFeatures & 16n) !== 0n ? 16 : 8;
  const found: Region[] = [...recordRegions("header", HeaderV2, 0)];
  if (v3) {
    found.push(...recordRegions("header", HeaderV3, HeaderV2.size));
    found.push(...recordRegions("header", HeaderAdditional, HeaderV2.size + HeaderV3.size));
  }
  found.push(...extensionRegions(image, v3?.headerLength ?? HeaderV2.size));
  if (header.backingFileOffset > 0)
    found.push({
      name: "backing file",
      offset: header.backingFileOffset,
      width: "text",
      count: header.backingFileSize,
    });
  found.push(...l1Regions(image, "L1", header.l1TableOffset, header.l1Size, clusterSize, entryBytes));
  const refcountBits = 2 ** (v3?.refcountOrder ?? 4);
  found.push({
    name: "refcount table",
    offset: header.refcountTableOffset,
    width: 8,
    count: clusterSize / 8,
    unit: 1,
  });
  for (const block of entries(image, header.refcountTableOffset, clusterSize / 8).slice(0, 2))
    found.push({
      name: "refcount block",
      offset: block,
      width: refcountBits <= 8 ? 1 : ((refcountBits / 8) as 2 | 4 | 8),
      count: Math.min(clusterSize, (clusterSize * 8) / refcountBits),
    });
  let at = header.snapshotsOffset;
  for (let index = 0; index < Math.min(header.nbSnapshots, 4) && at > 0; index++) {
    found.push(...recordRegions("snapshot", SnapshotHeader, at));
    const { l1TableOffset, l1Size, extraDataSize, idSize, nameSize } = SnapshotHeader.read(image, at);
    found.push(...l1Regions(image, "snapshot's L1", Number(l1TableOffset), l1Size, clusterSize, entryBytes));
    found.push({
      name: "snapshot's extra data",
      offset: at + SnapshotHeader.size,
      width: 8,
      count: extraDataSize / 8,
    });
    const names = at + SnapshotHeader.size + extraDataSize;
    found.push({ name: "snapshot's name", offset: names, width: "text", count: idSize + nameSize });
    at = Math.ceil((names + idSize + nameSize) / 8) * 8;
  }
  return found;
}

function extensionRegions(image: Buffer, start: number): Region[] {
  const found: Region[] = [];
  for (let at = start; at + 8 <= image.length; ) {
    const type = image.readUInt32BE(at);
    const length = image.readUInt32BE(at + 4);
    found.push({ name: "extension", offset: at, width: 4, count: 2 });
    if (type === 0) break;
    const data = at + 8;
    if (type === 0x23852875) {
      found.push(...recordRegions("bitmaps", BitmapsExtension, data));
      found.push(...bitmapRegions(image, BitmapsExtension.read(image, data).directoryOffset));
    } else if (type === 0x0537be77) found.push(...recordRegions("crypto header", CryptoHeader, data));
    else found.push({ name: "extension's data", offset: data, width: "text", count: length });
    at = data + Math.ceil(length / 8) * 8;
  }
  return found;
}

function bitmapRegions(image: Buffer, offset: number): Region[] {
  const { tableOffset, tableSize, extraDataSize } = BitmapDirectoryEntry.read(image, offset);
  const name = offset + BitmapDirectoryEntry.size + extraDataSize;
  return [
    ...recordRegions("bitmap", BitmapDirectoryEntry, offset),
    { name: "bitmap table", offset: tableOffset, width: 8, count: tableSize, unit: 1, flags: [1n] },
    { name: "bitmap's name", offset: name, width: "text", count: 8 },
  ];
}

function l1Regions(
  image: Buffer,
  name: string,
  offset: number,
  size: number,
  clusterSize: number,
  entryBytes: number,
): Region[] {
  const found: Region[] = [{ name, offset, width: 8, count: size, unit: 1, flags: L1_FLAGS }];
  for (const table of entries(image, offset, size).slice(0, 3)) {
    const count = clusterSize / 8;
    found.push({ name: `${name}'s L2`, offset: table, width: 8, count, unit: 1, flags: L2_FLAGS });
    // Where there are subclusters, every other number is a bitmap.
    if (entryBytes === 16)
      found.push({ name: `${name}'s subclusters`, offset: table + 8, width: 8, count: count - 1 });
    const compressed = compressedIn(image, table, count);
    if (compressed !== undefined)
      found.push({ name: "compressed data", offset: compressed, width: "bytes", count: 64 });
  }
  return found;
}

/** Where the first compressed cluster of a table lies. */
function compressedIn(image: Buffer, table: number, count: number): number | undefined {
  for (let index = 0; index < count && table + index * 8 + 8 <= image.length; index++) {
    const entry = image.readBigUInt64BE(table + index * 8);
    if ((entry & (1n << 62n)) !== 0n) return Number(entry & 0xffffffffffn);
  }
  return undefined;
}

/** Offsets that a table names, without its empty entries. */
function entries(image: Buffer, offset: number, count: number): number[] {
  const found: number[] = [];
  for (let index = 0; index < count && offset + index * 8 + 8 <= image.length; index++) {
    const entry = Number(image.readBigUInt64BE(offset + index * 8) & OFFSET_MASK);
    if (entry > 0) found.push(entry);
  }
  return found;
}
