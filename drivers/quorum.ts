/** Several copies of one content: writes go to all, reads are decided by a vote.  @qemu block/quorum.c */

import { blockStatusAbove } from "../src/block/block-status.ts";
import { type BlockChild, Perm } from "../src/block/child.ts";
import type { Coroutine } from "../src/block/coroutine.ts";
import { type FilterDriver, Req } from "../src/block/driver.ts";
import { BlockError } from "../src/block/errors.ts";
import { type IoVector, iovLength, iovWrite } from "../src/block/iov.ts";
import type { OpenEnvironment, OpeningNode } from "../src/block/open.ts";

const options = {
  /** Two copies that must never differ: where they do, the process ends. */
  blkverify: { type: "bool", strong: true },
  /** Copies that must agree. */
  "vote-threshold": { type: "number", strong: true },
  /** Copies that were outvoted get the content of the others. */
  "rewrite-corrupted": { type: "bool", strong: true },
  /** fifo: the first copy that can be read is believed. */
  "read-pattern": {
    type: "string",
    values: ["quorum", "fifo"],
    refusal: "Please set read-pattern as fifo or quorum",
    strong: true,
  },
} as const;

export const quorum: FilterDriver<typeof options> = {
  formatName: "quorum",
  // With no filtered child it forwards nothing: what is not defined here is not done.
  kind: "filter",
  options,

  async open(co, handle) {
    const { options: given, environment } = handle;
    const count = countCopies(handle.optionKeys());
    if (count === undefined) throw new BlockError("EINVAL", "Option children is not a valid array");
    if (count < 1) throw new BlockError("EINVAL", "Number of provided children must be 1 or more");
    const threshold = given["vote-threshold"] ?? 0;
    checkOptions(given, count, threshold);
    const rewrites = given["rewrite-corrupted"] ?? false;
    const children: BlockChild[] = [];
    for (let index = 0; index < count; index++)
      children.push(await openCopy(co, handle, `children.${index}`, rewrites));
    const isFifo = given["read-pattern"] === "fifo";
    const verify = given.blkverify ?? false;

    /** Done on all copies; enough of them must succeed. */
    const onAll = async (request: (child: BlockChild) => Promise<void>): Promise<void> => {
      const errors = (await settle(children, request)).filter((error) => error !== undefined);
      if (count - errors.length < threshold) throw electError(errors);
    };

    return {
      supportedWriteFlags: Req.WriteUnchanged,
      supportedZeroFlags: children.reduce(
        (flags, { node }) => flags & node.supportedZeroFlags,
        Req.Fua | Req.MayUnmap | Req.NoFallback,
      ),
      async getLength(co) {
        const [length = 0, ...others] = await Promise.all(children.map((child) => child.getLength(co)));
        if (others.some((other) => other !== length)) throw new BlockError("EIO");
        return length;
      },
      async pread(co, offset, iov, flags) {
        if (isFifo) return readFirst(co, children, offset, iov, flags);
        const ballot = new Ballot(children, offset, iovLength(iov));
        await ballot.read(co, threshold, flags);
        if (verify) ballot.verify(environment);
        iovWrite(iov, ballot.elect(threshold));
        if (rewrites) await ballot.rewrite(co);
      },
      pwrite: (co, offset, iov, flags) => onAll((child) => child.pwrite(co, offset, iov, flags)),
      pwriteZeroes: (co, offset, bytes, flags) =>
        onAll((child) => child.pwriteZeroes(co, offset, bytes, flags)),
      flush: (co) => onAll((child) => child.flush(co)),
      async blockStatus(co, wantZero, offset, bytes) {
        let data = 0;
        let zero = bytes;
        for (const { node } of children) {
          const status = await blockStatusAbove(co, node, undefined, wantZero, offset, bytes);
          if (status.zero && !status.data) zero = Math.min(zero, status.bytes);
          else data = Math.max(data, status.bytes);
        }
        if (data > 0) return { bytes: data, data: true, zero: false, allocated: true };
        return { bytes: zero, data: false, zero: true, allocated: true };
      },
    };
  },
};

/** How many of "children.0", "children.1.driver", ... there are; undefined: not counted from 0 without a gap.  @qemu qdict_array_entries */
function countCopies(keys: readonly string[]): number | undefined {
  const named = keys.filter((key) => key.startsWith("children."));
  const indices = new Set(named.map((key) => /^children\.([0-9]+)(\.|$)/.exec(key)?.[1]));
  for (let index = 0; index < indices.size; index++) if (!indices.has(String(index))) return undefined;
  return indices.size;
}

type Given = OpeningNode<typeof options>["options"];

