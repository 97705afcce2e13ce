/** Changes the size of an image.  @qemu qemu-img.c: img_resize */

import type { BlockBackend } from "../block/backend.ts";
import type { Prealloc } from "../block/driver.ts";
import { BlockError } from "../block/errors.ts";

export interface ResizeRequest {
  /** What the size becomes, in bytes, from what it was. */
  readonly newSize: (oldBytes: number) => number;
  readonly preallocation: Prealloc;
  /** Without it an image does not become smaller. */
  readonly shrink: boolean;
  readonly signal: AbortSignal | undefined;
}

/** The image would become smaller, and nobody said that it may. */
export class ShrinkError extends BlockError {
  constructor() {
    super("EINVAL", "Use the --shrink option to perform a shrink operation.");
  }
}

export async function resizeImage(
  image: BlockBackend,
  { newSize, preallocation, shrink, signal }: ResizeRequest,
): Promise<void> {
  const oldBytes = await image.getLength();
  const bytes = newSize(oldBytes);
  if (bytes <= 0) throw new BlockError("EINVAL", "New image size must be positive");
  if (bytes <= oldBytes && preallocation !== "off")
    throw new BlockError("EINVAL", "Preallocation can only be used for growing images");
  if (bytes < oldBytes && !shrink) throw new ShrinkError();
  await image.truncate(bytes, preallocation, true, signal);
}
