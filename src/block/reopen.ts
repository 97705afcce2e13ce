/** Changing read-only to read-write and back on open nodes, all or none of them.  @qemu bdrv_reopen_multiple */

import type { MainLoop } from "./aio-context.ts";
import type { BlockChild, PermPair } from "./child.ts";
import { type Coroutine, coWrapperMixedUnlocked, graphRdlock } from "./coroutine.ts";
import type { ReopenAction } from "./driver.ts";
import { BlockError } from "./errors.ts";
import { setEdgePerm, subtreeDrainedBegin, subtreeDrainedEnd } from "./graph.ts";
import { flush } from "./io.ts";
import type { BlockNode } from "./node.ts";

/** The nodes that share their parent's read-only state: everything but backing files. */
function reopenable(node: BlockNode): BlockNode[] {
  const below = [...node.children.values()]
    .filter((edge) => !edge.role.cow)
    .flatMap((edge) => reopenable(edge.node));
  return [...new Set([...below, node])];
}

/** Reopens what is below `root`, and gives `root` the permissions `perm`. An error leaves all as it was. */
export async function reopenSubtree(
  caller: Coroutine<"none"> | MainLoop,
  root: BlockChild,
  readOnly: boolean,
  perm: PermPair,
): Promise<void> {
  const { node } = root;
  if (node.readOnly === readOnly) return;
  await subtreeDrainedBegin(caller, node);
  const prepared: ReopenAction[] = [];
  try {
    const nodes = reopenable(node);
    // Who goes read-only writes its caches back first, through children that can still be written.
    if (readOnly) nodes.reverse();
    for (const each of nodes) prepared.push(await prepareReopen(caller, each, readOnly));
    await setEdgePerm(caller, root, perm);
  } catch (error) {
    for (const action of prepared.reverse()) action.abort();
    throw error;
  } finally {
    subtreeDrainedEnd(node);
  }
  for (const action of prepared) action.commit();
}

/** After this the node shows its new state; the action makes it final or takes it back. */
const prepareReopen = coWrapperMixedUnlocked(
  async (co: Coroutine<"none">, node: BlockNode, readOnly: boolean): Promise<ReopenAction> => {
    const oldFlags = node.flags;
    if (!readOnly && oldFlags.forceShare)
      throw new BlockError("EINVAL", "force-share=on can only be used with read-only images");
    if (readOnly) await graphRdlock(co, (reader) => flush(reader, node));
    const action = await node.ops.reopen?.(co, readOnly);
    node.flags = { ...oldFlags, readOnly };
    return {
      commit: () => action?.commit(),
      abort: () => {
        node.flags = oldFlags;
        action?.abort();
      },
    };
  },
);
