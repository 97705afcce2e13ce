/** Opening sparse extents: those of hosted products ("KDMV") and those of ESX ("COWD").  Source: "Virtual Disk Format 1.1". */

import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { alignUp, divideRoundUp, MAX_LENGTH, SECTOR_SIZE } from "../../src/block/units.ts";
import { GrainTables, type GrainTablesOptions } from "./grain-tables.ts";
import {
  COWD_TABLE_ENTRIES,
  Compression,
  CowdHeader,
  DIRECTORY_AT_END,
  HeaderFlag,
  MAX_COMPRESSED_GRAIN_BYTES,
  MAX_DIRECTORY_ENTRIES,
  MAX_GRAIN_SECTORS,
  MAX_TABLE_ENTRIES,
  Magic,
  Marker,
  MarkerType,
  SparseHeader,
  type SparseHeaderRecord,
} from "./layout.ts";
import type { SparseExtent } from "./state.ts";

/** What a sparse file says of itself. */
export type SparseContent = Omit<SparseExtent, "start" | "end" | "access" | "type"> & {
  readonly bytes: number;
};

/** The extent, or where there is a descriptor in its place. */
export type OpenedSparse =
  | {
      readonly content: SparseContent;
      /** Room for a descriptor behind the header; 0: not told. */
      readonly descriptorBytes: number;
      readonly readOnlyReason: string | undefined;
    }
  | { readonly content?: undefined; readonly descriptorOffset: number; readonly readOnlyReason?: undefined };

const VERSION_3_ONLY_READ = "VMDK version 3 must be read only";

/** @qemu vmdk_open_vmdk4 */
export async function openHosted(
  co: Coroutine<"read">,
  file: BlockChild,
  isWritten: boolean,
): Promise<OpenedSparse> {
  let header = SparseHeader.read(await readHeader(co, file, SparseHeader.size));
  if (header.capacity === 0 && header.descriptorOffset > 0)
    return { descriptorOffset: header.descriptorOffset * SECTOR_SIZE };
  const isAtEnd = header.directoryOffset === DIRECTORY_AT_END;
  if (isAtEnd) header = await readFooter(co, file);
  const isCompressed = header.compression === Compression.Deflate;
  const { version, flags, tableEntries, grainSize, capacity } = header;
  if (version > 3) throw new BlockError("ENOTSUP", `Unsupported VMDK version ${version}`);
  const isReadOnly = version === 3 && !isCompressed;
  if (isReadOnly && isWritten) throw new BlockError("EINVAL", VERSION_3_ONLY_READ);
  if (tableEntries > MAX_TABLE_ENTRIES) throw new BlockError("EINVAL", "L2 table size too big");
  const sectorsATable = tableEntries * grainSize;
  if (sectorsATable === 0) throw new BlockError("EINVAL", "L1 entry size is invalid");
  await checkLength(co, file, header);
  const hasZeroGrains = (flags & HeaderFlag.ZeroGrain) !== 0;
  const content = await makeExtent(co, file, capacity, grainSize, {
    directoryOffset: header.directoryOffset * SECTOR_SIZE,
    directoryEntries: divideRoundUp(capacity, sectorsATable),
    backupDirectoryOffset:
      (flags & HeaderFlag.BackupDirectory) !== 0 ? header.backupDirectoryOffset * SECTOR_SIZE : undefined,
    tableEntries,
    hasZeroGrains,
  });
  if (isCompressed && content.grainBytes > MAX_COMPRESSED_GRAIN_BYTES) throw invalidGranularity();
  const hasMarkers = (flags & HeaderFlag.Markers) !== 0;
  return {
    content: {
      ...content,
      isCompressed,
      hasMarkers,
      endHeader: isAtEnd ? SparseHeader.write(header) : undefined,
    },
    descriptorBytes: header.descriptorSize * SECTOR_SIZE,
    readOnlyReason: isReadOnly ? VERSION_3_ONLY_READ : undefined,
  };
}

