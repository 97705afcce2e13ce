/**
 * Locks on an open file, with which QEMU's processes keep each other out of an image. What a node's parents use of it
 * and what they do not share are two sets of permissions; for each one in either set the file has a byte (100 and 200
 * plus the number of the permission) that is locked, shared, by whoever uses it or forbids it. Whoever wants to use a
 * permission looks whether somebody else's lock is on the byte that forbids it, and the other way round.
 * @qemu raw_handle_perm_lock, raw_apply_lock_bytes, raw_check_lock_bytes
 *
 * Invariants:
 * 1. A byte is locked before the other side is looked at: of two processes that come at once at least one sees it.
 * 2. While a change is undecided, the bytes of the old and of the new permissions are both locked.
 * 3. The locks belong to the open file, not to the process: the kernel takes them back with the last descriptor,
 *    however the process ends, and two opens of one file in one process keep each other out too.
 */

import { Perm, type PermPair, permNames } from "../src/block/child.ts";
import type { PermissionChange } from "../src/block/driver.ts";
import { BlockError } from "../src/block/errors.ts";
import { posix } from "../src/platform/posix.ts";

/** A byte of the file that stands for the use of a permission, or for not sharing it. */
interface LockByte {
  /** Its bit in a mask of locks. */
  readonly bit: number;
  readonly at: number;
  /** The byte that is locked by those who are in the way. */
  readonly opposite: number;
  readonly refusal: string;
}

const USED_BASE = 100;
const UNSHARED_BASE = 200;
const PERMISSIONS = [Perm.ConsistentRead, Perm.Write, Perm.WriteUnchanged, Perm.Resize] as const;

/** Those of what is used come first, and are looked at first. */
const LOCK_BYTES: readonly LockByte[] = [
  ...PERMISSIONS.map((perm, number) => ({
    bit: perm,
    at: USED_BASE + number,
    opposite: UNSHARED_BASE + number,
    refusal: `Failed to get "${permNames(perm)}" lock`,
  })),
  ...PERMISSIONS.map((perm, number) => ({
    bit: perm << PERMISSIONS.length,
    at: UNSHARED_BASE + number,
    opposite: USED_BASE + number,
    refusal: `Failed to get shared "${permNames(perm)}" lock`,
  })),
];

/** A mask of the locks that stand for a pair of permissions. */
function locksFor({ used, shared }: PermPair): number {
  return used | ((Perm.All & ~shared) << PERMISSIONS.length);
}

/** Whether open files can be locked here; `fd` is any. Linux knows such locks since 3.15, koffi how to ask for them. */
export function canLock(fd: number): boolean {
  return posix().ofdTest(fd, "write", 0, 0) !== undefined;
}

/**
 * Locks a file that is about to be emptied and made anew, until `fd` is closed. Unless the new one has no metadata,
 * nobody else may be writing to it: qemu-img finds that out when it has been emptied. Gives whether somebody else has
 * the file open all the same, and must not be left with a file that has lost its name.  @qemu raw_co_create
 */
export function lockForCreate(fd: number, filename: string, sharesWrites: boolean): boolean {
  const unshared = Perm.Resize | (sharesWrites ? 0 : Perm.Write);
  new FileLocks(fd, filename).prepare({ used: Perm.Write | Perm.Resize, shared: Perm.All & ~unshared });
  return posix().ofdTest(fd, "write", USED_BASE, UNSHARED_BASE + PERMISSIONS.length - USED_BASE) === false;
}

/** The same for a device, which is opened as any image is.  @qemu bdrv_co_create_opts_simple */
export function lockDevice(fd: number, filename: string, sharesWrites: boolean): void {
  const used = Perm.ConsistentRead | Perm.Write | Perm.Resize;
  new FileLocks(fd, filename).prepare({ used, shared: Perm.All & ~(sharesWrites ? 0 : Perm.Write) });
}

/** The locks of one open file, as masks. */
export class FileLocks {
  #fd: number;
  readonly #filename: string;
  #held = 0;
  /** What is to stay locked when the change under way becomes final. */
  #wanted = 0;

  constructor(fd: number, filename: string) {
    this.#fd = fd;
    this.#filename = filename;
  }

  /** Locks what `pair` needs beside what is locked already, or throws; then one of the answer's functions is called. */
  prepare(pair: PermPair): PermissionChange | undefined {
    const [held, wanted] = [this.#held, this.#wanted];
    const next = locksFor(pair);
    if (next === wanted) return undefined;
    const abort = () => {
      this.#wanted = wanted;
      this.#narrow(held);
    };
    try {
      // Who needs no more than it has is in nobody's way, and need not look.
      if (next & ~held) {
        this.#lock(next);
        this.#check(next);
      }
    } catch (error) {
      abort();
      throw error;
    }
    this.#wanted = next;
    return { commit: () => this.#narrow(this.#wanted), abort };
  }

  /** The same locks on another descriptor of the file; the old one can be closed then. */
  moveTo(fd: number): void {
    const held = this.#held;
    this.#fd = fd;
    this.#held = 0;
    this.#lock(held);
  }

  #lock(locks: number): void {
    for (const { bit, at } of LOCK_BYTES) {
      if (!(locks & ~this.#held & bit)) continue;
      if (!lockByte(this.#fd, at)) throw new BlockError("EAGAIN", `Failed to lock byte ${at}`);
      this.#held |= bit;
    }
  }

  #check(locks: number): void {
    for (const { bit, opposite, refusal } of LOCK_BYTES) {
      if (!(locks & bit) || posix().ofdTest(this.#fd, "write", opposite, 1) !== false) continue;
      const hint = `Is another process using the image [${this.#filename}]?`;
      throw new BlockError("EAGAIN", refusal, { hint, lockedFile: this.#filename });
    }
  }

  /** Gives back what is locked and not in `locks`. */
  #narrow(locks: number): void {
    for (const { bit, at } of LOCK_BYTES)
      if (this.#held & ~locks & bit) posix().ofdLock(this.#fd, "unlock", at, 1);
    this.#held &= locks;
  }
}

/** False where somebody has it for himself, or the file system has no room for locks; true where there are none. */
function lockByte(fd: number, at: number): boolean {
  try {
    return posix().ofdLock(fd, "read", at, 1) !== false;
  } catch {
    return false;
  }
}
