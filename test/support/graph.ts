/** Nodes for tests: opened in a context of their own, and a driver in memory that records what it is asked. */

import "../../drivers/index.ts";
import { AioContext } from "../../src/block/aio-context.ts";
import { type BackendOptions, BlockBackend } from "../../src/block/backend.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import {
  type NodeOps,
  type ProtocolDriver,
  registerDriver,
  unregisterDriver,
} from "../../src/block/driver.ts";
import { type IoVector, iovFlatten, iovLength, iovWrite } from "../../src/block/iov.ts";
import { type OpenEnvironment, type OpenRequest, openGate } from "../../src/block/open.ts";
import { DEFAULT_FLAGS, type OpenFlags } from "../../src/block/open-flags.ts";
import { flattenOptions, type NestedOptions } from "../../src/block/options.ts";
import type { Cleanup } from "./temp.ts";

export interface OpenSettings {
  readonly flags?: Partial<OpenFlags>;
  readonly backend?: BackendOptions;
  readonly context?: AioContext;
  readonly environment?: Partial<OpenEnvironment>;
}

/** The request for a filename or options: read-write unless `flags` say otherwise. */
export function requestFor(what: string | NestedOptions, settings: OpenSettings = {}): OpenRequest {
  return {
    ...(typeof what === "string" ? { filename: what } : {}),
    options: typeof what === "string" ? new Map() : flattenOptions(what),
    flags: { ...DEFAULT_FLAGS, readOnly: false, ...settings.flags },
    environment: { gate: openGate, warn: () => {}, ...settings.environment },
  };
}

/** Opens a filename or options in `settings.context`, or a context of its own. */
export function openBackend(
  what: string | NestedOptions,
  settings: OpenSettings = {},
): Promise<BlockBackend> {
  const context = settings.context ?? new AioContext("test");
  return BlockBackend.open(requestFor(what, settings), settings.backend, context);
}

/** One call of a driver's operation. */
export interface Call {
  readonly op: string;
  readonly offset: number;
  readonly bytes: number;
  readonly flags: number;
}

/** What a memory driver keeps, for the test to look at and to change. */
export interface Memory {
  data: Uint8Array;
  readonly calls: Call[];
  /** Calls of `op`, as [offset, bytes]. */
  ranges(op: string): (readonly [number, number])[];
  /** Is awaited by each operation before it does its work. */
  hook: (op: string, co: Coroutine, offset: number, bytes: number) => Promise<void> | void;
}

/**
 * Registers, for the time of one test, a protocol driver `name` that keeps its bytes in memory, calls `hook` in
 * every operation and records it. `extra` adds operations or takes some away (undefined).
 */
export function memoryDriver(
  test: Cleanup,
  name: string,
  bytes: number,
  extra: (
    memory: Memory,
    ops: NodeOps,
  ) => { readonly [K in keyof NodeOps]?: NodeOps[K] | undefined } = () => ({}),
): Memory {
  const memory: Memory = {
    data: new Uint8Array(bytes),
    calls: [],
    ranges: (op) =>
      memory.calls.filter((call) => call.op === op).map((call) => [call.offset, call.bytes] as const),
    hook: () => {},
  };
  const driver: ProtocolDriver = {
    formatName: name,
    kind: "protocol",
    options: {},
    async open() {
      const ops = memoryOps(memory);
      const all = { ...ops, ...extra(memory, ops) };
      // An operation that is undefined is one that the driver does not have.
      return Object.fromEntries(Object.entries(all).filter(([, op]) => op !== undefined)) as NodeOps;
    },
  };
  registerDriver(driver);
  test.after(() => unregisterDriver(name));
  return memory;
}

function memoryOps(memory: Memory): NodeOps {
  const enter = async (op: string, co: Coroutine, offset: number, bytes: number, flags = 0) => {
    memory.calls.push({ op, offset, bytes, flags });
    await memory.hook(op, co, offset, bytes);
  };
  const fill = (offset: number, bytes: number) => memory.data.fill(0, offset, offset + bytes);
  return {
    async getLength(co) {
      await enter("getLength", co, 0, 0);
      return memory.data.length;
    },
    async pread(co, offset, iov) {
      await enter("pread", co, offset, iovLength(iov));
      iovWrite(iov, memory.data.subarray(offset, offset + iovLength(iov)));
    },
    async pwrite(co, offset, iov, flags) {
      await enter("pwrite", co, offset, iovLength(iov), flags);
      store(memory, offset, iov);
    },
    async pwriteZeroes(co, offset, bytes, flags) {
      await enter("pwriteZeroes", co, offset, bytes, flags);
      fill(offset, bytes);
    },
    async pdiscard(co, offset, bytes) {
      await enter("pdiscard", co, offset, bytes);
      fill(offset, bytes);
    },
    async flushToDisk(co) {
      await enter("flushToDisk", co, 0, 0);
    },
    async truncate(co, bytes) {
      await enter("truncate", co, bytes, 0);
      resize(memory, bytes);
    },
    async close() {
      memory.calls.push({ op: "close", offset: 0, bytes: 0, flags: 0 });
    },
    async reopen() {
      return { commit: () => {}, abort: () => {} };
    },
  };
}

function store(memory: Memory, offset: number, iov: IoVector): void {
  const end = offset + iovLength(iov);
  if (end > memory.data.length) resize(memory, end);
  memory.data.set(iovFlatten(iov), offset);
}

function resize(memory: Memory, bytes: number): void {
  const grown = new Uint8Array(bytes);
  grown.set(memory.data.subarray(0, bytes));
  memory.data = grown;
}

/** A promise with its ends to hold. */
export interface Gate {
  readonly opened: Promise<void>;
  open(): void;
}

export function gate(): Gate {
  let open = () => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { opened, open: () => open() };
}

/** Lets everything that can go on without a timer or I/O go on. */
export async function settled(): Promise<void> {
  for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
}

/** Whether the promise is still waiting after all that can run has run. */
export async function isPending(promise: Promise<unknown>): Promise<boolean> {
  let done = false;
  const note = () => {
    done = true;
  };
  promise.then(note, note);
  await settled();
  return !done;
}
