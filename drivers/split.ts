/** The parts of one image (FILE.001, FILE.002, ... as imaging tools and `split` make them), joined: `split:FILE.001`. QEMU has none. */

import fs from "node:fs";
import path from "node:path";
import { type BlockChild, type ChildRole, Perm } from "../src/block/child.ts";
import { type Coroutine, graphRdlock } from "../src/block/coroutine.ts";
import type { FilterDriver, NodeOps } from "../src/block/driver.ts";
import { BlockError, toBlockError } from "../src/block/errors.ts";
import { protocolPrefix } from "../src/block/filename.ts";
import { iovLength, iovSlice } from "../src/block/iov.ts";
import type { BlockNode } from "../src/block/node.ts";
import { isAligned, SECTOR_SIZE } from "../src/block/units.ts";

const options = {
  /** That of the first part; the others lie beside it. */
  filename: { type: "string", strong: true },
} as const;

const PREFIX = "split:";

/** A descriptor each. */
const MAX_PARTS = 1000;

/** A part is what its file is, whatever it may look like: nothing is probed. */
const PART_ROLE: ChildRole = {
  data: true,
  metadata: true,
  // A part must not become longer, for the next one starts where it ends.
  perm: (_, { used, shared }) => ({ used: used & ~Perm.Resize, shared: shared & ~Perm.Resize }),
};

export const split: FilterDriver<typeof options> = {
  formatName: "split",
  // None of its children is a filtered one: what is not defined here is not done.
  kind: "filter",
  prefix: "split",
  options,

  parseFilename: (filename) =>
    new Map([["filename", filename.startsWith(PREFIX) ? filename.slice(PREFIX.length) : filename]]),

  filenameOf: (node) => `${PREFIX}${node.ownOptions.get("filename")}`,

  async open(co, { node, options: { filename }, openChild, openReference, nameReference }) {
    if (filename === undefined) throw new BlockError("EINVAL", "Parameter 'filename' is missing");
    const [first, ...others] = findParts(filename) as [string, ...string[]];
    for (const other of others) nameReference({ kind: "extent", filename: other });
    const file = await openChild(co, "file", { ...PART_ROLE, primary: true }, first);
    const parts = [file as BlockChild];
    for (const [index, other] of others.entries())
      parts.push(
        await openReference(co, `parts.${index + 1}`, { ...PART_ROLE, implied: true }, "extent", other),
      );
    const { partBytes, bytes } = await graphRdlock(co, (reader) => checkSizes(reader, parts));
    // A last part of an odd size ends in zeroes, as a raw image does.
    node.totalSectors = Math.ceil(bytes / SECTOR_SIZE);
    return operations(parts, partBytes);
  },
};

/** The names of all parts, by the number at the end of the first. */
function findParts(filename: string): string[] {
  const [, stem, digits] = /^(.+\.)([0-9]{3,9})$/s.exec(filename) ?? [];
  if (stem === undefined || digits === undefined || protocolPrefix(filename) !== undefined)
    throw new BlockError("EINVAL", "An image in parts is named by the first one, as split:FILE.001");
  const nameOf = (number: number) => stem + String(number).padStart(digits.length, "0");
  const start = Number(digits);
  if (start > 1) throw new BlockError("EINVAL", `'${filename}' is not the first part, which ends in 0 or 1`);
  const numbers = listFolder(path.dirname(filename))
    .filter((name) => name.startsWith(path.basename(stem)))
    .map((name) => name.slice(path.basename(stem).length))
    .filter((end) => /^[0-9]+$/.test(end) && end.length === digits.length)
    .map(Number)
    .sort((a, b) => a - b);
  if (numbers.length > MAX_PARTS)
    throw new BlockError("EINVAL", `The image has ${numbers.length} parts: over ${MAX_PARTS} are not joined`);
  if (numbers.some((number) => number < start))
    throw new BlockError("EINVAL", `'${filename}' is not the first part: there is '${nameOf(0)}'`);
  for (const [index, number] of numbers.entries())
    if (number !== start + index)
      throw new BlockError(
        "ENOENT",
        `The part '${nameOf(start + index)}' is missing, for there is '${nameOf(number)}'`,
      );
  // What is wrong with a first part that is not there, its own open says best.
  return numbers.length === 0 ? [filename] : numbers.map(nameOf);
}

