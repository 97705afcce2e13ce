/**
 * The calls of posix.ts on Linux through koffi, as the Linux man-pages (preadv2(2), lseek(2), fallocate(2),
 * copy_file_range(2), fcntl(2)) describe them.
 *
 * Invariants:
 * 1. Arguments in memory (iovec, flock, offsets) lie in buffers made once, whose addresses are passed as plain
 *    numbers: koffi's own structs cost 0.35 us a call. That is safe because every call here is synchronous and
 *    each thread has its own instance of this module.
 * 2. errno is read right after the call, before anything else that might make a system call.
 * 3. An address of a caller's buffer is never kept: buffers are detached, resized and collected.
 */

import fs from "node:fs";
import { getSystemErrorMap } from "node:util";
import type { Posix } from "./posix.ts";
import { blockDeviceSize } from "./posix-portable.ts";

/** The part of koffi that is used: its own types are there only where it could be installed. */
export interface Koffi {
  /** Null: what the process has already. */
  load(path: string | null): LibraryHandle;
  /** The address of a buffer's memory. */
  address(buffer: ArrayBuffer | ArrayBufferView): bigint;
  errno(): number;
}

interface LibraryHandle {
  func(name: string, result: string, parameters: readonly string[]): Call;
  /** By a C declaration, for a variadic function. */
  func(declaration: string): VariadicCall;
}

// As Linux has them on every processor that is meant here: node:os would be loaded for them alone.
const EPERM = 1;
const EINTR = 4;
const ENXIO = 6;
const EAGAIN = 11;
const EACCES = 13;
const EXDEV = 18;
const ENODEV = 19;
const EINVAL = 22;
const ENOTTY = 25;
const ESPIPE = 29;
const ENOSYS = 38;
const EOPNOTSUPP = 95;

/** Undefined where there is no koffi for this system, or none is wanted. */
export function linuxPosix(): Posix | undefined {
  if (process.env["BDRV_NO_FFI"] === "1" || process.platform !== "linux") return undefined;
  // The layouts below are those of 64-bit little-endian Linux.
  if (process.arch !== "x64" && process.arch !== "arm64") return undefined;
  try {
    const koffi = loadKoffi();
    const lib = koffi.load(null);
    return {
      native: true,
      ...preadCalls(koffi, lib),
      ...seekCalls(koffi, lib),
      ...spaceCalls(koffi, lib),
      ...lockCalls(koffi, lib),
      blockDeviceSize,
      alignedBuffer: (bytes, alignment = 4096) => alignedBuffer(koffi, bytes, alignment),
    };
  } catch {
    return undefined; // Not installed, built for another node or libc, or forbidden (--no-addons).
  }
}

/**
 * koffi's own loader looks for a build that fits in 5 ms, and require resolves in 0.8; so the likely file is loaded by its
 * place first, in 0.5. It is not where it is looked for with some package managers, and does not load with musl.
 */
export function loadKoffi(): Koffi {
  const { arch } = process;
  const place = `node_modules/@koromix/koffi-linux-${arch}/linux_${arch}/koffi.node`;
  const above = directoriesAbove(import.meta.dirname).find((directory) =>
    fs.existsSync(`${directory}/${place}`),
  );
  try {
    const module = { exports: {} };
    if (above !== undefined) process.dlopen(module, `${above}/${place}`);
    if ("load" in module.exports) return module.exports as Koffi;
  } catch {
    // Built for another C library.
  }
  const { createRequire } = process.getBuiltinModule("node:module");
  return createRequire(import.meta.filename)("koffi") as Koffi;
}

/** From the nearest one on. */
function directoriesAbove(directory: string): string[] {
  const parts = directory.split("/");
  return parts.map((_, index) => parts.slice(0, parts.length - index).join("/"));
}

const RWF_NOWAIT = 0x8;

/** What one call of the kernel moves at most (MAX_RW_COUNT, with 4 KiB pages); it fits the low half of iov_len. */
const maxRwCount = 0x7ffff000;

/** Where a read without waiting fails like this, a read that may wait gives the data or the real error. */
const readElsewhere: ReadonlySet<number> = new Set([EAGAIN, EOPNOTSUPP, ENOSYS, EINTR, EPERM]);

