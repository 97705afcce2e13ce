/**
 * What every driver must do, seen from outside through a BlockBackend. It ships with the package, so that a driver of
 * one's own can be held against it: `conformance(it, subject)` with the `it` or `test` of any test runner.
 */

import assert from "node:assert/strict";
import type { BlockBackend } from "../src/block/backend.ts";
import { BlockError } from "../src/block/errors.ts";
import { type Random, random } from "./support/random.ts";

/** An image that exists; each `open` opens it anew. */
export interface ConformanceImage {
  open(mode: { readonly readOnly: boolean }): Promise<BlockBackend>;
  /** Called when the test is over and everything is closed. */
  dispose?(): Promise<void> | void;
}

export interface ConformanceSubject {
  readonly name: string;
  /** Makes an image whose guest content is `content`, of a length that is a multiple of `unit`. */
  make(content: Uint8Array): Promise<ConformanceImage>;
  /** Makes an image of `bytes` with a backing file that holds `below`; absent: the driver has no backing files. */
  makeOverlay?(below: Uint8Array, bytes: number): Promise<ConformanceImage>;
  /** What the image is made of, in bytes: lengths are multiples of it. */
  readonly unit: number;
  readonly canWrite: boolean;
  /** False: nothing that is written is kept, and all reads give zeroes. */
  readonly keepsData: boolean;
  /** False: what has been written once can't be written again (compressed clusters). */
  readonly canOverwrite: boolean;
  readonly canTruncate: boolean;
  /** What a discarded range of whole units reads as; "any": zeroes or as before. */
  readonly discarded: "zeroes" | "any";
}

/** Registers one test. */
export type RegisterTest = (name: string, fn: () => Promise<void>) => unknown;

/** Registers all tests that apply to the subject. */
export function conformance(register: RegisterTest, subject: ConformanceSubject): void {
  const add = (name: string, fn: (subject: ConformanceSubject) => Promise<void>) =>
    register(`${subject.name}: ${name}`, () => fn(subject));
  for (const [name, fn] of Object.entries(READING)) add(name, fn);
  if (!subject.canWrite) return;
  for (const [name, fn] of Object.entries(WRITING)) add(name, fn);
  if (subject.canOverwrite) for (const [name, fn] of Object.entries(OVERWRITING)) add(name, fn);
  if (subject.canTruncate) for (const [name, fn] of Object.entries(TRUNCATING)) add(name, fn);
  if (subject.makeOverlay) for (const [name, fn] of Object.entries(OVERLAYING)) add(name, fn);
}

type Tests = Readonly<Record<string, (subject: ConformanceSubject) => Promise<void>>>;

/** Units of the images that most tests use: odd, so that nothing ends where tables do. */
const UNITS = 37;

