/** The internal snapshots of an open image, and the machine's state that is saved with them, for whoever holds its backend. */

import type { BlockBackend } from "./backend.ts";
import type { NewSnapshot, SnapshotInfo, SnapshotRef } from "./driver.ts";
import type { IoVector } from "./iov.ts";
import { createSnapshot, deleteSnapshot, gotoSnapshot, listSnapshots } from "./snapshot.ts";
import { loadVmState, saveVmState } from "./vm-state.ts";

/** What is known of the machine whose disk it is. */
export type SnapshotDetails = Partial<Pick<NewSnapshot, "vmStateSize" | "vmClockNsec" | "icount">> & {
  /** Default: now. */
  readonly date?: Date;
};

/** Errors of all methods: BlockError; ENOTSUP where the format has no snapshots. */
export class ImageSnapshots {
  readonly #image: BlockBackend;

  constructor(image: BlockBackend) {
    this.#image = image;
  }

  /** In the order of the image's table. */
  list(): Promise<readonly SnapshotInfo[]> {
    return this.#image.run((co, { node }) => listSnapshots(co, node));
  }

  /** Keeps what the image holds now. Names need not be unique; ids are. */
  create(name: string, details: SnapshotDetails = {}): Promise<void> {
    const { date = new Date(), vmStateSize = 0, vmClockNsec = 0n, icount } = details;
    const milliseconds = date.getTime();
    const snapshot: NewSnapshot = {
      name,
      vmStateSize,
      vmClockNsec,
      dateSec: Math.floor(milliseconds / 1000),
      dateNsec: (milliseconds % 1000) * 1_000_000,
      ...(icount !== undefined && { icount }),
    };
    const { context, node } = this.#image;
    return context.run((main) => createSnapshot(main, node, snapshot));
  }

  /** Makes the image hold what the snapshot with this id, or else this name, holds; also its size. */
  apply(idOrName: string): Promise<void> {
    const { context, node } = this.#image;
    return context.run((main) => gotoSnapshot(main, node, idOrName));
  }

  /** A string is a name: the first snapshot that has it. */
  delete(snapshot: string | SnapshotRef): Promise<void> {
    const { context, node } = this.#image;
    const wanted = typeof snapshot === "string" ? { name: snapshot } : snapshot;
    return context.run((main) => deleteSnapshot(main, node, wanted));
  }

  /** The state is part of the next snapshot that is taken with a `vmStateSize`. */
  saveVmState(offset: number, iov: IoVector): Promise<void> {
    return this.#image.run((co, { node }) => saveVmState(co, node, offset, iov));
  }

  /** Fills `iov` from `offset` of the state that was saved, or that came with the snapshot last applied. */
  loadVmState(offset: number, iov: IoVector): Promise<void> {
    return this.#image.run((co, { node }) => loadVmState(co, node, offset, iov));
  }
}
