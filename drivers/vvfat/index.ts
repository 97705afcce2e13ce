/**
 * A folder of the host as a disk with a FAT file system, read-only: `fat:DIR`. The folder is looked through when the disk
 * is opened; what its files hold is read when it is asked for.  @qemu block/vvfat.c
 */

import fs from "node:fs";
import type { ProtocolDriver } from "../../src/block/driver.ts";
import { BlockError, toBlockError } from "../../src/block/errors.ts";
import { type IoVector, iovFill, iovLength, iovParts, iovSlice, iovWrite } from "../../src/block/iov.ts";
import type { Options } from "../../src/block/options.ts";
import { SECTOR_SIZE } from "../../src/block/units.ts";
import { type Geometry, geometryOf, makeHead } from "./disk.ts";
import { type Piece, readTree } from "./tree.ts";

const options = {
  dir: { type: "string", strong: true },
  "fat-type": { type: "number", strong: true },
  floppy: { type: "bool", strong: true },
  label: { type: "string", strong: true },
  rw: { type: "bool", strong: true },
} as const;

const MAX_LABEL_BYTES = 11;

export const vvfat: ProtocolDriver<typeof options> = {
  formatName: "vvfat",
  kind: "protocol",
  prefix: "fat",
  options,
  parseFilename,

  async open(_, { node, options: given, flags, requireReadOnly, environment }) {
    const { dir, floppy = false, label, rw = false, "fat-type": fatType = 0 } = given;
    if (dir === undefined) throw new BlockError("EINVAL", "vvfat block driver requires a 'dir' option");
    if (label !== undefined && Buffer.byteLength(label) > MAX_LABEL_BYTES)
      throw new BlockError("EINVAL", "vvfat label cannot be longer than 11 bytes");
    if (fatType === 32) environment.warn("FAT32 has not been tested. You are welcome to do so!");
    if (![0, 12, 16, 32].includes(fatType))
      throw new BlockError("EINVAL", "Valid FAT types are only 12, 16 and 32");
    if (rw) {
      if (flags.readOnly)
        throw new BlockError("EACCES", "Unable to set VVFAT to 'rw' when drive is read-only");
      throw new BlockError("ENOTSUP", "vvfat disks that can be written to ('rw') are not supported");
    }
    requireReadOnly();
    const disk = openDisk(dir, geometryOf(fatType, floppy), label ?? "QEMU VVFAT");
    node.totalSectors = disk.sectors;
    return {
      async pread(_, offset, iov) {
        try {
          disk.read(offset, iov);
        } catch (error) {
          throw toBlockError(error);
        }
      },
      // No file of the host has these bytes at these offsets.
      blockStatus: async (_, _wantZero, _offset, bytes) => ({
        bytes,
        data: true,
        zero: false,
        allocated: true,
      }),
      limits: () => ({ requestAlignment: SECTOR_SIZE }),
    };
  },
};

/** "fat:[TYPE:][floppy:][rw:]DIR", the words in any order.  @qemu vvfat_parse_filename */
function parseFilename(filename: string): Options {
  if (!filename.startsWith("fat:")) throw new BlockError("EINVAL", "File name string must start with 'fat:'");
  const rest = filename.slice("fat:".length);
  // Words are looked for anywhere; the folder is what stands behind the last colon.
  const type = /:(12|16|32):/.exec(filename)?.[1];
  const dir = filename.slice(filename.lastIndexOf(":") + 1);
  return new Map<string, string | number | boolean>([
    ["fat-type", type === undefined ? 0 : Number(type)],
    ["dir", dir === "" ? rest : dir],
    ["floppy", filename.includes(":floppy:")],
    ["rw", filename.includes(":rw:")],
  ]);
}

interface Disk {
  readonly sectors: number;
  readonly read: (offset: number, iov: IoVector) => void;
}

function openDisk(dir: string, geometry: Geometry, label: string): Disk {
  const { clusterSize, rootOffset, rootEntries, clusters, fatBits } = geometry;
  const tooLarge = () =>
    new BlockError(
      "EINVAL",
      `Directory does not fit in FAT${fatBits} (capacity ${(geometry.sectors / 2000).toFixed(2)} MB)`,
    );
  let tree: ReturnType<typeof readTree>;
  try {
    tree = readTree(dir, { clusterSize, rootEntries, clusters, tooLarge, label });
  } catch (error) {
    throw toBlockError(error);
  }
  const { root, pieces } = tree;
  const head = makeHead(geometry, pieces);
  /** Reads what lies at an offset, at most as much as lies there in one piece. */
  const readSome = (offset: number, iov: IoVector): number => {
    const bytes = iovLength(iov);
    if (offset < rootOffset)
      return readFrom(head, offset, iovSlice(iov, 0, Math.min(bytes, rootOffset - offset)));
    const inClusters = offset - rootOffset;
    const piece = findPiece(pieces, Math.floor(inClusters / clusterSize));
    if (!piece) {
      const end = Math.min(bytes, clusterSize - (inClusters % clusterSize));
      return readFrom(root, inClusters, iovSlice(iov, 0, end));
    }
    const part = iovSlice(iov, 0, Math.min(bytes, piece.end * clusterSize - inClusters));
    const inPiece = inClusters - piece.begin * clusterSize;
    if (typeof piece.source !== "string") return readFrom(piece.source, inPiece, part);
    return readFile(piece.source, inPiece, part);
  };
  return {
    sectors: geometry.sectors,
    read(offset, iov) {
      const bytes = iovLength(iov);
      for (let done = 0; done < bytes; ) done += readSome(offset + done, iovSlice(iov, done, bytes));
    },
  };
}

/** The piece that a cluster is of. */
function findPiece(pieces: readonly Piece[], cluster: number): Piece | undefined {
  let low = 0;
  let high = pieces.length;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if ((pieces[middle] as Piece).end <= cluster) low = middle + 1;
    else high = middle;
  }
  const piece = pieces[low];
  return piece && piece.begin <= cluster ? piece : undefined;
}

/** Behind the end of `source` all is zero. */
function readFrom(source: Uint8Array, offset: number, iov: IoVector): number {
  iovFill(iov, 0);
  iovWrite(iovParts(iov), source.subarray(Math.min(offset, source.length), offset + iovLength(iov)));
  return iovLength(iov);
}

/** What a file has become shorter by reads as zeroes. */
function readFile(filename: string, offset: number, iov: IoVector): number {
  iovFill(iov, 0);
  const fd = fs.openSync(filename, "r");
  try {
    let at = offset;
    for (const part of iovParts(iov)) {
      for (let done = 0; done < part.length; ) {
        const got = fs.readSync(fd, part, done, part.length - done, at + done);
        if (got === 0) break;
        done += got;
      }
      at += part.length;
    }
  } finally {
    fs.closeSync(fd);
  }
  return iovLength(iov);
}
