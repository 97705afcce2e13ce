/**
 * A disk in memory for the protocol `crash:NAME`: its files, and a log of every write, zero write, discard, change of
 * length and flush that they got. From the log it is put together again as a power cut would leave it.
 */

import type { NodeOps, ProtocolDriver } from "../../src/block/driver.ts";
import { registerDriver, unregisterDriver } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import { iovFlatten, iovLength, iovWrite } from "../../src/block/iov.ts";
import { MAX_LENGTH } from "../../src/block/units.ts";
import type { Random } from "../support/random.ts";

/** One entry of the log. What a flush covers are the changes of its own file. */
export type Entry =
  | { readonly kind: "write"; readonly file: string; readonly offset: number; readonly data: Uint8Array }
  | { readonly kind: "zero"; readonly file: string; readonly offset: number; readonly bytes: number }
  | { readonly kind: "truncate"; readonly file: string; readonly bytes: number }
  | { readonly kind: "flush"; readonly file: string };

/** What a disk that tears writes keeps whole. */
const SECTOR = 512;

export type Files = Map<string, Uint8Array>;

/** The disk that the protocol's nodes use from their opening on. */
export class Disk {
  readonly files: Files;
  readonly log: Entry[] = [];
  /** Is asked before each request, with what it is to change, and may throw. */
  hook: (entry?: Entry) => void = () => {};
  /** Nodes that are open. */
  openNodes = 0;

  constructor(files: Files = new Map()) {
    this.files = files;
  }

  apply(entry: Entry): void {
    this.hook(entry);
    this.log.push(entry);
    applyEntry(this.files, entry);
  }
}

export function copyFiles(files: Files): Files {
  return new Map([...files].map(([name, data]) => [name, data.slice()]));
}

export function applyEntry(files: Files, entry: Entry): void {
  const data = files.get(entry.file) ?? new Uint8Array();
  if (entry.kind === "truncate") files.set(entry.file, resized(data, entry.bytes));
  else if (entry.kind === "write") store(files, entry.file, entry.offset, entry.data);
  else if (entry.kind === "zero") store(files, entry.file, entry.offset, new Uint8Array(entry.bytes));
}

function store(files: Files, file: string, offset: number, bytes: Uint8Array): void {
  let data = files.get(file) ?? new Uint8Array();
  if (offset + bytes.length > data.length) {
    data = resized(data, offset + bytes.length);
    files.set(file, data);
  }
  data.set(bytes, offset);
}

function resized(data: Uint8Array, bytes: number): Uint8Array {
  const result = new Uint8Array(bytes);
  result.set(data.subarray(0, bytes));
  return result;
}

/** A change that may be there in part: each of its sectors by itself. */
export function tear(files: Files, entry: Entry, dice: Random): void {
  if (entry.kind !== "write" && entry.kind !== "zero") {
    if (dice.chance(0.5)) applyEntry(files, entry);
    return;
  }
  const bytes = entry.kind === "write" ? entry.data.length : entry.bytes;
  const end = entry.offset + bytes;
  for (let at = entry.offset; at < end; ) {
    const next = Math.min(at - (at % SECTOR) + SECTOR, end);
    if (dice.chance(0.5)) {
      const piece =
        entry.kind === "write"
          ? entry.data.subarray(at - entry.offset, next - entry.offset)
          : new Uint8Array(next - at);
      store(files, entry.file, at, piece);
    }
    at = next;
  }
}

const options = { filename: { type: "string", strong: true } } as const;
const createOptions = { size: { type: "size" } } as const;

const PREFIX = "crash:";
const nameOf = (filename: string) => (filename.startsWith(PREFIX) ? filename.slice(PREFIX.length) : filename);

/** Registers the protocol; `disk()` is the disk that nodes get which are opened now. */
export function useDisk(test: { after(fn: () => void): void }, disk: () => Disk): void {
  const driver: ProtocolDriver<typeof options, typeof createOptions> = {
    formatName: "crash",
    kind: "protocol",
    prefix: "crash",
    parseFilename: (filename) => new Map([["filename", nameOf(filename)]]),
    options,
    createOptions,
    async open(_, { node, options: { filename = "" } }) {
      const opened = disk();
      const file = nameOf(filename);
      opened.hook();
      if (!opened.files.has(file)) throw new BlockError("ENOENT");
      node.exactFilename = `${PREFIX}${file}`;
      opened.openNodes++;
      return fileOps(opened, file);
    },
    async create(_, { filename, options: { size = 0 } }) {
      const file = nameOf(filename);
      disk().apply({ kind: "truncate", file, bytes: 0 });
      disk().apply({ kind: "truncate", file, bytes: size });
    },
  };
  registerDriver(driver);
  test.after(() => unregisterDriver("crash"));
}

function fileOps(disk: Disk, file: string): NodeOps {
  const content = () => disk.files.get(file) ?? new Uint8Array();
  const zero = (offset: number, bytes: number) => {
    if (offset + bytes > MAX_LENGTH) throw new BlockError("EFBIG");
    disk.apply({ kind: "zero", file, offset, bytes });
  };
  return {
    getLength: async () => content().length,
    async pread(_, offset, iov) {
      disk.hook();
      const found = content().subarray(offset, offset + iovLength(iov));
      iovWrite(iov, resized(found, iovLength(iov)));
    },
    async pwrite(_, offset, iov) {
      // A copy, also of a Buffer, whose own slice() is none.
      disk.apply({ kind: "write", file, offset, data: new Uint8Array(iovFlatten(iov)) });
    },
    async pwriteZeroes(_, offset, bytes) {
      zero(offset, bytes);
    },
    async pdiscard(_, offset, bytes) {
      if (offset < content().length) zero(offset, Math.min(bytes, content().length - offset));
    },
    async flushToDisk() {
      disk.apply({ kind: "flush", file });
    },
    async truncate(_, bytes) {
      disk.apply({ kind: "truncate", file, bytes });
    },
    hasZeroInit: () => true,
    getInfo: async () => ({}),
    async close() {
      disk.openNodes--;
    },
    async reopen() {
      return { commit: () => {}, abort: () => {} };
    },
  };
}
