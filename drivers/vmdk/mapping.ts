/** From guest bytes to where they lie. */

import type { BlockStatus } from "../../src/block/block-status.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import type { Grain } from "./grain-tables.ts";
import {
  type Extent,
  extentAt,
  type FlatExtent,
  type SparseExtent,
  type VmdkState,
  type ZeroExtent,
} from "./state.ts";

/** A guest range of one kind, which ends with its extent at the latest. */
export type Run = { readonly bytes: number } & (
  | { readonly kind: "flat"; readonly extent: FlatExtent; readonly hostOffset: number }
  | { readonly kind: "fixed zeroes"; readonly extent: ZeroExtent }
  | { readonly kind: "data"; readonly extent: SparseExtent; readonly hostOffset: number }
  /** A part of one grain. */
  | { readonly kind: "compressed"; readonly extent: SparseExtent; readonly hostOffset: number }
  | { readonly kind: "none" | "zero"; readonly extent: SparseExtent }
);

/** Grains, or tables that are not there, that are looked at for one run. */
const MAX_RUN_LOOKS = 4096;

/** As far as tables are in memory; undefined: the first that is needed is not. An entry that makes no sense is EINVAL. */
export function peekRun(state: VmdkState, guestOffset: number, bytes: number): Run | undefined {
  const extent = extentAt(state, guestOffset);
  const within = guestOffset - extent.start;
  const length = Math.min(bytes, extent.end - guestOffset);
  if (extent.kind === "flat")
    return { kind: "flat", extent, bytes: length, hostOffset: extent.hostOffset + within };
  if (extent.kind === "zero") return { kind: "fixed zeroes", extent, bytes: length };
  const { tables, grainBytes } = extent;
  const index = Math.floor(within / grainBytes);
  const grain = tables.peek(index);
  if (!grain) return undefined;
  if (grain.kind === "invalid") throw new BlockError("EINVAL");
  const head = within - index * grainBytes;
  const isAlone = grain.kind === "data" && extent.isCompressed;
  const wanted = isAlone ? 1 : Math.ceil((head + length) / grainBytes);
  const stepFrom = (at: number) => (grain.kind === "none" ? tables.emptySpan(at) : 1);
  let grains = stepFrom(index);
  for (let looks = 1; grains < wanted && looks < MAX_RUN_LOOKS; looks++) {
    if (!continues(grain, tables.peek(index + grains), grains * grainBytes)) break;
    grains += stepFrom(index + grains);
  }
  const run = { extent, bytes: Math.min(grains * grainBytes - head, length) };
  if (grain.kind !== "data") return { ...run, kind: grain.kind };
  const { hostOffset } = grain;
  return isAlone
    ? { ...run, kind: "compressed", hostOffset }
    : { ...run, kind: "data", hostOffset: hostOffset + head };
}

function continues(first: Grain, next: Grain | undefined, distance: number): boolean {
  if (next?.kind !== first.kind) return false;
  return first.kind !== "data" || next.kind !== "data" || next.hostOffset === first.hostOffset + distance;
}

export async function findRun(
  co: Coroutine<"read">,
  state: VmdkState,
  guestOffset: number,
  bytes: number,
): Promise<Run> {
  co.checkAborted();
  for (;;) {
    const run = peekRun(state, guestOffset, bytes);
    if (run) return run;
    const extent = extentAt(state, guestOffset) as SparseExtent;
    await extent.tables.load(co, grainIndex(extent, guestOffset));
  }
}

/** Of the grain that has the guest's byte, within its extent. */
export function grainIndex({ start, grainBytes }: SparseExtent, guestOffset: number): number {
  return Math.floor((guestOffset - start) / grainBytes);
}

/** Who may not be asked at all. */
export function checkReadable({ access }: Extent): void {
  if (access === "NOACCESS") throw new BlockError("EACCES");
}

/** @qemu vmdk_co_block_status */
export async function blockStatus(
  co: Coroutine<"read">,
  state: VmdkState,
  guestOffset: number,
  bytes: number,
): Promise<BlockStatus> {
  const run = await findRun(co, state, guestOffset, bytes);
  const data = { bytes: run.bytes, data: true, zero: false, allocated: true };
  switch (run.kind) {
    case "flat":
      return { ...data, offset: run.hostOffset, file: run.extent.file.node, recurse: true };
    case "data":
      return { ...data, offset: run.hostOffset, file: run.extent.file.node };
    case "compressed":
      return { ...data, compressed: true };
    case "fixed zeroes":
    case "zero":
      return { bytes: run.bytes, data: false, zero: true, allocated: true };
    case "none":
      return { bytes: run.bytes, data: false, zero: false, allocated: false };
  }
}
