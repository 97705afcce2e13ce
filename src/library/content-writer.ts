/** Writing guest content in order: whole clusters of zeroes become zero writes, the rest is written in large pieces. */

import type { BlockBackend } from "../block/backend.ts";
import { BlockError } from "../block/errors.ts";
import { alignDown, KiB, MiB } from "../block/units.ts";
import { findRuns, type SparseRule, sparseRule } from "../jobs/convert-zeroes.ts";
import { imageInfo } from "../jobs/info.ts";

export interface WriteOptions {
  /** Guest offset of the first byte. Default: 0. */
  readonly start?: number | undefined;
  /**
   * Data is stored compressed, in a format that can: over whole clusters, up to the image's end if not, that hold
   * nothing yet (EIO). Default: false.
   */
  readonly compressed?: boolean | undefined;
  /** All is on stable storage when the stream finishes. Default: false: closing the image sees to it. */
  readonly flush?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** The smallest window in which data is gathered. */
const WINDOW_BYTES = MiB;

/** The shortest run of zeroes that is worth a hole, in an image without clusters. */
const DEFAULT_UNIT_BYTES = 4 * KiB;

/** Takes chunks of any length, one at a time. Memory: one window of 1 MiB, or of a cluster if that is longer. */
export class ContentWriter {
  readonly #image: BlockBackend;
  readonly #options: WriteOptions;
  readonly #rule: SparseRule;
  readonly #windowBytes: number;
  /** Guest offset behind the image's last byte. */
  readonly #stop: number;
  /** Guest offset of the first byte that is not written yet. */
  #offset: number;
  /** The first `#gathered` bytes are still to be written, from `#offset` on; made when it is needed. */
  #window: Uint8Array | undefined;
  #gathered = 0;

  private constructor(image: BlockBackend, options: WriteOptions, unitBytes: number, stop: number) {
    this.#image = image;
    this.#options = options;
    this.#rule = sparseRule(unitBytes, 1);
    this.#windowBytes = Math.max(WINDOW_BYTES, unitBytes);
    this.#offset = options.start ?? 0;
    this.#stop = stop;
  }

  static async open(image: BlockBackend, options: WriteOptions): Promise<ContentWriter> {
    const { virtualBytes, clusterBytes = DEFAULT_UNIT_BYTES } = await imageInfo(image);
    const { start = 0 } = options;
    if (!Number.isSafeInteger(start) || start < 0 || start > virtualBytes)
      throw new RangeError(`The start ${start} is not within the image's ${virtualBytes} bytes`);
    return new ContentWriter(image, options, clusterBytes, virtualBytes);
  }

  /** When it resolves, nothing of `chunk` is held any more. ENOSPC: it goes past the end of the image. */
  async write(chunk: Uint8Array, signal: AbortSignal): Promise<void> {
    if (chunk.length > this.#stop - this.#offset - this.#gathered)
      throw new BlockError("ENOSPC", undefined, { offset: this.#stop });
    for (let taken = 0; taken < chunk.length; ) {
      const rest = chunk.length - taken;
      const room = this.#windowBytes - (this.#offset % this.#windowBytes) - this.#gathered;
      if (this.#gathered === 0 && rest >= room) {
        const whole = alignDown(this.#offset + rest, this.#windowBytes) - this.#offset;
        await this.#put(chunk.subarray(taken, taken + whole), signal);
        taken += whole;
        continue;
      }
      const piece = Math.min(rest, room);
      this.#window ??= new Uint8Array(this.#windowBytes);
      this.#window.set(chunk.subarray(taken, taken + piece), this.#gathered);
      this.#gathered += piece;
      taken += piece;
      if (piece === room) await this.#putGathered(signal);
    }
  }

  /** Writes what is left. */
  async finish(signal: AbortSignal): Promise<void> {
    await this.#putGathered(signal);
    const { compressed, flush } = this.#options;
    // An empty compressed write says that no more come.
    if (compressed) await this.#image.write(0, [], { compressed: true, signal });
    if (flush) await this.#image.flush(signal);
  }

  async #putGathered(signal: AbortSignal): Promise<void> {
    if (!this.#window || this.#gathered === 0) return;
    const data = this.#window.subarray(0, this.#gathered);
    this.#gathered = 0;
    await this.#put(data, signal);
  }

  async #put(data: Uint8Array, signal: AbortSignal): Promise<void> {
    const { compressed = false } = this.#options;
    for (const { start, end, zero } of findRuns(data, this.#offset, this.#rule)) {
      const offset = this.#offset + start;
      if (zero) await this.#image.writeZeroes(offset, end - start, { mayUnmap: true, signal });
      else await this.#image.write(offset, data.subarray(start, end), { compressed, signal });
    }
    this.#offset += data.length;
  }
}
