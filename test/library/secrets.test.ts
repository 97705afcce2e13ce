/** Encrypted images through the library: key material is passed by the caller, under the ids that options name. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import { BlockError, compare, convert, create, info, open } from "../../src/index.ts";
import { random } from "../support/random.ts";
import { tempDir } from "../support/temp.ts";

const dir = tempDir({ after });
const at = (name: string) => path.join(dir, name);
const content = random(81).bytes(100 * 512);
const secrets = { text: "пароль", bytes: Buffer.from("another") };

describe("secrets", () => {
  it("open what they have encrypted, as text and as bytes", async () => {
    for (const id of ["text", "bytes"] as const) {
      const options = { "key-secret": id, "iter-time": 0 };
      await create(at("x.luks"), { format: "luks", size: content.length, options, secrets });
      const node = {
        driver: "luks",
        "key-secret": id,
        file: { driver: "file", filename: at("x.luks") },
      } as const;
      {
        await using image = await open(node, { writable: true, secrets });
        await image.write(0, content);
      }
      await using image = await open(node, { secrets: { [id]: Buffer.from(secrets[id]) } });
      assert.deepEqual(await image.read(0, content.length), content);
      assert.equal(
        Buffer.from(content).equals(fs.readFileSync(at("x.luks")).subarray(-content.length)),
        false,
      );
    }
  });

  it("reach the jobs, for sources and for targets", async () => {
    fs.writeFileSync(at("x.raw"), content);
    const options = {
      "encrypt.format": "luks",
      "encrypt.key-secret": "text",
      "encrypt.iter-time": 0,
    } as const;
    await convert(at("x.raw"), { filename: at("x.qcow2"), format: "qcow2", options }, { secrets });
    const node = {
      driver: "qcow2",
      "encrypt.key-secret": "text",
      file: { driver: "file", filename: at("x.qcow2") },
    } as const;
    assert.equal((await compare(node, at("x.raw"), { secrets })).same, true);
    await convert(node, { filename: at("y.raw"), format: "raw" }, { secrets });
    assert.ok(fs.readFileSync(at("y.raw")).equals(content));
    assert.equal((await info(at("x.qcow2"))).encrypted, true);
  });

  it("that are missing or wrong are refused in qemu's words", async () => {
    const options = { "key-secret": "text", "iter-time": 0 };
    const refused = (message: string) => (error: unknown) =>
      error instanceof BlockError && error.message === message;
    await assert.rejects(
      create(at("z.luks"), { format: "luks", size: 512, options }),
      refused("No secret with id 'text'"),
    );
    assert.equal(fs.existsSync(at("z.luks")), false);
    await create(at("z.luks"), { format: "luks", size: 512, options, secrets });
    await assert.rejects(
      open(at("z.luks"), { secrets }),
      refused("Parameter 'key-secret' is required for cipher"),
    );
    const node = (id: string) => ({ driver: "luks", "key-secret": id, file: at("z.luks") }) as const;
    const file = { driver: "file", filename: at("z.luks") } as const;
    await assert.rejects(
      open({ ...node("bytes"), file }, { secrets }),
      refused("Invalid password, cannot unlock any keyslot"),
    );
    await assert.rejects(
      open({ ...node("toString"), file }, { secrets }),
      refused("No secret with id 'toString'"),
    );
    await assert.rejects(
      open({ ...node("x"), file }, { secrets: { x: Uint8Array.of(0xff) } }),
      refused("Data from secret x is not valid UTF-8"),
    );
  });
});