const READING: Tests = {
  "the length is that of the content": (subject) =>
    withImage(subject, patterned(subject), true, async (image, content) => {
      assert.equal(await image.getLength(), content.length);
    }),

  "reads give the content at every alignment": (subject) =>
    withImage(subject, patterned(subject), true, async (image, content) => {
      for (const [offset, bytes] of ranges(random(1), content.length, subject.unit, 60))
        same(await image.read(offset, bytes), content.subarray(offset, offset + bytes), offset);
      same(await image.read(0, content.length), content, 0);
    }),

  "reads into several buffers fill them in order": (subject) =>
    withImage(subject, patterned(subject), true, async (image, content) => {
      const parts = [1, 0, 511, 700].map((bytes) => new Uint8Array(bytes));
      await image.readInto(13, parts);
      same(Buffer.concat(parts), content.subarray(13, 13 + 1212), 13);
    }),

  "many reads at once give what each asked for": (subject) =>
    withImage(subject, patterned(subject), true, async (image, content) => {
      const all = ranges(random(2), content.length, subject.unit, 50);
      await Promise.all(
        all.map(async ([offset, bytes]) =>
          same(await image.read(offset, bytes), content.subarray(offset, offset + bytes), offset),
        ),
      );
    }),

  "requests that reach past the end are EIO": (subject) =>
    withImage(subject, patterned(subject), !subject.canWrite, async (image, content) => {
      const end = content.length;
      await failsWith("EIO", image.read(end, 1));
      await failsWith("EIO", image.read(end - 1, 2));
      await failsWith("EIO", image.read(-1, 1));
      await failsWith("EIO", image.read(2 ** 60, 1));
      assert.equal((await image.read(end, 0)).length, 0);
      if (!subject.canWrite) return;
      await failsWith("EIO", image.write(end - 1, new Uint8Array(2)));
      await failsWith("EIO", image.writeZeroes(end, 1));
      await failsWith("EIO", image.discard(0, end + 1));
      assert.equal(await image.getLength(), end);
    }),

  "block status covers the image without gaps, and what it calls zero is": (subject) =>
    withImage(subject, sparse(subject), true, async (image, content) => {
      await checkStatus(image, content);
      for (const [offset, bytes] of ranges(random(3), content.length, subject.unit, 20))
        await checkStatus(image, content, offset, offset + bytes);
    }),

  "block status at the end of the image is the end": (subject) =>
    withImage(subject, patterned(subject), true, async (image, content) => {
      const last = await image.blockStatus(content.length - 1, 1);
      assert.equal(last.bytes, 1);
      assert.equal(last.eof, true);
      assert.equal((await image.blockStatus(content.length, 512)).bytes, 0);
    }),

  "an image opened read-only refuses every change": (subject) =>
    withImage(subject, patterned(subject), true, async (image, content) => {
      await failsWith("EPERM", image.write(0, Uint8Array.of(1)));
      await failsWith("EPERM", image.write(0, Uint8Array.of(1), { fua: true }));
      await failsWith("EPERM", image.writeZeroes(0, 512));
      await failsWith("EPERM", image.discard(0, 512));
      await image.flush();
      same(await image.read(0, content.length), content, 0);
    }),

  "close may be called again, and nothing works after it": (subject) =>
    withImage(subject, patterned(subject), true, async (image) => {
      await image.close();
      await image.close();
      await assert.rejects(image.read(0, 1), BlockError);
      await assert.rejects(image.getLength(), BlockError);
    }),

  "close waits for reads under way": (subject) =>
    withImage(subject, patterned(subject), true, async (image, content) => {
      const reading = [0, 1, 2].map((n) => image.read(n * subject.unit, subject.unit));
      await image.close();
      for (const [n, read] of reading.entries())
        same(await read, content.subarray(n * subject.unit, (n + 1) * subject.unit), n * subject.unit);
    }),

  "an aborted request rejects with the reason, and the next one works": (subject) =>
    withImage(subject, patterned(subject), true, async (image, content) => {
      const reason = new Error("enough");
      await assert.rejects(image.read(0, 1, { signal: AbortSignal.abort(reason) }), reason);
      const controller = new AbortController();
      const reading = image.read(0, content.length, { signal: controller.signal });
      controller.abort(reason);
      // It may have been done already.
      await reading.catch((error: unknown) => assert.equal(error, reason));
      same(await image.read(0, content.length), content, 0);
    }),

  "opening it twice for reading shows the same": (subject) =>
    withMade(subject, patterned(subject), async (made, content) => {
      await using one = await made.open({ readOnly: true });
      await using two = await made.open({ readOnly: true });
      same(await one.read(0, content.length), content, 0);
      same(await two.read(0, content.length), content, 0);
    }),

  "an image of no length can be opened": (subject) =>
    withImage(subject, new Uint8Array(0), true, async (image) => {
      assert.equal(await image.getLength(), 0);
      await failsWith("EIO", image.read(0, 1));
      assert.equal((await image.blockStatus(0, 0)).bytes, 0);
    }),
};

