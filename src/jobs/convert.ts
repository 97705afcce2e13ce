/** `convert`: open images, one behind the other, become a new image or are written over one that exists.  @qemu qemu-img.c: img_convert */

import { BlockBackend } from "../block/backend.ts";
import { BlockError } from "../block/errors.ts";
import { driverInfo } from "../block/info.ts";
import { type OpenEnvironment, openGate } from "../block/open.ts";
import { parseCacheMode } from "../block/open-flags.ts";
import { loadSnapshot as loadNodeSnapshot, loadSnapshotByIdOrName } from "../block/snapshot.ts";
import {
  type BitmapOptions,
  checkSourceBitmaps,
  checkTargetBitmaps,
  copyBitmaps,
} from "./convert-bitmaps.ts";
import { type CopyOptions, copyImages, hasZeroInit } from "./convert-copy.ts";
import {
  createTarget,
  type NewImage,
  openTarget,
  planTarget,
  refuseSharedFiles,
  refuseTargetOf,
} from "./convert-target.ts";
import { Staging } from "./staging.ts";

export type { CopyOptions } from "./convert-copy.ts";
export type { NewImage } from "./convert-target.ts";

export interface ConvertOptions extends CopyOptions, BitmapOptions {
  /** A `CacheMode`: how a new image is written. Default: unsafe, for a half-written image is of no use anyway. */
  readonly cache?: string | undefined;
  /** For opening a new image and its backing file. */
  readonly environment?: OpenEnvironment | undefined;
}

/**
 * Copies the content of `sources` into `target`: an open backend (which stays open and keeps its length), or a new
 * image, which is created, filled and closed, and gets its name then (`staging.ts`). If that fails or is aborted, no
 * file of it is left. Block devices and open backends keep what was written so far.
 *
 * Errors: BlockError with qemu-img's words, or the signal's reason.
 */
export async function convert(
  sources: readonly BlockBackend[],
  target: BlockBackend | NewImage,
  options: ConvertOptions = {},
): Promise<void> {
  const { signal } = options;
  signal?.throwIfAborted();
  if (target instanceof BlockBackend) {
    checkSourceBitmaps(sources, options);
    refuseSharedFiles(sources, target, target.node.filename);
    await copyAndFlush(sources, target, options);
    return;
  }
  const { cache = "unsafe", environment = { gate: openGate, warn: options.onWarning ?? (() => {}) } } =
    options;
  let sizeBytes = 0;
  for (const source of sources) sizeBytes += await source.getLength();
  const { compress = false } = options;
  const plan = await planTarget(target, { compress, sourceCount: sources.length, sizeBytes });
  checkSourceBitmaps(sources, options);
  const mode = parseCacheMode(cache);
  if (!mode) throw new BlockError("EINVAL", `Invalid cache option: ${cache}`);
  const wrap = (error: unknown) =>
    BlockError.wrap(`${plan.filename}: error while converting ${plan.format}`, error);
  refuseTargetOf(sources, plan.filename, wrap);
  const staging = new Staging();
  const staged = { ...environment, staging };
  let backend: BlockBackend | undefined;
  try {
    await createTarget(plan, staged);
    backend = await openTarget(plan, mode, options.sparseBytes !== 0, staged);
    const targetIsZero = hasZeroInit(backend.node);
    await copyAndFlush(sources, backend, { ...options, targetIsZero, keepBacking: plan.hasBacking });
    // An image that can't be closed is not whole.
    await backend.close();
  } catch (error) {
    // What closing says now is of no use: the image goes away.
    await backend?.close().catch(() => {});
    staging.discard();
    throw error;
  }
  try {
    staging.commit();
  } catch (error) {
    throw wrap(error);
  }
}

async function copyAndFlush(
  sources: readonly BlockBackend[],
  target: BlockBackend,
  options: ConvertOptions,
): Promise<void> {
  checkTargetBitmaps(target, options);
  const info = await target.run((co, { node }) => driverInfo(co, node));
  const compress = options.compress || info?.needsCompressedWrites;
  await copyImages(sources, target, { ...options, compress });
  // An empty compressed write says that no more come.
  if (compress) await target.write(0, [], { compressed: true });
  const [source] = sources;
  const warn = options.environment?.warn ?? options.onWarning ?? (() => {});
  if (options.bitmaps && source) await copyBitmaps(source, target, warn);
  await target.flush(options.signal);
}

/** Which internal snapshot is meant. */
export interface SnapshotChoice {
  readonly id?: string;
  readonly name?: string;
  /** An id, or a name where no snapshot has that id. */
  readonly idOrName?: string;
}

/** Makes `source` show one of its internal snapshots until it is closed.  @qemu bdrv_snapshot_load_tmp_by_param */
export async function loadSnapshot(source: BlockBackend, choice: SnapshotChoice): Promise<void> {
  const { idOrName, ...exact } = choice;
  try {
    await source.run((co, { node }) =>
      idOrName === undefined ? loadNodeSnapshot(co, node, exact) : loadSnapshotByIdOrName(co, node, idOrName),
    );
  } catch (error) {
    throw BlockError.wrap("Failed to load snapshot", error);
  }
}
