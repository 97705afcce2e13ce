/** Images that name files of the host: what other tools have followed, and what is never followed here when told so. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { describe, it } from "node:test";
import {
  BlockError,
  check,
  convert,
  denyAll,
  info,
  inspect,
  map,
  type OpenOptions,
  open,
} from "../../src/index.ts";
import { runOurs } from "../cli/differential.ts";
import { makeScene, overlayOf, type Scene, SECRET, withDataFile } from "./hostile.ts";

/** What a service does to an upload; each with what of its content it would show. */
const USES: Readonly<
  Record<string, (image: string, scene: Scene, options: OpenOptions) => Promise<unknown>>
> = {
  open: async (image, _, options) => {
    await using opened = await open(image, options);
    return opened.read(0, 512);
  },
  map: async (image, _, options) => {
    const entries = [];
    for await (const entry of map(image, options)) entries.push(entry);
    return entries;
  },
  convert: async (image, scene, { format, ...options }) => {
    const target = scene.path("converted");
    await convert(image, { filename: target, format: "raw" }, { ...options, source: { format } });
    return fs.readFileSync(target);
  },
};

describe("CVE-2024-32498, CVE-2024-4467: a data file that is a file of the host", () => {
  for (const form of ["plain", "json", "relative"] as const)
    it(`${form} name: is not opened as untrusted, nor by info, check or inspect`, async (t) => {
      const scene = makeScene(t);
      const { secret } = scene;
      const names = {
        plain: secret,
        json: `json:{"driver":"file","filename":"${secret}"}`,
        relative: "../secret",
      };
      const image = withDataFile(scene, "upload.qcow2", names[form]);
      for (const [use, run] of Object.entries(USES)) {
        const untrusted = run(image, scene, { format: "qcow2", untrusted: true });
        await assert.rejects(untrusted, { name: "BlockError", errno: "EACCES" }, use);
        await assert.rejects(run(image, scene, { format: "qcow2", gate: denyAll }), { errno: "EACCES" }, use);
      }
      const atime = () => fs.statSync(secret, { bigint: true }).atimeNs;
      const before = atime();
      await info(image, { format: "qcow2", untrusted: true });
      await check(image, { format: "qcow2", untrusted: true }).catch(ignoreBlockError);
      const verdict = await inspect(image);
      assert.equal(verdict.safe, false);
      assert.deepEqual(verdict.references, [{ kind: "data file", filename: names[form] }]);
      assert.equal(atime(), before);
    });

  it("is followed where the images are trusted: the attack is real", async (t) => {
    const scene = makeScene(t);
    const image = withDataFile(scene, "upload.qcow2", scene.secret);
    await using opened = await open(image, { format: "qcow2" });
    assert.match(Buffer.from(await opened.read(0, 512)).toString(), new RegExp(`^${SECRET}`));
  });
});

describe("CVE-2024-32498: a backing file that is a file of the host", () => {
  for (const [what, name] of Object.entries({
    absolute: (scene: Scene) => scene.secret,
    "through ..": () => "../secret",
    "with a protocol": (scene: Scene) => `file:${scene.secret}`,
    "of a list of options": (scene: Scene) =>
      `json:{"driver":"raw","file":{"driver":"file","filename":"${scene.secret}"}}`,
    "of a driver that needs no file": () => "null-co://",
  }))
    it(`${what}: is not opened`, async (t) => {
      const scene = makeScene(t);
      const image = await overlayOf(scene, "upload.qcow2", name(scene), "raw");
      for (const [use, run] of Object.entries(USES))
        await assert.rejects(
          run(image, scene, { format: "qcow2", untrusted: true }),
          { errno: "EACCES" },
          use,
        );
      const verdict = await inspect(image);
      assert.equal(verdict.safe, false);
      assert.deepEqual(verdict.references, [{ kind: "backing file", filename: name(scene), format: "raw" }]);
    });

  it("is not opened by any command that would show it", async (t) => {
    const scene = makeScene(t);
    await overlayOf(scene, "upload.qcow2", scene.secret, "raw");
    const lines = [
      "map --untrusted -f qcow2 upload.qcow2",
      "convert --untrusted -f qcow2 -O raw upload.qcow2 out.raw",
      "compare --untrusted -f qcow2 -F raw upload.qcow2 ../secret",
      "dd --untrusted -f qcow2 -O raw if=upload.qcow2 of=out.raw",
      "info --untrusted --backing-chain -f qcow2 upload.qcow2",
      "measure --untrusted -f qcow2 -O raw upload.qcow2",
      "rebase --untrusted -f qcow2 -b  upload.qcow2",
      "commit --untrusted -f qcow2 upload.qcow2",
      "bench --untrusted -c 1 -f qcow2 upload.qcow2",
    ];
    for (const line of lines) {
      const { exitCode, stderr, stdout } = await runOurs(line.split(" "), scene.uploads);
      assert.notEqual(exitCode, 0, line);
      assert.match(stderr, /untrusted image names/, line);
      assert.doesNotMatch(stdout, new RegExp(SECRET), line);
      assert.equal(fs.existsSync(scene.path("out.raw")), false, line);
    }
  });
});

