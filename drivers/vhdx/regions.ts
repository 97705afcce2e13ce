/** Where the table and the metadata lie.  @qemu vhdx_open_region_tables */

import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { openFailed } from "../opening.ts";
import {
  checksumOf,
  Guid,
  hex,
  MAX_TABLE_ENTRIES,
  REGION_TABLE_OFFSETS,
  RegionEntry,
  RegionTable,
  Signature,
  TABLE_BYTES,
} from "./layout.ts";
import type { Region } from "./state.ts";

export interface FoundRegions {
  readonly bat: Region;
  readonly metadata: Region;
  /** With the log; the last first. */
  readonly all: readonly Region[];
}

export async function readRegions(
  co: Coroutine<"read">,
  file: BlockChild,
  log: Region,
  tellError: (message: string) => void,
): Promise<FoundRegions> {
  const table = await readTable(co, file);
  const { entryCount } = RegionTable.read(table);
  const all: Region[] = [log];
  let bat: Region | undefined;
  let metadata: Region | undefined;
  for (let index = 0; index < entryCount; index++) {
    const entry = RegionEntry.read(table, RegionTable.size + index * RegionEntry.size);
    const region = { offset: entry.fileOffset, bytes: entry.length };
    if (region.bytes > 0 || region.offset > 0) {
      const overlap = findOverlap(all, region);
      if (overlap) {
        tellError(overlap);
        throw openFailed(file, "EINVAL");
      }
      all.unshift(region);
    }
    const guid = hex(entry.guid);
    if (guid === Guid.Bat && !bat) bat = region;
    else if (guid === Guid.Metadata && !metadata) metadata = region;
    else if (guid === Guid.Bat || guid === Guid.Metadata) throw openFailed(file, "EINVAL");
    // What must be known, and is not, may be anything.
    else if (entry.required % 2 === 1) throw openFailed(file, "ENOTSUP");
  }
  if (!bat || !metadata) throw openFailed(file, "EINVAL");
  return { bat, metadata, all };
}

/** The first of both copies that is whole. */
async function readTable(co: Coroutine<"read">, file: BlockChild): Promise<Uint8Array> {
  for (const offset of REGION_TABLE_OFFSETS) {
    const table = await file.preadBytes(co, offset, TABLE_BYTES);
    const { signature, checksum, entryCount } = RegionTable.read(table);
    const isWhole = signature === Signature.Region && checksum === checksumOf(table);
    if (isWhole && entryCount <= MAX_TABLE_ENTRIES) return table;
  }
  throw openFailed(file, "EINVAL");
}

/** What is said where a new region meets one that is known; undefined: it does not.  @qemu vhdx_region_check */
export function findOverlap(known: readonly Region[], { offset, bytes }: Region): string | undefined {
  const other = known.find((each) => offset < each.offset + each.bytes && each.offset < offset + bytes);
  if (!other) return undefined;
  const range = (region: Region) => `${BigInt(region.offset)}-${BigInt(region.offset + region.bytes)}`;
  return `VHDX region ${range({ offset, bytes })} overlaps with region ${range(other)}`;
}