function checkOptions(given: Given, count: number, threshold: number): void {
  const fail = (message: string): never => {
    throw new BlockError("EINVAL", message);
  };
  if (threshold < 1) fail("Parameter 'vote-threshold' expects a value >= 1");
  if (threshold > count) fail("threshold may not exceed children count");
  // Whoever reads only one copy compares nothing.
  if (given["read-pattern"] === "fifo") return;
  if (given.blkverify && (count !== 2 || threshold !== 2))
    fail("blkverify=on can only be set if there are exactly two files and vote-threshold is 2");
  if (given.blkverify && given["rewrite-corrupted"])
    fail("rewrite-corrupted=on cannot be used with blkverify=on");
}

async function openCopy(
  co: Coroutine<"none">,
  { openChild }: OpeningNode<typeof options>,
  key: string,
  rewrites: boolean,
): Promise<BlockChild> {
  const extra = rewrites ? Perm.WriteUnchanged : 0;
  const child = await openChild(co, key, {
    data: true,
    // Who writes to one copy alone makes the copies differ.
    perm: (_, { used, shared }) => ({ used: used | extra, shared: shared & ~(Perm.Write | Perm.Resize) }),
  });
  return child as BlockChild;
}

/** Runs a request on every copy: the error of each that failed, by its index. */
function settle(
  children: readonly BlockChild[],
  request: (child: BlockChild, index: number) => Promise<void>,
): Promise<readonly (BlockError | undefined)[]> {
  return Promise.all(
    children.map(async (child, index) => {
      try {
        await request(child, index);
        return undefined;
      } catch (error) {
        if (error instanceof BlockError) return error;
        throw error;
      }
    }),
  );
}

/** The error that most copies gave; of those that are as frequent, the latest to come up.  @qemu quorum_get_vote_winner */
function electError(errors: readonly BlockError[]): BlockError {
  let winner = errors[0] as BlockError;
  let most = 0;
  const kinds = new Set(errors.map(({ errno }) => errno));
  for (const errno of kinds) {
    const votes = errors.filter((error) => error.errno === errno);
    if (votes.length < most) continue;
    most = votes.length;
    winner = votes[0] as BlockError;
  }
  return winner;
}

async function readFirst(
  co: Coroutine<"read">,
  children: readonly BlockChild[],
  offset: number,
  iov: IoVector,
  flags: number,
): Promise<void> {
  let last: unknown;
  for (const child of children) {
    try {
      return await child.pread(co, offset, iov, flags);
    } catch (error) {
      last = error;
    }
  }
  throw last;
}

/** One read of all copies, and what they make of it. */
class Ballot {
  readonly #children: readonly BlockChild[];
  readonly #offset: number;
  readonly #buffers: readonly Uint8Array[];
  #errors: readonly (BlockError | undefined)[] = [];
  #winner: Uint8Array | undefined;

  constructor(children: readonly BlockChild[], offset: number, bytes: number) {
    this.#children = children;
    this.#offset = offset;
    this.#buffers = children.map(() => new Uint8Array(bytes));
  }

  async read(co: Coroutine<"read">, threshold: number, flags: number): Promise<void> {
    this.#errors = await settle(this.#children, (child, index) =>
      child.pread(co, this.#offset, this.#buffers[index] as Uint8Array, flags),
    );
    const failed = this.#errors.filter((error) => error !== undefined);
    if (this.#children.length - failed.length < threshold) throw electError(failed);
  }

  /** Ends the process if the two copies differ. */
  verify({ fatal }: OpenEnvironment): void {
    const [first, second] = this.#buffers as [Uint8Array, Uint8Array];
    if (Buffer.compare(first, second) === 0) return;
    const at = first.findIndex((byte, index) => byte !== second[index]);
    const line =
      `quorum: offset=${this.#offset} bytes=${first.length} ` +
      `contents mismatch at offset ${this.#offset + at}`;
    fatal?.(line);
    throw new BlockError("EIO", line, { offset: this.#offset });
  }

  /** The content that most copies have, if those are enough. */
  elect(threshold: number): Uint8Array {
    const versions: { readonly content: Uint8Array; votes: number }[] = [];
    for (const [index, content] of this.#buffers.entries()) {
      if (this.#errors[index]) continue;
      const known = versions.find((version) => Buffer.compare(version.content, content) === 0);
      if (known) known.votes++;
      else versions.unshift({ content, votes: 1 });
    }
    const most = Math.max(...versions.map(({ votes }) => votes));
    const winner = versions.find(({ votes }) => votes === most);
    if (!winner || winner.votes < threshold) throw new BlockError("EIO");
    this.#winner = winner.content;
    return winner.content;
  }

  /** Gives the copies that had another content that of the winner. A failure shows at the next read. */
  async rewrite(co: Coroutine<"read">): Promise<void> {
    const winner = this.#winner as Uint8Array;
    await settle(this.#children, async (child, index) => {
      const isGood = !this.#errors[index] && Buffer.compare(this.#buffers[index] as Uint8Array, winner) === 0;
      if (!isGood && !this.#errors[index]) await child.pwrite(co, this.#offset, winner, Req.WriteUnchanged);
    });
  }
}
