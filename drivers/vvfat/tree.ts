/** A folder of the host as clusters of a FAT file system: where each file and folder lies. */

import fs from "node:fs";
import path from "node:path";
import { BlockError } from "../../src/block/errors.ts";
import { ENTRY_BYTES, labelEntry, longEntries, makeShortName, setCluster, shortEntry } from "./names.ts";

/** A longer file can't be: QEMU keeps sizes in 31 bits. */
const MAX_FILE_BYTES = 0x7fffffff;

/** Clusters [begin, end) that hold a file of the host, or the entries of a folder. */
export interface Piece {
  readonly begin: number;
  readonly end: number;
  readonly source: string | Buffer;
}

export interface Tree {
  readonly root: Buffer;
  /** In the order of their clusters. */
  readonly pieces: readonly Piece[];
}

export interface TreeLimits {
  readonly clusterSize: number;
  /** Of the folder that is the root; undefined: as many as there are. */
  readonly rootEntries: number | undefined;
  /** Clusters that there are, those of the root included. */
  readonly clusters: number;
  /** Of the volume. */
  readonly label: string;
  /** Said where it does not fit. */
  readonly tooLarge: () => BlockError;
}

/** Clusters that stand for a root of a fixed length. */
const FIXED_ROOT_CLUSTERS = 2;

/** A file or folder whose first cluster is not known yet. */
interface Pending {
  readonly filename: string;
  readonly stat: fs.Stats;
  readonly entry: Buffer;
}

interface Folder {
  readonly entries: readonly Buffer[];
  readonly pending: readonly Pending[];
}

/** Folder by folder: what a folder has gets its clusters one after the other, and after that what its folders have. */
export function readTree(directory: string, limits: TreeLimits): Tree {
  const { clusterSize, rootEntries } = limits;
  const root = readFolder(directory, [labelEntry(limits.label)]);
  const rootBytes = root.entries.length * ENTRY_BYTES;
  if (rootEntries !== undefined && root.entries.length > rootEntries)
    throw new BlockError("EINVAL", "Too many entries in root directory");
  let next = rootEntries === undefined ? Math.ceil(rootBytes / clusterSize) : FIXED_ROOT_CLUSTERS;
  const pieces: Piece[] = [];
  const folders: { readonly content: Buffer; readonly entries: readonly Buffer[] }[] = [];
  const place = ({ entry }: Pending, bytes: number, source: string | Buffer) => {
    const begin = next;
    next += Math.ceil(bytes / clusterSize);
    if (next > limits.clusters) throw limits.tooLarge();
    // A file of no length has no clusters.
    if (next === begin) return;
    setCluster(entry, begin);
    pieces.push({ begin, end: next, source });
  };
  // What lies in a folder comes behind all that is waiting.
  const queue = root.pending.map((item) => ({ item, parent: 0 }));
  for (const { item, parent } of queue) {
    if (!item.stat.isDirectory()) {
      place(item, item.stat.size, item.filename);
      continue;
    }
    const own = shortEntry(".".padEnd(11), item.stat);
    const above = shortEntry("..".padEnd(11), fs.statSync(path.join(item.filename, "..")));
    const folder = readFolder(item.filename, [own, above]);
    const begin = next;
    setCluster(own, begin);
    setCluster(above, parent);
    // Filled when the clusters of what lies in it are known.
    const content = Buffer.alloc(
      Math.ceil((folder.entries.length * ENTRY_BYTES) / clusterSize) * clusterSize,
    );
    place(item, content.length, content);
    folders.push({ content, entries: folder.entries });
    for (const child of folder.pending) queue.push({ item: child, parent: begin });
  }
  for (const { content, entries } of folders) Buffer.concat(entries).copy(content);
  return { root: Buffer.concat(root.entries), pieces };
}

/** The entries of a folder behind those it begins with, in the order in which the host has them. */
function readFolder(directory: string, first: readonly Buffer[]): Folder {
  const entries = [...first];
  const pending: Pending[] = [];
  const taken = new Set<string>();
  let folder: fs.Dir;
  try {
    folder = fs.opendirSync(directory);
  } catch (error) {
    throw new BlockError("EIO", `Could not read directory ${directory}`, { cause: error });
  }
  try {
    for (let found = folder.readSync(); found; found = folder.readSync()) {
      const filename = path.join(directory, found.name);
      const stat = fs.statSync(filename, { throwIfNoEntry: false });
      if (!stat) continue;
      if (!stat.isDirectory() && stat.size > MAX_FILE_BYTES)
        throw new BlockError("EFBIG", `File ${filename} is larger than 2GB`);
      const shortName = makeShortName(found.name, taken);
      taken.add(shortName);
      const entry = shortEntry(shortName, stat);
      entries.push(...longEntries(found.name, shortName), entry);
      pending.push({ filename, stat, entry });
    }
  } finally {
    folder.closeSync();
  }
  return { entries, pending };
}
