/** Requests on a node: alignment, splitting, serialising, emulation, flags, flushes. */

import assert from "node:assert/strict";
import { describe, it, type TestContext } from "node:test";
import type { BackendOptions } from "../../src/block/backend.ts";
import { type BlockLimits, type NodeOps, Req, unregisterDriver } from "../../src/block/driver.ts";
import { AssertionError, BlockError } from "../../src/block/errors.ts";
import type { OpenFlags } from "../../src/block/open-flags.ts";
import { MAX_LENGTH, MAX_REQUEST_BYTES } from "../../src/block/units.ts";
import { gate, isPending, memoryDriver, openBackend, settled } from "../support/graph.ts";
import { random } from "../support/random.ts";
import { sparseFile, tempDir } from "../support/temp.ts";

interface Settings {
  readonly bytes?: number;
  readonly limits?: Partial<BlockLimits>;
  readonly ops?: { readonly [K in keyof NodeOps]?: NodeOps[K] | undefined };
  readonly flags?: Partial<OpenFlags>;
  readonly backend?: BackendOptions;
}

/** A backend right on a memory driver of 64 KiB with these limits and operations. */
async function onMemory(test: TestContext, settings: Settings = {}) {
  const { bytes = 65536, limits, ops = {}, flags = {}, backend: options = {} } = settings;
  const memory = memoryDriver(test, "memory", bytes, () => ({ limits: () => limits ?? {}, ...ops }));
  const backend = await openBackend({ driver: "memory" }, { flags, backend: options });
  test.after(() => backend.close());
  memory.calls.length = 0;
  return { memory, backend };
}

const filled = (bytes: number, byte = 0xaa) => new Uint8Array(bytes).fill(byte);

