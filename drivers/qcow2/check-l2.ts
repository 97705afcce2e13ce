/** The part of a check that walks L2 tables. Source: qcow2.txt, "Cluster mapping", "Extended L2 Entries" */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { isAligned } from "../../src/block/units.ts";
import type { Check } from "./check.ts";
import { checkOverlap } from "./corruption.ts";
import { COMPRESSED_HIGH, COPIED_HIGH, entryOffset, parseCompressed, plainRun, ZERO_LOW } from "./entries.ts";

/** What one L2 table adds to the figures of the image. */
export interface L2Figures {
  readonly allocated: number;
  readonly fragmented: number;
  readonly compressed: number;
  /** Errors that were told. */
  readonly findings: number;
}

/** How often an L2 table with findings is walked; beyond that its findings are only counted. */
export const MAX_REPEATED_WALKS = 16;

const NOTHING: L2Figures = { allocated: 0, fragmented: 0, compressed: 0, findings: 0 };

/** How a table is walked. */
export interface L2Visit {
  /** What each reference in it counts. */
  readonly weight: number;
  /** Entries that can be put right are. */
  readonly fix: boolean;
  /** The table is the active image's. */
  readonly isActive: boolean;
}

/** Counts the references of the table at `offset`.  @qemu check_refcounts_l2 */
export async function countL2(
  co: Coroutine<"read">,
  run: Check,
  offset: number,
  visit: L2Visit,
): Promise<L2Figures> {
  // Behind the end there are zeroes.
  if (offset >= run.counts.fileBytes) return NOTHING;
  const table = await readL2(co, run, offset);
  const walk = new L2Walk(run, table, visit.weight, visit.fix);
  const figures = walk.walk();
  for (const index of walk.misplaced) {
    const at = index * run.state.l2EntryBytes;
    const place = entryOffset(table.getUint32(at), table.getUint32(at + 4));
    // What still refers to a place keeps it.
    if (!(await zeroEntry(co, run, offset, index, table, visit)) && !run.state.hasDataFile)
      run.counts.add(place, run.state.clusterSize, visit.weight);
  }
  return figures;
}

/**
 * An entry that says zeroes and a place that can't be: without the place it is right. An extended one's bitmap says
 * what it is then. False: it stays as it is.  @qemu fix_l2_entry_by_zero
 */
async function zeroEntry(
  co: Coroutine<"read">,
  { state, options, result }: Check,
  offset: number,
  index: number,
  table: DataView<ArrayBuffer>,
  { isActive }: L2Visit,
): Promise<boolean> {
  const { l2EntryBytes, extendedL2, file } = state;
  const at = index * l2EntryBytes;
  table.setUint32(at, 0);
  table.setUint32(at + 4, extendedL2 ? 0 : ZERO_LOW);
  try {
    await checkOverlap(
      co,
      state,
      offset + at,
      l2EntryBytes,
      isActive ? "active L2 table" : "inactive L2 table",
    );
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    options.report("ERROR: Overlap check failed");
    result.checkErrors++;
    throw error;
  }
  try {
    await file.pwrite(co, offset + at, new Uint8Array(table.buffer, table.byteOffset + at, l2EntryBytes));
    await file.flush(co);
    result.corruptions--;
    result.corruptionsFixed++;
    return true;
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    options.report(`ERROR: Failed to overwrite L2 table entry: ${error.message}`);
    result.checkErrors++;
    return false;
  }
}

/** The table is in the one buffer of the check, until the next is read. */
export async function readL2(
  co: Coroutine<"read">,
  { state, options, result, l2Buffer }: Check,
  offset: number,
): Promise<DataView<ArrayBuffer>> {
  try {
    await state.file.pread(co, offset, l2Buffer);
    return new DataView(l2Buffer.buffer);
  } catch (error) {
    options.report("ERROR: I/O error in check_refcounts_l2");
    result.checkErrors++;
    throw error;
  }
}

class L2Walk {
  readonly #run: Check;
  readonly #table: DataView;
  readonly #weight: number;
  readonly #fix: boolean;
  /** Entries that read as zeroes and have an impossible place: left out of the count if they are to be put right. */
  readonly misplaced: number[] = [];
  #allocated = 0;
  #fragmented = 0;
  #compressed = 0;
  #nextContiguous = 0;
  /** Up to this index there is something wrong with what looks plain. */
  #closeLookUntil = 0;

  constructor(run: Check, table: DataView, weight: number, fix: boolean) {
    this.#run = run;
    this.#table = table;
    this.#weight = weight;
    this.#fix = fix;
  }

