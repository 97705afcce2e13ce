/**
 * Copies the guest content of open backends into another: by extents, zeroes kept, reads and writes overlapping
 * within bounds, writes issued in guest order.  @qemu qemu-img.c: convert_do_copy
 */

import { setImmediate as nextTurn } from "node:timers/promises";
import type { BlockBackend } from "../block/backend.ts";
import { breathe } from "../block/breathe.ts";
import { BlockError, strerror, toBlockError } from "../block/errors.ts";
import type { BlockNode } from "../block/node.ts";
import { alignDown, alignUp, KiB, MiB, SECTOR_SIZE } from "../block/units.ts";
import { skipFilters } from "./chain.ts";
import { CopyPlan, type Piece, type PlanOptions, QEMU_PIECE_BYTES, SourceList } from "./convert-plan.ts";
import { Limiter, Throttle, Turnstile } from "./convert-queue.ts";
import { findRuns, joinSmallHoles, type Run, type SparseRule, sparseRule } from "./convert-zeroes.ts";

/** How an image is copied. */
export interface CopyOptions {
  /** Runs of zeroes of so many bytes within data become holes: 0 to 16 MiB, a multiple of 512; 4 KiB unless told. 0: everything is written. */
  readonly sparseBytes?: number | undefined;
  /** Clusters are written compressed. */
  readonly compress?: boolean | undefined;
  /**
   * The target reads as zeroes where nothing is written; with `keepBacking`, that is behind the end of its backing
   * file. Unless told, nothing is taken for granted.
   */
  readonly targetIsZero?: boolean | undefined;
  /** Where the system can, it copies data from file to file; what is zeroes in it is then not looked for.  @qemu -C */
  readonly copyRange?: boolean | undefined;
  /** What the source leaves to its backing file is left to the target's, which must read the same.  @qemu -B */
  readonly keepBacking?: boolean | undefined;
  /** Pieces of up to 4 MiB that are under way at once (compressing: clusters); 1 to 16. Default: 4. */
  readonly parallel?: number | undefined;
  /** Writes need not be issued in guest order. */
  readonly outOfOrder?: boolean | undefined;
  /** Bytes written a second, at most. */
  readonly bytesPerSecond?: number | undefined;
  /** What can't be read is zeroes in the target, with a warning for each sector. */
  readonly salvage?: boolean | undefined;
  readonly onWarning?: ((message: string) => void) | undefined;
  /** Called with bytes done of the bytes that must be read or written; costs a look at all block status first. */
  readonly onProgress?: ((doneBytes: number, totalBytes: number) => void) | undefined;
  /** `onProgress` is called only while this says yes, and that look is taken when it does so for the first time. */
  readonly wantsProgress?: (() => boolean) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Largest value of `sparseBytes`.  @qemu MAX_BUF_SECTORS */
export const MAX_SPARSE_BYTES = 16 * MiB;
export const MAX_PARALLEL = 16;

const DEFAULT_SPARSE_BYTES = 4 * KiB;
/** Four keep two cores busy; more only wait for each other (PERFORMANCE.md). */
const DEFAULT_PARALLEL = 4;
/**
 * A piece that is only copied: each costs 0.3 ms of turns through the thread pool, so that 4 MiB take 20 % less
 * processor time than 1 MiB. Where many are under way, memory counts for more.
 */
const COPY_PIECE_BYTES = 4 * MiB;
const COPY_PIECE_BYTES_OF_MANY = 2 * MiB;
/**
 * A longer write goes over several parts of a target's tables, and is not allocated at one go: the next one would
 * have to wait for it, to keep the order.
 */
const CLUSTERS_AT_ONCE = 256;
/** A piece that is compressed: that is what takes its time. */
const COMPRESS_PIECE_BYTES = MiB;

/**
 * Makes `target` read as `sources` read, one behind the other. The target must be at least as long as all of them;
 * what it has behind their end stays. Ends when all writes have ended; the caller flushes or closes the target.
 * A BlockError names the guest offset in qemu-img's words; an abort throws the signal's reason.
 */
export async function copyImages(
  sources: readonly BlockBackend[],
  target: BlockBackend,
  options: CopyOptions = {},
): Promise<void> {
  const source = await SourceList.of(sources);
  const targetBytes = await target.getLength();
  if (targetBytes < source.length) throw new BlockError("EINVAL", "output file is smaller than input file");
  if (options.compress && !target.node.canCompress)
    throw new BlockError("ENOTSUP", "Compression not supported for this file format");
  await new Copier(source, target, await rulesFor(target, options), options).run();
}

/** Whether a node that has just been created reads as zeroes, its backing file aside.  @qemu bdrv_has_zero_init */
export function hasZeroInit(node: BlockNode): boolean {
  if (node.ops.hasZeroInit) return node.ops.hasZeroInit();
  return node.filtered ? hasZeroInit(node.filtered.node) : false;
}

/** What follows from the options and the target. */
interface Rules {
  readonly alignmentBytes: number;
  readonly pieceBytes: number;
  readonly sparse: SparseRule;
  readonly cutsLikeQemu: boolean;
  /** The target's cluster; 0: it has none. */
  readonly clusterBytes: number;
  /** What the target allocates at least: a cluster or subcluster. */
  readonly allocationBytes: number;
  readonly backingEnd: number;
  readonly parallel: number;
}

async function rulesFor(target: BlockBackend, options: CopyOptions): Promise<Rules> {
  const { compress = false, sparseBytes = DEFAULT_SPARSE_BYTES } = options;
  const { info, backingBytes } = await target.run(async (co) => {
    const node = skipFilters(target.node);
    return { info: await node.ops.getInfo?.(co), backingBytes: await node.cow?.node.getLength(co) };
  });
  const clusterBytes = info?.clusterSize ?? 0;
  if (compress && clusterBytes === 0)
    throw new BlockError("EINVAL", info ? "invalid cluster size" : "could not get block driver info");
  // A filter that compresses tells its cluster as its alignment.
  const alignmentBytes = Math.max(target.node.limits.requestAlignment, compress ? clusterBytes : 1);
  const parallel = Math.min(options.parallel ?? DEFAULT_PARALLEL, MAX_PARALLEL);
  const copyPiece = parallel > 8 ? COPY_PIECE_BYTES_OF_MANY : COPY_PIECE_BYTES;
  const tableBytes = clusterBytes > 0 ? clusterBytes * CLUSTERS_AT_ONCE : Number.POSITIVE_INFINITY;
  const basicPiece = compress ? COMPRESS_PIECE_BYTES : Math.min(copyPiece, Math.max(tableBytes, MiB));
  return {
    alignmentBytes,
    pieceBytes: Math.max(basicPiece, info?.placesTablesByWrite ? QEMU_PIECE_BYTES : 0, alignmentBytes),
    // A cluster is compressed as a whole, so smaller zeroes gain nothing, and larger ones are not waited for.
    sparse: sparseRule(Math.min(sparseBytes, compress ? alignmentBytes : QEMU_PIECE_BYTES), alignmentBytes),
    cutsLikeQemu: (info?.placesTablesByWrite ?? false) && !compress && !options.outOfOrder,
    clusterBytes,
    allocationBytes: info?.subclusterSize || clusterBytes,
    // Where that end counts for nothing, it is never reached.
    backingEnd: (options.targetIsZero && backingBytes) || Number.POSITIVE_INFINITY,
    parallel,
  };
}

/** One copy under way. */
class Copier {
  readonly #source: SourceList;
  readonly #target: BlockBackend;
  readonly #rules: Rules;
  readonly #options: CopyOptions;
  readonly #plan: CopyPlan;
  readonly #turns = new Turnstile();
  readonly #writes: Limiter;
  readonly #throttle: Throttle | undefined;
  /** The end of the queue of those who want the plan's next piece. */
  #planned: Promise<unknown> = Promise.resolve();
  /** Guest offset behind the clusters that have been written so far. */
  #clustersEnd = 0;
  #offloads: boolean;
  #failed = false;
  #failure: unknown;
  /** Pieces that have ended before one ahead of them has, and the index of that one. */
  readonly #ended = new Map<number, Piece>();
  #told = 0;
  #doneBytes = 0;
  /** Undefined: nobody has asked yet. */
  #totalBytes: number | undefined;
  #totalFound: Promise<void> | undefined;

