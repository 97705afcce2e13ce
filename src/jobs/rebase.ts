/** Gives an image another backing file, and keeps what the guest sees.  @qemu img_rebase */

import { BlockBackend } from "../block/backend.ts";
import { blockStatusAbove } from "../block/block-status.ts";
import { Perm } from "../block/child.ts";
import { findDriver } from "../block/driver.ts";
import { BlockError, strerror, toBlockError } from "../block/errors.ts";
import { combinePath, isAbsolute, protocolPrefix } from "../block/filename.ts";
import { refNode } from "../block/graph.ts";
import type { BlockNode } from "../block/node.ts";
import { type OpenEnvironment, openGate } from "../block/open.ts";
import { DEFAULT_FLAGS, type OpenFlags } from "../block/open-flags.ts";
import type { Options } from "../block/options.ts";
import { KiB, MiB, SECTOR_SIZE } from "../block/units.ts";
import { findBackingImage, skipFilters } from "./chain.ts";
import { hostFiles } from "./convert-target.ts";
import { BufferPool, readAhead } from "./read-ahead.ts";

/** Bytes that are compared at once.  @qemu IO_BUF_SIZE */
const PIECE_BYTES = 2 * MiB;
/** Pieces whose reads are under way; each has two buffers. */
const PIECES_IN_FLIGHT = 3;

