/** Finds the runs of zeroes in a buffer of guest data, on the rules of `convert -S`.  @qemu is_allocated_sectors_min */

import { alignUp, KiB } from "../block/units.ts";

/** The bytes [start, end) of the buffer are worth a hole, or must be written. */
export interface Run {
  readonly start: number;
  readonly end: number;
  readonly zero: boolean;
}

/** How fine zeroes are looked for. */
export interface SparseRule {
  /** The grain: data is widened to multiples of it, counted from the start of the image. A power of two. */
  readonly unitBytes: number;
  /** Shorter runs of zeroes are written as data. 0: all is data. */
  readonly minBytes: number;
}

const ZEROES = Buffer.alloc(64 * KiB);

/** What `-S sparseBytes` and the target's alignment ask for. */
export function sparseRule(sparseBytes: number, alignmentBytes: number): SparseRule {
  if (sparseBytes === 0) return { unitBytes: 512, minBytes: 0 };
  const powerOfTwo = 2 ** Math.floor(Math.log2(sparseBytes));
  return { unitBytes: Math.max(powerOfTwo, alignmentBytes), minBytes: sparseBytes };
}

/**
 * Cuts `buffer`, which lies at guest `offset`, into runs that alternate. Zeroes at its start or end are a run of
 * their own however short they are, since a hole may lie beside them; all others must be `minBytes` long.
 */
export function findRuns(buffer: Uint8Array, offset: number, { unitBytes, minBytes }: SparseRule): Run[] {
  if (minBytes === 0) return [{ start: 0, end: buffer.length, zero: false }];
  const { length } = buffer;
  const wideBytes = Math.max(ZEROES.length, unitBytes);
  const runs: Run[] = [];
  let start = 0;
  let zero = false;
  for (let at = 0; at < length; ) {
    let end = Math.min(at + unitBytes - ((offset + at) % unitBytes), length);
    const unitIsZero = isZeroRange(buffer, at, end);
    // Where there are zeroes there are more of them: 64 KiB are tried at once.
    if (unitIsZero)
      while (end + wideBytes <= length && isZeroRange(buffer, end, end + wideBytes)) end += wideBytes;
    if (unitIsZero !== zero && at > start) {
      pushRun(runs, { start, end: at, zero: zero && (start === 0 || at - start >= minBytes) });
      start = at;
    }
    zero = unitIsZero;
    at = end;
  }
  if (start < length) pushRun(runs, { start, end: length, zero });
  return runs;
}

/**
 * The same runs without the holes in which no whole unit of `unitBytes` lies: where the target allocates by such
 * units, a hole saves no space there and costs a request. `unitBytes` 0: all stay.
 */
export function joinSmallHoles(runs: readonly Run[], offset: number, unitBytes: number): readonly Run[] {
  if (unitBytes === 0 || runs.length < 3) return runs;
  const joined: Run[] = [];
  for (const [index, run] of runs.entries()) {
    const isOuter = index === 0 || index === runs.length - 1;
    const holdsUnit = alignUp(offset + run.start, unitBytes) + unitBytes <= offset + run.end;
    pushRun(joined, { ...run, zero: run.zero && (isOuter || holdsUnit) });
  }
  return joined;
}

/** Adds a run, joined with the one before it where both come to be data. */
function pushRun(runs: Run[], run: Run): void {
  const before = runs.at(-1);
  if (before && before.zero === run.zero) runs[runs.length - 1] = { ...run, start: before.start };
  else runs.push(run);
}

/** Looks at three bytes first: a native compare costs as much as a whole page of them. */
function isZeroRange(buffer: Uint8Array, start: number, end: number): boolean {
  if (buffer[start] !== 0 || buffer[end - 1] !== 0 || buffer[(start + end) >>> 1] !== 0) return false;
  for (let at = start; at < end; at += ZEROES.length) {
    const stop = Math.min(at + ZEROES.length, end);
    if (ZEROES.compare(buffer, at, stop, 0, stop - at) !== 0) return false;
  }
  return true;
}
