/** The command as a process: its names, its streams, signals, help; from a bundle of its own. */

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { after, before, describe, it } from "node:test";
import { commands } from "../../src/cli/commands.ts";
import { missingTool, runOurs } from "./differential.ts";

const ROOT = path.join(import.meta.dirname, "..", "..");

describe("the command as a process", () => {
  let bundle: string;
  let directory: string;
  before(() => {
    fs.mkdirSync(path.join(ROOT, "dist"), { recursive: true });
    // Inside the package, so that its native modules are found.
    bundle = fs.mkdtempSync(path.join(ROOT, "dist", "bundle-"));
    const built = spawnSync(process.execPath, ["scripts/bundle.mjs", bundle], {
      cwd: ROOT,
      encoding: "utf8",
    });
    assert.equal(built.status, 0, built.stderr);
    directory = fs.mkdtempSync(path.join(os.tmpdir(), "bdrv-command-"));
    fs.writeFileSync(path.join(directory, "a.raw"), Buffer.alloc(1024 * 1024, 1));
    for (const name of ["qemu-img", "qemu-io", "bdrv"])
      fs.symlinkSync(path.join(bundle, "bdrv.cjs"), path.join(directory, name));
  });
  after(() => {
    fs.rmSync(bundle, { recursive: true });
    fs.rmSync(directory, { recursive: true });
  });

  /** Runs a link in `directory`. */
  const run = (name: string, ...args: string[]) =>
    spawnSync(path.join(directory, name), args, { cwd: directory, encoding: "utf8" });

  it("goes by the name of its link", () => {
    assert.equal(run("qemu-img", "info", "gone").stderr.split(":")[0], "qemu-img");
    assert.equal(run("bdrv", "info", "gone").stderr.split(":")[0], "bdrv");
    assert.equal(run("bdrv", "qemu-img", "info", "gone").stderr.split(":")[0], "qemu-img");
    assert.match(run("qemu-io", "--version").stdout, /^qemu-io version \d+\.\d+/);
    assert.match(run("qemu-img", "--version").stdout, /^qemu-img version \d+\.\d+/);
    assert.match(run("bdrv", "--version").stdout, /^bdrv \d+\.\d+/);
  });

  it("reads and writes through `io`", () => {
    const args = ["-f", "raw", "-c", "write -P 7 4k 512", "-c", "read -P 7 4k 512", "a.raw"];
    for (const result of [run("qemu-io", ...args), run("bdrv", "io", ...args)]) {
      assert.equal(result.status, 0, result.stderr);
      assert.match(
        result.stdout,
        /wrote 512\/512 bytes at offset 4096[^]*read 512\/512 bytes at offset 4096/,
      );
    }
  });

  it("describes every command and every option", () => {
    const all = run("bdrv", "--help");
    assert.equal(all.status, 0, all.stderr);
    for (const command of commands) {
      assert.match(all.stdout, new RegExp(`^ *bdrv ${command.name}\\b`, "m"));
      const { stdout, status } = run("bdrv", command.name, "--help");
      assert.equal(status, 0);
      for (const { short, long } of command.options) {
        if (short !== undefined)
          assert.match(stdout, new RegExp(`-${short}\\b`), `${command.name} -${short}`);
        if (long !== undefined) assert.match(stdout, new RegExp(`--${long}\\b`), `${command.name} --${long}`);
      }
    }
  });

  it("under the name of qemu-img has that one's help", () => {
    for (const args of [["--help"], ["-h"], ["info", "--help"], ["create", "-f", "qcow2", "-h"]]) {
      const { stdout, status, stderr } = run("qemu-img", ...args);
      assert.equal(status, 0, stderr);
      assert.match(stdout, /^usage: qemu-img \[standard options\] command \[command options\]$/m);
      assert.match(stdout, /^ {2}info .*\[--backing-chain\].* filename$/m);
      assert.match(stdout, /^Supported formats: .*\bqcow2\b.*\braw\b/m);
    }
  });

  it("asks whether another command was meant", () => {
    const { stderr, status } = run("bdrv", "creat", "x");
    assert.equal(status, 1);
    assert.equal(
      stderr,
      "bdrv: Command not found: creat\nDid you mean create?\nTry 'bdrv --help' for more information\n",
    );
    assert.doesNotMatch(run("qemu-img", "creat", "x").stderr, /Did you mean/);
    assert.doesNotMatch(run("bdrv", "xyzzy").stderr, /Did you mean/);
  });

  it("completes commands in a shell", () => {
    assert.match(run("bdrv", "completion").stdout, /--get-yargs-completions/);
    const { stdout } = run("bdrv", "--get-yargs-completions", "bdrv", "co");
    for (const word of ["compare", "completion", "convert"])
      assert.match(stdout, new RegExp(`^${word}\\b`, "m"));
  });

  it("mixes stdout and stderr as the C library does: output is passed on at the end", () => {
    // Compressed data in the middle: the error comes before the table that was printed up to there.
    const shell = (line: string) =>
      spawnSync("sh", ["-c", line], { cwd: directory, encoding: "utf8" }).stdout;
    run("qemu-img", "create", "-q", "-f", "qcow2", "packed.qcow2", "1M");
    run("qemu-io", "-c", "write 0 64k", "-c", "write -c 64k 64k", "packed.qcow2");
    const ours = shell("./qemu-img map packed.qcow2 2>&1");
    assert.match(ours, /^qemu-img: File contains [^\n]*\nOffset/);
    if (!missingTool) assert.equal(ours, shell("qemu-img map packed.qcow2 2>&1"));
  });

  it("ends in silence when nobody reads its output", () => {
    const shell = spawnSync("sh", ["-c", "./qemu-img info a.raw | true; ./qemu-img --help | head -1"], {
      cwd: directory,
      encoding: "utf8",
    });
    assert.equal(shell.stderr, "");
  });

  it("does not wait for the other end of a pipe that it can't use", () => {
    spawnSync("mkfifo", [path.join(directory, "pipe")]);
    const { stderr, status } = run("qemu-img", "info", "pipe");
    assert.equal(
      stderr,
      "qemu-img: Could not open 'pipe': 'file' driver requires 'pipe' to be a regular file\n",
    );
    assert.equal(status, 1);
  });

  it("ends by the signal that it gets", async () => {
    const args = ["io", "-c", "sleep 60000", "a.raw"];
    const child = spawn(path.join(directory, "bdrv"), args, {
      cwd: directory,
      stdio: ["ignore", "pipe", "pipe"],
    });
    const ended = new Promise<NodeJS.Signals | null>((resolve) =>
      child.on("exit", (_, signal) => resolve(signal)),
    );
    await untilHandled(child.pid as number);
    child.kill("SIGINT");
    assert.equal(await ended, "SIGINT");
  });

  it("sizes the thread pool for the command, before its first use", () => {
    const hook = path.join(directory, "hook.cjs");
    // The pool's threads are made at its first use, which this is for a command that had none.
    fs.writeFileSync(
      hook,
      `const fs = require("node:fs"); const tasks = () => fs.readdirSync("/proc/self/task").length;
       const before = tasks();
       process.on("exit", () => {
         require("node:crypto").pbkdf2("a", "b", 1, 16, "sha1", () => {});
         fs.writeSync(2, String(tasks() - before));
       });`,
    );
    const threads = (...args: string[]) => {
      const { UV_THREADPOOL_SIZE: _, ...env } = process.env;
      const command = ["-r", hook, path.join(bundle, "bdrv.cjs"), ...args];
      return Number(spawnSync(process.execPath, command, { cwd: directory, encoding: "utf8", env }).stderr);
    };
    const cores = Math.max(os.availableParallelism(), 2);
    assert.equal(threads("bench", "-f", "raw", "-c", "1", "a.raw"), 16);
    assert.equal(threads("convert", "-c", "-O", "qcow2", "a.raw", "threads.qcow2"), cores);
    assert.equal(threads("info", "a.raw"), 4);
  });
});

