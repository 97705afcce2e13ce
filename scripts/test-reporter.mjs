/** A compact reporter for node:test: a line for each file, failures in full, then what was skipped and why, and the counts. */

import path from "node:path";
import { inspect } from "node:util";

const SLOW_MS = 1000;
const CLOSING = /^(tests|suites|pass|fail|cancelled|skipped|todo|duration_ms) /;

export default async function* report(source) {
  const failures = [];
  const skipped = new Map();
  const closing = [];
  let file;
  let counts = newCounts();

  function* closeFile() {
    if (!file) return;
    const { pass, fail, skip, durationMs } = counts;
    const parts = [`${pass} passed`];
    if (fail > 0) parts.push(`${fail} failed`);
    if (skip > 0) parts.push(`${skip} skipped`);
    if (durationMs >= SLOW_MS) parts.push(`${(durationMs / 1000).toFixed(1)} s`);
    yield `${fail > 0 ? "✖" : "✔"} ${file}: ${parts.join(", ")}\n`;
    counts = newCounts();
  }

  for await (const { type, data } of source) {
    if (type === "test:diagnostic") {
      if (CLOSING.test(data.message)) closing.push(`ℹ ${data.message}`);
      else yield `ℹ ${sourceName(data.file)}: ${data.message}\n`;
      continue;
    }
    if (type === "test:stdout" || type === "test:stderr") {
      yield data.message;
      continue;
    }
    if (type !== "test:pass" && type !== "test:fail") continue;
    const name = sourceName(data.file);
    if (name !== file) {
      yield* closeFile();
      file = name;
    }
    if (data.nesting === 0) counts.durationMs += data.details.duration_ms;
    const isSuite = data.details?.type === "suite";
    if (data.skip === "test name does not match pattern") continue;
    if (data.skip !== undefined) {
      counts.skip++;
      const reason = typeof data.skip === "string" && data.skip !== "" ? data.skip : "no reason given";
      skipped.set(reason, [...(skipped.get(reason) ?? []), `${name}: ${data.name}`]);
    } else if (type === "test:pass") {
      if (isSuite) continue;
      counts.pass++;
    } else if (data.todo === undefined) {
      // A test that fails because a subtest did says nothing that the subtest has not said.
      if (data.details.error?.failureType === "subtestsFailed") continue;
      counts.fail++;
      failures.push(`${name}: ${data.name}`);
      yield `✖ ${failures.at(-1)}\n${indent(describe(data.details.error))}\n`;
    }
  }
  yield* closeFile();
  if (skipped.size > 0) yield "\nSkipped:\n";
  for (const [reason, names] of skipped) {
    yield `- ${reason}: ${names.length === 1 ? names[0] : `${names.length} tests`}\n`;
    if (names.length > 1) for (const name of names) yield `    ${name}\n`;
  }
  if (failures.length > 0) yield `\nFailed, see above:\n${failures.map((name) => `- ${name}\n`).join("")}`;
  yield `\n${closing.join("\n")}\n`;
}

function newCounts() {
  return { pass: 0, fail: 0, skip: 0, durationMs: 0 };
}

/** dist/test-123/block/io.test.js is test/block/io.test.ts. */
function sourceName(file) {
  if (!file) return "(unknown file)";
  const relative = path.relative(process.cwd(), file);
  return relative.replace(/^dist[\\/]test-\d+/, "test").replace(/\.js$/, ".ts");
}

function describe(error) {
  const cause = error?.cause ?? error;
  if (!(cause instanceof Error)) return String(cause);
  return inspect(cause).replace(/\n +at [^\n]*\bnode:internal\/[^\n {]*/g, "");
}

function indent(text) {
  return text.replace(/^/gm, "    ");
}
