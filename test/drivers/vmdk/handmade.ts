/** VMDK extents as VMware's products write them and qemu-img does not, made by hand from the format's description. */

import zlib from "node:zlib";
import {
  CowdHeader,
  GrainMarker,
  Marker,
  SeConstHeader,
  SeVolatileHeader,
  SparseHeader,
} from "../../../drivers/vmdk/layout.ts";

const SECTOR = 512;

/** A file that grows by what is put into it. */
class Sectors {
  readonly #parts: Buffer[] = [];
  #bytes = 0;

  get next(): number {
    return this.#bytes / SECTOR;
  }

  /** Appends, padded to whole sectors; the sector where it begins. */
  append(content: Uint8Array): number {
    const sector = this.next;
    const padded = Buffer.alloc(Math.ceil(content.length / SECTOR) * SECTOR);
    padded.set(content);
    this.#parts.push(padded);
    this.#bytes += padded.length;
    return sector;
  }

  /** What was appended at `sector` as the `index`th part becomes something else. */
  replace(index: number, content: Uint8Array): void {
    (this.#parts[index] as Buffer).set(content);
  }

  get content(): Buffer {
    return Buffer.concat(this.#parts);
  }
}

/** A table of 32-bit entries. */
function table(entries: readonly number[], length: number): Uint8Array {
  const view = new DataView(new ArrayBuffer(length * 4));
  for (const [index, entry] of entries.entries()) view.setUint32(index * 4, entry, true);
  return new Uint8Array(view.buffer);
}

export function descriptor(createType: string, lines: readonly string[], more = ""): string {
  return (
    "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n" +
    `createType="${createType}"\n${more}\n# Extent description\n${lines.join("\n")}\n\n# The Disk Data Base\n#DDB\n`
  );
}

const NO_BYTES = new Uint8Array(0);

/** As a product that exports OVF packages streams it: what is where comes behind it, and the header comes last. */
export function streamOptimized(
  content: Uint8Array,
  isPresent: (grain: number) => boolean,
  hasMarkers = true,
): Buffer {
  const grainBytes = 128 * SECTOR;
  const grains = Math.ceil(content.length / grainBytes);
  const file = new Sectors();
  const fields = {
    magic: 0x564d444b,
    version: 3,
    flags: hasMarkers ? 0x30001 : 0x10001,
    capacity: content.length / SECTOR,
    grainSize: 128,
    descriptorOffset: 1,
    descriptorSize: 20,
    tableEntries: 512,
    backupDirectoryOffset: 0,
    directoryOffset: 2 ** 64 - 2 ** 32,
    grainOffset: 128n,
    uncleanShutdown: 0,
    lineEnds: Uint8Array.from([0x0a, 0x20, 0x0d, 0x0a]),
    compression: 1,
  };
  const header = Buffer.from(SparseHeader.write(fields));
  header.fill(0xff, SparseHeader.offsetOf.directoryOffset, SparseHeader.offsetOf.directoryOffset + 8);
  file.append(header);
  const text = descriptor("streamOptimized", [`RW ${content.length / SECTOR} SPARSE "stream.vmdk"`]);
  const area = Buffer.alloc(127 * SECTOR);
  area.write(text);
  file.append(area);
  const directory: number[] = [];
  for (let first = 0; first < grains; first += 512) {
    const entries: number[] = [];
    for (let grain = first; grain < Math.min(first + 512, grains); grain++) {
      if (!isPresent(grain)) {
        entries.push(0);
        continue;
      }
      const data = zlib.deflateSync(content.subarray(grain * grainBytes, (grain + 1) * grainBytes));
      const marker = GrainMarker.write({ sector: grain * 128, size: data.length });
      entries.push(file.append(hasMarkers ? Buffer.concat([marker, data]) : data));
    }
    // Tables that would be empty are left out.
    if (entries.every((entry) => entry === 0)) directory.push(0);
    else {
      file.append(Marker.write({ sectors: 4, size: 0, type: 1 }));
      directory.push(file.append(table(entries, 512)));
    }
  }
  file.append(Marker.write({ sectors: 1, size: 0, type: 2 }));
  const directoryOffset = file.append(table(directory, Math.max(directory.length, 1)));
  file.append(Marker.write({ sectors: 1, size: 0, type: 3 }));
  file.append(SparseHeader.write({ ...fields, directoryOffset }));
  file.append(new Uint8Array(SECTOR));
  return file.content;
}

/** ESX's older sparse extent: grains of one sector in tables of 4096, made only where there is something. */
export function cowd(content: Uint8Array, isPresent: (grain: number) => boolean, grainSectors = 1): Buffer {
  const grainBytes = grainSectors * SECTOR;
  const grains = Math.ceil(content.length / grainBytes);
  const tables = Math.ceil(grains / 4096);
  const directorySectors = Math.ceil((tables * 4) / SECTOR);
  const file = new Sectors();
  const header = {
    magic: 0x44574f43,
    version: 1,
    flags: 3,
    capacity: content.length / SECTOR,
    grainSize: grainSectors,
    directoryOffset: 4,
    directoryEntries: tables,
    nextFree: 0,
    cylinders: 0,
    heads: 0,
    sectors: 0,
  };
  file.append(CowdHeader.write(header));
  file.append(new Uint8Array(3 * SECTOR));
  file.append(new Uint8Array(directorySectors * SECTOR));
  const directory: number[] = [];
  for (let first = 0; first < grains; first += 4096) {
    const entries: number[] = [];
    for (let grain = first; grain < Math.min(first + 4096, grains); grain++)
      entries.push(
        isPresent(grain) ? file.append(content.subarray(grain * grainBytes, (grain + 1) * grainBytes)) : 0,
      );
    directory.push(entries.every((entry) => entry === 0) ? 0 : file.append(table(entries, 4096)));
  }
  file.replace(2, table(directory, tables));
  return file.content;
}

export type SeGrain = "none" | "unmapped" | "zero" | "data";

/** ESX's newer sparse extent: entries of 64 bits that say what a grain of 4 KiB is. */
export function seSparse(
  content: Uint8Array,
  kindOf: (grain: number) => SeGrain,
  change: (header: ReturnType<typeof SeConstHeader.read>) => void = () => {},
  changeVolatile: (header: ReturnType<typeof SeVolatileHeader.read>) => void = () => {},
): Buffer {
  const grainBytes = 8 * SECTOR;
  const grains = Math.ceil(content.length / grainBytes);
  const tables = Math.ceil(grains / 4096);
  const entries = new DataView(new ArrayBuffer(tables * 64 * SECTOR));
  const data: Uint8Array[] = [];
  for (let grain = 0; grain < grains; grain++) {
    const kind = kindOf(grain);
    const at = grain * 8;
    if (kind === "unmapped") entries.setUint32(at + 4, 0x10000000, true);
    if (kind === "zero") entries.setUint32(at + 4, 0x20000000, true);
    if (kind !== "data") continue;
    const index = BigInt(data.length);
    entries.setBigUint64(at, 0x3000000000000000n | (index >> 12n) | ((index & 0xfffn) << 48n), true);
    const bytes = new Uint8Array(grainBytes);
    bytes.set(content.subarray(grain * grainBytes, (grain + 1) * grainBytes));
    data.push(bytes);
  }
  const directory = new DataView(new ArrayBuffer(SECTOR));
  for (let index = 0; index < tables; index++)
    directory.setBigUint64(index * 8, 0x1000000000000000n | BigInt(index), true);
  const header = SeConstHeader.read(new Uint8Array(SECTOR));
  Object.assign(header, {
    magic: 0xcafebaben,
    version: 0x200000001n,
    capacity: content.length / SECTOR,
    grainSize: 8n,
    tableSize: 64n,
    volatileHeaderOffset: 1,
    volatileHeaderSize: 1,
    directoryOffset: 2,
    directorySize: 1,
    tablesOffset: 8,
    tablesSize: tables * 64,
    grainsOffset: 8 + tables * 64,
    grainsSize: data.length * 8,
  });
  change(header);
  const volatile = {
    magic: 0xcafecafen,
    freeTableNumber: 0n,
    nextTransaction: 0n,
    replayJournal: 0n,
    padding: NO_BYTES,
  };
  changeVolatile(volatile);
  const file = new Sectors();
  file.append(SeConstHeader.write(header));
  file.append(SeVolatileHeader.write(volatile));
  file.append(new Uint8Array(directory.buffer));
  file.append(new Uint8Array(5 * SECTOR));
  file.append(new Uint8Array(entries.buffer));
  for (const bytes of data) file.append(bytes);
  return file.content;
}
