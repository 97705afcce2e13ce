/** What `npm pack` packs is whole: the library is imported and the command started from it, on plain Node. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { tempDir } from "./support/temp.ts";
import { mustRun } from "./support/tools.ts";

interface PackedFile {
  readonly path: string;
  readonly size: number;
}

const root = fileURLToPath(new URL("..", import.meta.url));
const directory = tempDir({ after });
const installed = path.join(directory, "node_modules", "bdrv");
let files: readonly PackedFile[] = [];

before(() => {
  assert.ok(fs.existsSync(path.join(root, "dist", "bdrv.cjs")), "dist is missing: npm run build");
  // prepack would build again, into the dist that other tests use now.
  const args = ["pack", root, "--ignore-scripts", "--json", "--pack-destination", directory];
  const packed = JSON.parse(mustRun("npm", args)) as readonly {
    readonly filename: string;
    readonly files: readonly PackedFile[];
  }[];
  const [archive] = packed;
  assert.ok(archive);
  ({ files } = archive);
  fs.mkdirSync(installed, { recursive: true });
  mustRun("tar", ["-xzf", path.join(directory, archive.filename), "-C", installed, "--strip-components=1"]);
  const manifest = JSON.parse(fs.readFileSync(path.join(installed, "package.json"), "utf8")) as Readonly<
    Record<string, Readonly<Record<string, string>> | undefined>
  >;
  // Its dependencies, and nothing else: an import of a devDependency fails.
  for (const name of Object.keys({ ...manifest["dependencies"], ...manifest["optionalDependencies"] })) {
    const target = path.join(root, "node_modules", name);
    if (!fs.existsSync(target)) continue;
    const link = path.join(directory, "node_modules", name);
    fs.mkdirSync(path.dirname(link), { recursive: true });
    fs.symlinkSync(target, link);
  }
});

test("it holds the built package and no sources, tests or images", () => {
  const names = files.map((file) => file.path);
  for (const name of ["README.md", "LICENSE", "CHANGELOG.md", "dist/bdrv.cjs", "dist/src/index.d.ts"])
    assert.ok(names.includes(name), `${name} is missing`);
  const unwanted = names.filter((name) => /^(src|drivers|test|images|scripts)\/|^dist\/test-/.test(name));
  assert.deepEqual(unwanted, []);
  // A module without its types, or the other way round, is left over from an older build.
  for (const name of names.filter((file) => /^dist\/(src|drivers)\/.*\.js$/.test(file)))
    assert.ok(names.includes(name.replace(/\.js$/, ".d.ts")), `${name} has no types`);
});

test("the library is imported and reads an image", () => {
  const program = path.join(directory, "use.mjs");
  const image = path.join(root, "images", "qemu-img-7.2-zstd.qcow2");
  fs.writeFileSync(
    program,
    `import { open } from "bdrv";
     const image = await open(process.argv[2]);
     const data = await image.read(1080, 2);
     console.log(await image.getLength(), Buffer.from(data).toString("hex"));
     await image.close();`,
  );
  assert.equal(mustRun(process.execPath, [program, image]), "4194304 53ef\n");
});

test("the command starts, by its own name and as qemu-img", () => {
  const command = path.join(installed, "dist", "bdrv.cjs");
  assert.equal(fs.statSync(command).mode & 0o111, 0o111);
  const image = path.join(root, "images", "qemu-img-7.2-zlib.qcow2");
  assert.match(mustRun(command, ["info", image]), /^virtual size: 4 MiB \(4194304 bytes\)$/m);
  const link = path.join(directory, "qemu-img");
  fs.symlinkSync(command, link);
  const { stderr } = spawnSync(link, ["info", path.join(directory, "none")], { encoding: "utf8" });
  assert.match(stderr, /^qemu-img: Could not open '.*none': /);
});
