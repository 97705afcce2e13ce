/** Key slots of LUKS while the file fails: whatever request fails, a passphrase that was to stay still opens the image. */

import assert from "node:assert/strict";
import fs from "node:fs";
import { describe, it, type TestContext } from "node:test";
import { fileURLToPath } from "node:url";
import { gunzipSync } from "node:zlib";
import type { luksAmendOptions } from "../../drivers/crypto/luks-amend.ts";
import type { AmendRequest } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import { openGate } from "../../src/block/open.ts";
import type { OptionTable } from "../../src/block/options.ts";
import { type Memory, memoryDriver, openBackend } from "../support/graph.ts";

const IMAGE = gunzipSync(
  fs.readFileSync(fileURLToPath(new URL("encrypted/aes-128-cbc-essiv-sha1.luks.gz", import.meta.url))),
);
const CONTENT = fs.readFileSync(fileURLToPath(new URL("encrypted/content.raw", import.meta.url)));

const PASSPHRASES: Readonly<Record<string, string>> = { s: "passphrase", t: "another" };
const environment = {
  gate: openGate,
  warn: () => {},
  secret: (id: string) => ({ data: Buffer.from(PASSPHRASES[id] ?? "") }),
};

function openWith(driver: string, secret: string, readOnly: boolean) {
  const options = { driver: "luks", "key-secret": secret, file: { driver } };
  return openBackend(options, { environment, flags: { readOnly } });
}

type Options = AmendRequest<typeof luksAmendOptions>["options"];

async function amend(driver: string, secret: string, given: Options, force = false): Promise<void> {
  const options = given as AmendRequest<OptionTable>["options"];
  await using image = await openWith(driver, secret, false);
  await image.run(async (co, { node }) => {
    await node.ops.amend?.(co, { options, force, environment, onProgress: () => {} });
  });
}

async function opens(driver: string, secret: string): Promise<boolean> {
  try {
    await using image = await openWith(driver, secret, true);
    assert.deepEqual(Buffer.from(await image.read(0, CONTENT.length)), CONTENT);
    return true;
  } catch (error) {
    if (error instanceof BlockError && error.message.includes("Invalid password")) return false;
    throw error;
  }
}

/** Runs `change` with each write and flush of the file failing once, or cut short; then `check` with nothing failing. */
async function withFaults(
  memory: Memory,
  start: Uint8Array,
  change: () => Promise<void>,
  check: (worked: boolean) => Promise<void>,
): Promise<void> {
  for (let failAt = 0; ; failAt++) {
    memory.data = Uint8Array.from(start);
    let requests = 0;
    memory.hook = (op, _, offset, bytes) => {
      if ((op !== "pwrite" && op !== "flushToDisk") || requests++ !== failAt) return;
      // The half of a write has come through.
      if (op === "pwrite") memory.data.fill(0xee, offset, offset + Math.floor(bytes / 2 / 512) * 512);
      throw new BlockError("EIO");
    };
    const worked = await change().then(
      () => true,
      (error: unknown) => {
        assert.ok(error instanceof BlockError, String(error));
        return false;
      },
    );
    const wasReached = requests > failAt;
    memory.hook = () => {};
    await check(worked);
    if (!wasReached) return;
  }
}

describe("key slots on a file that fails", () => {
  const make = (test: TestContext) => memoryDriver(test, "luks-memory", IMAGE.length);
  const ADD = { state: "active", "new-secret": "t", "iter-time": 0 };

  it("a passphrase that is added leaves the others alone", async (test) => {
    const memory = make(test);
    await withFaults(
      memory,
      IMAGE,
      () => amend("luks-memory", "s", ADD),
      async (worked) => {
        assert.equal(await opens("luks-memory", "s"), true);
        const isThere = await opens("luks-memory", "t");
        if (worked) assert.equal(isThere, true);
      },
    );
  });

  it("a slot that is erased leaves the others alone", async (test) => {
    const memory = make(test);
    memory.data = Uint8Array.from(IMAGE);
    await amend("luks-memory", "s", ADD);
    const both = Uint8Array.from(memory.data);
    await withFaults(
      memory,
      both,
      () => amend("luks-memory", "t", { state: "inactive", keyslot: 0 }),
      async (worked) => {
        assert.equal(await opens("luks-memory", "t"), true);
        const isThere = await opens("luks-memory", "s");
        if (worked) assert.equal(isThere, false);
      },
    );
  });

  it("an erased slot holds nothing of what was there", async (test) => {
    const memory = make(test);
    memory.data = Uint8Array.from(IMAGE);
    const [start, end] = [4096, 4096 + 16 * 4000];
    const before = Buffer.from(memory.data.subarray(start, end));
    await amend("luks-memory", "s", { state: "inactive", "old-secret": "s" }, true);
    assert.equal(await opens("luks-memory", "s"), false);
    const after = memory.data.subarray(start, end);
    const same = before.filter((byte, index) => byte === after[index]).length;
    assert.ok(same < before.length / 100, `${same} bytes of the key material are as before`);
  });
});
