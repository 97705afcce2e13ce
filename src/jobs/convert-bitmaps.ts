/** The persistent bitmaps of a source, copied with its content.  @qemu qemu-img.c: convert_copy_bitmaps */

import type { BlockBackend } from "../block/backend.ts";
import type { DirtyBitmap } from "../block/dirty-bitmap.ts";
import { BlockError } from "../block/errors.ts";

export interface BitmapOptions {
  /** The source's persistent bitmaps are copied too. */
  readonly bitmaps?: boolean | undefined;
  /** Those that are inconsistent are left out, with a warning; else they are an error. */
  readonly skipBrokenBitmaps?: boolean | undefined;
}

/** Throws before anything is copied if the sources' bitmaps can't be.  @qemu convert_check_bitmaps */
export function checkSourceBitmaps(
  sources: readonly BlockBackend[],
  { bitmaps, skipBrokenBitmaps }: BitmapOptions,
): void {
  if (!bitmaps) return;
  if (sources.length > 1) throw new BlockError("ENOTSUP", "Copying bitmaps only possible with single source");
  for (const source of sources) {
    if (!source.node.ops.supportsBitmaps?.()) throw new BlockError("ENOTSUP", "Source lacks bitmap support");
    const broken = skipBrokenBitmaps
      ? undefined
      : persistent(source).find(({ inconsistent }) => inconsistent);
    if (broken)
      throw new BlockError("EINVAL", `Cannot copy inconsistent bitmap '${broken.name}'`, {
        hint: "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it",
      });
  }
}

export function checkTargetBitmaps({ node }: BlockBackend, { bitmaps }: BitmapOptions): void {
  if (bitmaps && !node.ops.supportsBitmaps?.())
    throw new BlockError("ENOTSUP", `Format driver '${node.driver.formatName}' does not support bitmaps`);
}

/** Copies all of them, as they are when the content has been copied. */
export async function copyBitmaps(
  source: BlockBackend,
  target: BlockBackend,
  warn: (message: string) => void,
): Promise<void> {
  for (const bitmap of persistent(source)) {
    const { name, granularity, enabled } = bitmap;
    if (bitmap.inconsistent) {
      warn(`Skipping inconsistent bitmap '${name}'`);
      continue;
    }
    try {
      await target.bitmaps.add(name, { granularity, persistent: true, disabled: !enabled });
    } catch (error) {
      throw BlockError.wrap(`Failed to create bitmap ${name}`, error);
    }
    try {
      await target.bitmaps.merge(name, [{ image: source, name }]);
    } catch (error) {
      await target.bitmaps.remove(name);
      throw BlockError.wrap(`Failed to populate bitmap ${name}`, error);
    }
  }
}

/** The newest first, as qemu-img goes through them. */
function persistent({ node }: BlockBackend): readonly DirtyBitmap[] {
  return node.dirtyBitmaps.filter((bitmap) => bitmap.persistent);
}
