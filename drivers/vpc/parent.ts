/** The parent of a differencing image: under which name it is looked for, and whether it is the one that is meant. */

import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { KiB, SECTOR_SIZE } from "../../src/block/units.ts";
import { parentPath } from "../parent-path.ts";
import { type DynamicHeader, PARENT_LOCATORS, ParentLocator, text } from "./layout.ts";

/** Longer than any path of Windows, in bytes. */
const MAX_NAME_BYTES = 64 * KiB;

/** A name that the image has of its parent, as its platform writes it. */
interface StoredName {
  readonly code: string;
  readonly name: string;
}

/**
 * The parent's name, relative to the image where that can be: its relative path, else its file's name alone, for
 * another machine's absolute path leads nowhere here.
 */
export async function parentFilename(
  co: Coroutine<"read">,
  file: BlockChild,
  header: DynamicHeader,
): Promise<string | undefined> {
  const names = await storedNames(co, file, header);
  const byCode = (code: string) => names.find((each) => each.code === code)?.name;
  const url = byCode("MacX")?.replace(/^file:\/\/(localhost(?=\/))?/, "");
  const relative = byCode("W2ru") ?? byCode("Wi2r");
  if (relative) return parentPath(relative);
  if (url) return parentPath(decodeUrl(url));
  const absolute = byCode("W2ku") ?? byCode("Wi2k") ?? utf16(Buffer.from(header.parentUnicodeName).swap16());
  return absolute === "" ? undefined : parentPath(absolute);
}

/** Where data of the image's locators ends: behind that, nothing of the image is known. */
export function locatorsEnd(header: DynamicHeader): number {
  return Math.max(
    0,
    ...locators(header).map(({ dataOffset, dataSpace, dataLength }) => {
      const space = dataSpace < dataLength ? dataSpace * SECTOR_SIZE : dataSpace;
      return dataOffset + Math.max(Math.min(space, MAX_NAME_BYTES), dataLength);
    }),
  );
}

function locators({ parentLocators }: DynamicHeader) {
  const all = Array.from({ length: PARENT_LOCATORS }, (_, index) =>
    ParentLocator.read(parentLocators, index * ParentLocator.size),
  );
  return all.filter(
    ({ platformCode, dataLength }) =>
      text(platformCode) !== "\0\0\0\0" && dataLength > 0 && dataLength <= MAX_NAME_BYTES,
  );
}

async function storedNames(
  co: Coroutine<"read">,
  file: BlockChild,
  header: DynamicHeader,
): Promise<StoredName[]> {
  const names: StoredName[] = [];
  const fileBytes = await file.getLength(co);
  for (const { platformCode, dataLength, dataOffset } of locators(header)) {
    if (dataOffset + dataLength > fileBytes) continue;
    const code = text(platformCode);
    const data = await file.preadBytes(co, dataOffset, dataLength);
    names.push({ code, name: code.startsWith("W2") ? utf16(data) : utf8(data) });
  }
  return names;
}

function utf16(data: Uint8Array): string {
  return upToNul(Buffer.from(data).toString("utf16le"));
}

function utf8(data: Uint8Array): string {
  return upToNul(Buffer.from(data).toString("utf8"));
}

function upToNul(name: string): string {
  return name.replace(/\0.*$/s, "");
}

function decodeUrl(url: string): string {
  try {
    return decodeURIComponent(url);
  } catch {
    return url;
  }
}
