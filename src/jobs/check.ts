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
