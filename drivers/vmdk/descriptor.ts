/** The text that describes a VMDK image: in a file of its own, or embedded in a sparse extent.  Source: "Virtual Disk Format 1.1". */

import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { alignUp, MiB, SECTOR_SIZE } from "../../src/block/units.ts";

/** Bytes that are looked at for identities and the parent's name, and written anew.  @qemu DESC_SIZE */
export const DESCRIPTOR_BYTES = 20 * SECTOR_SIZE;

/** Longer ones are cut.  @qemu vmdk_read_desc */
const MAX_DESCRIPTOR_BYTES = MiB - 1;

/** Those of a path, as the host has them.  @qemu auto_backing_file */
const MAX_NAME_BYTES = 4095;

/** No content identity: the image has no parent. */
export const NO_CID = 0xffffffff;

export type ExtentType = "FLAT" | "SPARSE" | "ZERO" | "VMFS" | "VMFSSPARSE" | "SESPARSE";

/** One line of the extents' section. */
export interface ExtentLine {
  readonly access: "RW" | "RDONLY" | "NOACCESS";
  readonly sectors: number;
  readonly type: ExtentType;
  /** Absent for ZERO. */
  readonly filename?: string;
  /** In sectors; for FLAT and VMFS. */
  readonly offset: number;
}

/** The text at `offset` as Latin-1, so that every byte is one character; it ends at the first zero byte. */
export async function readDescriptor(
  co: Coroutine<"read">,
  file: BlockChild,
  offset: number,
): Promise<string> {
  const length = Math.min((await file.getLength(co)) - offset, MAX_DESCRIPTOR_BYTES);
  if (length < 4) throw new BlockError("EINVAL", "File is too small, not a valid image");
  return decode(await readBytes(co, file, offset, length));
}

async function readBytes(
  co: Coroutine<"read">,
  file: BlockChild,
  offset: number,
  bytes: number,
): Promise<Uint8Array> {
  try {
    return await file.preadBytes(co, offset, bytes);
  } catch (error) {
    throw BlockError.wrap("Could not read from file", error);
  }
}

function decode(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return Buffer.from(bytes.buffer, bytes.byteOffset, end < 0 ? bytes.length : end).toString("latin1");
}

/** Text in it may be UTF-8. */
function nameOf(latin1: string): string {
  return Buffer.from(latin1, "latin1").toString();
}

/** @qemu vmdk_parse_description */
export function parseCreateType(text: string): string {
  const type = /createType\s*=\s*"([^"]{0,127})"/.exec(text)?.[1];
  if (type === undefined) throw new BlockError("EINVAL", "invalid VMDK image descriptor");
  return type;
}

const EXTENT_TYPES: readonly string[] = ["FLAT", "SPARSE", "ZERO", "VMFS", "VMFSSPARSE", "SESPARSE"];

/** What the text says of extents. Lines that are none of extents are passed over. */
export interface ParsedExtents {
  readonly lines: readonly ExtentLine[];
  /** Why it is not read any further. */
  readonly problem?: BlockError;
}

/** Lines before one that is wrong are good.  @qemu vmdk_parse_extents */
export function parseExtents(text: string): ParsedExtents {
  const lines: ExtentLine[] = [];
  for (const line of text.split("\n")) {
    const match = EXTENT_LINE.exec(line);
    const [, access, count, type = "", name, start] = match ?? [];
    const sectors = Number(count);
    if (!match || (name === undefined && type !== "ZERO") || !(sectors > 0)) continue;
    if (!EXTENT_TYPES.includes(type))
      return { lines, problem: new BlockError("ENOTSUP", `Unsupported extent type '${type}'`) };
    const isWrong = type === "FLAT" ? !(Number(start ?? -1) >= 0) : start !== undefined && type !== "ZERO";
    if (isWrong) return { lines, problem: new BlockError("EINVAL", `Invalid extent line: ${nameOf(line)}`) };
    lines.push({
      access: access as ExtentLine["access"],
      sectors,
      type: type as ExtentType,
      ...(name !== undefined && { filename: nameOf(name) }),
      offset: Number(start ?? 0),
    });
  }
  return { lines };
}

const EXTENT_LINE = /^\s*(RW|RDONLY|NOACCESS)\s+([+-]?\d+)\s+(\w+)\s*(?:"([^"\r]{1,511})"\s*([+-]?\d+)?)?/;

