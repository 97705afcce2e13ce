/** Streams of the guest content, of Node and of the web, and extents: content, sparseness, pressure, cancelling, errors. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { type TestContext, test } from "node:test";
import {
  type BlockBackend,
  BlockError,
  createReadStream,
  createWriteStream,
  KiB,
  MiB,
  open,
  readable,
  readExtents,
  writable,
} from "../../src/index.ts";
import { gate, type Memory, memoryDriver, openBackend, settled } from "../support/graph.ts";
import { random } from "../support/random.ts";
import { sparseFile, tempDir } from "../support/temp.ts";
import { noHoles } from "../support/tools.ts";

const LENGTH = 3 * MiB + 512;

/** A file with data and holes, and what it reads as. */
async function patchwork(t: TestContext, seed: number) {
  const dir = tempDir(t);
  const filename = sparseFile(dir, "disk.img", LENGTH);
  const content = Buffer.alloc(LENGTH);
  const r = random(seed);
  for (let piece = 0; piece < 12; piece++) {
    const bytes = r.between(1, 100 * KiB);
    const offset = r.below(LENGTH - bytes);
    content.set(r.bytes(bytes), offset);
    const fd = fs.openSync(filename, "r+");
    fs.writeSync(fd, content, offset, bytes, offset);
    fs.closeSync(fd);
  }
  return { dir, filename, content, r };
}

async function gather<T>(iterable: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const each of iterable) all.push(each);
  return all;
}

async function collect(stream: AsyncIterable<Uint8Array>): Promise<Buffer> {
  return Buffer.concat(await gather(stream));
}

/** An image on the memory driver, which tells of the given zero ranges. */
async function recorded(
  t: TestContext,
  bytes: number,
  isZero: (offset: number) => boolean = () => false,
): Promise<{ readonly memory: Memory; readonly image: BlockBackend }> {
  const name = `memory-${t.name.replace(/\W+/g, "-").toLowerCase()}`;
  const unit = 64 * KiB;
  const memory = memoryDriver(t, name, bytes, () => ({
    blockStatus: async (_co, _wantZero, offset, asked) => {
      const zero = isZero(offset);
      const status = { bytes: Math.min(unit - (offset % unit), asked), data: !zero, zero, allocated: true };
      return status;
    },
  }));
  const image = await openBackend({ driver: name });
  t.after(() => image.close());
  memory.calls.length = 0;
  return { memory, image };
}

const readers = {
  "Node stream": (...args: Parameters<typeof createReadStream>): AsyncIterable<Uint8Array> =>
    createReadStream(...args),
  "web stream": (...args: Parameters<typeof readable>): AsyncIterable<Uint8Array> => readable(...args),
};