const WRITING: Tests = {
  "what is written is read, and stays after close": (subject) =>
    changed(subject, new Uint8Array(subject.unit * UNITS), async (image, model) => {
      const dice = random(4);
      // Each unit at most once.
      for (let unit = 0; unit + 2 < UNITS; unit += 3) {
        const offset = unit * subject.unit + dice.below(subject.unit);
        await write(image, model, offset, dice.bytes(dice.between(1, subject.unit)));
      }
    }),

  "a write of several buffers writes them in order": (subject) =>
    changed(subject, new Uint8Array(subject.unit * UNITS), async (image, model) => {
      const dice = random(5);
      const parts = [dice.bytes(3), dice.bytes(0), dice.bytes(subject.unit), dice.bytes(100)];
      await image.write(700, parts);
      model.set(Buffer.concat(parts), 700);
    }),

  "zero writes read as zeroes, and leave the bytes around alone": (subject) =>
    changed(subject, patterned(subject), async (image, model) => {
      const { unit } = subject;
      const zero = async (offset: number, bytes: number, mayUnmap: boolean) => {
        await image.writeZeroes(offset, bytes, { mayUnmap });
        model.fill(0, offset, offset + bytes);
      };
      await zero(unit, unit, false);
      await zero(3 * unit, 2 * unit, true);
      if (!subject.canOverwrite) return;
      await zero(7 * unit + 5, 3 * unit, true);
      await zero(12 * unit + 1, 1, false);
      await zero(20 * unit, 17 * unit, true);
      await zero(20 * unit + 3, unit - 3, false);
    }),

  "a discard leaves zeroes or the old content, and nothing around it changes": (subject) =>
    changed(subject, patterned(subject), async (image, model) => {
      const { unit } = subject;
      for (const [offset, bytes] of [
        [unit, 2 * unit],
        [5 * unit + 1, 2 * unit],
        [30 * unit, 7 * unit],
        [10 * unit + 7, 3],
      ] as const) {
        await image.discard(offset, bytes);
        const now = await image.read(offset, bytes);
        const wrong = now.findIndex((byte, i) => byte !== 0 && byte !== model[offset + i]);
        assert.equal(wrong, -1, `byte ${offset + wrong} after a discard`);
        if (subject.discarded === "zeroes" && offset % unit === 0)
          assert.ok(
            now.every((byte) => byte === 0),
            "a discarded unit reads as zeroes",
          );
        model.set(now, offset);
      }
      await image.discard(0, 0);
    }),

  "block status tells of new data, and of zeroes only where there are": (subject) =>
    changed(subject, new Uint8Array(subject.unit * UNITS), async (image, model) => {
      const { unit, keepsData } = subject;
      await checkStatus(image, model);
      await write(image, model, 2 * unit, new Uint8Array(unit).fill(keepsData ? 1 : 0));
      await write(image, model, 9 * unit, new Uint8Array(3 * unit).fill(keepsData ? 2 : 0));
      await checkStatus(image, model);
      await image.writeZeroes(9 * unit, unit);
      model.fill(0, 9 * unit, 10 * unit);
      await image.discard(11 * unit, unit);
      same(await image.read(0, 11 * unit), model.subarray(0, 11 * unit), 0);
      model.set(await image.read(11 * unit, unit), 11 * unit);
      await checkStatus(image, model);
    }),

  "many writes at once, to parts that share no byte, are all there": (subject) =>
    changed(subject, new Uint8Array(subject.unit * UNITS), async (image, model) => {
      const dice = random(6);
      const size = subject.canOverwrite ? Math.ceil((subject.unit * UNITS) / 90) : subject.unit;
      const tasks: Promise<void>[] = [];
      for (let offset = 0; offset < model.length; offset += size)
        tasks.push(write(image, model, offset, dice.bytes(Math.min(size, model.length - offset))));
      await Promise.all(tasks);
    }),

  "a flush after writes, writes with FUA, and close flush without error": (subject) =>
    changed(subject, new Uint8Array(subject.unit * UNITS), async (image, model) => {
      await image.flush();
      await write(image, model, 0, new Uint8Array(subject.unit).fill(1));
      await image.flush();
      const data = new Uint8Array(subject.unit).fill(2);
      await image.write(2 * subject.unit, data, { fua: true });
      model.set(data, 2 * subject.unit);
      await image.writeZeroes(4 * subject.unit, subject.unit, { fua: true });
    }),

  "close waits for writes under way, and keeps them": (subject) =>
    changed(subject, new Uint8Array(subject.unit * UNITS), async (image, model) => {
      const tasks = [3, 8, 20].map((n) =>
        write(image, model, n * subject.unit, new Uint8Array(subject.unit).fill(n)),
      );
      await image.close();
      await Promise.all(tasks);
    }),

  "a write that is aborted before it starts changes nothing": (subject) =>
    changed(subject, patterned(subject), async (image) => {
      const signal = AbortSignal.abort(new Error("enough"));
      await assert.rejects(image.write(0, Uint8Array.of(255), { signal }), /enough/);
      await assert.rejects(image.writeZeroes(0, 512, { signal }), /enough/);
    }),

  "reopened read-only it refuses writes, and takes them when it is writable again": (subject) =>
    changed(subject, new Uint8Array(subject.unit * UNITS), async (image, model) => {
      await write(image, model, 0, new Uint8Array(subject.unit).fill(1));
      await image.reopen({ readOnly: true });
      await failsWith("EPERM", image.write(0, Uint8Array.of(9)));
      if (subject.keepsData) same(await image.read(0, model.length), model, 0);
      await image.reopen({ readOnly: false });
      await write(image, model, 2 * subject.unit, new Uint8Array(subject.unit).fill(3));
    }),
};

