/** What drivers say when they can't open an image. */

import type { BlockChild } from "../src/block/child.ts";
import { type Coroutine, graphRdlock } from "../src/block/coroutine.ts";
import { BlockError, type Errno, strerror } from "../src/block/errors.ts";
import type { OpeningNode } from "../src/block/open.ts";

/** For what QEMU has no words of its own: the errno's text, with the name of the file. */
export function openFailed(file: BlockChild, errno: Errno): BlockError {
  return new BlockError(errno, `Could not open '${file.node.filename}': ${strerror(errno)}`);
}

/** What a driver has no words for, told with the name of the file: an error of the file that has its errno's text alone. */
export function toOpenFailed(file: BlockChild, error: unknown): unknown {
  const isPlain = error instanceof BlockError && error.message === strerror(error.errno);
  return isPlain ? openFailed(file, error.errno) : error;
}

/** Reads what an image is made of, for a driver whose reads QEMU has no words for. */
export async function readAtOpen<T>(
  co: Coroutine<"none">,
  file: BlockChild,
  read: (co: Coroutine<"read">) => Promise<T>,
): Promise<T> {
  try {
    return await graphRdlock(co, read);
  } catch (error) {
    throw toOpenFailed(file, error);
  }
}

/** For an image that has no backing file, of a format that can have one. */
export function refuseBacking({ flags, optionKeys }: Pick<OpeningNode, "flags" | "optionKeys">): void {
  if (!flags.noBacking && optionKeys().some((key) => key === "backing" || key.startsWith("backing.")))
    throw new BlockError("EINVAL", "Driver doesn't support backing files");
}
