/**
 * What a block driver is: an object literal with a name, a kind and an `open` that returns the node's operations
 * as an object closing over its state.  @qemu include/block/block_int-common.h
 *
 * All operations are declared as properties, never as methods: method shorthand is bivariant and would accept
 * a driver that wants more than it is given (a `Coroutine<"none">` where it gets a `Coroutine<"read">`).
 */

import type { BlockStatus } from "./block-status.ts";
import type { PermPair } from "./child.ts";
import type { HostRange } from "./copy-range.ts";
import type { Coroutine } from "./coroutine.ts";
import { assert } from "./errors.ts";
import type { IoVector } from "./iov.ts";
import type { BlockNode } from "./node.ts";
import type { OpenEnvironment, OpeningNode } from "./open.ts";
import type { Options, OptionTable, OptionValues } from "./options.ts";

/** Request flags, a mask.  @qemu BdrvRequestFlags */
export const Req = {
  None: 0,
  /** A zero write may leave the range unallocated.  @qemu BDRV_REQ_MAY_UNMAP */
  MayUnmap: 1 << 0,
  /** On stable storage before the request ends.  @qemu BDRV_REQ_FUA */
  Fua: 1 << 1,
  /** @qemu BDRV_REQ_WRITE_COMPRESSED */
  WriteCompressed: 1 << 2,
  /** The guest sees no change; only WriteUnchanged permission is needed.  @qemu BDRV_REQ_WRITE_UNCHANGED */
  WriteUnchanged: 1 << 3,
  /** Fail with ENOTSUP rather than write zeroes the slow way.  @qemu BDRV_REQ_NO_FALLBACK */
  NoFallback: 1 << 4,
  /** The request is a write of zeroes and has no buffers.  @qemu BDRV_REQ_ZERO_WRITE */
  ZeroWrite: 1 << 5,
  /** A read gives the first node that reads by itself content of its own for what it reads.  @qemu BDRV_REQ_COPY_ON_READ */
  CopyOnRead: 1 << 6,
} as const;

/** A mask of `Req`. */
export type ReqFlags = number;

/** How far a file's space is set aside.  @qemu PreallocMode */
export type Prealloc = "off" | "metadata" | "falloc" | "full";

/** What a node wants of its requests. All in bytes; 0 means no limit or no preference.  @qemu BlockLimits */
export interface BlockLimits {
  /** Offsets and lengths that the driver's operations get are multiples of this power of two. */
  requestAlignment: number;
  maxTransfer: number;
  optTransfer: number;
  maxPwriteZeroes: number;
  pwriteZeroesAlignment: number;
  maxPdiscard: number;
  pdiscardAlignment: number;
  /** Address alignment of buffers, for O_DIRECT. */
  memoryAlignment: number;
}

/** Geometry that a format tells of itself.  @qemu BlockDriverInfo */
export interface DriverInfo {
  /** In bytes; 0: the format has no clusters. */
  readonly clusterSize?: number;
  /** The unit in which data is allocated, where smaller than a cluster. */
  readonly subclusterSize?: number;
  /** Host offset where saved VM state starts. */
  readonly vmStateOffset?: number;
  readonly isDirty?: boolean;
  /** Guest data is stored encrypted, and nothing of `getSpecificInfo` tells it. */
  readonly isEncrypted?: boolean;
  /** A table comes to lie behind the data of the write that needs it: where, depends on how long writes are. */
  readonly placesTablesByWrite?: boolean;
  /** It takes whole clusters only, and stores them compressed: `convert` writes so, asked or not. */
  readonly needsCompressedWrites?: boolean;
}

/** Values of the "format-specific" part of `info`, in the order in which they are shown. */
export type InfoValue =
  | string
  | number
  | boolean
  | null
  | readonly InfoValue[]
  | { readonly [key: string]: InfoValue };

/** @qemu ImageInfoSpecific */
export interface SpecificInfo {
  readonly type: string;
  readonly data: { readonly [key: string]: InfoValue };
}

/** One internal snapshot.  @qemu QEMUSnapshotInfo */
export interface SnapshotInfo {
  readonly id: string;
  readonly name: string;
  /** Bytes of saved VM state. */
  readonly vmStateSize: number;
  /** When it was taken: seconds since the epoch, and nanoseconds of that second. */
  readonly dateSec: number;
  readonly dateNsec: number;
  /** Guest time since it booted, in nanoseconds. */
  readonly vmClockNsec: bigint;
  /** Instruction count; undefined where the image has none. */
  readonly icount?: bigint;
}