for (const [kind, read] of Object.entries(readers)) {
  test(`${kind}: reads all, and any range in pieces of any size`, async (t) => {
    const { filename, content, r } = await patchwork(t, 1);
    await using image = await open(filename, { format: "raw" });
    assert.ok(content.equals(await collect(read(image))));
    for (let round = 0; round < 20; round++) {
      const start = r.below(LENGTH);
      const end = r.between(start, LENGTH - 1);
      const highWaterMark = r.pick([1000, 4096, 65536, 65537, 5 * MiB]);
      const got = await collect(read(image, { start, end, highWaterMark }));
      assert.ok(content.subarray(start, end + 1).equals(got), `${start}-${end} by ${highWaterMark}`);
    }
  });

  test(`${kind}: an empty range is an empty stream; one outside of the image is refused`, async (t) => {
    const { filename } = await patchwork(t, 2);
    await using image = await open(filename, { format: "raw" });
    assert.equal((await collect(read(image, { start: LENGTH }))).length, 0);
    assert.equal((await collect(read(image, { start: 5, end: 4 }))).length, 0);
    for (const range of [
      { end: LENGTH },
      { start: LENGTH + 1 },
      { start: -1 },
      { start: 5, end: 3 },
      { start: 0.5 },
    ])
      await assert.rejects(collect(read(image, range)), RangeError);
  });

  test(`${kind}: what the block status calls zero is not read`, async (t) => {
    const { memory, image } = await recorded(t, MiB, (offset) => offset >= 128 * KiB && offset < 896 * KiB);
    memory.data.fill(1);
    const got = await collect(read(image));
    assert.ok(got.subarray(128 * KiB, 896 * KiB).every((byte) => byte === 0));
    assert.ok(got.subarray(0, 128 * KiB).every((byte) => byte === 1));
    for (const [offset, bytes] of memory.ranges("pread"))
      assert.ok(offset + bytes <= 128 * KiB || offset >= 896 * KiB, `read ${bytes} at ${offset}`);
  });

  test(`${kind}: an error of the image comes out as it is, once what was read before is delivered`, async (t) => {
    const { memory, image } = await recorded(t, MiB);
    const failure = new BlockError("EIO", "the disk is broken", { offset: 512 * KiB });
    memory.hook = (op, _co, offset) => {
      if (op === "pread" && offset >= 512 * KiB) throw failure;
    };
    let bytes = 0;
    const reading = (async () => {
      for await (const chunk of read(image, { highWaterMark: 128 * KiB })) bytes += chunk.length;
    })();
    await assert.rejects(reading, (error) => error === failure);
    // The web stream reads nothing ahead; a Node stream may drop what waits when it is destroyed.
    if (kind === "web stream") assert.equal(bytes, 512 * KiB);
    assert.equal(image.requestsInFlight, 0);
  });

  test(`${kind}: a consumer that stops, or aborts, ends it`, async (t) => {
    const { memory, image } = await recorded(t, MiB);
    for await (const chunk of read(image, { highWaterMark: 64 * KiB })) {
      assert.equal(chunk.length, 64 * KiB);
      break;
    }
    assert.ok(memory.ranges("pread").length <= 3);
    const controller = new AbortController();
    const stream = read(image, { signal: controller.signal, highWaterMark: 64 * KiB });
    const reason = new Error("enough");
    await assert.rejects(
      async () => {
        for await (const _ of stream) controller.abort(reason);
      },
      (error: Error) => error === reason || (error.name === "AbortError" && error.cause === reason),
    );
    await settled();
    assert.equal(image.requestsInFlight, 0);
    await assert.rejects(collect(read(image, { signal: AbortSignal.abort(reason) })));
  });

  test(`${kind}: an image that gets shorter under it is an error`, async (t) => {
    const { filename } = await patchwork(t, 3);
    await using image = await open(filename, { format: "raw", writable: true });
    await assert.rejects(
      async () => {
        for await (const _ of read(image, { highWaterMark: 64 * KiB })) await image.truncate(128 * KiB);
      },
      { errno: "EIO" },
    );
  });
}

for (const [kind, read] of Object.entries(readers)) {
  test(`${kind}: an image that is closed under it is an error, not a hang`, async (t) => {
    const { filename } = await patchwork(t, 10);
    const image = await open(filename, { format: "raw" });
    await assert.rejects(
      async () => {
        for await (const _ of read(image, { highWaterMark: 64 * KiB })) await image.close();
      },
      { errno: "ENOMEDIUM" },
    );
  });
}

test("Node stream: a slow consumer holds the reads back", async (t) => {
  const { memory, image } = await recorded(t, 4 * MiB);
  const stream = createReadStream(image, { highWaterMark: 64 * KiB });
  stream.once("readable", () => {});
  await settled();
  // One piece that waits, and at most one more that was under way.
  assert.ok(memory.ranges("pread").length <= 2, `${memory.ranges("pread").length} reads`);
  stream.destroy();
});

test("Node stream: destroyed in the middle of a read, it closes when the read has ended", async (t) => {
  const { memory, image } = await recorded(t, MiB);
  const held = gate();
  memory.hook = (op) => (op === "pread" ? held.opened : undefined);
  const stream = createReadStream(image);
  let isClosed = false;
  stream.on("close", () => {
    isClosed = true;
  });
  stream.resume();
  await settled();
  stream.destroy();
  await settled();
  assert.equal(isClosed, false);
  held.open();
  await settled();
  assert.equal(isClosed, true);
  assert.equal(image.requestsInFlight, 0);
});