describe("unaligned requests", () => {
  it("read whole blocks and give what was asked", async (test) => {
    const { memory, backend } = await onMemory(test, { limits: { requestAlignment: 512 } });
    memory.data = random(1).bytes(65536);
    assert.deepEqual(await backend.read(700, 1000), memory.data.slice(700, 1700));
    assert.deepEqual(await backend.read(1024, 512), memory.data.slice(1024, 1536));
    assert.deepEqual(memory.ranges("pread"), [
      [512, 1536],
      [1024, 512],
    ]);
  });

  it("write by read-modify-write of the head and the tail, each read once", async (test) => {
    const { memory, backend } = await onMemory(test, { limits: { requestAlignment: 512 } });
    const model = random(2).bytes(65536);
    memory.data = model.slice();
    await backend.write(700, filled(1000));
    model.fill(0xaa, 700, 1700);
    await backend.write(2050, filled(3));
    model.fill(0xaa, 2050, 2053);
    await backend.write(4096, filled(512));
    model.fill(0xaa, 4096, 4608);
    assert.deepEqual(memory.data, model);
    assert.deepEqual(memory.ranges("pread"), [
      [512, 512],
      [1536, 512],
      [2048, 512],
    ]);
    assert.deepEqual(memory.ranges("pwrite"), [
      [512, 1536],
      [2048, 512],
      [4096, 512],
    ]);
  });

  it("to one block at once lose nothing: they are serialised", async (test) => {
    const { memory, backend } = await onMemory(test, { limits: { requestAlignment: 4096 } });
    memory.hook = () => settled();
    const model = new Uint8Array(65536);
    await Promise.all(
      Array.from({ length: 200 }, (_, n) => {
        model.fill(n + 1, n * 23, n * 23 + 23);
        return backend.write(n * 23, filled(23, n + 1));
      }),
    );
    assert.deepEqual(memory.data, model);
  });

  it("in random sizes, many at once, aligned and not, writes and zeroes, give what the model has", async (test) => {
    for (const requestAlignment of [512, 4096]) {
      const dice = random(requestAlignment);
      const memory = memoryDriver(test, `memory${requestAlignment}`, 65536, () => ({
        limits: () => ({ requestAlignment, maxTransfer: 8192 }),
      }));
      memory.hook = async () => {
        for (let turn = dice.below(4); turn > 0; turn--) await Promise.resolve();
      };
      await using backend = await openBackend({ driver: `memory${requestAlignment}` });
      const model = new Uint8Array(65536);
      for (let round = 0; round < 40; round++) {
        // Ranges that touch and share blocks, but no byte.
        const tasks: Promise<unknown>[] = [];
        for (let at = dice.below(3000); at < 65536; ) {
          const bytes = Math.min(dice.pick([1, 7, 511, 512, 513, 4096, 9000]), 65536 - at);
          const start = at;
          if (dice.chance(0.6)) {
            const data = dice.bytes(bytes);
            tasks.push(backend.write(start, data).then(() => model.set(data, start)));
          } else if (dice.chance(0.5)) {
            tasks.push(backend.writeZeroes(start, bytes).then(() => model.fill(0, start, start + bytes)));
          } else {
            const wanted = model.slice(start, start + bytes);
            tasks.push(backend.read(start, bytes).then((got) => assert.deepEqual(got, wanted)));
          }
          at += bytes + (dice.chance(0.5) ? 0 : dice.below(5000));
        }
        await Promise.all(tasks);
        assert.deepEqual(memory.data, model);
      }
    }
  });

  it("hold up what overlaps them, and nothing else", async (test) => {
    const { memory, backend } = await onMemory(test, { limits: { requestAlignment: 512 } });
    const leave = gate();
    memory.hook = (op, _, offset) => (op === "pwrite" && offset === 512 ? leave.opened : undefined);
    const modifying = backend.write(600, filled(10));
    await settled();
    const sameBlock = backend.read(512, 512);
    const otherBlock = backend.read(1024, 512);
    const aligned = backend.write(512, filled(512, 1));
    await otherBlock;
    assert.ok(await isPending(sameBlock));
    assert.ok(await isPending(aligned));
    leave.open();
    await Promise.all([modifying, sameBlock, aligned]);
  });

  it("that wait for another can be aborted, and leave nothing behind", async (test) => {
    const { memory, backend } = await onMemory(test, { limits: { requestAlignment: 512 } });
    const leave = gate();
    memory.hook = (op) => (op === "pwrite" ? leave.opened : undefined);
    const first = backend.write(1, filled(1));
    await settled();
    const controller = new AbortController();
    const second = backend.write(2, filled(1), { signal: controller.signal });
    assert.ok(await isPending(second));
    controller.abort(new Error("enough"));
    await assert.rejects(second, /enough/);
    leave.open();
    await first;
    await backend.write(3, filled(1));
    assert.deepEqual([...memory.data.subarray(0, 5)], [0, 0xaa, 0, 0xaa, 0]);
    assert.equal(backend.node.requestsInFlight, 0);
  });

  it("over a real file and blkdebug's alignment leave the bytes around alone", async (test) => {
    const filename = sparseFile(tempDir(test), "a.raw", 65536);
    const file = { driver: "blkdebug", align: 4096, image: { driver: "file", filename } };
    await using backend = await openBackend({ driver: "raw", file });
    const model = random(3).bytes(65536);
    await backend.write(0, model.slice());
    await Promise.all(
      [5, 4090, 4100, 12_000].map((offset, n) => {
        model.fill(n, offset, offset + 7);
        return backend.write(offset, filled(7, n));
      }),
    );
    assert.deepEqual(await backend.read(0, 65536), model);
  });
});

