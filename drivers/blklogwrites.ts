/**
 * Logs every change of its child in the format of the kernel's dm-log-writes target, to play it back up to any
 * point.  @qemu block/blklogwrites.c, Linux Documentation/admin-guide/device-mapper/log-writes.rst
 */

import type { BlockChild } from "../src/block/child.ts";
import { type Coroutine, graphRdlock } from "../src/block/coroutine.ts";
import { type FilterDriver, Req } from "../src/block/driver.ts";
import { BlockError } from "../src/block/errors.ts";
import { type IoVector, iovConcat, iovLength } from "../src/block/iov.ts";
import { layout, mask64, u32, u64 } from "../src/block/layout.ts";
import { isAligned, isPowerOfTwo, MiB } from "../src/block/units.ts";

const options = {
  /** Go on with the log that is there. */
  "log-append": { type: "bool" },
  /** Unit of the log, in bytes; 512 by default. */
  "log-sector-size": { type: "size" },
  /** Entries after which the log's head is written, beside at each flush. */
  "log-super-update-interval": { type: "number" },
} as const;

/** The first sector of a log. */
const Head = layout("little", {
  /** "rhswfsj" */
  magic: mask64,
  version: u64,
  entries: u64,
  sectorSize: u32,
});

const MAGIC = 0x6a736677736872n;
const VERSION = 1;
const MAX_SECTOR_SIZE = 8 * MiB;
const DEFAULT_UPDATE_INTERVAL = 4096;
const DEFAULT_SECTOR_SIZE = 512;

/** Before the data of each entry, in a sector of its own. */
const Entry = layout("little", {
  /** Of the change, in units of the log's sector. */
  sector: u64,
  sectors: u64,
  /** A mask of EntryFlag. */
  flags: u64,
  /** Bytes of a mark's text; no data is counted here. */
  markBytes: u64,
});

const EntryFlag = { Flush: 1, Discard: 4 } as const;

export const blklogwrites: FilterDriver<typeof options> = {
  formatName: "blklogwrites",
  kind: "filter",
  options,

  async open(co, { node, options: given, openFileChild, openChild }) {
    const append = given["log-append"] ?? false;
    const file = await openFileChild(co);
    const logFile = await openChild(co, "log", { metadata: true });
    if (!logFile) throw new BlockError("EINVAL", 'A block device must be specified for "log"');
    const log = await Log.open(co, logFile, append, given);
    return {
      supportedWriteFlags: Req.WriteUnchanged | (Req.Fua & file.node.supportedWriteFlags),
      supportedZeroFlags:
        Req.WriteUnchanged | ((Req.Fua | Req.MayUnmap | Req.NoFallback) & file.node.supportedZeroFlags),
      getLength: (co) => file.getLength(co),
      limits: () => ({ requestAlignment: log.sectorSize }),
      async pwrite(co, offset, iov, flags) {
        await log.add(co, 0, offset, iovLength(iov), iov);
        await file.pwrite(co, offset, iov, flags);
      },
      async pwriteZeroes(co, offset, bytes, flags) {
        await log.add(co, 0, offset, bytes, "zeroes");
        await file.pwriteZeroes(co, offset, bytes, flags);
      },
      async pdiscard(co, offset, bytes) {
        // Part of a sector can't be told in the log.
        if (!isAligned(offset, log.sectorSize) || !isAligned(bytes, log.sectorSize))
          throw new BlockError("ENOTSUP");
        await log.add(co, EntryFlag.Discard, offset, bytes, undefined);
        await file.pdiscard(co, offset, bytes);
      },
      // The core flushes the child afterwards.
      async flushToDisk(co) {
        if (!node.readOnly) await log.add(co, EntryFlag.Flush, 0, 0, undefined);
      },
      truncate: (co, bytes, exact, prealloc, flags) => file.truncate(co, bytes, exact, prealloc, flags),
    };
  },
};

type Given = Parameters<typeof blklogwrites.open>[1]["options"];

