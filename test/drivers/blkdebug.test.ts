/** blkdebug against qemu's: which requests fail with what, the words of its errors; and breakpoints. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { describe, it, type TestContext } from "node:test";
import { EVENTS } from "../../drivers/blkdebug-rules.ts";
import type { BlockBackend } from "../../src/block/backend.ts";
import type { DebugOps } from "../../src/block/driver.ts";
import type { NestedOptions } from "../../src/block/options.ts";
import { isPending, memoryDriver, openBackend } from "../support/graph.ts";
import { answersOfOurs, answersOfQemu, type Request } from "../support/requests.ts";
import { sparseFile, tempDir } from "../support/temp.ts";
import { missing, run } from "../support/tools.ts";

const noOracle = { skip: missing("qemu-io") };

const at = (op: Request["op"], offset = 0, bytes = 512): Request => ({ op, offset, bytes });
const EVERY = [at("read"), at("write"), at("write -z"), at("discard"), { op: "flush" } as const, at("read")];

/** Rules, and requests that they meet; `raw: true` puts the raw format above blkdebug. */
const CASES: readonly {
  readonly name: string;
  readonly options: NestedOptions;
  readonly requests?: readonly Request[];
  readonly raw?: boolean;
}[] = [
  { name: "no rule", options: {} },
  { name: "all requests", options: rule({ event: "none" }) },
  { name: "once", options: rule({ event: "none", once: true }) },
  { name: "immediately", options: rule({ event: "none", immediately: true }) },
  ...(["read", "write", "write-zeroes", "discard", "flush"] as const).map((iotype) => ({
    name: `only ${iotype}`,
    options: rule({ event: "none", iotype }),
  })),
  { name: "another errno", options: rule({ event: "none", errno: 28 }) },
  { name: "an errno that has no name", options: rule({ event: "none", errno: 9999 }) },
  { name: "errno 0 is no error", options: rule({ event: "none", errno: 0 }) },
  {
    name: "a sector",
    options: rule({ event: "none", sector: 4 }),
    requests: [
      at("read"),
      at("read", 1024, 2048),
      at("write", 2048),
      at("read", 2560),
      at("discard", 0, 4096),
    ],
  },
  {
    name: "two rules of one event: the first counts",
    options: rule({ event: "none", errno: 28 }, { event: "none", errno: 22 }),
  },
  {
    name: "a later event's rule in place of an earlier one's",
    options: rule({ event: "none", errno: 28 }, { event: "pwritev", errno: 22, once: true }),
  },
  {
    name: "a state that an event sets",
    options: {
      ...rule({ event: "pwritev", state: 2 }),
      "set-state": [{ event: "pwritev", new_state: 2 }],
    },
    requests: [at("write"), at("write"), at("read")],
  },
  {
    name: "states one after the other",
    options: {
      ...rule({ event: "pwritev", state: 3, iotype: "write", once: true }),
      "set-state": [
        { event: "pwritev", state: 1, new_state: 2 },
        { event: "pwritev", state: 2, new_state: 3 },
      ],
    },
    requests: Array.from({ length: 5 }, () => at("write")),
  },
  ...[
    "read_aio",
    "write_aio",
    "flush_to_os",
    "flush_to_disk",
    "pwritev",
    "pwritev_done",
    "pwritev_zero",
  ].flatMap((event) =>
    [true, false].map((raw) => ({
      name: `the event ${event}${raw ? " below raw" : ""}`,
      options: rule({ event, iotype: "read" }),
      requests: [at("read"), at("write"), { op: "flush" } as const, at("read"), at("write -z"), at("read")],
      raw,
    })),
  ),
  ...["pwritev_rmw_after_head", "pwritev_rmw_after_tail"].map((event) => ({
    name: `the event ${event}`,
    options: { ...rule({ event, iotype: "read", once: true }), align: 4096 },
    requests: [
      at("write", 0, 512),
      at("read"),
      at("write", 512, 3584),
      at("read"),
      at("write", 5000, 10_000),
    ],
  })),
  {
    name: "zero writes under the preferred size are written",
    options: { ...rule({ event: "none", iotype: "write-zeroes" }), "opt-write-zero": 4096 },
    requests: [at("write -z"), at("write -z", 0, 4096), at("write -z", 512, 4096)],
  },
  {
    name: "discards under the preferred size",
    options: { ...rule({ event: "none", iotype: "discard" }), "opt-discard": 4096 },
    requests: [at("discard"), at("discard", 0, 4096), at("discard", 512, 7168)],
  },
  {
    name: "a write that is cut fails at its piece",
    options: { ...rule({ event: "none", iotype: "write", sector: 2 }), "max-transfer": 512 },
    requests: [at("write", 0, 2048), at("read", 0, 2048)],
  },
  ...[
    { align: 3 },
    { align: 2 ** 32 },
    { align: 512, "max-transfer": 100 },
    { align: 512, "opt-write-zero": 100 },
    { align: 512, "max-write-zero": 100 },
    { align: 512, "opt-discard": 100 },
    { align: 512, "max-discard": 100 },
    { "max-transfer": 7 * 2 ** 30 },
    { "opt-write-zero": 4096, "max-write-zero": 512 },
    rule({ event: "bogus" }),
    rule({ event: "none", iotype: "bogus" }),
    rule({ errno: 5 }),
    rule({ event: "none", bogus: 1 }),
    { "inject-error.1.event": "none" },
    { "inject-error.0.event": "none", "inject-error.2.event": "none" },
    rule({ event: "none", sector: "abc" }),
    rule({ event: "none", once: "abc" }),
    { "set-state": [{ event: "none", errno: 5 }] },
    { bogus: 1 },
    { config: "/nonexistent" },
  ].map((options) => ({ name: `open with ${JSON.stringify(options)}`, options: options as NestedOptions })),
];

