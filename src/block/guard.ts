/**
 * The guard of images from untrusted hands: what `--untrusted` and `open(..., { untrusted })` forbid and cap. It is
 * asked where images are opened, and it watches the operations of the nodes; who trusts his images pays nothing for it.
 *
 * 1. Nothing that an image names is opened, whatever the gate says: `refuseReference`.
 * 2. No format is guessed: `requireFormat`. What is said to be raw stays raw.
 * 3. A file lies in the directory in which its name is, also by way of symbolic links: `drivers/confine.ts`.
 * 4. Lengths, what is read to open an image, what comes out of compressed data, and time end at `limits`.
 */

import type { NodeOps } from "./driver.ts";
import { BlockError } from "./errors.ts";
import { iovLength } from "./iov.ts";
import { BlockNode } from "./node.ts";
import { type Options, type OptionTable, takeOptions } from "./options.ts";
import { GiB, MiB, SECTOR_SIZE, TiB } from "./units.ts";

/** What one guard lets pass in all its life: one command, or one open image. */
export interface Limits {
  /** Length of what an image shows, in bytes. */
  readonly virtualBytes: number;
  /** Bytes of one file that are read before the image in it is open: its header and tables. */
  readonly tableBytes: number;
  /** Bytes that come out of compressed data. */
  readonly decompressedBytes: number;
  readonly seconds: number;
}

/** What a disk image for a virtual machine has no reason to be over. */
export const DEFAULT_LIMITS: Limits = {
  virtualBytes: 2 * TiB,
  tableBytes: 64 * MiB,
  decompressedBytes: 64 * GiB,
  seconds: 300,
};

const LIMIT_OPTIONS = {
  "virtual-size": { type: "size" },
  "table-size": { type: "size" },
  decompressed: { type: "size" },
  time: { type: "number" },
} as const satisfies OptionTable;

/** The limits that options name ("virtual-size", "table-size", "decompressed", "time" in seconds); the defaults else. */
export function limitsFrom(options: Options): Limits {
  const left = new Map(options);
  const given = takeOptions(LIMIT_OPTIONS, left);
  const [unknown] = left.keys();
  if (unknown !== undefined) throw new BlockError("EINVAL", `Invalid parameter '${unknown}'`);
  return {
    virtualBytes: given["virtual-size"] ?? DEFAULT_LIMITS.virtualBytes,
    tableBytes: given["table-size"] ?? DEFAULT_LIMITS.tableBytes,
    decompressedBytes: given.decompressed ?? DEFAULT_LIMITS.decompressedBytes,
    seconds: given.time ?? DEFAULT_LIMITS.seconds,
  };
}

/** What a slow machine does of PBKDF2. */
const ITERATIONS_PER_SECOND = 500_000;

export class Guard {
  readonly limits: Limits;
  readonly #deadline: number;
  #decompressed = 0;
  #iterations = 0;

  constructor(limits: Partial<Limits> = {}) {
    this.limits = { ...DEFAULT_LIMITS, ...limits };
    this.#deadline = performance.now() + this.limits.seconds * 1000;
  }

  requireFormat(): never {
    throw new BlockError("EINVAL", "The format of an untrusted image must be given: it is not guessed");
  }

  refuseReference(kind: string, filename: string): never {
    throw new BlockError("EACCES", `The ${kind} '${filename}' that the untrusted image names is not opened`);
  }

  checkLength(node: BlockNode): void {
    if (node.driver.kind === "protocol") return;
    const bytes = node.totalSectors * SECTOR_SIZE;
    const { virtualBytes } = this.limits;
    if (bytes > virtualBytes)
      throw new BlockError(
        "EFBIG",
        `The size of the untrusted image (${bytes} bytes) is over the limit of ${virtualBytes} bytes`,
      );
  }

  /** A driver tells of what it is about to inflate. */
  decompress(bytes: number): void {
    this.#decompressed += bytes;
    const { decompressedBytes } = this.limits;
    if (this.#decompressed > decompressedBytes)
      throw new BlockError(
        "EFBIG",
        `The compressed data of the untrusted image holds more than the limit of ${decompressedBytes} bytes`,
      );
  }

  /** A driver tells of so many iterations of a key derivation, which the image asks for. */
  derive(iterations: number): void {
    this.checkTime();
    this.#iterations += iterations;
    if (this.#iterations > this.limits.seconds * ITERATIONS_PER_SECOND)
      throw new BlockError(
        "ETIMEDOUT",
        `The keys of the untrusted image take longer than the limit of ${this.limits.seconds} s`,
      );
  }

  checkTime(): void {
    if (performance.now() > this.#deadline)
      throw new BlockError(
        "ETIMEDOUT",
        `The untrusted image takes longer than the limit of ${this.limits.seconds} s`,
      );
  }

  /** The operations of `node`, watched: time is looked at before each, and what is read for the sake of an open is counted. */
  watch(node: BlockNode, ops: NodeOps): NodeOps {
    const watched: { -readonly [K in keyof NodeOps]: NodeOps[K] } = {};
    const { pread, pwrite, pwriteCompressed, pwriteZeroes, pdiscard, blockStatus, truncate } = ops;
    const timely =
      <A extends readonly unknown[], R>(op: (...args: A) => Promise<R>) =>
      async (...args: A): Promise<R> => {
        this.checkTime();
        return op(...args);
      };
    if (pread)
      watched.pread = timely(node.driver.kind === "protocol" ? this.#countTables(node, pread) : pread);
    if (pwrite) watched.pwrite = timely(pwrite);
    if (pwriteCompressed) watched.pwriteCompressed = timely(pwriteCompressed);
    if (pwriteZeroes) watched.pwriteZeroes = timely(pwriteZeroes);
    if (pdiscard) watched.pdiscard = timely(pdiscard);
    if (blockStatus) watched.blockStatus = timely(blockStatus);
    if (truncate) watched.truncate = timely(truncate);
    // The rest stays where it is: some of it are properties whose value changes.
    return Object.assign(Object.create(ops) as NodeOps, watched);
  }

  #countTables(node: BlockNode, pread: NonNullable<NodeOps["pread"]>): NonNullable<NodeOps["pread"]> {
    let left = this.limits.tableBytes;
    let isOpen = false;
    return async (co, offset, iov, flags) => {
      isOpen ||= isInUse(node);
      if (!isOpen) {
        left -= iovLength(iov);
        if (left < 0)
          throw new BlockError(
            "EFBIG",
            `The tables of the untrusted image are over the limit of ${this.limits.tableBytes} bytes`,
          );
      }
      return pread(co, offset, iov, flags);
    };
  }
}

/** All that stands on the node has been opened. */
function isInUse(node: BlockNode): boolean {
  if (node.parents.size === 0) return false;
  return [...node.parents].every(
    ({ parent }) => !(parent instanceof BlockNode) || (parent.isInserted && isInUse(parent)),
  );
}
