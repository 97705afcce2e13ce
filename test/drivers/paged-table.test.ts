/** `PagedTable`: entries of both widths and both byte orders, few pages, what is written and when. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { PagedTable, type PagedTableOptions } from "../../drivers/paged-table.ts";
import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { memoryDriver, openBackend } from "../support/graph.ts";
import { random } from "../support/random.ts";
import type { Cleanup } from "../support/temp.ts";

const PAGE = 16 * 1024;

async function withTable(
  t: Cleanup,
  bytes: number,
  options: Omit<PagedTableOptions, "file">,
  work: (co: Coroutine<"read">, table: PagedTable, file: BlockChild) => Promise<void>,
  memory = memoryDriver(t, "table-memory", bytes),
) {
  const backend = await openBackend({ driver: "table-memory" });
  try {
    await backend.run((co, file) => work(co, new PagedTable({ ...options, file }), file));
  } finally {
    await backend.close();
  }
  return memory;
}

for (const entryBytes of [4, 8] as const)
  for (const littleEndian of [true, false])
    test(`entries of ${entryBytes} bytes, ${littleEndian ? "little" : "big"}-endian, against an array`, async (t) => {
      const dice = random(entryBytes + Number(littleEndian));
      const entries = 30_000;
      const offset = 1000;
      const end = offset + entries * entryBytes;
      const memory = memoryDriver(t, "table-memory", end + 500);
      memory.data.fill(0xee);
      const original = memory.data.slice();
      const expected = new Map<number, number>();
      const options = { offset, entries, entryBytes, littleEndian, maxPages: 2 };
      await withTable(
        t,
        0,
        options,
        async (co, table) => {
          for (let step = 0; step < 2000; step++) {
            const index = dice.below(entries);
            const value = Math.floor(dice.next() * 2 ** (entryBytes === 4 ? 32 : 53));
            if (dice.chance(0.5)) {
              await table.set(co, index, value);
              expected.set(index, value);
            } else if (expected.has(index)) assert.equal(await table.get(co, index), expected.get(index));
            if (dice.chance(0.01)) await table.write(co);
          }
          for (const [index, value] of expected) assert.equal(await table.get(co, index), value);
          await table.flush(co);
          assert.ok(!table.hasDirty);
        },
        memory,
      );
      const view = new DataView(original.buffer);
      for (const [index, value] of expected) {
        const at = offset + index * entryBytes;
        if (entryBytes === 4) view.setUint32(at, value, littleEndian);
        else view.setBigUint64(at, BigInt(value), littleEndian);
      }
      assert.deepEqual(memory.data, original);
    });

test("reads side by side, past the end of the file, and what is in memory", async (t) => {
  await withTable(
    t,
    100,
    { offset: 0, entries: 3 * PAGE, entryBytes: 4, littleEndian: true },
    async (co, table) => {
      assert.equal(table.peek(7), undefined);
      const indexes = [7, 8, 2 * PAGE, 3 * PAGE - 1, 9, 8];
      assert.deepEqual(
        await Promise.all(indexes.map((index) => table.get(co, index))),
        indexes.map(() => 0),
      );
      assert.equal(table.peek(7), 0);
      assert.throws(() => table.peek(3 * PAGE), { name: "AssertionError" });
    },
  );
});

test("a flush before what depends on it, and only what was changed is written, in order", async (t) => {
  const memory = memoryDriver(t, "table-memory", 4 * PAGE);
  await withTable(
    t,
    0,
    { offset: 0, entries: PAGE, entryBytes: 4, littleEndian: true },
    async (co, table, file) => {
      await file.pwrite(co, 3 * PAGE, new Uint8Array(512));
      table.dependsOnFlush = true;
      await table.set(co, PAGE / 2 + 3, 5);
      await table.set(co, 1, 6);
      memory.calls.length = 0;
      await table.write(co);
      assert.deepEqual(
        memory.calls.map(({ op, offset, bytes }) => [op, offset, bytes]),
        [
          ["flushToDisk", 0, 0],
          ["pwrite", 0, 4096],
          ["pwrite", 2 * PAGE, 4096],
        ],
      );
      memory.calls.length = 0;
      await table.write(co);
      assert.equal(memory.calls.length, 0);
    },
    memory,
  );
});

test("what fails stays changed", async (t) => {
  const memory = memoryDriver(t, "table-memory", PAGE);
  await withTable(
    t,
    0,
    { offset: 0, entries: 10, entryBytes: 8, littleEndian: false },
    async (co, table) => {
      await table.set(co, 3, 2 ** 40 + 1);
      memory.hook = (op) => {
        if (op === "pwrite") throw new BlockError("ENOSPC");
      };
      await assert.rejects(table.write(co), { errno: "ENOSPC" });
      memory.hook = () => {};
      assert.ok(table.hasDirty);
      await table.write(co);
    },
    memory,
  );
  assert.deepEqual([...memory.data.subarray(24, 32)], [0, 0, 1, 0, 0, 0, 0, 1]);
});