/** What tells which content an image has, and which content its parent must have. */
export interface Identity {
  readonly cid: number;
  readonly parentCid: number;
  /** As it stands there. */
  readonly parentFilename?: string | undefined;
}

/** Undefined: one of both identities is missing.  @qemu vmdk_read_cid, vmdk_parent_open */
export function parseIdentity(text: string): Identity | undefined {
  const parentCid = findCid(text, "parentCID");
  if (!parentCid) return undefined;
  // Where it is missing, the end of "parentCID" is taken for it there.
  const cid = /(?<![A-Za-z])CID\s*=/i.test(text) ? findCid(text, "CID") : parentCid;
  if (!cid) return undefined;
  const hint = /parentFileNameHint\s*=\s*"([^"]*)("?)/.exec(text);
  if (hint && (hint[2] === "" || (hint[1] as string).length > MAX_NAME_BYTES)) return undefined;
  return {
    cid: cid.value,
    parentCid: parentCid.value,
    ...(hint && { parentFilename: nameOf(hint[1] as string) }),
  };
}

interface CidPlace {
  readonly value: number;
  /** Where its digits stand in the text. */
  readonly start: number;
  readonly end: number;
}

function findCid(text: string, key: "CID" | "parentCID"): CidPlace | undefined {
  const match = new RegExp(`(?<![A-Za-z])${key}\\s*=\\s*(?:0x)?([0-9a-f]+)`, "i").exec(text);
  if (!match) return undefined;
  const digits = match[1] as string;
  const end = match.index + match[0].length;
  return { value: Number.parseInt(digits.slice(-8), 16), start: end - digits.length, end };
}

/** The part of the descriptor that identities are in. */
export async function readIdentityText(
  co: Coroutine<"read">,
  file: BlockChild,
  offset: number,
  windowBytes: number,
): Promise<string> {
  return decode(await file.preadBytes(co, offset, windowBytes));
}

/** Says that the content is another one from now on.  @qemu vmdk_write_cid */
export async function writeCid(
  co: Coroutine<"read">,
  file: BlockChild,
  offset: number,
  windowBytes: number,
  cid: number,
): Promise<void> {
  const text = await readIdentityText(co, file, offset, windowBytes);
  const place = findCid(text, "CID");
  if (!place) throw new BlockError("EINVAL");
  const length = await file.getLength(co);
  const bytes = Math.min(windowBytes, alignUp(length - offset, SECTOR_SIZE));
  // Where there is more text than the window shows, the digits take the place of those before.
  const old = place.end - place.start;
  const isAll = offset > 0 || length <= windowBytes;
  const width = isAll && text.length - old + 8 <= bytes ? 8 : old;
  const digits = cid.toString(16).padStart(8, "0").slice(-width).padStart(width, "0");
  const changed = text.slice(0, place.start) + digits + text.slice(place.end);
  const window = Buffer.alloc(bytes);
  window.write(changed, "latin1");
  await file.pwrite(co, offset, window);
}

/** What a new descriptor says. */
export interface NewDescriptor {
  readonly cid: number;
  readonly parentCid: number;
  readonly createType: string;
  readonly parentFilename?: string | undefined;
  readonly extentLines: readonly string[];
  readonly hwVersion: string;
  readonly cylinders: number;
  readonly heads: number;
  readonly adapterType: string;
  readonly toolsVersion: string;
}

/** @qemu vmdk_co_do_create */
export function descriptorText(descriptor: NewDescriptor): Uint8Array {
  const { parentFilename, extentLines } = descriptor;
  const hint = parentFilename === undefined ? "" : `parentFileNameHint="${parentFilename}"`;
  return Buffer.from(
    "# Disk DescriptorFile\n" +
      "version=1\n" +
      `CID=${descriptor.cid.toString(16)}\n` +
      `parentCID=${descriptor.parentCid.toString(16)}\n` +
      `createType="${descriptor.createType}"\n` +
      `${hint}\n` +
      "# Extent description\n" +
      `${extentLines.map((line) => `${line}\n`).join("")}\n` +
      "# The Disk Data Base\n#DDB\n\n" +
      `ddb.virtualHWVersion = "${descriptor.hwVersion}"\n` +
      `ddb.geometry.cylinders = "${descriptor.cylinders}"\n` +
      `ddb.geometry.heads = "${descriptor.heads}"\n` +
      'ddb.geometry.sectors = "63"\n' +
      `ddb.adapterType = "${descriptor.adapterType}"\n` +
      `ddb.toolsVersion = "${descriptor.toolsVersion}"\n`,
  );
}
