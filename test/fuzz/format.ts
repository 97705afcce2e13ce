/** What the fuzzer has to know of a format: valid images to begin with, where numbers and names lie in them, and checksums. */

import type { Layout } from "../../src/block/layout.ts";

/** Numbers of one kind that follow each other, or text. Regions may lie over each other. */
export interface Region {
  readonly name: string;
  /** Bytes from the start of the file. */
  readonly offset: number;
  /** Bytes of a number. "text": `count` bytes of names or words; "bytes": `count` bytes of anything. */
  readonly width: 1 | 2 | 4 | 8 | "text" | "bytes";
  readonly count: number;
  readonly littleEndian?: boolean | undefined;
  /** The numbers are places in the file, in units of so many bytes. */
  readonly unit?: number | undefined;
  /** Masks that mean something in such a number. */
  readonly flags?: readonly bigint[] | undefined;
}

export interface Base {
  readonly name: string;
  readonly content: Uint8Array;
  /** Options of the open beside driver and file: ids of secrets. */
  readonly options?: Readonly<Record<string, string>> | undefined;
}

/** Where bases are made. */
export interface Workshop {
  /** Absolute name of a file in a directory of its own. */
  path(name: string): string;
  readonly secrets: Readonly<Record<string, string>>;
  /** By ours. */
  create(
    filename: string,
    format: string,
    size: number,
    options: Readonly<Record<string, string | number | boolean>>,
  ): Promise<void>;
  /** Runs qemu's tool where it is installed; false: it is not, or it failed. */
  tool(program: "qemu-img" | "qemu-io", ...args: readonly string[]): boolean;
}

export interface FuzzFormat {
  /** The driver's. */
  readonly formatName: string;
  /** Valid images of at most some 100 KiB; made by ours, and by qemu where it is there. */
  readonly bases: (workshop: Workshop) => Promise<readonly Base[]>;
  /** Of a valid image; called anew for each. */
  readonly regions: (image: Buffer) => readonly Region[];
  /** Puts checksums right after mutations. */
  readonly mend?: (image: Buffer) => void;
  /** Repairs and writes are tried. */
  readonly writable: boolean;
}

/** A region for each number of a record that lies at `offset`; other fields are bytes. */
export function recordRegions(
  name: string,
  { offsetOf, size }: Pick<Layout<never>, "size"> & { readonly offsetOf: Readonly<Record<string, number>> },
  offset: number,
  extra: Pick<Region, "littleEndian"> = {},
): Region[] {
  const starts = Object.entries(offsetOf);
  return starts.map(([field, start], index) => {
    const bytes = (starts[index + 1]?.[1] ?? size) - start;
    const isNumber = bytes === 1 || bytes === 2 || bytes === 4 || bytes === 8;
    const common = { name: `${name}.${field}`, offset: offset + start, ...extra };
    return isNumber ? { ...common, width: bytes, count: 1 } : { ...common, width: "bytes", count: bytes };
  });
}

/** Those regions that lie within the file: mutated numbers may have led elsewhere. */
export function within(image: Uint8Array, regions: readonly Region[]): Region[] {
  return regions
    .map((region) => {
      const width = typeof region.width === "number" ? region.width : 1;
      const room = Math.floor((image.length - region.offset) / width);
      return { ...region, count: Math.min(region.count, room) };
    })
    .filter(({ offset, count }) => offset >= 0 && count > 0);
}
