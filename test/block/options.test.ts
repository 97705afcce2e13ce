/** Options: sizes as qemu-img reads them, key=value strings, json:, flattening, typed tables. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import {
  flattenOptions,
  type NestedOptions,
  parseJsonFilename,
  parseKeyValues,
  parseSize,
  takeBool,
  takeOptions,
  takePrefix,
} from "../../src/block/options.ts";
import { missing, run } from "../support/tools.ts";

describe("sizes", { skip: missing("qemu-img") }, () => {
  // As qemu-img measures a raw image of that size: rounded up to whole sectors.
  const texts = [
    "0",
    "512",
    "1024",
    " 1024",
    "1k",
    "1K",
    "1M",
    "1g",
    "1G",
    "2T",
    "1p",
    "1.5G",
    "1.5k",
    "0.5M",
    "0.5",
    ".5k",
    "1.",
    "1.k",
    "0x1000",
    "0X1000",
    "0x1000k",
    "0x10M",
    "1b",
    "512b",
    "512B",
    "1.5",
    "1.0",
    "1.00b",
    "-1",
    "-1k",
    "+1k",
    "1e3",
    "1E",
    "1kk",
    "1 k",
    "k",
    "",
    "abc",
    "1MiB",
    "1MB",
    "0100",
    "010k",
    "1.25k",
    "1.33k",
    "1023.5k",
  ];
  for (const text of texts) {
    it(JSON.stringify(text), () => {
      const { code, stdout } = run("qemu-img", ["measure", "-O", "raw", `--size=${text}`]);
      const theirs = code === 0 ? Number(/required size: ([0-9]+)/.exec(stdout)?.[1]) : undefined;
      const ours = parseSize(text);
      assert.equal(typeof ours === "number" ? Math.ceil(ours / 512) * 512 : undefined, theirs);
    });
  }

  it("of 2^64 and more are out of range, and a default suffix counts where there is none", () => {
    assert.equal(parseSize("16E"), "range");
    assert.equal(parseSize("18446744073709551616"), "range");
    assert.equal(parseSize("99999999P"), "range");
    assert.equal(parseSize("2", "m"), 2 * 2 ** 20);
    assert.equal(parseSize("2k", "m"), 2048);
  });

  it("are the number times the power of 1024", () => {
    fc.assert(
      fc.property(fc.nat({ max: 4095 }), fc.constantFrom("b", "k", "m", "g", "t"), (number, suffix) => {
        assert.equal(parseSize(`${number}${suffix}`), number * 1024 ** "bkmgt".indexOf(suffix));
      }),
      { seed: 1 },
    );
  });
});

describe("whole numbers", () => {
  const table = { count: { type: "number" } } as const;
  const good = { "0": 0, "42": 42, "-42": -42, "+42": 42, " 42": 42, "0x2a": 42, "052": 42 };
  for (const [text, count] of Object.entries(good))
    it(JSON.stringify(text), () =>
      assert.deepEqual(takeOptions(table, new Map([["count", text]])), { count }),
    );
  for (const text of ["42k", "4.2", "", "x", "0x", "1 2"])
    it(`not ${JSON.stringify(text)}`, () =>
      assert.throws(() => takeOptions(table, new Map([["count", text]])), {
        message: "Parameter 'count' expects a number",
      }));
});

describe("key=value strings", () => {
  const parse = (text: string, implied?: string) => Object.fromEntries(parseKeyValues(text, implied));

  it("split at commas, of which two stand for one", () => {
    assert.deepEqual(parse("driver=raw,file.filename=a,,b,size=1k"), {
      driver: "raw",
      "file.filename": "a,b",
      size: "1k",
    });
    assert.deepEqual(parse("a=,,"), { a: "," });
    assert.deepEqual(parse("a=b=c"), { a: "b=c" });
    assert.deepEqual(parse(""), {});
  });

  it("keep the last of a key that is given twice", () => {
    assert.deepEqual(parse("a=1,b=2,a=3"), { a: "3", b: "2" });
  });

  it("give a lone first word the implied key", () => {
    assert.deepEqual(parse("raw,size=1", "driver"), { driver: "raw", size: "1" });
  });

  it("come back from any keys and values", () => {
    const key = fc.stringMatching(/^[a-z][a-z0-9.-]{0,9}$/);
    fc.assert(
      fc.property(
        fc.dictionary(
          key,
          fc.string({ unit: "binary" }).filter((text) => !text.includes("\0")),
        ),
        (options) => {
          const entries = Object.entries(options);
          const text = entries.map(([name, value]) => `${name}=${value.replaceAll(",", ",,")}`).join(",");
          assert.deepEqual(parse(text), { ...options });
        },
      ),
      { seed: 2 },
    );
  });
});

describe("flattening", () => {
  it("makes dotted keys of objects and arrays, and leaves out what is undefined", () => {
    const nested = {
      driver: "x",
      file: { filename: "a", cache: { direct: true } },
      list: [{ a: 1 }, "b"],
      no: undefined,
      none: null,
    };
    assert.deepEqual(Object.fromEntries(flattenOptions(nested)), {
      driver: "x",
      "file.filename": "a",
      "file.cache.direct": true,
      "list.0.a": 1,
      "list.1": "b",
      none: null,
    });
  });

  it("keeps every leaf", () => {
    const leaf = fc.oneof(fc.string(), fc.boolean(), fc.integer(), fc.constant(null));
    const key = fc.stringMatching(/^[a-z]{1,5}$/);
    const tree = fc.letrec((tie) => ({
      node: fc.oneof({ maxDepth: 4 }, leaf, fc.dictionary(key, tie("node"))),
    })).node;
    fc.assert(
      fc.property(fc.dictionary(key, tree), (nested) => {
        const flat = flattenOptions(nested as NestedOptions);
        for (const [dotted, value] of flat) {
          const found = dotted
            .split(".")
            .reduce<unknown>((at, step) => (at as Record<string, unknown>)[step], nested);
          assert.equal(found, value);
        }
        const leaves = (at: unknown): number =>
          at !== null && typeof at === "object"
            ? Object.values(at).reduce<number>((sum, each) => sum + leaves(each), 0)
            : 1;
        assert.equal(flat.size, leaves(nested));
      }),
      { seed: 3 },
    );
  });

  it("is undone by takePrefix, which takes what it gives", () => {
    const options = flattenOptions({ file: { a: 1, b: { c: 2 } }, filename: "x" });
    assert.deepEqual(Object.fromEntries(takePrefix(options, "file.")), { a: 1, "b.c": 2 });
    assert.deepEqual(Object.fromEntries(options), { filename: "x" });
  });
});

describe("json: names", () => {
  it("are an object, flattened", () => {
    const options = parseJsonFilename('json:{"driver":"raw","file":{"filename":"a","x.y":1}}');
    assert.deepEqual(Object.fromEntries(options), { driver: "raw", "file.filename": "a", "file.x.y": 1 });
  });

  for (const bad of ["json:", "json:{", "json:[]", "json:1", "json:null", 'json:{"a":}'])
    it(`refuse ${bad}`, () =>
      assert.throws(() => parseJsonFilename(bad), { name: "BlockError", errno: "EINVAL" }));
});

describe("typed options", () => {
  const table = {
    text: { type: "string" },
    flag: { type: "bool" },
    count: { type: "number" },
    bytes: { type: "size" },
  } as const;
  const take = (options: NestedOptions) => {
    const flat = flattenOptions(options);
    return { values: takeOptions(table, flat), left: [...flat.keys()] };
  };

  it("get their types, from text and from values, and leave what the table has not", () => {
    assert.deepEqual(take({ text: "a", flag: "on", count: "0x10", bytes: "1k", other: 1 }), {
      values: { text: "a", flag: true, count: 16, bytes: 1024 },
      left: ["other"],
    });
    assert.deepEqual(take({ text: 5, flag: false, count: 7, bytes: 512 }).values, {
      text: "5",
      flag: false,
      count: 7,
      bytes: 512,
    });
    assert.deepEqual(take({}).values, {});
  });

  const bad: readonly (readonly [NestedOptions, string])[] = [
    [{ flag: "maybe" }, "Parameter 'flag' expects 'on' or 'off'"],
    [{ count: "x" }, "Parameter 'count' expects a number"],
    [{ bytes: "x" }, "Parameter 'bytes' expects a non-negative number below 2^64"],
    [{ bytes: -1 }, "Parameter 'bytes' expects a non-negative number below 2^64"],
  ];
  for (const [options, message] of bad)
    it(`refuse ${JSON.stringify(options)}`, () =>
      assert.throws(() => take(options), { message, errno: "EINVAL" }));

  it("read on, off and their like", () => {
    for (const [text, value] of [
      ["on", true],
      ["yes", true],
      ["true", true],
      ["off", false],
      ["no", false],
      [true, true],
    ] as const)
      assert.equal(takeBool(new Map([["a", text]]), "a"), value);
    assert.equal(takeBool(new Map(), "a"), undefined);
  });
});
