/** The compress filter: every write becomes a compressed one, with the same allocation as qemu's filter makes. */

import assert from "node:assert/strict";
import path from "node:path";
import { describe, it } from "node:test";
import { findDriver } from "../../src/block/driver.ts";
import { openBackend } from "../support/graph.ts";
import { sparseFile, tempDir } from "../support/temp.ts";
import { missing, mustRun, run } from "../support/tools.ts";

const noOracle = { skip: findDriver("qcow2") ? missing("qemu-img") : "there is no qcow2 driver" };
const KiB = 1024;

/** Figures of `qemu-img check` and the map without host offsets: what was allocated how. */
function allocation(filename: string): unknown {
  const check = JSON.parse(mustRun("qemu-img", ["check", "--output=json", filename])) as Record<
    string,
    number
  >;
  const map = JSON.parse(mustRun("qemu-img", ["map", "--output=json", filename])) as { offset?: number }[];
  const { "allocated-clusters": allocated, "compressed-clusters": compressed } = check;
  return { allocated, compressed, map: map.map((entry) => ({ ...entry, offset: undefined })) };
}

describe("the compress filter", () => {
  it("refuses a child that can't compress, by name", async (test) => {
    const filename = sparseFile(tempDir(test), "a", 4096);
    await assert.rejects(openBackend({ driver: "compress", file: { driver: "raw", file: { filename } } }), {
      errno: "ENOTSUP",
      message: "Compression is not supported for underlying format: raw",
    });
    await assert.rejects(
      openBackend({ driver: "compress", file: { driver: "null-co" } }),
      /underlying format: null-co/,
    );
  });

  for (const [createOptions, cluster] of [
    ["", 64 * KiB],
    ["cluster_size=4k", 4 * KiB],
    ["compression_type=zstd", 64 * KiB],
    ["compat=0.10", 64 * KiB],
  ] as const) {
    it(`allocates as qemu's, over qcow2 with '${createOptions}'`, noOracle, async (test) => {
      const dir = tempDir(test);
      const create = (name: string) => {
        const filename = path.join(dir, name);
        const options = createOptions ? ["-o", createOptions] : [];
        // Whole clusters: qemu's filter takes no other image for writing.
        mustRun("qemu-img", ["create", "-q", "-f", "qcow2", ...options, filename, String(40 * cluster)]);
        return filename;
      };
      const requests = [
        ["write", 0, cluster],
        ["write", 3 * cluster, 4 * cluster],
        // Not aligned: the filter's request alignment is the cluster, so the core pads.
        ["write", 10 * cluster + 100, 300],
        ["write", 13 * cluster - 700, 1400],
        ["zero", 20 * cluster, 2 * cluster],
        ["zero", 25 * cluster + 512, 100],
      ] as const;
      const theirs = create("theirs");
      const commands = requests.flatMap(([op, offset, bytes]) => [
        "-c",
        `${op === "zero" ? "write -z" : "write -P 5"} ${offset} ${bytes}`,
      ]);
      mustRun("qemu-io", [
        "--image-opts",
        ...commands,
        `driver=compress,file.driver=qcow2,file.file.filename=${theirs}`,
      ]);
      const ours = create("ours");
      {
        await using image = await openBackend({
          driver: "compress",
          file: { driver: "qcow2", file: { filename: ours } },
        });
        assert.equal(image.node.limits.requestAlignment, cluster);
        for (const [op, offset, bytes] of requests) {
          if (op === "zero") await image.writeZeroes(offset, bytes);
          else await image.write(offset, new Uint8Array(bytes).fill(5));
        }
      }
      assert.deepEqual(allocation(ours), allocation(theirs));
      assert.equal(run("qemu-img", ["compare", ours, theirs]).code, 0);
    });
  }

  it(
    "fails as qemu's where a cluster is written a second time, and keeps the first content",
    noOracle,
    async (test) => {
      const filename = path.join(tempDir(test), "a");
      mustRun("qemu-img", ["create", "-q", "-f", "qcow2", filename, "1M"]);
      await using image = await openBackend({
        driver: "compress",
        file: { driver: "qcow2", file: { filename } },
      });
      await image.write(0, new Uint8Array(1000).fill(1));
      await assert.rejects(image.write(0, new Uint8Array(1000).fill(2)), { errno: "EIO" });
      assert.deepEqual(await image.read(0, 1000), new Uint8Array(1000).fill(1));
      const target = `driver=compress,file.driver=qcow2,file.file.filename=${filename}`;
      await image.close();
      const { stdout, stderr } = run("qemu-io", ["--image-opts", "-c", "write 0 64k", target]);
      assert.match(stdout + stderr, /write failed: Input\/output error/);
    },
  );
});
