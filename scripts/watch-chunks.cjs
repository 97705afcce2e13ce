/**
 * `node -r scripts/watch-chunks.cjs dist/bdrv.cjs ...`: runs the command. Then it writes into BDRV_CODE what V8 made of
 * each chunk, with the functions that were called, for dist/bdrv.cjs to start from; unless another run has done it: to
 * read the code of functions that a run does not call costs as much as it gains. The names of chunks that node's own
 * loader loaded go to the file BDRV_LOADED.
 */

"use strict";

const fs = require("node:fs");
const path = require("node:path");
const vm = require("node:vm");

const { BDRV_CODE, BDRV_LOADED } = process.env;
const scripts = new Map();

vm.Script = class extends vm.Script {
  constructor(source, options) {
    super(source, options);
    scripts.set(path.basename(options.filename), this);
  }
};

process.on("exit", () => {
  for (const [name, script] of scripts) {
    const file = path.join(BDRV_CODE, name);
    if (!fs.existsSync(file)) fs.writeFileSync(file, script.createCachedData());
  }
  const loaded = Object.keys(require.cache).filter((file) => path.basename(path.dirname(file)) === "chunks");
  fs.writeFileSync(BDRV_LOADED, loaded.map((file) => path.basename(file)).join("\n"));
});
