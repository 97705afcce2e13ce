/**
 * `node scripts/bundle.mjs [DIRECTORY]`: bundles the command into dist/bdrv.cjs and dist/chunks. Start-up is a feature:
 *
 * - CommonJS, because Node's ESM loader takes 4 ms longer to start and uses the thread pool before the first line of
 *   the program can set the pool's size. esbuild splits ESM only, so it splits first, and then translates.
 * - What is loaded together lies together: a file costs 0.4 ms, and V8 takes 1 ms for each 60 KB that it is shown. So
 *   the usual commands are run once, and what each of them loads, and none before it, is joined into one file.
 * - With each file lies what V8 made of it, for a node like this one: see boot.cjs.
 */

import { spawnSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { build, transform } from "esbuild";

/** What is to start fast, most of all the first; in a directory of its own with an image, `a`. */
const USUAL = [
  "info a",
  "map a",
  "measure -O qcow2 a",
  "convert -O qcow2 a b",
  "convert -O raw b c",
  "compare a c",
  "create -f qcow2 d 64M",
  "check a",
];

const OUTPUT = process.argv[2] ?? "dist";
fs.mkdirSync(OUTPUT, { recursive: true });
/** What is there may be in use until all is made. Within the package, so that its native modules are found. */
const WORK = fs.mkdtempSync(path.join(OUTPUT, "bundle-"));
process.on("exit", () => fs.rmSync(WORK, { recursive: true, force: true }));
const CHUNKS = path.join(WORK, "chunks");
/** As in boot.cjs. */
const CODE = path.join(CHUNKS, `${process.version}-${process.arch}-${fs.statSync(process.execPath).size}`);

const FOR_NODE = {
  platform: "node",
  target: "node20.19",
  minifySyntax: true,
  minifyWhitespace: true,
  legalComments: "none",
  logLevel: "warning",
};
const TO_COMMONJS = {
  ...FOR_NODE,
  format: "cjs",
  // A chunk is loaded by require(): import() would start the ESM loader after all.
  supported: { "dynamic-import": false },
  define: {
    "import.meta.url": "importMetaUrl",
    "import.meta.dirname": "__dirname",
    "import.meta.filename": "__filename",
  },
};
const OWN_URL = 'const importMetaUrl=require("node:url").pathToFileURL(__filename).href;';
// Native builds and wasm find their files beside themselves, and what is optional may be missing.
const { optionalDependencies } = JSON.parse(fs.readFileSync("package.json", "utf8"));
const EXTERNAL = [...Object.keys(optionalDependencies), "@bokuweb/zstd-wasm"];

/** The text of each chunk, by name. */
const chunks = await split();
const main = [...chunks.keys()].find((name) => name.startsWith("main-"));
/** The file that a chunk lies in, where it is not alone. */
const homes = new Map();

fs.mkdirSync(CHUNKS);
for (const name of chunks.keys()) await writeAlone(name);
await writeBoot();
for (const names of together(runUsual())) {
  const home = names.includes(main) ? main : names[0];
  for (const name of names) homes.set(name, home);
}
for (const name of chunks.keys()) {
  const home = homes.get(name);
  if (home === undefined) await writeAlone(name);
  else if (home === name) await writeJoined(name);
  else fs.rmSync(path.join(CHUNKS, name));
}
fs.mkdirSync(CODE);
runUsual();
fs.rmSync(path.join(OUTPUT, "chunks"), { recursive: true, force: true });
fs.renameSync(CHUNKS, path.join(OUTPUT, "chunks"));
fs.renameSync(path.join(WORK, "bdrv.cjs"), path.join(OUTPUT, "bdrv.cjs"));

async function split() {
  const { outputFiles } = await build({
    ...FOR_NODE,
    entryPoints: ["src/cli/main.ts"],
    outdir: CHUNKS,
    entryNames: "[name]-[hash]",
    chunkNames: "[name]-[hash]",
    // Or node takes them for modules, as package.json has it.
    outExtension: { ".js": ".cjs" },
    bundle: true,
    splitting: true,
    write: false,
    format: "esm",
    external: EXTERNAL,
  });
  return new Map(outputFiles.map(({ path: file, text }) => [path.basename(file), text]));
}

async function writeAlone(name) {
  const { code } = await transform(chunks.get(name), TO_COMMONJS);
  write(name, code);
}

/** One file of all chunks that have come to lie in it. */
async function writeJoined(home) {
  const names = [...chunks.keys()].filter((name) => homes.get(name) === home);
  const { outputFiles } = await build({
    ...TO_COMMONJS,
    stdin: { contents: doorTo(names) },
    bundle: true,
    write: false,
    external: EXTERNAL,
    plugins: [{ name: "chunks", setup: (esbuild) => takeFromMemory(esbuild, home) }],
  });
  write(home, outputFiles[0].text);
}

/**
 * A function that gives the exports of a chunk by its name: made only when asked for, since there are hundreds. It is asked
 * when all chunks of its file have run, and no export of ours changes later: so these are no getters, which are slow.
 */
function doorTo(names) {
  const imports = [];
  const cases = names.map((name, index) => {
    const values = exportsOf(name).map((exported) => {
      imports.push(`import { ${exported} as ${exported}$${index} } from "./${name}";`);
      return `${exported}: ${exported}$${index}`;
    });
    imports.push(`import "./${name}";`);
    return `case ${JSON.stringify(name)}: return { __esModule: true, ${values.join(", ")} };`;
  });
  return `${imports.join("")} export function chunk(name) { switch (name) { ${cases.join(" ")} } }`;
}

/** As esbuild writes it at the end of each chunk. */
function exportsOf(name) {
  const [, list = ""] = /export\{([^}]*)\};\s*$/.exec(chunks.get(name)) ?? [];
  return list
    .split(",")
    .filter(Boolean)
    .map((item) => item.split(" as ").at(-1));
}

