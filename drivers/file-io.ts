/** What the file driver does with a descriptor: whole reads and writes, zeroes, holes, sizes.  @qemu handle_aiocb_* */

import fs from "node:fs";
import type { BlockStatus } from "../src/block/block-status.ts";
import type { HostRange } from "../src/block/copy-range.ts";
import type { Prealloc } from "../src/block/driver.ts";
import { BlockError, toBlockError } from "../src/block/errors.ts";
import { type IoVector, iovFill, iovLength, iovParts, iovSlice, iovWrite } from "../src/block/iov.ts";
import type { BlockNode } from "../src/block/node.ts";
import { alignUp, KiB, MAX_LENGTH, MiB, SECTOR_SIZE } from "../src/block/units.ts";
import { Fallocate, type Posix, posix } from "../src/platform/posix.ts";

/** An open file: the descriptor and what was found out about it. */
export interface HostFile {
  /** Ends a preallocation. */
  readonly signal: AbortSignal | undefined;
  /** Writes wait for the disk, or did not long ago: the time until which that is taken for granted. */
  slowUntil: number;
  /** Replaced by a reopen, as is `isDirect`. */
  fd: number;
  readonly filename: string;
  readonly isDevice: boolean;
  isDirect: boolean;
  /** All of it is in memory: a synchronous read never waits. */
  readonly inMemory: boolean;
  /** How many small reads are still made without the native calls. */
  earlyReads: number;
  /** Space for long writes is set aside before them; not known before the first. */
  setsAside?: boolean;
  readonly posix: Posix;
}

/**
 * What goes into the page cache is written at once, in pieces of this size: a turn through the thread pool costs 40 us,
 * and threads that write one file wait for each other (2.5 times the processor time). Larger pieces make the kernel
 * look for memory in larger pieces, which it may not have.
 */
const SYNC_WRITE_BYTES = 256 * KiB;
/** A write that takes longer waits for the disk: then the pool's threads are to wait, for a while. */
const SLOW_WRITE_MS = 50;
const SLOW_PERIOD_MS = 1000;

/**
 * On ext4 a write into space that has been set aside takes 40 % less time than one that reserves block by block:
 * 700 MiB in pieces of 1 MiB 76 ms, with all calls of fallocate, instead of 125.
 */
const SET_ASIDE_BYTES = 256 * KiB;
/** Type of ext2, ext3 and ext4.  @linux statfs(2) */
const EXT4_MAGIC = 0xef53;

/** Fills `iov`: from the page cache at once where it can, else through the thread pool. Past the end: zeroes. */
export async function fullPread(host: HostFile, offset: number, iov: IoVector): Promise<void> {
  if (host.isDirect) return directPread(host, offset, iov);
  let done = 0;
  if (iov instanceof Uint8Array) {
    done = preadCached(host, iov, offset);
    if (done === iov.length) return;
  }
  const bytes = iovLength(iov);
  while (done < bytes) {
    const got = await readPool(host.fd, iovSlice(iov, done, bytes), offset + done);
    if (got === 0) {
      iovFill(iovSlice(iov, done, bytes), 0);
      return;
    }
    done += got;
  }
}

/**
 * The first reads of a file are of headers and tables, and often there are no more: for those few the native calls,
 * which take 5 ms to load, are not worth it.
 */
export const EARLY_READS = 16;
const MAX_EARLY_BYTES = 64 * KiB;

function isEarly(host: HostFile, buffer: Uint8Array): boolean {
  return host.earlyReads > 0 && buffer.length <= MAX_EARLY_BYTES && host.earlyReads-- > 0;
}

/** Bytes that could be read without waiting. */
function preadCached(host: HostFile, buffer: Uint8Array, offset: number): number {
  try {
    if (host.inMemory || isEarly(host, buffer)) return fs.readSync(host.fd, buffer, 0, buffer.length, offset);
    if (!host.posix.canPreadNowait) return 0;
    return Math.max(host.posix.preadNowait(host.fd, buffer, offset), 0);
  } catch (error) {
    throw toBlockError(error);
  }
}

