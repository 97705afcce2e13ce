/** Entries of FAT directories: short names, long names, times. Source: Microsoft's "FAT: General Overview of On-Disk Format". */

import type { Stats } from "node:fs";

export const ENTRY_BYTES = 32;

/** Attributes. */
const DIRECTORY = 0x10;
const ARCHIVE = 0x20;
const LABEL = 0x28;
const LONG_NAME = 0x0f;

/** Characters of a long name that one entry holds, and where they are in it. */
const LONG_PLACES = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30] as const;
const LAST_LONG = 0x40;

/** The entry that names the volume. */
export function labelEntry(label: string): Buffer {
  const entry = Buffer.alloc(ENTRY_BYTES);
  entry.write(label.padEnd(11), "latin1");
  entry[11] = LABEL;
  return entry;
}

/** The entry of a file or folder, whose first cluster is still open. */
export function shortEntry(shortName: string, stat: Stats): Buffer {
  const entry = Buffer.alloc(ENTRY_BYTES);
  entry.write(shortName, "latin1");
  entry[11] = stat.isDirectory() ? DIRECTORY : ARCHIVE;
  writeTime(entry, 14, stat.ctime);
  entry.writeUInt16LE(dateOf(stat.atime), 18);
  writeTime(entry, 22, stat.mtime);
  entry.writeUInt32LE(stat.isDirectory() ? 0 : stat.size, 28);
  return entry;
}

export function setCluster(entry: Buffer, cluster: number): void {
  entry.writeUInt16LE(cluster % 0x10000, 26);
  entry.writeUInt16LE(Math.floor(cluster / 0x10000), 20);
}

function writeTime(entry: Buffer, at: number, time: Date): void {
  entry.writeUInt16LE((time.getHours() << 11) | (time.getMinutes() << 5) | (time.getSeconds() >> 1), at);
  entry.writeUInt16LE(dateOf(time), at + 2);
}

/** FAT's years are from 1980 on. */
function dateOf(time: Date): number {
  return (((time.getFullYear() - 1980) << 9) | ((time.getMonth() + 1) << 5) | time.getDate()) & 0xffff;
}

/** The entries that hold a long name, the last part first, as they stand before the short one's. */
export function longEntries(name: string, shortName: string): Buffer[] {
  let checksum = 0;
  for (const character of Buffer.from(shortName, "latin1"))
    checksum = (((checksum & 1) << 7) + (checksum >> 1) + character) & 0xff;
  const count = Math.ceil(name.length / LONG_PLACES.length);
  const entries = Array.from({ length: count }, (_, part) => {
    const entry = Buffer.alloc(ENTRY_BYTES);
    entry[0] = (part + 1) | (part + 1 === count ? LAST_LONG : 0);
    entry[11] = LONG_NAME;
    entry[13] = checksum;
    for (const [index, place] of LONG_PLACES.entries()) {
      const at = part * LONG_PLACES.length + index;
      // One zero ends it, and all ones fill it up.
      const unit = at < name.length ? name.charCodeAt(at) : at === name.length ? 0 : 0xffff;
      entry.writeUInt16LE(unit, place);
    }
    return entry;
  });
  return entries.reverse();
}

/** Eight and three characters of capitals; what does not fit gets a number, as does what `taken` has already. */
export function makeShortName(name: string, taken: ReadonlySet<string>): string {
  const lastDot = name.lastIndexOf(".");
  let base = "";
  let extension = "";
  let isLossy = false;
  /** Where characters go: between the first dot and the last they go nowhere. */
  let part: "base" | "none" | "extension" = "base";
  for (let at = 0; at < name.length; ) {
    const character = String.fromCodePoint(name.codePointAt(at) as number);
    if (character === "." && base !== "") {
      part = at === lastDot ? "extension" : "none";
      if (part === "none") isLossy = true;
    } else {
      const short = character.toUpperCase();
      const isFull = part === "extension" ? extension.length === 3 : base.length === 8;
      if (part === "none" || isFull || !/^[0-9A-Z$%'\-_@~`!(){}^#&]$/.test(short)) isLossy = true;
      else if (part === "extension") extension += short;
      else base += short;
    }
    at += character.length;
  }
  const plain = base.padEnd(8) + extension.padEnd(3);
  if (!isLossy && !taken.has(plain)) return plain;
  for (let number = 1; ; number++) {
    const tail = `~${number}`;
    const numbered = (base.slice(0, 8 - tail.length) + tail).padEnd(8) + extension.padEnd(3);
    if (!taken.has(numbered)) return numbered;
  }
}
