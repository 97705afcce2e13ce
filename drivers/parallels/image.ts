/** One expandable image: opened, read and written. The invariants stand at the head of the driver.  @qemu block/parallels.c */

import type { BlockStatus } from "../../src/block/block-status.ts";
import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { type IoVector, iovFill, iovLength, iovSlice } from "../../src/block/iov.ts";
import type { OpeningNode } from "../../src/block/open.ts";
import type { OptionValues } from "../../src/block/options.ts";
import { MAX_LENGTH, MiB, SECTOR_SIZE } from "../../src/block/units.ts";
import { PagedTable } from "../paged-table.ts";
import { Mutex } from "../qcow2/mutex.ts";
import { cString, isParallels } from "../signatures.ts";
import { loadExtension } from "./extension.ts";
import { BAT_ENTRY_BYTES, BAT_OFFSET, Header, type HeaderRecord, IN_USE, OLD_MAGIC } from "./layout.ts";
import { batEnd, beginWriting, clustersOf, dropExtension, findRun, type Run, type State } from "./state.ts";

export const options = {
  "prealloc-size": { type: "size" },
  "prealloc-mode": { type: "string", values: ["falloc", "truncate"] },
} as const;

const DEFAULT_PREALLOC_BYTES = 128 * MiB;

/** Sectors of a cluster; with one more, bytes would not fit into 31 bits. */
const MAX_TRACKS = Math.floor((2 ** 31 - 1) / 513);
/** What a signed count of bytes can tell. */
const MAX_BAT_ENTRIES = Math.floor((2 ** 31 - 1) / BAT_ENTRY_BYTES);

/** Fills a buffer with what lies below an image. */
export type ReadBelow = (co: Coroutine<"read">, offset: number, iov: IoVector) => Promise<void>;

export interface ImageSettings extends Pick<OpeningNode<typeof options>, "node" | "flags" | "environment"> {
  readonly file: BlockChild;
  readonly options: OptionValues<typeof options>;
  /** Of a bundle: its size is not the node's, nor are its bitmaps. */
  readonly isPart: boolean;
  /** Lower images of a bundle are only read. */
  readonly isWritable: boolean;
  readonly below: () => ReadBelow | undefined;
}

export async function openImage(reader: Coroutine<"read">, settings: ImageSettings): Promise<State> {
  const { node, file, options: given, flags, environment, isPart, isWritable, below } = settings;
  const header = Header.read(await file.preadBytes(reader, 0, Header.size));
  const { clusterSize, entryUnit, sectors } = checkHeader(header);
  if (!isPart) node.totalSectors = Number(sectors);
  const bat = new PagedTable({
    file,
    offset: BAT_OFFSET,
    entries: header.batEntries,
    entryBytes: BAT_ENTRY_BYTES,
    littleEndian: true,
  });
  const isUnclean = header.inUse === IN_USE;
  if (isUnclean && isWritable && !flags.check)
    throw new BlockError("EACCES", "parallels: Image was not closed correctly; cannot be opened read/write");
  const preallocSize = given["prealloc-size"] ?? DEFAULT_PREALLOC_BYTES;
  const canTruncate = file.node.ops.hasZeroInit?.() ?? false;
  const state: State = {
    node,
    file,
    header,
    clusterSize,
    entryUnit,
    bat,
    preallocBytes: Math.max(clusterSize, preallocSize - (preallocSize % SECTOR_SIZE)),
    preallocMode: canTruncate ? (given["prealloc-mode"] ?? "falloc") : "falloc",
    isUnclean,
    dataEnd: 0,
    staleEnd: 0,
    lock: new Mutex(),
    below,
  };
  if (header.extensionOffset !== 0) {
    if (isWritable) environment.warn("Format Extension ignored in RW mode");
    else if (!isPart)
      await loadExtension(reader, { node, file, clusterSize, sectors }, header.extensionOffset * SECTOR_SIZE);
  }
  if (isWritable) await beginWriting(reader, state);
  return state;
}

interface Geometry {
  readonly clusterSize: number;
  readonly entryUnit: number;
  readonly sectors: bigint;
}

/** @qemu parallels_open */
function checkHeader(header: HeaderRecord): Geometry {
  if (!isParallels(Header.write(header))) throw new BlockError("EINVAL", "Image not in Parallels format");
  const { tracks, batEntries } = header;
  const isOld = cString(header.magic) === OLD_MAGIC;
  if (tracks === 0) throw new BlockError("EINVAL", "Invalid image: Zero sectors per track");
  if (tracks > MAX_TRACKS) throw new BlockError("EFBIG", "Invalid image: Too big cluster");
  if (batEntries > MAX_BAT_ENTRIES) throw new BlockError("EFBIG", "Catalog too large");
  const clusterSize = tracks * SECTOR_SIZE;
  return {
    clusterSize,
    entryUnit: isOld ? SECTOR_SIZE : clusterSize,
    sectors: isOld ? BigInt.asUintN(32, header.sectors) : header.sectors,
  };
}

