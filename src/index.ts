/** The library's face: everything that `import ... from "bdrv"` gives. */

import "../drivers/index.ts";

// Images.

export { type BackendOptions, BlockBackend, type RequestOptions } from "./block/backend.ts";
export type { BlockStatus, ChainStatus } from "./block/block-status.ts";
export type { DirtyExtent, NewBitmap } from "./block/dirty-bitmap.ts";
export { BlockError, type BlockErrorOptions, type Errno, errnoNumber, strerror } from "./block/errors.ts";
export { DEFAULT_LIMITS, type Limits } from "./block/guard.ts";
export type { BitmapInfo, BitmapSource, ImageBitmaps } from "./block/image-bitmaps.ts";
export type { ImageSnapshots, SnapshotDetails } from "./block/image-snapshots.ts";
export type { IoVector } from "./block/iov.ts";
export { type ExternalReference, type NamedReference, type OpenGate, openGate } from "./block/open.ts";
export type { CacheMode } from "./block/open-flags.ts";
export { GiB, KiB, MAX_LENGTH, MiB, SECTOR_SIZE, TiB } from "./block/units.ts";
export { type ContentExtent, type ContentRange, type ExtentOptions, readExtents } from "./library/content.ts";
export type { WriteOptions } from "./library/content-writer.ts";
export * from "./library/driver-options.ts";
export { denyAll, type OpenOptions, open } from "./library/open.ts";
export {
  createReadStream,
  createWriteStream,
  type ReadStreamOptions,
  readable,
  type WriteStreamOptions,
  writable,
} from "./library/streams.ts";

// Jobs.

export type { CommitOptions } from "./jobs/commit.ts";
export type { CompareResult } from "./jobs/compare.ts";
export type { CopyOptions } from "./jobs/convert.ts";
export type { ImageInfo } from "./jobs/info.ts";
export type { Anomaly, Inspection } from "./jobs/inspect.ts";
export type { MapEntry, MapRange } from "./jobs/map.ts";
export {
  type AmendOptions,
  amend,
  type BackingReference,
  type CheckImageOptions,
  type CompareOptions,
  type ConvertOptions,
  type ConvertTarget,
  type CreateOptions,
  check,
  commit,
  compare,
  convert,
  create,
  type ImageSource,
  type InspectOptions,
  info,
  inspect,
  type JobOptions,
  map,
  measure,
  type NewImageOptions,
  type RebaseOptions,
  type ResizeOptions,
  rebase,
  resize,
} from "./library/jobs.ts";

// Drivers of one's own.

export { createFile, openCreated } from "./block/create.ts";
export * from "./block/driver.ts";
export { combinePath, protocolPrefix, resolveReference } from "./block/filename.ts";
export {
  iovConcat,
  iovFill,
  iovFlatten,
  iovIsZero,
  iovLength,
  iovParts,
  iovSlice,
  iovWrite,
  isZero,
} from "./block/iov.ts";
export type { OpenEnvironment, OpeningNode, OpenRequest } from "./block/open.ts";
export {
  flattenOptions,
  type NestedOptions,
  type OptionScalar,
  type OptionSpec,
  type Options,
  type OptionTable,
  type OptionValues,
  parseKeyValues,
  parseSize,
  takeOptions,
} from "./block/options.ts";
export { alignDown, alignUp } from "./block/units.ts";

// Nodes, coroutines and locks, for those who work at that level.

export { AioContext, aioWaitWhile, MainLoop, mainContext } from "./block/aio-context.ts";
export { blockStatus, blockStatusAbove } from "./block/block-status.ts";
export {
  BlockChild,
  type ChildParent,
  type ChildRole,
  Perm,
  type PermPair,
  permNames,
} from "./block/child.ts";
export {
  Coroutine,
  coWrapper,
  coWrapperMixed,
  coWrapperMixedUnlocked,
  type GraphHold,
  graphRdlock,
} from "./block/coroutine.ts";
export {
  attachChild,
  detach,
  drainedBegin,
  drainedEnd,
  refNode,
  replaceNode,
  setBacking,
  unrefNode,
} from "./block/graph.ts";
export { refreshTotalSectors } from "./block/length.ts";
export { BlockNode } from "./block/node.ts";
export { openDriver, openNode } from "./block/open.ts";
export { DEFAULT_FLAGS, type OpenFlags } from "./block/open-flags.ts";