function readPool(fd: number, iov: IoVector, position: number): Promise<number> {
  return new Promise((resolve, reject) => {
    const done = (error: NodeJS.ErrnoException | null, bytes: number) =>
      settle(resolve, reject, error, bytes);
    if (iov instanceof Uint8Array) fs.read(fd, iov, 0, iov.length, position, done);
    else fs.readv(fd, iovParts(iov).slice(0, MAX_IOV), position, done);
  });
}

function writePool(fd: number, iov: IoVector, position: number): Promise<number> {
  return new Promise((resolve, reject) => {
    const done = (error: NodeJS.ErrnoException | null, bytes: number) =>
      settle(resolve, reject, error, bytes);
    if (iov instanceof Uint8Array) fs.write(fd, iov, 0, iov.length, position, done);
    else fs.writev(fd, iovParts(iov).slice(0, MAX_IOV), position, done);
  });
}

/** Buffers that one system call takes.  @posix IOV_MAX */
const MAX_IOV = 1024;

function settle(
  resolve: (bytes: number) => void,
  reject: (error: unknown) => void,
  error: NodeJS.ErrnoException | null,
  bytes: number,
): void {
  if (!error) return resolve(bytes);
  try {
    reject(toBlockError(error));
  } catch (other) {
    reject(other);
  }
}

export async function fullPwrite(host: HostFile, offset: number, iov: IoVector): Promise<void> {
  const bytes = iovLength(iov);
  if (host.isDirect) return directPwrite(host, offset, iov);
  if (bytes >= SET_ASIDE_BYTES) setAside(host, offset, bytes);
  for (let done = 0; done < bytes; ) {
    const rest = iovSlice(iov, done, bytes);
    const written =
      rest instanceof Uint8Array && performance.now() >= host.slowUntil
        ? writeNow(host, rest, offset + done)
        : await writePool(host.fd, rest, offset + done);
    if (written === 0) throw new BlockError("EIO");
    done += written;
  }
}

/** Only ever a help: what is wrong with the space, the write itself says. */
function setAside(host: HostFile, offset: number, bytes: number): void {
  try {
    host.setsAside ??= !host.isDevice && fs.statfsSync(host.filename).type === EXT4_MAGIC;
    if (host.setsAside) host.setsAside = host.posix.fallocate(host.fd, Fallocate.KeepSize, offset, bytes);
  } catch {
    host.setsAside = false;
  }
}

/** Writes a piece of `buffer` without leaving the thread. */
function writeNow(host: HostFile, buffer: Uint8Array, position: number): number {
  const start = performance.now();
  try {
    return fs.writeSync(host.fd, buffer, 0, Math.min(buffer.length, SYNC_WRITE_BYTES), position);
  } catch (error) {
    throw toBlockError(error);
  } finally {
    const end = performance.now();
    if (end - start > SLOW_WRITE_MS) host.slowUntil = end + SLOW_PERIOD_MS;
  }
}

/** Past the page cache: the buffers' addresses must be aligned, which only our own are known to be. */
async function directPread(host: HostFile, offset: number, iov: IoVector): Promise<void> {
  const bytes = iovLength(iov);
  const aligned = takeAligned(host, bytes);
  try {
    let done = 0;
    while (done < bytes) {
      const got = await readPool(host.fd, aligned.subarray(done, bytes), offset + done);
      done += got;
      // At the end of a file that is no multiple of the alignment, a read is short once.
      if (got === 0 || got % directAlignment(host) !== 0) break;
    }
    aligned.fill(0, done, bytes);
    iovWrite(iov, aligned.subarray(0, bytes));
  } finally {
    giveAligned(aligned);
  }
}

