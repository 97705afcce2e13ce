/** Names of nodes: protocol prefixes, names relative to an overlay, and the name that a node shows.  @qemu path_has_protocol, bdrv_refresh_filename */

import { BlockError } from "./errors.ts";
import type { BlockNode } from "./node.ts";
import type { NestedOptions } from "./options.ts";

/** The `nbd` of `nbd://...`: what stands before the first colon, if no slash does. */
export function protocolPrefix(filename: string): string | undefined {
  const match = /^([^:/]*):/.exec(filename);
  return match?.[1];
}

export function isAbsolute(filename: string): boolean {
  return filename.startsWith("/");
}

/** `filename` as it is meant by an image named `base`: relative to its directory.  @qemu path_combine */
export function combinePath(base: string, filename: string): string {
  if (isAbsolute(filename) || protocolPrefix(filename) !== undefined) return filename;
  const prefix = protocolPrefix(base);
  const start = prefix === undefined ? 0 : prefix.length + 1;
  const slash = base.lastIndexOf("/");
  return (slash >= start ? base.slice(0, slash + 1) : base.slice(0, start)) + filename;
}

/** The backing filename that `node` names, as it can be opened from here.  @qemu bdrv_get_full_backing_filename */
export function fullBackingFilename(node: BlockNode): string | undefined {
  const { backingFilename } = node;
  if (backingFilename === undefined || backingFilename === "") return undefined;
  return resolveReference(node, backingFilename);
}

/** The same; undefined also where a relative name has nothing that it could be relative to. */
export function knownBackingFilename(node: BlockNode): string | undefined {
  try {
    return fullBackingFilename(node);
  } catch (error) {
    if (error instanceof BlockError) return undefined;
    throw error;
  }
}

/** A filename that stands inside the image of `node`. */
export function resolveReference(node: BlockNode, filename: string): string {
  if (protocolPrefix(filename) !== undefined || isAbsolute(filename)) return filename;
  // The directory is that of the file in which the image lies, whatever is in between.  @qemu bdrv_dirname
  let holder: BlockNode | undefined = node;
  while (holder && holder.driver.kind !== "protocol") holder = holder.primary?.node;
  if (!holder?.exactFilename)
    throw new BlockError("EINVAL", `Cannot use relative backing file names for '${node.filename}'`);
  return combinePath(holder.exactFilename, filename);
}

/**
 * Sets the name that a node shows: its file's plain name where that alone opens the same; else `json:{...}` with
 * all that is needed.
 */
export function refreshFilename(node: BlockNode): void {
  for (const edge of node.children.values()) refreshFilename(edge.node);
  if (node.driver.kind === "protocol") {
    // A protocol driver sets its exact filename in open.
    node.filename = node.exactFilename || jsonFilename(node);
    return;
  }
  const primary = node.primary?.node;
  if (node.driver.kind === "filter") node.exactFilename = node.driver.filenameOf?.(node) ?? "";
  else {
    const plain =
      primary && primary.driver.kind !== "format" && node.ownOptions.size === 0 && !node.childrenOverridden;
    node.exactFilename = plain ? primary.exactFilename : "";
  }
  node.filename = node.exactFilename || jsonFilename(node);
}

/** All that opens the same node again.  @qemu bs->full_open_options */
function fullOpenOptions(node: BlockNode): NestedOptions {
  const children: Record<string, NestedOptions | NestedOptions[]> = {};
  for (const [name, edge] of node.children) {
    // A backing file that the image names itself needs no telling.
    if (edge.role.implied || (edge.role.cow && !node.childrenOverridden)) continue;
    const options = fullOpenOptions(edge.node);
    // "children.0", "children.1": an array.
    const [list, index] = name.split(".");
    if (index === undefined) children[name] = options;
    else children[list as string] = [...((children[list as string] ?? []) as NestedOptions[]), options];
  }
  return { ...Object.fromEntries(node.ownOptions), driver: node.driver.formatName, ...children };
}

function jsonFilename(node: BlockNode): string {
  return `json:${toQemuJson(fullOpenOptions(node))}`;
}

/** QEMU's objects come out in the order of their hash tables, which those who compare its output rely on. */
const HASH_BUCKETS = 512;

/** The hash of Samba's tdb, which those tables use: text to one of the buckets. */
function bucketOf(key: string): number {
  const bytes = new TextEncoder().encode(key);
  let sum = Math.imul(0x238f13af, bytes.length);
  for (const [index, byte] of bytes.entries()) sum = (sum + (byte << ((index * 5) % 24))) | 0;
  return ((Math.imul(1103515243, sum) + 12345) >>> 0) % HASH_BUCKETS;
}

/** JSON with the spaces that QEMU's own writer puts. */
function toQemuJson(value: unknown): string {
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(toQemuJson).join(", ")}]`;
  // Of those in one bucket the latest comes first.
  const members = Object.entries(value)
    .reverse()
    .sort(([a], [b]) => bucketOf(a) - bucketOf(b))
    .map(([key, member]) => `${JSON.stringify(key)}: ${toQemuJson(member)}`);
  return `{${members.join(", ")}}`;
}