describe("limits", () => {
  it("cut reads and writes at maxTransfer", async (test) => {
    const { memory, backend } = await onMemory(test, { limits: { maxTransfer: 4096 } });
    const data = random(4).bytes(10_000);
    await backend.write(100, data);
    assert.deepEqual(await backend.read(100, 10_000), data);
    const pieces = [
      [100, 4096],
      [4196, 4096],
      [8292, 1808],
    ];
    assert.deepEqual(memory.ranges("pwrite"), pieces);
    assert.deepEqual(memory.ranges("pread"), pieces);
  });

  it("stop a long request between its pieces when it is aborted", async (test) => {
    const { memory, backend } = await onMemory(test, { limits: { maxTransfer: 4096 } });
    const controller = new AbortController();
    memory.hook = () => controller.abort(new Error("enough"));
    await assert.rejects(backend.read(0, 65536, { signal: controller.signal }), /enough/);
    assert.equal(memory.ranges("pread").length, 1);
  });

  it("cut zero writes at maxPwriteZeroes, with an unaligned head and tail of their own", async (test) => {
    const { memory, backend } = await onMemory(test, {
      limits: { pwriteZeroesAlignment: 4096, maxPwriteZeroes: 8192 },
    });
    await backend.writeZeroes(1000, 30_000);
    assert.deepEqual(memory.ranges("pwriteZeroes"), [
      [1000, 3096],
      [4096, 8192],
      [12_288, 8192],
      [20_480, 8192],
      [28_672, 2328],
    ]);
  });

  it("cut discards likewise", async (test) => {
    const { memory, backend } = await onMemory(test, {
      limits: { pdiscardAlignment: 4096, maxPdiscard: 8192 },
      flags: { unmap: true },
    });
    await backend.discard(4000, 13_000);
    assert.deepEqual(memory.ranges("pdiscard"), [
      [4000, 96],
      [4096, 8192],
      [12_288, 4096],
      [16_384, 616],
    ]);
  });

  it("of requests: outside the image, negative, fractional or over the maximum is EIO", async (test) => {
    const { memory, backend } = await onMemory(test);
    for (const [offset, bytes] of [
      [65_536, 1],
      [65_535, 2],
      [-1, 1],
      [0.5, 1],
      [Number.NaN, 1],
      [2 ** 53, 1],
      [0, -1],
    ] as const) {
      await assert.rejects(backend.writeZeroes(offset, bytes), { name: "BlockError", errno: "EIO" });
      await assert.rejects(backend.discard(offset, bytes), { name: "BlockError", errno: "EIO" });
    }
    await assert.rejects(backend.read(65_535, 2), { errno: "EIO" });
    await assert.rejects(backend.write(65_535, filled(2)), { errno: "EIO" });
    await backend.read(65_536, 0);
    await backend.write(65_536, filled(0));
    assert.deepEqual(memory.calls, []);
  });

  it("reach to the last byte that a number can count", async () => {
    await using backend = await openBackend({ driver: "null-co", size: MAX_LENGTH, "read-zeroes": true });
    assert.deepEqual(await backend.read(MAX_LENGTH - 5, 5), new Uint8Array(5));
    await backend.writeZeroes(0, MAX_LENGTH);
    await backend.discard(0, MAX_LENGTH);
    await assert.rejects(backend.read(MAX_LENGTH, 1), { errno: "EIO" });
    // Nobody has a buffer of 2 GiB to spare: one that only says so.
    const fake = Object.defineProperty(Object.create(Uint8Array.prototype), "length", {
      value: MAX_REQUEST_BYTES + 1,
    }) as Uint8Array;
    await assert.rejects(backend.readInto(0, fake), { errno: "EIO" });
  });
});

describe("past the end", () => {
  it("a backend that may reads zeroes, and a write makes the node longer", async (test) => {
    const { memory, backend } = await onMemory(test, { bytes: 1024, backend: { allowBeyondEof: true } });
    memory.data.fill(7);
    const got = await backend.read(1000, 100);
    assert.deepEqual(got, Uint8Array.from([...filled(24, 7), ...new Uint8Array(76)]));
    assert.deepEqual(await backend.read(5000, 10), new Uint8Array(10));
    await backend.write(2000, filled(100));
    assert.equal(await backend.getLength(), 2560);
  });

  it("the rest of the last sector of a file reads as zeroes, and can be written", async (test) => {
    const filename = sparseFile(tempDir(test), "odd", 1000);
    await using backend = await openBackend({ driver: "raw", file: { filename } });
    assert.equal(await backend.getLength(), 1024);
    assert.deepEqual(await backend.read(990, 34), new Uint8Array(34));
    await backend.write(1010, filled(14));
    assert.deepEqual(await backend.read(1009, 15), Uint8Array.from([0, ...filled(14)]));
  });

  it("a padded tail makes no format node longer", async (test) => {
    const filename = sparseFile(tempDir(test), "odd", 5120);
    const file = { driver: "blkdebug", align: 4096, image: { driver: "file", filename } };
    await using backend = await openBackend({ driver: "raw", file }, { flags: { resize: true } });
    await backend.write(5000, filled(120));
    assert.equal(await backend.getLength(), 5120);
    assert.deepEqual((await backend.read(4990, 130)).slice(10), filled(120));
  });
});