const OVERWRITING: Tests = {
  "writes at every alignment, over each other, end with the last": (subject) =>
    changed(subject, patterned(subject), async (image, model) => {
      const dice = random(7);
      for (const [offset, bytes] of ranges(dice, model.length, subject.unit, 60))
        await write(image, model, offset, dice.bytes(bytes));
    }),

  "reads, writes and zero writes beside each other disturb no one": (subject) =>
    changed(subject, patterned(subject), async (image, model) => {
      const dice = random(8);
      for (let round = 0; round < 10; round++) {
        const tasks: Promise<unknown>[] = [];
        for (let offset = dice.below(subject.unit); offset < model.length; ) {
          const bytes = Math.min(
            dice.pick([1, 100, 512, subject.unit, 2 * subject.unit]),
            model.length - offset,
          );
          const [start, end] = [offset, offset + bytes];
          const kind = dice.pick(["write", "zero", "read"]);
          if (kind === "write") tasks.push(write(image, model, start, dice.bytes(bytes)));
          else if (kind === "zero")
            tasks.push(image.writeZeroes(start, bytes).then(() => model.fill(0, start, end)));
          else if (subject.keepsData) {
            const wanted = model.slice(start, end);
            tasks.push(image.read(start, bytes).then((got) => same(got, wanted, start)));
          }
          offset = end + (dice.chance(0.5) ? 0 : dice.below(subject.unit));
        }
        await Promise.all(tasks);
      }
    }),

  "of writes that overlap at the same time, each byte is of one of them": (subject) =>
    changed(subject, patterned(subject), async (image, model) => {
      const { unit } = subject;
      const writes = [1, 2, 3, 4].map((n) => ({ offset: n * 100, data: new Uint8Array(4 * unit).fill(n) }));
      await Promise.all(writes.map(({ offset, data }) => image.write(offset, data)));
      const now = await image.read(0, 5 * unit);
      if (!subject.keepsData) return;
      for (const [i, byte] of now.entries()) {
        const covering = writes.filter(({ offset, data }) => i >= offset && i < offset + data.length);
        const isFine =
          covering.length === 0 ? byte === model[i] : covering.some(({ data }) => data[0] === byte);
        assert.ok(isFine, `byte ${i} is 0x${byte.toString(16)}`);
      }
      model.set(now);
    }),
};