class Log {
  readonly #file: BlockChild;
  readonly sectorSize: number;
  readonly #interval: number;
  #entries: number;
  /** In sectors of the log. */
  #next: number;

  private constructor(file: BlockChild, sectorSize: number, interval: number, entries: number, next: number) {
    this.#file = file;
    this.sectorSize = sectorSize;
    this.#interval = interval;
    this.#entries = entries;
    this.#next = next;
  }

  static async open(co: Coroutine<"none">, file: BlockChild, append: boolean, given: Given): Promise<Log> {
    const interval = given["log-super-update-interval"] ?? DEFAULT_UPDATE_INTERVAL;
    if (append && given["log-sector-size"] !== undefined)
      throw new BlockError("EINVAL", "log-append and log-sector-size are mutually exclusive");
    let sectorSize = given["log-sector-size"] ?? DEFAULT_SECTOR_SIZE;
    let [entries, next] = [0, 1];
    if (append && file.node.totalSectors > 0)
      [sectorSize, entries, next] = await graphRdlock(co, (reader) => readLog(reader, file));
    checkSectorSize(sectorSize);
    if (!(interval > 0)) throw new BlockError("EINVAL", `Invalid log superblock update interval ${interval}`);
    return new Log(file, sectorSize, interval, entries, next);
  }

  /** Notes a change; a flush makes the log itself stable. */
  async add(
    co: Coroutine<"read">,
    flags: number,
    offset: number,
    bytes: number,
    data: IoVector | "zeroes" | undefined,
  ): Promise<void> {
    const { sectorSize } = this;
    const sectors = bytes / sectorSize;
    // Taken before the first await: others go on behind it.
    const at = this.#next;
    this.#next += 1 + (data === undefined ? 0 : sectors);
    this.#entries++;
    const isFlush = (flags & EntryFlag.Flush) !== 0;
    const head = new Uint8Array(sectorSize);
    Entry.write({ sector: offset / sectorSize, sectors, flags, markBytes: 0 }, head);
    const known = data === "zeroes" ? [] : (data ?? []);
    await this.#file.pwrite(co, at * sectorSize, iovConcat(head, known));
    if (data === "zeroes") await this.#file.pwriteZeroes(co, (at + 1) * sectorSize, bytes);
    if (isFlush || this.#entries % this.#interval === 0) await this.#writeHead(co);
  }

  async #writeHead(co: Coroutine<"read">): Promise<void> {
    const head = new Uint8Array(this.sectorSize);
    const { sectorSize } = this;
    Head.write({ magic: MAGIC, version: VERSION, entries: this.#entries, sectorSize }, head);
    await this.#file.pwrite(co, 0, head);
    await this.#file.flush(co);
  }
}

/** Sector size and entries of a log, and the sector behind its last entry. */
async function readLog(
  co: Coroutine<"read">,
  file: BlockChild,
): Promise<readonly [sectorSize: number, entries: number, next: number]> {
  const head = Head.read(await file.preadBytes(co, 0, Head.size));
  if (head.magic !== MAGIC) throw new BlockError("EINVAL", "Invalid log superblock magic");
  if (head.version !== VERSION) throw new BlockError("EINVAL", `Unsupported log version ${head.version}`);
  checkSectorSize(head.sectorSize);
  const end = (await file.getLength(co)) / head.sectorSize;
  let next = 1;
  for (let seen = 0; seen < head.entries; seen++) {
    if (next >= end) throw new BlockError("EINVAL", "The log ends before its last entry");
    const entry = Entry.read(await file.preadBytes(co, next * head.sectorSize, Entry.size));
    next += 1 + (entry.flags & EntryFlag.Discard ? 0 : entry.sectors);
  }
  return [head.sectorSize, head.entries, next];
}

function checkSectorSize(bytes: number): void {
  if (!isPowerOfTwo(bytes) || bytes > MAX_SECTOR_SIZE)
    throw new BlockError("EINVAL", `Invalid log sector size ${bytes}`);
}