  constructor(source: SourceList, target: BlockBackend, rules: Rules, options: CopyOptions) {
    this.#source = source;
    this.#target = target;
    this.#rules = rules;
    this.#options = options;
    const { compress = false, copyRange = false, outOfOrder = false, bytesPerSecond } = options;
    this.#offloads = copyRange;
    this.#plan = new CopyPlan(source, this.#planOptions());
    const isPiecemeal = rules.clusterBytes > 0 && rules.clusterBytes * CLUSTERS_AT_ONCE < rules.pieceBytes;
    this.#writes = new Limiter(isPiecemeal && !compress && !outOfOrder ? 1 : rules.parallel);
    if (bytesPerSecond) this.#throttle = new Throttle(bytesPerSecond);
  }

  #planOptions(): PlanOptions {
    const { alignmentBytes, pieceBytes, cutsLikeQemu, backingEnd } = this.#rules;
    const { sparseBytes, targetIsZero = false, keepBacking = false, salvage = false } = this.#options;
    return {
      alignmentBytes,
      pieceBytes,
      cutsLikeQemu,
      zeroIsData: sparseBytes === 0,
      skipZeroes: targetIsZero && !keepBacking,
      keepBacking,
      backingEnd,
      salvage,
      warn: (message) => this.#options.onWarning?.(message),
      signal: this.#options.signal,
    };
  }

