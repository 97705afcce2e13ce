/** The graph lock: many readers or one writer, nobody starved. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { AioContext } from "../../src/block/aio-context.ts";
import { Coroutine, graphRdlock } from "../../src/block/coroutine.ts";
import { AssertionError } from "../../src/block/errors.ts";
import { gate, isPending, settled } from "../support/graph.ts";
import { random } from "../support/random.ts";

const none = (context: AioContext, signal?: AbortSignal) => new Coroutine("none", context, signal);

describe("the graph lock", () => {
  it("lets readers in side by side, and a writer only when all have left", async () => {
    const context = new AioContext("test");
    const leave = [gate(), gate()];
    const reading = leave.map((each) => graphRdlock(none(context), () => each.opened));
    assert.equal(context.graph.readers, 2);
    let wrote = false;
    const writing = context.graph.write(none(context), async () => {
      assert.equal(context.graph.readers, 0);
      assert.ok(context.graph.isWriteLocked);
      wrote = true;
    });
    leave[0]?.open();
    assert.ok(await isPending(writing));
    leave[1]?.open();
    await writing;
    assert.ok(wrote);
    await Promise.all(reading);
    assert.ok(!context.graph.isWriteLocked);
  });

  it("puts new readers behind a writer that waits: writers are not starved", async () => {
    const context = new AioContext("test");
    const leave = gate();
    const order: string[] = [];
    const first = graphRdlock(none(context), () => leave.opened);
    const writer = context.graph.write(none(context), async () => {
      order.push("writer");
      await settled();
      order.push("writer leaves");
    });
    const later = [1, 2].map((n) => graphRdlock(none(context), async () => void order.push(`reader ${n}`)));
    assert.equal(context.graph.tryEnter(), false);
    await settled();
    assert.deepEqual(order, []);
    leave.open();
    await Promise.all([first, writer, ...later]);
    assert.deepEqual(order, ["writer", "writer leaves", "reader 1", "reader 2"]);
  });

  it("keeps writers apart, in order of arrival", async () => {
    const context = new AioContext("test");
    const order: string[] = [];
    await Promise.all(
      [1, 2, 3].map((n) =>
        context.graph.write(none(context), async () => {
          order.push(`in ${n}`);
          await settled();
          order.push(`out ${n}`);
        }),
      ),
    );
    assert.deepEqual(order, ["in 1", "out 1", "in 2", "out 2", "in 3", "out 3"]);
  });

  it("lets a reader that is aborted go, and the others on", async () => {
    const context = new AioContext("test");
    const leave = gate();
    const writing = context.graph.write(none(context), () => leave.opened);
    const controller = new AbortController();
    let entered = false;
    const aborted = graphRdlock(none(context, controller.signal), async () => {
      entered = true;
    });
    const other = graphRdlock(none(context), async () => "read");
    controller.abort(new Error("enough"));
    await assert.rejects(aborted, /enough/);
    leave.open();
    await writing;
    assert.equal(await other, "read");
    assert.equal(entered, false);
    assert.equal(context.graph.readers, 0);
  });

  it("takes an abort after entry as nothing of its business, and one before it as a refusal", async () => {
    const context = new AioContext("test");
    const controller = new AbortController();
    await graphRdlock(none(context, controller.signal), async () => controller.abort());
    assert.equal(context.graph.readers, 0);
    const leave = gate();
    const writing = context.graph.write(none(context), () => leave.opened);
    const aborted = graphRdlock(none(context, controller.signal), async () => {});
    await assert.rejects(aborted, { name: "AbortError" });
    leave.open();
    await writing;
    assert.ok(context.graph.tryEnter());
    context.graph.leave();
  });

  it("refuses a writer that holds the read lock: it would wait for itself", async () => {
    const context = new AioContext("test");
    await graphRdlock(none(context), async (reader) => {
      await assert.rejects(
        context.graph.write(reader as unknown as Coroutine<"none">, async () => {}),
        AssertionError,
      );
    });
    assert.throws(() => context.graph.leave(), AssertionError);
  });

  it("gives the lock back when the holder throws, and makes its proof worthless", async () => {
    const context = new AioContext("test");
    let proof: { live: boolean } | undefined;
    await assert.rejects(
      context.graph.write(none(context), async (writer) => {
        proof = writer;
        throw new Error("from inside");
      }),
      /from inside/,
    );
    assert.equal(proof?.live, false);
    await assert.rejects(
      graphRdlock(none(context), async () => {
        throw new Error("from a reader");
      }),
      /from a reader/,
    );
    assert.equal(context.graph.readers, 0);
    assert.ok(!context.graph.isWriteLocked);
  });

  it("holds its invariants through a thousand random comers, some of them aborted", async () => {
    const context = new AioContext("test");
    const dice = random(20);
    let readers = 0;
    let writers = 0;
    const tasks: Promise<unknown>[] = [];
    for (let n = 0; n < 1000; n++) {
      const turns = dice.below(4);
      const work = async () => {
        for (let turn = 0; turn < turns; turn++) await Promise.resolve();
      };
      if (dice.chance(0.2)) {
        tasks.push(
          context.graph.write(none(context), async () => {
            assert.equal(++writers + readers, 1);
            await work();
            writers--;
          }),
        );
      } else {
        const controller = new AbortController();
        const read = graphRdlock(none(context, controller.signal), async () => {
          readers++;
          assert.equal(writers, 0);
          await work();
          readers--;
        });
        tasks.push(read.catch((error: unknown) => assert.equal(error, controller.signal.reason)));
        if (dice.chance(0.2)) controller.abort();
      }
      if (dice.chance(0.3)) await Promise.resolve();
    }
    await Promise.all(tasks);
    assert.equal(readers + writers + context.graph.readers, 0);
    assert.ok(!context.graph.isWriteLocked);
  });
});
