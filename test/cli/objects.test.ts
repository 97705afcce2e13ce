/** `--object` against qemu-img: what it takes, and the words with which it refuses the rest. */

import assert from "node:assert/strict";
import { createCipheriv } from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import { type CliContext, ExitError } from "../../src/cli/command.ts";
import { type CliObject, defineObject, secretById } from "../../src/cli/objects.ts";
import { MemoryOutput } from "../../src/cli/output.ts";
import { Fixture, missingTool } from "./differential.ts";

const KEY = Buffer.alloc(32, 7);
const IV = Buffer.alloc(16, 9);
const KEY64 = KEY.toString("base64");
const IV64 = IV.toString("base64");

function encrypted(plain: string): string {
  const cipher = createCipheriv("aes-256-cbc", KEY, IV);
  return Buffer.concat([cipher.update(plain), cipher.final()]).toString("base64");
}

const MASTER = `secret,id=m,data=${KEY64},format=base64`;

/** One definition after the other on one command line. */
const CASES: readonly (readonly string[])[] = [
  ...[
    "",
    "secret",
    "secret,id=a",
    "secret,id=a,data=x",
    "secret,id=a,data=",
    "secret,id=a,data=a,,b",
    "secret,id=a,data=x,",
    "secret,id=a,data=x,foo=1",
    "secret,id=a,data=x,file=y",
    "secret,id=a,file=/nonexistent",
    "secret,id=a,file=",
    "secret,id=a,file=.",
    "secret,id=a,file=odd.bin",
    "secret,id=a,data=x,format=raw",
    "secret,id=a,data=x,format=bogus",
    "secret,id=a,data=x,format=RAW",
    "secret,id=a,data=eHg=,format=base64",
    "secret,id=a,data=eHg,format=base64",
    "secret,id=a,data=,format=base64",
    "secret,id=a,data=!!!,format=base64",
    "secret,id=a,data=e Hg=,format=base64",
    "secret,id=a,file=odd.bin,format=base64",
    "secret,id=a,file=lines.b64,format=base64",
    "secret,id=a,file=nul.b64,format=base64",
    "secret,id=a,format=base64",
    "secret,data=x",
    "secret,format=foo",
    "secret,foo=1",
    "secret,id=a,foo=1,format=x",
    "secret,id=a,loaded=on,data=x",
    "secret,id=a,loaded=off,data=x",
    "secret,id=a,loaded=2,data=x",
    "secret,id=a,loaded=on,format=x",
    "secret,id=a,loaded=on,foo=1",
    "secret,id=a,loaded=on,file=a,data=b",
    "secret,id=1a",
    "secret,id=1a,data=x",
    "secret,id=1a,foo=1",
    "secret,id=,data=x",
    "secret,id=a b,data=x",
    "secret,id=a,id=b,data=x",
    "secret,qom-type=foo,id=a,data=x",
    "qom-type=secret,id=a,data=x",
    "qom-type=secret",
    "id=a",
    "foo,id=a",
    "secret,id",
    "secret,id=a,data",
    "secret,id=a,=x",
    "secret,id=a,,data=x",
    ",secret",
    "secret,id=a,data.0=x",
    "secret,id=a,data=x,data.b=c",
    "secret,id=a,data=x,keyid=b",
    "secret,id=a,data=x,keyid=a,iv=b",
    "secret,id=a,data=x,iv=b",
    "help",
    "?",
    "secret,help",
    "secret,id=a,help",
    "secret,id=a,?",
    "help,secret",
    "foo,help",
    "iothread,help",
    "secret,help=on",
    "help=on",
    "authz-list,help",
    "authz-list-file,help",
    "authz-simple,help",
    "main-loop,help",
    "pr-manager-helper,help",
    "secret_keyring,help",
    "thread-context,help",
    "throttle-group,help",
    "tls-cipher-suites,help",
    "tls-creds-anon,help",
    "tls-creds-psk,help",
    "tls-creds-x509,help",
    "authz-list,id=a,policy=allow",
    "authz-list,id=a,policy=foo",
    "authz-list,id=a,rules.0.match=a,rules.0.policy=allow",
    "authz-list-file,id=a,filename=x",
    "authz-listfile,id=a",
    "authz-pam,id=a",
    "authz-simple,id=a",
    "authz-simple,id=a,identity=x",
    "authz-simple,id=a,identity=x,foo=1",
    "iothread,id=a",
    "iothread,id=1a",
    "can-host-socketcan,id=a",
    "rng-egd,id=a",
    "memory-backend-ram,id=a",
    "main-loop,id=a",
    "main-loop,id=a,aio-max-batch=1",
    "main-loop,id=a,aio-max-batch=x",
    "main-loop,id=a,poll-max-ns=1",
    "pr-manager-helper,id=a",
    "pr-manager-helper,id=a,path=/nonexistent",
    "secret_keyring,id=a",
    "secret_keyring,id=a,serial=foo",
    "thread-context,id=a",
    "throttle-group,id=a",
    "throttle-group,id=a,x-iops-total=100",
    "throttle-group,id=a,limits.iops-total=100",
    "throttle-group,id=a,x-iops-total=foo",
    "throttle-group,id=a,limits.bps-total=1G",
    "throttle-group,id=a,limits.foo=1",
    "throttle-group,id=a,limits=1",
    "throttle-group,id=a,foo=1",
    "throttle-group,id=a,limits.iops-total=10,limits.iops-read=4",
    "tls-cipher-suites,id=a",
    "tls-cipher-suites,id=a,priority=NORMAL",
    "tls-creds-anon,id=a,endpoint=client",
    "tls-creds-anon,id=a,endpoint=foo",
    "tls-creds-psk,id=a",
    "tls-creds-psk,id=a,endpoint=client,dir=.",
    "tls-creds-x509,id=a",
    "tls-creds-x509,id=a,endpoint=client,dir=/nonexistent",
    "tls-creds-x509,id=a,endpoint=client,dir=/nonexistent,verify-peer=foo",
    '{"qom-type":"secret","id":"a","data":"x"}',
    "{'qom-type':'secret','id':'a','data':'x'}",
    '{"qom-type":"secret","id":"a","data":1}',
    '{"qom-type":"secret","id":"a","data":null}',
    '{"qom-type":"secret","id":"a","data":{"x":1}}',
    '{"qom-type":"secret","id":"a","data":"x","foo":1}',
    '{"qom-type":"secret","id":"a","data":"x","foo":{"x":1}}',
    '{"qom-type":"secret","id":"a","data":"x","format":"foo"}',
    '{"qom-type":"secret","id":"a","data":"x","loaded":true}',
    '{"qom-type":"secret","id":"a","data":"x","loaded":1}',
    '{"qom-type":"secret","id":1,"data":"x"}',
    '{"qom-type":1,"id":"a","data":"x"}',
    '{"qom-type":"secret"}',
    '{"qom-type":"help"}',
    '{"id":"a"}',
    "{}",
    "{",
    "[]",
    '{"qom-type":"secret","id":"a","data":"x",}',
    '{"qom-type":"secret","id":"a","data":"x"} x',
    '{"qom-type":"throttle-group","id":"t","limits":{"iops-total":100}}',
    '{"qom-type":"throttle-group","id":"t","foo":1}',
  ].map((definition) => [definition]),
  ["secret,id=a,data=x", "secret,id=a,data=y"],
  ["secret,id=a,data=x", "secret,id=a"],
  ["secret,id=a,data=x", "secret,id=a,loaded=on"],
  ["secret,id=a,data=x", "authz-simple,id=a,identity=x"],
  [MASTER, `secret,id=a,data=${encrypted("x")},format=base64,keyid=m,iv=${IV64}`],
  [MASTER, `secret,id=a,data=${encrypted("x")},format=base64,keyid=m`],
  [MASTER, `secret,id=a,data=${encrypted("x")},keyid=m,iv=${IV64}`],
  [MASTER, `secret,id=a,data=${encrypted("x")},format=base64,keyid=m,iv=AAAA`],
  [MASTER, `secret,id=a,data=${encrypted("x")},format=base64,keyid=m,iv=!!`],
  [MASTER, `secret,id=a,data=AAAA,format=base64,keyid=m,iv=${IV64}`],
  [MASTER, `secret,id=a,data=,format=base64,keyid=m,iv=${IV64}`],
  [MASTER, `secret,id=a,data=${"A".repeat(22)}==,format=base64,keyid=m,iv=${IV64}`],
  [MASTER, `secret,id=a,data=${encrypted("x")},format=base64,keyid=zz,iv=${IV64}`],
  ["secret,id=m,data=short", `secret,id=a,data=${encrypted("x")},format=base64,keyid=m,iv=${IV64}`],
  ["throttle-group,id=m", `secret,id=a,data=${encrypted("x")},format=base64,keyid=m,iv=${IV64}`],
];

