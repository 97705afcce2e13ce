/** Every event of blkdebug as the moment from which the file fails, beside qemu-io: what is said, and what is left in the image. */

import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import { mustRun } from "../support/tools.ts";
import { Fixture } from "./differential.ts";
import { noOracle, sameCase } from "./io-harness.ts";

const EVENTS = [
  "l1_update l1_grow_alloc_table l1_grow_write_table l1_grow_activate_table l2_load l2_update l2_alloc_cow_read",
  "l2_alloc_write read_aio read_backing_aio write_aio cow_read cow_write refblock_load refblock_update_part",
  "refblock_alloc cluster_alloc cluster_alloc_space cluster_free flush_to_os flush_to_disk pwritev pwritev_zero",
].flatMap((line) => line.split(" "));

/** Commands, by the images that they work on. */
const COMMANDS: readonly (readonly [image: string, command: string])[] = [
  ["empty", "write 0 128k"],
  ["snapshot", "write 0 128k"],
  ["overlay", "write 100 5000"],
  ["snapshot", "write -z 0 64k"],
  ["snapshot", "discard 0 64k"],
];

/** What is not the same: the bytes of clusters that are free again. */
const EXCEPTIONS: readonly string[] = ["snapshot: write 0 128k, once at l1_update"];

function fill(directory: string): void {
  const create = (name: string, ...more: string[]) =>
    mustRun("qemu-img", ["create", "-q", "-f", "qcow2", ...more, path.join(directory, name), "64M"]);
  fs.writeFileSync(path.join(directory, "base.raw"), Buffer.alloc(2 ** 20, 5));
  create("empty.qcow2");
  create("overlay.qcow2", "-b", "base.raw", "-F", "raw");
  create("snapshot.qcow2");
  const snapshot = path.join(directory, "snapshot.qcow2");
  mustRun("qemu-io", ["-c", "write 0 128k", snapshot]);
  mustRun("qemu-img", ["snapshot", "-c", "one", snapshot]);
}

describe("faults beside qemu-io", { skip: noOracle }, () => {
  const fixture = new Fixture(fill);
  after(() => fixture.remove());

  for (const [image, command] of COMMANDS)
    for (const once of ["on", "off"])
      it(`${image}: ${command}, ${once === "on" ? "one request" : "all requests"}`, async () => {
        for (const event of EVENTS) {
          if (once === "on" && EXCEPTIONS.includes(`${image}: ${command}, once at ${event}`)) continue;
          const rule = `file.inject-error.0.event=${event},file.inject-error.0.once=${once}`;
          const options = `driver=qcow2,file.driver=blkdebug,file.image.driver=file,file.image.filename=${image}.qcow2,${rule}`;
          const args = ["-t", "writeback", "--image-opts", "-c", command, options];
          await sameCase(fixture, { args, stdin: "" }, "bytes");
        }
      });
});