test("web stream: reads only what is asked for, into the reader's own buffer", async (t) => {
  const { memory, image } = await recorded(t, MiB);
  memory.data.fill(7);
  const stream = readable(image, { start: 1000 });
  await settled();
  assert.deepEqual(memory.ranges("pread"), []);
  const reader = stream.getReader({ mode: "byob" });
  const { value, done } = await reader.read(new Uint8Array(new ArrayBuffer(5000), 10, 4096));
  assert.equal(done, false);
  assert.equal(value?.byteOffset, 10);
  // Up to the next multiple of the buffer's length, so that later reads are aligned.
  assert.equal(value?.length, 4096 - 1000);
  assert.ok(value?.every((byte) => byte === 7));
  await reader.cancel();
});

test("web stream: is a body for a Response", async (t) => {
  const { filename, content } = await patchwork(t, 4);
  await using image = await open(filename, { format: "raw" });
  const body = await new Response(readable(image, { start: 512 })).arrayBuffer();
  assert.ok(content.subarray(512).equals(Buffer.from(body)));
});

type Write = (
  image: BlockBackend,
  options: Parameters<typeof createWriteStream>[1],
  chunks: Uint8Array[],
) => Promise<void>;

const writers: Readonly<Record<string, Write>> = {
  "Node stream": (image, options, chunks) =>
    pipeline(Readable.from(chunks), createWriteStream(image, options)),
  "web stream": async (image, options, chunks) => {
    await ReadableStream.from(chunks).pipeTo(writable(image, options));
  },
};

function cut(content: Uint8Array, next: () => number): Uint8Array[] {
  const chunks: Uint8Array[] = [];
  for (let at = 0; at < content.length; ) {
    const chunk = content.subarray(at, at + next());
    chunks.push(chunk);
    at += chunk.length;
  }
  return chunks;
}

for (const [kind, write] of Object.entries(writers)) {
  test(`${kind}: writes what comes in chunks of any size, from any offset`, async (t) => {
    const { dir, content, r } = await patchwork(t, 5);
    for (let round = 0; round < 6; round++) {
      const filename = path.join(dir, `copy${round}.img`);
      fs.writeFileSync(filename, Buffer.alloc(LENGTH, 0xaa));
      const start = round === 0 ? 0 : r.below(LENGTH);
      const part = content.subarray(start, round === 1 ? undefined : r.between(start, LENGTH));
      {
        await using image = await open(filename, { format: "raw", writable: true });
        await write(
          image,
          { start, flush: round % 2 === 0 },
          cut(part, () => r.between(1, r.pick([10, 5000, 300 * KiB, 2 * MiB]) || 1)),
        );
      }
      const stored = fs.readFileSync(filename);
      assert.ok(part.equals(stored.subarray(start, start + part.length)));
      assert.ok(stored.subarray(0, start).every((byte) => byte === 0xaa));
      assert.ok(stored.subarray(start + part.length).every((byte) => byte === 0xaa));
    }
  });

  test(`${kind}: zeroes become zero writes, data large aligned writes`, async (t) => {
    const { memory, image } = await recorded(t, 4 * MiB);
    const content = Buffer.alloc(3 * MiB);
    content.fill(1, 100, 20 * KiB);
    content.fill(1, 2 * MiB + 1, 2 * MiB + 2);
    await write(
      image,
      {},
      cut(content, () => 7777),
    );
    assert.ok(content.equals(memory.data.subarray(0, content.length)));
    assert.deepEqual(memory.ranges("pwrite"), [
      [0, 20 * KiB],
      [2 * MiB, 4 * KiB],
    ]);
    assert.deepEqual(memory.ranges("pwriteZeroes"), [
      [20 * KiB, MiB - 20 * KiB],
      [MiB, MiB],
      [2 * MiB + 4 * KiB, MiB - 4 * KiB],
    ]);
    assert.ok(!memory.calls.some(({ op }) => op === "flushToDisk"));
    await write(image, { flush: true }, [new Uint8Array(512)]);
    assert.ok(memory.calls.some(({ op }) => op === "flushToDisk"));
  });

  test(`${kind}: more than the image holds is ENOSPC, and a start outside of it a RangeError`, async (t) => {
    const { memory, image } = await recorded(t, MiB);
    await assert.rejects(write(image, {}, [new Uint8Array(MiB), new Uint8Array(1)]), { errno: "ENOSPC" });
    await assert.rejects(write(image, { start: MiB - 10 }, [new Uint8Array(11).fill(1)]), {
      errno: "ENOSPC",
    });
    await write(image, { start: MiB - 10 }, [new Uint8Array(10).fill(1)]);
    assert.equal(memory.data.length, MiB);
    assert.equal(memory.data.indexOf(1), MiB - 10);
    await assert.rejects(write(image, { start: MiB + 1 }, [new Uint8Array(1)]), RangeError);
    await assert.rejects(write(image, { start: -1 }, [new Uint8Array(1)]), RangeError);
  });

  test(`${kind}: an error of the image ends it`, async (t) => {
    const { memory, image } = await recorded(t, MiB);
    const failure = new BlockError("ENOSPC", "the disk is full");
    memory.hook = (op) => {
      if (op === "pwrite") throw failure;
    };
    await assert.rejects(write(image, {}, [new Uint8Array(MiB).fill(1)]), (error) => error === failure);
    assert.equal(image.requestsInFlight, 0);
  });

  test(`${kind}: an abort ends it, and a read-only image refuses it`, async (t) => {
    const { memory, image } = await recorded(t, 4 * MiB);
    const controller = new AbortController();
    const reason = new Error("enough");
    memory.hook = (op, _co, offset) => {
      if (op === "pwrite" && offset >= MiB) controller.abort(reason);
    };
    const chunks = cut(new Uint8Array(4 * MiB).fill(1), () => MiB);
    await assert.rejects(
      write(image, { signal: controller.signal }, chunks),
      (error: Error) => error === reason || (error.name === "AbortError" && error.cause === reason),
    );
    await settled();
    assert.equal(image.requestsInFlight, 0);
    assert.ok(memory.ranges("pwrite").length <= 3);
    const { filename } = await patchwork(t, 6);
    await using readOnly = await open(filename, { format: "raw" });
    await assert.rejects(write(readOnly, {}, [new Uint8Array(512).fill(1)]), { errno: "EPERM" });
  });
}

