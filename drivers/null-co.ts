/** A device of any size that takes every write and keeps nothing. For tests and measurements.  @qemu block/null.c */

import { setTimeout as sleep } from "node:timers/promises";
import type { Coroutine } from "../src/block/coroutine.ts";
import { type NodeOps, type ProtocolDriver, Req } from "../src/block/driver.ts";
import { BlockError } from "../src/block/errors.ts";
import { iovFill } from "../src/block/iov.ts";
import type { OptionValues } from "../src/block/options.ts";
import { GiB } from "../src/block/units.ts";

const options = {
  /** Bytes; 1 GiB by default. */
  size: { type: "size", strong: true },
  /** Nanoseconds that every request takes. */
  "latency-ns": { type: "number", strong: true },
  /** Reads give zeroes; otherwise what the buffer held. */
  "read-zeroes": { type: "bool", strong: true },
} as const;

export const nullCo = nullDriver("null-co");

/** The same with asynchronous requests; here all are.  @qemu bdrv_null_aio */
export const nullAio = nullDriver("null-aio");

function nullDriver(formatName: string): ProtocolDriver<typeof options> {
  const onlyName = `${formatName}://`;
  return {
    formatName,
    kind: "protocol",
    options,
    prefix: formatName,
    parseFilename(filename) {
      if (filename !== onlyName)
        throw new BlockError("EINVAL", `The only allowed filename for this driver is '${onlyName}'`);
      return new Map();
    },
    async open(_, { node, options: given }) {
      if (node.ownOptions.size === 0) node.exactFilename = onlyName;
      return nullOps(given);
    },
  };
}

function nullOps({
  size = GiB,
  "latency-ns": latencyNs = 0,
  "read-zeroes": readZeroes = false,
}: OptionValues<typeof options>): NodeOps {
  if (latencyNs < 0) throw new BlockError("EINVAL", "latency-ns is invalid");
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
}