describe("zero writes", () => {
  it("are written as data where the driver can't, in pieces of bounded size", async (test) => {
    const { memory, backend } = await onMemory(test, {
      bytes: 4 * 2 ** 20,
      ops: { pwriteZeroes: undefined },
    });
    memory.data.fill(9);
    await backend.writeZeroes(100, 3 * 2 ** 20);
    assert.ok(memory.data.subarray(100, 100 + 3 * 2 ** 20).every((byte) => byte === 0));
    assert.equal(memory.data[99], 9);
    assert.equal(memory.data[100 + 3 * 2 ** 20], 9);
    assert.ok(memory.ranges("pwrite").every(([, bytes]) => bytes <= 2 ** 20));
  });

  it("are written as data where the driver answers ENOTSUP for the range", async (test) => {
    const { memory, backend } = await onMemory(test, {
      ops: {
        pwriteZeroes: async () => {
          throw new BlockError("ENOTSUP");
        },
      },
    });
    memory.data.fill(9);
    await backend.writeZeroes(0, 4096);
    assert.deepEqual(memory.ranges("pwrite"), [[0, 4096]]);
    assert.equal(memory.data[4095], 0);
  });

  it("with NoFallback fail with ENOTSUP instead, and other errors are no reason to write", async (test) => {
    let errno: "ENOTSUP" | "ENOSPC" = "ENOTSUP";
    const { memory, backend } = await onMemory(test, {
      ops: {
        supportedZeroFlags: Req.NoFallback,
        pwriteZeroes: async () => {
          throw new BlockError(errno);
        },
      },
    });
    await assert.rejects(backend.writeZeroes(0, 4096, { noFallback: true }), { errno: "ENOTSUP" });
    errno = "ENOSPC";
    await assert.rejects(backend.writeZeroes(0, 4096), { errno: "ENOSPC" });
    assert.deepEqual(memory.ranges("pwrite"), []);
  });

  it("with NoFallback fail on a driver that does not know the flag", async (test) => {
    const { memory, backend } = await onMemory(test);
    await assert.rejects(backend.writeZeroes(0, 4096, { noFallback: true }), { errno: "ENOTSUP" });
    assert.deepEqual(memory.calls, []);
  });

  it("pass MayUnmap on only where the driver can, and below another node where the node may unmap", async (test) => {
    const below = (discard: string) => ({ driver: "raw", file: { driver: "unmapping", discard } });
    for (const [options, supportedZeroFlags, wanted] of [
      // A backend's own request is taken at its word.
      [{ driver: "unmapping", discard: "ignore" }, Req.MayUnmap, Req.MayUnmap],
      [below("unmap"), Req.MayUnmap, Req.MayUnmap],
      [below("ignore"), Req.MayUnmap, 0],
      [below("unmap"), 0, 0],
    ] as const) {
      const memory = memoryDriver(test, "unmapping", 4096, () => ({ supportedZeroFlags }));
      await using backend = await openBackend(options);
      await backend.writeZeroes(0, 4096, { mayUnmap: true });
      assert.equal(memory.calls.find(({ op }) => op === "pwriteZeroes")?.flags, wanted);
      unregisterDriver("unmapping");
    }
  });

  it("keep the bytes around an unaligned range", async (test) => {
    const { memory, backend } = await onMemory(test, { limits: { requestAlignment: 4096 } });
    memory.data.fill(9);
    await backend.writeZeroes(4000, 10_000);
    assert.deepEqual(memory.ranges("pwriteZeroes"), [[4096, 8192]]);
    const model = filled(65536, 9).fill(0, 4000, 14_000);
    assert.deepEqual(memory.data, model);
    await backend.writeZeroes(20_500, 10);
    assert.deepEqual(memory.data, model.fill(0, 20_500, 20_510));
  });
});