function rule(...rules: readonly NestedOptions[]): NestedOptions {
  return { "inject-error": rules };
}

describe("blkdebug answers as qemu's", noOracle, () => {
  for (const { name, options, requests = EVERY, raw = false } of CASES) {
    it(name, async (test) => {
      const dir = tempDir(test);
      const nodeOf = (filename: string): NestedOptions => {
        const node = { driver: "blkdebug", image: { driver: "file", filename }, ...options };
        return raw ? { driver: "raw", file: node } : node;
      };
      const theirs = answersOfQemu(nodeOf(sparseFile(dir, "theirs", 2 ** 20)), requests);
      const ours = await answersOfOurs(nodeOf(sparseFile(dir, "ours", 2 ** 20)), requests);
      assert.deepEqual(ours, theirs);
      assert.deepEqual(fs.readFileSync(path.join(dir, "ours")), fs.readFileSync(path.join(dir, "theirs")));
    });
  }

  const configs = [
    '[inject-error]\nevent = "none"\n',
    '# a comment\n\n[inject-error]\nevent = "read_aio"\nerrno = "28"\n',
    '[inject-error "a"]\nevent = "none"\n',
    '[inject-error]\n  event = "none" # x\n',
    '[set-state]\nevent = "none"\nnew_state = "3"\n[inject-error]\nevent = "read_aio"\nstate = "3"\n',
    '[set-state]\nevent = "none"\nnew_state = "3"\n[inject-error]\nevent = "read_aio"\nstate = "1"\n',
    '[foo]\nevent = "none"\n',
    'event = "none"\n',
    '[inject-error]\nfoo = "x"\n',
    "[inject-error]\nevent = none\n",
    '[inject-error]\nevent="none"\n',
    '[inject-error\nevent = "none"\n',
    '[inject-error]\nevent = "bogus"\n',
    '[inject-error]\nevent = "none"\nerrno = "x"\n',
    "[inject-error]\n",
    "[inject-error]\nevent =\n",
    '[inject-error]\nevent = ""\n',
    "\n\n",
    "",
  ];
  for (const config of configs) {
    it(`with the configuration ${JSON.stringify(config)}`, async (test) => {
      const dir = tempDir(test);
      const configName = path.join(dir, "config");
      fs.writeFileSync(configName, config);
      const image = sparseFile(dir, "image", 2 ** 20);
      const options = {
        driver: "raw",
        file: { driver: "blkdebug", config: configName, image: { driver: "file", filename: image } },
      };
      const requests = [at("read"), at("write")];
      assert.deepEqual(await answersOfOurs(options, requests), answersOfQemu(options, requests));
    });
  }

  it("knows the same events", () => {
    for (const event of EVENTS) {
      const { stderr } = run("qemu-io", [
        "-c",
        "quit",
        `json:${JSON.stringify({ driver: "blkdebug", image: { driver: "null-co" }, ...rule({ event }) })}`,
      ]);
      assert.ok(!stderr.includes("invalid parameter"), event);
    }
  });

  it("shows the same names", async (test) => {
    const dir = tempDir(test);
    const image = sparseFile(dir, "a.raw", 2 ** 20);
    const config = path.join(dir, "config");
    fs.writeFileSync(config, "");
    for (const name of [
      `blkdebug::${image}`,
      `blkdebug:${config}:${image}`,
      `blkdebug::blkdebug::${image}`,
    ]) {
      const { stdout } = run("qemu-img", ["info", name]);
      await using backend = await openBackend(name, { flags: { readOnly: true } });
      assert.equal(`image: ${backend.node.filename}`, stdout.split("\n")[0]);
    }
    await assert.rejects(openBackend(`blkdebug:${image}`), {
      message: "blkdebug requires both config file and image path",
    });
  });
});

describe("a read-modify-write whose read fails", () => {
  // On purpose not as qemu 7.2, which goes on and writes what it did not read.
  for (const event of ["pwritev_rmw_head", "pwritev_rmw_tail"]) {
    it(`fails, and writes nothing: ${event}`, async (test) => {
      const memory = memoryDriver(test, "memory", 65536);
      const rules = rule({ event, iotype: "read", once: true });
      await using image = await openBackend({
        driver: "blkdebug",
        align: 4096,
        image: { driver: "memory" },
        ...rules,
      });
      memory.data.fill(7);
      await assert.rejects(image.write(5000, new Uint8Array(10_000)), { errno: "EIO" });
      assert.ok(memory.data.every((byte) => byte === 7));
      await image.write(5000, new Uint8Array(10_000));
      assert.deepEqual(memory.data, new Uint8Array(65536).fill(7).fill(0, 5000, 15_000));
    });
  }
});

