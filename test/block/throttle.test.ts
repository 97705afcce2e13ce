/** Throttle groups: what passes at once, what waits, and in which order. No test waits for a clock. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { setImmediate as nextTurn } from "node:timers/promises";
import { makeThrottleGroup } from "../../src/cli/throttle-group.ts";

/** Limits under which what does not pass at once does not pass in the time of a test. */
function group(limits: Readonly<Record<string, number>>) {
  return makeThrottleGroup(
    new Map(Object.entries(limits).map(([key, value]) => [`x-${key}`, String(value)])),
  );
}

/** Starts requests, and tells which have passed after a few turns of the event loop. */
async function passing(requests: Readonly<Record<string, () => Promise<void>>>): Promise<string[]> {
  const passed: string[] = [];
  for (const [name, request] of Object.entries(requests))
    request().then(() => passed.push(name), assert.fail);
  for (let turn = 0; turn < 10; turn++) await nextTurn();
  return passed;
}

describe("a throttle group", () => {
  it("without limits lets all pass, in their order", async () => {
    const { signal } = new AbortController();
    const all = group({});
    const read = () => all.pass("read", 2 ** 30, signal);
    assert.deepEqual(await passing({ a: read, b: read, c: read }), ["a", "b", "c"]);
  });

  it("lets the first request pass however long it is, and the next of that direction wait", async () => {
    const released = new AbortController();
    const slow = group({ "bps-read": 1 });
    const read = () => slow.pass("read", 4096, released.signal);
    const write = () => slow.pass("write", 4096, released.signal);
    assert.deepEqual(await passing({ a: read, b: read, w: write, x: write }), ["a", "w", "x"]);
    released.abort();
    assert.deepEqual(await passing({ c: read }), ["c"]);
  });

  it("counts both directions for a total", async () => {
    const released = new AbortController();
    const slow = group({ "iops-total": 1 });
    const requests = {
      r: () => slow.pass("read", 1, released.signal),
      w: () => slow.pass("write", 1, released.signal),
    };
    assert.deepEqual(await passing(requests), ["r"]);
    released.abort();
  });

  it("lets a burst pass up to its rate", async () => {
    const released = new AbortController();
    const burst = group({ "iops-total": 1, "iops-total-max": 3 });
    const read = () => burst.pass("read", 1, released.signal);
    // The bucket may be filled over its brim once.
    assert.deepEqual(await passing({ a: read, b: read, c: read, d: read, e: read }), ["a", "b", "c", "d"]);
    released.abort();
  });

  it("counts long requests several times where a size is given", async () => {
    const released = new AbortController();
    const sized = group({ "iops-total": 1, "iops-total-max": 3, "iops-size": 512 });
    const read = () => sized.pass("read", 2048, released.signal);
    assert.deepEqual(await passing({ a: read, b: read }), ["a"]);
    released.abort();
  });
});
