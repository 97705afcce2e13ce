/** Which format an image has, by its first bytes and its name.  @qemu find_image_format */

import { BlockChild, Perm } from "./child.ts";
import { type Coroutine, coWrapperMixedUnlocked, graphRdlock } from "./coroutine.ts";
import { allDrivers, type BlockDriver, foreignFormats, loadDriver } from "./driver.ts";
import { BlockError } from "./errors.ts";
import type { BlockNode } from "./node.ts";

/** Bytes that probing looks at.  @qemu BLOCK_PROBE_BUF_SIZE */
export const PROBE_BYTES = 512;

/** Reads the start of the file, and its end if that is needed, and asks every format.  @qemu find_image_format */
export const probeNode = coWrapperMixedUnlocked(
  async (co: Coroutine<"none">, file: BlockNode, filename: string): Promise<BlockDriver> => {
    const formatName = await graphRdlock(co, async (reader) => {
      const fileBytes = await file.getLength(reader);
      const buffer = new Uint8Array(Math.min(PROBE_BYTES, fileBytes));
      try {
        if (fileBytes > 0) await probeRead(reader, file, 0, buffer);
      } catch (error) {
        throw BlockError.wrap("Could not read image for determining its format", error);
      }
      const byStart = probeFormat(buffer, filename);
      return byStart === "raw" ? ((await probeEnd(reader, file, fileBytes)) ?? byStart) : byStart;
    });
    if (formatName === undefined)
      throw new BlockError("ENOENT", "Could not determine image format: No compatible driver found");
    const driver = await loadDriver(formatName);
    if (!driver) throw new BlockError("ENOTSUP", `Image format '${formatName}' is not supported`);
    return driver;
  },
);

/** QEMU looks at no end: there a fixed VHD is raw. Where errors are injected into reads, none is made that QEMU does not make. */
async function probeEnd(
  co: Coroutine<"read">,
  file: BlockNode,
  fileBytes: number,
): Promise<string | undefined> {
  if (file.driver.kind !== "protocol" || fileBytes <= PROBE_BYTES) return undefined;
  const tail = new Uint8Array(PROBE_BYTES);
  try {
    await probeRead(co, file, fileBytes - PROBE_BYTES, tail);
  } catch (error) {
    if (error instanceof BlockError) return undefined;
    throw error;
  }
  return allDrivers().find((driver) => (driver.probeEnd?.(tail, fileBytes) ?? 0) > 0)?.formatName;
}

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
async function probeRead(
  co: Coroutine<"read">,
  file: BlockNode,
  offset: number,
  buffer: Uint8Array,
): Promise<void> {
  const perm = { used: Perm.ConsistentRead, shared: Perm.All };
  await new BlockChild("probe", {}, file, file, perm).pread(co, offset, buffer);
}