/**
 * A cached 4 KiB read costs 0.67-0.71 us, as much as fs.readSync (0.67-0.74): 0.1 is koffi and the iovec, the
 * rest the kernel. Other ways to hand over the buffer: its ArrayBuffer's address kept in a WeakMap saves 0.04, but
 * costs 0.3-0.4 for each ArrayBuffer not seen before; a koffi struct or a void*[] costs 0.25 more, a bounce buffer
 * 0.05; syscall(2) instead of preadv2(2) saves nothing.
 */
function preadCalls(koffi: Koffi, lib: LibraryHandle): Pick<Posix, "canPreadNowait" | "preadNowait"> {
  const preadv2 = optional(lib, "preadv2", ["int", "int64_t", "int", "int64_t", "int"]);
  if (preadv2 === undefined) return { canPreadNowait: false, preadNowait: () => -1 };

  const iov = new ArrayBuffer(16); // struct iovec { void *iov_base; size_t iov_len; }
  const base = new BigUint64Array(iov, 0, 1);
  const length = new Uint32Array(iov, 8, 2);
  const iovAddress = Number(koffi.address(iov));
  let zeroIsEnd: boolean | undefined;
  // Without a use after the call the optimizer may let a buffer die while the kernel still writes to it.
  const inUse: { buffer: Uint8Array | undefined } = { buffer: undefined };

  return {
    canPreadNowait: true,
    preadNowait(fd, buffer, offset) {
      inUse.buffer = buffer;
      base[0] = koffi.address(buffer);
      length[0] = Math.min(buffer.length, maxRwCount);
      const count = preadv2(fd, iovAddress, 1, offset, RWF_NOWAIT);
      const errno = count < 0 ? koffi.errno() : 0;
      inUse.buffer = undefined;
      if (count > 0) return count;
      if (count === 0) {
        zeroIsEnd ??= !readsZeroBeforeEnd(process.getBuiltinModule("node:os").release());
        return zeroIsEnd || buffer.length === 0 ? 0 : -1;
      }
      if (readElsewhere.has(errno)) return -1;
      throw systemError(errno, "preadv2");
    },
  };
}

/** Linux 5.9 and 5.10 may answer 0 before the end of the file (BUGS in preadv2(2)): not to be trusted there. */
function readsZeroBeforeEnd(release: string): boolean {
  return /^5\.(9|10)\b/.test(release);
}

const SEEK_DATA = 3;
const SEEK_HOLE = 4;

function seekCalls(koffi: Koffi, lib: LibraryHandle): Pick<Posix, "seekData" | "seekHole"> {
  const lseek: Call = lib.func("lseek", "int64_t", ["int", "int64_t", "int"]);

  const seek = (fd: number, offset: number, whence: number): number | undefined => {
    const found = lseek(fd, offset, whence);
    // A file system that goes backwards is broken (QEMU met some): better not to know than to loop on it.
    if (found >= 0) return found >= offset ? found : undefined;
    const errno = koffi.errno();
    if (errno === ENXIO) return -1;
    if (errno === EINVAL || errno === ESPIPE || errno === EOPNOTSUPP) return undefined;
    throw systemError(errno, "lseek");
  };

  return {
    seekData: (fd, offset) => seek(fd, offset, SEEK_DATA),
    seekHole: (fd, offset) => seek(fd, offset, SEEK_HOLE),
  };
}

const fallocateElsewhere: ReadonlySet<number> = new Set([EOPNOTSUPP, ENOSYS, EINVAL, ENODEV, ENOTTY]);

/** EPERM is how some sandboxes refuse a call they do not know. A plain read and write tell, if it is the file. */
const copyElsewhere: ReadonlySet<number> = new Set([EXDEV, EOPNOTSUPP, ENOSYS, EINVAL, EPERM]);

