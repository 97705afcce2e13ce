/** Keeps the house tidy: import directions, sizes, and the rules of style that a parser can see. CONTRIBUTING.md says why. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { parseSync, Visitor } from "oxc-parser";

const root = fileURLToPath(new URL("..", import.meta.url));

const MAX_FILE_LINES = 600;
/** Of its own: lines of functions inside it count for those. */
const MAX_FUNCTION_LINES = 60;

interface Source {
  /** From the root, with slashes. */
  readonly name: string;
  readonly text: string;
  readonly parsed: ReturnType<typeof parseSync>;
}

function parse(name: string, text: string): Source {
  return { name, text, parsed: parseSync(name, text) };
}

function filesUnder(directory: string): string[] {
  return fs
    .readdirSync(path.join(root, directory), { recursive: true, encoding: "utf8" })
    .filter((name) => /\.m?ts$/.test(name))
    .map((name) => path.posix.join(directory, ...name.split(path.sep)))
    .sort();
}

const load = (name: string) => parse(name, fs.readFileSync(path.join(root, name), "utf8"));
const sources = [...filesUnder("src"), ...filesUnder("drivers")].map(load);
const everything = [...sources, ...filesUnder("test").map(load)];

function lineOf(source: Source, offset: number): number {
  return source.text.slice(0, offset).split("\n").length;
}

const at = (source: Source, offset: number) => `${source.name}:${lineOf(source, offset)}`;

/** Runs a rule over files; all that it finds is shown at once. */
function check(files: readonly Source[], rule: (source: Source) => readonly string[]): void {
  const findings = files.flatMap((source) => rule(source));
  assert.deepEqual(findings, []);
}

interface Import {
  /** From the root for a relative one, else as it stands. */
  readonly target: string;
  readonly isTypeOnly: boolean;
  readonly offset: number;
}

