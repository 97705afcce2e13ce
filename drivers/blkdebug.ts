/** Fails, delays and reshapes the requests to its child as rules say, to test what stands on it.  @qemu block/blkdebug.c */

import fs from "node:fs";
import { setImmediate as nextTurn } from "node:timers/promises";
import { abortable } from "../src/block/abort.ts";
import { type BlockChild, type ChildRole, Perm } from "../src/block/child.ts";
import type { Coroutine } from "../src/block/coroutine.ts";
import {
  type BlockLimits,
  type DebugOps,
  type FilterDriver,
  type NodeOps,
  Req,
} from "../src/block/driver.ts";
import { BlockError, errnoFromNumber, errnoNumber, toBlockError } from "../src/block/errors.ts";
import { iovLength } from "../src/block/iov.ts";
import type { BlockNode } from "../src/block/node.ts";
import type { OpeningNode } from "../src/block/open.ts";
import { type Options, type OptionValues, takePrefix } from "../src/block/options.ts";
import { isAligned, isPowerOfTwo, SECTOR_SIZE } from "../src/block/units.ts";
import { EVENTS, IO_TYPES, type IoType, type RuleOptions, readRules } from "./blkdebug-rules.ts";

const options = {
  /** A file with rules, in QEMU's configuration syntax; "" for none. */
  config: { type: "string", strong: true },
  /** The child by its filename, as `blkdebug:CONFIG:IMAGE` gives it. */
  "x-image": { type: "string" },
  align: { type: "size", strong: true },
  "max-transfer": { type: "size", strong: true },
  "opt-write-zero": { type: "size", strong: true },
  "max-write-zero": { type: "size", strong: true },
  "opt-discard": { type: "size", strong: true },
  "max-discard": { type: "size", strong: true },
} as const;

/** The largest limit that is taken, exclusive. */
const MAX_LIMIT = 2 ** 31 - 1;

export const blkdebug: FilterDriver<typeof options> = {
  formatName: "blkdebug",
  kind: "filter",
  prefix: "blkdebug",
  options,

  parseFilename(filename) {
    // Without the prefix, everything else is among the options.
    if (!filename.startsWith("blkdebug:")) return new Map([["x-image", filename]]);
    const match = /^blkdebug:([^:]*):(.*)$/s.exec(filename);
    if (!match) throw new BlockError("EINVAL", "blkdebug requires both config file and image path");
    const parsed: Options = new Map([["x-image", match[2] as string]]);
    if (match[1]) parsed.set("config", match[1]);
    return parsed;
  },

  filenameOf(node) {
    const image = node.filtered?.node.exactFilename ?? "";
    const onlyConfig = [...node.ownOptions.keys()].every((key) => key === "config");
    return image !== "" && onlyConfig ? `blkdebug:${node.ownOptions.get("config") ?? ""}:${image}` : "";
  },

  async open(co, handle) {
    const { node, environment, options: given } = handle;
    const rules = new RuleBook((line) => environment.notice?.(line));
    const config = given.config ? readConfigFile(given.config) : "";
    const ruleOptions = handle.takeOptionsUnder(["inject-error.", "set-state."]);
    for (const [key, value] of ruleOptions) node.ownOptions.set(key, value);
    for (const rule of readRules(config, ruleOptions)) rules.add(rule);
    const taken = readPerms(handle, "take-child-perms.");
    const unshared = readPerms(handle, "unshare-child-perms.");
    const role: ChildRole = {
      filtered: true,
      primary: true,
      perm: ({ used, shared }) => ({ used: used | taken, shared: shared & ~unshared }),
    };
    const image = await handle.openChild(co, "image", role, given["x-image"]);
    if (!image) throw new BlockError("EINVAL", 'A block device must be specified for "image"');
    const limits = readLimits(given, image.node.limits.requestAlignment);
    // Rules of the event "none" hold from the start.
    await rules.event(undefined, "none");
    return debugOps(node, image, limits, rules);
  },
};

function readConfigFile(filename: string): string {
  let fd: number;
  try {
    fd = fs.openSync(filename, "r");
  } catch (error) {
    throw BlockError.wrap("Could not read blkdebug config file", toBlockError(error));
  }
  try {
    return fs.readFileSync(fd, "utf8");
  } catch (error) {
    throw BlockError.wrap("Cannot read config file", toBlockError(error));
  } finally {
    fs.closeSync(fd);
  }
}

const PERM_NAMES: Readonly<Record<string, number>> = {
  "consistent-read": Perm.ConsistentRead,
  write: Perm.Write,
  "write-unchanged": Perm.WriteUnchanged,
  resize: Perm.Resize,
};

