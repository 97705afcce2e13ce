/** Opening seSparse extents, the sparse format of newer ESX; they are only read.  @qemu vmdk_open_se_sparse */

import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { isZero } from "../../src/block/iov.ts";
import { MAX_LENGTH, SECTOR_SIZE } from "../../src/block/units.ts";
import { Se, SeConstHeader, type SeConstRecord, SeVolatileHeader } from "./layout.ts";
import { makeExtent, type SparseContent } from "./sparse.ts";

export async function openSeSparse(co: Coroutine<"read">, file: BlockChild): Promise<SparseContent> {
  const header = SeConstHeader.read(await readRecord(co, file, 0, SeConstHeader.size, "const"));
  checkConst(header);
  const volatile = await readRecord(
    co,
    file,
    header.volatileHeaderOffset * SECTOR_SIZE,
    SeVolatileHeader.size,
    "volatile",
  );
  checkVolatile(volatile);
  const tableEntries = (Number(header.tableSize) * SECTOR_SIZE) / 8;
  const grainSectors = Number(header.grainSize);
  return makeExtent(co, file, header.capacity, grainSectors, {
    directoryOffset: header.directoryOffset * SECTOR_SIZE,
    directoryEntries: (header.directorySize * SECTOR_SIZE) / 8,
    tableEntries,
    hasZeroGrains: true,
    seSparse: {
      tablesOffset: header.tablesOffset * SECTOR_SIZE,
      grainsOffset: header.grainsOffset * SECTOR_SIZE,
      grainBytes: grainSectors * SECTOR_SIZE,
    },
  });
}

async function readRecord(
  co: Coroutine<"read">,
  file: BlockChild,
  offset: number,
  bytes: number,
  which: "const" | "volatile",
): Promise<Uint8Array> {
  try {
    if (offset > MAX_LENGTH) throw new BlockError("EINVAL");
    return await file.preadBytes(co, offset, bytes);
  } catch (error) {
    throw BlockError.wrap(`Could not read ${which} header from file '${file.node.filename}'`, error);
  }
}

const hex = (value: bigint) => `0x${value.toString(16).padStart(16, "0")}`;

function refuse(message: string): never {
  throw new BlockError("ENOTSUP", message);
}

/** @qemu check_se_sparse_const_header */
function checkConst(header: SeConstRecord): void {
  if (header.magic !== Se.ConstMagic) refuse(`Bad const header magic: ${hex(header.magic)}`);
  if (header.version !== Se.Version) refuse(`Unsupported version: ${hex(header.version)}`);
  if (header.grainSize !== Se.GrainSize) refuse(`Unsupported grain size: ${header.grainSize}`);
  if (header.tableSize !== Se.TableSize) refuse(`Unsupported grain table size: ${header.tableSize}`);
  if (header.flags !== 0n) refuse(`Unsupported flags: ${hex(header.flags)}`);
  const reserved = [header.reserved1, header.reserved2, header.reserved3, header.reserved4];
  if (reserved.some((bits) => bits !== 0n))
    refuse(`Unsupported reserved bits: ${reserved.map(hex).join(" ")}`);
  if (!isZero(header.padding)) refuse("Unsupported non-zero const header padding");
}

/** @qemu check_se_sparse_volatile_header */
function checkVolatile(record: Uint8Array): void {
  const { magic, replayJournal, padding } = SeVolatileHeader.read(record);
  if (magic !== Se.VolatileMagic) refuse(`Bad volatile header magic: ${hex(magic)}`);
  if (replayJournal !== 0n) refuse("Image is dirty, Replaying journal not supported");
  if (!isZero(padding)) refuse("Unsupported non-zero volatile header padding");
}
