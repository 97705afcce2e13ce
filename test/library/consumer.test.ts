/** The built library from a project of its own: with its types, every library check on, and by require. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { tempDir } from "../support/temp.ts";
import { mustRun, run } from "../support/tools.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const isBuilt = fs.existsSync(path.join(root, "dist/src/index.d.ts"));
const built = { skip: isBuilt ? false : "dist/ is missing: npm run build" };

const project = tempDir({ after });
for (const name of ["bdrv", "@types"]) {
  fs.mkdirSync(path.join(project, "node_modules"), { recursive: true });
  const target = name === "bdrv" ? root : path.join(root, "node_modules", name);
  fs.symlinkSync(target, path.join(project, "node_modules", name));
}
fs.writeFileSync(path.join(project, "package.json"), '{ "type": "module" }');

const program = `
import { type DriverOptions, type FormatDriver, map, open, readable, registerDriver } from "bdrv";

const options = { key: { type: "number", strong: true } } as const;

export const xor: FormatDriver<typeof options> = {
  formatName: "xor",
  kind: "format",
  options,
  async open(co, { openFileChild, options: { key = 1 } }) {
    const file = await openFileChild(co);
    return { getLength: async (co) => (await file.getLength(co)) - (key satisfies number) };
  },
};
registerDriver(xor);

declare module "bdrv" {
  interface CustomDrivers {
    xor: typeof xor;
  }
}

const good: DriverOptions = { driver: "xor", key: 3, file: { driver: "file", filename: "x" } };
// @ts-expect-error: the key is a number
const bad: DriverOptions = { driver: "xor", key: "3", file: { driver: "file", filename: "x" } };
// @ts-expect-error: no such option
const worse: DriverOptions = { driver: "xor", kee: 3, file: { driver: "file", filename: "x" } };
// @ts-expect-error: no such driver
const worst: DriverOptions = { driver: "xorr", file: "x" };

await using image = await open(good);
for await (const { start, bytes } of map(image)) console.log(start satisfies number, bytes satisfies number);
export const response = new Response(readable(image));
export const content: Uint8Array = await image.read(0, 512);
export const others = [bad, worse, worst];
`;

/** What a project may have set; the last has none of what our own declarations are made with. */
const configurations: Readonly<Record<string, object>> = {
  "a Node project": { module: "nodenext", lib: ["es2023", "esnext.disposable"] },
  "a project with the DOM": {
    module: "nodenext",
    lib: ["es2023", "esnext.disposable", "dom", "dom.iterable"],
  },
  "a bundler's project": { module: "esnext", moduleResolution: "bundler", lib: ["es2023"] },
  "a careful project": {
    module: "nodenext",
    lib: ["es2022"],
    exactOptionalPropertyTypes: true,
    noUncheckedIndexedAccess: true,
    noPropertyAccessFromIndexSignature: true,
    isolatedModules: true,
  },
};

for (const [name, compilerOptions] of Object.entries(configurations)) {
  test(`${name} compiles against it, a driver of its own included`, built, () => {
    fs.writeFileSync(path.join(project, "program.ts"), program);
    const common = { target: "es2022", strict: true, skipLibCheck: false, noEmit: true, types: ["node"] };
    const config = { compilerOptions: { ...common, ...compilerOptions }, include: ["program.ts"] };
    fs.writeFileSync(path.join(project, "tsconfig.json"), JSON.stringify(config));
    const { code, stdout } = run(path.join(root, "node_modules/.bin/tsc"), ["-p", project]);
    assert.equal(stdout, "");
    assert.equal(code, 0);
  });
}

test("it is required where Node can require a module, and always imported", built, () => {
  const image = path.join(root, "images/qemu-img-7.2-v3.qcow2");
  const use = `({ info }) => info(process.argv[2]).then(({ format }) => console.log(format))`;
  const canRequire = (process.features as { readonly require_module?: boolean }).require_module === true;
  for (const load of [...(canRequire ? [`Promise.resolve(require("bdrv"))`] : []), `import("bdrv")`]) {
    const script = path.join(project, "load.cjs");
    fs.writeFileSync(script, `${load}.then(${use});`);
    assert.equal(mustRun(process.execPath, [script, image]), "qcow2\n");
  }
});