describe("the table of commands", { skip: missingTool }, () => {
  const syntax = (help: string) => /^Command syntax:\n([^]*?)\n\n/m.exec(help)?.[1];

  it("is that of qemu-img's help", async () => {
    const help = spawnSync("qemu-img", ["--help"], { encoding: "utf8" }).stdout;
    const names = [...help.matchAll(/^ {2}([a-z]+) [[(].*$/gm)].map(([, name]) => name);
    assert.deepEqual(new Set(commands.map(({ name }) => name)), new Set(names));
    assert.equal(syntax((await runOurs(["--help"], ".")).stdout), syntax(help));
  });

  it("has every option of qemu-img's help, with a value where that one has a value", () => {
    const help = spawnSync("qemu-img", ["--help"], { encoding: "utf8" }).stdout;
    for (const { name: command, options } of commands) {
      const usage = new RegExp(`^  ${command} (.*)$`, "m").exec(help)?.[1] as string;
      // A word behind an option is its value, unless it is a bar or another bracket.
      const found = [...usage.matchAll(/(?<=[ [(])(--?)([A-Za-z][\w-]*)(=| (?![|[-])| (?=\[leaks))?/g)];
      assert.ok(found.length > 3, usage);
      for (const [text, dashes, name, value] of found) {
        const option = options.find(({ short, long }) => (dashes === "-" ? short : long) === name);
        assert.ok(option, `${command}: ${text}`);
        assert.equal(option.value !== undefined, value !== undefined, `${command}: ${text}`);
      }
    }
  });

  it("takes no letter that qemu-img does not take", () => {
    const letters = "abcdefgijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    for (const { name: command, options } of commands)
      for (const letter of letters) {
        // The last word of resize is never an option.
        const args = [command, `-${letter}`, ...(command === "resize" ? ["1G"] : [])];
        const { stderr } = spawnSync("qemu-img", args, { encoding: "utf8" });
        const known = ![`unrecognized option '-${letter}'`, `invalid option -- '${letter}'`].some((text) =>
          stderr.includes(text),
        );
        const ours = options.find(({ short }) => short === letter);
        assert.equal(ours !== undefined, known, `${command} -${letter}`);
        const takesValue = [
          `missing argument for option '-${letter}'`,
          `option requires an argument -- '${letter}'`,
        ].some((text) => stderr.includes(text));
        if (ours) assert.equal(ours.value !== undefined, takesValue, `${command} -${letter}`);
      }
  });
});

/** Waits until a process catches SIGINT, which the kernel tells in its status. */
async function untilHandled(pid: number): Promise<void> {
  const SIGINT_BIT = 1n << 1n;
  for (;;) {
    const caught = /^SigCgt:\s*([0-9a-f]+)/m.exec(fs.readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
    if (caught && (BigInt(`0x${caught}`) & SIGINT_BIT) !== 0n) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
