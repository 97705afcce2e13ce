/** Copies what an overlay has down into an image that it stands on, and empties the overlay.  @qemu img_commit, block/mirror.c */

import { BlockBackend } from "../block/backend.ts";
import { blockStatusAbove } from "../block/block-status.ts";
import { Perm } from "../block/child.ts";
import type { DriverInfo } from "../block/driver.ts";
import { BlockError, strerror, toBlockError } from "../block/errors.ts";
import { refNode, setEdgePerm } from "../block/graph.ts";
import type { BlockNode } from "../block/node.ts";
import { alignDown, alignUp, KiB, MiB } from "../block/units.ts";
import { backingChainNext, findBackingImage, skipFilters } from "./chain.ts";
import { Throttle } from "./convert-queue.ts";
import { BufferPool, readAhead } from "./read-ahead.ts";

export interface CommitOptions {
  /** Name of the image of the backing chain that gets the data. Default: the backing file. Implies `keepOverlay`. */
  readonly base?: string | undefined;
  /** What messages call the image. Default: its filename. */
  readonly imageName?: string | undefined;
  /** The overlay keeps what it has: it reads the same, and is of no more use. */
  readonly keepOverlay?: boolean | undefined;
  /** Bytes copied a second, at most. */
  readonly bytesPerSecond?: number | undefined;
  /** Called with bytes done of the bytes to be committed; costs a look at all block status first. */
  readonly onProgress?: ((doneBytes: number, totalBytes: number) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** What is copied is copied in whole blocks of this many bytes, or of the base's cluster if that is smaller.  @qemu bdrv_get_default_bitmap_granularity */
const MAX_GRANULE = 64 * KiB;
const MIN_GRANULE = 4 * KiB;
const MAX_COPY_BYTES = MiB;
const MAX_ZERO_BYTES = 16 * MiB;
const COPIES_IN_FLIGHT = 4;
/** @qemu DEFAULT_L2_CACHE_ENTRY_SIZE */
const MAX_SLICE_BYTES = 4 * KiB;

/** One write to the base. */
interface Step {
  readonly kind: "copy" | "zero" | "discard";
  readonly offset: number;
  readonly bytes: number;
}

/**
 * Makes an image below `top` read as `top` does, lengthens it if it is shorter, and then empties `top`. Images in
 * between are not valid any more. `top` must be open for writing; the base is opened for it meanwhile.
 *
 * Errors: BlockError in qemu-img's words, or the signal's reason. What the base has got by then does not show through
 * `top`, which still reads the same.
 */
export async function commitImage(top: BlockBackend, options: CommitOptions = {}): Promise<void> {
  const {
    base: baseName,
    keepOverlay = baseName !== undefined,
    imageName = top.node.filename,
    signal,
  } = options;
  signal?.throwIfAborted();
  const base = findBase(top, baseName, imageName);
  const work = async (target: BlockBackend) => {
    try {
      const length = await top.getLength();
      if ((await target.getLength()) < length) await target.truncate(length);
      await copyDown(top, target, base, options);
      await target.flush(signal);
    } catch (error) {
      const { errno } = toBlockError(error);
      throw new BlockError(errno, `Block job failed: ${strerror(errno)}`, { cause: error });
    }
  };
  await withWritable(top, base, (target) => withoutReaders(top, base, () => work(target)));
  // qemu-img empties no image that it has opened through a filter.
  if (!keepOverlay && !top.node.filtered) await makeEmpty(top, signal);
}

function findBase(top: BlockBackend, name: string | undefined, imageName: string): BlockNode {
  const { node } = top;
  const base = name === undefined ? backingChainNext(node) : findBackingImage(node, name);
  if (base) return base;
  throw name === undefined
    ? new BlockError("EINVAL", "Image does not have a backing file")
    : new BlockError("ENOENT", `Did not find '${name}' in the backing chain of '${imageName}'`);
}

/** Runs `fn` with a backend on `base` that may write and resize it, and leaves the base as it was opened. */
async function withWritable(
  top: BlockBackend,
  base: BlockNode,
  fn: (target: BlockBackend) => Promise<void>,
): Promise<void> {
  const wasReadOnly = base.readOnly;
  refNode(base);
  const target = await top.context.run((main) =>
    BlockBackend.forNode(main, base, { writethrough: top.writethrough }),
  );
  try {
    await target.reopen({ readOnly: false });
    await fn(target);
    if (wasReadOnly) await target.reopen({ readOnly: true });
  } catch (error) {
    // The job's own error says more than one of what follows.
    if (wasReadOnly) await target.reopen({ readOnly: true }).catch(() => {});
    await target.close().catch(() => {});
    throw error;
  }
  await target.close();
}

/** Runs `fn` while nobody reads the images between `top` and `base` for their own sake: they make no sense from then on. */
async function withoutReaders(top: BlockBackend, base: BlockNode, fn: () => Promise<void>): Promise<void> {
  const { context, root } = top;
  const between: BlockNode[] = [];
  for (let node = backingChainNext(top.node); node && node !== base; node = backingChainNext(node))
    between.push(node);
  if (between.length === 0) return fn();
  const { used, shared } = root.perm;
  const perm = { used: Perm.None, shared: Perm.Write | Perm.WriteUnchanged };
  const held: BlockBackend[] = [];
  try {
    // What is read through them here is read knowingly.
    await context.run((main) => setEdgePerm(main, root, { used: used & ~Perm.ConsistentRead, shared }));
    for (const node of between) {
      refNode(node);
      held.push(await context.run((main) => BlockBackend.forNode(main, node, { perm })));
    }
    await fn();
  } finally {
    for (const backend of held) await backend.close();
    await context.run((main) => setEdgePerm(main, root, { used, shared }));
  }
}

async function copyDown(
  top: BlockBackend,
  target: BlockBackend,
  base: BlockNode,
  options: CommitOptions,
): Promise<void> {
  const { signal, bytesPerSecond, onProgress } = options;
  const granule = await granuleOf(target);
  const length = await top.getLength();
  const ranges = () => changedRanges(top, base, granule, length, signal);
  let total = 0;
  if (onProgress) for await (const { start, end } of ranges()) total += end - start;
  onProgress?.(0, total);
  const throttle = bytesPerSecond ? new Throttle(bytesPerSecond) : undefined;
  const pool = new BufferPool(MAX_COPY_BYTES);
  const load = async (step: Step) => {
    if (step.kind !== "copy") return { step, buffer: undefined };
    await throttle?.pass(step.bytes, signal);
    const buffer = pool.take();
    await top.readInto(step.offset, buffer.subarray(0, step.bytes), { signal });
    return { step, buffer };
  };
  let done = 0;
  const steps = planSteps(top, target, ranges(), granule, signal);
  for await (const { step, buffer } of readAhead(steps, load, COPIES_IN_FLIGHT)) {
    const { kind, offset, bytes } = step;
    if (buffer) {
      await target.write(offset, buffer.subarray(0, bytes), { signal });
      pool.give([buffer]);
    } else if (kind === "zero") await target.writeZeroes(offset, bytes, { mayUnmap: true, signal });
    else await target.discard(offset, bytes, { signal });
    done += bytes;
    onProgress?.(done, total);
  }
}

async function granuleOf(target: BlockBackend): Promise<number> {
  const clusterBytes = (await infoOf(target, target.node))?.clusterSize || MAX_GRANULE;
  return Math.min(Math.max(clusterBytes, MIN_GRANULE), MAX_GRANULE);
}

interface Range {
  readonly start: number;
  readonly end: number;
}

/** What is allocated above `base`, widened to whole granules; ranges that meet are one. */
async function* changedRanges(
  top: BlockBackend,
  base: BlockNode,
  granule: number,
  length: number,
  signal: AbortSignal | undefined,
): AsyncGenerator<Range, void> {
  let current: Range | undefined;
  for (let offset = 0; offset < length; ) {
    const at = offset;
    const { bytes, allocated } = await top.run(
      (co) => blockStatusAbove(co, top.node, base, false, at, length - at),
      signal,
    );
    offset += bytes;
    if (!allocated) continue;
    const start = alignDown(at, granule);
    const end = Math.min(alignUp(offset, granule), length);
    if (current && start <= current.end) current = { start: current.start, end };
    else {
      if (current) yield current;
      current = { start, end };
    }
    // What has been asked for is enough to be going on with.
    offset = Math.max(offset, end);
  }
  if (current) yield current;
}

/**
 * Zeroes stay zeroes where they fill granules and clusters of the base; the rest is copied.
 * @qemu mirror_iteration
 */
async function* planSteps(
  top: BlockBackend,
  target: BlockBackend,
  ranges: AsyncIterable<Range>,
  granule: number,
  signal: AbortSignal | undefined,
): AsyncGenerator<Step, void> {
  const clusterBytes = (await infoOf(target, target.node))?.clusterSize || 1;
  const layers = await layersOf(top);
  for await (const { start, end } of ranges) {
    for (let offset = start; offset < end; ) {
      const asked = Math.min(end - offset, MAX_ZERO_BYTES);
      const at = offset;
      const status = await top.run(
        (co) => blockStatusAbove(co, top.node, undefined, true, at, asked),
        signal,
      );
      const most = status.data ? MAX_COPY_BYTES : statusReach(layers, status.depth, offset);
      let bytes = alignDown(Math.min(status.bytes, most), granule);
      const fills = bytes > 0 && offset % clusterBytes === 0 && bytes % clusterBytes === 0;
      const kind = status.data || !fills ? "copy" : status.zero ? "zero" : "discard";
      if (kind === "copy") bytes = Math.min(Math.max(bytes, granule), MAX_COPY_BYTES, end - offset);
      yield { kind, offset, bytes };
      offset += bytes;
    }
  }
}

/** A layer of the chain, and how many bytes QEMU's block status tells of at once: its answers end with a slice of an L2 table. */
interface Layer {
  readonly bytes: number;
  readonly reach: number;
}

async function layersOf(top: BlockBackend): Promise<readonly Layer[]> {
  const layers: Layer[] = [];
  for (let node: BlockNode | undefined = skipFilters(top.node); node; node = backingChainNext(node)) {
    const layer = node;
    const bytes = await top.run((co) => layer.getLength(co));
    const { clusterSize = 0, subclusterSize = clusterSize } = (await infoOf(top, layer)) ?? {};
    const entryBytes = subclusterSize < clusterSize ? 16 : 8;
    const reach = (Math.min(clusterSize, MAX_SLICE_BYTES) / entryBytes) * clusterSize;
    layers.push({ bytes, reach: reach || Number.POSITIVE_INFINITY });
  }
  return layers;
}

/**
 * How far an answer holds that comes from so deep down, through all above it; behind the end of a layer no table is
 * asked. With clusters of 512 bytes that is less than a granule, and QEMU sees no zeroes that fill one.
 */
function statusReach(layers: readonly Layer[], depth: number, offset: number): number {
  const asked = layers.slice(0, depth + 1).filter(({ bytes }) => offset < bytes);
  return Math.min(...asked.map(({ reach }) => reach - (offset % reach)));
}

function infoOf(backend: BlockBackend, node: BlockNode): Promise<DriverInfo | undefined> {
  return backend.run(async (co) => skipFilters(node).ops.getInfo?.(co));
}

/** @qemu blk_make_empty */
async function makeEmpty(top: BlockBackend, signal: AbortSignal | undefined): Promise<void> {
  const { node } = top;
  const { makeEmpty: empty } = node.ops;
  // What can't be emptied keeps what it has, which is now what lies below, too.
  if (!empty) return;
  try {
    await top.run((co) => empty(co), signal);
  } catch (error) {
    const { errno } = toBlockError(error);
    // QEMU knows an image by the name of its file until somebody asks for more.
    const name = node.file?.node.filename ?? node.filename;
    throw new BlockError(errno, `Failed to empty ${name}: ${strerror(errno)}`, { cause: error });
  }
}