test("Node stream: the producer is told to pause while writes are slow, and may reuse a buffer it got back", async (t) => {
  const { memory, image } = await recorded(t, 4 * MiB);
  const held = gate();
  memory.hook = (op) => (op === "pwrite" ? held.opened : undefined);
  const stream = createWriteStream(image, { highWaterMark: 64 * KiB });
  const buffer = new Uint8Array(48 * KiB).fill(1);
  let written = 0;
  const writeOne = () => {
    const isReady = stream.write(buffer, () => {
      // From here on the buffer is the producer's again.
      buffer.fill(2);
      buffer.fill(1);
      written++;
    });
    return isReady;
  };
  assert.equal(writeOne(), true);
  assert.equal(writeOne(), false);
  await settled();
  assert.equal(written, 2, "small chunks are gathered");
  assert.equal(memory.ranges("pwrite").length, 0);
  held.open();
  await new Promise((resolve) => stream.end(resolve));
  assert.deepEqual(memory.ranges("pwrite"), [[0, 96 * KiB]]);
  assert.equal(memory.data.indexOf(0), 96 * KiB);
});

test("Node stream: destroyed in the middle of a write, it closes when the write has ended", async (t) => {
  const { memory, image } = await recorded(t, 2 * MiB);
  const held = gate();
  memory.hook = (op) => (op === "pwrite" ? held.opened : undefined);
  const stream = createWriteStream(image);
  stream.write(new Uint8Array(MiB).fill(1));
  await settled();
  let isClosed = false;
  stream.on("close", () => {
    isClosed = true;
  });
  stream.destroy();
  await settled();
  assert.equal(isClosed, false);
  held.open();
  await settled();
  assert.equal(isClosed, true);
});

test("web stream: takes every view of bytes, and refuses what is none", async (t) => {
  const { memory, image } = await recorded(t, MiB);
  const writer = writable(image).getWriter();
  await writer.write(new Uint16Array([0x0101, 0x0101]).subarray(1));
  await writer.write(new Uint8Array([2]).buffer);
  await writer.close();
  assert.deepEqual(memory.data.subarray(0, 4), new Uint8Array([1, 1, 2, 0]));
  const wrong = writable(image).getWriter();
  await assert.rejects(wrong.write("text" as unknown as Uint8Array), TypeError);
});

