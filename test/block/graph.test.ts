/** The graph: edges, permissions, transactions, drains, the order of closing. */

import assert from "node:assert/strict";
import { describe, it, type TestContext } from "node:test";
import { AioContext } from "../../src/block/aio-context.ts";
import { BlockBackend } from "../../src/block/backend.ts";
import { Perm } from "../../src/block/child.ts";
import { Coroutine, graphRdlock } from "../../src/block/coroutine.ts";
import {
  attachChild,
  attachRoot,
  changeGraph,
  cumulativePerm,
  detach,
  drainedBegin,
  drainedEnd,
  refNode,
  replaceNode,
  setBacking,
  setEdgePerm,
  subtree,
  subtreeDrainedBegin,
  subtreeDrainedEnd,
  Transaction,
  unrefNode,
} from "../../src/block/graph.ts";
import type { BlockNode } from "../../src/block/node.ts";
import { openNode } from "../../src/block/open.ts";
import type { NestedOptions } from "../../src/block/options.ts";
import { gate, isPending, memoryDriver, openBackend, requestFor } from "../support/graph.ts";

/** A context, a coroutine in it, and memory drivers "a" and "b" of 64 KiB. */
function setUp(test: TestContext) {
  const context = new AioContext("test");
  const co = new Coroutine("none", context);
  const a = memoryDriver(test, "a", 65536);
  const b = memoryDriver(test, "b", 65536);
  const open = (options: NestedOptions, readOnly = false) =>
    openNode(co, requestFor(options, { flags: { readOnly } }));
  return { context, co, a, b, open };
}

const READ = { used: Perm.ConsistentRead, shared: Perm.All };

/** All edges of the graph, as text, to compare a before with an after. */
function picture(context: AioContext): string[] {
  return [...context.nodes.values()].flatMap((node) => [
    `${node.nodeName} refs=${node.refCount} quiesced=${node.quiesceCounter}`,
    ...[...node.children.values()].map(
      (edge) =>
        `${node.nodeName} -${edge.name}(${edge.perm.used},${edge.perm.shared})-> ${edge.node.nodeName}`,
    ),
    ...[...node.parents].map((edge) => `${node.nodeName} <- ${edge.parent.describe()}`),
  ]);
}

describe("transactions", () => {
  it("commit in order, and abort in reverse", () => {
    const order: string[] = [];
    const steps = (transaction: Transaction) => {
      for (const n of [1, 2, 3])
        transaction.add({ commit: () => void order.push(`+${n}`), abort: () => void order.push(`-${n}`) });
    };
    const first = new Transaction();
    steps(first);
    first.commit();
    first.abort();
    const second = new Transaction();
    steps(second);
    second.abort();
    second.commit();
    assert.deepEqual(order, ["+1", "+2", "+3", "-3", "-2", "-1"]);
  });

  it("hold the write lock, and are undone when the change throws", async (test) => {
    const { context, co } = setUp(test);
    const order: string[] = [];
    const failing = changeGraph(co, [], async (writer, transaction) => {
      assert.ok(context.graph.isWriteLocked && writer.live);
      transaction.add({ abort: () => void order.push("undone"), commit: () => void order.push("done") });
      throw new Error("changed my mind");
    });
    await assert.rejects(failing, /changed my mind/);
    assert.deepEqual(order, ["undone"]);
    assert.ok(!context.graph.isWriteLocked);
  });
});

