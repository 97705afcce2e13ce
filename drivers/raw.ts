/** The raw format: guest bytes are the file's bytes, or those of a window of it.  @qemu block/raw-format.c */

import { type BlockChild, Perm, type PermPair } from "../src/block/child.ts";
import { createFile } from "../src/block/create.ts";
import type { FormatDriver } from "../src/block/driver.ts";
import { BlockError } from "../src/block/errors.ts";
import { driverInfo } from "../src/block/info.ts";
import { type IoVector, iovFlatten, iovLength, iovSlice } from "../src/block/iov.ts";
import { takeOptions } from "../src/block/options.ts";
import { PROBE_BYTES, probeFormat } from "../src/block/probe.ts";
import { alignUp, isAligned, SECTOR_SIZE } from "../src/block/units.ts";

const options = {
  /** Where the window starts, in bytes. */
  offset: { type: "size", strong: true, changeable: true },
  /** How long the window is, in bytes. */
  size: { type: "size", strong: true, changeable: true },
} as const;

const createOptions = {
  size: { type: "size", help: "Virtual disk size" },
} as const;

export const raw: FormatDriver<typeof options, typeof createOptions> = {
  formatName: "raw",
  kind: "format",
  options,
  createOptions,
  // Anything is raw: the lowest score, so that every other format goes first.
  probe: () => 1,

  async measure({ options: { size = 0 }, source }) {
    const required = source ? await source.node.getLength(source.co) : alignUp(size, SECTOR_SIZE);
    return { required, fullyAllocated: required };
  },

  async open(co, { node, options: { offset = 0, size }, openFileChild, environment }) {
    const isPart = offset > 0 || size !== undefined;
    const file = await openFileChild(co, {
      primary: true,
      filtered: true,
      // Where the part ends must not depend on others.
      ...(isPart && { perm: ({ used, shared }: PermPair) => ({ used, shared: shared & ~Perm.Resize }) }),
    });
    if (node.probed && !node.readOnly) {
      const tell = environment.message ?? environment.warn;
      tell(
        `WARNING: Image format was not specified for '${file.node.filename}' and probing guessed raw.\n` +
          "         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be restricted.\n" +
          "         Specify the 'raw' format explicitly to remove the restrictions.",
      );
    }
    let window = checkWindow({ offset, size }, file);
    const check = (at: number, bytes: number) => {
      if (window.size !== undefined && at + bytes > window.size) throw new BlockError("ENOSPC");
    };
    return {
      hasVariableLength: true,
      supportedWriteFlags: file.node.supportedWriteFlags,
      supportedZeroFlags: file.node.supportedZeroFlags,
      getLength: async (co) => window.size ?? (await file.getLength(co)) - window.offset,
      knownLength() {
        if (window.size !== undefined) return window.size;
        const bytes = file.node.knownBytes;
        return bytes === undefined ? undefined : bytes - window.offset;
      },
      async pread(co, at, iov, flags) {
        if (file.debug) await file.debug.event(co, "read_aio");
        await file.pread(co, at + window.offset, iov, flags);
      },
      async pwrite(co, at, iov, flags) {
        check(at, iovLength(iov));
        if (node.probed && at < PROBE_BYTES) refuseOtherFormat(iov);
        if (file.debug) await file.debug.event(co, "write_aio");
        await file.pwrite(co, at + window.offset, iov, flags);
      },
      async copyFrom(co, at, range) {
        check(at, range.bytes);
        // What a guest may put into block 0 has to be looked at.
        if (node.probed && at < PROBE_BYTES) throw new BlockError("ENOTSUP");
        await file.copyFrom(co, at + window.offset, range);
      },
      async pwriteZeroes(co, at, bytes, flags) {
        check(at, bytes);
        await file.pwriteZeroes(co, at + window.offset, bytes, flags);
      },
      async pdiscard(co, at, bytes) {
        check(at, bytes);
        await file.pdiscard(co, at + window.offset, bytes);
      },
      async blockStatus(_, _wantZero, at, bytes) {
        return {
          bytes,
          data: false,
          zero: false,
          allocated: false,
          raw: true,
          offset: at + window.offset,
          file: file.node,
        };
      },
      async truncate(co, bytes, exact, prealloc, flags) {
        if (window.size !== undefined) throw new BlockError("ENOTSUP", "Cannot resize fixed-size raw disks");
        await file.truncate(co, bytes + window.offset, exact, prealloc, flags);
      },
      async reopen(_, { options: given }) {
        const old = window;
        const { offset: newOffset = 0, size: newSize } = takeOptions(options, new Map(given));
        window = checkWindow({ offset: newOffset, size: newSize }, file);
        return {
          commit: () => {},
          abort: () => {
            window = old;
          },
        };
      },
      hasZeroInit: () => file.node.ops.hasZeroInit?.() ?? false,
      getInfo: (co) => driverInfo(co, file.node),
      // Zero writes and discards that the file cuts best at its own marks are cut there.
      limits: () => ({
        // So that a write to block 0 comes whole.
        ...(node.probed && { requestAlignment: PROBE_BYTES }),
        pwriteZeroesAlignment: file.node.limits.pwriteZeroesAlignment,
        pdiscardAlignment: file.node.limits.pdiscardAlignment,
        maxPwriteZeroes: file.node.limits.maxPwriteZeroes,
        maxPdiscard: file.node.limits.maxPdiscard,
      }),
    };
  },

  async create(co, { filename, options: { size = 0 }, protocolOptions, environment }) {
    await createFile(
      co,
      filename,
      new Map([...protocolOptions, ["size", alignUp(size, SECTOR_SIZE)]]),
      environment,
      true,
    );
  },
};

/** The part of the file that is shown, in bytes; without a size all from the offset on. */
interface Window {
  readonly offset: number;
  readonly size: number | undefined;
}

/** @qemu raw_apply_options */
function checkWindow(window: Window, file: BlockChild): Window {
  const { offset, size } = window;
  const fileLength = file.node.totalSectors * SECTOR_SIZE;
  if (offset > fileLength)
    throw new BlockError(
      "EINVAL",
      `Offset (${offset}) cannot be greater than size of the containing file (${fileLength})`,
    );
  if (size !== undefined && size > fileLength - offset)
    throw new BlockError(
      "EINVAL",
      `The sum of offset (${offset}) and size (${size}) has to be smaller or equal to the ` +
        ` actual size of the containing file (${fileLength})`,
    );
  if (size !== undefined && !isAligned(size, SECTOR_SIZE))
    throw new BlockError("EINVAL", `Specified size is not multiple of ${SECTOR_SIZE}`);
  return window;
}

/** The guest of a probed raw image must not make its image pass for another format, which could name any file. */
function refuseOtherFormat(iov: IoVector): void {
  const head = iovFlatten(iovSlice(iov, 0, PROBE_BYTES));
  if (probeFormat(head, "") !== "raw") throw new BlockError("EPERM");
}