export interface RebaseOptions {
  /** As the image will name it: relative to the image. Undefined or "": none. */
  readonly backingFile?: string | undefined;
  readonly backingFormat?: string | undefined;
  /** Only the name is changed; neither the old nor the new backing file is looked at. */
  readonly unsafe?: boolean | undefined;
  /** How the new backing file is opened. */
  readonly sourceFlags?: Partial<OpenFlags> | undefined;
  readonly environment?: OpenEnvironment | undefined;
  /** Called with bytes done, and how many there are, after each piece (2 MiB at most) that had to be looked at. */
  readonly onProgress?: ((doneBytes: number, totalBytes: number) => void) | undefined;
  /** All data is in its place; what follows is the change of the name. */
  readonly onCopied?: (() => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Gives `image` the backing file that `options` name. First what would read otherwise over the new one is copied into
 * the image, then its header is changed: an image that is cut off in between reads as it did.
 * Errors: BlockError in qemu-img's words, or the signal's reason.
 */
export async function rebaseImage(image: BlockBackend, options: RebaseOptions = {}): Promise<void> {
  const { backingFile, backingFormat, unsafe = false, signal } = options;
  signal?.throwIfAborted();
  for (const format of [backingFormat, unsafe ? undefined : skipFilters(image.node).backingFormat])
    if (format !== undefined && !findDriver(format))
      throw new BlockError("EINVAL", `Invalid format name: '${format}'`);
  if (!unsafe) {
    const newBacking = backingFile ? await openNewBacking(image, backingFile, options) : undefined;
    try {
      await keepContent(image, newBacking, options);
    } finally {
      await newBacking?.backend.close();
    }
    await writing(() => image.flush(signal));
  }
  options.onCopied?.();
  await changeBackingFile(image, backingFile, backingFormat);
}

interface NewBacking {
  readonly backend: BlockBackend;
  /** It is one of the images below already: what only these share is the same for both. */
  readonly inChain: boolean;
}

async function openNewBacking(
  image: BlockBackend,
  name: string,
  { backingFormat, sourceFlags, environment }: RebaseOptions,
): Promise<NewBacking> {
  const { context } = image;
  const overlay = skipFilters(image.node);
  const filename = resolveName(image.node, name);
  const node = findBackingImage(overlay, name);
  if (node) {
    refNode(node);
    const backend = await context.run((main) => forReading(main, node));
    return { backend, inChain: true };
  }
  const options: Options = new Map(backingFormat === undefined ? [] : [["driver", backingFormat]]);
  try {
    const backend = await BlockBackend.open(
      {
        filename,
        options,
        flags: { ...DEFAULT_FLAGS, ...sourceFlags },
        environment: environment ?? { gate: openGate, warn: () => {} },
      },
      {},
      context,
    );
    try {
      refuseOwnFiles(image.node, backend.node);
    } catch (error) {
      await backend.close();
      throw error;
    }
    return { backend, inChain: false };
  } catch (error) {
    throw BlockError.wrap(`Could not open new backing file '${name}'`, error);
  }
}

/** By the image's own plain name, whatever its file is called.  @qemu bdrv_get_full_backing_filename_from_filename */
function resolveName({ exactFilename, filename }: BlockNode, name: string): string {
  if (protocolPrefix(name) !== undefined || isAbsolute(name)) return name;
  if (exactFilename !== "") return combinePath(exactFilename, name);
  const why = `Cannot use relative backing file names for '${filename}'`;
  throw new BlockError("EINVAL", `Could not resolve backing filename: ${why}`);
}

/** An image can't stand on itself. QEMU finds that out by its locks.  */
function refuseOwnFiles(image: BlockNode, backing: BlockNode): void {
  const { file } = skipFilters(image);
  // Who has no tables in its file lets others write to it.
  if (!file || file.perm.shared & Perm.Write) return;
  const own = hostFiles(image, false);
  let prefix = "";
  for (let layer: BlockNode | undefined = backing; layer; layer = skipFilters(layer).cow?.node) {
    for (const { path, dev, ino } of hostFiles(layer, false)) {
      if (!own.some((each) => each.dev === dev && each.ino === ino)) continue;
      throw new BlockError("EAGAIN", `${prefix}Failed to get shared "write" lock`, {
        hint: `Is another process using the image [${path}]?`,
      });
    }
    prefix += "Could not open backing file: ";
  }
}

type Caller = Parameters<typeof BlockBackend.forNode>[0];

function forReading(caller: Caller, node: BlockNode): Promise<BlockBackend> {
  return BlockBackend.forNode(caller, node, {
    perm: { used: Perm.ConsistentRead, shared: Perm.All },
  });
}

/** The old or the new backing file. */
interface Layer {
  readonly name: "old" | "new";
  readonly backend: BlockBackend;
  readonly bytes: number;
}

/** A part of the guest's bytes that is looked at in one go. */
interface Piece {
  readonly offset: number;
  readonly bytes: number;
  /** What must be read and compared: a layer that is not named reads as zeroes. */
  readonly layers: readonly Layer[];
  /** Behind the end of the old backing file, zeroes are written as such. */
  readonly behindOld: boolean;
}

/** Where the image would read otherwise; `data` undefined: zeroes are to be written. */
interface Difference {
  readonly offset: number;
  readonly bytes: number;
  readonly data: Uint8Array | undefined;
}

async function keepContent(
  image: BlockBackend,
  newBacking: NewBacking | undefined,
  options: RebaseOptions,
): Promise<void> {
  const { signal, onProgress } = options;
  const oldNode = skipFilters(image.node).cow?.node;
  if (oldNode && skipFilters(oldNode) === newBacking?.backend.node) return;
  if (oldNode) refNode(oldNode);
  const oldBackend = oldNode && (await image.context.run((main) => forReading(main, oldNode)));
  try {
    const total = await image.getLength();
    const pieces = planPieces(
      image,
      await layerOf("old", oldBackend),
      await layerOf("new", newBacking?.backend),
      newBacking?.inChain ?? false,
      signal,
    );
    const pool = new BufferPool(PIECE_BYTES);
    const load = async (piece: Piece) => {
      const buffers = piece.layers.map(() => pool.take());
      return { piece, buffers, differences: await compare(piece, buffers, signal) };
    };
    for await (const { piece, buffers, differences } of readAhead(pieces, load, PIECES_IN_FLIGHT)) {
      for (const { offset, bytes, data } of differences)
        await writing(() =>
          data ? image.write(offset, data, { signal }) : image.writeZeroes(offset, bytes, { signal }),
        );
      pool.give(buffers);
      onProgress?.(piece.offset + piece.bytes, total);
    }
  } finally {
    await oldBackend?.close();
  }
}

async function layerOf(name: Layer["name"], backend: BlockBackend | undefined): Promise<Layer | undefined> {
  return backend && { name, backend, bytes: await backend.getLength() };
}

async function writing(write: () => Promise<void>): Promise<void> {
  try {
    await write();
  } catch (error) {
    const { errno } = toBlockError(error);
    throw new BlockError(errno, `Error while writing to COW image: ${strerror(errno)}`, { cause: error });
  }
}

/** What the image has itself needs nothing; nor does what both backing files have from the same images below. */
async function* planPieces(
  image: BlockBackend,
  oldLayer: Layer | undefined,
  newLayer: Layer | undefined,
  inChain: boolean,
  signal: AbortSignal | undefined,
): AsyncGenerator<Piece, void> {
  const overlay = skipFilters(image.node);
  const total = await image.getLength();
  const oldZeroes = new ZeroFinder(oldLayer, signal);
  const newZeroes = new ZeroFinder(newLayer, signal);
  const ask = async (node: BlockNode, base: BlockNode | undefined, offset: number, bytes: number) => {
    try {
      return await image.run((co) => blockStatusAbove(co, node, base, false, offset, bytes), signal);
    } catch (error) {
      const { errno } = toBlockError(error);
      const message = `error while reading image metadata: ${strerror(errno)}`;
      throw new BlockError(errno, message, { cause: error });
    }
  };
  for (let offset = 0; offset < total; ) {
    const own = await ask(overlay, overlay.cow?.node, offset, total - offset);
    const end = offset + own.bytes;
    if (own.allocated) offset = end;
    while (offset < end) {
      let bytes = Math.min(end - offset, PIECE_BYTES);
      if (inChain && oldLayer && newLayer && offset < oldLayer.bytes) {
        const above = await ask(oldLayer.backend.node, newLayer.backend.node, offset, bytes);
        bytes = above.bytes;
        if (!above.allocated) {
          offset += bytes;
          continue;
        }
      }
      bytes = cutAt(offset, cutAt(offset, bytes, oldLayer), newLayer);
      const layers: Layer[] = [];
      if (oldLayer && !(await oldZeroes.covers(offset, offset + bytes))) layers.push(oldLayer);
      if (newLayer && !(await newZeroes.covers(offset, offset + bytes))) layers.push(newLayer);
      yield { offset, bytes, layers, behindOld: offset >= (oldLayer?.bytes ?? 0) };
      offset += bytes;
    }
  }
}

/** A piece lies before the end of a layer, or behind it. */
function cutAt(offset: number, bytes: number, layer: Layer | undefined): number {
  return layer && offset < layer.bytes ? Math.min(bytes, layer.bytes - offset) : bytes;
}

/** Knows what of a layer reads as zeroes, and asks no more often than it must. Asked in ascending order. */
class ZeroFinder {
  readonly #layer: Layer | undefined;
  readonly #signal: AbortSignal | undefined;
  #start = 0;
  #end = 0;
  #isZero = false;

  constructor(layer: Layer | undefined, signal: AbortSignal | undefined) {
    this.#layer = layer;
    this.#signal = signal;
  }

  async covers(start: number, end: number): Promise<boolean> {
    const stop = Math.min(end, this.#layer?.bytes ?? 0);
    for (let at = start; at < stop; at = this.#end) {
      if (at < this.#start || at >= this.#end) await this.#ask(at);
      if (!this.#isZero) return false;
    }
    return true;
  }

  async #ask(offset: number): Promise<void> {
    const { name, backend, bytes: length } = this.#layer as Layer;
    const { zero, bytes } = await readingFrom(name, () =>
      backend.run(
        (co) => blockStatusAbove(co, backend.node, undefined, true, offset, length - offset),
        this.#signal,
      ),
    );
    [this.#start, this.#end, this.#isZero] = [offset, offset + bytes, zero];
  }
}

async function readingFrom<T>(name: Layer["name"], read: () => Promise<T>): Promise<T> {
  try {
    return await read();
  } catch (error) {
    const { errno } = toBlockError(error);
    throw new BlockError(errno, `error while reading from ${name} backing file`, { cause: error });
  }
}

/** What a layer that is not read has. */
let zeroes: Buffer | undefined;

/**
 * Where old and new backing file differ, in runs of sectors, with what the old one has. There is a buffer for each
 * of the piece's layers; the answer refers to them.
 */
async function compare(
  { offset, bytes, layers, behindOld }: Piece,
  buffers: readonly Buffer[],
  signal: AbortSignal | undefined,
): Promise<readonly Difference[]> {
  if (layers.length === 0) return [];
  const read = async (name: Layer["name"]): Promise<Buffer> => {
    const index = layers.findIndex((each) => each.name === name);
    zeroes ??= Buffer.alloc(PIECE_BYTES);
    const buffer = (buffers[index] ?? zeroes).subarray(0, bytes);
    await readingFrom(name, async () => layers[index]?.backend.readInto(offset, buffer, { signal }));
    return buffer;
  };
  const reads = [read("old"), read("new")] as const;
  // The old one's error comes first, whichever fails sooner.
  await Promise.allSettled(reads);
  const [before, after] = await Promise.all(reads);
  return differingRuns(before, after).map(({ start, end }) => ({
    offset: offset + start,
    bytes: end - start,
    data: behindOld ? undefined : before.subarray(start, end),
  }));
}

/** Compared first: most of two images that have anything in common is the same. */
const COMPARED_BYTES = 64 * KiB;

function differingRuns(a: Buffer, b: Buffer): { start: number; end: number }[] {
  const runs: { start: number; end: number }[] = [];
  const isSame = (start: number, end: number) => a.compare(b, start, end, start, end) === 0;
  for (let block = 0; block < a.length; block += COMPARED_BYTES) {
    const blockEnd = Math.min(block + COMPARED_BYTES, a.length);
    if (isSame(block, blockEnd)) continue;
    for (let start = block; start < blockEnd; start += SECTOR_SIZE) {
      const end = Math.min(start + SECTOR_SIZE, blockEnd);
      if (isSame(start, end)) continue;
      const last = runs.at(-1);
      if (last?.end === start) last.end = end;
      else runs.push({ start, end });
    }
  }
  return runs;
}

/** @qemu bdrv_change_backing_file */
async function changeBackingFile(
  image: BlockBackend,
  backingFile: string | undefined,
  backingFormat: string | undefined,
): Promise<void> {
  const overlay = skipFilters(image.node);
  const fail = (errno: Parameters<typeof strerror>[0], why: string, cause?: unknown) =>
    new BlockError(errno, `Could not change the backing file to '${backingFile ?? "(null)"}': ${why}`, {
      cause,
    });
  try {
    if (backingFile && backingFormat === undefined) throw new BlockError("EINVAL");
    const { changeBackingFile: change } = overlay.ops;
    if (!change) throw new BlockError("ENOTSUP");
    await image.run((co) => change(co, backingFile || undefined, backingFile ? backingFormat : undefined));
  } catch (error) {
    const { errno } = toBlockError(error);
    if (errno === "ENOSPC") throw fail(errno, "No space left in the file header", error);
    if (errno === "EINVAL" && backingFile && backingFormat === undefined)
      throw fail(errno, "backing format must be specified", error);
    throw fail(errno, strerror(errno), error);
  }
}