async function directPwrite(host: HostFile, offset: number, iov: IoVector): Promise<void> {
  const bytes = iovLength(iov);
  const aligned = takeAligned(host, bytes);
  try {
    let filled = 0;
    for (const part of iovParts(iov)) {
      aligned.set(part, filled);
      filled += part.length;
    }
    for (let done = 0; done < bytes; ) {
      const written = await writePool(host.fd, aligned.subarray(done, bytes), offset + done);
      if (written === 0) throw new BlockError("EIO");
      done += written;
    }
  } finally {
    giveAligned(aligned);
  }
}

/** Aligned buffers to use again, smallest first; making one costs more than a read. */
const alignedPool: Uint8Array[] = [];
const MAX_POOLED = 32;

function takeAligned(host: HostFile, bytes: number): Uint8Array {
  const index = alignedPool.findIndex((buffer) => buffer.length >= bytes);
  if (index >= 0) return alignedPool.splice(index, 1)[0] as Uint8Array;
  return host.posix.alignedBuffer(2 ** Math.ceil(Math.log2(Math.max(bytes, 4 * KiB))));
}

function giveAligned(buffer: Uint8Array): void {
  if (alignedPool.length >= MAX_POOLED || buffer.length > MiB) return;
  const index = alignedPool.findIndex((other) => other.length >= buffer.length);
  alignedPool.splice(index < 0 ? alignedPool.length : index, 0, buffer);
}

const alignments = new WeakMap<HostFile, number>();

/** The smallest alignment with which the file can be read past the page cache.  @qemu raw_probe_alignment */
export function directAlignment(host: HostFile): number {
  const known = alignments.get(host);
  if (known !== undefined) return known;
  const buffer = host.posix.alignedBuffer(4 * KiB);
  let found = 4 * KiB;
  for (const alignment of [1, 512, 1 * KiB, 2 * KiB]) {
    try {
      fs.readSync(host.fd, buffer, 0, alignment, 0);
      // Who takes a single byte has not looked: nothing is known then.
      if (alignment > 1) found = alignment;
      break;
    } catch {
      // Too small for this file system: EINVAL.
    }
  }
  alignments.set(host, found);
  return found;
}

/** What one system call copies: the thread is not to be away for long. */
const COPY_BYTES = 4 * MiB;

/** Copies from another file without leaving the kernel; ENOTSUP where it can't, or where that file ends. */
export function copyRange(host: HostFile, offset: number, { fd, offset: from, bytes }: HostRange): void {
  try {
    for (let done = 0; done < bytes; ) {
      const piece = Math.min(bytes - done, COPY_BYTES);
      const copied = host.posix.copyFileRange(fd, from + done, host.fd, offset + done, piece);
      if (copied <= 0) throw new BlockError("ENOTSUP");
      done += copied;
    }
  } catch (error) {
    throw toBlockError(error);
  }
}

/** Makes the range read as zeroes without writing them; false where the file system can't. */
export function zeroRange(host: HostFile, offset: number, bytes: number, mayUnmap: boolean): boolean {
  try {
    const size = host.isDevice ? Number.POSITIVE_INFINITY : fs.fstatSync(host.fd).size;
    if (offset + bytes > size) {
      // Space is to be set aside, as in QEMU; a format's new clusters are then no holes.
      if (!mayUnmap && host.posix.fallocate(host.fd, Fallocate.ZeroRange, offset, bytes)) return true;
      // What is gained by growing is a hole, which is what is wanted; only the part below must be zeroed.
      if (offset < size && !zeroWithin(host, offset, size - offset, mayUnmap)) return false;
      fs.ftruncateSync(host.fd, offset + bytes);
      return true;
    }
    return zeroWithin(host, offset, bytes, mayUnmap);
  } catch (error) {
    throw toBlockError(error);
  }
}

function zeroWithin(host: HostFile, offset: number, bytes: number, mayUnmap: boolean): boolean {
  const { fd, posix } = host;
  const punch = () => posix.fallocate(fd, Fallocate.PunchHole | Fallocate.KeepSize, offset, bytes);
  if (mayUnmap && punch()) return true;
  if (posix.fallocate(fd, Fallocate.ZeroRange, offset, bytes)) return true;
  // tmpfs has no ZERO_RANGE: a hole that is filled again stays allocated.
  return punch() && posix.fallocate(fd, Fallocate.Allocate, offset, bytes);
}