/** An internal snapshot to be taken; the driver finds an id where none is given.  @qemu QEMUSnapshotInfo */
export type NewSnapshot = Omit<SnapshotInfo, "id"> & { readonly id?: string };

/** Says which internal snapshot is meant: by id, by name, or by both.  @qemu bdrv_snapshot_find_by_id_and_name */
export interface SnapshotRef {
  readonly id?: string;
  readonly name?: string;
}

/** Asked to change options of an image that exists.  @qemu bdrv_amend_options */
export interface AmendRequest<T extends OptionTable> {
  /** Parsed by the driver's `amendOptions`: only what the user gave. */
  readonly options: OptionValues<T>;
  /** Also what may make old readers fail (`--force`). */
  readonly force: boolean;
  readonly environment: OpenEnvironment;
  /** Gets how far the work has come, in units of its own. */
  readonly onProgress: (done: number, total: number) => void;
}

/** What `check` found.  @qemu BdrvCheckResult, ImageCheck */
export interface CheckResult {
  /** Entries that are wrong: data may be lost. */
  corruptions: number;
  /** Clusters that are allocated and not used: only space is lost. */
  leaks: number;
  checkErrors: number;
  corruptionsFixed: number;
  leaksFixed: number;
  /** Host offset in bytes behind the last used cluster. */
  imageEndOffset: number;
  totalClusters?: number;
  allocatedClusters?: number;
  fragmentedClusters?: number;
  compressedClusters?: number;
}

export interface CheckOptions {
  readonly fixLeaks: boolean;
  readonly fixErrors: boolean;
  /** Gets each finding as a line, in the words that qemu-img prints on stderr. */
  readonly report: (line: string) => void;
}

/** What an open node is to become.  @qemu BDRVReopenState */
export interface ReopenRequest {
  readonly readOnly: boolean;
  readonly direct: boolean;
  readonly noFlush: boolean;
  /** All values of the driver's options that are `changeable`: those given now over the ones in force. */
  readonly options: Options;
}

/** A change of an open node, prepared; then one of both is called. */
export interface ReopenAction {
  readonly commit: () => void;
  /** Runs after all commits, before any request: for what is written into a node that has become writable. */
  readonly committed?: ((co: Coroutine<"none">) => Promise<void>) | undefined;
  readonly abort: (co: Coroutine<"none">) => void | Promise<void>;
}

/** What a change of permissions asks of the world outside, prepared; then one of both is called. */
export interface PermissionChange {
  readonly commit: () => void;
  readonly abort: () => void;
}

/**
 * The operations of an open node. A filter's absent operation is forwarded to its child; a format's or
 * protocol's is emulated where that is right and otherwise answers ENOTSUP: the table is in `io.ts`.
 * `io.ts` has checked range, alignment to `requestAlignment`, permission and read-only before any is called.
 */
export interface NodeOps {
  /** Bytes of guest content. Without it the length is what `open` left in `node.totalSectors`. */
  readonly getLength?: (co: Coroutine<"read">) => Promise<number>;
  /** The length may change behind our back (a device): asked anew each time. */
  readonly hasVariableLength?: boolean;
  /** With `hasVariableLength`: what `getLength` would answer, where that takes no wait. */
  readonly knownLength?: () => number | undefined;

  readonly pread?: (co: Coroutine<"read">, offset: number, iov: IoVector, flags: ReqFlags) => Promise<void>;
  readonly pwrite?: (co: Coroutine<"read">, offset: number, iov: IoVector, flags: ReqFlags) => Promise<void>;
  /** A write stored compressed. An empty `iov` at the end of all is the hint that no more come. */
  readonly pwriteCompressed?: (co: Coroutine<"read">, offset: number, iov: IoVector) => Promise<void>;
  readonly pwriteZeroes?: (
    co: Coroutine<"read">,
    offset: number,
    bytes: number,
    flags: ReqFlags,
  ) => Promise<void>;
  readonly pdiscard?: (co: Coroutine<"read">, offset: number, bytes: number) => Promise<void>;
  /** The descriptor of the host's file whose bytes are the node's, at the same offsets. */
  readonly descriptor?: () => number;
  /** Lets the kernel copy a file's bytes to `offset`; ENOTSUP where it can't.  @qemu bdrv_co_copy_range_to */
  readonly copyFrom?: (co: Coroutine<"read">, offset: number, range: HostRange) => Promise<void>;
  /** Flags that pwrite understands itself; FUA that it does not is emulated by a flush. */
  readonly supportedWriteFlags?: ReqFlags;
  readonly supportedZeroFlags?: ReqFlags;

