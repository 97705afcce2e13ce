/** The dirty bitmaps of an open image, for whoever holds its backend: what a backup needs to know.  @qemu block-dirty-bitmap-* */

import type { BlockBackend } from "./backend.ts";
import {
  addBitmap,
  bitmapFor,
  type DirtyBitmap,
  type DirtyExtent,
  mergeBitmaps,
  type NewBitmap,
  removeBitmap,
} from "./dirty-bitmap.ts";

/** @qemu BlockDirtyInfo */
export interface BitmapInfo {
  readonly name: string;
  /** Bytes that one bit stands for. */
  readonly granularity: number;
  /** Writes mark it. */
  readonly enabled: boolean;
  /** It is stored in the image when that is closed. */
  readonly persistent: boolean;
  /** It was in use when the image was last left, and not stored: it can only be removed. */
  readonly inconsistent: boolean;
  /** Bytes in dirty granules. */
  readonly dirtyBytes: number;
}

/** A bitmap to be merged: of the same image, or of another that is as long. */
export type BitmapSource = string | { readonly image: BlockBackend; readonly name: string };

/** Errors of all methods: BlockError with qemu's words, such as "Dirty bitmap 'x' not found" (ENOENT). */
export class ImageBitmaps {
  readonly #image: BlockBackend;

  constructor(image: BlockBackend) {
    this.#image = image;
  }

  /** The oldest first. */
  list(): readonly BitmapInfo[] {
    return [...this.#image.node.dirtyBitmaps].reverse().map(describe);
  }

  /** A clean bitmap, which marks what is written from now on. Persistent ones need a format that stores them. */
  add(name: string, options: NewBitmap = {}): Promise<void> {
    return this.#image.run((co, { node }) => addBitmap(co, node, name, options));
  }

  /** Also from the file, at once. */
  remove(name: string): Promise<void> {
    return this.#image.run((co, { node }) => removeBitmap(co, node, name));
  }

  enable(name: string): Promise<void> {
    return this.#change(name, (bitmap) => {
      bitmap.enabled = true;
    });
  }

  disable(name: string): Promise<void> {
    return this.#change(name, (bitmap) => {
      bitmap.enabled = false;
    });
  }

  /** Makes all of it clean. */
  clear(name: string): Promise<void> {
    return this.#change(name, (bitmap) => bitmap.clear());
  }

  #change(name: string, fn: (bitmap: DirtyBitmap) => void): Promise<void> {
    return this.#image.run(async (_, { node }) => fn(bitmapFor(node, name, "write")));
  }

  /** Marks in `name` what is dirty in any of the sources, whatever their granularity: all of it, or nothing. */
  merge(name: string, sources: readonly BitmapSource[]): Promise<void> {
    return this.#image.run(async (_, { node }) =>
      mergeBitmaps(
        node,
        name,
        sources.map((source) =>
          typeof source === "string"
            ? { node, name: source }
            : { node: source.image.node, name: source.name },
        ),
      ),
    );
  }

  /**
   * The dirty runs of a range, in order: whole granules, but for the ends of the range. Each is looked up when it is
   * asked for, so that what is written behind it meanwhile is found too.
   *
   *     for await (const { offset, bytes } of image.bitmaps.extents("backup")) ...
   */
  async *extents(
    name: string,
    { offset = 0, bytes = Infinity }: Partial<DirtyExtent> = {},
  ): AsyncGenerator<DirtyExtent, void, undefined> {
    const end = offset + bytes;
    for (let at = offset; ; ) {
      const extent = await this.#image.run(async (_, { node }) =>
        bitmapFor(node, name, "read").nextExtent(at, end),
      );
      if (!extent) return;
      yield extent;
      at = extent.offset + extent.bytes;
    }
  }
}

function describe(bitmap: DirtyBitmap): BitmapInfo {
  const { name, granularity, enabled, persistent, inconsistent, dirtyBytes } = bitmap;
  return { name, granularity, enabled, persistent, inconsistent, dirtyBytes };
}
