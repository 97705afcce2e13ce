/** The execution model: coroutines, the AioContext lock, and waiting for one from the other. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { AioContext, aioWaitWhile, type MainLoop } from "../../src/block/aio-context.ts";
import {
  Coroutine,
  coroutinesCreated,
  coWrapper,
  coWrapperMixed,
  coWrapperMixedUnlocked,
  graphRdlock,
} from "../../src/block/coroutine.ts";
import { AssertionError } from "../../src/block/errors.ts";
import { gate, isPending, settled } from "../support/graph.ts";

describe("AioContext", () => {
  it("passes its lock in order of arrival", async () => {
    const context = new AioContext("test");
    const order: number[] = [];
    const first = await context.acquire();
    const others = [1, 2, 3].map((n) => context.run(async () => void order.push(n)));
    assert.ok(await isPending(Promise.race(others)));
    first.release();
    await Promise.all(others);
    assert.deepEqual(order, [1, 2, 3]);
  });

  it("lets nobody in between a release and the one who waited", async () => {
    const context = new AioContext("test");
    let inside = 0;
    const work = async () => {
      assert.equal(++inside, 1);
      await settled();
      inside--;
    };
    const first = await context.acquire();
    const waiting = context.run(work);
    first.release();
    // The lock is on its way to the one who waits: a newcomer has to queue behind.
    await Promise.all([waiting, context.run(work)]);
  });

  it("is recursive by token: the holder gets its own token back, and every acquire needs its release", async () => {
    const context = new AioContext("test");
    const main = await context.acquire();
    assert.equal(await context.acquire(main), main);
    assert.equal(main.depth, 2);
    main.release();
    const other = context.acquire();
    assert.ok(await isPending(other));
    main.release();
    const next = await other;
    assert.ok(next.isHeld && !main.isHeld);
    next.release();
  });

  it("refuses a token that does not hold it, on acquire and on release", async () => {
    const context = new AioContext("test");
    const main = await context.acquire();
    main.release();
    assert.throws(() => main.release(), AssertionError);
    await assert.rejects(context.acquire(main), AssertionError);
    const elsewhere = await new AioContext("other").acquire();
    await assert.rejects(context.acquire(elsewhere), AssertionError);
  });

  it("releases the lock when what runs under it throws", async () => {
    const context = new AioContext("test");
    await assert.rejects(
      context.run(async () => {
        throw new Error("from inside");
      }),
      /from inside/,
    );
    await context.run(async (main) => assert.ok(main.isHeld));
  });
});

describe("aioWaitWhile", () => {
  it("gives the lock up while it waits, and has it again after", async () => {
    const context = new AioContext("test");
    let isDone = false;
    await context.run(async (main) => {
      const other = context.run(async (holder) => {
        assert.ok(holder.isHeld && !main.isHeld);
        isDone = true;
        context.kick();
      });
      await aioWaitWhile(main, () => !isDone);
      assert.ok(main.isHeld);
      await other;
    });
  });

  it("looks at the condition only after a kick, and does not wait at all where it is false", async () => {
    const context = new AioContext("test");
    await context.run(async (main) => {
      await aioWaitWhile(main, () => false);
      let looked = 0;
      const waiting = aioWaitWhile(main, () => ++looked < 3);
      await settled();
      assert.equal(looked, 1);
      context.kick();
      assert.ok(await isPending(waiting));
      assert.equal(looked, 2);
      context.kick();
      await waiting;
    });
  });

  it("throws at once if the lock is not held", async () => {
    const context = new AioContext("test");
    const main = await context.acquire();
    main.release();
    await assert.rejects(
      aioWaitWhile(main, () => true),
      (error) =>
        error instanceof AssertionError && /must hold the lock of AioContext 'test'/.test(error.message),
    );
  });

  it("throws at once if the lock is held twice: whoever is waited for could never get it", async () => {
    const context = new AioContext("test");
    await context.run(async (main) => {
      await context.acquire(main);
      await assert.rejects(
        aioWaitWhile(main, () => true),
        (error) => error instanceof AssertionError && /is held 2 times/.test(error.message),
      );
      main.release();
    });
  });
});

describe("coWrapperMixed", () => {
  const seen: Coroutine<"read">[] = [];
  const note = coWrapperMixed(async function noteCaller(co: Coroutine<"read">, answer: number) {
    seen.push(co);
    await settled();
    return answer;
  });

  it("called in a coroutine, calls the function with that very coroutine", async () => {
    const context = new AioContext("test");
    const co = new Coroutine("none", context);
    await graphRdlock(co, async (reader) => {
      const before = coroutinesCreated();
      assert.equal(await note(reader, 7), 7);
      assert.equal(coroutinesCreated(), before);
      assert.equal(seen.at(-1), reader);
    });
  });

  it("called from the main loop, makes one coroutine that holds the read lock, and polls with the lock given up", async () => {
    const context = new AioContext("test");
    const entered = gate();
    const leave = gate();
    const work = coWrapperMixed(async (co: Coroutine<"read">) => {
      assert.equal(co.graph, "read");
      assert.ok(co.live);
      entered.open();
      await leave.opened;
      return context.graph.readers;
    });
    const before = coroutinesCreated();
    await context.run(async (main) => {
      const answer = work(main);
      await entered.opened;
      assert.equal(context.graph.readers, 1);
      // Another task gets the lock while this one waits.
      await context.run(async () => assert.ok(!main.isHeld));
      leave.open();
      assert.equal(await answer, 1);
      assert.ok(main.isHeld);
    });
    assert.equal(coroutinesCreated(), before + 1);
    assert.equal(context.graph.readers, 0);
  });

  it("hands on what the function throws, with the locks as they were", async () => {
    const context = new AioContext("test");
    const fail = coWrapperMixed(async (co: Coroutine<"read">) => {
      assert.ok(co.live);
      throw new Error("from inside");
    });
    await context.run(async (main) => {
      await assert.rejects(fail(main), /from inside/);
      assert.ok(main.isHeld);
    });
    assert.equal(context.graph.readers, 0);
  });

  it("refuses a coroutine whose read lock has been given up, or that has none", async () => {
    const context = new AioContext("test");
    const none = new Coroutine("none", context);
    let stale: Coroutine<"read"> | undefined;
    await graphRdlock(none, async (reader) => {
      stale = reader;
    });
    await assert.rejects(note(stale as Coroutine<"read">, 1), AssertionError);
    await assert.rejects(note(none as unknown as Coroutine<"read">, 1), AssertionError);
  });

  for (const [what, spoil] of [
    ["not held", (main: MainLoop) => main.release()],
    ["held twice", (main: MainLoop) => main.context.acquire(main)],
  ] as const) {
    it(`refuses a main loop whose lock is ${what}, at once`, async () => {
      const context = new AioContext("test");
      const main = await context.acquire();
      await spoil(main);
      const before = coroutinesCreated();
      await assert.rejects(note(main, 1), AssertionError);
      assert.equal(coroutinesCreated(), before);
    });
  }
});

describe("the other wrappers", () => {
  it("coWrapper throws in a coroutine", async () => {
    const context = new AioContext("test");
    const only = coWrapper(async function onlyOutside(co: Coroutine<"none">) {
      return co.graph;
    });
    await context.run(async (main) => assert.equal(await only(main), "none"));
    const co = new Coroutine("none", context);
    await assert.rejects(
      only(co as unknown as MainLoop),
      (error) =>
        error instanceof AssertionError && error.message === "onlyOutside must not be called in a coroutine",
    );
  });

  it("coWrapperMixedUnlocked refuses a coroutine that holds the graph lock", async () => {
    const context = new AioContext("test");
    const change = coWrapperMixedUnlocked(async (co: Coroutine<"none">) => co.id);
    const co = new Coroutine("none", context);
    assert.equal(await change(co), co.id);
    await graphRdlock(co, async (reader) => {
      await assert.rejects(change(reader as unknown as Coroutine<"none">), AssertionError);
    });
    await context.run(async (main) => assert.ok((await change(main)) > co.id));
  });
});

describe("Coroutine", () => {
  it("keeps identity and signal through the views of the graph lock", async () => {
    const controller = new AbortController();
    const co = new Coroutine("none", new AioContext("test"), controller.signal);
    await graphRdlock(co, async (reader) => {
      assert.equal(reader.id, co.id);
      reader.checkAborted();
      controller.abort(new Error("enough"));
      assert.throws(() => reader.checkAborted(), /enough/);
    });
  });
});
