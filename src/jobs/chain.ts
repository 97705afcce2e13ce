/** Going down a backing chain, in which filters are no layers.  @qemu bdrv_backing_chain_next, bdrv_find_backing_image */

import fs from "node:fs";
import { BlockError } from "../block/errors.ts";
import { fullBackingFilename, protocolPrefix, resolveReference } from "../block/filename.ts";
import type { BlockNode } from "../block/node.ts";

/** What a filter shows is its child's.  @qemu bdrv_skip_filters */
export function skipFilters(node: BlockNode): BlockNode {
  let below = node;
  while (below.filtered) below = below.filtered.node;
  return below;
}

/** The image that `node` stands on. */
export function backingChainNext(node: BlockNode): BlockNode | undefined {
  const backing = skipFilters(node).cow?.node;
  return backing && skipFilters(backing);
}

/**
 * The image below `top` that `name` means: a name with a protocol as it stands in the overlay, another as a path
 * that is relative to the overlay.
 */
export function findBackingImage(top: BlockNode, name: string): BlockNode | undefined {
  let overlay = skipFilters(top);
  for (;;) {
    const below = backingChainNext(overlay);
    if (!below || isNamed(overlay, below, name)) return below;
    overlay = below;
  }
}

function isNamed(overlay: BlockNode, below: BlockNode, name: string): boolean {
  const { backingFilename } = overlay;
  if (protocolPrefix(name) !== undefined || protocolPrefix(below.filename) !== undefined)
    return name === backingFilename || name === below.filename;
  const named = realPath(() => resolveReference(overlay, name));
  if (named === undefined) return false;
  return (
    named === realPath(() => (overlay.childrenOverridden ? below.filename : fullBackingFilename(overlay)))
  );
}

/** Undefined: there is no such file, or a relative name has nothing that it could be relative to. */
function realPath(path: () => string | undefined): string | undefined {
  try {
    return fs.realpathSync(path() ?? "");
  } catch (error) {
    if (error instanceof BlockError || (error as NodeJS.ErrnoException).code !== undefined) return undefined;
    throw error;
  }
}
