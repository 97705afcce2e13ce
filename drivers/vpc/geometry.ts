/** How long a disk is: by cylinders, heads and sectors, or by a number of bytes. Source: the specification's appendix "CHS Calculation". */

import { divideRoundUp, SECTOR_SIZE } from "../../src/block/units.ts";
import { type Footer, text } from "./layout.ts";

export interface Geometry {
  readonly cylinders: number;
  readonly heads: number;
  readonly sectorsPerTrack: number;
}

/** The largest that a VHD names. Disks from there on have their size in bytes alone.  @qemu VHD_CHS_MAX_C */
export const MAX_GEOMETRY: Geometry = { cylinders: 65535, heads: 16, sectorsPerTrack: 255 };

export const MAX_GEOMETRY_SECTORS = sectorsOf(MAX_GEOMETRY);

export type SizeRule = "chs" | "current_size";

/** These write the size that they mean; all others, Virtual PC among them, follow the geometry. */
const CREATORS_BY_SIZE: readonly string[] = ["win ", "qem2", "d2v ", "tap\0", "CTXS"];

export function sectorsOf({ cylinders, heads, sectorsPerTrack }: Geometry): number {
  return cylinders * heads * sectorsPerTrack;
}

/** Sectors of the disk; `rule` is what the user wants. */
export function diskSectors(footer: Footer, rule: SizeRule | undefined): number {
  const byGeometry = sectorsOf(footer);
  const isBySize =
    rule === undefined ? CREATORS_BY_SIZE.includes(text(footer.creatorApplication)) : rule === "current_size";
  if (!isBySize && byGeometry !== MAX_GEOMETRY_SECTORS) return byGeometry;
  return Math.floor(footer.currentSize / SECTOR_SIZE);
}

/** The geometry that the specification gives a disk of so many sectors: of at most so many. */
function geometryOf(wanted: number): Geometry {
  const sectors = Math.min(wanted, MAX_GEOMETRY_SECTORS);
  if (sectors >= 65535 * 16 * 63) return withTracks(sectors, 255, 16);
  const tracks17 = Math.floor(sectors / 17);
  const heads17 = Math.max(divideRoundUp(tracks17, 1024), 4);
  if (tracks17 < heads17 * 1024 && heads17 <= 16) return withTracks(sectors, 17, heads17);
  if (Math.floor(sectors / 31) < 16 * 1024) return withTracks(sectors, 31, 16);
  return withTracks(sectors, 63, 16);
}

function withTracks(sectors: number, sectorsPerTrack: number, heads: number): Geometry {
  return { cylinders: Math.floor(Math.floor(sectors / sectorsPerTrack) / heads), heads, sectorsPerTrack };
}

/** The smallest geometry that has room for so many sectors; the largest there is where none has.  @qemu calculate_rounded_image_size */
export function roundedGeometry(sectors: number): Geometry {
  if (sectors === 0) return { cylinders: 0, heads: 0, sectorsPerTrack: 0 };
  for (let tried = sectors; tried < MAX_GEOMETRY_SECTORS; tried++) {
    const geometry = geometryOf(tried);
    if (sectorsOf(geometry) >= sectors) return geometry;
  }
  return MAX_GEOMETRY;
}
