/** A node of the graph: an open image, file or filter, with the edges to and from it.  @qemu BlockDriverState */

import type { AioContext, MainLoop } from "./aio-context.ts";
import type { BlockChild, ChildParent } from "./child.ts";
import type { Coroutine } from "./coroutine.ts";
import type { DirtyBitmap } from "./dirty-bitmap.ts";
import type { BlockDriver, BlockLimits, NodeOps } from "./driver.ts";
import { assert, BlockError } from "./errors.ts";
import { getLength, refreshTotalSectors } from "./length.ts";
import type { InheritedFlag } from "./open.ts";
import type { OpenFlags } from "./open-flags.ts";
import type { Options } from "./options.ts";
import { RequestTracker } from "./tracked-request.ts";
import { alignUp, SECTOR_SIZE } from "./units.ts";

export const DEFAULT_LIMITS: Readonly<BlockLimits> = {
  requestAlignment: 1,
  maxTransfer: 0,
  optTransfer: 0,
  maxPwriteZeroes: 0,
  pwriteZeroesAlignment: 0,
  maxPdiscard: 0,
  pdiscardAlignment: 0,
  memoryAlignment: 1,
};

export class BlockNode implements ChildParent {
  readonly context: AioContext;
  /** Unique in its context; `#block...` where the user gave none. */
  readonly nodeName: string;
  readonly driver: BlockDriver;
  /** By key, in the order in which they were attached. Changed only by `graph.ts`. */
  readonly children = new Map<string, BlockChild>();
  /** Edges to this node, from nodes and backends. Changed only by `graph.ts`. */
  readonly parents = new Set<BlockChild>();
  /** The driver's own options that it was opened with and that are part of what the guest sees; no children. */
  readonly ownOptions: Options;
  /** The driver's own options as they were given to the open. */
  givenOptions: Options = new Map();
  /** What the user gave of the driver's options that a reopen may change. */
  changeableOptions: Options = new Map();
  /** As the user gave it, or made from the options; `json:{...}` where no plain name says it all. */
  filename: string;
  /** A plain filename that opens the same; "" where there is none. */
  exactFilename = "";
  /** Has another backing file (or none) than the image names. */
  childrenOverridden = false;
  flags: OpenFlags;
  /** Flags that the user gave for this very node: it does not follow its parent in them. */
  explicitFlags: ReadonlySet<InheritedFlag> = new Set();
  limits: BlockLimits = { ...DEFAULT_LIMITS };
  readonly tracker: RequestTracker;

  /** Length in units of 512 bytes; kept by `refreshTotalSectors`. */
  totalSectors = 0;
  /** A probed raw image: block 0 must not be turned into another format's header.  @qemu bs->probed */
  probed = false;
  /** What the image itself says of its backing file; set by the driver in `open`. */
  backingFilename: string | undefined;
  backingFormat: string | undefined;

  /** What has been written to, for backups; the newest first. Changed only by `dirty-bitmap.ts`. */
  readonly dirtyBitmaps: DirtyBitmap[] = [];

  /** How many drains are in force. */
  quiesceCounter = 0;
  /** Counts changes of content, so that a flush with nothing to flush can be left out.  @qemu bs->write_gen */
  writeGeneration = 0;
  flushedGeneration = 0;
  /** The flush under way: the next one waits for it. */
  flushing: Promise<void> | undefined;
  /** Users that hold the node open; parents' edges count. Kept by `graph.ts`. */
  refCount = 1;

  #ops: NodeOps | undefined;

  constructor(
    context: AioContext,
    nodeName: string,
    driver: BlockDriver,
    filename: string,
    flags: OpenFlags,
    ownOptions: Options,
  ) {
    this.context = context;
    this.nodeName = nodeName;
    this.driver = driver;
    this.filename = filename;
    this.flags = flags;
    this.ownOptions = ownOptions;
    this.tracker = new RequestTracker(context);
  }

  /** Set once the driver's `open` is through. */
  get isInserted(): boolean {
    return this.#ops !== undefined;
  }

  get ops(): NodeOps {
    if (!this.#ops) throw new BlockError("ENOMEDIUM", undefined, { node: this.nodeName });
    return this.#ops;
  }

  /** Only for `openDriver` and for close (undefined). */
  setOps(ops: NodeOps | undefined): void {
    this.#ops = ops;
  }

  get readOnly(): boolean {
    return this.flags.readOnly;
  }

  get file(): BlockChild | undefined {
    return this.children.get("file");
  }

  get backing(): BlockChild | undefined {
    return this.children.get("backing");
  }

  /** The child whose content a filter shows.  @qemu bdrv_filter_child */
  get filtered(): BlockChild | undefined {
    if (this.driver.kind !== "filter") return undefined;
    for (const child of this.children.values()) if (child.role.filtered) return child;
    return undefined;
  }

  /** Where reads of unallocated data go.  @qemu bdrv_cow_child */
  get cow(): BlockChild | undefined {
    return this.driver.kind === "filter" ? undefined : this.backing;
  }

  /** The child that has this node's content: a filter's child, or a format's `file`.  @qemu bdrv_primary_child */
  get primary(): BlockChild | undefined {
    for (const child of this.children.values()) if (child.role.primary) return child;
    return undefined;
  }

  get filterOrCow(): BlockChild | undefined {
    return this.filtered ?? this.cow;
  }

  get hasVariableLength(): boolean {
    return this.ops.hasVariableLength ?? this.filtered?.node.hasVariableLength ?? false;
  }

  /** The length in bytes where it need not be asked for, nor noted: the way of most requests. */
  get knownBytes(): number | undefined {
    const bytes = this.totalSectors * SECTOR_SIZE;
    if (!this.hasVariableLength) return bytes;
    const known = this.ops.knownLength ? this.ops.knownLength() : this.filtered?.node.knownBytes;
    return known !== undefined && alignUp(known, SECTOR_SIZE) === bytes ? bytes : undefined;
  }

  get canCompress(): boolean {
    const { filtered } = this;
    return filtered ? filtered.node.canCompress : this.ops.pwriteCompressed !== undefined;
  }

  /** Flags that a write may carry down to the driver. A filter without its own says what its child says. */
  get supportedWriteFlags(): number {
    return this.ops.supportedWriteFlags ?? 0;
  }

  get supportedZeroFlags(): number {
    return this.ops.supportedZeroFlags ?? 0;
  }

  /** @qemu bdrv_co_getlength */
  getLength(co: Coroutine<"read">): Promise<number> {
    return getLength(co, this);
  }

  /** @qemu bdrv_refresh_total_sectors */
  refreshTotalSectors(caller: Coroutine<"read"> | MainLoop, hint: number): Promise<void> {
    return refreshTotalSectors(caller, this, hint);
  }

  describe(): string {
    return `node '${this.nodeName}'`;
  }

  get requestsInFlight(): number {
    return this.tracker.inFlight;
  }

  /** Stops the sources of requests above this node; those under way go on to their end.  @qemu bdrv_do_drained_begin_quiesce */
  drainedBegin(): void {
    this.quiesceCounter++;
    if (this.quiesceCounter > 1) return;
    for (const edge of this.parents) edge.parent.drainedBegin();
    this.#ops?.drainedBegin?.();
  }

  drainedEnd(): void {
    assert(this.quiesceCounter > 0, "drainedEnd without drainedBegin");
    this.quiesceCounter--;
    if (this.quiesceCounter === 0) for (const edge of this.parents) edge.parent.drainedEnd();
  }
}
