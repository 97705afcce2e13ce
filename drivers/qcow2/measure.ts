/** How large a new qcow2 image would be, for the data of a source or for a size alone.  @qemu qcow2_measure */

import { blockStatusAbove } from "../../src/block/block-status.ts";
import type { MeasureRequest, MeasureResult } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import { alignUp, divideRoundUp, MAX_LENGTH, SECTOR_SIZE } from "../../src/block/units.ts";
import { directoryEntryBytes } from "./bitmap.ts";
import { type CreateOptions, type Geometry, geometryOf } from "./create-options.ts";
import { l1EntriesFor } from "./header.ts";
import { MAX_L1_BYTES } from "./layout.ts";

type Source = NonNullable<MeasureRequest<CreateOptions>["source"]>;

export async function measure({
  options,
  source,
  environment,
}: MeasureRequest<CreateOptions>): Promise<MeasureResult> {
  const { compat = "1.1", backing_file: backingFile, preallocation = "off" } = options;
  // Fewer words than `create` takes, as in QEMU 7.2; and what has no part in the size is not looked at.
  if (compat !== "0.10" && compat !== "1.1")
    throw new BlockError("EINVAL", `Invalid compatibility level: '${compat}'`);
  const image = geometryOf(options, compat === "1.1" ? 3 : 2, "compat=1.1");
  const { clusterSize, extendedL2 } = image;
  const size = alignUp(source ? await source.node.getLength(source.co) : (options.size ?? 0), SECTOR_SIZE);
  if (size > MAX_LENGTH || l1EntriesFor(size, clusterSize, extendedL2) * 8 > MAX_L1_BYTES)
    throw new BlockError("EFBIG", "The image size is too large (try using a larger cluster size)");

  const alignedSize = alignUp(size, clusterSize);
  let metadata = metadataBytes(image, alignedSize);
  if (options["encrypt.format"] === "luks") {
    const { luksBytes } = await import("./crypto-create.ts");
    metadata += alignUp(luksBytes(options, environment), clusterSize);
  }
  const fullyAllocated = metadata + alignedSize;
  const isFull = preallocation === "full" || preallocation === "falloc";
  // What of the data a backing file would already have is not known.
  const isOverlay = source !== undefined && backingFile !== undefined;
  let required = fullyAllocated;
  if (!isFull && !isOverlay) required = metadata + (source ? await dataBytes(source, size, clusterSize) : 0);
  const bitmaps = source && image.version >= 3 ? bitmapBytes(source, size, clusterSize) : undefined;
  return { required, fullyAllocated, ...(bitmaps !== undefined && { bitmaps }) };
}

/** Header, all L2 tables, the L1 table, and the refcounts of all that and of the data.  @qemu qcow2_calc_prealloc_size */
function metadataBytes({ clusterSize, refcountBits, extendedL2 }: Geometry, alignedSize: number): number {
  const entryBytes = extendedL2 ? 16 : 8;
  const l2Bytes = alignUp((alignedSize / clusterSize) * entryBytes, clusterSize);
  const l1Bytes = alignUp((l2Bytes / clusterSize) * 8, clusterSize);
  const mapping = clusterSize + l2Bytes + l1Bytes;
  const clusters = (mapping + alignedSize) / clusterSize;
  const blockClusters = (clusterSize * 8) / refcountBits;
  let blocks = 0;
  let table = 0;
  for (let last = -1; last !== blocks + table; ) {
    last = blocks + table;
    blocks = divideRoundUp(clusters + blocks + table, blockClusters);
    table = divideRoundUp(blocks * 8, clusterSize);
  }
  return mapping + (blocks + table) * clusterSize;
}

/** Bytes of the clusters that hold data in the source. */
async function dataBytes({ node, co }: Source, size: number, clusterSize: number): Promise<number> {
  let bytes = 0;
  for (let offset = 0; offset < size; ) {
    co.checkAborted();
    const status = await blockStatusAbove(co, node, undefined, true, offset, size - offset).catch(
      (error: unknown) => {
        throw BlockError.wrap("Unable to get block status", error);
      },
    );
    if (status.bytes === 0) break;
    let end = offset + status.bytes;
    if (!status.zero && status.data) {
      // The whole cluster is counted, and the rest of it is not looked at again.
      end = alignUp(end, clusterSize);
      bytes += end - (offset - (offset % clusterSize));
    }
    offset = end;
  }
  return bytes;
}

/**
 * What the source's bitmaps would take; undefined where the source can have none.
 * @qemu qcow2_get_persistent_dirty_bitmap_size
 */
function bitmapBytes({ node }: Source, size: number, clusterSize: number): number | undefined {
  if (!node.ops.supportsBitmaps?.()) return undefined;
  let bytes = 0;
  let directory = 0;
  for (const { name, granularity, persistent } of node.dirtyBitmaps) {
    if (!persistent) continue;
    const clusters = divideRoundUp(size, granularity * clusterSize * 8);
    bytes += clusters * clusterSize + alignUp(clusters * 8, clusterSize);
    directory += directoryEntryBytes(Buffer.byteLength(name));
  }
  return bytes + alignUp(directory, clusterSize);
}
