/** The length of a node: asking the driver under the rules of the execution model, rounding, limits, truncate. */

import assert from "node:assert/strict";
import { describe, it, type TestContext } from "node:test";
import { AioContext, type MainLoop } from "../../src/block/aio-context.ts";
import { Coroutine, coroutinesCreated, graphRdlock } from "../../src/block/coroutine.ts";
import { AssertionError } from "../../src/block/errors.ts";
import { unrefNode } from "../../src/block/graph.ts";
import { type OpeningNode, openDriver, openNode } from "../../src/block/open.ts";
import { MAX_LENGTH } from "../../src/block/units.ts";
import { gate, isPending, type Memory, memoryDriver, openBackend, requestFor } from "../support/graph.ts";

/** A backend over a memory driver of 1 MiB, in a context of its own. */
async function memoryBackend(test: TestContext, bytes = 2 ** 20, extra?: Parameters<typeof memoryDriver>[3]) {
  const context = new AioContext("test");
  const memory = memoryDriver(test, "memory", bytes, extra);
  const backend = await openBackend({ driver: "memory" }, { context });
  test.after(() => backend.close());
  memory.calls.length = 0;
  return { context, memory, backend, node: backend.node };
}

describe("refreshTotalSectors", () => {
  it("called from a coroutine makes no second one", async (test) => {
    const { context, memory, node } = await memoryBackend(test);
    const askers: Coroutine[] = [];
    memory.hook = (_, co) => void askers.push(co);
    await graphRdlock(new Coroutine("none", context), async (co) => {
      const before = coroutinesCreated();
      await node.refreshTotalSectors(co, 0);
      assert.equal(coroutinesCreated(), before);
      assert.deepEqual(askers, [co]);
    });
  });

  it("called from the main loop makes one, in it holds the read lock, and gives up the AioContext lock meanwhile", async (test) => {
    const { context, memory, node } = await memoryBackend(test);
    const entered = gate();
    const leave = gate();
    memory.hook = async (_, co) => {
      assert.equal(co.graph, "read");
      assert.equal(context.graph.readers, 1);
      entered.open();
      await leave.opened;
    };
    await context.run(async (main) => {
      const before = coroutinesCreated();
      const refreshing = node.refreshTotalSectors(main, 0);
      await entered.opened;
      assert.equal(coroutinesCreated(), before + 1);
      let otherHadIt = false;
      await context.run(async () => {
        otherHadIt = true;
      });
      assert.ok(otherHadIt);
      leave.open();
      await refreshing;
      assert.ok(main.isHeld);
      assert.equal(main.depth, 1);
    });
    assert.equal(context.graph.readers, 0);
  });

  it("lets no writer of the graph slip in during the driver's getLength", async (test) => {
    const { context, memory, node } = await memoryBackend(test);
    const entered = gate();
    const leave = gate();
    memory.hook = () => {
      entered.open();
      return leave.opened;
    };
    await context.run(async (main) => {
      const refreshing = node.refreshTotalSectors(main, 0);
      await entered.opened;
      let wrote = false;
      const writing = context.graph.write(new Coroutine("none", context), async () => {
        wrote = true;
      });
      assert.ok(await isPending(writing));
      assert.equal(wrote, false);
      leave.open();
      await refreshing;
      await writing;
      assert.ok(wrote);
    });
  });

  it("gives a caller that breaks the rule the assertion, not a hang", async (test) => {
    const { context, memory, node } = await memoryBackend(test);
    const main = await context.acquire();
    await context.acquire(main);
    await assert.rejects(node.refreshTotalSectors(main, 0), /AioContext 'test' is held 2 times/);
    main.release();
    main.release();
    await assert.rejects(node.refreshTotalSectors(main, 0), /must hold the lock of AioContext 'test'/);
    const noLock = new Coroutine("none", context) as unknown as Coroutine<"read">;
    await assert.rejects(node.refreshTotalSectors(noLock, 0), /must hold the graph read lock/);
    let stale: Coroutine<"read"> | undefined;
    await graphRdlock(new Coroutine("none", context), async (co) => {
      stale = co;
    });
    await assert.rejects(node.refreshTotalSectors(stale as Coroutine<"read">, 0), AssertionError);
    assert.deepEqual(memory.calls, []);
  });

  for (const [bytes, sectors] of [
    [0, 0],
    [1, 1],
    [511, 1],
    [512, 1],
    [513, 2],
    [1024 * 1024 - 1, 2048],
  ] as const) {
    it(`rounds a length of ${bytes} bytes up to ${sectors} sectors`, async (test) => {
      const { backend, node } = await memoryBackend(test, bytes);
      assert.equal(node.totalSectors, sectors);
      assert.equal(await backend.getLength(), sectors * 512);
    });
  }

  it("takes the hint from a driver without getLength", async (test) => {
    const { context, memory, node, backend } = await memoryBackend(test, 0, () => ({ getLength: undefined }));
    assert.equal(await backend.getLength(), 0);
    await context.run((main) => node.refreshTotalSectors(main, 12));
    assert.equal(await backend.getLength(), 12 * 512);
    assert.deepEqual(memory.calls, []);
  });

  it("does not take the hint where the driver knows", async (test) => {
    const { context, node } = await memoryBackend(test, 4096);
    await context.run((main) => node.refreshTotalSectors(main, 12));
    assert.equal(node.totalSectors, 8);
  });

  it("is ENOMEDIUM without a driver", async (test) => {
    const context = new AioContext("test");
    memoryDriver(test, "memory", 4096);
    await context.run(async (main) => {
      const node = await openNode(main, requestFor({ driver: "memory" }));
      await unrefNode(main, node);
      node.totalSectors = 5;
      await assert.rejects(node.refreshTotalSectors(main, 9), { name: "BlockError", errno: "ENOMEDIUM" });
      assert.equal(node.totalSectors, 5);
    });
  });

  it("is EFBIG over the maximum length, and keeps the old value", async (test) => {
    let answer = 4096;
    const { context, node } = await memoryBackend(test, 0, () => ({ getLength: async () => answer }));
    for (const tooLong of [MAX_LENGTH + 1, 2 ** 53, 2 ** 63, Number.POSITIVE_INFINITY]) {
      answer = tooLong;
      await context.run((main) =>
        assert.rejects(node.refreshTotalSectors(main, 0), { name: "BlockError", errno: "EFBIG" }),
      );
      assert.equal(node.totalSectors, 8);
    }
    answer = MAX_LENGTH;
    await context.run((main) => node.refreshTotalSectors(main, 0));
    assert.equal(node.totalSectors, MAX_LENGTH / 512);
  });

  it("keeps the old value when the driver fails, and hands on its error", async (test) => {
    const { context, memory, node } = await memoryBackend(test, 4096);
    memory.hook = () => Promise.reject(new Error("no answer"));
    await context.run((main) => assert.rejects(node.refreshTotalSectors(main, 0), /no answer/));
    assert.equal(node.totalSectors, 8);
  });
});

