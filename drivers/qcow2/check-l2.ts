/** The part of a check that walks L2 tables. Source: qcow2.txt, "Cluster mapping", "Extended L2 Entries" */

import type { Coroutine } from "../../src/block/coroutine.ts";
import { isAligned } from "../../src/block/units.ts";
import type { Check } from "./check.ts";
import { COMPRESSED_HIGH, COPIED_HIGH, entryOffset, parseCompressed, ZERO_LOW } from "./entries.ts";

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

/** Counts the references of the table at `offset`, each `weight` times.  @qemu check_refcounts_l2 */
export async function countL2(
  co: Coroutine<"read">,
  run: Check,
  offset: number,
  weight: number,
): Promise<L2Figures> {
  // Behind the end there are zeroes.
  if (offset >= run.fileBytes) return NOTHING;
  const table = await readL2(co, run, offset);
  return new L2Walk(run, table, weight).walk();
}

async function readL2(co: Coroutine<"read">, { state, options, result }: Check, offset: number) {
  try {
    const bytes = await state.file.preadBytes(co, offset, state.clusterSize);
    return new DataView(bytes.buffer);
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
  #allocated = 0;
  #fragmented = 0;
  #compressed = 0;
  #nextContiguous = 0;

  constructor(run: Check, table: DataView, weight: number) {
    this.#run = run;
    this.#table = table;
    this.#weight = weight;
  }

  walk(): L2Figures {
    const { state, result } = this.#run;
    const table = this.#table;
    const { l2EntryBytes, l2Entries, extendedL2 } = state;
    const before = result.corruptions;
    for (let index = 0; index < l2Entries; index++) {
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
      if (isMapped(this.#run, high, low)) this.#countMapped(at, high, low);
      else if (extendedL2) this.#checkUnallocated(at);
    }
    return {
      allocated: this.#allocated,
      fragmented: this.#fragmented,
      compressed: this.#compressed,
      findings: result.corruptions - before,
    };
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

  #countMapped(at: number, high: number, low: number): void {
    const { state, counts } = this.#run;
    const { clusterSize, extendedL2 } = state;
    const offset = entryOffset(high, low);
    let holdsData = (low & ZERO_LOW) === 0;
    if (extendedL2) {
      const { zeroes, allocated } = this.#bitmap(at);
      holdsData = allocated !== 0;
      if ((zeroes & allocated) !== 0)
        this.#corruption(
          `ERROR offset=${offset.toString(16)}: Allocated cluster has corrupted subcluster allocation bitmap`,
        );
    }
    if (!isAligned(offset, clusterSize))
      this.#corruption(
        `ERROR offset=${offset.toString(16)}: ${holdsData ? "Data" : "Preallocated"} cluster is not properly aligned; L2 entry corrupted.`,
      );
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
function isMapped({ state }: Check, high: number, low: number): boolean {
  if (entryOffset(high, low) !== 0) return true;
  return state.hasDataFile && high >= COPIED_HIGH && (state.extendedL2 || (low & ZERO_LOW) === 0);
}

/**
 * "Copied" must be set exactly where the refcount is 1. Only the active tables have the flag. Refcounts that can't be
 * read have been told of before.  @qemu check_oflag_copied
 */
export async function checkCopiedFlags(co: Coroutine<"read">, run: Check): Promise<void> {
  const { state, counts, options, result } = run;
  const { l1Table, clusterSize } = state;
  /** Findings and walks of each L2 table, since several L1 entries may name the same. */
  const walked = new Map<number, { findings: number; walks: number }>();
  for (let index = 0; index < state.l1Size; index++) {
    const high = l1Table.getUint32(index * 8);
    const low = l1Table.getUint32(index * 8 + 4);
    const offset = entryOffset(high, low);
    if (offset === 0) continue;
    co.checkAborted();
    const refcount = await counts.refcount(co, Math.floor(offset / clusterSize));
    if (refcount !== undefined && (refcount === 1) !== high >= COPIED_HIGH) {
      options.report(
        `ERROR OFLAG_COPIED L2 cluster: l1_index=${index} l1_entry=${hexEntry(high, low)} refcount=${BigInt(refcount)}`,
      );
      result.corruptions++;
    }
    if (refcount === undefined || offset >= run.fileBytes) continue;
    const known = walked.get(offset) ?? { findings: 0, walks: 0 };
    if (known.walks > 0 && (known.findings === 0 || known.walks >= MAX_REPEATED_WALKS)) {
      result.corruptions += known.findings;
      continue;
    }
    const before = result.corruptions;
    await checkCopiedEntries(co, run, await readL2(co, run, offset));
    walked.set(offset, { findings: result.corruptions - before, walks: known.walks + 1 });
  }
}

async function checkCopiedEntries(co: Coroutine<"read">, run: Check, table: DataView): Promise<void> {
  const { state, counts, options, result } = run;
  const { clusterSize, l2EntryBytes, hasDataFile } = state;
  for (let at = 0; at < table.byteLength; at += l2EntryBytes) {
    const high = table.getUint32(at);
    const low = table.getUint32(at + 4);
    if ((high === 0 && low === 0) || (high & COMPRESSED_HIGH) !== 0 || !isMapped(run, high, low)) continue;
    const cluster = Math.floor(entryOffset(high, low) / clusterSize);
    // Nothing is counted in a data file: each cluster has one user.
    const refcount = hasDataFile ? 1 : (counts.peekRefcount(cluster) ?? (await counts.refcount(co, cluster)));
    if (refcount === undefined || (refcount === 1) === high >= COPIED_HIGH) continue;
    options.report(
      `ERROR OFLAG_COPIED data cluster: l2_entry=${hexEntry(high, low)} refcount=${BigInt(refcount)}`,
    );
    result.corruptions++;
  }
}

/** An entry as C's %x prints it. */
export function hexEntry(high: number, low: number): string {
  return high === 0 ? low.toString(16) : high.toString(16) + low.toString(16).padStart(8, "0");
}