describe("detect-zeroes", () => {
  const cases = [
    ["off", "pwrite", 0],
    ["on", "pwriteZeroes", 0],
    ["unmap", "pwriteZeroes", Req.MayUnmap],
  ] as const;
  for (const [detectZeroes, op, flags] of cases) {
    it(`${detectZeroes}: a write of zeroes arrives as ${op}`, async (test) => {
      const { memory, backend } = await onMemory(test, {
        flags: { detectZeroes, unmap: true },
        ops: { supportedZeroFlags: Req.MayUnmap },
      });
      await backend.write(0, new Uint8Array(4096));
      await backend.write(4096, Uint8Array.from([...new Uint8Array(4095), 1]));
      assert.deepEqual(
        memory.calls.map((call) => [call.op, call.offset, call.flags]),
        [
          [op, 0, flags],
          ["pwrite", 4096, 0],
        ],
      );
    });
  }
});

describe("discard", () => {
  it("is nothing without leave to unmap, without the operation, and where the driver can't", async (test) => {
    const locked = await onMemory(test);
    await locked.backend.discard(0, 4096);
    assert.deepEqual(locked.memory.calls, []);
    const unable = async () => {
      throw new BlockError("ENOTSUP");
    };
    for (const [name, pdiscard] of Object.entries({ without: undefined, unable })) {
      const memory = memoryDriver(test, name, 4096, () => ({ pdiscard }));
      memory.data.fill(3);
      await using backend = await openBackend({ driver: name }, { flags: { unmap: true } });
      await backend.discard(0, 4096);
      assert.equal(memory.data[0], 3);
    }
  });

  it("tells other errors", async (test) => {
    const { memory, backend } = await onMemory(test, { flags: { unmap: true } });
    memory.hook = (op) => (op === "pdiscard" ? Promise.reject(new BlockError("EIO")) : undefined);
    await assert.rejects(backend.discard(0, 4096), { errno: "EIO" });
  });
});

describe("flush and FUA", () => {
  const flushes = (memory: { calls: readonly { op: string }[] }) =>
    memory.calls.filter(({ op }) => op === "flushToDisk").length;

  it("flush once for all writes before, and not at all where nothing was written", async (test) => {
    const { memory, backend } = await onMemory(test);
    await backend.flush();
    assert.equal(flushes(memory), 0);
    await Promise.all([backend.write(0, filled(1)), backend.write(1, filled(1))]);
    await backend.flush();
    await backend.flush();
    assert.equal(flushes(memory), 1);
    await backend.writeZeroes(0, 512);
    await backend.flush();
    assert.equal(flushes(memory), 2);
    await backend.truncate(131_072);
    await backend.flush();
    assert.equal(flushes(memory), 3);
  });

  it("flush again after a flush that failed, and after a write that failed half way", async (test) => {
    const { memory, backend } = await onMemory(test, { limits: { maxTransfer: 512 } });
    let failing = "flushToDisk";
    memory.hook = (op, _, offset) =>
      op === failing && (op !== "pwrite" || offset > 0) ? Promise.reject(new BlockError("EIO")) : undefined;
    await backend.write(0, filled(1));
    await assert.rejects(backend.flush(), { errno: "EIO" });
    failing = "";
    await backend.flush();
    assert.equal(flushes(memory), 2);
    failing = "pwrite";
    await assert.rejects(backend.write(0, filled(1024)), { errno: "EIO" });
    failing = "";
    await backend.flush();
    assert.equal(flushes(memory), 3);
  });

  it("don't count a write as flushed that ended while the flush was under way", async (test) => {
    const { memory, backend } = await onMemory(test);
    await backend.write(0, filled(1));
    const leave = gate();
    memory.hook = (op) => (op === "flushToDisk" ? leave.opened : undefined);
    const flushing = backend.flush();
    await settled();
    await backend.write(1, filled(1));
    leave.open();
    await flushing;
    await backend.flush();
    assert.equal(flushes(memory), 2);
  });

  it("FUA is passed on where the driver knows it, and is a flush after the write where not", async (test) => {
    const plain = await onMemory(test);
    await plain.backend.write(0, filled(1), { fua: true });
    assert.deepEqual(
      plain.memory.calls.map(({ op, flags }) => [op, flags]),
      [
        ["pwrite", 0],
        ["flushToDisk", 0],
      ],
    );
    const able = memoryDriver(test, "able", 4096, () => ({ supportedWriteFlags: Req.Fua }));
    await using backend = await openBackend({ driver: "able" });
    await backend.write(0, filled(1), { fua: true });
    assert.equal(able.calls.at(-1)?.flags, Req.Fua);
    assert.equal(flushes(able), 0);
  });

  it("FUA of a write in pieces and of a zero write is one flush at the end", async (test) => {
    const { memory, backend } = await onMemory(test, {
      limits: { maxTransfer: 512, maxPwriteZeroes: 512 },
    });
    await backend.write(0, filled(2048), { fua: true });
    await backend.writeZeroes(0, 2048, { fua: true });
    assert.deepEqual(
      memory.calls.map(({ op }) => op),
      [
        ...Array<string>(4).fill("pwrite"),
        "flushToDisk",
        ...Array<string>(4).fill("pwriteZeroes"),
        "flushToDisk",
      ],
    );
  });

  it("a writethrough backend makes every write FUA", async (test) => {
    const { memory, backend } = await onMemory(test, { backend: { writethrough: true } });
    await backend.write(0, filled(1));
    await backend.writeZeroes(0, 512);
    assert.equal(flushes(memory), 2);
  });

  it("cache.no-flush never flushes to disk", async (test) => {
    const { memory, backend } = await onMemory(test, { flags: { noFlush: true } });
    await backend.write(0, filled(1), { fua: true });
    await backend.flush();
    await backend.close();
    assert.equal(flushes(memory), 0);
  });

  it("reach the file below a format, and a format over a file flushes each once", async (test) => {
    const memory = memoryDriver(test, "below", 4096);
    await using backend = await openBackend({ driver: "raw", file: { driver: "below" } });
    await backend.write(0, filled(1));
    await backend.flush();
    await backend.flush();
    assert.equal(flushes(memory), 1);
  });
});

