/** The state of one run of `bdrv io`: the image that is open, requests under way, and whether it is to end. */

import type { BlockBackend } from "../../block/backend.ts";
import { Req } from "../../block/driver.ts";
import { BlockError } from "../../block/errors.ts";
import { drainedEnd, subtree } from "../../block/graph.ts";
import type { IoVector } from "../../block/iov.ts";
import type { OpenRequest } from "../../block/open.ts";
import type { CliContext } from "../command.ts";
import { AioQueue } from "./aio.ts";
import type { IoCommand } from "./command.ts";

/** @qemu qemuio_blk */
export interface OpenedImage {
  backend: BlockBackend;
  /** What opens it again; a temporary overlay can't be. */
  request: OpenRequest | undefined;
  /** Every write is stable when it ends. */
  writethrough: boolean;
  /** Something has asked to write, and has not been told since that it can't. */
  holdsWrite: boolean;
  /** `-C`: what is read from a backing file stays in the image. */
  readonly copyOnRead: boolean;
}

export class IoSession {
  readonly context: CliContext;
  readonly commands: readonly IoCommand[];
  /** Names of images are option strings (`--image-opts`). */
  readonly imageOpts: boolean;
  readonly aio: AioQueue;
  image: OpenedImage | undefined;
  /** `quit` was given. */
  ended = false;

  constructor(context: CliContext, commands: readonly IoCommand[], imageOpts: boolean) {
    const { stdout } = context;
    const notice = (line: string) => stdout.write(`${line}\n`);
    this.context = { ...context, environment: { ...context.environment, notice } };
    this.commands = commands;
    this.imageOpts = imageOpts;
    this.aio = new AioQueue(context.signal);
  }

  /** The image, for commands that are run only with one. */
  get opened(): OpenedImage {
    if (!this.image) throw new BlockError("ENOMEDIUM");
    return this.image;
  }

  get backend(): BlockBackend {
    return this.opened.backend;
  }

  /** A read request of a command. */
  async readInto(offset: number, iov: IoVector): Promise<void> {
    const { backend, copyOnRead: copies } = this.opened;
    const { signal } = this.context;
    await backend.readInto(offset, iov, { signal, flags: copies ? Req.CopyOnRead : 0 });
  }

  findCommand(name: string): IoCommand | undefined {
    return this.commands.find((command) => command.name === name || command.alias === name);
  }

  /** Waits for what is under way, and nothing holds it back meanwhile.  @qemu blk_drain_all */
  async drain(): Promise<void> {
    const nodes = this.image ? [...subtree(this.image.backend.node)] : [];
    for (const node of nodes) node.drainedBegin();
    try {
      await this.aio.drain();
    } finally {
      for (const node of nodes) drainedEnd(node);
    }
  }

  /** Waits for what is under way, and closes the image. */
  async close(): Promise<void> {
    const { image } = this;
    if (!image) return;
    // After a signal nobody waits for requests: they end by the same signal.
    if (!this.context.signal.aborted) await this.drain();
    this.image = undefined;
    try {
      await image.backend.close();
    } catch (error) {
      // qemu-io has nothing to say about an image that can't be flushed as it is closed.
      if (!(error instanceof BlockError)) throw error;
    }
  }
}
