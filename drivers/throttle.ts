/** Holds requests back so that a group's limits are kept.  @qemu block/throttle.c */

import type { Coroutine } from "../src/block/coroutine.ts";
import { type FilterDriver, Req } from "../src/block/driver.ts";
import { BlockError } from "../src/block/errors.ts";
import { iovLength } from "../src/block/iov.ts";
import { takeString } from "../src/block/options.ts";
import type { Direction, ThrottleGroup } from "../src/block/throttle.ts";

const options = {
  "throttle-group": { type: "string", strong: true, changeable: true },
} as const;

export const throttle: FilterDriver<typeof options> = {
  formatName: "throttle",
  kind: "filter",
  options,

  async open(co, { node, options: given, openFileChild, environment }) {
    const find = (id: string | undefined): ThrottleGroup => {
      if (id === undefined) throw new BlockError("EINVAL", "Please specify a throttle group");
      const found = environment.throttleGroup?.(id);
      if (!found) throw new BlockError("EINVAL", `Throttle group '${id}' does not exist`);
      return found;
    };
    const file = await openFileChild(co);
    let group = find(given["throttle-group"]);
    // Aborted when the node is drained: whoever waits goes on.
    let released = new AbortController();
    const pass = (_: Coroutine<"read">, direction: Direction, bytes: number): Promise<void> => {
      if (node.quiesceCounter === 0 && released.signal.aborted) released = new AbortController();
      return group.pass(direction, bytes, released.signal);
    };
    return {
      supportedWriteFlags: file.node.supportedWriteFlags | Req.WriteUnchanged,
      supportedZeroFlags: file.node.supportedZeroFlags | Req.WriteUnchanged,
      getLength: (co) => file.getLength(co),
      async pread(co, offset, iov, flags) {
        await pass(co, "read", iovLength(iov));
        await file.pread(co, offset, iov, flags);
      },
      async pwrite(co, offset, iov, flags) {
        await pass(co, "write", iovLength(iov));
        await file.pwrite(co, offset, iov, flags);
      },
      async pwriteCompressed(co, offset, iov) {
        await pass(co, "write", iovLength(iov));
        await file.pwrite(co, offset, iov, Req.WriteCompressed);
      },
      async pwriteZeroes(co, offset, bytes, flags) {
        await pass(co, "write", bytes);
        await file.pwriteZeroes(co, offset, bytes, flags);
      },
      async pdiscard(co, offset, bytes) {
        await pass(co, "write", bytes);
        await file.pdiscard(co, offset, bytes);
      },
      drainedBegin: () => released.abort(),
      async reopen(_, { options: wanted }) {
        const old = group;
        group = find(takeString(new Map(wanted), "throttle-group"));
        return {
          commit: () => {},
          abort: () => {
            group = old;
          },
        };
      },
    };
  },
};
