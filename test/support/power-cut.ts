/** Power cuts: what a file got is recorded, and put together again as a cut after each change would leave it. */

import { iovFlatten } from "../../src/block/iov.ts";
import { memoryDriver } from "./graph.ts";
import type { Random } from "./random.ts";
import type { Cleanup } from "./temp.ts";

/** A change of the file, or a flush (undefined). */
export type Change = ((image: Image) => void) | undefined;

/** The image file in memory, with a log of what is done to it. */
export function recorder(
  test: Cleanup,
  content: Uint8Array,
): { readonly log: Change[]; readonly content: () => Uint8Array } {
  const log: Change[] = [];
  const memory = memoryDriver(test, "recorder", 0, (_, ops) => ({
    async pwrite(co, offset, iov, flags) {
      // A copy, also of a Buffer, whose own slice() is none.
      const bytes = new Uint8Array(iovFlatten(iov));
      log.push((image) => image.write(offset, bytes));
      await ops.pwrite?.(co, offset, iov, flags);
    },
    async pdiscard(co, offset, bytes) {
      log.push((image) => image.write(offset, new Uint8Array(bytes)));
      await ops.pdiscard?.(co, offset, bytes);
    },
    async truncate(co, bytes, exact, prealloc, flags) {
      log.push((image) => image.resize(bytes));
      await ops.truncate?.(co, bytes, exact, prealloc, flags);
    },
    async flushToDisk() {
      log.push(undefined);
    },
    pwriteZeroes: undefined,
  }));
  memory.data = content.slice();
  return { log, content: () => memory.data };
}

/** Each prefix of the log, and for each some of the changes since the last flush left out. */
export async function replay(
  before: Uint8Array,
  log: readonly Change[],
  dice: Random,
  look: (data: Uint8Array, logged: number, what: string) => Promise<void> | void,
): Promise<void> {
  const stable = new Image(before);
  let pending: NonNullable<Change>[] = [];
  for (const [index, change] of log.entries()) {
    if (!change) {
      for (const each of pending) each(stable);
      pending = [];
      continue;
    }
    pending.push(change);
    const prefix = new Image(stable.data);
    for (const each of pending) each(prefix);
    await look(prefix.data, index + 1, `cut after change ${index}`);
    if (pending.length < 2) continue;
    const torn = new Image(stable.data);
    for (const each of pending) if (dice.below(2) === 0) each(torn);
    await look(torn.data, index + 1, `cut at change ${index} with changes missing`);
  }
}

/** Where the first sector of 512 bytes lies that is none of what it may be; undefined: there is none. */
export function wrongSector(
  content: Uint8Array,
  states: readonly { readonly model: Uint8Array }[],
): number | undefined {
  for (let at = 0; at < content.length; at += 512) {
    const sector = content.subarray(at, at + 512);
    const isFine = states.some(({ model }) => Buffer.compare(model.subarray(at, at + 512), sector) === 0);
    if (!isFine) return at;
  }
  return undefined;
}

/** The file as it is put together again. */
class Image {
  data: Uint8Array;

  constructor(data: Uint8Array) {
    this.data = data.slice();
  }

  write(offset: number, bytes: Uint8Array): void {
    if (offset + bytes.length > this.data.length) this.resize(offset + bytes.length);
    this.data.set(bytes, offset);
  }

  resize(bytes: number): void {
    const resized = new Uint8Array(bytes);
    resized.set(this.data.subarray(0, bytes));
    this.data = resized;
  }
}