describe("what is not allowed", () => {
  it("a write to a read-only node is EPERM", async (test) => {
    const { memory, backend } = await onMemory(test, { flags: { readOnly: true } });
    await assert.rejects(backend.write(0, filled(1)), { errno: "EPERM" });
    await assert.rejects(backend.writeZeroes(0, 1), { errno: "EPERM" });
    await assert.rejects(backend.discard(0, 1), { errno: "EPERM" });
    await backend.flush();
    assert.deepEqual(memory.calls, []);
  });

  it("a write through an edge without permission is a bug, and asserted", async (test) => {
    const { backend } = await onMemory(test, { backend: { perm: { used: 1, shared: 15 } } });
    await assert.rejects(backend.write(0, filled(1)), AssertionError);
  });

  it("a compressed write where nobody compresses is ENOTSUP", async (test) => {
    const { backend } = await onMemory(test);
    await assert.rejects(backend.write(0, filled(512), { compressed: true }), { errno: "ENOTSUP" });
  });

  it("a request with a signal that is aborted already is not started", async (test) => {
    const { memory, backend } = await onMemory(test);
    const signal = AbortSignal.abort(new Error("too late"));
    await assert.rejects(backend.read(0, 1, { signal }), /too late/);
    await assert.rejects(backend.flush(signal), /too late/);
    assert.deepEqual(memory.calls, []);
  });

  it("operations that a protocol lacks are ENOTSUP", async (test) => {
    const { backend } = await onMemory(test, { ops: { pread: undefined, pwrite: undefined } });
    await assert.rejects(backend.read(0, 1), { errno: "ENOTSUP" });
    await assert.rejects(backend.write(0, filled(1)), { errno: "ENOTSUP" });
  });
});

describe("vectors", () => {
  it("are scattered and gathered over alignment and pieces", async (test) => {
    const { memory, backend } = await onMemory(test, {
      limits: { requestAlignment: 512, maxTransfer: 1024 },
    });
    const parts = [filled(3, 1), filled(1000, 2), filled(0), filled(700, 3)];
    await backend.write(77, parts);
    const got = [new Uint8Array(500), new Uint8Array(1), new Uint8Array(1202)];
    await backend.readInto(77, got);
    assert.deepEqual(Buffer.concat(got), Buffer.concat(parts));
    assert.deepEqual(memory.data.slice(77, 1780), new Uint8Array(Buffer.concat(parts)));
    assert.ok(memory.ranges("pwrite").every(([, bytes]) => bytes <= 1024));
  });
});
