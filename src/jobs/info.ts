/** What an image says of itself: size, format, backing file, snapshots, the format's own data.  @qemu bdrv_query_image_info */

import type { BlockBackend } from "../block/backend.ts";
import type { Coroutine } from "../block/coroutine.ts";
import type { SnapshotInfo, SpecificInfo } from "../block/driver.ts";
import { BlockError } from "../block/errors.ts";
import { knownBackingFilename } from "../block/filename.ts";
import { driverInfo } from "../block/info.ts";
import type { BlockNode } from "../block/node.ts";
import { listSnapshots } from "../block/snapshot.ts";

export interface ImageInfo {
  /** As it can be opened again: a plain name, or `json:{...}`. */
  readonly filename: string;
  readonly format: string;
  readonly virtualBytes: number;
  /** Space that the image and its data files take on the host; undefined where it cannot be told. */
  readonly allocatedBytes: number | undefined;
  /** Undefined: the format has no clusters. */
  readonly clusterBytes: number | undefined;
  readonly encrypted: boolean;
  /** Undefined: the format has no such mark. */
  readonly dirty: boolean | undefined;
  /** As the image names it. */
  readonly backingFilename: string | undefined;
  /** As it is opened from here; undefined if that cannot be told. */
  readonly fullBackingFilename: string | undefined;
  readonly backingFormat: string | undefined;
  readonly snapshots: readonly SnapshotInfo[];
  readonly specific: SpecificInfo | undefined;
}

/** The image itself, not its backing files: it may be opened without them. */
export function imageInfo(image: BlockBackend): Promise<ImageInfo> {
  return image.run((co) => nodeInfo(co, image.node));
}

async function nodeInfo(co: Coroutine<"read">, node: BlockNode): Promise<ImageInfo> {
  const virtualBytes = await node.getLength(co);
  const info = await driverInfo(co, node);
  const specific = await node.ops.getSpecificInfo?.(co);
  return {
    filename: node.filename,
    format: node.driver.formatName,
    virtualBytes,
    allocatedBytes: await allocatedFileSize(co, node),
    clusterBytes: info?.clusterSize || undefined,
    encrypted:
      specific?.type === "luks" || specific?.data["encrypt"] !== undefined || (info?.isEncrypted ?? false),
    dirty: info && (info.isDirty ?? false),
    backingFilename: node.backingFilename || undefined,
    fullBackingFilename: knownBackingFilename(node),
    backingFormat: node.backingFormat || undefined,
    snapshots: await snapshotsOf(co, node),
    specific,
  };
}

async function snapshotsOf(co: Coroutine<"read">, node: BlockNode): Promise<readonly SnapshotInfo[]> {
  try {
    return await listSnapshots(co, node);
  } catch (error) {
    // A format that can't have any has none.
    if (error instanceof BlockError && error.errno === "ENOTSUP") return [];
    throw error;
  }
}

/** The node's own storage, or else that of the children that hold its data; backing files are others' storage. */
async function allocatedFileSize(co: Coroutine<"read">, node: BlockNode): Promise<number | undefined> {
  if (node.ops.getAllocatedFileSize) return node.ops.getAllocatedFileSize(co);
  if (node.filtered) return allocatedFileSize(co, node.filtered.node);
  if (node.driver.kind === "protocol") return undefined;
  let sum = 0;
  for (const { role, node: child } of node.children.values()) {
    if (!role.data && !role.metadata && !role.filtered) continue;
    const bytes = await allocatedFileSize(co, child);
    if (bytes === undefined) return undefined;
    sum += bytes;
  }
  return sum;
}
