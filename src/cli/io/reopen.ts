/**
 * Other options for an image that is open. Read-only state and cache mode change in place; for a driver's own
 * options the image is closed and opened again.  @qemu qemu-io-cmds.c: reopen_f, bdrv_reopen_prepare
 */

import { BlockBackend } from "../../block/backend.ts";
import { BlockError } from "../../block/errors.ts";
import type { BlockNode } from "../../block/node.ts";
import type { OpenRequest } from "../../block/open.ts";
import { type OpenFlags, parseCacheMode } from "../../block/open-flags.ts";
import { type Options, takeBool } from "../../block/options.ts";
import type { OpenedImage } from "./session.ts";

type CacheMode = ReturnType<typeof parseCacheMode>;

/** Options of every node that may change. */
const COMMON_OPTIONS = ["discard", "detect-zeroes", "auto-read-only"];

/** `readOnly` and `cache` are those of `-r`, `-w` and `-c`. An error leaves the image as it was. */
export async function changeImage(
  image: OpenedImage,
  readOnly: boolean | undefined,
  cache: CacheMode,
  given: Options,
): Promise<void> {
  const { node } = image.backend;
  if (readOnly !== undefined && given.has("read-only"))
    throw new BlockError("EINVAL", "Cannot set both -r/-w and 'read-only'");
  if (cache && (given.has("cache.direct") || given.has("cache.no-flush")))
    throw new BlockError("EINVAL", "Cannot set both -c and the cache options");
  const changes = new Map(given);
  const flags: OpenFlags = {
    ...node.flags,
    readOnly: readOnly ?? takeBool(changes, "read-only") ?? node.flags.readOnly,
    direct: takeBool(changes, "cache.direct") ?? cache?.direct ?? node.flags.direct,
    noFlush: takeBool(changes, "cache.no-flush") ?? cache?.noFlush ?? node.flags.noFlush,
  };
  dropUnchanged(node, changes);
  if (flags.readOnly && image.copyOnRead)
    throw new BlockError("EINVAL", `Can't set node '${node.nodeName}' to r/o with copy-on-read enabled`);
  if (readOnly) image.holdsWrite = false;
  if (flags.readOnly && image.holdsWrite)
    throw new BlockError("EPERM", `Read-only block node '${node.nodeName}' cannot support read-write users`);
  if (changes.size > 0 || flags.direct !== node.flags.direct) await openAgain(image, flags, changes);
  else {
    await image.backend.reopen(flags.readOnly);
    setNoFlush(node, flags.noFlush);
  }
  if (cache) image.writethrough = cache.writethrough;
}

/** Takes out what says nothing new, and refuses what can't change while a node is open. */
function dropUnchanged(node: BlockNode, changes: Options): void {
  for (const [key, value] of changes) {
    const text = String(value);
    if (COMMON_OPTIONS.includes(key) || Object.hasOwn(node.driver.options, key)) {
      // The flag has done its work when the file was opened.
      if (key === "auto-read-only") changes.delete(key);
      continue;
    }
    const current = currentValue(node, key);
    if (current === undefined && (key === "file" || key === "backing"))
      throw new BlockError("ENODEV", `Cannot find device='' nor node-name='${text}'`);
    if (current !== text) throw new BlockError("EINVAL", `Cannot change the option '${shownKey(node, key)}'`);
    changes.delete(key);
  }
}

/** The value of an option that is fixed; undefined: it has none, or cannot be told. */
function currentValue(node: BlockNode, key: string): string | undefined {
  const dot = key.indexOf(".");
  if (dot > 0) {
    const child = node.children.get(key.slice(0, dot));
    return child && currentValue(child.node, key.slice(dot + 1));
  }
  if (key === "driver") return node.driver.formatName;
  if (key === "node-name") return node.nodeName;
  if (key === "filename" && node.driver.kind === "protocol") return node.exactFilename;
  return undefined;
}

/** A child of the node names its option without the child's key. */
function shownKey(node: BlockNode, key: string): string {
  const dot = key.indexOf(".");
  const child = dot > 0 ? node.children.get(key.slice(0, dot)) : undefined;
  return child ? shownKey(child.node, key.slice(dot + 1)) : key;
}

async function openAgain(image: OpenedImage, flags: OpenFlags, changes: Options): Promise<void> {
  const { request } = image;
  if (!request) throw new BlockError("ENOTSUP", "The options of a temporary snapshot cannot be changed");
  const wanted: OpenRequest = { ...request, flags, options: new Map([...request.options, ...changes]) };
  await image.backend.close();
  try {
    image.backend = await BlockBackend.open(wanted);
    image.request = wanted;
  } catch (error) {
    image.backend = await BlockBackend.open(request);
    throw error;
  }
}

/** Below the image too, but not in its backing files. */
function setNoFlush(node: BlockNode, noFlush: boolean): void {
  if (node.flags.noFlush === noFlush) return;
  node.flags = { ...node.flags, noFlush };
  for (const edge of node.children.values()) if (!edge.role.cow) setNoFlush(edge.node, noFlush);
}