  walk(): L2Figures {
    const { state, result } = this.#run;
    const table = this.#table;
    const { l2EntryBytes, l2Entries, extendedL2 } = state;
    const before = result.corruptions;
    for (let index = 0; index < l2Entries; index++) {
      const plain = this.#countPlain(index);
      if (plain > 0) {
        index += plain - 1;
        continue;
      }
      const at = index * l2EntryBytes;
      const high = table.getUint32(at);
      const low = table.getUint32(at + 4);
      if (high === 0 && low === 0) {
        if (extendedL2) this.#checkUnallocated(at);
        continue;
      }
      if ((high & COMPRESSED_HIGH) !== 0) {
        this.#countCompressed(index, high, low);
        continue;
      }
      if ((high & 0x3f000000) !== 0 || (low & 0x1fe) !== 0)
        this.#corruption(`ERROR found l2 entry with reserved bits set: ${hexEntry(high, low)}`);
      if (isMapped(this.#run, high, low)) this.#countMapped(index, high, low);
      else if (extendedL2) this.#checkUnallocated(at);
    }
    return {
      allocated: this.#allocated,
      fragmented: this.#fragmented,
      compressed: this.#compressed,
      findings: result.corruptions - before,
    };
  }

  /** Counts what needs no second look, from the entry at `index` on; gives the number of entries. */
  #countPlain(index: number): number {
    const { state, counts } = this.#run;
    const { clusterSize, l2Entries, extendedL2, hasDataFile } = state;
    if (extendedL2 || hasDataFile || this.#weight !== 1 || index < this.#closeLookUntil) return 0;
    const table = this.#table;
    const run = plainRun(table, index, l2Entries, clusterSize);
    if (run === 0) return 0;
    const offset = entryOffset(table.getUint32(index * 8), table.getUint32(index * 8 + 4));
    const within = Math.ceil((counts.fileBytes - offset) / clusterSize);
    const counted = within > 0 ? counts.addRun(offset / clusterSize, Math.min(run, within)) : 0;
    if (counted === 0) {
      this.#closeLookUntil = index + run;
      return 0;
    }
    this.#allocated += counted;
    if (this.#nextContiguous !== 0 && offset !== this.#nextContiguous) this.#fragmented++;
    this.#nextContiguous = offset + counted * clusterSize;
    return counted;
  }

  /** A line is told once, however many references it stands for. */
  #corruption(line: string): void {
    const { options, result } = this.#run;
    options.report(line);
    result.corruptions += this.#weight;
  }

  /** The subclusters' bits: which are allocated, and which read as zeroes. */
  #bitmap(at: number): { readonly zeroes: number; readonly allocated: number } {
    return { zeroes: this.#table.getUint32(at + 8), allocated: this.#table.getUint32(at + 12) };
  }

  #checkUnallocated(at: number): void {
    if (this.#table.getUint32(at + 12) !== 0)
      this.#corruption("ERROR: Unallocated cluster has non-zero subcluster allocation map");
  }

  #countMapped(index: number, high: number, low: number): void {
    const { state, counts } = this.#run;
    const { clusterSize, extendedL2 } = state;
    const offset = entryOffset(high, low);
    let holdsData = (low & ZERO_LOW) === 0;
    if (extendedL2) {
      const { zeroes, allocated } = this.#bitmap(index * state.l2EntryBytes);
      holdsData = allocated !== 0;
      if ((zeroes & allocated) !== 0)
        this.#corruption(
          `ERROR offset=${offset.toString(16)}: Allocated cluster has corrupted subcluster allocation bitmap`,
        );
    }
    if (!isAligned(offset, clusterSize)) {
      const isFixed = this.#fix && !holdsData;
      this.#corruption(
        `${isFixed ? "Repairing" : "ERROR"} offset=${offset.toString(16)}: ${holdsData ? "Data" : "Preallocated"} cluster is not properly aligned; L2 entry corrupted.`,
      );
      if (isFixed) {
        this.misplaced.push(index);
        return;
      }
    }
    this.#allocated++;
    if (this.#nextContiguous !== 0 && offset !== this.#nextContiguous) this.#fragmented++;
    this.#nextContiguous = offset + clusterSize;
    if (!state.hasDataFile) counts.add(offset, clusterSize, this.#weight);
  }

  #countCompressed(index: number, high: number, low: number): void {
    const { state, counts } = this.#run;
    const { hostOffset, bytes } = parseCompressed(high, low, state.clusterBits);
    // The upper half of the offset has what the sector count leaves of its bits.
    const hexOffset = hexEntry(high & (2 ** (38 - state.clusterBits) - 1), low);
    if (high >= COPIED_HIGH)
      this.#corruption(
        `ERROR: coffset=0x${hexOffset}: copied flag must never be set for compressed clusters`,
      );
    const entry = hexEntry((high & ~COPIED_HIGH) >>> 0, low);
    if (state.hasDataFile) {
      this.#corruption(`ERROR compressed cluster ${index} with data file, entry=0x${entry}`);
      return;
    }
    if (state.extendedL2) {
      const { zeroes, allocated } = this.#bitmap(index * state.l2EntryBytes);
      if (zeroes !== 0 || allocated !== 0) {
        this.#corruption(
          `ERROR compressed cluster ${index} with non-zero subcluster allocation bitmap, entry=0x${entry}`,
        );
        return;
      }
    }
    counts.add(hostOffset, bytes, this.#weight, hexOffset);
    this.#allocated++;
    this.#compressed++;
    this.#fragmented++;
  }
}

/** Whether an entry that is not compressed has a place: in a data file, offset 0 is one if the flag says so. */
export function isMapped({ state }: Check, high: number, low: number): boolean {
  if (entryOffset(high, low) !== 0) return true;
  return state.hasDataFile && high >= COPIED_HIGH && (state.extendedL2 || (low & ZERO_LOW) === 0);
}

/** An entry as C's %x prints it. */
export function hexEntry(high: number, low: number): string {
  return high === 0 ? low.toString(16) : high.toString(16) + low.toString(16).padStart(8, "0");
}