  /** All of a flush, that of the children included: the two below are not called then.  @qemu bdrv_co_flush */
  readonly flush?: (co: Coroutine<"read">) => Promise<void>;
  /** Hands what the driver caches to its children.  @qemu bdrv_co_flush_to_os */
  readonly flushToOs?: (co: Coroutine<"read">) => Promise<void>;
  /** Makes all that was handed over stable.  @qemu bdrv_co_flush_to_disk */
  readonly flushToDisk?: (co: Coroutine<"read">) => Promise<void>;

  /**
   * Changes the length to `bytes`. `exact`: no more than that either (a block device cannot). New space reads as
   * zeroes if `flags` has ZeroWrite.
   */
  readonly truncate?: (
    co: Coroutine<"read">,
    bytes: number,
    exact: boolean,
    prealloc: Prealloc,
    flags: ReqFlags,
  ) => Promise<void>;

  /**
   * What holds for the range from `offset`; the answer's `bytes` is at least 1 and may be over the asked.
   * `wantZero`: the caller wants zero to be found even at a cost; else speed.
   */
  readonly blockStatus?: (
    co: Coroutine<"read">,
    wantZero: boolean,
    offset: number,
    bytes: number,
  ) => Promise<BlockStatus>;

  /** Bytes of storage used, of this node alone: children are added by the caller.  @qemu bdrv_get_allocated_file_size */
  readonly getAllocatedFileSize?: (co: Coroutine<"read">) => Promise<number | undefined>;
  /** A freshly created image reads as zeroes.  @qemu bdrv_has_zero_init */
  readonly hasZeroInit?: () => boolean;

  readonly limits?: () => Partial<BlockLimits>;
  readonly getInfo?: (co: Coroutine<"read">) => Promise<DriverInfo | undefined>;
  readonly getSpecificInfo?: (co: Coroutine<"read">) => Promise<SpecificInfo | undefined>;
  readonly check?: (co: Coroutine<"read">, options: CheckOptions) => Promise<CheckResult>;
  readonly listSnapshots?: (co: Coroutine<"read">) => Promise<readonly SnapshotInfo[]>;
  /** Makes the guest see that internal snapshot, read-only, until the node is closed.  @qemu bdrv_snapshot_load_tmp */
  readonly loadSnapshot?: (co: Coroutine<"read">, snapshot: SnapshotRef) => Promise<void>;
  /** @qemu bdrv_snapshot_create */
  readonly createSnapshot?: (co: Coroutine<"read">, snapshot: NewSnapshot) => Promise<void>;
  /** Makes the active content that of the snapshot.  @qemu bdrv_snapshot_goto */
  readonly gotoSnapshot?: (co: Coroutine<"read">, snapshot: SnapshotRef) => Promise<void>;
  /** @qemu bdrv_snapshot_delete */
  readonly deleteSnapshot?: (co: Coroutine<"read">, snapshot: SnapshotRef) => Promise<void>;
  /** Saved machine state lies behind the guest's end; `offset` counts from there.  @qemu bdrv_co_readv_vmstate */
  readonly loadVmState?: (co: Coroutine<"read">, offset: number, iov: IoVector) => Promise<void>;
  /** @qemu bdrv_co_writev_vmstate */
  readonly saveVmState?: (co: Coroutine<"read">, offset: number, iov: IoVector) => Promise<void>;
  /** Gives all of the content up, so that the backing file shines through.  @qemu bdrv_make_empty */
  readonly makeEmpty?: (co: Coroutine<"read">) => Promise<void>;
  /** @qemu bdrv_amend_options */
  readonly amend?: (co: Coroutine<"read">, request: AmendRequest<OptionTable>) => Promise<void>;
  /** Rewrites what the image says of its backing file.  @qemu bdrv_change_backing_file */
  readonly changeBackingFile?: (
    co: Coroutine<"read">,
    backingFile: string | undefined,
    backingFormat: string | undefined,
  ) => Promise<void>;

