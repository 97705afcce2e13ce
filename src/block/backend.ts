/** What a user of the block layer holds: requests go in here, each becomes a coroutine.  @qemu block/block-backend.c */

import { abortable } from "./abort.ts";
import { type AioContext, type MainLoop, mainContext } from "./aio-context.ts";
import { blockStatusAbove, type ChainStatus } from "./block-status.ts";
import { breathe } from "./breathe.ts";
import { type BlockChild, type ChildParent, Perm, type PermPair } from "./child.ts";
import { Coroutine } from "./coroutine.ts";
import { type Prealloc, Req, type ReqFlags } from "./driver.ts";
import { assert, BlockError } from "./errors.ts";
import { attachRoot, detach, setEdgePerm } from "./graph.ts";
import { ImageBitmaps } from "./image-bitmaps.ts";
import { ImageSnapshots } from "./image-snapshots.ts";
import { type IoVector, iovLength } from "./iov.ts";
import type { BlockNode } from "./node.ts";
import { type OpenRequest, openNode } from "./open.ts";
import type { OpenFlags } from "./open-flags.ts";
import { type ReopenChanges, reopenSubtree } from "./reopen.ts";

/** How one request is to be made, beside its range. */
export interface RequestOptions {
  /** The write is on stable storage when it ends. */
  readonly fua?: boolean;
  /** The write is stored compressed: whole clusters, in a format that can. */
  readonly compressed?: boolean;
  /** A zero write may leave the range unallocated. */
  readonly mayUnmap?: boolean;
  /** A zero write fails with ENOTSUP rather than write the zeroes out. */
  readonly noFallback?: boolean;
  /** The same and more as a mask of `Req`. */
  readonly flags?: ReqFlags;
  readonly signal?: AbortSignal | undefined;
}

export interface BackendOptions {
  /** Every write is on stable storage before it ends (cache modes writethrough and directsync). */
  readonly writethrough?: boolean;
  /** Requests past the end are passed on, for a format driver that makes an image.  @qemu blk_set_allow_write_beyond_eof */
  readonly allowBeyondEof?: boolean;
  /** What is used and shared; by default reading, and writing where the node may be written, all shared. `truncate` takes more. */
  readonly perm?: PermPair;
}

export class BlockBackend implements ChildParent {
  readonly context: AioContext;
  readonly writethrough: boolean;
  /** What has been written to since when, for backups. */
  readonly bitmaps = new ImageBitmaps(this);
  readonly snapshots = new ImageSnapshots(this);
  readonly #allowBeyondEof: boolean;
  #root: BlockChild | undefined;
  #quiesced = 0;
  #inFlight = 0;

  private constructor(context: AioContext, options: BackendOptions) {
    this.context = context;
    this.writethrough = options.writethrough ?? false;
    this.#allowBeyondEof = options.allowBeyondEof ?? false;
  }

  /** Opens a node and puts a backend on it.  @qemu blk_new_open */
  static async open(
    request: OpenRequest,
    options: BackendOptions = {},
    context: AioContext = mainContext,
  ): Promise<BlockBackend> {
    return context.run(async (main) => {
      const node = await openNode(main, request);
      return BlockBackend.forNode(main, node, { perm: permFor(node, request.flags), ...options });
    });
  }

  /** Puts a backend on a node; takes over the caller's reference to it.  @qemu blk_new_with_bs */
  static async forNode(
    caller: Coroutine<"none"> | MainLoop,
    node: BlockNode,
    options: BackendOptions = {},
  ): Promise<BlockBackend> {
    const backend = new BlockBackend(caller.context, options);
    backend.#root = await attachRoot(caller, backend, node, options.perm ?? permFor(node));
    return backend;
  }

