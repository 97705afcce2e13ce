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

/** Masks of `Perm`. */
interface LockSet {
  readonly used: number;
  readonly unshared: number;
}

const USED_BASE = 100;
const UNSHARED_BASE = 200;

/** The permissions one by one, each with its number. */
const PERMISSIONS = [Perm.ConsistentRead, Perm.Write, Perm.WriteUnchanged, Perm.Resize].map(
  (bit, number) => ({ bit, number }),
);

const NOTHING: LockSet = { used: 0, unshared: 0 };

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

/** The locks of one open file. */
export class FileLocks {
  #fd: number;
  readonly #filename: string;
  /** Bytes that are locked. */
  #held = NOTHING;
  /** What is to stay locked when the change under way becomes final. */
  #wanted = NOTHING;

  constructor(fd: number, filename: string) {
    this.#fd = fd;
    this.#filename = filename;
  }

  /** Locks what `pair` needs beside what is locked already, or throws; then one of the answer's functions is called. */
  prepare({ used, shared }: PermPair): PermissionChange | undefined {
    const [held, wanted] = [this.#held, this.#wanted];
    const next = { used, unshared: Perm.All & ~shared };
    if (next.used === wanted.used && next.unshared === wanted.unshared) return undefined;
    const grows = (next.used & ~held.used) | (next.unshared & ~held.unshared);
    const abort = () => {
      this.#wanted = wanted;
      this.#narrow(held);
    };
    try {
      // Who needs no more than it has is in nobody's way, and need not look.
      if (grows !== 0) {
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
    this.#held = NOTHING;
    this.#lock(held);
  }

  #lock({ used, unshared }: LockSet): void {
    this.#lockBytes(USED_BASE, used & ~this.#held.used);
    this.#held = { ...this.#held, used: this.#held.used | used };
    this.#lockBytes(UNSHARED_BASE, unshared & ~this.#held.unshared);
    this.#held = { ...this.#held, unshared: this.#held.unshared | unshared };
  }

  #lockBytes(base: number, mask: number): void {
    for (const { bit, number } of PERMISSIONS) {
      if (mask & bit && posix().ofdLock(this.#fd, "read", base + number, 1) === false)
        throw new BlockError("EAGAIN", `Failed to lock byte ${base + number}`);
    }
  }

  #check({ used, unshared }: LockSet): void {
    for (const { bit, number } of PERMISSIONS) {
      if (used & bit && posix().ofdTest(this.#fd, "write", UNSHARED_BASE + number, 1) === false)
        throw this.#refusal(`Failed to get "${permNames(bit)}" lock`);
    }
    for (const { bit, number } of PERMISSIONS) {
      if (unshared & bit && posix().ofdTest(this.#fd, "write", USED_BASE + number, 1) === false)
        throw this.#refusal(`Failed to get shared "${permNames(bit)}" lock`);
    }
  }

  #refusal(message: string): BlockError {
    return new BlockError("EAGAIN", message, {
      hint: `Is another process using the image [${this.#filename}]?`,
      lockedFile: this.#filename,
    });
  }

  /** Gives back what is locked and not in `set`. */
  #narrow(set: LockSet): void {
    for (const { bit, number } of PERMISSIONS) {
      if (this.#held.used & ~set.used & bit) posix().ofdLock(this.#fd, "unlock", USED_BASE + number, 1);
      if (this.#held.unshared & ~set.unshared & bit)
        posix().ofdLock(this.#fd, "unlock", UNSHARED_BASE + number, 1);
    }
    this.#held = { used: this.#held.used & set.used, unshared: this.#held.unshared & set.unshared };
  }
}