/** A mask from the list "PREFIX0", "PREFIX1", ... */
function readPerms({ takeOptionsUnder }: OpeningNode, prefix: string): number {
  const given = takePrefix(takeOptionsUnder([prefix]), prefix);
  const keys = [...given.keys()];
  const fail = (message: string): never => {
    throw new BlockError("EINVAL", message);
  };
  let mask = 0;
  if (keys.some((key) => !/^[0-9]+(\.|$)/.test(key)))
    fail("Invalid parameter type for '<anonymous>', expected: array");
  const indices = new Set(keys.map((key) => Number.parseInt(key, 10)));
  const last = Math.max(...indices);
  if (indices.size > 0 && last !== indices.size - 1)
    fail(`List indices are not contiguous, saw ${indices.size} elements but ${last} largest index`);
  for (let index = 0; index < indices.size; index++) {
    const name = given.get(String(index));
    if (name === undefined) fail(`Invalid parameter type for '[${index}]', expected: string`);
    const perm = PERM_NAMES[String(name)];
    // The list's elements have no name, which QEMU's message shows.
    if (perm === undefined) fail(`Parameter 'null' does not accept value '${name}'`);
    mask |= perm as number;
  }
  return mask;
}

type Given = OptionValues<typeof options>;
type LimitOption = Exclude<keyof typeof options, "config" | "x-image">;

/** @qemu blkdebug_open, the limits */
function readLimits(given: Given, imageAlignment: number): Partial<BlockLimits> {
  const limits: Partial<BlockLimits> = {};
  const align = given.align ?? 0;
  if (align >= MAX_LIMIT || (align > 0 && !isPowerOfTwo(align)))
    throw new BlockError("EINVAL", `Cannot meet constraints with align ${align}`);
  if (align > 0) limits.requestAlignment = align;
  const unit = Math.max(align, imageAlignment);
  const take = (key: LimitOption, multiple: number): number => {
    const value = given[key] ?? 0;
    if (value > 0 && (value >= MAX_LIMIT || !isAligned(value, multiple)))
      throw new BlockError("EINVAL", `Cannot meet constraints with ${key} ${value}`);
    return value;
  };
  const maxTransfer = take("max-transfer", unit);
  const optWriteZero = take("opt-write-zero", unit);
  const maxWriteZero = take("max-write-zero", Math.max(optWriteZero, unit));
  const optDiscard = take("opt-discard", unit);
  const maxDiscard = take("max-discard", Math.max(optDiscard, unit));
  if (maxTransfer > 0) limits.maxTransfer = maxTransfer;
  if (optWriteZero > 0) limits.pwriteZeroesAlignment = optWriteZero;
  if (maxWriteZero > 0) limits.maxPwriteZeroes = maxWriteZero;
  if (optDiscard > 0) limits.pdiscardAlignment = optDiscard;
  if (maxDiscard > 0) limits.maxPdiscard = maxDiscard;
  return limits;
}

function debugOps(
  node: BlockNode,
  image: BlockChild,
  limits: Partial<BlockLimits>,
  rules: RuleBook,
): NodeOps {
  const passed = Req.Fua | Req.MayUnmap | Req.NoFallback;
  return {
    supportedWriteFlags: Req.WriteUnchanged | (Req.Fua & image.node.supportedWriteFlags),
    supportedZeroFlags: Req.WriteUnchanged | (passed & image.node.supportedZeroFlags),
    debug: rules,
    limits: () => limits,
    getLength: (co) => image.getLength(co),
    async pread(co, offset, iov, flags) {
      await rules.check(offset, iovLength(iov), "read");
      await image.pread(co, offset, iov, flags);
    },
    async pwrite(co, offset, iov, flags) {
      await rules.check(offset, iovLength(iov), "write");
      await image.pwrite(co, offset, iov, flags);
    },
    async pwriteZeroes(co, offset, bytes, flags) {
      // A piece under the preferred size tests the way round: the core writes it as data.
      if (bytes < Math.max(node.limits.requestAlignment, node.limits.pwriteZeroesAlignment))
        throw new BlockError("ENOTSUP");
      await rules.check(offset, bytes, "write-zeroes");
      await image.pwriteZeroes(co, offset, bytes, flags);
    },
    async pdiscard(co, offset, bytes) {
      await rules.check(offset, bytes, "discard");
      if (bytes < node.limits.pdiscardAlignment) throw new BlockError("ENOTSUP");
      await image.pdiscard(co, offset, bytes);
    },
    // The core flushes the child afterwards.
    flushToDisk: () => rules.check(0, 0, "flush"),
    async blockStatus(_, _wantZero, offset, bytes) {
      await rules.check(offset, bytes, "block-status");
      return { bytes, data: false, zero: false, allocated: false, raw: true, offset, file: image.node };
    },
    getAllocatedFileSize: async () => undefined,
  };
}