describe("CVE-2026-24708: an image that is said to be raw", () => {
  it("is not flattened or resized by what its first bytes say", async (t) => {
    const scene = makeScene(t);
    const image = await overlayOf(scene, "disk", scene.secret, "raw");
    const content = fs.readFileSync(image);
    await using opened = await open(image, { format: "raw", untrusted: true });
    assert.equal(opened.node.driver.formatName, "raw");
    assert.deepEqual(Buffer.from(await opened.read(0, 512)), content.subarray(0, 512));
  });

  it("is guessed by nothing that is told to distrust it", async (t) => {
    const scene = makeScene(t);
    const image = await overlayOf(scene, "disk", scene.secret, "raw");
    const message = "The format of an untrusted image must be given: it is not guessed";
    await assert.rejects(open(image, { untrusted: true }), { errno: "EINVAL", message });
    for (const command of ["info", "map", "check", "resize"]) {
      const args = [command, "--untrusted", "disk", ...(command === "resize" ? ["1M"] : [])];
      const { exitCode, stderr } = await runOurs(args, scene.uploads);
      assert.equal(exitCode, 1, command);
      assert.equal(stderr, `qemu-img: Could not open 'disk': ${message}\n`);
    }
  });

  it("is told from other formats by inspect", async (t) => {
    const scene = makeScene(t);
    const image = await overlayOf(scene, "disk", scene.secret, "raw");
    const { safe, anomalies } = await inspect(image, { format: "raw" });
    assert.equal(safe, false);
    assert.deepEqual(
      anomalies.map(({ code }) => code),
      ["ambiguous-format"],
    );
  });

  it("keeps its guest from writing another format's header where it was guessed", async (t) => {
    const scene = makeScene(t);
    const image = scene.path("guest.raw");
    fs.writeFileSync(image, Buffer.alloc(65536));
    const header = fs.readFileSync(await overlayOf(scene, "header.qcow2", scene.secret, "raw"));
    await using opened = await open(image, { writable: true, onWarning: () => {} });
    await assert.rejects(opened.write(0, header.subarray(0, 512)), { errno: "EPERM" });
    await assert.rejects(opened.write(0, header.subarray(0, 65536)), { errno: "EPERM" });
  });
});

describe("symbolic links", () => {
  it("are followed within the directory, and not out of it", async (t) => {
    const scene = makeScene(t);
    const inside = scene.path("inside");
    fs.writeFileSync(inside, Buffer.alloc(512, 1));
    fs.symlinkSync("inside", scene.path("good"));
    fs.symlinkSync("../secret", scene.path("bad"));
    fs.symlinkSync("bad", scene.path("chained"));
    fs.symlinkSync("..", scene.path("up"));
    const raw = { format: "raw", untrusted: true } as const;
    await using opened = await open(scene.path("good"), raw);
    assert.equal((await opened.read(0, 1))[0], 1);
    for (const name of ["bad", "chained"])
      await assert.rejects(open(scene.path(name), raw), { errno: "EACCES" });
    // A directory that the user names is the user's: also by a link.
    await using above = await open(scene.path("up/secret"), raw);
    assert.equal(await above.getLength(), 65536);
    await assert.rejects(inspect(scene.path("bad")), { errno: "EACCES" });
  });

  it("lead no new file out of the directory", async (t) => {
    const scene = makeScene(t);
    fs.writeFileSync(scene.path("in.raw"), Buffer.alloc(512, 1));
    fs.symlinkSync("../secret", scene.path("out.raw"));
    fs.symlinkSync("../fresh", scene.path("new.raw"));
    for (const target of ["out.raw", "new.raw"]) {
      const args = ["convert", "--untrusted", "-f", "raw", "-O", "raw", "in.raw", target];
      assert.equal((await runOurs(args, scene.uploads)).exitCode, 1);
    }
    assert.match(fs.readFileSync(scene.secret, "utf8"), new RegExp(`^${SECRET}`));
    assert.equal(fs.existsSync(path.join(scene.directory, "fresh")), false);
  });
});

function ignoreBlockError(error: unknown): void {
  assert.ok(error instanceof BlockError);
}
