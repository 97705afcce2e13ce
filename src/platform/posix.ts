/**
 * The few system calls that Node lacks, behind one small interface.
 *
 * On Linux (x64, arm64) they go through koffi, which is loaded on the first call of posix() and not before:
 * it costs 4 to 15 ms, more than a whole `info` should. Where koffi is missing, on other systems, and with
 * BDRV_NO_FFI=1 in the environment a portable fallback answers "cannot" to everything it cannot do, so that
 * callers have one path for old kernels, odd file systems and other systems alike.
 *
 * Offsets and lengths are bytes, safe integers and not negative. Errors are thrown as Node throws its own:
 * with `code` ("EIO"), a negative `errno`, and `syscall`. On Linux EOPNOTSUPP is spelled "ENOTSUP", as in Node.
 */

import { linuxPosix } from "./posix-linux.ts";
import { portablePosix } from "./posix-portable.ts";

/** Modes of fallocate(2). Allocate alone extends the file where the range passes its end. */
export const Fallocate = {
  Allocate: 0,
  KeepSize: 0x01,
  /** The kernel takes it only together with KeepSize. */
  PunchHole: 0x02,
  ZeroRange: 0x10,
} as const;

export interface Posix {
  /** False: the portable fallback. */
  readonly native: boolean;

  /** False: preadNowait always answers -1, so that calling it is a waste. */
  readonly canPreadNowait: boolean;

  /**
   * Reads what the page cache holds (preadv2 with RWF_NOWAIT). Gives the bytes read, where 0 is the end of the
   * file; the count is short where the cache ends, which is no sign of the file's end. Gives -1 where it would
   * have to wait or where the file system cannot tell (tmpfs, on Linux 6.18): the caller then reads in another
   * way. On 6.18 the first -1 has already started the read from the disk, which is most of its 5 us; for a file
   * system that cannot tell it costs 0.3-0.4 us, so there is no need to remember which ones those are.
   */
  readonly preadNowait: (fd: number, buffer: Uint8Array, offset: number) => number;

  /**
   * Next data at or after offset; -1 when there is none before the end of the file; undefined where that cannot
   * be told. Moves the descriptor's own position, which positional reads and writes do not use.
   */
  readonly seekData: (fd: number, offset: number) => number | undefined;

  /** Next hole at or after offset, where the end of the file counts as one; -1 from there on; undefined as above. */
  readonly seekHole: (fd: number, offset: number) => number | undefined;

  /**
   * fallocate(2) with a sum of Fallocate modes. False where this mode is not to be had (by the system, the file
   * system, the kind of file, or for this alignment); throws what is a real error, such as ENOSPC, EIO, EFBIG.
   */
  readonly fallocate: (fd: number, mode: number, offset: number, length: number) => boolean;

  /**
   * Copies inside the kernel, by reference where the file system can. Gives the bytes copied, which may be fewer
   * than asked for, 0 at the end of the input, and -1 where it cannot be had for these two files and ranges.
   */
  readonly copyFileRange: (
    inFd: number,
    inOffset: number,
    outFd: number,
    outOffset: number,
    length: number,
  ) => number;

  /** Size of a block device in bytes; undefined for all else, and where the system does not say. */
  readonly blockDeviceSize: (fd: number) => number | undefined;

  /**
   * Sets or releases an open file description lock on [start, start + length); a length of 0 reaches to the end
   * of all files. False if somebody else holds a conflicting lock; undefined where there are no such locks. A
   * write lock needs a descriptor open for writing, a read lock one open for reading (else EBADF).
   */
  readonly ofdLock: (
    fd: number,
    type: "read" | "write" | "unlock",
    start: number,
    length: number,
  ) => boolean | undefined;

  /** Whether ofdLock would be granted now; takes nothing. */
  readonly ofdTest: (
    fd: number,
    type: "read" | "write",
    start: number,
    length: number,
  ) => boolean | undefined;

  /**
   * Zeroed memory for O_DIRECT: its address is a multiple of alignment, a power of two up to 65536 (4096 unless
   * told). Keep and reuse it: in the fallback each one reserves 10 GiB of address space.
   */
  readonly alignedBuffer: (bytes: number, alignment?: number) => Uint8Array;
}

let made: Posix | undefined;

/** The calls for this system, made once a thread. Never throws. */
export function posix(): Posix {
  made ??= linuxPosix() ?? portablePosix();
  return made;
}
