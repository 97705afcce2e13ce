/** Other flags and options for an image that is open.  @qemu qemu-io-cmds.c: reopen_f */

import { BlockError } from "../../block/errors.ts";
import type { parseCacheMode } from "../../block/open-flags.ts";
import { type Options, takeBool } from "../../block/options.ts";
import type { OpenedImage } from "./session.ts";

type CacheMode = ReturnType<typeof parseCacheMode>;

/** `readOnly` and `cache` are those of `-r`, `-w` and `-c`. An error leaves the image as it was. */
export async function changeImage(
  image: OpenedImage,
  readOnly: boolean | undefined,
  cache: CacheMode,
  given: Options,
): Promise<void> {
  const { node } = image.backend;
  // Also where what follows is refused.
  if (readOnly) image.holdsWrite = false;
  if (readOnly !== undefined && given.has("read-only"))
    throw new BlockError("EINVAL", "Cannot set both -r/-w and 'read-only'");
  if (cache && (given.has("cache.direct") || given.has("cache.no-flush")))
    throw new BlockError("EINVAL", "Cannot set both -c and the cache options");
  const becomesReadOnly = readOnly ?? takeBool(new Map(given), "read-only") ?? node.readOnly;
  if (becomesReadOnly && image.copyOnRead)
    throw new BlockError("EINVAL", `Can't set node '${node.nodeName}' to r/o with copy-on-read enabled`);
  if (becomesReadOnly && image.holdsWrite)
    throw new BlockError("EPERM", `Read-only block node '${node.nodeName}' cannot support read-write users`);
  const options = new Map(given);
  await image.backend.reopen({ readOnly, direct: cache?.direct, noFlush: cache?.noFlush, options });
  if (cache) image.writethrough = cache.writethrough;
}