describe("--object against qemu-img", { skip: missingTool }, () => {
  const fixture = new Fixture((directory) => {
    fs.writeFileSync(path.join(directory, "x.raw"), Buffer.alloc(512));
    fs.writeFileSync(path.join(directory, "odd.bin"), Uint8Array.of(0xff, 0xfe));
    fs.writeFileSync(path.join(directory, "lines.b64"), "eH\ng=\n");
    fs.writeFileSync(path.join(directory, "nul.b64"), "eHg=\0");
  });
  after(() => fixture.remove());

  for (const definitions of CASES) {
    it(definitions.join(" and ") || "nothing", () =>
      fixture.sameOutput([
        "info",
        ...definitions.flatMap((text) => ["--object", text]),
        "-f",
        "raw",
        "x.raw",
      ]),
    );
  }

  it("each command ends with its own exit code", async () => {
    await fixture.sameOutput(["compare", "--object", "secret,id=a", "x.raw", "x.raw"]);
    await fixture.sameOutput(["check", "--object", "foo", "x.raw"]);
    await fixture.sameOutput(["convert", "--object", "help", "x.raw", "y.raw"]);
  });
});

describe("secrets", () => {
  it("hold the bytes that were meant", () => {
    const cases: readonly (readonly [definition: string, data: Uint8Array])[] = [
      ["secret,id=a,data=x", Buffer.from("x")],
      ["secret,id=a,data=é,,", Buffer.from("é,")],
      ["secret,id=a,data=AP8=,format=base64", Uint8Array.of(0, 255)],
      [`secret,id=a,data=${encrypted("pass")},format=base64,keyid=m,iv=${IV64}`, Buffer.from("pass")],
    ];
    for (const [definition, data] of cases) {
      const objects = new Map<string, CliObject>();
      define(MASTER, objects);
      define(definition, objects);
      assert.deepEqual(Buffer.from(secretById(objects, "a")?.data ?? []), Buffer.from(data), definition);
    }
  });

  it("a secret that nobody defined is undefined, and another object is none", () => {
    const objects = new Map<string, CliObject>();
    define("throttle-group,id=t", objects);
    assert.equal(secretById(objects, "a"), undefined);
    assert.throws(() => secretById(objects, "t"), { message: "Object with id 't' is not a secret" });
  });
});

function define(text: string, objects: Map<string, CliObject>): void {
  const report = (error: unknown) => {
    throw error;
  };
  const stdout = new MemoryOutput();
  const context = { objects, stdout, report } satisfies Pick<CliContext, "objects" | "stdout" | "report">;
  try {
    defineObject(text, context as unknown as CliContext);
  } catch (error) {
    assert.ok(!(error instanceof ExitError), "the definition is a good one");
    throw error;
  }
}
