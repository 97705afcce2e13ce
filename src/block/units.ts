/** Sizes and alignment arithmetic. Offsets are plain numbers, exact up to 2^53 - 1, so no bit operator appears here. */

export const KiB = 1024;
export const MiB = 1024 * KiB;
export const GiB = 1024 * MiB;
export const TiB = 1024 * GiB;

/** The unit of `totalSectors`.  @qemu BDRV_SECTOR_SIZE */
export const SECTOR_SIZE = 512;

/**
 * The longest node, in bytes: the largest safe integer, aligned down to 1 GiB so that aligning an offset up
 * never leaves the safe range.  @qemu BDRV_MAX_LENGTH (there: 2^63, aligned down likewise)
 */
export const MAX_LENGTH = 2 ** 53 - GiB;

/** The longest single request, in bytes.  @qemu BDRV_REQUEST_MAX_BYTES */
export const MAX_REQUEST_BYTES = 2 ** 31 - SECTOR_SIZE;

export function alignDown(value: number, alignment: number): number {
  return value - (value % alignment);
}

export function alignUp(value: number, alignment: number): number {
  const rest = value % alignment;
  return rest === 0 ? value : value - rest + alignment;
}

export function isAligned(value: number, alignment: number): boolean {
  return value % alignment === 0;
}

export function isPowerOfTwo(value: number): boolean {
  return value > 0 && Number.isSafeInteger(value) && 2 ** Math.round(Math.log2(value)) === value;
}

export function divideRoundUp(value: number, by: number): number {
  return Math.ceil(value / by);
}