describe("getLength", () => {
  it("asks a driver of fixed length once, and one of variable length each time", async (test) => {
    const fixed = await memoryBackend(test);
    await fixed.backend.getLength();
    assert.deepEqual(fixed.memory.calls, []);
    const variable = memoryDriver(test, "variable", 1024, () => ({ hasVariableLength: true }));
    const backend = await openBackend({ driver: "variable" });
    assert.equal(await backend.getLength(), 1024);
    variable.data = new Uint8Array(5000);
    assert.equal(await backend.getLength(), 5120);
    await backend.close();
  });

  it("sees through raw that a file below has grown", async (test) => {
    const memory = memoryDriver(test, "variable", 1024, () => ({ hasVariableLength: true }));
    const backend = await openBackend({ driver: "raw", file: { driver: "variable" } });
    memory.data = new Uint8Array(2048);
    assert.equal(await backend.getLength(), 2048);
    await backend.close();
  });
});

describe("openDriver", () => {
  const rules: readonly (readonly [string, (main: MainLoop) => Promise<unknown>, RegExp])[] = [
    ["not held", async (main) => main.release(), /must hold the lock of AioContext 'test'/],
    ["held twice", (main) => main.context.acquire(main), /is held 2 times/],
  ];
  for (const [what, spoil, message] of rules) {
    it(`asserts the rule before the driver's open is called: the lock is ${what}`, async (test) => {
      const { node, memory } = await memoryBackend(test);
      const main = await node.context.acquire();
      await spoil(main);
      await assert.rejects(openDriver(main, node, {} as OpeningNode), message);
      assert.deepEqual(memory.calls, []);
      while (main.isHeld) main.release();
    });
  }

  it("asserts that the caller is of the node's context", async (test) => {
    const { node } = await memoryBackend(test);
    await new AioContext("other").run((main) =>
      assert.rejects(openDriver(main, node, {} as OpeningNode), /of another AioContext/),
    );
  });

  it("opens in a coroutine with no second one made", async (test) => {
    const context = new AioContext("test");
    memoryDriver(test, "memory", 4096);
    const co = new Coroutine("none", context);
    const before = coroutinesCreated();
    const node = await openNode(co, requestFor({ driver: "raw", file: { driver: "memory" } }));
    assert.equal(node.totalSectors, 8);
    await unrefNode(co, node);
    assert.equal(coroutinesCreated(), before);
  });

  it("says that the length is what failed", async (test) => {
    memoryDriver(test, "memory", 4096, () => ({ getLength: async () => 2 ** 60 }));
    await assert.rejects(openBackend({ driver: "memory" }), {
      errno: "EFBIG",
      message: "Could not refresh total sector count: File too large",
    });
  });
});

