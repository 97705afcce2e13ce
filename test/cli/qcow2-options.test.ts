/** The options of a qcow2 node beside qemu-io: at open and at reopen, what is refused and with which words, and what they do. */

import { after, before, describe, it } from "node:test";
import { mustRun } from "../support/tools.ts";
import { Fixture } from "./differential.ts";
import { noOracle, sameCase } from "./io-harness.ts";

const OPTIONS = `
cache-size=1M,l2-cache-size=1M,refcount-cache-size=1M
cache-size=1M,l2-cache-size=2M
cache-size=1M,refcount-cache-size=2M
cache-size=1M,l2-cache-size=512k
l2-cache-entry-size=100
l2-cache-entry-size=128k
l2-cache-entry-size=768
l2-cache-entry-size=512
l2-cache-entry-size=4k,l2-cache-size=8k
l2-cache-size=0
refcount-cache-size=0
cache-size=0
refcount-cache-size=8E
l2-cache-size=8E
refcount-cache-size=1P
cache-size=1P
refcount-cache-size=7E,cache-size=7E
cache-clean-interval=0
cache-clean-interval=1
cache-clean-interval=4294967295
cache-clean-interval=4294967296
cache-clean-interval=-1
cache-clean-interval=x
lazy-refcounts=x
lazy-refcounts=on
overlap-check=bogus
overlap-check=none,overlap-check.template=all
overlap-check=all,overlap-check.template=all
overlap-check.template=bogus
overlap-check.main-header=x
overlap-check.foo=on
pass-discard-request=maybe
pass-discard-request=off
pass-discard-other=on,pass-discard-snapshot=off
l2-cache-size=x
cache-size=-1
l2-cache-size=1.5M
discard-no-unref=on
cache-size=1M,foo=1
`;

describe("options of qcow2", { skip: noOracle }, () => {
  let fixture: Fixture;
  before(() => {
    fixture = new Fixture((directory) => {
      const image = `${directory}/t.qcow2`;
      mustRun("qemu-img", ["create", "-q", "-f", "qcow2", "-o", "cluster_size=64k", image, "64M"]);
      mustRun("qemu-io", ["-c", "write -P 1 0 256k", "-c", "write -c 4M 64k", image]);
      mustRun("qemu-img", ["snapshot", "-c", "one", image]);
      mustRun("qemu-img", [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "compat=0.10",
        `${directory}/old.qcow2`,
        "64M",
      ]);
    });
  });
  after(() => fixture?.remove());
  const same = (...args: readonly string[]) => sameCase(fixture, { args, stdin: "" });
  for (const options of OPTIONS.split("\n").filter((each) => each !== "")) {
    it(`at open: ${options}`, () =>
      same(
        "-c",
        "write 0 64k",
        "-c",
        "read 0 64k",
        "-c",
        "discard 0 128k",
        "--image-opts",
        `driver=qcow2,file.filename=t.qcow2,${options}`,
      ));
    it(`at reopen: ${options}`, () =>
      same("-c", `reopen -o ${options}`, "-c", "write 0 64k", "-c", "discard 0 64k", "t.qcow2"));
  }
  it("lazy refcounts of version 2", () =>
    same("-c", "write 0 64k", "--image-opts", "driver=qcow2,file.filename=old.qcow2,lazy-refcounts=on"));
  it("what a reopen changes is in force", () =>
    same(
      "-c",
      "reopen -o lazy-refcounts=on",
      "-c",
      "write 8M 64k",
      "-c",
      "reopen -o lazy-refcounts=off",
      "-c",
      "write 9M 64k",
      "-c",
      "reopen -r",
      "-c",
      "read 9M 64k",
      "-c",
      "write 0 64k",
      "-c",
      "reopen -w -o l2-cache-size=1M",
      "-c",
      "write 0 64k",
      "t.qcow2",
    ));
});
