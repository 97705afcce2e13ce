/** Vectors of buffers, on-disk records and unit arithmetic, by their properties. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import {
  type IoVector,
  iovConcat,
  iovFill,
  iovFlatten,
  iovIsZero,
  iovLength,
  iovParts,
  iovSlice,
  iovWrite,
  isZero,
} from "../../src/block/iov.ts";
import { bytes, type Field, layout, mask64, u8, u16, u32, u64 } from "../../src/block/layout.ts";
import { alignDown, alignUp, divideRoundUp, isAligned, isPowerOfTwo } from "../../src/block/units.ts";

const vector: fc.Arbitrary<IoVector> = fc.oneof(
  fc.uint8Array({ maxLength: 40 }),
  fc.array(fc.uint8Array({ maxLength: 12 }), { maxLength: 6 }),
);
const flat = (iov: IoVector) => new Uint8Array(Buffer.concat([...iovParts(iov)]));

describe("vectors", () => {
  it("slice as one buffer does, and share its memory", () => {
    fc.assert(
      fc.property(vector, fc.nat({ max: 45 }), fc.nat({ max: 45 }), (iov, a, b) => {
        const length = iovLength(iov);
        const [start, end] = [Math.min(a, b, length), Math.min(Math.max(a, b), length)];
        const slice = iovSlice(iov, start, end);
        assert.deepEqual(flat(slice), flat(iov).slice(start, end));
        assert.equal(iovLength(slice), end - start);
        iovFill(slice, 0xa5);
        assert.ok(
          flat(iov)
            .subarray(start, end)
            .every((byte) => byte === 0xa5),
        );
      }),
      { seed: 1 },
    );
  });

  it("slices of slices are slices", () => {
    fc.assert(
      fc.property(vector, fc.array(fc.nat({ max: 40 }), { minLength: 4, maxLength: 4 }), (iov, cuts) => {
        const length = iovLength(iov);
        const [a, b, c, d] = cuts.map((cut) => Math.min(cut, length)).sort((x, y) => x - y) as [
          number,
          number,
          number,
          number,
        ];
        assert.deepEqual(flat(iovSlice(iovSlice(iov, a, d), b - a, c - a)), flat(iovSlice(iov, b, c)));
      }),
      { seed: 2 },
    );
  });

  it("concatenate, flatten and take content in order", () => {
    fc.assert(
      fc.property(vector, vector, fc.uint8Array({ maxLength: 50 }), (one, two, content) => {
        const both = iovConcat(one, two);
        assert.deepEqual(flat(both), new Uint8Array([...flat(one), ...flat(two)]));
        assert.deepEqual(new Uint8Array(iovFlatten(both)), flat(both));
        const before = flat(both);
        iovWrite(both, content);
        const after = flat(both);
        const taken = Math.min(content.length, after.length);
        assert.deepEqual(after.subarray(0, taken), content.subarray(0, taken));
        assert.deepEqual(after.subarray(taken), before.subarray(taken));
      }),
      { seed: 3 },
    );
  });

  it("are zero when every byte is, at every length and place", () => {
    for (const length of [0, 1, 2, 511, 65535, 65536, 65537, 200_000]) {
      const buffer = new Uint8Array(length);
      assert.ok(isZero(buffer));
      for (const at of [0, 1, Math.floor(length / 2), 65535, 65536, length - 1]) {
        if (at < 0 || at >= length) continue;
        buffer[at] = 1;
        assert.ok(!isZero(buffer), `${at} of ${length}`);
        assert.ok(!iovIsZero([new Uint8Array(9), buffer]));
        buffer[at] = 0;
      }
      assert.ok(iovIsZero([buffer, new Uint8Array(3)]));
    }
  });
});

describe("records", () => {
  const number = (field: Field<number>) =>
    fc.integer({ min: 0, max: Math.min(256 ** field.bytes - 1, Number.MAX_SAFE_INTEGER) });
  const fields = {
    first: u8,
    second: u16,
    third: u32,
    fourth: u64,
    mask: mask64,
    name: bytes(5),
    last: u8,
  };
  const record = fc.record({
    first: number(u8),
    second: number(u16),
    third: number(u32),
    fourth: number(u64),
    mask: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
    name: fc.uint8Array({ minLength: 5, maxLength: 5 }),
    last: number(u8),
  });

  for (const endian of ["big", "little"] as const) {
    const table = layout(endian, fields);
    it(`${endian}-endian: have the size and the offsets of the table`, () => {
      assert.equal(table.size, 1 + 2 + 4 + 8 + 8 + 5 + 1);
      assert.deepEqual(
        { ...table.offsetOf },
        { first: 0, second: 1, third: 3, fourth: 7, mask: 15, name: 23, last: 28 },
      );
    });

    it(`${endian}-endian: read what was written, at any offset, and touch nothing around`, () => {
      fc.assert(
        fc.property(record, fc.nat({ max: 9 }), (value, offset) => {
          const buffer = new Uint8Array(table.size + 20).fill(0xee);
          table.write(value, buffer, offset);
          assert.deepEqual(table.read(buffer, offset), { ...value });
          assert.ok(buffer.subarray(0, offset).every((byte) => byte === 0xee));
          assert.ok(buffer.subarray(offset + table.size).every((byte) => byte === 0xee));
        }),
        { seed: 4 },
      );
    });
  }

  it("lay their bytes as the endianness says", () => {
    const value = { a: 0x0102, b: 0x03040506, c: 0x0708090a0b0c0d };
    const hex = (endian: "big" | "little") =>
      Buffer.from(layout(endian, { a: u16, b: u32, c: u64 }).write(value)).toString("hex");
    assert.equal(hex("big"), "0102030405060007" + "08090a0b0c0d");
    assert.equal(hex("little"), "0201060504030d0c" + "0b0a09080700");
  });

  it("pad short bytes with zeroes and cut long ones", () => {
    const table = layout("big", { name: bytes(4) });
    assert.deepEqual(table.write({ name: Uint8Array.of(1) }), Uint8Array.of(1, 0, 0, 0));
    assert.deepEqual(table.write({ name: Uint8Array.of(1, 2, 3, 4, 5) }), Uint8Array.of(1, 2, 3, 4));
  });
});

describe("units", () => {
  const offset = fc.integer({ min: 0, max: 2 ** 53 - 2 ** 31 });
  it("align down and up to multiples around the value", () => {
    fc.assert(
      fc.property(offset, fc.integer({ min: 0, max: 30 }), (value, bits) => {
        const alignment = 2 ** bits;
        const [down, up] = [alignDown(value, alignment), alignUp(value, alignment)];
        assert.ok(down <= value && value <= up && up - down <= alignment);
        assert.ok(isAligned(down, alignment) && isAligned(up, alignment));
        assert.equal(divideRoundUp(value, alignment) * alignment, up);
      }),
      { seed: 5 },
    );
  });

  it("know powers of two", () => {
    for (let bits = 0; bits < 53; bits++) assert.ok(isPowerOfTwo(2 ** bits));
    for (const value of [
      0,
      -1,
      -2,
      3,
      0.5,
      6,
      2 ** 30 + 1,
      2 ** 52 + 1,
      Number.NaN,
      Number.POSITIVE_INFINITY,
    ])
      assert.ok(!isPowerOfTwo(value), String(value));
  });
});
