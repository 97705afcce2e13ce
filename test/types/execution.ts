/** What the types of the execution model refuse; checked by tsc, never run. */

import type { AioContext, MainLoop } from "../../src/block/aio-context.ts";
import { blockStatus } from "../../src/block/block-status.ts";
import type { BlockChild } from "../../src/block/child.ts";
import {
  type Coroutine,
  coWrapper,
  coWrapperMixed,
  coWrapperMixedUnlocked,
  graphRdlock,
} from "../../src/block/coroutine.ts";
import type { BlockDriver, FilterDriver, NodeOps, ProtocolDriver } from "../../src/block/driver.ts";
import { registerDriver } from "../../src/block/driver.ts";
import { attachChild, drainedBegin } from "../../src/block/graph.ts";
import { getLength, refreshTotalSectors } from "../../src/block/length.ts";
import type { BlockNode } from "../../src/block/node.ts";
import { type OpeningNode, type OpenRequest, openDriver, openNode } from "../../src/block/open.ts";

interface Hands {
  readonly none: Coroutine<"none">;
  readonly read: Coroutine<"read">;
  readonly either: Coroutine;
  readonly main: MainLoop;
  readonly context: AioContext;
  readonly node: BlockNode;
  readonly child: BlockChild;
  readonly handle: OpeningNode;
  readonly request: OpenRequest;
}

/** A walk of the graph wants the read lock. */
export function needsReadLock({ none, read, either, main, node, child }: Hands): readonly Promise<unknown>[] {
  return [
    getLength(read, node),
    node.getLength(read),
    child.pread(read, 0, new Uint8Array(1)),
    blockStatus(read, node, true, 0, 1),
    // @ts-expect-error: no lock is held
    getLength(none, node),
    // @ts-expect-error: no lock is held
    node.getLength(none),
    // @ts-expect-error: it is not known whether one is held
    node.getLength(either),
    // @ts-expect-error: the main loop is no coroutine
    node.getLength(main),
    // @ts-expect-error: no lock is held
    child.pread(none, 0, new Uint8Array(1)),
    // @ts-expect-error: no lock is held
    child.pwrite(none, 0, new Uint8Array(1)),
    // @ts-expect-error: no lock is held
    child.flush(none),
    // @ts-expect-error: no lock is held
    blockStatus(none, node, true, 0, 1),
  ];
}

/** A change of the graph waits for its readers, so a reader must not ask for one. */
export function refusesReadLock(hands: Hands): readonly Promise<unknown>[] {
  const { none, read, main, node, child, handle, request } = hands;
  return [
    openNode(none, request),
    openNode(main, request),
    openDriver(main, node, handle),
    attachChild(none, node, node, "file", {}),
    // @ts-expect-error: the read lock is held
    openNode(read, request),
    // @ts-expect-error: the read lock is held
    openDriver(read, node, handle),
    // @ts-expect-error: the read lock is held
    attachChild(read, node, node, "file", {}),
    // @ts-expect-error: the read lock is held
    drainedBegin(read, node),
    // @ts-expect-error: the read lock is held
    handle.openFileChild(read),
    // @ts-expect-error: it would be taken a second time
    graphRdlock(read, (co) => child.getLength(co)),
  ];
}

/** Mixed wrappers take a coroutine that holds what they need, or the main loop. */
export function wrappers({ none, read, main, node }: Hands): readonly Promise<unknown>[] {
  const mixed = coWrapperMixed((co: Coroutine<"read">, at: BlockNode) => at.getLength(co));
  const mainOnly = coWrapper(async (co: Coroutine<"none">, bytes: number) => [co.id, bytes] as const);
  const unlocked = coWrapperMixedUnlocked(async (co: Coroutine<"none">) => co.id);
  return [
    refreshTotalSectors(read, node, 0),
    refreshTotalSectors(main, node, 0),
    mixed(read, node) satisfies Promise<number>,
    mainOnly(main, 1) satisfies Promise<readonly [number, number]>,
    unlocked(none),
    // @ts-expect-error: a coroutine without the read lock
    refreshTotalSectors(none, node, 0),
    // @ts-expect-error: a coroutine without the read lock
    mixed(none, node),
    // @ts-expect-error: not in a coroutine
    mainOnly(none, 1),
    // @ts-expect-error: the argument of the wrapped function
    mainOnly(main, "1"),
    // @ts-expect-error: the read lock is held
    unlocked(read),
    // @ts-expect-error: what is wrapped runs under the read lock, and must be content with it
    coWrapperMixed((co: Coroutine<"none">) => graphRdlock(co, async () => 0)),
    // @ts-expect-error: what is wrapped runs without the lock
    coWrapperMixedUnlocked((co: Coroutine<"read">, at: BlockNode) => at.getLength(co)),
  ];
}

/** A driver whose operation wants other than what it is given is no driver. */
export const operations: readonly NodeOps[] = [
  { getLength: async (co: Coroutine<"read">) => co.id },
  { getLength: async (co: Coroutine) => co.id },
  // @ts-expect-error: it is called with the read lock held
  { getLength: async (co: Coroutine<"none">) => co.id },
  // @ts-expect-error: it is called with the read lock held
  { pread: async (co: Coroutine<"none">) => void co },
  // @ts-expect-error: it is called without the lock
  { close: async (co: Coroutine<"read">) => void co },
  // @ts-expect-error: it is called in a coroutine, not by the main loop
  { flushToDisk: async (main: MainLoop) => void main },
  // @ts-expect-error: the core awaits it
  { getLength: () => 512 },
  // @ts-expect-error: there is no such operation
  { pReadWrite: async () => {} },
];

const options = { size: { type: "size" }, name: { type: "string" } } as const;

export const drivers: readonly [ProtocolDriver<typeof options>, ProtocolDriver<typeof options>, BlockDriver] =
  [
    {
      formatName: "typed",
      kind: "protocol",
      options,
      open: async (_, { options: { size = 0 } }) => ({ getLength: async () => size satisfies number }),
    },
    {
      formatName: "mistyped",
      kind: "protocol",
      options,
      // @ts-expect-error: the table has no such option
      open: async (_, { options: { length } }) => ({ getLength: async () => length }),
    },
    {
      formatName: "locked",
      kind: "protocol",
      options: {},
      // @ts-expect-error: open changes the graph, so it is called without the lock
      open: async (co: Coroutine<"read">) => ({ getLength: async () => co.id }),
    },
  ];

export const kinds: readonly FilterDriver[] = [
  // @ts-expect-error: no filter
  { formatName: "odd", kind: "format", options: {}, open: async () => ({}) },
  // @ts-expect-error: a driver must be opened
  { formatName: "shut", kind: "filter", options: {} },
  // @ts-expect-error: only a format is probed
  { formatName: "sniffing", kind: "filter", options: {}, probe: () => 100, open: async () => ({}) },
];

const hasty = async () => ({ getLength: () => 0 });

export function registration(): void {
  registerDriver({ formatName: "plain", kind: "filter", options: {}, open: async () => ({}) });
  // @ts-expect-error: getLength must give a promise
  registerDriver({ formatName: "hasty", kind: "filter", options: {}, open: hasty });
}