  /** The edge to the node; there is none after `close`. */
  get root(): BlockChild {
    if (!this.#root) throw new BlockError("ENOMEDIUM", "The backend is closed");
    return this.#root;
  }

  get node(): BlockNode {
    return this.root.node;
  }

  get isOpen(): boolean {
    return this.#root !== undefined;
  }

  describe(): string {
    return "a block device";
  }

  get requestsInFlight(): number {
    return this.#inFlight;
  }

  drainedBegin(): void {
    this.#quiesced++;
  }

  drainedEnd(): void {
    assert(this.#quiesced > 0, "drainedEnd without drainedBegin");
    this.#quiesced--;
  }

  /**
   * Runs `fn` as one coroutine that holds the graph read lock: for what the methods below don't offer. It must not
   * call a method of a backend, which would ask for the lock a second time.
   */
  async run<T>(
    fn: (co: Coroutine<"read">, root: BlockChild) => Promise<T>,
    signal?: AbortSignal,
  ): Promise<T> {
    signal?.throwIfAborted();
    while (this.#quiesced > 0) await abortable(this.context.nextKick(), signal);
    // A close waits for this request, so it keeps the edge that it began with.
    const { root } = this;
    this.#inFlight++;
    const lock = this.context.graph;
    try {
      if (!lock.tryEnter()) await lock.enter(signal);
      const co = new Coroutine("read", this.context, signal);
      try {
        return await fn(co, root);
      } finally {
        co.live = false;
        lock.leave();
        // Not before the request: those that are made in an order reach the driver in that order.
        if (++requests % REQUESTS_PER_LOOK === 0) await breathe();
      }
    } finally {
      this.#inFlight--;
      if (this.#quiesced > 0) this.context.kick();
    }
  }

  /** Bytes of guest content, a multiple of 512.  @qemu blk_getlength */
  getLength(): Promise<number> {
    return this.run((co, root) => root.node.getLength(co));
  }

  /** Undefined: it is in range, with no need to wait.  @qemu blk_check_byte_request */
  #checkRange(
    co: Coroutine<"read">,
    { node }: BlockChild,
    offset: number,
    bytes: number,
  ): Promise<void> | undefined {
    if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(bytes) || offset < 0 || bytes < 0)
      throw new BlockError("EIO", undefined, { offset });
    if (this.#allowBeyondEof) return undefined;
    const known = node.knownBytes;
    if (known === undefined) return node.getLength(co).then((length) => checkEnd(length, offset, bytes));
    checkEnd(known, offset, bytes);
    return undefined;
  }

  /** A new buffer with `bytes` bytes from `offset`. */
  async read(offset: number, bytes: number, options: RequestOptions = {}): Promise<Uint8Array> {
    const buffer = new Uint8Array(bytes);
    await this.readInto(offset, buffer, options);
    return buffer;
  }

  /** Fills `iov` from `offset`.  @qemu blk_co_preadv */
  readInto(offset: number, iov: IoVector, options: RequestOptions = {}): Promise<void> {
    return this.run(async (co, root) => {
      const asked = this.#checkRange(co, root, offset, iovLength(iov));
      if (asked) await asked;
      await root.pread(co, offset, iov, options.flags ?? 0);
    }, options.signal);
  }

  /** @qemu blk_co_pwritev */
  write(offset: number, iov: IoVector, options: RequestOptions = {}): Promise<void> {
    return this.run(async (co, root) => {
      const asked = this.#checkRange(co, root, offset, iovLength(iov));
      if (asked) await asked;
      await root.pwrite(co, offset, iov, this.#writeFlags(options));
    }, options.signal);
  }

  /** @qemu blk_co_pwrite_zeroes */
  writeZeroes(offset: number, bytes: number, options: RequestOptions = {}): Promise<void> {
    return this.run(async (co, root) => {
      const asked = this.#checkRange(co, root, offset, bytes);
      if (asked) await asked;
      await root.pwriteZeroes(co, offset, bytes, this.#writeFlags(options));
    }, options.signal);
  }

  #writeFlags(options: RequestOptions): ReqFlags {
    let flags = options.flags ?? 0;
    if (options.fua || this.writethrough) flags |= Req.Fua;
    if (options.compressed) flags |= Req.WriteCompressed;
    if (options.mayUnmap) flags |= Req.MayUnmap;
    if (options.noFallback) flags |= Req.NoFallback;
    return flags;
  }

  /** Tells that the content of a range is no longer needed; what it reads as afterwards is open.  @qemu blk_co_pdiscard */
  discard(offset: number, bytes: number, options: RequestOptions = {}): Promise<void> {
    return this.run(async (co, root) => {
      const asked = this.#checkRange(co, root, offset, bytes);
      if (asked) await asked;
      await root.pdiscard(co, offset, bytes);
    }, options.signal);
  }

  /** Makes all writes that have ended stable.  @qemu blk_co_flush */
  flush(signal?: AbortSignal): Promise<void> {
    return this.run((co, root) => root.flush(co), signal);
  }

  /** Changes the length to `bytes`.  @qemu blk_co_truncate */
  async truncate(
    bytes: number,
    prealloc: Prealloc = "off",
    exact = false,
    signal?: AbortSignal,
  ): Promise<void> {
    signal?.throwIfAborted();
    await this.#takeResize();
    await this.run((co, root) => root.truncate(co, bytes, exact, prealloc), signal);
  }

  async #takeResize(): Promise<void> {
    const { used, shared } = this.root.perm;
    if (used & Perm.Resize || this.node.readOnly) return;
    await this.context.run((main) => setEdgePerm(main, this.root, { used: used | Perm.Resize, shared }));
  }

  /** What holds from `offset` on, through the backing chain; zeroes of lower layers are looked for. */
  blockStatus(offset: number, bytes: number, signal?: AbortSignal): Promise<ChainStatus> {
    return this.run((co, root) => blockStatusAbove(co, root.node, undefined, true, offset, bytes), signal);
  }

  /** Changes how the image is open, its requests waiting meanwhile. An error leaves all as it was.  @qemu bdrv_reopen */
  async reopen(changes: ReopenChanges): Promise<void> {
    await this.context.run((main) => {
      const { used, shared } = this.root.perm;
      return reopenSubtree(main, this.root, changes, (readOnly) => ({
        used: readOnly ? used & ~(Perm.Write | Perm.Resize) : used | Perm.Write,
        shared,
      }));
    });
  }

  /** Waits for requests under way, flushes, and closes what nobody else uses. A second call does nothing.  @qemu blk_unref */
  async close(): Promise<void> {
    const root = this.#root;
    if (!root) return;
    await this.context.run(async (main) => {
      if (this.#root !== root) return;
      this.#root = undefined;
      await detach(main, root);
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** @qemu blk_new_open */
function permFor(node: BlockNode, { noShare, resize }: Partial<OpenFlags> = {}): PermPair {
  const read = node.flags.noIo ? 0 : Perm.ConsistentRead;
  const write = node.readOnly ? 0 : Perm.Write | (resize ? Perm.Resize : 0);
  return { used: read | write, shared: noShare ? Perm.ConsistentRead | Perm.WriteUnchanged : Perm.All };
}

function checkEnd(length: number, offset: number, bytes: number): void {
  if (offset > length || length - offset < bytes) throw new BlockError("EIO", undefined, { offset });
}

/** A loop of cached requests would keep timers and signals from ever running: now and then one of them lets them in. */
const REQUESTS_PER_LOOK = 64;

let requests = 0;