function listFolder(folder: string): readonly string[] {
  try {
    return fs.readdirSync(folder);
  } catch (error) {
    const { errno } = toBlockError(error);
    if (errno === "ENOENT" || errno === "ENOTDIR") return [];
    throw BlockError.wrap(`Could not look for parts in '${folder}'`, error);
  }
}

/** Parts are of one size, but for a shorter last one: another size tells of one that is damaged or not of this set. */
async function checkSizes(
  co: Coroutine<"read">,
  parts: readonly BlockChild[],
): Promise<{ readonly partBytes: number; readonly bytes: number }> {
  const sizes: number[] = [];
  // As they are: a node's length is rounded up to sectors.
  for (const part of parts) sizes.push((await part.node.ops.getLength?.(co)) ?? (await part.getLength(co)));
  const [partBytes = 0, ...rest] = sizes;
  const lastBytes = rest.at(-1);
  if (lastBytes === undefined) return { partBytes, bytes: partBytes };
  const nameOf = (index: number) => `The part '${parts[index]?.node.filename}'`;
  if (partBytes === 0 || !isAligned(partBytes, SECTOR_SIZE))
    throw new BlockError(
      "EINVAL",
      `${nameOf(0)} has ${partBytes} bytes: that is no whole number of sectors of ${SECTOR_SIZE} bytes`,
    );
  for (const [index, size] of sizes.entries())
    if (index < rest.length ? size !== partBytes : size > partBytes)
      throw new BlockError("EINVAL", `${nameOf(index)} has ${size} bytes, the first one has ${partBytes}`);
  return { partBytes, bytes: partBytes * rest.length + lastBytes };
}

function operations(parts: readonly BlockChild[], partBytes: number): NodeOps {
  const find = (offset: number) => {
    const index = Math.min(Math.floor(offset / partBytes), parts.length - 1);
    const at = offset - index * partBytes;
    return {
      part: parts[index] as BlockChild,
      at,
      left: index < parts.length - 1 ? partBytes - at : Infinity,
    };
  };
  /** Calls `request` for each part that has some of the range; `done` bytes of it have been before. */
  const forEach = async (
    offset: number,
    bytes: number,
    request: (part: BlockChild, at: number, done: number, piece: number) => Promise<void>,
  ): Promise<void> => {
    for (let done = 0; done < bytes; ) {
      const { part, at, left } = find(offset + done);
      const piece = Math.min(left, bytes - done);
      await request(part, at, done, piece);
      done += piece;
    }
  };
  const common = (flagsOf: (node: BlockNode) => number) =>
    parts.reduce((flags, { node }) => flags & flagsOf(node), ~0);
  return {
    supportedWriteFlags: common((node) => node.supportedWriteFlags),
    supportedZeroFlags: common((node) => node.supportedZeroFlags),
    pread: (co, offset, iov, flags) =>
      forEach(offset, iovLength(iov), (part, at, done, piece) =>
        part.pread(co, at, iovSlice(iov, done, done + piece), flags),
      ),
    pwrite: (co, offset, iov, flags) =>
      forEach(offset, iovLength(iov), (part, at, done, piece) =>
        part.pwrite(co, at, iovSlice(iov, done, done + piece), flags),
      ),
    pwriteZeroes: (co, offset, bytes, flags) =>
      forEach(offset, bytes, (part, at, _, piece) => part.pwriteZeroes(co, at, piece, flags)),
    pdiscard: (co, offset, bytes) =>
      forEach(offset, bytes, (part, at, _, piece) => part.pdiscard(co, at, piece)),
    copyFrom: (co, offset, range) =>
      forEach(offset, range.bytes, (part, at, done, piece) =>
        part.copyFrom(co, at, { ...range, offset: range.offset + done, bytes: piece }),
      ),
    async blockStatus(_, _wantZero, offset, bytes) {
      const { part, at, left } = find(offset);
      return {
        bytes: Math.min(bytes, left),
        data: false,
        zero: false,
        allocated: false,
        raw: true,
        offset: at,
        file: part.node,
      };
    },
  };
}