  /** Whether this image can store dirty bitmaps.  @qemu bdrv_supports_persistent_dirty_bitmap */
  readonly supportsBitmaps?: () => boolean;
  /** Throws if such a bitmap could not be stored with the image; `granularity` in bytes.  @qemu bdrv_can_store_new_dirty_bitmap */
  readonly checkNewBitmap?: (co: Coroutine<"read">, name: string, granularity: number) => Promise<void>;
  /** Takes a bitmap out of the image; one that is not stored yet is no error.  @qemu bdrv_remove_persistent_dirty_bitmap */
  readonly removeStoredBitmap?: (co: Coroutine<"read">, name: string) => Promise<void>;

  /**
   * What all parents together use and share becomes this: throws where somebody outside the process is in the way;
   * undefined where nothing changes.  @qemu bdrv_check_perm, bdrv_set_perm, bdrv_abort_perm_update
   */
  readonly preparePermissions?: (pair: PermPair) => PermissionChange | undefined;
  /** Between prepare (this call) and commit or abort the node is drained. */
  readonly reopen?: (co: Coroutine<"none">, request: ReopenRequest) => Promise<ReopenAction>;
  /** blkdebug's breakpoints and events; other drivers forward to `file`.  @qemu bdrv_debug_event */
  readonly debug?: DebugOps;
  /** The node is drained: requests that the driver holds back must go on to their end.  @qemu bdrv_co_drain_begin */
  readonly drainedBegin?: () => void;
  /** Children are still there. The core has drained the node, and flushed it if it could be written. */
  readonly close?: (co: Coroutine<"none">) => Promise<void>;
}

/** @qemu bdrv_debug_breakpoint and its like */
export interface DebugOps {
  /** A driver passes a named point of its work. */
  readonly event: (co: Coroutine<"read">, event: string) => Promise<void>;
  readonly addBreakpoint: (event: string, tag: string) => void;
  readonly removeBreakpoint: (tag: string) => void;
  readonly resume: (tag: string) => void;
  readonly isSuspended: (tag: string) => boolean;
}

/** Asked for a new image.  @qemu bdrv_co_create_opts */
export interface CreateRequest<T extends OptionTable> {
  readonly filename: string;
  /** Parsed by the driver's `createOptions`. */
  readonly options: OptionValues<T>;
  /** What `options` left over: for the protocol below. */
  readonly protocolOptions: Options;
  /** Of a file: others may go on writing to what is there, for the new image has no metadata. */
  readonly sharesWrites?: boolean;
  readonly environment: OpenEnvironment;
}

/** Asked how large an image would be.  @qemu bdrv_measure */
export interface MeasureRequest<T extends OptionTable> {
  readonly options: OptionValues<T>;
  /** The image to be copied; undefined: an empty one of `options.size`. */
  readonly source: { readonly node: BlockNode; readonly co: Coroutine<"read"> } | undefined;
  readonly environment: OpenEnvironment;
}

/** @qemu BlockMeasureInfo */
export interface MeasureResult {
  /** Bytes of the new image with the data that is allocated in the source. */
  readonly required: number;
  readonly fullyAllocated: number;
  readonly bitmaps?: number;
}

interface DriverCommon<T extends OptionTable, C extends OptionTable> {
  /** The name for `driver=`, `-f` and messages. */
  readonly formatName: string;
  /** Options of its own at open, beside those that every node has. */
  readonly options: T;
  /** Options of `create`; without it nothing can be created. */
  readonly createOptions?: C;
  /** Options of `amend`, as `amend -o help` lists them. */
  readonly amendOptions?: OptionTable;
  readonly open: (co: Coroutine<"none">, node: OpeningNode<T>) => Promise<NodeOps>;
  readonly create?: (co: Coroutine<"none">, request: CreateRequest<C>) => Promise<void>;
}

/** Reaches storage: the leaf of a graph. */
export interface ProtocolDriver<T extends OptionTable = OptionTable, C extends OptionTable = OptionTable>
  extends DriverCommon<T, C> {
  readonly kind: "protocol";
  /** `NAME:` at the start of a filename means this driver; the filename comes with its prefix. */
  readonly prefix?: string;
  /** Makes options of a filename; without it the filename itself is the option `filename`. */
  readonly parseFilename?: (filename: string) => Options;
  /** Whether a filename without a prefix is for this driver.  @qemu bdrv_probe_device */
  readonly claims?: (filename: string) => boolean;
  /** Removes a file that `create` has made.  @qemu bdrv_co_delete_file */
  readonly remove?: (filename: string, environment: OpenEnvironment) => Promise<void>;
}