function importsOf({ name, parsed, text }: Source): Import[] {
  const imports: Import[] = [];
  const add = (specifier: string, isTypeOnly: boolean, offset: number) => {
    const isRelative = specifier.startsWith(".");
    const target = isRelative ? path.posix.join(path.posix.dirname(name), specifier) : specifier;
    imports.push({ target, isTypeOnly, offset });
  };
  for (const { moduleRequest, entries, start } of parsed.module.staticImports)
    add(moduleRequest.value, entries.length > 0 && entries.every((entry) => entry.isType), start);
  for (const { entries } of parsed.module.staticExports)
    for (const { moduleRequest, isType, start } of entries)
      if (moduleRequest) add(moduleRequest.value, isType, start);
  for (const { moduleRequest } of parsed.module.dynamicImports) {
    const specifier = text.slice(moduleRequest.start, moduleRequest.end);
    if (/^["']/.test(specifier)) add(specifier.slice(1, -1), false, moduleRequest.start);
  }
  return imports;
}

/** The arrows: who may import from where. Each may import from itself and from `platform`. */
const ARROWS: Readonly<Record<string, readonly string[]>> = {
  "src/platform": [],
  "src/block": [],
  drivers: ["src/block"],
  "src/jobs": ["src/block"],
  "src/cli": ["src/jobs", "src/block"],
  "src/library": ["src/jobs", "src/block"],
  "src/index.ts": ["src/library", "src/jobs", "src/block"],
};

/** The drivers are registered by what runs alone: the library's face and the command line. */
const DRIVERS_INDEX = "drivers/index.ts";

function layerOf(name: string): string | undefined {
  return Object.keys(ARROWS).find((layer) => name === layer || name.startsWith(`${layer}/`));
}

function badImports(source: Source): string[] {
  const layer = layerOf(source.name);
  if (layer === undefined) return [`${source.name}: belongs to no layer`];
  const allowed = [layer, "src/platform", ...(ARROWS[layer] ?? [])];
  return importsOf(source).flatMap(({ target, isTypeOnly, offset }) => {
    if (!/^(src|drivers|test)\//.test(target)) return [];
    if (target === DRIVERS_INDEX) {
      // The typed options are computed from the list: a type that is gone when the code runs.
      const mayKnow =
        layer === "src/index.ts" || layer === "src/cli" || (layer === "src/library" && isTypeOnly);
      return mayKnow ? [] : [`${at(source, offset)}: only src/index.ts and src/cli import ${target}`];
    }
    const targetLayer = layerOf(target);
    const isFine = targetLayer !== undefined && allowed.includes(targetLayer);
    return isFine ? [] : [`${at(source, offset)}: ${layer} must not import ${target}`];
  });
}

test("imports follow the arrows: cli -> jobs -> block <- drivers, platform below all", () => {
  check(sources, badImports);
});

/** The lines of every function, those of functions within taken off. */
function functionLines(
  source: Source,
): { readonly name: string; readonly offset: number; readonly lines: number }[] {
  const found: { name: string; offset: number; lines: number }[] = [];
  const open: { name: string; offset: number; lines: number }[] = [];
  let name = "(anonymous)";
  const enter = (node: { start: number; end: number; id?: { name: string } | null }) => {
    const lines = lineOf(source, node.end) - lineOf(source, node.start) + 1;
    const outer = open.at(-1);
    // One line stays with the outer function: that on which the inner one begins.
    if (outer) outer.lines -= lines - 1;
    open.push({ name: node.id?.name ?? name, offset: node.start, lines });
  };
  const leave = () => {
    const done = open.pop();
    if (done) found.push(done);
  };
  const noteKey = (node: { key: object }) => {
    name = "name" in node.key ? String(node.key.name) : "(anonymous)";
  };
  new Visitor({
    Property: noteKey,
    MethodDefinition: noteKey,
    VariableDeclarator: (node) => {
      name = node.id.type === "Identifier" ? node.id.name : "(anonymous)";
    },
    FunctionDeclaration: enter,
    "FunctionDeclaration:exit": leave,
    FunctionExpression: enter,
    "FunctionExpression:exit": leave,
    ArrowFunctionExpression: enter,
    "ArrowFunctionExpression:exit": leave,
  }).visit(source.parsed.program);
  return found;
}

test(`files have at most ${MAX_FILE_LINES} lines`, () => {
  check(sources, ({ name, text }) => {
    const lines = text.split("\n").length - 1;
    return lines > MAX_FILE_LINES ? [`${name}: ${lines} lines`] : [];
  });
});

test(`functions have at most ${MAX_FUNCTION_LINES} lines of their own`, () => {
  check(sources, (source) =>
    functionLines(source)
      .filter(({ lines }) => lines > MAX_FUNCTION_LINES)
      .map(({ name, offset, lines }) => `${at(source, offset)}: ${name} has ${lines} lines`),
  );
});

test("every file begins with a doc comment of one sentence, or more, that says what it is", () => {
  check(everything, ({ name, text, parsed }) => {
    const [first] = parsed.comments;
    const head = text.startsWith("#!") ? text.slice(text.indexOf("\n") + 1) : text;
    const isFirst = first?.type === "Block" && first.value.startsWith("*") && head.startsWith("/**");
    const words = isFirst ? first.value.replace(/^[\s*]+/, "") : "";
    return /^\S.*[.:?)]/s.test(words) ? [] : [`${name}: does not begin with a doc comment`];
  });
});

test("no default exports, enums, namespaces or parameter properties", () => {
  check(everything, (source) => {
    const findings: string[] = [];
    const refuse = (what: string) => (node: { start: number }) =>
      void findings.push(`${at(source, node.start)}: ${what}`);
    new Visitor({
      ExportDefaultDeclaration: refuse("default export"),
      TSEnumDeclaration: refuse("enum"),
      TSModuleDeclaration(node) {
        // `declare module "bdrv"` adds to the types of a module that is there.
        if (node.id.type !== "Literal") refuse("namespace")(node);
      },
      TSParameterProperty: refuse("parameter property"),
      TSAnyKeyword: refuse("any"),
      TSExportAssignment: refuse("export ="),
    }).visit(source.parsed.program);
    return findings;
  });
});

function methodsInInterfaces(source: Source): string[] {
  const findings: string[] = [];
  new Visitor({
    TSMethodSignature: (node) => void findings.push(`${at(source, node.start)}: method shorthand in a type`),
  }).visit(source.parsed.program);
  return findings;
}

test("a driver's operations are properties: a method would accept one that wants more than it is given", () => {
  check(
    sources.filter(({ name }) => name === "src/block/driver.ts" || name === "src/block/open.ts"),
    methodsInInterfaces,
  );
});

test("only index.ts re-exports without code of its own, and the library's face has none", () => {
  check(sources, ({ name, parsed }) => {
    const isReexport = (node: { type: string; source?: unknown }) =>
      /^(ImportDeclaration|ExportAllDeclaration)$/.test(node.type) ||
      (node.type === "ExportNamedDeclaration" && Boolean(node.source));
    const isBarrel = parsed.program.body.every(isReexport);
    if (name === "src/index.ts") return isBarrel ? [] : [`${name}: has code of its own`];
    return isBarrel ? [`${name}: is a barrel`] : [];
  });
});

test("the rules find what they are for", () => {
  const bad = (name: string, text: string) => parse(name, text);
  assert.equal(badImports(bad("src/block/x.ts", `import { raw } from "../../drivers/raw.ts";`)).length, 1);
  assert.equal(badImports(bad("src/jobs/x.ts", `import { x } from "../cli/x.ts";`)).length, 1);
  assert.equal(badImports(bad("src/jobs/x.ts", `import "../../drivers/index.ts";`)).length, 1);
  assert.equal(badImports(bad("src/block/x.ts", `export * from "../jobs/x.ts";`)).length, 1);
  assert.equal(badImports(bad("src/block/x.ts", `const x = await import("../jobs/x.ts");`)).length, 1);
  assert.equal(
    badImports(bad("src/library/x.ts", `import { drivers } from "../../drivers/index.ts";`)).length,
    1,
  );
  assert.equal(
    badImports(bad("src/library/x.ts", `import type { drivers } from "../../drivers/index.ts";`)).length,
    0,
  );
  assert.equal(badImports(bad("drivers/x.ts", `import { x } from "../src/block/x.ts";`)).length, 0);
  assert.equal(methodsInInterfaces(bad("x.ts", "interface X { read(): void; write: () => void }")).length, 1);
  const lines = functionLines(
    bad("x.ts", "function outer() {\n  const inner = () => {\n    1;\n    2;\n  };\n  return inner;\n}"),
  );
  assert.deepEqual(
    lines.map(({ name, lines }) => [name, lines]),
    [
      ["inner", 4],
      ["outer", 4],
    ],
  );
});
