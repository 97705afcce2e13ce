/** Filters and test drivers beside qemu-io and qemu-img: what is printed, exit codes, and the files that are left. */

import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import { mustRun } from "../support/tools.ts";
import { Fixture, words } from "./differential.ts";
import {
  BLKDEBUG_OPTION_CASES,
  FILTER_CASES,
  NAME_CASES,
  QUORUM_CASES,
  THROTTLE_CASES,
  TRACE_CASES,
} from "./io-filter-cases.ts";
import { caseLines, noOracle, sameRun } from "./io-harness.ts";

const KIB = 1024;
const MIB = KIB * KIB;

/** Rules of blkdebug, good and bad ones. */
const CONFIGS: Readonly<Record<string, string>> = {
  a: [
    '[set-state]\nevent = "write_aio"\nstate = "1"\nnew_state = "2"\n\n',
    '[inject-error]\nevent = "read_aio"\nstate = "2"\nerrno = "28"\n',
    'immediately = "on"\nonce = "off"\nsector = "1"\n',
  ].join(""),
  b: '[inject-error]\nevent = "foo"\n',
  c: '[foo]\nevent = "foo"\n',
  d: 'event = "foo"\n',
  e: "[inject-error]\n",
  f: '[inject-error]\nevent = "read_aio"\nerrno = "x"\n',
  g: '[inject-error]\nevent = "read_aio"\nfoo = "x"\n',
  h: '[set-state]\nevent = "read_aio"\nnew_state = "x"\n',
  i: '[inject-error]\nevent = "read_aio"\niotype = "x"\n',
  j: '[suspend]\nevent = "read_aio"\ntag = "x"\n',
  k: '[inject-error]\nevent = "read_aio"\nonce = "maybe"\n',
  l: '[inject-error\nevent = "read_aio"\n',
  m: "xx yy\n",
  n: "[inject-error]\nevent = read_aio\n",
  o: '# c\n\n  [inject-error]  \n  event = "read_aio"\n',
  p: '[inject-error "x"]\nevent = "read_aio"\n',
  q: '[set-state]\nstate = "1"\n',
  r: '[inject-error]\r\nevent = "read_aio"\r\n',
};

function fill(directory: string): void {
  const file = (name: string) => path.join(directory, name);
  const sizes: Readonly<Record<string, number>> = { b: MIB, c: MIB, d: 2 * MIB, r: MIB, odd: 1_000_000 };
  for (const [name, bytes] of Object.entries(sizes)) {
    fs.writeFileSync(file(`${name}.raw`), "");
    fs.truncateSync(file(`${name}.raw`), bytes);
  }
  for (const name of ["a", "e"]) {
    fs.writeFileSync(file(`${name}.raw`), Buffer.alloc(600 * KIB, 5));
    fs.truncateSync(file(`${name}.raw`), MIB);
  }
  fs.writeFileSync(file("log"), "");
  fs.writeFileSync(file("short"), Buffer.alloc(KIB, "abc"));
  for (const [name, text] of Object.entries(CONFIGS)) fs.writeFileSync(file(`${name}.conf`), text);
  mustRun("qemu-img", ["create", "-q", "-f", "qcow2", "-b", "a.raw", "-F", "raw", file("q.qcow2")]);
  mustRun("qemu-img", ["create", "-q", "-f", "qcow2", file("t.qcow2"), "1M"]);
}

describe("filters beside qemu-io", { skip: noOracle }, () => {
  const fixture = new Fixture(fill);
  after(() => fixture.remove());

  const tables: readonly (readonly [string, string])[] = [
    ["filters", FILTER_CASES],
    ["quorum", QUORUM_CASES],
    ["options of blkdebug", BLKDEBUG_OPTION_CASES],
    ["throttle groups", THROTTLE_CASES],
    ["trace events", TRACE_CASES],
  ];
  for (const [name, table] of tables)
    describe(name, () => {
      for (const line of caseLines(table)) it(line.slice(0, 120), () => sameRun(fixture, line));
    });

  describe("names", () => {
    for (const line of caseLines(NAME_CASES)) it(line.slice(0, 120), () => fixture.sameOutput(words(line)));
  });
});
