/**
 * Changes of the graph: edges are attached, moved and cut only here, under the graph write lock, as transactions.
 * Permissions are checked before anything is changed for good.  @qemu block.c: bdrv_attach_child, bdrv_replace_node
 *
 * Invariants:
 * 1. An edge stands in its parent's `children` (or the backend's root) and in its child's `parents`, or in neither.
 * 2. What one edge to a node uses, every other edge to that node shares.
 * 3. A node is drained while an edge that requests may take is moved or cut.
 */

import type { MainLoop } from "./aio-context.ts";
import { BlockChild, type ChildParent, type ChildRole, Perm, type PermPair, permNames } from "./child.ts";
import type { Coroutine } from "./coroutine.ts";
import { coWrapperMixedUnlocked, graphRdlock } from "./coroutine.ts";
import { assert, BlockError } from "./errors.ts";
import type { GraphWriter } from "./graph-lock.ts";
import { flush } from "./io.ts";
import { type BlockNode, DEFAULT_LIMITS } from "./node.ts";
import { isAligned, SECTOR_SIZE } from "./units.ts";

/** A change in steps, of which all or none take effect.  @qemu include/qemu/transactions.h */
export class Transaction {
  #steps: { readonly commit?: () => void; readonly abort?: () => void }[] = [];

  /** Notes a step that has been prepared (and already shows, so that later steps see it). */
  add(step: { readonly commit?: () => void; readonly abort?: () => void }): void {
    this.#steps.push(step);
  }