function spaceCalls(koffi: Koffi, lib: LibraryHandle): Pick<Posix, "fallocate" | "copyFileRange"> {
  const allocate: Call = lib.func("fallocate", "int", ["int", "int", "int64_t", "int64_t"]);
  const copy = optional(lib, "copy_file_range", ["int", "int64_t", "int", "int64_t", "size_t", "uint"]);
  const offsets = new BigInt64Array(new ArrayBuffer(16));
  const inAddress = Number(koffi.address(offsets));
  const outAddress = inAddress + 8;

  return {
    fallocate(fd, mode, offset, length) {
      for (;;) {
        if (allocate(fd, mode, offset, length) === 0) return true;
        const errno = koffi.errno();
        if (errno === EINTR) continue;
        if (fallocateElsewhere.has(errno)) return false;
        throw systemError(errno, "fallocate");
      }
    },
    copyFileRange(inFd, inOffset, outFd, outOffset, length) {
      if (copy === undefined) return -1;
      for (;;) {
        offsets[0] = BigInt(inOffset);
        offsets[1] = BigInt(outOffset);
        const count = copy(inFd, inAddress, outFd, outAddress, length, 0);
        if (count >= 0) return count;
        const errno = koffi.errno();
        if (errno === EINTR) continue;
        if (copyElsewhere.has(errno)) return -1;
        throw systemError(errno, "copy_file_range");
      }
    },
  };
}

const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
const lockTypes = { read: 0, write: 1, unlock: 2 } as const;

function lockCalls(koffi: Koffi, lib: LibraryHandle): Pick<Posix, "ofdLock" | "ofdTest"> {
  const fcntl = lib.func("int fcntl(int fd, int command, ...)");
  // struct flock { short l_type, l_whence; off_t l_start, l_len; pid_t l_pid; } in 32 bytes.
  const flock = new DataView(new ArrayBuffer(32));
  const address = Number(koffi.address(flock.buffer));

  /** Gives l_type as the kernel left it. */
  const call = (fd: number, command: number, type: number, start: number, length: number) => {
    flock.setInt16(0, type, true);
    flock.setInt16(2, 0, true); // SEEK_SET
    flock.setBigInt64(8, BigInt(start), true);
    flock.setBigInt64(16, BigInt(length), true);
    flock.setInt32(24, 0, true); // The kernel insists on a pid of 0, and F_OFD_GETLK sets it to -1.
    if (fcntl(fd, command, "int64_t", address) >= 0) return flock.getInt16(0, true);
    const errno = koffi.errno();
    if (errno === EAGAIN || errno === EACCES) return "conflict";
    if (errno === EINVAL || errno === ENOSYS || errno === EOPNOTSUPP) return undefined;
    throw systemError(errno, "fcntl");
  };

  return {
    ofdLock(fd, type, start, length) {
      const result = call(fd, F_OFD_SETLK, lockTypes[type], start, length);
      return result === undefined ? undefined : result !== "conflict";
    },
    ofdTest(fd, type, start, length) {
      const result = call(fd, F_OFD_GETLK, lockTypes[type], start, length);
      return result === undefined ? undefined : result === lockTypes.unlock;
    },
  };
}

/** V8 does not move the memory of an ArrayBuffer, so a place that is aligned once stays so. */
function alignedBuffer(koffi: Koffi, bytes: number, alignment: number): Uint8Array {
  const memory = new ArrayBuffer(bytes + alignment);
  const past = Number(koffi.address(memory) % BigInt(alignment));
  return new Uint8Array(memory, past === 0 ? 0 : alignment - past, bytes);
}

/** koffi gives an int64_t as a number as long as it is a safe integer, which all results here are. */
export interface Call {
  (...args: (number | bigint)[]): number;
  /** On the thread pool; the last argument is called at its end. */
  async(...args: (number | bigint | ((error: Error | null, result: number) => void))[]): void;
}

/** Behind the fixed arguments of a variadic function, each argument's type comes before it. */
type VariadicCall = (fd: number, command: number, type: "int64_t", argument: number) => number;

/** A function that an older C library may lack, musl above all; the rest is worth having without it. */
function optional(lib: LibraryHandle, name: string, args: string[]): Call | undefined {
  try {
    return lib.func(name, "int64_t", args);
  } catch {
    return undefined;
  }
}

function systemError(errno: number, syscall: string): NodeJS.ErrnoException {
  const [code, text] = getSystemErrorMap().get(-errno) ?? [nameOf(errno), "system error"];
  return Object.assign(new Error(`${code}: ${text}, ${syscall}`), { errno: -errno, code, syscall });
}

/** Node's map knows only what libuv does. */
function nameOf(errno: number): string {
  const { errno: errnos } = process.getBuiltinModule("node:os").constants;
  return Object.entries(errnos).find(([, value]) => value === errno)?.[0] ?? `E${errno}`;
}