export function punchHole(host: HostFile, offset: number, bytes: number): boolean {
  try {
    return host.posix.fallocate(host.fd, Fallocate.PunchHole | Fallocate.KeepSize, offset, bytes);
  } catch (error) {
    throw toBlockError(error);
  }
}

export function syncData(host: HostFile): Promise<void> {
  return new Promise((resolve, reject) => {
    fs.fdatasync(host.fd, (error) => settle(() => resolve(), reject, error, 0));
  });
}

/** @qemu raw_regular_truncate */
export async function resize(
  fd: number,
  oldSize: number,
  size: number,
  prealloc: Prealloc,
  signal: AbortSignal | undefined,
): Promise<void> {
  if (size < oldSize && prealloc !== "off")
    throw new BlockError("ENOTSUP", "Cannot use preallocation for shrinking files");
  if (prealloc === "metadata") throw new BlockError("ENOTSUP", "Unsupported preallocation mode: metadata");
  try {
    if (size > MAX_LENGTH) throw new BlockError("EFBIG");
    // Where space can't be set aside, writing the zeroes does it.
    const isSetAside =
      prealloc === "falloc" &&
      size > oldSize &&
      posix().fallocate(fd, Fallocate.Allocate, oldSize, size - oldSize);
    if (!isSetAside && prealloc !== "off") await writeZeroes(fd, oldSize, size, signal);
    else {
      fs.ftruncateSync(fd, size);
      if (oldSize === 0 && size > 0) allocateFirstBlock(fd, size);
    }
  } catch (error) {
    // As it was: a file that is half grown serves nobody. If that fails too, what went wrong first is what counts.
    try {
      fs.ftruncateSync(fd, oldSize);
    } catch {}
    throw BlockError.wrap(
      prealloc === "off" ? "Could not resize file" : "Could not write zeros for preallocation",
      error,
    );
  }
}

/** A file of holes alone tells nobody which alignment its file system wants.  @qemu allocate_first_block */
function allocateFirstBlock(fd: number, size: number): void {
  const bytes = Math.min(size, size < 4 * KiB ? SECTOR_SIZE : 4 * KiB);
  fs.writeSync(fd, new Uint8Array(bytes), 0, bytes, 0);
}

async function writeZeroes(
  fd: number,
  from: number,
  to: number,
  signal: AbortSignal | undefined,
): Promise<void> {
  const zeroes = new Uint8Array(Math.min(to - from, MiB));
  for (let at = from; at < to; ) {
    signal?.throwIfAborted();
    at += await writePool(fd, iovSlice(zeroes, 0, Math.min(zeroes.length, to - at)), at);
  }
}

/** Data or hole, by SEEK_DATA and SEEK_HOLE; all data where the file system can't tell.  @qemu raw_co_block_status */
export function fileStatus(
  host: HostFile,
  node: BlockNode,
  wantZero: boolean,
  offset: number,
  bytes: number,
): BlockStatus {
  const data = (length: number) => ({
    bytes: length,
    data: true,
    zero: false,
    allocated: true,
    offset,
    file: node,
  });
  const hole = (length: number) => ({
    bytes: length,
    data: false,
    zero: true,
    allocated: true,
    offset,
    file: node,
  });
  if (!wantZero) return data(bytes);
  const nextData = host.posix.seekData(host.fd, offset);
  if (nextData === undefined) return data(bytes);
  if (nextData < 0) return hole(bytes);
  if (nextData > offset) return hole(Math.min(nextData - offset, bytes));
  const nextHole = host.posix.seekHole(host.fd, offset);
  if (nextHole === undefined || nextHole <= offset) return data(bytes);
  // The file may end anywhere; behind it the rest of its last block is a hole.
  return data(Math.min(alignUp(nextHole, node.limits.requestAlignment) - offset, bytes));
}