export async function pread(
  co: Coroutine<"read">,
  state: State,
  offset: number,
  iov: IoVector,
): Promise<void> {
  const { file } = state;
  const bytes = iovLength(iov);
  for (let done = 0; done < bytes; ) {
    const run = await findRun(co, state, offset + done, bytes - done);
    const part = iovSlice(iov, done, done + run.bytes);
    if (run.hostOffset !== undefined) await file.pread(co, run.hostOffset, part);
    else await readBelow(co, state, offset + done, part);
    done += run.bytes;
  }
}

async function readBelow(
  co: Coroutine<"read">,
  { below }: State,
  offset: number,
  iov: IoVector,
): Promise<void> {
  const read = below();
  if (read) await read(co, offset, iov);
  else iovFill(iov, 0);
}

/** What a run of an image is, as block status. */
export function runStatus({ file }: Pick<State, "file">, { bytes, hostOffset }: Run): BlockStatus {
  if (hostOffset === undefined) return { bytes, data: false, zero: false, allocated: false };
  return { bytes, data: true, zero: false, allocated: true, offset: hostOffset, file: file.node };
}

export async function pwrite(
  co: Coroutine<"read">,
  state: State,
  offset: number,
  iov: IoVector,
): Promise<void> {
  const { file } = state;
  if (state.header.extensionOffset !== 0)
    await state.lock.run(async () => {
      if (state.header.extensionOffset !== 0) await dropExtension(co, state);
    });
  const bytes = iovLength(iov);
  for (let done = 0; done < bytes; ) {
    const { hostOffset, bytes: found } = await placeFor(co, state, offset + done, bytes - done);
    // A table that says so is damaged: the write would damage it more.
    if (hostOffset < batEnd(state)) throw new BlockError("EIO");
    await file.pwrite(co, hostOffset, iovSlice(iov, done, done + found));
    done += found;
  }
}

interface Place {
  readonly hostOffset: number;
  readonly bytes: number;
}

/** Where the bytes from a guest offset on go, allocated now if need be, as far as they lie in one piece. */
async function placeFor(
  co: Coroutine<"read">,
  state: State,
  guestOffset: number,
  bytes: number,
): Promise<Place> {
  const known = await findRun(co, state, guestOffset, bytes);
  if (known.hostOffset !== undefined) return { hostOffset: known.hostOffset, bytes: known.bytes };
  return state.lock.run(async () => {
    const run = await findRun(co, state, guestOffset, bytes);
    if (run.hostOffset !== undefined) return { hostOffset: run.hostOffset, bytes: run.bytes };
    return { hostOffset: await allocate(co, state, guestOffset, run.bytes), bytes: run.bytes };
  });
}

/** Gives all clusters of a range that has none a place, in one piece; gives that of `guestOffset`.  @qemu allocate_clusters */
async function allocate(
  co: Coroutine<"read">,
  state: State,
  guestOffset: number,
  bytes: number,
): Promise<number> {
  const { clusterSize, bat, entryUnit } = state;
  const inCluster = guestOffset % clusterSize;
  const first = (guestOffset - inCluster) / clusterSize;
  const clusters = clustersOf(guestOffset, bytes, clusterSize);
  const hostOffset = state.dataEnd;
  const space = clusters * clusterSize;
  // A disk that is larger than its table, which QEMU asserts not to be.
  if (first + clusters > bat.entries) throw new BlockError("EINVAL");
  const entry = hostOffset / entryUnit;
  if (entry + space / entryUnit > 2 ** 32 || hostOffset + space > MAX_LENGTH) throw new BlockError("EFBIG");
  await growFile(co, state, space);
  await copyAround(co, state, first * clusterSize, hostOffset, space);
  bat.dependsOnFlush = true;
  for (let index = 0; index < clusters; index++) {
    await bat.set(co, first + index, state.dataEnd / entryUnit);
    state.dataEnd += clusterSize;
  }
  return hostOffset + inCluster;
}

/** Makes room for `space` bytes at the end of the clusters, and for more to come.  @qemu parallels_co_prealloc */
async function growFile(co: Coroutine<"read">, state: State, space: number): Promise<void> {
  const { file, dataEnd, preallocBytes } = state;
  const fileBytes = await file.getLength(co);
  if (dataEnd < state.staleEnd) {
    await file.pwriteZeroes(co, dataEnd, Math.min(space, state.staleEnd - dataEnd));
  }
  if (dataEnd + space <= fileBytes) return;
  if (state.preallocMode === "truncate") {
    try {
      await file.truncate(co, dataEnd + space + preallocBytes, false, "off");
      return;
    } catch (error) {
      if (!(error instanceof BlockError) || error.errno !== "ENOTSUP") throw error;
      state.preallocMode = "falloc";
    }
  }
  await file.pwriteZeroes(co, dataEnd, space + preallocBytes);
}

/** What lies below is copied into new clusters, all of it: what is written comes over it after. */
async function copyAround(
  co: Coroutine<"read">,
  { below, file }: State,
  guestOffset: number,
  hostOffset: number,
  bytes: number,
): Promise<void> {
  const read = below();
  if (!read) return;
  for (let done = 0; done < bytes; done += COPY_BYTES) {
    const piece = Math.min(COPY_BYTES, bytes - done);
    const content = new Uint8Array(piece);
    await read(co, guestOffset + done, content);
    await file.pwrite(co, hostOffset + done, content);
  }
}

const COPY_BYTES = 2 * MiB;