const TRUNCATING: Tests = {
  "grown, it is longer and the new part reads as zeroes": (subject) =>
    changed(subject, patterned(subject), async (image, model) => {
      const grown = model.length + 5 * subject.unit;
      await image.truncate(grown);
      assert.equal(await image.getLength(), grown);
      return withLength(model, grown);
    }),

  "shrunk and grown again, what was cut does not come back": (subject) =>
    changed(subject, patterned(subject), async (image, model) => {
      const cut = 11 * subject.unit;
      await image.truncate(cut);
      assert.equal(await image.getLength(), cut);
      await failsWith("EIO", image.read(cut, 1));
      await image.truncate(model.length);
      return withLength(model.slice(0, cut), model.length);
    }),

  "the new part can be written": (subject) =>
    changed(subject, patterned(subject), async (image, model) => {
      const grown = withLength(model, model.length + 8 * subject.unit);
      await image.truncate(grown.length);
      await write(image, grown, model.length + 3 * subject.unit, new Uint8Array(subject.unit).fill(5));
      await checkStatus(image, grown);
      return grown;
    }),

  "a negative length and one over the maximum are refused": (subject) =>
    changed(subject, patterned(subject), async (image) => {
      await failsWith("EINVAL", image.truncate(-512));
      await failsWith("EFBIG", image.truncate(2 ** 60));
    }),
};

const OVERLAYING: Tests = {
  "an overlay shows what lies below, and zeroes behind its end": (subject) =>
    overlaid(subject, async (image, model) => {
      await checkStatus(image, model);
    }),

  "a write hides what lies below, and only there": (subject) =>
    overlaid(subject, async (image, model) => {
      const dice = random(9);
      for (const [offset, bytes] of overlayRanges(dice, model.length, subject, 25))
        await write(image, model, offset, dice.bytes(bytes));
      await checkStatus(image, model);
    }),

  "a zero write hides what lies below": (subject) =>
    overlaid(subject, async (image, model) => {
      for (const [offset, bytes] of overlayRanges(random(10), model.length, subject, 10)) {
        await image.writeZeroes(offset, bytes, { mayUnmap: true });
        model.fill(0, offset, offset + bytes);
      }
      await checkStatus(image, model);
    }),
};

/** Content in which every byte tells where it is. A driver that keeps nothing has zeroes. */
function patterned({ unit, keepsData }: ConformanceSubject): Uint8Array {
  return keepsData ? random(11).bytes(unit * UNITS) : new Uint8Array(unit * UNITS);
}

/** Content with runs of zeroes of all lengths. */
function sparse(subject: ConformanceSubject): Uint8Array {
  const content = patterned(subject);
  const dice = random(12);
  for (let at = 0; at < content.length; at += dice.below(6 * subject.unit)) {
    const bytes = dice.below(5 * subject.unit);
    content.fill(0, at, at + bytes);
    at += bytes;
  }
  return content;
}

/** Ranges within [0, length), the edges of units and of the image among them. */
function ranges(dice: Random, length: number, unit: number, count: number): [number, number][] {
  const edge = () => {
    const at = dice.pick([0, length, dice.below(length), dice.below(length / unit) * unit]);
    return Math.min(Math.max(at + dice.pick([0, 0, 0, -1, 1, 511]), 0), length);
  };
  return Array.from({ length: count }, () => {
    const start = edge();
    const end = dice.chance(0.5) ? Math.min(start + dice.below(2 * unit + 2), length) : edge();
    return [Math.min(start, end), Math.abs(end - start)];
  });
}

/** Ranges that overlap only if they may. */
function overlayRanges(
  dice: Random,
  length: number,
  { unit, canOverwrite }: ConformanceSubject,
  count: number,
): [number, number][] {
  if (canOverwrite) return ranges(dice, length, unit, count);
  const units = Array.from({ length: Math.floor(length / unit) }, (_, n) => n * unit);
  return units.filter(() => dice.chance(0.4)).map((offset) => [offset + dice.below(100), unit - 100]);
}

function withLength(content: Uint8Array, bytes: number): Uint8Array {
  const longer = new Uint8Array(bytes);
  longer.set(content);
  return longer;
}

