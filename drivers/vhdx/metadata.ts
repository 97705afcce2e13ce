/** The metadata: how large the disk, its blocks and its sectors are, and who its parent is.  @qemu vhdx_parse_metadata */

import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { isPowerOfTwo, KiB, MiB, SECTOR_SIZE } from "../../src/block/units.ts";
import { openFailed } from "../opening.ts";
import { parentPath } from "../parent-path.ts";
import { batEntries } from "./bat.ts";
import {
  CHUNK_SECTORS,
  FileFlag,
  Guid,
  hex,
  ItemFlag,
  MAX_BLOCK_BYTES,
  MAX_DISK_BYTES,
  MAX_TABLE_ENTRIES,
  METADATA_SIGNATURE,
  MetadataEntry,
  MetadataTable,
  MIN_BLOCK_BYTES,
  TABLE_BYTES,
} from "./layout.ts";
import type { Geometry, Region } from "./state.ts";

/** What a differencing image knows of its parent. */
export interface ParentLocator {
  readonly filename: string;
  /** `dataWriteGuid` of the parent, as digits of its bytes in the file. */
  readonly linkage: readonly string[];
}

export interface Metadata {
  readonly geometry: Geometry;
  readonly parent: ParentLocator | undefined;
}

/** Items that an image must have. */
const ITEMS = [
  Guid.FileParameters,
  Guid.VirtualDiskSize,
  Guid.Page83Data,
  Guid.LogicalSectorSize,
  Guid.PhysicalSectorSize,
] as const;

export async function readMetadata(
  co: Coroutine<"read">,
  file: BlockChild,
  region: Region,
): Promise<Metadata> {
  const items = await findItems(co, file, region);
  const read = async (guid: string, bytes: number) => {
    const { offset } = items.get(guid) as Region;
    return new DataView((await file.preadBytes(co, region.offset + offset, bytes)).buffer);
  };
  const parameters = await read(Guid.FileParameters, 8);
  const blockSize = parameters.getUint32(0, true);
  const size = await read(Guid.VirtualDiskSize, 8);
  const diskSize = size.getUint32(4, true) * 2 ** 32 + size.getUint32(0, true);
  const sectorSize = (await read(Guid.LogicalSectorSize, 4)).getUint32(0, true);
  const hasParent = (parameters.getUint32(4, true) & FileFlag.HasParent) !== 0;
  const locator = items.get(Guid.ParentLocator);
  const isBlock = isPowerOfTwo(blockSize) && blockSize >= MIN_BLOCK_BYTES && blockSize <= MAX_BLOCK_BYTES;
  if (!isBlock || (hasParent && !locator)) throw openFailed(file, "EINVAL");
  if (sectorSize !== SECTOR_SIZE && sectorSize !== 4 * KiB) throw openFailed(file, "ENOTSUP");
  if (diskSize > MAX_DISK_BYTES) throw openFailed(file, "EINVAL");
  const chunkRatio = (CHUNK_SECTORS * sectorSize) / blockSize;
  const blocks = Math.ceil(diskSize / blockSize);
  const entries = hasParent
    ? Math.ceil(blocks / chunkRatio) * (chunkRatio + 1)
    : batEntries(blocks, chunkRatio);
  return {
    geometry: { blockSize, diskSize, sectorSize, chunkRatio, blocks, entries },
    parent: hasParent ? await readLocator(co, file, region, locator as Region) : undefined,
  };
}

/** Each item's place, from the start of the region. */
async function findItems(
  co: Coroutine<"read">,
  file: BlockChild,
  { offset, bytes }: Region,
): Promise<ReadonlyMap<string, Region>> {
  const table = await file.preadBytes(co, offset, TABLE_BYTES);
  const { signature, entryCount } = MetadataTable.read(table);
  const isTable = Buffer.from(signature).toString("latin1") === METADATA_SIGNATURE;
  if (!isTable || entryCount > MAX_TABLE_ENTRIES) throw openFailed(file, "EINVAL");
  const known: ReadonlySet<string> = new Set([...ITEMS, Guid.ParentLocator]);
  const items = new Map<string, Region>();
  for (let index = 0; index < entryCount; index++) {
    const entry = MetadataEntry.read(table, MetadataTable.size + index * MetadataEntry.size);
    const guid = hex(entry.itemId);
    if (known.has(guid)) {
      if (items.has(guid)) throw openFailed(file, "EINVAL");
      items.set(guid, { offset: entry.offset, bytes: entry.length });
    } else if ((entry.flags & ItemFlag.Required) !== 0) throw openFailed(file, "ENOTSUP");
  }
  if (!ITEMS.every((guid) => items.has(guid))) throw openFailed(file, "ENOTSUP");
  const locator = items.get(Guid.ParentLocator);
  if (locator && locator.offset + locator.bytes > bytes) throw openFailed(file, "EINVAL");
  return items;
}

/** 2.6.2.6.1: a head of 20 bytes, entries of 12, and keys and values as UTF-16. */
const LOCATOR_HEAD_BYTES = 20;
const LOCATOR_ENTRY_BYTES = 12;

async function readLocator(
  co: Coroutine<"read">,
  file: BlockChild,
  region: Region,
  item: Region,
): Promise<ParentLocator> {
  const bytes = Math.min(item.bytes, MiB);
  const data = Buffer.from(await file.preadBytes(co, region.offset + item.offset, bytes));
  if (bytes < LOCATOR_HEAD_BYTES) throw openFailed(file, "EINVAL");
  // Another kind of locator names a parent that is no VHDX.
  if (hex(data.subarray(0, 16)) !== Guid.VhdxParentLocator) throw openFailed(file, "ENOTSUP");
  const count = data.readUInt16LE(18);
  if (LOCATOR_HEAD_BYTES + count * LOCATOR_ENTRY_BYTES > bytes) throw openFailed(file, "EINVAL");
  const values = new Map<string, string>();
  for (let index = 0; index < count; index++) {
    const at = LOCATOR_HEAD_BYTES + index * LOCATOR_ENTRY_BYTES;
    const text = (offset: number, length: number) => data.toString("utf16le", offset, offset + length);
    const key = text(data.readUInt32LE(at), data.readUInt16LE(at + 8));
    values.set(key, text(data.readUInt32LE(at + 4), data.readUInt16LE(at + 10)));
  }
  const name = values.get("relative_path") ?? values.get("absolute_win32_path") ?? values.get("volume_path");
  if (!name) throw openFailed(file, "EINVAL");
  const linkage = [values.get("parent_linkage"), values.get("parent_linkage2")];
  return {
    filename: parentPath(name),
    linkage: linkage.filter((guid) => guid !== undefined).map(guidBytes),
  };
}

/** "{01234567-89ab-...}" as the digits of its bytes in a file: the first three numbers are turned round. */
function guidBytes(text: string): string {
  const groups = text.toLowerCase().replace(/[{}]/g, "").split("-");
  const turned = groups.slice(0, 3).map((group) => (group.match(/../g) ?? []).reverse().join(""));
  return [...turned, ...groups.slice(3)].join("");
}
