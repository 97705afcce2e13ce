/** Has an image's driver look for errors in it, and put them right.  @qemu collect_image_check */

import type { BlockBackend } from "../block/backend.ts";
import type { CheckOptions, CheckResult } from "../block/driver.ts";
import { BlockError } from "../block/errors.ts";

/** Throws ENOTSUP where the format has nothing to check; `options` as the driver takes them. */
export function checkImage(
  image: BlockBackend,
  options: CheckOptions,
  signal?: AbortSignal,
): Promise<CheckResult> {
  return image.run(async (co) => {
    const { check } = image.node.ops;
    if (!check) throw new BlockError("ENOTSUP", "This image format does not support checks");
    return check(co, options);
  }, signal);
}

/**
 * The same for a repair: what was put right is looked at once more, and that is what the figures are of. `onRepaired`
 * is told in between how much that was.
 */
export async function repairImage(
  image: BlockBackend,
  options: CheckOptions,
  signal?: AbortSignal,
  onRepaired: (fixed: Pick<CheckResult, "leaksFixed" | "corruptionsFixed">) => void = () => {},
): Promise<CheckResult> {
  const first = await checkImage(image, options, signal);
  const { leaksFixed, corruptionsFixed } = first;
  if (leaksFixed === 0 && corruptionsFixed === 0) return first;
  onRepaired({ leaksFixed, corruptionsFixed });
  const second = await checkImage(image, { ...options, fixLeaks: false, fixErrors: false }, signal);
  return { ...second, leaksFixed, corruptionsFixed };
}
