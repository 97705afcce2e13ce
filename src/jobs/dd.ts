/** Copies a part of one image's content to the start of another, zeroes and all.  @qemu img_dd */

import type { BlockBackend } from "../block/backend.ts";
import { BlockError, toBlockError } from "../block/errors.ts";
import { MiB } from "../block/units.ts";

/** Blocks follow each other on both sides, so how they are cut makes no difference to what is copied. */
const WINDOW_BYTES = 2 * MiB;

export interface DdRequest {
  readonly source: BlockBackend;
  /** At least `bytes` long. */
  readonly target: BlockBackend;
  /** Where in the source to begin. */
  readonly offset: number;
  readonly bytes: number;
  readonly signal?: AbortSignal | undefined;
}

/** A BlockError says in qemu-img's words which side failed; an abort throws the signal's reason. */
export async function ddImage({ source, target, offset, bytes, signal }: DdRequest): Promise<void> {
  const buffers = [0, 1].map(() => Buffer.allocUnsafeSlow(Math.min(WINDOW_BYTES, bytes)));
  const read = async (index: number): Promise<Uint8Array> => {
    const start = index * WINDOW_BYTES;
    const window = (buffers[index % 2] as Buffer).subarray(0, Math.min(WINDOW_BYTES, bytes - start));
    try {
      if (window.length > 0) await source.readInto(offset + start, window, { signal });
    } catch (error) {
      throw failure("reading from input", error);
    }
    return window;
  };
  let ahead = read(0);
  for (let index = 0; index * WINDOW_BYTES < bytes; index++) {
    const window = await ahead;
    const isLast = (index + 1) * WINDOW_BYTES >= bytes;
    // One window is read while the one before is written.
    ahead = isLast ? Promise.resolve(window) : read(index + 1);
    ahead.catch(() => {});
    try {
      await target.write(index * WINDOW_BYTES, window, { signal });
    } catch (error) {
      await ahead.catch(() => {});
      throw failure("writing to output", error);
    }
  }
}

function failure(doing: string, cause: unknown): BlockError {
  const { errno, message } = toBlockError(cause);
  return new BlockError(errno, `error while ${doing} image file: ${message}`, { cause });
}
