/**
 * dist/bdrv.cjs: starts the bundled command. bundle.mjs puts its chunks beside it, which are plain CommonJS, and what
 * V8 made of them when they were built: with that, nothing is parsed and little compiled. Code of another node, or of
 * other flags of V8, is no use; then node loads the chunks, and keeps its own cache where it has one (22.8).
 */

"use strict";

const fs = require("node:fs");
const vm = require("node:vm");

/** The file with the program; bundle.mjs fills it in. */
const MAIN = "@main";

const chunks = `${__dirname}/chunks`;
/** As in bundle.mjs. The program's size tells builds of one version apart, of which V8 itself knows nothing. */
const code = `${chunks}/${process.version}-${process.arch}-${fs.statSync(process.execPath).size}`;

const loaded = new Map();

/** Runs a chunk as require would. */
function load(name) {
  const known = loaded.get(name);
  if (known) return known.exports;
  const filename = `${chunks}/${name}`;
  const cachedData = codeOf(name);
  // esbuild writes ASCII.
  const source = fs.readFileSync(filename, "latin1");
  const script = new vm.Script(`(function(exports,require,module,__filename){${source}\n})`, {
    filename,
    cachedData,
  });
  const module = { exports: {} };
  loaded.set(name, module);
  script.runInThisContext()(module.exports, requireFrom, module, filename);
  return module.exports;
}

/** Undefined for a chunk that no usual command needs. */
function codeOf(name) {
  try {
    return fs.readFileSync(`${code}/${name}`);
  } catch {
    return undefined;
  }
}

function requireFrom(name) {
  return name.startsWith("./") ? load(name.slice(2)) : require(name);
}

if (fs.existsSync(code)) load(MAIN);
else {
  require("node:module").enableCompileCache?.();
  require(`./chunks/${MAIN}`);
}