describe("truncate", () => {
  const truncate = async (
    memory: Memory,
    backend: Awaited<ReturnType<typeof openBackend>>,
    bytes: number,
  ) => {
    await backend.truncate(bytes);
    assert.equal(memory.data.length, bytes);
    return backend.getLength();
  };

  it("grows and shrinks, and asks the length anew", async (test) => {
    const { memory, backend } = await memoryBackend(test, 4096);
    assert.equal(await truncate(memory, backend, 8192), 8192);
    assert.equal(await truncate(memory, backend, 1000), 1024);
  });

  it("has qemu's words for what can't be", async (test) => {
    const { backend } = await memoryBackend(test, 4096, () => ({ truncate: undefined }));
    await assert.rejects(backend.truncate(-1), { message: "Image size cannot be negative", errno: "EINVAL" });
    await assert.rejects(backend.truncate(2 ** 63 - 1024), {
      message: "offset(9223372036854774784) exceeds maximum(9223372035781033984)",
      errno: "EFBIG",
    });
    await assert.rejects(backend.truncate(8192), {
      message: "Image format driver does not support resize",
      errno: "ENOTSUP",
    });
  });

  it("refuses a read-only image", async (test) => {
    memoryDriver(test, "memory", 4096);
    const backend = await openBackend({ driver: "memory" }, { flags: { readOnly: true } });
    test.after(() => backend.close());
    // Without resize permission on the edge that is a bug of the caller.
    await assert.rejects(backend.truncate(8192), AssertionError);
  });

  it("waits for requests in the range that is gained", async (test) => {
    const { memory, backend } = await memoryBackend(test, 4096);
    const leave = gate();
    memory.hook = (op) => (op === "truncate" ? leave.opened : undefined);
    const growing = backend.truncate(8192);
    const below = backend.write(0, new Uint8Array(512));
    await below;
    assert.ok(await isPending(growing));
    leave.open();
    await growing;
  });
});