describe("edges", () => {
  it("stand in the parent and in the child, and give the child its permissions", async (test) => {
    const { co, open } = setUp(test);
    const node = await open({ driver: "raw", file: { driver: "a", "node-name": "below" } });
    const file = node.file;
    assert.ok(file);
    assert.equal(file.node.nodeName, "below");
    assert.deepEqual([...file.node.parents], [file]);
    assert.deepEqual([...subtree(node)], [node, file.node]);
    const backend = await BlockBackend.forNode(co, node);
    assert.equal(file.perm.used & Perm.Write, Perm.Write);
    assert.deepEqual(cumulativePerm(file.node), file.perm);
    await backend.close();
    assert.equal(file.node.parents.size, 0);
  });

  it("refuse a loop, by the names of both nodes, and leave all as it was", async (test) => {
    const { context, co, open } = setUp(test);
    const top = await open({ driver: "raw", "node-name": "top", file: { driver: "a", "node-name": "low" } });
    const low = top.file?.node as BlockNode;
    const before = picture(context);
    refNode(top);
    await assert.rejects(attachChild(co, low, top, "backing", { cow: true }), {
      errno: "EINVAL",
      message: "Making 'top' a backing child of 'low' would create a cycle",
    });
    assert.deepEqual(picture(context), before);
    await unrefNode(co, top);
  });

  it("refuse what another does not share, say who is in whose way, and roll everything back", async (test) => {
    const { context, co, open } = setUp(test);
    await using owner = await BlockBackend.forNode(co, await open({ driver: "a", "node-name": "disk" }), {
      perm: { used: Perm.ConsistentRead, shared: Perm.ConsistentRead },
    });
    const before = picture(context);
    refNode(owner.node);
    await assert.rejects(
      BlockBackend.forNode(co, owner.node, { perm: { used: Perm.Write, shared: Perm.All } }),
      {
        errno: "EPERM",
        message:
          /^Permission conflict on node 'disk': permissions 'write' are both required by .* and unshared by /,
      },
    );
    assert.deepEqual(picture(context), before);
    // A format over it needs more than is shared; its own children are closed again.
    await assert.rejects(open({ driver: "qcow2", file: "disk" }), { name: "BlockError" });
    assert.deepEqual(picture(context), before);
  });

  it("pass on what is needed through a filter, but not more", async (test) => {
    const { co, open } = setUp(test);
    const node = await open({ driver: "blkdebug", image: { driver: "a" } });
    const backend = await BlockBackend.forNode(co, node, { perm: READ });
    assert.equal(node.filtered?.perm.used, Perm.ConsistentRead);
    await setEdgePerm(co, backend.root, {
      used: Perm.ConsistentRead | Perm.Write,
      shared: Perm.ConsistentRead,
    });
    assert.deepEqual(node.filtered?.perm, {
      used: Perm.ConsistentRead | Perm.Write,
      shared: Perm.ConsistentRead,
    });
    await backend.close();
  });

  it("are no write edges on a read-only node", async (test) => {
    const { co, open } = setUp(test);
    const node = await open({ driver: "a" }, true);
    refNode(node);
    await assert.rejects(attachRoot(co, dummyParent, node, { used: Perm.Write, shared: Perm.All }), {
      errno: "EPERM",
      message: "Block node is read-only",
    });
    await unrefNode(co, node);
  });

  it("move with replaceNode, with their references", async (test) => {
    const { co, open, a, b } = setUp(test);
    const from = await open({ driver: "a", "node-name": "from" });
    const to = await open({ driver: "b", "node-name": "to" });
    const backend = await BlockBackend.forNode(co, from);
    await replaceNode(co, from, to);
    assert.equal(backend.node, to);
    assert.equal(from.parents.size + from.refCount, 0);
    assert.deepEqual(
      a.calls.filter(({ op }) => op === "close").map(({ op }) => op),
      ["close"],
    );
    await backend.write(0, Uint8Array.of(1));
    assert.equal(b.data[0], 1);
    await unrefNode(co, to);
    assert.ok(backend.isOpen && backend.node.refCount === 1);
    await backend.close();
    assert.equal(b.calls.at(-1)?.op, "close");
  });

  it("put a filter above a node: its own edge stays", async (test) => {
    const { co, open, a } = setUp(test);
    const base = await open({ driver: "a", "node-name": "base" });
    const backend = await BlockBackend.forNode(co, base);
    const filter = await open({ driver: "blkdebug", image: "base", "node-name": "filter" });
    await replaceNode(co, base, filter);
    assert.equal(backend.node, filter);
    assert.equal(filter.filtered?.node, base);
    await backend.write(512, Uint8Array.of(9));
    assert.equal(a.data[512], 9);
    await replaceNode(co, filter, base).catch(() => assert.fail("the filter comes out again"));
    assert.equal(backend.node, base);
    await unrefNode(co, filter);
    await backend.close();
    assert.equal(a.ranges("close").length, 1);
  });

  it("refuse a replacement that would make a loop, and stay", async (test) => {
    const { context, co, open } = setUp(test);
    const top = await open({
      driver: "raw",
      "node-name": "top",
      file: { driver: "raw", "node-name": "mid", file: { driver: "a", "node-name": "low" } },
    });
    const before = picture(context);
    // Mid's parent is top itself, which may stay; low's parent is mid, which lies below top.
    await assert.rejects(replaceNode(co, context.nodes.get("low") as BlockNode, top), { errno: "EINVAL" });
    assert.deepEqual(picture(context), before);
    await unrefNode(co, top);
    assert.equal(context.nodes.size, 0);
  });

  it("are cut by detach, which closes what nobody uses any more", async (test) => {
    const { co, open, a } = setUp(test);
    const node = await open({ driver: "a" });
    refNode(node);
    const edge = await attachRoot(co, dummyParent, node, READ);
    await detach(co, edge);
    assert.equal(a.ranges("close").length, 0);
    assert.equal(node.refCount, 1);
    await unrefNode(co, node);
    assert.equal(a.ranges("close").length, 1);
    await assert.rejects(unrefNode(co, node), /is closed already/);
  });

  it("setBacking gives, changes and takes away a backing file", async (test) => {
    const { co, open, a, b } = setUp(test);
    const node = await open({ driver: "raw", file: { driver: "null-co" } });
    await setBacking(co, node, await open({ driver: "a" }));
    assert.equal(node.backing?.role.cow, true);
    await setBacking(co, node, await open({ driver: "b" }));
    assert.equal(a.calls.at(-1)?.op, "close");
    await setBacking(co, node, undefined);
    assert.equal(node.backing, undefined);
    assert.equal(b.calls.at(-1)?.op, "close");
    await unrefNode(co, node);
  });
});

