/** What a node's driver says of its geometry.  @qemu bdrv_get_info */

import type { Coroutine } from "./coroutine.ts";
import type { DriverInfo } from "./driver.ts";
import type { BlockNode } from "./node.ts";

/** A filter tells its child's; undefined: the driver has nothing to say. */
export async function driverInfo(co: Coroutine<"read">, node: BlockNode): Promise<DriverInfo | undefined> {
  if (node.ops.getInfo) return node.ops.getInfo(co);
  return node.filtered && driverInfo(co, node.filtered.node);
}