/** Interprets the content of its child `file`. */
export interface FormatDriver<T extends OptionTable = OptionTable, C extends OptionTable = OptionTable>
  extends DriverCommon<T, C> {
  readonly kind: "format";
  /** How sure it is that an image that starts with `head` is its own: 0 no, 1 raw only, 100 by a magic.  @qemu bdrv_probe */
  readonly probe?: (head: Uint8Array, filename: string) => number;
  /** The same by the last bytes of a file of `fileBytes`: asked where the start alone would be taken for raw. */
  readonly probeEnd?: (tail: Uint8Array, fileBytes: number) => number;
  readonly supportsBacking?: boolean;
  /** Some of its images take compressed writes: `convert -c` asks before it creates one. */
  readonly supportsCompression?: boolean;
  readonly measure?: (request: MeasureRequest<C>) => Promise<MeasureResult>;
}

/** Shows the content of its child `file`, byte by byte at the same offset. */
export interface FilterDriver<T extends OptionTable = OptionTable, C extends OptionTable = OptionTable>
  extends DriverCommon<T, C> {
  readonly kind: "filter";
  readonly prefix?: string;
  readonly parseFilename?: (filename: string) => Options;
  /** The filename with the prefix that opens such a node; "" where only options can.  @qemu bdrv_refresh_filename */
  readonly filenameOf?: (node: BlockNode) => string;
}

export type BlockDriver<T extends OptionTable = OptionTable, C extends OptionTable = OptionTable> =
  | ProtocolDriver<T, C>
  | FormatDriver<T, C>
  | FilterDriver<T, C>;

/** What is known of a driver before its code is loaded: enough to find it by its name, a filename or by probing. */
export interface DriverEntry {
  readonly formatName: string;
  readonly kind: BlockDriver["kind"];
  readonly prefix?: string | undefined;
  readonly parseFilename?: ((filename: string) => Options) | undefined;
  readonly claims?: ((filename: string) => boolean) | undefined;
  readonly probe?: ((head: Uint8Array, filename: string) => number) | undefined;
  readonly probeEnd?: ((tail: Uint8Array, fileBytes: number) => number) | undefined;
  readonly load: () => Promise<BlockDriver>;
}

const registry = new Map<string, DriverEntry>();

/** Makes a driver known by its name; probing asks drivers in the order of their registration.  @qemu bdrv_register */
export function registerDriver<T extends OptionTable, C extends OptionTable>(
  driver: BlockDriver<T, C>,
): void {
  // The core parses options by the driver's own table before it hands them over, so the erased type is kept.
  const erased = driver as unknown as BlockDriver;
  registerLazyDriver({
    formatName: driver.formatName,
    kind: driver.kind,
    prefix: erased.kind === "format" ? undefined : erased.prefix,
    parseFilename: erased.kind === "format" ? undefined : erased.parseFilename,
    claims: erased.kind === "protocol" ? erased.claims : undefined,
    probe: erased.kind === "format" ? erased.probe : undefined,
    probeEnd: erased.kind === "format" ? erased.probeEnd : undefined,
    load: async () => erased,
  });
}

/** Makes a driver known whose code is loaded when it is first used: start-up is a feature. */
export function registerLazyDriver(entry: DriverEntry): void {
  assert(!registry.has(entry.formatName), `a driver named '${entry.formatName}' is registered already`);
  registry.set(entry.formatName, entry);
}

export function unregisterDriver(formatName: string): void {
  registry.delete(formatName);
}

/** @qemu bdrv_find_format */
export function findDriver(formatName: string): DriverEntry | undefined {
  return registry.get(formatName);
}

/** The driver itself. */
export async function loadDriver(formatName: string): Promise<BlockDriver | undefined> {
  return registry.get(formatName)?.load();
}

export function allDrivers(): readonly DriverEntry[] {
  return [...registry.values()];
}

/**
 * A format that is known by its first bytes and has no driver here. It is refused by its name when it is probed:
 * read as raw, its tables would pass for guest content.
 */
export interface ForeignFormat {
  readonly formatName: string;
  /** As of a `FormatDriver`. */
  readonly probe: (head: Uint8Array, filename: string) => number;
}

const foreign: ForeignFormat[] = [];

export function registerForeignFormat(format: ForeignFormat): void {
  foreign.push(format);
}

export function foreignFormats(): readonly ForeignFormat[] {
  return foreign;
}
