/**
 * dist/bdrv.cjs: starts the bundled command. bundle.mjs puts its chunks beside it, and what V8 made of them when they
 * were built: with that, nothing is parsed and little compiled. Code of another node is no use; then node loads the
 * chunks, and keeps its own cache where it has one (22.8).
 */

"use strict";

const fs = require("node:fs");
const vm = require("node:vm");

/** The file with the program; bundle.mjs fills it in. */
const MAIN = "@main";

const chunks = `${__dirname}/chunks`;
/** As in bundle.mjs. The program's size tells builds of one version apart, of which V8 itself knows nothing. */
const code = `${chunks}/${process.version}-${process.arch}-${fs.statSync(process.execPath, { throwIfNoEntry: false })?.size}`;

const loaded = new Map();

/** Runs a chunk as require would. */
function load(name) {
  const known = loaded.get(name);
  if (known) return known.exports;
  const filename = `${chunks}/${name}`;
  const module = { exports: {} };
  loaded.set(name, module);
  functionIn(filename, name)(module.exports, requireFrom, module, filename, chunks);
  return module.exports;
}

function requireFrom(name) {
  return name.startsWith("./") ? load(name.slice(2)) : require(name);
}

/** A chunk is one assignment: as a script, and as a module too. */
function functionIn(filename, name) {
  if (!hasCode) return require(filename).chunk;
  // esbuild writes ASCII.
  const source = fs.readFileSync(filename, "latin1");
  return new vm.Script(source, { filename, cachedData: codeOf(name) }).runInThisContext();
}

/** Undefined for a chunk that no usual command needs. */
function codeOf(name) {
  try {
    return fs.readFileSync(`${code}/${name}`);
  } catch {
    return undefined;
  }
}

const hasCode = fs.existsSync(code);
if (!hasCode) require("node:module").enableCompileCache?.();
load(MAIN);
