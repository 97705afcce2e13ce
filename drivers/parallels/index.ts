/**
 * Expandable images of Parallels, and bundles of such.  @qemu block/parallels.c
 *
 * Invariants:
 * 1. A cluster gets its place with the lock held, and what a write does not cover of it is as it was for the guest
 *    before the BAT names it.
 * 2. That is on the disk before the BAT's entry is written, which happens at a flush: whatever breaks off, no more than
 *    space is lost.
 * 3. The header says "in use" on the disk before anything is changed.
 */

import { type Coroutine, graphRdlock } from "../../src/block/coroutine.ts";
import type { FormatDriver, NodeOps, ReopenAction, ReopenRequest } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import { SECTOR_SIZE } from "../../src/block/units.ts";
import { readAtOpen } from "../opening.ts";
import { isBundle, probeParallels } from "../signatures.ts";
import { openBundle } from "./bundle.ts";
import { check } from "./check.ts";
import { create, createOptions } from "./create.ts";
import { openImage, options, pread, pwrite, runStatus } from "./image.ts";
import { beginWriting, endWriting, findRun, type State } from "./state.ts";

export const parallels: FormatDriver<typeof options, typeof createOptions> = {
  formatName: "parallels",
  kind: "format",
  options,
  createOptions,
  supportsBacking: true,
  probe: probeParallels,
  create,

  async open(co, opening) {
    const { node, openFileChild, flags, environment } = opening;
    const file = await openFileChild(co);
    const head = await readAtOpen(co, file, (reader) => file.preadBytes(reader, 0, SECTOR_SIZE));
    if (isBundle(head)) return openBundle(co, opening, file);
    const below: State["below"] = () => {
      const { backing } = node;
      return backing && ((reader, offset, iov) => backing.pread(reader, offset, iov));
    };
    const settings = {
      node,
      file,
      options: opening.options,
      flags,
      environment,
      isPart: false,
      isWritable: !node.readOnly,
      below,
    };
    const state = await readAtOpen(co, file, (reader) => openImage(reader, settings));
    return nodeOps(state);
  },
};

function nodeOps(state: State): NodeOps {
  const { node, bat } = state;
  return {
    pread: (co, offset, iov) => pread(co, state, offset, iov),
    pwrite: (co, offset, iov) => pwrite(co, state, offset, iov),
    blockStatus: async (co, _wantZero, offset, bytes) =>
      runStatus(state, await findRun(co, state, offset, bytes)),
    flushToOs: (co) => bat.write(co),
    hasZeroInit: () => true,
    limits: () => ({ requestAlignment: SECTOR_SIZE }),
    check: (co, wanted) => state.lock.run(() => check(co, state, wanted)),
    reopen: (co, request) => reopen(co, state, request),
    async close(co) {
      if (!node.readOnly) await graphRdlock(co, (reader) => endWriting(reader, state));
    },
  };
}

async function reopen(
  co: Coroutine<"none">,
  state: State,
  { readOnly }: ReopenRequest,
): Promise<ReopenAction> {
  if (readOnly === state.node.readOnly) return { commit: () => {}, abort: () => {} };
  const begin = (undo: Coroutine<"none">) => graphRdlock(undo, (reader) => beginWriting(reader, state));
  if (readOnly) {
    await graphRdlock(co, (reader) => endWriting(reader, state));
    return { commit: () => {}, abort: begin };
  }
  if (state.isUnclean)
    throw new BlockError("EACCES", "parallels: Image was not closed correctly; cannot be opened read/write");
  return { commit: () => {}, committed: begin, abort: () => {} };
}