  commit(): void {
    for (const step of this.#steps) step.commit?.();
    this.#steps = [];
  }

  /** Undoes in reverse order. */
  abort(): void {
    for (const step of this.#steps.reverse()) step.abort?.();
    this.#steps = [];
  }
}

/**
 * Runs a change of the graph: drains `nodes`, takes the write lock, runs `fn`, and commits; an error aborts all of
 * it and is thrown on.
 */
export async function changeGraph<T>(
  caller: Coroutine<"none"> | MainLoop,
  nodes: readonly BlockNode[],
  fn: (writer: GraphWriter, transaction: Transaction) => Promise<T>,
): Promise<T> {
  const drained: BlockNode[] = [];
  try {
    for (const node of nodes) {
      await drainedBegin(caller, node);
      drained.push(node);
    }
    return await caller.context.graph.write(caller, async (writer) => {
      const transaction = new Transaction();
      try {
        const result = await fn(writer, transaction);
        transaction.commit();
        return result;
      } catch (error) {
        transaction.abort();
        throw error;
      }
    });
  } finally {
    for (const node of drained) drainedEnd(node);
  }
}

/** Stops new requests to the node and waits for those under way.  @qemu bdrv_drained_begin */
export const drainedBegin = coWrapperMixedUnlocked(
  async (co: Coroutine<"none">, node: BlockNode): Promise<void> => {
    node.drainedBegin();
    while (isBusy(node)) await co.context.nextKick();
  },
);

/** @qemu bdrv_drained_end */
export function drainedEnd(node: BlockNode): void {
  node.drainedEnd();
  node.context.kick();
}

/** The same for the node and all below it.  @qemu bdrv_subtree_drained_begin */
export const subtreeDrainedBegin = coWrapperMixedUnlocked(
  async (co: Coroutine<"none">, root: BlockNode): Promise<void> => {
    const nodes = [...subtree(root)];
    for (const node of nodes) node.drainedBegin();
    while (nodes.some(isBusy)) await co.context.nextKick();
  },
);

export function subtreeDrainedEnd(root: BlockNode): void {
  for (const node of subtree(root)) node.drainedEnd();
  root.context.kick();
}

function isBusy(node: BlockNode): boolean {
  if (node.requestsInFlight > 0) return true;
  for (const edge of node.parents) if (edge.parent.requestsInFlight > 0) return true;
  return false;
}

/** The node and everything below it, each once. */
export function subtree(root: BlockNode, seen: Set<BlockNode> = new Set()): Set<BlockNode> {
  if (seen.has(root)) return seen;
  seen.add(root);
  for (const edge of root.children.values()) subtree(edge.node, seen);
  return seen;
}

/** What a node's parents use of it, and what all of them share.  @qemu bdrv_get_cumulative_perm */
export function cumulativePerm(node: BlockNode): PermPair {
  let used: number = Perm.None;
  let shared: number = Perm.All;
  for (const edge of node.parents) {
    used |= edge.perm.used;
    shared &= edge.perm.shared;
  }
  return { used, shared };
}

/** Refuses a use that another edge does not share.  @qemu bdrv_parent_perms_conflict */
function checkConflicts(node: BlockNode): void {
  for (const one of node.parents) {
    for (const other of node.parents) {
      if (one === other) continue;
      const denied = one.perm.used & ~other.perm.shared;
      if (denied === 0) continue;
      throw new BlockError(
        "EPERM",
        `Permission conflict on ${node.describe()}: permissions '${permNames(denied)}' are both required by ` +
          `${one.parent.describe()} (uses ${node.describe()} as '${one.name}' child) and unshared by ` +
          `${other.parent.describe()} (uses ${node.describe()} as '${other.name}' child).`,
        { node: node.nodeName },
      );
    }
  }
}

/** What a node needs of a child, from what its own parents need of it.  @qemu bdrv_child_perm */
function childPerm(node: BlockNode, child: BlockNode, role: ChildRole, parents: PermPair): PermPair {
  const pair = defaultPerm(node, role, parents);
  const { used, shared } = role.perm ? role.perm(pair, parents) : pair;
  return { used, shared: child.flags.forceShare ? Perm.All : shared };
}

/** @qemu bdrv_default_perms */
function defaultPerm(node: BlockNode, role: ChildRole, parents: PermPair): PermPair {
  const passed = Perm.ConsistentRead | Perm.Write | Perm.WriteUnchanged | Perm.Resize;
  if (role.filtered) {
    // A filter adds nothing of its own.
    return { used: parents.used & passed, shared: (parents.shared & passed) | (Perm.All & ~passed) };
  }
  if (role.cow) {
    // A backing file is only read, and must not change under its overlay, but for writes that nobody can see.
    const shared =
      (parents.shared & Perm.Write ? Perm.Write | Perm.Resize : 0) |
      Perm.ConsistentRead |
      Perm.WriteUnchanged;
    return { used: parents.used & Perm.ConsistentRead, shared };
  }
  let { used, shared } = { used: parents.used & passed, shared: parents.shared & passed };
  if (role.metadata) {
    if (!node.readOnly) {
      // Metadata may be written whenever the image is; the file grows with it.
      used |= Perm.Write | Perm.Resize;
    }
    if (!node.flags.noIo) used |= Perm.ConsistentRead;
    shared &= ~(Perm.Write | Perm.Resize);
    shared |= Perm.WriteUnchanged;
  } else if (role.data) {
    if (used & Perm.WriteUnchanged) used |= Perm.Write;
    if (used & Perm.Write) used |= Perm.Resize;
    // Where the data ends may stand elsewhere: in metadata, or in the names of other parts.
    shared &= ~Perm.Resize;
    shared |= Perm.WriteUnchanged;
  }
  return { used, shared };
}

/** Sets the permissions of all that is below `roots` anew, from the parents down.  @qemu bdrv_list_refresh_perms */
function refreshPerms(transaction: Transaction, ...roots: readonly BlockNode[]): void {
  for (const node of parentsFirst(roots)) refreshNodePerms(transaction, node);
}

/** Each node once, after all of its parents that are there too: what it is asked for is complete then. */
function parentsFirst(roots: readonly BlockNode[]): BlockNode[] {
  const order: BlockNode[] = [];
  const seen = new Set<BlockNode>();
  const visit = (node: BlockNode): void => {
    if (seen.has(node)) return;
    seen.add(node);
    for (const edge of node.children.values()) visit(edge.node);
    order.push(node);
  };
  for (const root of roots) visit(root);
  return order.reverse();
}

/** @qemu bdrv_node_refresh_perm */
function refreshNodePerms(transaction: Transaction, node: BlockNode): void {
  checkConflicts(node);
  const pair = cumulativePerm(node);
  const { used } = pair;
  if (used & (Perm.Write | Perm.WriteUnchanged) && node.readOnly) {
    throw new BlockError("EPERM", "Block node is read-only", { node: node.nodeName });
  }
  const isEven = isAligned(node.totalSectors * SECTOR_SIZE, node.limits.requestAlignment);
  // The last block could only be written whole, which makes the node longer.
  if (used & Perm.Write && !(used & Perm.Resize) && !isEven)
    throw new BlockError(
      "EPERM",
      "Cannot get 'write' permission without 'resize': Image size is not a multiple of request alignment",
      { node: node.nodeName },
    );
  const change = node.isInserted ? node.ops.preparePermissions?.(pair) : undefined;
  if (change) transaction.add(change);
  for (const edge of node.children.values())
    setPerm(transaction, edge, childPerm(node, edge.node, edge.role, pair));
}

function setPerm(transaction: Transaction, edge: BlockChild, perm: PermPair): void {
  const old = edge.perm;
  edge.perm = perm;
  transaction.add({
    abort: () => {
      edge.perm = old;
    },
  });
}

function link(transaction: Transaction, edge: BlockChild, node: BlockNode): void {
  edge.node = node;
  node.parents.add(edge);
  transaction.add({ abort: () => node.parents.delete(edge) });
  // A node that is drained already must hear nothing from its new parent either.
  if (node.quiesceCounter > 0) {
    edge.parent.drainedBegin();
    transaction.add({ abort: () => edge.parent.drainedEnd() });
  }
}

function unlink(transaction: Transaction, edge: BlockChild): void {
  const { node } = edge;
  node.parents.delete(edge);
  if (node.quiesceCounter > 0) edge.parent.drainedEnd();
  transaction.add({
    abort: () => {
      edge.node = node;
      node.parents.add(edge);
      if (node.quiesceCounter > 0) edge.parent.drainedBegin();
    },
  });
}

/** A loop in the graph would be read for ever. */
function checkNoLoop(parent: ChildParent, child: BlockNode, name: string): void {
  for (const node of subtree(child)) {
    if (node !== parent) continue;
    throw new BlockError(
      "EINVAL",
      `Making '${child.nodeName}' a ${name} child of '${node.nodeName}' would create a cycle`,
    );
  }
}

/**
 * Makes `child` a child of `parent`; takes over the caller's reference to `child`, also when it fails.
 * @qemu bdrv_attach_child
 */
export async function attachChild(
  caller: Coroutine<"none"> | MainLoop,
  parent: BlockNode,
  child: BlockNode,
  name: string,
  role: ChildRole,
): Promise<BlockChild> {
  try {
    return await changeGraph(caller, [], async (writer, transaction) => {
      assert(writer.live && !parent.children.has(name), `${parent.describe()} has a child '${name}' already`);
      checkNoLoop(parent, child, name);
      const perm = childPerm(parent, child, role, cumulativePerm(parent));
      const edge = new BlockChild(name, role, parent, child, perm);
      link(transaction, edge, child);
      parent.children.set(name, edge);
      transaction.add({ abort: () => parent.children.delete(name) });
      refreshPerms(transaction, child);
      return edge;
    });
  } catch (error) {
    await unrefNode(caller, child);
    throw error;
  }
}

/** The edge of a backend to the node it works on; takes over the caller's reference.  @qemu blk_insert_bs */
export async function attachRoot(
  caller: Coroutine<"none"> | MainLoop,
  parent: ChildParent,
  node: BlockNode,
  perm: PermPair,
): Promise<BlockChild> {
  try {
    return await changeGraph(caller, [], async (_, transaction) => {
      const edge = new BlockChild("root", { filtered: true, primary: true }, parent, node, perm);
      link(transaction, edge, node);
      refreshPerms(transaction, node);
      return edge;
    });
  } catch (error) {
    await unrefNode(caller, node);
    throw error;
  }
}

/** Cuts an edge and drops its reference: the last one closes the node.  @qemu bdrv_unref_child, bdrv_root_unref_child */
export async function detach(caller: Coroutine<"none"> | MainLoop, edge: BlockChild): Promise<void> {
  const { node, parent } = edge;
  await changeGraph(caller, [node], async (_, transaction) => {
    unlink(transaction, edge);
    const siblings = (parent as Partial<BlockNode>).children;
    if (siblings?.get(edge.name) === edge) {
      siblings.delete(edge.name);
      transaction.add({ abort: () => siblings.set(edge.name, edge) });
    }
    refreshPerms(transaction, node);
  });
  await unrefNode(caller, node);
}

/** Changes what an edge uses and shares.  @qemu bdrv_child_try_set_perm */
export async function setEdgePerm(
  caller: Coroutine<"none"> | MainLoop,
  edge: BlockChild,
  perm: PermPair,
): Promise<void> {
  await changeGraph(caller, [edge.node], async (_, transaction) => {
    setPerm(transaction, edge, perm);
    refreshPerms(transaction, edge.node);
  });
}

/** Moves every edge that leads to `from` so that it leads to `to`, but for `to`'s own.  @qemu bdrv_replace_node */
export async function replaceNode(
  caller: Coroutine<"none"> | MainLoop,
  from: BlockNode,
  to: BlockNode,
): Promise<void> {
  let moved = 0;
  await changeGraph(caller, [from, to], async (_, transaction) => {
    for (const edge of Array.from(from.parents)) {
      if (edge.parent === to) continue;
      checkNoLoop(edge.parent, to, edge.name);
      unlink(transaction, edge);
      link(transaction, edge, to);
      moved++;
    }
    refreshPerms(transaction, from, to);
  });
  to.refCount += moved;
  for (; moved > 0; moved--) await unrefNode(caller, from);
}

/**
 * Gives `node` another backing file, or none; takes over the caller's reference to `backing`.
 * @qemu bdrv_set_backing_hd
 */
export async function setBacking(
  caller: Coroutine<"none"> | MainLoop,
  node: BlockNode,
  backing: BlockNode | undefined,
): Promise<void> {
  if (node.backing) await detach(caller, node.backing);
  if (backing) await attachChild(caller, node, backing, "backing", { cow: true });
  await refreshLimits(caller, node);
}

/** @qemu bdrv_ref */
export function refNode(node: BlockNode): void {
  node.refCount++;
}

/** Drops a reference; the last one flushes and closes the node, and then what only it used.  @qemu bdrv_unref */
export async function unrefNode(caller: Coroutine<"none"> | MainLoop, node: BlockNode): Promise<void> {
  assert(node.refCount > 0, `${node.describe()} is closed already`);
  node.refCount--;
  if (node.refCount === 0) await closeNode(caller, node);
}

/** The order: no more requests, flush, the driver's close, then the edges, so that children outlive what uses them. */
const closeNode = coWrapperMixedUnlocked(async (co: Coroutine<"none">, node: BlockNode): Promise<void> => {
  assert(node.parents.size === 0, `${node.describe()} is closed while in use`);
  const errors: unknown[] = [];
  const attempt = (step: Promise<void>) => step.catch((error: unknown) => void errors.push(error));
  await drainedBegin(co, node);
  if (node.isInserted) {
    await attempt(graphRdlock(co, (reader) => flush(reader, node)));
    if (node.ops.close) await attempt(node.ops.close(co));
  }
  const edges = [...node.children.values()].reverse();
  for (const edge of edges) await attempt(detach(co, edge));
  node.setOps(undefined);
  node.context.nodes.delete(node.nodeName);
  // What could not be written must not pass in silence; the rest has been closed all the same.
  if (errors.length > 0) throw errors[0];
});

/** A node's limits: its children's, merged, and then its driver's own.  @qemu bdrv_refresh_limits */
export async function refreshLimits(caller: Coroutine<"none"> | MainLoop, node: BlockNode): Promise<void> {
  await caller.context.graph.write(caller, async () => {
    const merged = { ...DEFAULT_LIMITS };
    for (const edge of node.children.values()) {
      if (!edge.role.data && !edge.role.filtered && !edge.role.cow) continue;
      const { limits } = edge.node;
      merged.optTransfer = Math.max(merged.optTransfer, limits.optTransfer);
      merged.maxTransfer = minNonZero(merged.maxTransfer, limits.maxTransfer);
      merged.memoryAlignment = Math.max(merged.memoryAlignment, limits.memoryAlignment);
    }
    node.limits = { ...merged, ...(node.isInserted ? node.ops.limits?.() : undefined) };
  });
}

function minNonZero(a: number, b: number): number {
  return a === 0 ? b : b === 0 ? a : Math.min(a, b);
}
