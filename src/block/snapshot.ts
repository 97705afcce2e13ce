/** Internal snapshots of a node: found, taken, applied, deleted, and shown for a while.  @qemu block/snapshot.c */

import type { MainLoop } from "./aio-context.ts";
import type { BlockChild } from "./child.ts";
import { type Coroutine, coWrapperMixedUnlocked, graphRdlock } from "./coroutine.ts";
import type { NewSnapshot, SnapshotInfo, SnapshotRef } from "./driver.ts";
import { BlockError, strerror } from "./errors.ts";
import { drainedBegin, drainedEnd } from "./graph.ts";
import type { BlockNode } from "./node.ts";

/** Throws ENOTSUP where neither the node nor what it shows can have any.  @qemu bdrv_snapshot_list */
export async function listSnapshots(
  co: Coroutine<"read">,
  node: BlockNode,
): Promise<readonly SnapshotInfo[]> {
  if (node.ops.listSnapshots) return node.ops.listSnapshots(co);
  return listSnapshots(co, fallback(node, new BlockError("ENOTSUP")));
}

/** @qemu bdrv_snapshot_create */
export function createSnapshot(
  caller: Coroutine<"none"> | MainLoop,
  node: BlockNode,
  snapshot: NewSnapshot,
): Promise<void> {
  return quietly(caller, node, (co) => create(co, node, snapshot));
}

async function create(co: Coroutine<"read">, node: BlockNode, snapshot: NewSnapshot): Promise<void> {
  if (node.ops.createSnapshot) await node.ops.createSnapshot(co, snapshot);
  else await create(co, fallback(node, new BlockError("ENOTSUP")), snapshot);
}

/** Makes the node's content that of the snapshot with this id or else this name.  @qemu bdrv_snapshot_goto */
export function gotoSnapshot(
  caller: Coroutine<"none"> | MainLoop,
  node: BlockNode,
  idOrName: string,
): Promise<void> {
  return quietly(caller, node, (co) => goTo(co, node, idOrName));
}

async function goTo(co: Coroutine<"read">, node: BlockNode, idOrName: string): Promise<void> {
  const { ops } = node;
  if (node.dirtyBitmaps.length > 0) throw new BlockError("EBUSY", "Device has active dirty bitmaps");
  if (!ops.gotoSnapshot) {
    const child = fallback(node, new BlockError("ENOTSUP", "Block driver does not support snapshots"));
    await goTo(co, child, idOrName);
    await node.refreshTotalSectors(co, child.totalSectors);
    return;
  }
  try {
    const known = (await ops.listSnapshots?.(co)) ?? [];
    const hasId = known.some(({ id }) => id === idOrName);
    await ops.gotoSnapshot(co, hasId ? { id: idOrName } : { name: idOrName });
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    const message = `Failed to load snapshot: ${strerror(error.errno)}`;
    throw new BlockError(error.errno, message, { cause: error });
  }
}

/** @qemu bdrv_snapshot_delete */
export function deleteSnapshot(
  caller: Coroutine<"none"> | MainLoop,
  node: BlockNode,
  snapshot: SnapshotRef,
): Promise<void> {
  return quietly(caller, node, (co) => remove(co, node, snapshot));
}

async function remove(co: Coroutine<"read">, node: BlockNode, snapshot: SnapshotRef): Promise<void> {
  checkNamed(snapshot);
  if (node.ops.deleteSnapshot) return node.ops.deleteSnapshot(co, snapshot);
  const refusal = `${describeFormat(node)} does not support internal snapshot deletion`;
  return remove(co, fallback(node, new BlockError("ENOTSUP", refusal)), snapshot);
}

/** Makes the guest see the snapshot until the node, which must be read-only, is closed.  @qemu bdrv_snapshot_load_tmp */
export async function loadSnapshot(
  co: Coroutine<"read">,
  node: BlockNode,
  snapshot: SnapshotRef,
): Promise<void> {
  const { ops } = node;
  checkNamed(snapshot);
  if (!node.readOnly) throw new BlockError("EINVAL", "Device is not readonly");
  if (!ops.loadSnapshot)
    throw new BlockError(
      "ENOTSUP",
      `${describeFormat(node)} does not support temporarily loading internal snapshots`,
    );
  await ops.loadSnapshot(co, snapshot);
}

/** The same by an id, or by a name where that finds none.  @qemu bdrv_snapshot_load_tmp_by_id_or_name */
export async function loadSnapshotByIdOrName(
  co: Coroutine<"read">,
  node: BlockNode,
  idOrName: string,
): Promise<void> {
  try {
    await loadSnapshot(co, node, { id: idOrName });
  } catch (error) {
    if (!(error instanceof BlockError) || (error.errno !== "ENOENT" && error.errno !== "EINVAL")) throw error;
    await loadSnapshot(co, node, { name: idOrName });
  }
}

function checkNamed({ id, name }: SnapshotRef): void {
  if (id === undefined && name === undefined)
    throw new BlockError("EINVAL", "snapshot_id and name are both NULL");
}

function describeFormat(node: BlockNode): string {
  return `Block format '${node.driver.formatName}' used by device ''`;
}

/** Runs `fn` with no request under way: each byte written before it is in the snapshot, or none. */
async function quietly(
  caller: Coroutine<"none"> | MainLoop,
  node: BlockNode,
  fn: (co: Coroutine<"read">) => Promise<void>,
): Promise<void> {
  await drainedBegin(caller, node);
  try {
    await underLock(caller, fn);
  } finally {
    drainedEnd(node);
  }
}

const underLock = coWrapperMixedUnlocked(
  (co: Coroutine<"none">, fn: (reader: Coroutine<"read">) => Promise<void>): Promise<void> =>
    graphRdlock(co, fn),
);

/**
 * Whom an operation that the node's driver lacks is for: the node that has its content, if no other child has a part
 * in it. Throws `error` where there is none.  @qemu bdrv_snapshot_fallback
 */
function fallback(node: BlockNode, error: BlockError): BlockNode {
  const { primary } = node;
  const isPart = ({ role }: BlockChild) => role.data || role.metadata || role.filtered;
  const others = [...node.children.values()].filter((child) => child !== primary && isPart(child));
  if (!primary || others.length > 0) throw error;
  return primary.node;
}