interface SuspendedRequest {
  readonly tag: string;
  readonly wake: () => void;
}

/** The rules, the state that they depend on, and the requests that they hold up. */
class RuleBook implements DebugOps {
  readonly #notice: (line: string) => void;
  /** In the order in which they were added. */
  #rules: RuleOptions[] = [];
  /** Injections that the last event switched on; the first that matches a request counts. */
  #active: RuleOptions[] = [];
  #state = 1;
  #suspended: SuspendedRequest[] = [];

  constructor(notice: (line: string) => void) {
    this.#notice = notice;
  }

  add(rule: RuleOptions): void {
    this.#rules.push(rule);
  }

  /** @qemu blkdebug_debug_event */
  readonly event = async (co: Coroutine<"read"> | undefined, event: string): Promise<void> => {
    const hit = this.#rules.filter(
      (rule) => rule.event === event && (rule.state === 0 || rule.state === this.#state),
    );
    if (hit.length === 0) return;
    const injections = hit.filter((rule) => rule.action === "inject-error");
    if (injections.length > 0) this.#active = injections;
    for (const rule of hit.reverse()) if (rule.action === "set-state") this.#state = rule.newState;
    const breaks = hit.filter((rule) => rule.action === "suspend");
    if (breaks.length > 0 && co) await Promise.all(breaks.map((rule) => this.#suspend(co, rule)));
  };

  async #suspend(co: Coroutine<"read">, rule: RuleOptions): Promise<void> {
    const tag = rule.tag ?? "";
    this.#remove(rule);
    let request: SuspendedRequest | undefined;
    const resumed = new Promise<void>((resolve) => {
      const wake = () => {
        this.#notice(`blkdebug: Resuming request '${tag}'`);
        resolve();
      };
      request = { tag, wake };
      this.#suspended.unshift(request);
    });
    this.#notice(`blkdebug: Suspended request '${tag}'`);
    co.context.kick();
    try {
      await abortable(resumed, co.signal);
    } finally {
      this.#suspended = this.#suspended.filter((other) => other !== request);
    }
  }

  readonly addBreakpoint = (event: string, tag: string): void => {
    if (!EVENTS.has(event)) throw new BlockError("ENOENT");
    this.add({ action: "suspend", event, state: 0, tag, ...NO_INJECTION });
  };

  /** Lets go what waits at `tag`; ENOENT if the breakpoint itself is no longer there. */
  readonly removeBreakpoint = (tag: string): void => {
    const found = this.#rules.filter((rule) => rule.action === "suspend" && rule.tag === tag);
    for (const rule of found) this.#remove(rule);
    for (const request of this.#suspended.filter((each) => each.tag === tag)) request.wake();
    if (found.length === 0) throw new BlockError("ENOENT");
  };

  readonly resume = (tag: string): void => {
    const request = this.#suspended.find((each) => each.tag === tag);
    if (!request) throw new BlockError("ENOENT");
    this.#suspended = this.#suspended.filter((other) => other !== request);
    request.wake();
  };

  readonly isSuspended = (tag: string): boolean => this.#suspended.some((request) => request.tag === tag);

  /** Throws the error that a rule holds ready for such a request.  @qemu rule_check */
  async check(offset: number, bytes: number, ioType: IoType): Promise<void> {
    const rule = this.#active.find(({ sector, ioTypes }) => {
      if (!ioTypes.has(ioType)) return false;
      if (sector < 0) return true;
      const at = sector * SECTOR_SIZE;
      return bytes > 0 && at >= offset && at < offset + bytes;
    });
    if (!rule) return;
    if (rule.once) this.#remove(rule);
    if (rule.errno <= 0) return;
    // As from a device: the caller has gone on before it fails.
    if (!rule.immediately) await nextTurn();
    const errno = errnoFromNumber(rule.errno);
    const known = errnoNumber(errno) === rule.errno;
    throw new BlockError(errno, known ? undefined : `Unknown error ${rule.errno}`, { offset });
  }

  #remove(rule: RuleOptions): void {
    this.#rules = this.#rules.filter((other) => other !== rule);
    this.#active = this.#active.filter((other) => other !== rule);
  }
}

const NO_INJECTION = {
  ioTypes: new Set(IO_TYPES),
  errno: 0,
  sector: -1,
  once: false,
  immediately: false,
  newState: 0,
};
