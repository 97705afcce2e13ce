/** A commit that is ended by a signal: the command as a process of its own. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { random } from "../support/random.ts";
import { tempDir } from "../support/temp.ts";
import { missing, mustRun } from "../support/tools.ts";

const MAIN = path.resolve(import.meta.dirname, "../../src/cli/main.ts");

describe("an interrupted commit", { skip: missing("qemu-img") }, () => {
  for (const format of ["raw", "qcow2"] as const)
    it(`leaves an overlay that reads as before, and a sound base: ${format}`, async (t) => {
      const directory = tempDir(t);
      const [base, top, data, copy] = ["base", "top", "data", "copy"].map((name) =>
        path.join(directory, name),
      ) as [string, string, string, string];
      fs.writeFileSync(data, random(1).bytes(8 * 2 ** 20));
      mustRun("qemu-img", ["create", "-q", "-f", format, base, "8M"]);
      mustRun("qemu-img", ["create", "-q", "-f", "qcow2", "-b", base, "-F", format, top]);
      mustRun("qemu-img", ["convert", "-n", "-O", "qcow2", data, top]);
      const [before, overlay] = [fs.statSync(base).blocks, fs.readFileSync(top)];

      // At 1 MiB a second it takes eight.
      const args = ["--import", import.meta.resolve("tsx"), MAIN, "qemu-img", "commit", "-r", "1M", top];
      const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "pipe"] });
      let output = "";
      for (const stream of [child.stdout, child.stderr])
        stream.on("data", (chunk: Buffer) => {
          output += String(chunk);
        });
      const ended = new Promise((resolve) =>
        child.once("close", (code, signal) => resolve({ code, signal })),
      );
      while (fs.statSync(base).blocks <= before + 1024 && child.exitCode === null) await sleep(10);
      child.kill("SIGINT");
      assert.deepEqual(await ended, { code: null, signal: "SIGINT" }, output);
      assert.equal(output, "");

      assert.ok(fs.readFileSync(top).equals(overlay));
      mustRun("qemu-img", ["convert", "-O", "raw", top, copy]);
      assert.ok(fs.readFileSync(copy).equals(fs.readFileSync(data)));
      if (format === "qcow2") mustRun("qemu-img", ["check", "-q", base]);
    });
});
