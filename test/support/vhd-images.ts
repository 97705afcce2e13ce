/** VHD and VHDX images with single fields changed, their checksums made right again: for drivers to refuse, or not, as qemu does. */

import {
  checksumOf,
  HEADER_BYTES,
  HEADER_OFFSETS,
  REGION_TABLE_OFFSETS,
  TABLE_BYTES,
} from "../../drivers/vhdx/layout.ts";
import { DynamicHeader, Footer, checksumOf as vhdChecksum } from "../../drivers/vpc/layout.ts";

/** Bytes of a number, at an offset in the record that is changed. */
export type Change = readonly [
  offset: number,
  width: "u8" | "u16" | "u32" | "u64" | "text",
  value: number | bigint | string,
];

const BYTES = { u8: 1, u16: 2, u32: 4, u64: 8 } as const;

function patch(image: Buffer, base: number, isLittle: boolean, changes: readonly Change[]): void {
  for (const [offset, width, value] of changes) {
    const at = base + offset;
    if (width === "text") image.write(String(value), at, "latin1");
    else {
      const number = Buffer.alloc(8);
      if (isLittle) number.writeBigUInt64LE(BigInt(value));
      else number.writeBigUInt64BE(BigInt(value));
      const bytes = BYTES[width];
      image.set(isLittle ? number.subarray(0, bytes) : number.subarray(8 - bytes), at);
    }
  }
}

/** Changes the footer at `offset`. */
export function withFooter(image: Uint8Array, offset: number, ...changes: readonly Change[]): Buffer {
  const copy = Buffer.from(image);
  patch(copy, offset, false, changes);
  const footer = copy.subarray(offset, offset + Footer.size);
  footer.writeUInt32BE(vhdChecksum(footer, Footer.offsetOf.checksum), Footer.offsetOf.checksum);
  return copy;
}

/** Changes the dynamic header, right behind the footer at the start. */
export function withDynamicHeader(image: Uint8Array, ...changes: readonly Change[]): Buffer {
  const copy = Buffer.from(image);
  patch(copy, Footer.size, false, changes);
  const header = copy.subarray(Footer.size, Footer.size + DynamicHeader.size);
  header.writeUInt32BE(vhdChecksum(header, DynamicHeader.offsetOf.checksum), DynamicHeader.offsetOf.checksum);
  return copy;
}

/** Changes bytes that no checksum covers: of the table of blocks. */
export function withEntry(image: Uint8Array, offset: number, value: number): Buffer {
  const copy = Buffer.from(image);
  copy.writeUInt32BE(value, offset);
  return copy;
}

/** Changes both headers of a VHDX, or only those named. */
export function withHeaders(
  image: Uint8Array,
  changes: readonly Change[],
  which: readonly number[] = [0, 1],
): Buffer {
  const copy = Buffer.from(image);
  for (const index of which) {
    const offset = HEADER_OFFSETS[index] as number;
    patch(copy, offset, true, changes);
    seal(copy.subarray(offset, offset + HEADER_BYTES));
  }
  return copy;
}

/** Changes both region tables. */
export function withRegions(image: Uint8Array, ...changes: readonly Change[]): Buffer {
  const copy = Buffer.from(image);
  for (const offset of REGION_TABLE_OFFSETS) {
    patch(copy, offset, true, changes);
    seal(copy.subarray(offset, offset + TABLE_BYTES));
  }
  return copy;
}

/** Changes bytes of a VHDX that no checksum covers. */
export function withBytes(image: Uint8Array, offset: number, ...changes: readonly Change[]): Buffer {
  const copy = Buffer.from(image);
  patch(copy, offset, true, changes);
  return copy;
}

/** Makes the checksum of a VHDX record right: in the file, where it lies, and nothing else. */
function seal(record: Buffer): void {
  record.writeUInt32LE(checksumOf(record), 4);
}

/** A name of the parent as an image stores it. */
export interface StoredName {
  /** "W2ru", "MacX", ... */
  readonly code: string;
  readonly data: Uint8Array;
}

export interface ChildVhd {
  /** Bytes of the disk. */
  readonly size: number;
  readonly blockSize: number;
  /** The parent's footer, for its identity. */
  readonly parentFooter: Uint8Array;
  readonly names: readonly StoredName[];
  readonly unicodeName?: string;
  /** XenServer's map behind the table: which blocks are all here. */
  readonly batmap?: Uint8Array;
}

/** A differencing VHD of which no block is here. */
export function childVhd({
  size,
  blockSize,
  parentFooter,
  names,
  unicodeName = "",
  batmap,
}: ChildVhd): Buffer {
  const entries = Math.ceil(size / blockSize);
  const table = Buffer.alloc(Math.ceil((entries * 4) / 512) * 512, 0xff);
  const header = Buffer.alloc(DynamicHeader.size);
  const footer = Buffer.from(parentFooter);
  footer.writeBigUInt64BE(512n, Footer.offsetOf.dataOffset);
  footer.writeBigUInt64BE(BigInt(size), Footer.offsetOf.currentSize);
  footer.write("win ", Footer.offsetOf.creatorApplication);
  footer.writeUInt32BE(4, Footer.offsetOf.diskType);
  footer[Footer.offsetOf.uniqueId] = 255 - (footer[Footer.offsetOf.uniqueId] as number);
  header.write("cxsparse");
  header.fill(0xff, 8, 16);
  header.writeBigUInt64BE(1536n, DynamicHeader.offsetOf.tableOffset);
  header.writeUInt32BE(0x10000, DynamicHeader.offsetOf.headerVersion);
  header.writeUInt32BE(entries, DynamicHeader.offsetOf.maxTableEntries);
  header.writeUInt32BE(blockSize, DynamicHeader.offsetOf.blockSize);
  header.set(parentFooter.subarray(68, 84), DynamicHeader.offsetOf.parentUniqueId);
  header.set(Buffer.from(unicodeName, "utf16le").swap16(), DynamicHeader.offsetOf.parentUnicodeName);
  const parts = [footer, header, table];
  let end = 1536 + table.length;
  const append = (data: Uint8Array) => {
    const padded = Buffer.alloc(Math.ceil(data.length / 512) * 512);
    padded.set(data);
    parts.push(padded);
    end += padded.length;
  };
  if (batmap) {
    const map = Buffer.alloc(512);
    map.write("tdbatmap");
    map.writeBigUInt64BE(BigInt(end + 512), 8);
    map.writeUInt32BE(1, 16);
    map.writeUInt32BE(0x10002, 20);
    const bits = Buffer.alloc(512);
    bits.set(batmap);
    map.writeUInt32BE(vhdChecksum(bits), 24);
    append(map);
    append(bits);
  }
  for (const [index, { code, data }] of names.entries()) {
    const at = DynamicHeader.offsetOf.parentLocators + index * 24;
    header.write(code, at, "latin1");
    header.writeUInt32BE(512, at + 4);
    header.writeUInt32BE(data.length, at + 8);
    header.writeBigUInt64BE(BigInt(end), at + 16);
    append(data);
  }
  const image = Buffer.concat([...parts, footer]);
  const sealed = withDynamicHeader(withFooter(image, 0), [0, "text", "cxsparse"]);
  return withFooter(sealed, sealed.length - 512);
}

export function windowsName(code: string, name: string): StoredName {
  return { code, data: Buffer.from(name, "utf16le") };
}
