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
export function seal(record: Buffer): void {
  record.writeUInt32LE(checksumOf(record), 4);
}