  async run(): Promise<void> {
    const { onProgress, wantsProgress, salvage } = this.#options;
    // A salvage warns of what it finds before and again while it copies, as qemu-img does.
    if (salvage || (onProgress && (wantsProgress?.() ?? true))) this.#totalBytes = await this.#plan.total();
    const { parallel } = this.#rules;
    await Promise.all(Array.from({ length: parallel }, (_, lane) => this.#work(lane > 0)));
    await this.#totalFound;
    if (this.#failed) throw this.#failure;
  }

  /**
   * Takes piece after piece until there are none, or somebody has failed. Never rejects. `helps`: only while others
   * wait for the disk or for the pool, which is when the event loop turns: where all is in the page cache, one buffer
   * that stays in the processor's cache does it in 15 % less time than four.
   */
  async #work(helps: boolean): Promise<void> {
    let buffer: Uint8Array | undefined;
    try {
      for (;;) {
        if (helps) await nextTurn();
        const piece = await this.#take();
        if (!piece || this.#failed) break;
        const read = async () => {
          buffer ??= Buffer.allocUnsafeSlow(Math.min(this.#rules.pieceBytes, this.#source.length));
          const data = buffer.subarray(0, piece.bytes);
          await this.#read(piece, data);
          return data;
        };
        await this.#write(piece, read);
        this.#progress(piece);
      }
    } catch (error) {
      if (!this.#failed) this.#failure = error;
      this.#failed = true;
      this.#turns.open();
    }
  }

  #take(): Promise<Piece | undefined> {
    const taken = this.#planned.then(() => this.#plan.next());
    // Whoever is behind must not fail for an error that is not its own: it sees that somebody has failed.
    this.#planned = taken.catch(() => {});
    return taken;
  }

  /** Told in guest order, whoever ends first. */
  #progress(piece: Piece): void {
    this.#ended.set(piece.index, piece);
    for (let next = this.#ended.get(this.#told); next; next = this.#ended.get(this.#told)) {
      this.#ended.delete(this.#told++);
      this.#tellProgress(next);
    }
  }

  /** In the steps in which qemu-img goes, so that it shows the same figures. */
  #tellProgress(piece: Piece): void {
    const { onProgress, compress = false } = this.#options;
    if (!onProgress) return;
    const step = compress ? this.#rules.alignmentBytes : QEMU_PIECE_BYTES;
    const stop = piece.offset + piece.bytes;
    let at = piece.offset;
    let start = piece.reportOffset;
    for (const end of [...piece.extentEnds, Number.POSITIVE_INFINITY]) {
      while (at < Math.min(end, stop)) {
        const stepEnd = Math.min(at - ((at - start) % step) + step, end);
        const next = Math.min(stepEnd, stop);
        this.#doneBytes += next - at;
        if (next === stepEnd) this.#report(onProgress);
        at = next;
      }
      start = end;
    }
  }

  #report(onProgress: NonNullable<CopyOptions["onProgress"]>): void {
    if (this.#options.wantsProgress?.() === false) return;
    if (this.#totalBytes !== undefined) onProgress(this.#doneBytes, this.#totalBytes);
    else
      this.#totalFound ??= this.#plan.total().then(
        (bytes) => {
          this.#totalBytes = bytes;
        },
        // The copying meets it too, and says where.
        () => {},
      );
  }

  async #read(piece: Piece, data: Uint8Array): Promise<void> {
    const { signal, salvage } = this.#options;
    try {
      await this.#source.readInto(piece.offset, data, signal);
    } catch (error) {
      toBlockError(error);
      if (!salvage) throw atByte("reading", await this.#firstUnreadable(piece, data), error);
      await this.#salvage(piece.offset, data);
    }
  }

  /** The offset that an error names: that of the first of qemu-img's own pieces that can't be read. */
  async #firstUnreadable(piece: Piece, data: Uint8Array): Promise<number> {
    const { compress = false, signal } = this.#options;
    const step = compress ? this.#rules.alignmentBytes : QEMU_PIECE_BYTES;
    const stop = piece.offset + data.length;
    for (let start = compress ? piece.offset : piece.reportOffset; start < stop; start += step) {
      const from = Math.max(start, piece.offset) - piece.offset;
      const part = data.subarray(from, start + step - piece.offset);
      try {
        await this.#source.readInto(piece.offset + from, part, signal);
      } catch {
        return start;
      }
    }
    return piece.reportOffset;
  }

  /** Reads halves of what can't be read at once, down to single sectors; those that can't be read are zeroes. */
  async #salvage(offset: number, data: Uint8Array): Promise<void> {
    const { signal, onWarning } = this.#options;
    await breathe(signal);
    if (data.length > SECTOR_SIZE) {
      const middle = Math.max(alignDown(data.length / 2, SECTOR_SIZE), SECTOR_SIZE);
      for (const [from, to] of [
        [0, middle],
        [middle, data.length],
      ] as const) {
        const half = data.subarray(from, to);
        try {
          await this.#source.readInto(offset + from, half, signal);
        } catch (error) {
          toBlockError(error);
          await this.#salvage(offset + from, half);
        }
      }
      return;
    }
    try {
      await this.#source.readInto(offset, data, signal);
    } catch (error) {
      onWarning?.(`error while reading offset ${offset}: ${strerror(toBlockError(error).errno)}`);
      data.fill(0);
    }
  }

  /** Issues the writes of a piece when those of all pieces before it have been issued, and waits for their end. */
  async #write(piece: Piece, read: () => Promise<Uint8Array>): Promise<void> {
    const { outOfOrder = false } = this.#options;
    const isData = piece.kind === "data";
    let data = isData && !this.#offloads ? await read() : undefined;
    if (!outOfOrder) await this.#turns.enter(piece.index);
    const ends: Promise<void>[] = [];
    try {
      if (isData && !data && !(await this.#offload(piece, ends))) data = await read();
      if (data) {
        const runs = findRuns(data, piece.offset, this.#rules.sparse);
        for (const run of joinSmallHoles(runs, piece.offset, this.#rules.allocationBytes))
          await this.#issueRun(piece, data, run, ends);
      } else if (!isData) await this.#issueZeroes(piece.offset, piece.bytes, piece.reportOffset, ends);
      if (!outOfOrder) this.#turns.leave(piece.index);
    } finally {
      await settle(ends);
    }
  }

  /** Lets the system copy. False: it can't, here and from now on. */
  async #offload(piece: Piece, ends: Promise<void>[]): Promise<boolean> {
    if (!this.#offloads) return false;
    const { signal, targetIsZero = false } = this.#options;
    try {
      let at = piece.offset;
      for (const range of await this.#source.hostRanges(piece.offset, piece.bytes, signal)) {
        const { bytes } = range;
        const offset = at;
        if (range.fd !== undefined) {
          await this.#throttle?.pass(bytes, signal);
          await this.#target.run((co, root) => root.copyFrom(co, offset, range), signal);
        } else if (!targetIsZero) await this.#issueZeroes(offset, bytes, piece.reportOffset, ends);
        at += bytes;
      }
      return true;
    } catch (error) {
      toBlockError(error);
      this.#offloads = false;
      return false;
    }
  }

  async #issueRun(piece: Piece, data: Uint8Array, run: Run, ends: Promise<void>[]): Promise<void> {
    const { start, end, zero } = run;
    const { compress = false, targetIsZero = false, keepBacking = false } = this.#options;
    const offset = piece.offset + start;
    if (zero) {
      if (!targetIsZero || keepBacking)
        await this.#issueZeroes(offset, end - start, piece.reportOffset, ends);
      return;
    }
    await this.#keepClustersInOrder(offset, piece.offset + end);
    const reportOffset = compress ? offset : offset - ((offset - piece.reportOffset) % QEMU_PIECE_BYTES);
    const write = (at: number, part: Uint8Array) =>
      this.#issue(part.length, compress ? at : reportOffset, ends, () =>
        this.#target.write(at, part, { compressed: compress, signal: this.#options.signal }),
      );
    // What is no whole cluster is taken at the image's end alone: the others are not to fail with it.
    const tailBytes = compress ? (end - start) % this.#rules.alignmentBytes : 0;
    const whole = data.subarray(start, end - tailBytes);
    if (whole.length > 0) await write(offset, whole);
    if (tailBytes > 0) await write(offset + whole.length, data.subarray(end - tailBytes, end));
  }

  /**
   * What clusters a target allocates follows from the order in which writes are issued, unless two of them meet in
   * one cluster: then the second waits, and is overtaken.
   */
  async #keepClustersInOrder(start: number, end: number): Promise<void> {
    const { clusterBytes } = this.#rules;
    if (clusterBytes === 0 || this.#options.outOfOrder) return;
    if (alignDown(start, clusterBytes) < this.#clustersEnd) await this.#writes.idle();
    this.#clustersEnd = alignUp(end, clusterBytes);
  }

  async #issueZeroes(
    offset: number,
    bytes: number,
    reportOffset: number,
    ends: Promise<void>[],
  ): Promise<void> {
    const { outOfOrder = false, signal } = this.#options;
    // The tables that it makes must not change places with those of writes that are under way.
    const alone = this.#rules.clusterBytes > 0 && !outOfOrder;
    if (alone) await this.#writes.idle();
    await this.#issue(bytes, reportOffset, ends, () =>
      this.#target.writeZeroes(offset, bytes, { mayUnmap: true, signal }),
    );
    if (alone) await this.#writes.idle();
  }

  /** Starts a write when there is room for it. */
  async #issue(
    bytes: number,
    reportOffset: number,
    ends: Promise<void>[],
    write: () => Promise<void>,
  ): Promise<void> {
    if (this.#throttle) await this.#throttle.pass(bytes, this.#options.signal);
    await this.#writes.acquire();
    if (this.#failed) return this.#writes.release();
    const end = write()
      .catch((error: unknown) => {
        const failed = this.#options.compress ? clusterOf(error) : undefined;
        throw atByte("writing", failed ?? reportOffset, error);
      })
      .finally(() => this.#writes.release());
    // It is awaited with all others; until then its failure must not count as unhandled.
    end.catch(() => {});
    ends.push(end);
  }
}

/** All writes must have ended before their buffer is used again, or the target is closed. */
async function settle(ends: readonly Promise<void>[]): Promise<void> {
  const failed = (await Promise.allSettled(ends)).find((end) => end.status === "rejected");
  if (failed) throw failed.reason;
}

/** The guest offset of the cluster that could not be compressed and written, if the driver tells. */
function clusterOf(error: unknown): number | undefined {
  return error instanceof BlockError ? error.offset : undefined;
}

/** An abort's reason stays what it is.  @qemu "error while writing at byte %lld: %s" */
function atByte(doing: "reading" | "writing", offset: number, cause: unknown): BlockError {
  const { errno } = toBlockError(cause);
  const message = `error while ${doing} at byte ${offset}: ${strerror(errno)}`;
  return new BlockError(errno, message, { cause, offset });
}
