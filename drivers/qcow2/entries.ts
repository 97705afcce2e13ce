/** Entries of L1 and L2 tables and of refcount blocks, as two 32-bit halves.  Source: qcow2.txt, "Cluster mapping", "Extended L2 Entries", "Host cluster management" */

/** High half: refcount is exactly 1.  @qemu QCOW_OFLAG_COPIED */
export const COPIED_HIGH = 0x80000000;
/** High half.  @qemu QCOW_OFLAG_COMPRESSED */
export const COMPRESSED_HIGH = 0x40000000;
/** Low half: reads as zeroes; not with extended L2.  @qemu QCOW_OFLAG_ZERO */
export const ZERO_LOW = 1;
const OFFSET_HIGH_MASK = 0x00ffffff;
const OFFSET_LOW_MASK = 0xfffffe00;

const TWO_32 = 2 ** 32;

/** The host offset in an L1, L2 or refcount table entry. */
export function entryOffset(high: number, low: number): number {
  return (high & OFFSET_HIGH_MASK) * TWO_32 + ((low & OFFSET_LOW_MASK) >>> 0);
}

/** The same of entry `index` of a table of 8-byte entries. */
export function tableOffset(table: DataView, index: number): number {
  return entryOffset(table.getUint32(index * 8), table.getUint32(index * 8 + 4));
}

export function isCopied(table: DataView, index: number): boolean {
  return table.getUint8(index * 8) >= 0x80;
}

/** Writes an entry of 8 bytes at `position` of a table. */
export function setEntry(table: DataView, position: number, hostOffset: number, copied: boolean): void {
  const high = Math.floor(hostOffset / TWO_32);
  table.setUint32(position, copied ? (high | COPIED_HIGH) >>> 0 : high);
  table.setUint32(position + 4, hostOffset % TWO_32);
}

/** A compressed cluster: where its bytes are. @qemu qcow2_parse_compressed_l2_entry */
export interface CompressedExtent {
  readonly hostOffset: number;
  /** Up to the end of its last sector: the stream ends somewhere within. */
  readonly bytes: number;
}

export function parseCompressed(high: number, low: number, clusterBits: number): CompressedExtent {
  // 62 bits: the sector count over the offset, the split 62 - (clusterBits - 8) bits up: in the high half always.
  const shift = 62 - (clusterBits - 8) - 32;
  const offsetHigh = high & ((1 << shift) - 1);
  const sectors = ((high & 0x3fffffff) >>> shift) + 1;
  const hostOffset = offsetHigh * TWO_32 + low;
  return { hostOffset, bytes: sectors * 512 - (low & 511) };
}

/** The two halves of the entry for `bytes` compressed bytes at `hostOffset`. */
export function compressedEntry(
  hostOffset: number,
  bytes: number,
  clusterBits: number,
): readonly [high: number, low: number] {
  const shift = 62 - (clusterBits - 8) - 32;
  const sectors = Math.floor((hostOffset + bytes - 1) / 512) - Math.floor(hostOffset / 512);
  const high = COMPRESSED_HIGH | (sectors << shift) | Math.floor(hostOffset / TWO_32);
  return [high >>> 0, hostOffset % TWO_32];
}

export interface RefcountAccess {
  readonly max: number;
  readonly get: (block: DataView, index: number) => number;
  readonly set: (block: DataView, index: number, value: number) => void;
}

/** Refcounts of 1 << `order` bits; below 8 bits the lowest bits of a byte come first. */
export function refcountAccess(order: number): RefcountAccess {
  switch (order) {
    case 3:
      return {
        max: 0xff,
        get: (block, index) => block.getUint8(index),
        set: (block, index, value) => block.setUint8(index, value),
      };
    case 4:
      return {
        max: 0xffff,
        get: (block, index) => block.getUint16(index * 2),
        set: (block, index, value) => block.setUint16(index * 2, value),
      };
    case 5:
      return {
        max: 0xffffffff,
        get: (block, index) => block.getUint32(index * 4),
        set: (block, index, value) => block.setUint32(index * 4, value),
      };
    case 6:
      return {
        // Past this a number is no longer exact; no image has so many references to a cluster.
        max: Number.MAX_SAFE_INTEGER,
        get: (block, index) => block.getUint32(index * 8) * TWO_32 + block.getUint32(index * 8 + 4),
        set: (block, index, value) => {
          block.setUint32(index * 8, Math.floor(value / TWO_32));
          block.setUint32(index * 8 + 4, value % TWO_32);
        },
      };
    default:
      return subByteAccess(2 ** order);
  }
}

function subByteAccess(bits: number): RefcountAccess {
  const max = 2 ** bits - 1;
  const perByte = 8 / bits;
  return {
    max,
    get: (block, index) => (block.getUint8(Math.floor(index / perByte)) >> ((index % perByte) * bits)) & max,
    set: (block, index, value) => {
      const at = Math.floor(index / perByte);
      const shift = (index % perByte) * bits;
      block.setUint8(at, (block.getUint8(at) & ~(max << shift)) | (value << shift));
    },
  };
}

/** As C's %#x prints it. */
export function hex(value: number): string {
  return value === 0 ? "0" : `0x${value.toString(16)}`;
}

/**
 * How many entries from `index` on, at most `limit - index`, name host clusters in a row, all of them plain and all the
 * image's own; 0: not even the first. For tables of 8-byte entries: this is most of what there is in most images, and
 * all of the time that walking them takes.
 */
export function plainRun(view: DataView, index: number, limit: number, clusterSize: number): number {
  let high = view.getUint32(index * 8);
  let low = view.getUint32(index * 8 + 4);
  if (high >>> 24 !== 0x80 || low % clusterSize !== 0 || (low === 0 && high === COPIED_HIGH)) return 0;
  let next = index + 1;
  for (;;) {
    low += clusterSize;
    if (low === TWO_32) {
      low = 0;
      high++;
      if (high >>> 24 !== 0x80) return next - index;
    }
    const end = Math.min(limit, next + PIECE_ENTRIES, next + (TWO_32 - low) / clusterSize);
    const same = countRow(view, next, end, high | 0, low | 0, clusterSize);
    next += same;
    if (next < end || next === limit) return next - index;
    low += (same - 1) * clusterSize;
  }
}

/** Of so many a call V8 sees the end of the loop before it compiles it: what it did not see makes it begin anew. */
const PIECE_ENTRIES = 512;

/** All in 32-bit integers, which larger numbers would slow down. */
function countRow(
  view: DataView,
  from: number,
  to: number,
  high: number,
  low: number,
  clusterSize: number,
): number {
  let expected = low;
  let index = from;
  while (index < to && view.getInt32(index * 8 + 4) === expected && view.getInt32(index * 8) === high) {
    expected = (expected + clusterSize) | 0;
    index++;
  }
  return index - from;
}
