/** New Parallels images: a header and an empty table.  @qemu parallels_co_create */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { createFilled } from "../../src/block/create.ts";
import type { CreateRequest } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import { alignUp, divideRoundUp, MiB, SECTOR_SIZE } from "../../src/block/units.ts";
import { BAT_ENTRY_BYTES, BAT_OFFSET, EXT_MAGIC, Header, VERSION } from "./layout.ts";

export const createOptions = {
  size: { type: "size", help: "Virtual disk size" },
  cluster_size: { type: "size", default: "1048576", help: "Parallels image cluster size" },
} as const;

/** The BAT has 32 bits for the number of a cluster. */
const MAX_CLUSTERS = 2 ** 32;
const MAX_CLUSTER_BYTES = 2 ** 31 - 1;

/** Of a made-up geometry. */
const HEADS = 16;
const SECTORS_PER_CYLINDER = 32;

export async function create(
  co: Coroutine<"none">,
  { filename, options, protocolOptions, environment }: CreateRequest<typeof createOptions>,
): Promise<void> {
  const size = alignUp(options.size ?? 0, SECTOR_SIZE);
  const clusterSize = alignUp(options.cluster_size ?? MiB, SECTOR_SIZE);
  if (clusterSize >= MAX_CLUSTER_BYTES) throw new BlockError("EINVAL", "Cluster size is too large");
  if (size >= MAX_CLUSTERS * clusterSize)
    throw new BlockError("EINVAL", "Image size is too large for this cluster size");
  const batEntries = divideRoundUp(size, clusterSize);
  const tablesBytes = alignUp(BAT_OFFSET + batEntries * BAT_ENTRY_BYTES, clusterSize);
  const header = Header.write({
    magic: Buffer.from(EXT_MAGIC),
    version: VERSION,
    heads: HEADS,
    cylinders: Math.floor(size / SECTOR_SIZE / HEADS / SECTORS_PER_CYLINDER) % 2 ** 32,
    tracks: clusterSize / SECTOR_SIZE,
    batEntries,
    sectors: BigInt(size / SECTOR_SIZE),
    inUse: 0,
    dataOffset: tablesBytes / SECTOR_SIZE,
    flags: 0,
    extensionOffset: 0,
  });
  await createFilled(co, { filename, protocolOptions, environment }, async (file) => {
    try {
      await file.write(0, Buffer.concat([header], SECTOR_SIZE));
      await file.writeZeroes(SECTOR_SIZE, tablesBytes - SECTOR_SIZE);
    } catch (error) {
      throw BlockError.wrap("Failed to create Parallels image", error);
    }
  });
}
