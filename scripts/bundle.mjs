/**
 * `node scripts/bundle.mjs [DIRECTORY]`: bundles the command into dist/bdrv.cjs and, for what not every command needs, dist/chunks. Start-up is a feature:
 * CommonJS, because Node's ESM loader takes 4 ms longer to start and uses the thread pool before the first line of
 * the program can set the pool's size; and in pieces, because V8 takes 1 ms for each 60 KB that it is shown, and all
 * of it is 560 KB. esbuild splits ESM only, so it splits first and then translates each piece.
 */

import fs from "node:fs";
import path from "node:path";
import { build, transform } from "esbuild";
import { emptyDirSync } from "fs-extra/esm";

const OUTPUT = process.argv[2] ?? "dist";

const { outputFiles } = await build({
  entryPoints: { bdrv: "src/cli/main.ts" },
  outdir: OUTPUT,
  outExtension: { ".js": ".cjs" },
  chunkNames: "chunks/[name]-[hash]",
  bundle: true,
  splitting: true,
  write: false,
  platform: "node",
  target: "node20.19",
  format: "esm",
  minifySyntax: true,
  minifyWhitespace: true,
  legalComments: "none",
  // Native builds and wasm find their files beside themselves.
  external: ["koffi", "zlib-sync", "zstd-napi", "@bokuweb/zstd-wasm"],
  logLevel: "warning",
});

emptyDirSync(path.join(OUTPUT, "chunks"));
for (const { path: file, text } of outputFiles) {
  const isEntry = path.dirname(file) === path.resolve(OUTPUT);
  const { code } = await transform(text, {
    format: "cjs",
    platform: "node",
    target: "node20.19",
    minifySyntax: true,
    minifyWhitespace: true,
    // A chunk is loaded by require(): import() would start the ESM loader after all.
    supported: { "dynamic-import": false },
    define: { "import.meta.url": "importMetaUrl" },
    banner: text.includes("import.meta.url")
      ? 'const importMetaUrl=require("node:url").pathToFileURL(__filename).href;'
      : "",
  });
  fs.writeFileSync(file, (isEntry ? "#!/usr/bin/env node\n" : "") + code, { mode: isEntry ? 0o755 : 0o644 });
}
