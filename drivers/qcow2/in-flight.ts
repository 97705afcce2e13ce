/**
 * What is under way beside the driver's lock.
 *
 * Invariants:
 * 1. Every transfer to or from a mapped host range runs between `begin` and `end` of `Transfers`, and `begin`
 *    follows the lookup of the mapping with no await between. So once an entry is gone from the L2 table and
 *    `barrier` has passed, nobody reads or writes its cluster any more, and the cluster may be used again.
 * 2. A transfer never waits for the driver's lock: whoever holds the lock may wait for transfers.
 * 3. Writes that allocate for the same guest cluster run one after the other. An allocation ends by its own I/O and
 *    the lock alone, never by waiting for another allocation: there are no circles.
 */

/** Transfers that began in the same stretch of time. */
class Epoch {
  active = 0;
  done: (() => void) | undefined;
}

export class Transfers {
  #current = new Epoch();
  /** Those before the current one that are not over. */
  readonly #older = new Set<Epoch>();

  begin(): Epoch {
    this.#current.active++;
    return this.#current;
  }

  end(epoch: Epoch): void {
    epoch.active--;
    if (epoch.active === 0) epoch.done?.();
  }

  /** Waits for every transfer that began before; undefined if there is none. */
  barrier(): Promise<void> | undefined {
    if (this.#current.active > 0) {
      this.#older.add(this.#current);
      this.#current = new Epoch();
    }
    if (this.#older.size === 0) return undefined;
    return this.#drain();
  }

  async #drain(): Promise<void> {
    // Later ones are added behind: they are waited for too, which does no harm.
    for (const epoch of this.#older) {
      if (epoch.active > 0) {
        await new Promise<void>((resolve) => {
          const before = epoch.done;
          epoch.done = () => {
            before?.();
            resolve();
          };
        });
      }
      this.#older.delete(epoch);
    }
  }
}

/** A write that has host clusters and is not in the L2 table yet.  @qemu QCowL2Meta */
export interface Allocation {
  /** Guest range, in whole clusters. */
  readonly start: number;
  readonly end: number;
  readonly ended: Promise<void>;
  readonly finish: () => void;
}

export class Allocations {
  readonly #active = new Set<Allocation>();

  get isEmpty(): boolean {
    return this.#active.size === 0;
  }

  begin(start: number, end: number): Allocation {
    let resolve: () => void = () => {};
    const ended = new Promise<void>((settle) => {
      resolve = settle;
    });
    const allocation: Allocation = {
      start,
      end,
      ended,
      finish: () => {
        this.#active.delete(allocation);
        resolve();
      },
    };
    this.#active.add(allocation);
    return allocation;
  }

  /** The first under way that touches [start, end). */
  overlapping(start: number, end: number): Allocation | undefined {
    for (const other of this.#active) if (other.start < end && start < other.end) return other;
    return undefined;
  }

  /** Bytes from `start` up to the next one under way; at most `bytes`. `start` itself is free. */
  freeBytes(start: number, bytes: number): number {
    let free = bytes;
    for (const other of this.#active)
      if (other.end > start && other.start < start + free) free = Math.max(other.start - start, 0);
    return free;
  }
}

/** Pieces of one request that are under way at a time.  @qemu QCOW2_MAX_WORKERS */
const MAX_PIECES = 8;

/**
 * Runs the pieces that `cut` adds side by side, at most MAX_PIECES, and ends when all have ended, however `cut`
 * itself does: buffers are not the caller's again before that. The first failure is thrown.
 */
export async function runPieces(cut: (pieces: Pieces) => Promise<void>): Promise<void> {
  const pieces = new Pieces();
  try {
    await cut(pieces);
  } catch (error) {
    await pieces.finish().catch(() => {});
    throw error;
  }
  await pieces.finish();
}

class Pieces {
  readonly #running = new Set<Promise<void>>();
  #error: unknown;
  #failed = false;

  /** One has failed: no more need be added. */
  get failed(): boolean {
    return this.#failed;
  }

  /** Undefined: there is room for another piece at once. */
  add(piece: Promise<void>): Promise<void> | undefined {
    const tracked: Promise<void> = piece.then(
      () => {
        this.#running.delete(tracked);
      },
      (error: unknown) => {
        this.#running.delete(tracked);
        if (!this.#failed) this.#error = error;
        this.#failed = true;
      },
    );
    this.#running.add(tracked);
    return this.#running.size >= MAX_PIECES ? Promise.race(this.#running) : undefined;
  }

  async finish(): Promise<void> {
    await Promise.all(this.#running);
    if (this.#failed) throw this.#error;
  }
}
