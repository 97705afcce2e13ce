/** Which format an image has, by its first bytes and its name.  @qemu find_image_format */

import { BlockChild, Perm } from "./child.ts";
import { type Coroutine, coWrapperMixedUnlocked, graphRdlock } from "./coroutine.ts";
import { allDrivers, type BlockDriver, foreignFormats, loadDriver } from "./driver.ts";
import { BlockError } from "./errors.ts";
import type { BlockNode } from "./node.ts";

/** Bytes that probing looks at.  @qemu BLOCK_PROBE_BUF_SIZE */
export const PROBE_BYTES = 512;

/** Reads the start of the file and asks every format.  @qemu find_image_format */
export const probeNode = coWrapperMixedUnlocked(
  async (co: Coroutine<"none">, file: BlockNode, filename: string): Promise<BlockDriver> => {
    const head = await graphRdlock(co, async (reader) => {
      const bytes = Math.min(PROBE_BYTES, await file.getLength(reader));
      const buffer = new Uint8Array(bytes);
      try {
        if (bytes > 0) await probeRead(reader, file, buffer);
      } catch (error) {
        throw BlockError.wrap("Could not read image for determining its format", error);
      }
      return buffer;
    });
    const formatName = probeFormat(head, filename);
    if (formatName === undefined)
      throw new BlockError("ENOENT", "Could not determine image format: No compatible driver found");
    const driver = await loadDriver(formatName);
    if (!driver) throw new BlockError("ENOTSUP", `Image format '${formatName}' is not supported`);
    return driver;
  },
);

/** The name of the format that is surest of an image that starts with `head`.  @qemu bdrv_probe_all */
export function probeFormat(head: Uint8Array, filename: string): string | undefined {
  return matchFormats(head, filename)[0]?.formatName;
}

/** All formats that an image that starts with `head` may be of; the surest first, and of equal ones the one registered first. */
export function matchFormats(
  head: Uint8Array,
  filename: string,
): readonly { readonly formatName: string; readonly score: number }[] {
  const formats = allDrivers().filter((driver) => driver.kind === "format");
  return [...formats, ...foreignFormats()]
    .map(({ formatName, probe }) => ({ formatName, score: probe?.(head, filename) ?? 0 }))
    .filter(({ score }) => score > 0)
    .sort((a, b) => b.score - a.score);
}

/** The file has no parent yet, so it is read through an edge that nobody else sees. */
async function probeRead(co: Coroutine<"read">, file: BlockNode, buffer: Uint8Array): Promise<void> {
  const perm = { used: Perm.ConsistentRead, shared: Perm.All };
  await new BlockChild("probe", {}, file, file, perm).pread(co, 0, buffer);
}
