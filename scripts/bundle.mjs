/**
 * Bundles the command into dist/bdrv.cjs. One CommonJS file: Node's ESM loader takes 4 ms longer to start, and it
 * uses the thread pool before the first line of the program can set the pool's size.
 * Modules that a command does not need are wrapped by esbuild and run only when they are imported.
 */

import { chmodSync } from "node:fs";
import { build } from "esbuild";

await build({
  entryPoints: ["src/cli/main.ts"],
  outfile: "dist/bdrv.cjs",
  bundle: true,
  platform: "node",
  target: "node20.19",
  format: "cjs",
  minifySyntax: true,
  minifyWhitespace: true,
  legalComments: "none",
  // Native builds and wasm find their files beside themselves.
  external: ["koffi", "zlib-sync", "zstd-napi", "@bokuweb/zstd-wasm"],
  banner: {
    js: '#!/usr/bin/env node\nconst importMetaUrl=require("node:url").pathToFileURL(__filename).href;',
  },
  define: { "import.meta.url": "importMetaUrl" },
  logLevel: "warning",
});
chmodSync("dist/bdrv.cjs", 0o755);