const dummyParent = {
  describe: () => "a test",
  drainedBegin() {},
  drainedEnd() {},
  requestsInFlight: 0,
};

describe("closing", () => {
  it("goes from the top down: flush, the driver's close, then the children", async (test) => {
    const { context, a } = setUp(test);
    const backend = await openBackend({ driver: "raw", file: { driver: "a" } }, { context });
    await backend.write(0, Uint8Array.of(1));
    a.calls.length = 0;
    await backend.close();
    assert.deepEqual(
      a.calls.map(({ op }) => op),
      ["flushToDisk", "close"],
    );
    assert.equal(context.nodes.size, 0);
    await backend.close();
    await assert.rejects(backend.read(0, 1), { errno: "ENOMEDIUM" });
  });

  it("is done by the last user", async (test) => {
    const { co, open, a } = setUp(test);
    const node = await open({ driver: "a" });
    const first = await BlockBackend.forNode(co, node);
    refNode(node);
    const second = await BlockBackend.forNode(co, node);
    await first.close();
    await second.write(0, Uint8Array.of(1));
    assert.equal(a.ranges("close").length, 0);
    await second.close();
    assert.equal(a.ranges("close").length, 1);
  });

  it("tells the error of the flush, and closes everything all the same", async (test) => {
    const { context, a } = setUp(test);
    const backend = await openBackend({ driver: "raw", file: { driver: "a" } }, { context });
    await backend.write(0, Uint8Array.of(1));
    a.hook = (op) => (op === "flushToDisk" ? Promise.reject(new Error("disk is gone")) : undefined);
    await assert.rejects(backend.close(), /disk is gone/);
    assert.equal(a.calls.at(-1)?.op, "close");
    assert.equal(context.nodes.size, 0);
    assert.ok(!backend.isOpen);
  });

  it("tells the error of a driver's close, and closes what is below", async (test) => {
    const { context, a } = setUp(test);
    memoryDriver(test, "bad", 512, () => ({
      close: async () => {
        throw new Error("can't let go");
      },
    }));
    const backend = await openBackend({ driver: "blkdebug", image: { driver: "bad" } }, { context });
    await assert.rejects(backend.close(), /can't let go/);
    assert.equal(context.nodes.size, 0);
    assert.deepEqual(a.calls, []);
  });

  it("waits for requests under way", async (test) => {
    const { a } = setUp(test);
    const backend = await openBackend({ driver: "a" });
    const leave = gate();
    a.hook = (op) => (op === "pwrite" ? leave.opened : undefined);
    const writing = backend.write(0, Uint8Array.of(1));
    const closing = backend.close();
    assert.ok(await isPending(closing));
    assert.equal(a.ranges("close").length, 0);
    leave.open();
    await Promise.all([writing, closing]);
    assert.deepEqual(
      a.calls.slice(-3).map(({ op }) => op),
      ["pwrite", "flushToDisk", "close"],
    );
  });
});

describe("draining", () => {
  it("lets requests under way end, and holds new ones until it is over", async (test) => {
    const { co, a, open } = setUp(test);
    const node = await open({ driver: "a" });
    await using backend = await BlockBackend.forNode(co, node);
    const leave = gate();
    a.hook = (op) => (op === "pwrite" ? leave.opened : undefined);
    const early = backend.write(0, Uint8Array.of(1));
    const draining = drainedBegin(co, node);
    const late = backend.read(0, 1);
    assert.ok(await isPending(draining));
    assert.ok(await isPending(late));
    leave.open();
    await draining;
    await early;
    assert.ok(await isPending(late));
    assert.equal(a.ranges("pread").length, 0);
    drainedEnd(node);
    assert.deepEqual(await late, Uint8Array.of(1));
  });

  it("nests: it is over with the last end", async (test) => {
    const { co, open } = setUp(test);
    const node = await open({ driver: "a" });
    await using backend = await BlockBackend.forNode(co, node);
    await drainedBegin(co, node);
    await drainedBegin(co, node);
    const reading = backend.read(0, 1);
    drainedEnd(node);
    assert.ok(await isPending(reading));
    drainedEnd(node);
    await reading;
    assert.throws(() => drainedEnd(node), /drainedEnd without drainedBegin/);
  });

  it("reaches the users of all parents, however far above", async (test) => {
    const { context, a } = setUp(test);
    await using top = await openBackend(
      { driver: "raw", file: { driver: "raw", file: { driver: "a", "node-name": "low" } } },
      { context },
    );
    const low = context.nodes.get("low") as BlockNode;
    const co = new Coroutine("none", context);
    await drainedBegin(co, low);
    const reading = top.read(0, 1);
    assert.ok(await isPending(reading));
    assert.equal(a.ranges("pread").length, 0);
    drainedEnd(low);
    await reading;
  });

  it("of one node leaves the users of its siblings alone, of the subtree stops what is below too", async (test) => {
    const { context, co } = setUp(test);
    await using top = await openBackend(
      { driver: "raw", "node-name": "top", file: { driver: "a", "node-name": "low" } },
      { context },
    );
    const low = context.nodes.get("low") as BlockNode;
    refNode(low);
    await using direct = await BlockBackend.forNode(co, low);
    await drainedBegin(co, top.node);
    await direct.read(0, 1);
    drainedEnd(top.node);
    await subtreeDrainedBegin(co, top.node);
    const reading = direct.read(0, 1);
    assert.ok(await isPending(reading));
    subtreeDrainedEnd(top.node);
    await reading;
  });

  it("waits for a reader that blkdebug holds up", async (test) => {
    const { co, open, context } = setUp(test);
    const node = await open({ driver: "raw", file: { driver: "blkdebug", image: { driver: "a" } } });
    await using backend = await BlockBackend.forNode(co, node);
    const debug = node.file?.debug;
    assert.ok(debug);
    debug.addBreakpoint("read_aio", "here");
    const reading = backend.read(0, 1);
    assert.ok(await isPending(reading));
    assert.ok(debug.isSuspended("here"));
    const draining = drainedBegin(co, node);
    assert.ok(await isPending(draining));
    assert.equal(context.graph.readers, 1);
    debug.resume("here");
    await reading;
    await draining;
    drainedEnd(node);
  });

  it("holds while an edge is cut or moved", async (test) => {
    const { co, open, a } = setUp(test);
    const node = await open({ driver: "a" });
    const backend = await BlockBackend.forNode(co, node);
    // Opened before the request that is held up: opening changes the graph, and waits for all who read it.
    const to = await open({ driver: "b" });
    const leave = gate();
    a.hook = (op) => (op === "pread" ? leave.opened : undefined);
    const reading = backend.read(0, 1);
    const replacing = replaceNode(co, node, to);
    assert.ok(await isPending(replacing));
    assert.equal(backend.node, node);
    leave.open();
    await Promise.all([reading, replacing]);
    assert.equal(backend.node, to);
    await backend.close();
    await unrefNode(co, to);
  });

  it("carries over to a parent that comes while it lasts", async (test) => {
    const { co, open } = setUp(test);
    const node = await open({ driver: "a" });
    await drainedBegin(co, node);
    const backend = await BlockBackend.forNode(co, node);
    const reading = backend.read(0, 1);
    assert.ok(await isPending(reading));
    drainedEnd(node);
    await reading;
    await backend.close();
  });

  it("lets a request that waits for its end be aborted", async (test) => {
    const { co, open } = setUp(test);
    const node = await open({ driver: "a" });
    await using backend = await BlockBackend.forNode(co, node);
    await drainedBegin(co, node);
    const controller = new AbortController();
    const reading = backend.read(0, 1, { signal: controller.signal });
    controller.abort(new Error("enough"));
    await assert.rejects(reading, /enough/);
    drainedEnd(node);
  });
});

describe("a coroutine that reads", () => {
  it("can't change the graph", async (test) => {
    const { co, open } = setUp(test);
    const node = await open({ driver: "a" });
    await graphRdlock(co, async (reader) => {
      const wrong = reader as unknown as Coroutine<"none">;
      await assert.rejects(drainedBegin(wrong, node), /must not be called with the graph lock held/);
      await assert.rejects(
        changeGraph(wrong, [], async () => {}),
        /holds the read lock cannot write/,
      );
    });
    await unrefNode(co, node);
  });
});