/** A file that ends before its data begins has lost its tables. */
async function checkLength(
  co: Coroutine<"read">,
  file: BlockChild,
  { grainOffset }: SparseHeaderRecord,
): Promise<void> {
  if ((await file.getLength(co)) >= Number(grainOffset) * SECTOR_SIZE) return;
  // The number of 64 bits that it becomes there.
  const expected = BigInt.asIntN(64, grainOffset * BigInt(SECTOR_SIZE));
  throw new BlockError("EINVAL", `File truncated, expecting at least ${expected} bytes`);
}

/** Of a stream: the header that was written at its end, when all was known. */
async function readFooter(co: Coroutine<"read">, file: BlockChild): Promise<SparseHeaderRecord> {
  const footer = new Uint8Array(3 * SECTOR_SIZE);
  try {
    const offset = (await file.getLength(co)) - footer.length;
    if (offset < 0) throw new BlockError("EINVAL");
    await file.pread(co, offset, footer);
  } catch (error) {
    throw BlockError.wrap("Failed to read footer", error);
  }
  const start = Marker.read(footer);
  const header = SparseHeader.read(footer, SECTOR_SIZE);
  const end = Marker.read(footer, 2 * SECTOR_SIZE);
  const isFooter =
    header.magic === Magic.Hosted &&
    start.size === 0 &&
    start.type === MarkerType.Footer &&
    end.sectors === 0 &&
    end.size === 0 &&
    end.type === MarkerType.EndOfStream;
  if (!isFooter) throw new BlockError("EINVAL", "Invalid footer");
  return header;
}

/** @qemu vmdk_open_vmfs_sparse */
export async function openCowd(co: Coroutine<"read">, file: BlockChild): Promise<SparseContent> {
  const header = CowdHeader.read(await readHeader(co, file, CowdHeader.size));
  if (header.grainSize === 0) throw invalidGranularity();
  return makeExtent(co, file, header.capacity, header.grainSize, {
    directoryOffset: header.directoryOffset * SECTOR_SIZE,
    directoryEntries: header.directoryEntries,
    tableEntries: COWD_TABLE_ENTRIES,
    hasZeroGrains: false,
  });
}

async function readHeader(co: Coroutine<"read">, file: BlockChild, bytes: number): Promise<Uint8Array> {
  try {
    return await file.preadBytes(co, 0, bytes);
  } catch (error) {
    throw BlockError.wrap(`Could not read header from file '${file.node.filename}'`, error);
  }
}

function invalidGranularity(): BlockError {
  return new BlockError("EFBIG", "Invalid granularity, image may be corrupt");
}

/** Checks the sizes, and reads the directory's first entries; sizes are in sectors.  @qemu vmdk_add_extent, vmdk_init_tables */
export async function makeExtent(
  co: Coroutine<"read">,
  file: BlockChild,
  capacity: number,
  grainSectors: number,
  tables: Omit<GrainTablesOptions, "file">,
): Promise<SparseContent> {
  if (grainSectors > MAX_GRAIN_SECTORS) throw invalidGranularity();
  if (tables.directoryEntries > MAX_DIRECTORY_ENTRIES) throw new BlockError("EFBIG", "L1 size too big");
  const grainBytes = grainSectors * SECTOR_SIZE;
  const grainTables = new GrainTables({ file, ...tables });
  const refuse = (which: string, cause: unknown) =>
    BlockError.wrap(`Could not read ${which} table from extent '${file.node.filename}'`, cause);
  for (const offset of [tables.directoryOffset, tables.backupDirectoryOffset ?? 0])
    if (offset > MAX_LENGTH) throw refuse("l1", new BlockError("EINVAL"));
  await grainTables.open(co, refuse);
  return {
    kind: "sparse",
    file,
    bytes: capacity * SECTOR_SIZE,
    grainBytes,
    tables: grainTables,
    isCompressed: false,
    hasMarkers: false,
    hasZeroGrains: tables.hasZeroGrains,
    nextHostOffset: alignUp(await file.getLength(co), grainBytes),
    endHeader: undefined,
  };
}