describe("blkdebug's block status", () => {
  it("fails only where a rule says so", async () => {
    const options = (iotype?: string) => ({
      driver: "blkdebug",
      image: { driver: "null-co", size: 65536 },
      ...rule({ event: "none", ...(iotype && { iotype }), once: true }),
    });
    await using all = await openBackend(options());
    assert.equal((await all.blockStatus(0, 512)).bytes, 512);
    await using status = await openBackend(options("block-status"));
    await status.read(0, 512);
    await assert.rejects(status.blockStatus(0, 512), { errno: "EIO" });
    assert.equal((await status.blockStatus(0, 512)).bytes, 512);
  });
});

describe("breakpoints", () => {
  /** raw over blkdebug over memory, what blkdebug says, and its debug operations. */
  async function suspendable(
    test: TestContext,
  ): Promise<{ image: BlockBackend; debug: DebugOps; said: string[] }> {
    memoryDriver(test, "memory", 65536);
    const said: string[] = [];
    const image = await openBackend(
      { driver: "raw", file: { driver: "blkdebug", image: { driver: "memory" } } },
      { environment: { notice: (line) => void said.push(line) } },
    );
    test.after(() => image.close());
    const debug = image.node.file?.debug;
    assert.ok(debug);
    return { image, debug, said };
  }

  it("suspend one request until it is resumed", async (test) => {
    const { image, debug, said } = await suspendable(test);
    debug.addBreakpoint("write_aio", "A");
    assert.ok(!debug.isSuspended("A"));
    const writing = image.write(0, Uint8Array.of(1));
    assert.ok(await isPending(writing));
    assert.ok(debug.isSuspended("A"));
    // The breakpoint is gone once it has been hit.
    await image.write(512, Uint8Array.of(1));
    debug.resume("A");
    await writing;
    assert.ok(!debug.isSuspended("A"));
    assert.deepEqual(said, ["blkdebug: Suspended request 'A'", "blkdebug: Resuming request 'A'"]);
  });

  it("of one event hold a request until all are resumed", async (test) => {
    const { image, debug, said } = await suspendable(test);
    debug.addBreakpoint("read_aio", "A");
    debug.addBreakpoint("read_aio", "B");
    const reading = image.read(0, 1);
    await isPending(reading);
    debug.resume("A");
    assert.ok(await isPending(reading));
    debug.resume("B");
    await reading;
    assert.deepEqual(said.slice(0, 2), [
      "blkdebug: Suspended request 'B'",
      "blkdebug: Suspended request 'A'",
    ]);
  });

  it("that are removed let go what waits there, and say that they were gone already", async (test) => {
    const { image, debug } = await suspendable(test);
    debug.addBreakpoint("read_aio", "A");
    debug.removeBreakpoint("A");
    await image.read(0, 1);
    debug.addBreakpoint("read_aio", "A");
    const reading = image.read(0, 1);
    await isPending(reading);
    assert.throws(() => debug.removeBreakpoint("A"), { errno: "ENOENT" });
    await reading;
  });

  it("are ENOENT for an event or a tag that nobody knows", async (test) => {
    const { debug } = await suspendable(test);
    for (const call of [
      () => debug.addBreakpoint("bogus", "A"),
      () => debug.resume("A"),
      () => debug.removeBreakpoint("A"),
    ])
      assert.throws(call, { name: "BlockError", errno: "ENOENT", message: "No such file or directory" });
  });

  it("let go a request that is aborted, and forget it", async (test) => {
    const { image, debug } = await suspendable(test);
    const controller = new AbortController();
    debug.addBreakpoint("read_aio", "A");
    const reading = image.read(0, 1, { signal: controller.signal });
    await isPending(reading);
    controller.abort(new Error("enough"));
    await assert.rejects(reading, /enough/);
    assert.ok(!debug.isSuspended("A"));
    assert.throws(() => debug.resume("A"), { errno: "ENOENT" });
    await image.read(0, 1);
  });

  it("hold up requests of the same block, and no other, in the middle of a read-modify-write", async (test) => {
    memoryDriver(test, "memory", 65536);
    await using image = await openBackend({ driver: "blkdebug", align: 512, image: { driver: "memory" } });
    const debug = image.node.ops.debug;
    assert.ok(debug);
    debug.addBreakpoint("pwritev_rmw_after_head", "A");
    const modifying = image.write(10, Uint8Array.of(1));
    await isPending(modifying);
    await image.write(600, Uint8Array.of(2));
    const same = image.write(20, Uint8Array.of(3));
    assert.ok(await isPending(same));
    debug.resume("A");
    await Promise.all([modifying, same]);
    const head = await image.read(0, 32);
    assert.deepEqual([head[10], head[20]], [1, 3]);
  });
});
