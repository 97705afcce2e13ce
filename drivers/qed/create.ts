/** New QED images: a header, and an L1 table of zeroes.  @qemu bdrv_qed_co_create */

import type { BlockBackend } from "../../src/block/backend.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { createFilled } from "../../src/block/create.ts";
import type { CreateRequest } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import { alignUp, MiB, SECTOR_SIZE } from "../../src/block/units.ts";
import {
  DEFAULT_CLUSTER_BYTES,
  DEFAULT_TABLE_CLUSTERS,
  Feature,
  Header,
  type HeaderRecord,
  isClusterSize,
  isImageSize,
  isTableSize,
  MAX_CLUSTER_BYTES,
  MAX_TABLE_CLUSTERS,
  MIN_CLUSTER_BYTES,
  maxImageBytes,
  QED_MAGIC,
} from "./layout.ts";

export const createOptions = {
  size: { type: "size", help: "Virtual disk size" },
  backing_file: { type: "string", help: "File name of a base image" },
  backing_fmt: { type: "string", help: "Image format of the base image" },
  cluster_size: { type: "size", default: "65536", help: "Cluster size (in bytes)" },
  table_size: { type: "size", help: "L1/L2 table size (in clusters)" },
} as const;

export type CreateOptions = typeof createOptions;

export async function create(co: Coroutine<"none">, request: CreateRequest<CreateOptions>): Promise<void> {
  const { header, backingName } = makeHeader(request.options);
  await createFilled(co, request, (file) => writeImage(file, header, backingName));
}

function makeHeader({
  size = 0,
  backing_file: backingFile,
  backing_fmt: backingFormat,
  cluster_size: clusterSize = DEFAULT_CLUSTER_BYTES,
  table_size: tableSize = DEFAULT_TABLE_CLUSTERS,
}: CreateRequest<CreateOptions>["options"]): { header: HeaderRecord; backingName: Uint8Array } {
  const imageSize = alignUp(size, SECTOR_SIZE);
  if (!isClusterSize(clusterSize))
    throw invalid(
      `QED cluster size must be within range [${MIN_CLUSTER_BYTES}, ${MAX_CLUSTER_BYTES}] and power of 2`,
    );
  if (!isTableSize(tableSize))
    throw invalid(`QED table size must be within range [1, ${MAX_TABLE_CLUSTERS}] and power of 2`);
  if (!isImageSize(imageSize, clusterSize, tableSize))
    throw invalid(
      "QED image size must be a non-zero multiple of cluster size and less than " +
        `${BigInt(maxImageBytes(clusterSize, tableSize))} bytes`,
    );
  const backingName = Buffer.from(backingFile ?? "");
  let features = 0n;
  if (backingFile !== undefined) features |= Feature.BackingFile;
  if (backingFile !== undefined && backingFormat === "raw") features |= Feature.BackingFormatNoProbe;
  return {
    header: {
      magic: QED_MAGIC,
      clusterSize,
      tableSize,
      headerSize: 1,
      features,
      compatFeatures: 0n,
      autoclearFeatures: 0n,
      l1TableOffset: clusterSize,
      imageSize,
      backingFilenameOffset: backingFile === undefined ? 0 : Header.size,
      backingFilenameSize: backingName.length,
    },
    backingName,
  };
}

/** The header comes last: until then the file is no image. */
async function writeImage(file: BlockBackend, header: HeaderRecord, backingName: Uint8Array): Promise<void> {
  const { l1TableOffset, tableSize, clusterSize } = header;
  const l1Bytes = tableSize * clusterSize;
  // No hole, as in QEMU: `info` tells what the file takes up.
  const zeroes = new Uint8Array(Math.min(l1Bytes, MiB));
  for (let at = 0; at < l1Bytes; at += zeroes.length) await file.write(l1TableOffset + at, zeroes);
  await file.write(0, Buffer.concat([Header.write(header), backingName]));
}

function invalid(message: string): BlockError {
  return new BlockError("EINVAL", message);
}
