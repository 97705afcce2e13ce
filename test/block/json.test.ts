/** JSON in `json:` names, beside what qemu-img says of the same text. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { BlockError } from "../../src/block/errors.ts";
import { parseJson } from "../../src/block/json.ts";
import { openBackend } from "../support/graph.ts";
import { missing, run } from "../support/tools.ts";

describe("json: names are read as qemu-img reads them", { skip: missing("qemu-img") }, () => {
  const texts = [
    '{"driver":"null-co"}',
    "{'driver':'null-co'}",
    "{'driver':\"null-co\"}",
    ' { "driver" : "null-co" }\n',
    "{'driver':'nu\\u006cl-co'}",
    "{'driver':'null\\'-co'}",
    '{"driver":"a\\tb"}',
    '{"driver":"null-co","size":-0}',
    '{"driver":"null-co","size":4096.0}',
    "",
    " ",
    "{",
    "}",
    "{,}",
    "[,]",
    "[1,2",
    "[]",
    '"abc"',
    "12",
    "true",
    '{"a":1}x',
    '{"a":1}{',
    '{"a":}',
    '{"a":1,}',
    '{"a":1,,}',
    '{"a" 1}',
    '{"a"',
    '{"a":1 "b"}',
    '{"a":1]',
    '{"a":[1 2]}',
    '{"a":[1,]}',
    "{1:1}",
    "{driver:1}",
    '{"a":tru}',
    '{"a":True}',
    '{"a":1k}',
    '{"a":01}',
    '{"a":1.}',
    '{"a":+1}',
    '{"a":-}',
    '{"a":.5}',
    '{"a":1e}',
    '{"a":1e+}',
    '{"a":@}',
    '{"a":"x',
    '{"a":"\\q"}',
    '{"a":"\\u12"}',
    '{"a":"\\u12zzzz"}',
    '{"a":"\\u"}',
    '{"a":"\\ud800"}',
    '{"a":"\\ud800\\u0041"}',
    '{"a":"\\ud83d\\ude00"}',
    '{"a":"\\uffff"}',
    '{"a":1,"a":2}',
  ];
  for (const text of texts) {
    it(JSON.stringify(text), async () => {
      const name = `json:${text}`;
      const { stderr, stdout } = run("qemu-img", ["info", name]);
      const opening = openBackend(name, { flags: { readOnly: true } });
      const ours = await opening.then(
        async (image) => `virtual size: ${(await image.getLength()) / 2 ** 30} GiB`,
        (error: BlockError) => error.message,
      );
      if (ours.startsWith("virtual size: 1")) assert.ok(stdout.includes(ours));
      else
        assert.equal(
          stderr === "" ? "opened" : stderr,
          ours.startsWith("virtual") ? "opened" : `qemu-img: Could not open '${name}': ${ours}\n`,
        );
    });
  }
});

describe("JSON", () => {
  it("of any value comes back as it was", () => {
    fc.assert(
      fc.property(fc.jsonValue({ maxDepth: 4 }), fc.boolean(), (value, spaced) => {
        const text = JSON.stringify(value, undefined, spaced ? 2 : 0);
        // Single surrogates and NUL are no characters of a name.
        if (/\\u(?:0000|d[89a-f])/.test(text)) return;
        assert.equal(JSON.stringify(parseJson(text)), JSON.stringify(JSON.parse(text)));
      }),
      { seed: 1 },
    );
  });

  it("gives a BlockError or a value for any text, in bounded depth", () => {
    const text = fc.oneof(
      fc.string(),
      fc.array(fc.constantFrom(..."{}[]:,\"'\\truefalsn01.-e u ".split(""))).map((signs) => signs.join("")),
    );
    fc.assert(
      fc.property(text, (any) => {
        try {
          parseJson(any);
        } catch (error) {
          assert.ok(error instanceof BlockError);
        }
      }),
      { seed: 2, numRuns: 2000 },
    );
    assert.throws(() => parseJson("[".repeat(1_000_000)), { errno: "EINVAL" });
  });

  it("may name a member __proto__", () => {
    assert.deepEqual(Object.entries(parseJson('{"__proto__":1}') as object), [["__proto__", 1]]);
  });
});
