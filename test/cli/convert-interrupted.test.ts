/** A conversion that is ended by a signal: the command as a process of its own. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { random } from "../support/random.ts";
import { tempDir } from "../support/temp.ts";

const MAIN = path.resolve(import.meta.dirname, "../../src/cli/main.ts");
const BYTES = 8 * 2 ** 20;

function start(directory: string, args: readonly string[], name = "convert") {
  const command = ["--import", import.meta.resolve("tsx"), MAIN, "qemu-img", name, ...args];
  return spawn(process.execPath, command, { cwd: directory, stdio: ["ignore", "pipe", "pipe"] });
}

/** Starts a slow conversion, waits until `under way` says that data has been written, and sends the signal. */
async function interrupt(
  directory: string,
  args: readonly string[],
  signal: NodeJS.Signals,
  isUnderWay: () => boolean,
): Promise<{
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stderr: string;
}> {
  const child = start(directory, args);
  let stderr = "";
  child.stderr.on("data", (chunk: Buffer) => {
    stderr += String(chunk);
  });
  child.stdout.resume();
  const ended = new Promise<{ code: number | null; signal: NodeJS.Signals | null }>((resolve) =>
    child.once("close", (code, by) => resolve({ code, signal: by })),
  );
  while (!isUnderWay() && child.exitCode === null) await sleep(10);
  child.kill(signal);
  return { ...(await ended), stderr };
}

describe("an interrupted conversion", () => {
  /** Of a file that is being made, and does not have its name yet. */
  const blocks = (file: string) => {
    const made = path.join(path.dirname(file), `.${path.basename(file)}.bdrv-part`);
    assert.ok(!fs.existsSync(file));
    return fs.statSync(made, { throwIfNoEntry: false })?.blocks ?? 0;
  };

  for (const [signal, options] of [
    ["SIGINT", ["-O", "raw"]],
    ["SIGTERM", ["-O", "qcow2"]],
    ["SIGINT", ["-O", "qcow2", "-c", "-p"]],
    ["SIGHUP", ["-O", "qcow2", "-o", "data_file=data"]],
  ] as const)
    it(`by ${signal} leaves no new image: ${options.join(" ")}`, async (t) => {
      const directory = tempDir(t);
      const [source, out, data] = ["source", "out", "data"].map((name) => path.join(directory, name)) as [
        string,
        string,
        string,
      ];
      fs.writeFileSync(source, random(1).bytes(BYTES));
      // At 1 MiB a second it takes eight.
      const args = ["-f", "raw", "-r", "1M", ...options, "source", "out"];
      const ended = await interrupt(directory, args, signal, () => blocks(out) + blocks(data) > 1024);
      assert.deepEqual(ended, { code: null, signal, stderr: "" });
      assert.deepEqual(fs.readdirSync(directory), ["source"]);
    });

  it("by SIGINT stops setting space aside for a new image", async (t) => {
    const directory = tempDir(t);
    const out = path.join(directory, "out");
    // All of it would take many seconds, and more space than there may be.
    const child = start(directory, ["-q", "-f", "raw", "-o", "preallocation=full", "out", "64G"], "create");
    const ended = new Promise((resolve) => child.once("close", (_, by) => resolve(by)));
    while (blocks(out) < 1024 && child.exitCode === null) await sleep(5);
    child.kill("SIGINT");
    assert.equal(await ended, "SIGINT");
    assert.deepEqual(fs.readdirSync(directory), []);
  });

  it("says how far it is for each SIGUSR1", async (t) => {
    const directory = tempDir(t);
    fs.writeFileSync(path.join(directory, "source"), Buffer.alloc(6 * BYTES, 1));
    const child = start(directory, ["-f", "raw", "-r", "10M", "-O", "raw", "source", "out"]);
    let stderr = "";
    child.stderr.on("data", (chunk: Buffer) => {
      stderr += String(chunk);
    });
    const ended = new Promise((resolve) => child.once("close", resolve));
    while (blocks(path.join(directory, "out")) < 1024) await sleep(10);
    while (stderr.split("\n").length < 3 && child.exitCode === null) {
      child.kill("SIGUSR1");
      await sleep(50);
    }
    child.kill("SIGINT");
    await ended;
    assert.match(stderr, /^( {4}\(\d+\.\d\d\/100%\)\n){2,}$/);
  });

  it("leaves a target that was there before, as far as it was written", async (t) => {
    const directory = tempDir(t);
    const target = path.join(directory, "target");
    fs.writeFileSync(path.join(directory, "source"), Buffer.alloc(BYTES, "new"));
    fs.writeFileSync(target, Buffer.alloc(BYTES, "old"));
    const isUnderWay = () => fs.readFileSync(target).subarray(0, 3).equals(Buffer.from("new"));
    const args = ["-n", "-f", "raw", "-O", "raw", "-r", "1M", "source", "target"];
    const { signal } = await interrupt(directory, args, "SIGINT", isUnderWay);
    assert.equal(signal, "SIGINT");
    const left = fs.readFileSync(target);
    assert.equal(left.length, BYTES);
    assert.equal(
      left
        .subarray(-3 * 1024)
        .toString("latin1")
        .includes("new"),
      false,
    );
  });
});
