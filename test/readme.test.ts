/** What README.md shows is run: its commands print what it says, its programs compile against the built package and run. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { transform } from "esbuild";
import { tempDir } from "./support/temp.ts";
import { mustRun } from "./support/tools.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const readme = fs.readFileSync(path.join(root, "README.md"), "utf8");
const bdrv = path.join(root, "dist", "bdrv.cjs");

function blocks(language: string): string[] {
  const found = [...readme.matchAll(new RegExp(`^\`\`\`${language}\n(.*?)^\`\`\`$`, "gms"))];
  return found.map(([, text = ""]) => text);
}

const directory = tempDir({ after });

before(() => {
  assert.ok(fs.existsSync(bdrv), `${bdrv} is missing: npm run build`);
  fs.copyFileSync(path.join(root, "images", "mke2fs-1.47-ext4.raw"), path.join(directory, "disk.raw"));
  fs.mkdirSync(path.join(directory, "bin"));
  fs.symlinkSync(bdrv, path.join(directory, "bin", "bdrv"));
  fs.mkdirSync(path.join(directory, "node_modules"));
  fs.symlinkSync(root, path.join(directory, "node_modules", "bdrv"));
});

test("there is something to run", () => {
  assert.ok(blocks("console").length >= 2);
  assert.ok(blocks("ts").length >= 4);
});

for (const [index, block] of blocks("console").entries()) {
  test(`console ${index + 1}`, () => {
    assert.equal(normalise(runConsole(block)), normalise(block));
  });
}

test("the programs compile against the package's types", () => {
  for (const [index, block] of blocks("ts").entries())
    fs.writeFileSync(path.join(directory, `example-${index + 1}.ts`), block);
  const config = {
    extends: path.join(root, "tsconfig.json"),
    compilerOptions: {
      noEmit: true,
      rootDir: "/",
      typeRoots: [path.join(root, "node_modules", "@types")],
      // A user's own check of our declarations must pass too.
      skipLibCheck: false,
    },
    include: ["*.ts"],
  };
  fs.writeFileSync(path.join(directory, "tsconfig.json"), JSON.stringify(config));
  fs.writeFileSync(path.join(directory, "package.json"), '{"type":"module"}');
  mustRun(path.join(root, "node_modules", ".bin", "tsc"), ["-p", directory]);
});

for (const [index, block] of blocks("ts").entries()) {
  test(`program ${index + 1}: ${block.split("\n")[0]}`, async () => {
    // Node 20 has no `await using` of its own.
    const { code } = await transform(block, { loader: "ts", target: "node20", format: "esm" });
    const program = path.join(directory, `example-${index + 1}.mjs`);
    fs.writeFileSync(program, code);
    const { status, stdout, stderr } = spawnSync(process.execPath, [program], {
      cwd: directory,
      encoding: "utf8",
    });
    assert.equal(status, 0, stderr);
    assertPrinted(stdout, block);
  });
}

/** What a comment behind a `console.log` says, up to a comma or "...", is how the next line begins. */
function assertPrinted(stdout: string, block: string): void {
  const lines = stdout.split("\n");
  for (const [, expected = ""] of block.matchAll(/console\.log\(.*\); \/\/ (.*?)(?:,.*|\.\.\.)?$/gm)) {
    const actual = lines.shift();
    assert.ok(actual?.startsWith(expected), `prints ${JSON.stringify(actual)}, not ${expected}`);
  }
}

/** The block as a terminal would show it: every command with what it prints. */
function runConsole(block: string): string {
  const env = { ...process.env, PATH: `${path.join(directory, "bin")}:${process.env["PATH"]}` };
  let shown = "";
  for (const line of block.split("\n").filter((text) => text.startsWith("$ "))) {
    const options = { cwd: directory, env, encoding: "utf8" } as const;
    const { stdout, stderr, status } = spawnSync("sh", ["-c", `${line.slice(2)} 2>&1`], options);
    assert.equal(status, 0, `${line}: ${stderr}${stdout}`);
    shown += `${line}\n${stdout}`;
  }
  return shown;
}

/** Without what differs between file systems and from run to run. */
function normalise(text: string): string {
  return text
    .replace(/^disk size: .*$/gm, "disk size: (some)")
    .replace(/^( *"(?:actual-size|filename)": ).*$/gm, "$1(some)")
    .replace(/^(.* ops; ).*$/gm, "$1(some)");
}
