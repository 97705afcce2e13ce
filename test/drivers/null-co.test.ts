/** null-co: any size, keeps nothing. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { openBackend } from "../support/graph.ts";
import { answersOfOurs, answersOfQemu } from "../support/requests.ts";
import { missing } from "../support/tools.ts";

describe("null-co", () => {
  it("is 1 GiB unless told, opens by its name, and takes every write", async () => {
    await using image = await openBackend("null-co://");
    assert.equal(await image.getLength(), 2 ** 30);
    await image.write(2 ** 30 - 3, Uint8Array.of(1, 2, 3));
    await image.writeZeroes(0, 2 ** 30);
    await image.flush();
  });

  it("leaves the buffer as it is, or fills it with zeroes", async () => {
    const fill = async (readZeroes: boolean) => {
      await using image = await openBackend({ driver: "null-co", size: 4096, "read-zeroes": readZeroes });
      const buffer = new Uint8Array(3).fill(7);
      await image.readInto(100, buffer);
      return buffer;
    };
    assert.deepEqual(await fill(false), Uint8Array.of(7, 7, 7));
    assert.deepEqual(await fill(true), new Uint8Array(3));
  });

  it("takes its time, and lets go when the request is aborted", async () => {
    await using image = await openBackend({ driver: "null-co", size: 4096, "latency-ns": 3_600_000_000_000 });
    const controller = new AbortController();
    const reading = image.read(0, 1, { signal: controller.signal });
    controller.abort(new Error("enough"));
    await assert.rejects(reading, /enough|abort/);
  });

  it("answers as qemu's", { skip: missing("qemu-io") }, async () => {
    const requests = [
      { op: "read", offset: 0, bytes: 512 },
      { op: "read", offset: 4096, bytes: 1 },
      { op: "write", offset: 4000, bytes: 100 },
      { op: "write -z", offset: 0, bytes: 4096 },
      { op: "discard", offset: 0, bytes: 4096 },
    ] as const;
    for (const options of [{ size: 4096 }, { size: 1000 }, { size: 0 }, { "latency-ns": -1 }]) {
      const all = { driver: "null-co", ...options };
      assert.deepEqual(await answersOfOurs(all, requests), answersOfQemu(all, requests));
    }
  });
});