function takeFromMemory(esbuild, home) {
  esbuild.onResolve({ filter: /^\.\// }, ({ path: file, kind }) => {
    const name = path.basename(file);
    const isHere = homes.get(name) === home && kind === "import-statement";
    return isHere ? { path: name, namespace: "chunk" } : { path: file, external: true };
  });
  esbuild.onLoad({ filter: /./, namespace: "chunk" }, ({ path: name }) => ({
    // Without an export it would pass for CommonJS, by its name.
    contents: `${requireBuiltins(chunks.get(name))}export{};`,
  }));
}

/** esbuild would copy all properties of the module, each time. */
function requireBuiltins(text) {
  return text.replaceAll(/\bimport (?:\*as )?(\w+) from"(node:\w+)";/g, 'const $1=require("$2");');
}

/** Chunks of other files are found there. */
function write(name, code) {
  const placed = code.replaceAll(/require\("\.\/([^"]+)"\)/g, (call, chunk) => {
    const home = homes.get(chunk);
    return home === undefined ? call : `require("./${home}").chunk(${JSON.stringify(chunk)})`;
  });
  const own = placed.includes("importMetaUrl") ? OWN_URL : "";
  const text = `this.chunk=function(exports,require,module,__filename,__dirname){${own}${placed}}`;
  fs.writeFileSync(path.join(CHUNKS, name), text);
}

async function writeBoot() {
  const source = fs.readFileSync(path.join(import.meta.dirname, "boot.cjs"), "utf8");
  const { code } = await transform(source.replace("@main", main), FOR_NODE);
  fs.writeFileSync(path.join(WORK, "bdrv.cjs"), `#!/usr/bin/env node\n${code}`, { mode: 0o755 });
}

/** Chunks by the first run that loads them. What a chunk imports is loaded no later than itself: so files don't go in circles. */
function together(runs) {
  const byRun = runs.map(() => []);
  for (const name of chunks.keys()) byRun[runs.findIndex((loaded) => loaded.has(name))]?.push(name);
  return byRun.filter((names) => names.length > 0);
}

/**
 * Runs the usual commands. Gives the names of the chunks that node's own loader loaded, by run; once there is a place
 * for it, V8's code is left for boot.cjs.
 */
function runUsual() {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), "bdrv-bundle-"));
  const loaded = path.join(directory, "loaded");
  const env = { ...process.env, BDRV_CODE: path.resolve(CODE), BDRV_LOADED: loaded };
  const watched = ["-r", path.join(import.meta.dirname, "watch-chunks.cjs")];
  // A command that fails says so, and starts no slower than it would have.
  const bdrv = (words, options = []) =>
    spawnSync(process.execPath, [...options, path.resolve(WORK, "bdrv.cjs"), ...words], {
      cwd: directory,
      env,
      stdio: ["ignore", "ignore", "inherit"],
    });
  try {
    bdrv(["create", "-f", "qcow2", "a", "64M"]);
    bdrv(["io", "-c", "write 0 1M", "a"]);
    return USUAL.map((line, index) => {
      const { status } = bdrv(line.split(" "), watched);
      if (index === 0 && status !== 0) throw new Error("The program does not run");
      return new Set(fs.readFileSync(loaded, "utf8").split("\n"));
    });
  } finally {
    fs.rmSync(directory, { recursive: true });
  }
}
