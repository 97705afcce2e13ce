/** What the bundled command loads when it starts: start-up is a feature, and what is not asked for must not come back. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { after, before, describe, it } from "node:test";
import { tempDir } from "../support/temp.ts";

const ROOT = path.join(import.meta.dirname, "..", "..");

interface Loaded {
  /** Files of the bundle, without their hashes, in order. */
  readonly files: readonly string[];
  /** Parts of node that a bare one does not load, but for node:vm. */
  readonly builtins: readonly string[];
  /** For each chunk, whether V8 took its code. */
  readonly taken: readonly boolean[];
}

/** Says at the end what was loaded. */
const HOOK = `
  const fs = require("node:fs");
  const { readFileSync } = fs;
  const vm = require("node:vm");
  const bare = new Set(process.moduleLoadList);
  const files = [];
  vm.Script = class extends vm.Script {
    constructor(source, options) {
      super(source, options);
      taken.push(!this.cachedDataRejected);
    }
  };
  fs.readFileSync = (file, ...rest) => {
    if (/\\.cjs$/.test(String(file))) files.push(file);
    return readFileSync(file, ...rest);
  };
  const taken = [];
  process.on("exit", () => {
    const builtins = process.moduleLoadList.filter((name) => !bare.has(name));
    fs.writeFileSync(process.env.LOADED, JSON.stringify({ files, builtins, taken }));
  });`;

describe("the start of the bundled command", () => {
  const directory = tempDir({ after });
  const image = path.join(directory, "a.qcow2");
  const list = path.join(directory, "loaded.json");
  const hook = path.join(directory, "hook.cjs");
  let bundle: string;
  let code: string;

  before(() => {
    fs.mkdirSync(path.join(ROOT, "dist"), { recursive: true });
    // Inside the package, so that its native modules are found.
    bundle = fs.mkdtempSync(path.join(ROOT, "dist", "bundle-"));
    const built = spawnSync(process.execPath, ["scripts/bundle.mjs", bundle], {
      cwd: ROOT,
      encoding: "utf8",
    });
    assert.equal(built.status, 0, built.stderr);
    assert.equal(built.stderr, "", "every usual command runs");
    const [name] = fs.readdirSync(path.join(bundle, "chunks")).filter((entry) => entry.startsWith("v"));
    assert.ok(name);
    code = path.join(bundle, "chunks", name);
    fs.writeFileSync(hook, HOOK);
    run("create", "-f", "qcow2", image, "1M");
  });
  after(() => fs.rmSync(bundle, { recursive: true }));

  function run(...args: string[]): string {
    const command = path.join(bundle, "bdrv.cjs");
    const { status, stdout, stderr } = spawnSync(process.execPath, ["-r", hook, command, ...args], {
      encoding: "utf8",
      env: { ...process.env, LOADED: list },
    });
    assert.equal(status, 0, stderr);
    return stdout;
  }

  function loadedBy(...args: string[]): Loaded {
    run(...args);
    const { files, ...rest } = JSON.parse(fs.readFileSync(list, "utf8")) as Loaded;
    const named = files.map((file) =>
      path
        .relative(bundle, file)
        .replace(path.basename(code), "CODE")
        .replace(/-[A-Z0-9]{8}(?=\.cjs$)/, ""),
    );
    return { files: named, ...rest };
  }

  it("is one file and its code for info, and no more of node than it needs", () => {
    assert.deepEqual(loadedBy("info", image), {
      files: ["bdrv.cjs", "chunks/main.cjs", "chunks/CODE/main.cjs"],
      builtins: ["Internal Binding signal_wrap"],
      taken: [true],
    });
  });

  it("is a few files for each usual command, all with their code", () => {
    for (const args of [
      ["map", image],
      ["check", image],
      ["measure", "-O", "qcow2", image],
      ["convert", "-O", "qcow2", image, `${image}.copy`],
    ]) {
      const { files, taken } = loadedBy(...args);
      const chunks = files.filter((file) => /^chunks\/[^/]*$/.test(file));
      assert.ok(chunks.length <= 6, files.join(" "));
      assert.ok(!taken.includes(false));
      for (const chunk of chunks)
        assert.ok(files.includes(chunk.replace("/", "/CODE/")), `${chunk} has no code`);
      assert.ok(!files.some((file) => file.includes("help") || file.includes("rebase")), files.join(" "));
    }
  });

  it("works without the code, as with another node, and with code that V8 does not take", () => {
    const before = run("info", image);
    for (const name of fs.readdirSync(code)) {
      const file = path.join(code, name);
      fs.writeFileSync(file, fs.readFileSync(file).subarray(0, 1000));
    }
    assert.equal(run("info", image), before);
    fs.rmSync(code, { recursive: true });
    assert.equal(run("info", image), before);
    assert.match(run("--help"), /^bdrv COMMAND/);
  });
});
