/** A device of any size that takes every write and keeps nothing. For tests and measurements.  @qemu block/null.c */

import { setTimeout as sleep } from "node:timers/promises";
import type { Coroutine } from "../src/block/coroutine.ts";
import { type ProtocolDriver, Req } from "../src/block/driver.ts";
import { BlockError } from "../src/block/errors.ts";
import { iovFill } from "../src/block/iov.ts";
import { GiB } from "../src/block/units.ts";

const options = {
  /** Bytes; 1 GiB by default. */
  size: { type: "size", strong: true },
  /** Nanoseconds that every request takes. */
  "latency-ns": { type: "number", strong: true },
  /** Reads give zeroes; otherwise what the buffer held. */
  "read-zeroes": { type: "bool", strong: true },
} as const;

export const nullCo: ProtocolDriver<typeof options> = {
  formatName: "null-co",
  kind: "protocol",
  options,
  prefix: "null-co",
  parseFilename(filename) {
    if (filename !== "null-co://")
      throw new BlockError("EINVAL", "The only allowed filename for this driver is 'null-co://'");
    return new Map();
  },

  async open(
    _,
    { node, options: { size = GiB, "latency-ns": latencyNs = 0, "read-zeroes": readZeroes = false } },
  ) {
    if (latencyNs < 0) throw new BlockError("EINVAL", "latency-ns is invalid");
    if (node.ownOptions.size === 0) node.exactFilename = "null-co://";
    const wait = async (co: Coroutine<"read">) => {
      if (latencyNs > 0) await sleep(latencyNs / 1e6, undefined, co.signal ? { signal: co.signal } : {});
    };
    return {
      supportedWriteFlags: Req.Fua,
      supportedZeroFlags: Req.Fua | Req.MayUnmap | Req.NoFallback,
      getLength: async () => size,
      async pread(co, _offset, iov) {
        await wait(co);
        if (readZeroes) iovFill(iov, 0);
      },
      pwrite: wait,
      pwriteZeroes: wait,
      flushToDisk: wait,
      async blockStatus(_co, _wantZero, offset, bytes) {
        return { bytes, data: false, zero: readZeroes, allocated: readZeroes, offset };
      },
      getAllocatedFileSize: async () => 0,
      reopen: async () => ({ commit: () => {}, abort: () => {} }),
    };
  },
};