async function write(
  image: BlockBackend,
  model: Uint8Array,
  offset: number,
  data: Uint8Array,
): Promise<void> {
  await image.write(offset, data);
  model.set(data, offset);
}

function same(got: Uint8Array, wanted: Uint8Array, offset: number): void {
  assert.equal(got.length, wanted.length);
  if (Buffer.compare(got, wanted) === 0) return;
  const at = got.findIndex((byte, i) => byte !== wanted[i]);
  assert.fail(`byte ${offset + at} is 0x${got[at]?.toString(16)}, must be 0x${wanted[at]?.toString(16)}`);
}

async function failsWith(errno: string, request: Promise<unknown>): Promise<void> {
  await assert.rejects(request, (error) => {
    assert.ok(error instanceof BlockError, `a BlockError, not ${String(error)}`);
    assert.equal(error.errno, errno);
    return true;
  });
}

/** Walks [start, end): no empty answer, none longer than asked, no zeroes where the model has none. */
async function checkStatus(
  image: BlockBackend,
  model: Uint8Array,
  start = 0,
  end = model.length,
): Promise<void> {
  for (let at = start; at < end; ) {
    const status = await image.blockStatus(at, end - at);
    assert.ok(status.bytes > 0 && status.bytes <= end - at, `status of ${status.bytes} bytes at ${at}`);
    assert.ok(!(status.zero && status.data) || status.allocated, "zero data is allocated");
    assert.equal(status.eof ?? false, at + status.bytes === model.length, `eof at ${at}`);
    if (status.zero) {
      const wrong = model.subarray(at, at + status.bytes).findIndex((byte) => byte !== 0);
      assert.equal(wrong, -1, `byte ${at + wrong} is said to be zero`);
    }
    at += status.bytes;
  }
}

async function withMade(
  subject: ConformanceSubject,
  content: Uint8Array,
  fn: (made: ConformanceImage, content: Uint8Array) => Promise<void>,
): Promise<void> {
  const made = await subject.make(content);
  try {
    await fn(made, content);
  } finally {
    await made.dispose?.();
  }
}

function withImage(
  subject: ConformanceSubject,
  content: Uint8Array,
  readOnly: boolean,
  fn: (image: BlockBackend, content: Uint8Array) => Promise<void>,
): Promise<void> {
  return withMade(subject, content, async (made) => {
    await using image = await made.open({ readOnly });
    await fn(image, content);
  });
}

/** Changes an image; what `fn` made of the model (or gives) must be there, before it is closed and after. */
function changed(
  subject: ConformanceSubject,
  content: Uint8Array,
  fn: (image: BlockBackend, model: Uint8Array) => Promise<Uint8Array | void>,
): Promise<void> {
  return withMade(subject, content, (made) => change(subject, made, content.slice(), fn));
}

async function change(
  subject: ConformanceSubject,
  made: ConformanceImage,
  before: Uint8Array,
  fn: (image: BlockBackend, model: Uint8Array) => Promise<Uint8Array | void>,
): Promise<void> {
  let model = before;
  const expected = () => (subject.keepsData ? model : new Uint8Array(model.length));
  {
    await using image = await made.open({ readOnly: false });
    model = (await fn(image, model)) ?? model;
    if (image.isOpen) same(await image.read(0, model.length), expected(), 0);
  }
  await using image = await made.open({ readOnly: true });
  assert.equal(await image.getLength(), model.length);
  same(await image.read(0, model.length), expected(), 0);
  await checkStatus(image, expected());
}

/** The same for an overlay that is longer than what lies below. */
async function overlaid(
  subject: ConformanceSubject,
  fn: (image: BlockBackend, model: Uint8Array) => Promise<void>,
): Promise<void> {
  const below = random(13).bytes(subject.unit * 20);
  const model = withLength(below, subject.unit * UNITS);
  const made = await subject.makeOverlay?.(below, model.length);
  assert.ok(made);
  try {
    await change(subject, made, model, fn);
  } finally {
    await made.dispose?.();
  }
}