test("web stream: an abort reaches a write that waits", async (t) => {
  const { memory, image } = await recorded(t, 2 * MiB);
  const held = gate();
  memory.hook = (op) => (op === "pwrite" ? held.opened : undefined);
  const writer = writable(image).getWriter();
  const writing = writer.write(new Uint8Array(2 * MiB).fill(1)).catch((error: unknown) => error);
  await settled();
  const aborting = writer.abort(new Error("enough"));
  held.open();
  await aborting;
  await writing;
  assert.equal(image.requestsInFlight, 0);
});

test("a stream copies a sparse file sparsely", { skip: noHoles }, async (t) => {
  const { dir, filename, content } = await patchwork(t, 7);
  const copy = sparseFile(dir, "copy.img", LENGTH);
  {
    await using source = await open(filename, { format: "raw" });
    await using target = await open(copy, { format: "raw", writable: true });
    await pipeline(createReadStream(source), createWriteStream(target));
    const holes = async (image: BlockBackend) =>
      (await gather(readExtents(image)))
        .filter(({ data }) => !data)
        .map(({ offset, bytes }) => [offset, bytes]);
    assert.ok((await holes(source)).length > 5);
    assert.deepEqual(await holes(target), await holes(source));
  }
  assert.ok(content.equals(fs.readFileSync(copy)));
});

test("extents come in order, without gaps, zeroes joined and unread, data in pieces", async (t) => {
  const { memory, image } = await recorded(t, 2 * MiB, (offset) => offset >= 128 * KiB && offset < MiB);
  memory.data.fill(1);
  const extents = await gather(readExtents(image, { maxDataBytes: 512 * KiB }));
  assert.deepEqual(
    extents.filter(({ data }) => !data),
    [{ offset: 128 * KiB, bytes: 896 * KiB, data: undefined }],
  );
  let offset = 0;
  for (const extent of extents) {
    assert.equal(extent.offset, offset);
    assert.ok(!extent.data || (extent.data.length === extent.bytes && extent.bytes <= 512 * KiB));
    offset += extent.bytes;
  }
  assert.equal(offset, 2 * MiB);
  await assert.rejects(gather(readExtents(image, { maxDataBytes: 0 })), RangeError);
});

test("extents of a range, and their end by an abort", async (t) => {
  const { filename, content, r } = await patchwork(t, 8);
  await using image = await open(filename, { format: "raw" });
  for (let round = 0; round < 10; round++) {
    const start = r.below(LENGTH);
    const end = r.between(start, LENGTH - 1);
    const got = Buffer.alloc(end + 1 - start, 0xaa);
    for await (const { offset, bytes, data } of readExtents(image, { start, end }))
      if (data) got.set(data, offset - start);
      else got.fill(0, offset - start, offset - start + bytes);
    assert.ok(content.subarray(start, end + 1).equals(got));
  }
  const controller = new AbortController();
  const reason = new Error("enough");
  await assert.rejects(
    async () => {
      for await (const _ of readExtents(image, { signal: controller.signal })) controller.abort(reason);
    },
    (error) => error === reason,
  );
});

test("short streams of what is cached, one after the other, give timers and signals their turn", async (t) => {
  const { filename } = await patchwork(t, 9);
  await using image = await open(filename, { format: "raw" });
  const readForEver = async (read: (signal: AbortSignal) => AsyncIterable<unknown>) => {
    const signal = AbortSignal.timeout(30);
    while (!signal.aborted) for await (const _ of read(signal));
  };
  const timedOut = (error: Error) => /TimeoutError|AbortError/.test(error.name);
  await readForEver(() => readExtents(image, { end: 511 }));
  await readForEver(() => createReadStream(image, { end: 511 }));
  await readForEver(() => readable(image, { end: 511 }));
  await assert.rejects(
    readForEver((signal) => createReadStream(image, { highWaterMark: 16, signal })),
    timedOut,
  );
  await assert.rejects(
    readForEver((signal) => readable(image, { highWaterMark: 16, signal })),
    timedOut,
  );
});
