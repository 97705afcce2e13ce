/** LUKS against qemu-img: images of either are read by the other, and what is refused is refused in the same words. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { createCipheriv, createHash } from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { gunzipSync } from "node:zlib";
import { afMerge, afSplit } from "../../drivers/crypto/af-splitter.ts";
import {
  type CipherMode,
  cipherByName,
  HASH_BYTES,
  type HashName,
  type IvGenerator,
} from "../../drivers/crypto/algorithms.ts";
import { MAX_ITERATIONS } from "../../drivers/crypto/key-derivation.ts";
import { LUKS_HEADER_BYTES, parseLuksHeader, serializeLuksHeader } from "../../drivers/crypto/luks-header.ts";
import { keyBytesOf, sectorCipher } from "../../drivers/crypto/sector-cipher.ts";
import { Fixture, missingTool, runOurs, runTheirs, words } from "../cli/differential.ts";
import { random } from "../support/random.ts";
import { tempDir } from "../support/temp.ts";

const ENCRYPTED = fileURLToPath(new URL("encrypted", import.meta.url));
const SECRETS = "--object secret,id=s,data=passphrase --object secret,id=t,data=another";

/** By whose key an image can be opened. */
const IMAGES: Readonly<Record<string, "s" | "t">> = {
  "default.luks": "s",
  "aes-128-cbc-essiv-sha1.luks": "s",
  "aes-192-xts-plain-sha512.luks": "s",
  "aes-128-ecb-ripemd160.luks": "s",
  "aes-128-ctr-md5.luks": "s",
  "aes-128-xts-essiv-md5-sha224.luks": "s",
  "slots.luks": "t",
};

const content = fs.readFileSync(path.join(ENCRYPTED, "content.raw"));

function unpack(name: string, directory: string, as = name): string {
  const filename = path.join(directory, as);
  fs.writeFileSync(filename, gunzipSync(fs.readFileSync(path.join(ENCRYPTED, `${name}.gz`))));
  return filename;
}

function imageOpts(filename: string, secret: string): string {
  return `--image-opts driver=luks,key-secret=${secret},file.filename=${filename}`;
}

async function ours(line: string, directory: string): Promise<string> {
  const { stdout, stderr, exitCode } = await runOurs(words(line), directory);
  assert.equal(exitCode, 0, `${line}: ${stderr}`);
  return stdout;
}

function theirs(line: string, directory: string): string {
  const { stdout, stderr, exitCode } = runTheirs(words(line), directory);
  assert.equal(exitCode, 0, `${line}: ${stderr}`);
  return stdout;
}

describe("images of qemu-img", () => {
  const dir = tempDir({ after });
  for (const [name, secret] of Object.entries(IMAGES)) {
    it(`${name} has the content that was put in`, async () => {
      unpack(name, dir);
      await ours(`convert ${SECRETS} ${imageOpts(name, secret)} -O raw ${name}.raw`, dir);
      assert.ok(fs.readFileSync(path.join(dir, `${name}.raw`)).equals(content));
    });
  }

  it("a wrong passphrase unlocks nothing, an erased slot neither", async () => {
    unpack("slots.luks", dir);
    const { stderr } = await runOurs(words(`map ${SECRETS} ${imageOpts("slots.luks", "s")}`), dir);
    assert.match(stderr, /Invalid password, cannot unlock any keyslot/);
  });
});

const CREATED: readonly string[] = [
  "",
  "cipher-alg=aes-128",
  "cipher-alg=aes-192,ivgen-alg=plain,hash-alg=sha512",
  "cipher-mode=cbc",
  "cipher-mode=cbc,ivgen-alg=essiv",
  "cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=md5,cipher-alg=aes-256",
  "cipher-mode=ecb,hash-alg=ripemd160",
  "cipher-mode=ctr,hash-alg=md5,cipher-alg=aes-128",
  "ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha1",
  "ivgen-hash-alg=sha1,hash-alg=sha224",
  "hash-alg=sha384",
];

describe("images of ours", { skip: missingTool }, () => {
  const dir = tempDir({ after });
  fs.writeFileSync(path.join(dir, "content.raw"), content);

  for (const options of CREATED) {
    it(`qemu-img reads what ${options || "no option"} makes, and says the same of it`, async () => {
      const all = `key-secret=s,iter-time=0${options && `,${options}`}`;
      await ours(`convert ${SECRETS} -f raw -O luks -o ${all} content.raw made.luks`, dir);
      theirs(
        `compare ${SECRETS} --image-opts driver=luks,key-secret=s,file.filename=made.luks driver=raw,file.filename=content.raw`,
        dir,
      );
      for (const output of ["human", "json"])
        assert.equal(
          await ours(`info --output=${output} made.luks`, dir),
          theirs(`info --output=${output} made.luks`, dir),
        );
    });
  }

  it("keys whose split form is no whole number of sectors, where qemu-img aborts", async () => {
    const options = "key-secret=s,iter-time=0,cipher-alg=aes-192,cipher-mode=cbc";
    await ours(`convert ${SECRETS} -f raw -O luks -o ${options} content.raw odd.luks`, dir);
    await ours(`convert ${SECRETS} ${imageOpts("odd.luks", "s")} -O raw odd.raw`, dir);
    assert.ok(fs.readFileSync(path.join(dir, "odd.raw")).equals(content));
    assert.equal(await ours("info odd.luks", dir), theirs("info odd.luks", dir));
  });

  it("a passphrase that qemu-img adds opens it here, and the other way round", async () => {
    await ours(`create -q ${SECRETS} -f luks -o key-secret=s,iter-time=0,cipher-mode=cbc two.luks 1M`, dir);
    await ours(
      `amend ${SECRETS} ${imageOpts("two.luks", "s")} -o state=active,new-secret=t,iter-time=0,keyslot=6`,
      dir,
    );
    theirs(`map --output=json ${SECRETS} ${imageOpts("two.luks", "t")}`, dir);
    await ours(`amend ${SECRETS} ${imageOpts("two.luks", "t")} -o state=inactive,old-secret=s`, dir);
    // What is erased already may be erased again, by force.
    await ours(`amend ${SECRETS} --force ${imageOpts("two.luks", "t")} -o state=inactive,keyslot=0`, dir);
    const { stderr } = runTheirs(words(`map ${SECRETS} ${imageOpts("two.luks", "s")}`), dir);
    assert.match(stderr, /Invalid password/);
    assert.equal(await ours("info two.luks", dir), theirs("info two.luks", dir));
  });
});

/** Command lines on copies of the same images; `X` is the image's options, `S` the secrets. */
const COMMANDS: readonly string[] = [
  "info default.luks",
  "info --output=json slots.luks",
  "info X",
  "info --image-opts driver=luks,key-secret=nobody,file.filename=default.luks",
  "map default.luks",
  "map X",
  "map S X",
  "map S --output=json X",
  "map S --image-opts driver=luks,key-secret=t,file.filename=default.luks",
  "map S --image-opts driver=luks,key-secret=,file.filename=default.luks",
  "map S --image-opts driver=luks,key-secret=s,bogus=1,file.filename=default.luks",
  "map --image-opts driver=luks,bogus=1,file.filename=default.luks",
  "map --object throttle-group,id=s X",
  "map --object secret,id=s,data=/w==,format=base64 X",
  "map --object secret,id=s,data=AHg=,format=base64 X",
  "map --object secret,id=s,data= X",
  "map \"json:{'driver':'luks','key-secret':1,'file':{'driver':'file','filename':'default.luks'}}\"",
  "check S X",
  "snapshot S -l X",
  "resize S X 1M",
  "resize S X 10k",
  "resize S --shrink X 10k",
  "resize S --preallocation=full X 1M",
  "resize S --preallocation=metadata X 1M",
  "resize default.luks 1M",
  "compare S --image-opts driver=luks,key-secret=s,file.filename=default.luks driver=luks,key-secret=t,file.filename=slots.luks",
  "convert S -c -O luks -o key-secret=s slots.luks out.luks",
  "convert -f luks -O raw default.luks out.raw",
  "convert S --image-opts driver=luks,key-secret=s,file.filename=default.luks -O raw out.raw",
  "convert S --image-opts --target-image-opts -n driver=luks,key-secret=s,file.filename=default.luks driver=luks,key-secret=t,file.filename=slots.luks",
  "convert S -O luks content.raw out.luks",
  "convert S -O luks -o key-secret=nobody content.raw out.luks",
  "measure -O luks --size 1M",
  "measure S -O luks -o key-secret=s,cipher-alg=des --size 1M",
  "measure S -O luks -o key-secret=nobody --size 1M",
  "amend S X -o state=active,iter-time=10",
  "amend S X -o new-secret=t,iter-time=10",
  "amend S X -o state=foo",
  "amend S X -o foo=bar",
  "amend S X",
  "amend S X -o state=active,new-secret=nobody",
  "amend S X -o state=active,new-secret=nobody,keyslot=9",
  "amend S X -o state=active,new-secret=nobody,keyslot=0",
  "amend S X -o state=active,new-secret=t,keyslot=-1",
  "amend S X -o state=active,new-secret=t,keyslot=4294967296",
  "amend S X -o state=active,new-secret=t,old-secret=s",
  "amend S X -o state=active,old-secret=nobody",
  "amend S X -o state=inactive",
  "amend S X -o state=inactive,new-secret=t",
  "amend S X -o state=inactive,iter-time=10",
  "amend S X -o state=inactive,keyslot=9",
  "amend S X -o state=inactive,keyslot=-1",
  "amend S X -o state=inactive,keyslot=4294967296",
  "amend S X -o state=inactive,keyslot=7",
  "amend S X -o state=inactive,keyslot=0",
  "amend S X -o state=inactive,old-secret=s",
  "amend S X -o state=inactive,old-secret=t",
  "amend S X -o state=inactive,old-secret=nobody,keyslot=9",
  "amend S X -o state=inactive,old-secret=s,keyslot=7",
  "amend S X -o state=inactive,old-secret=t,keyslot=0",
  "amend S X -o keyslot=foo,state=active",
  "amend -f luks -o state=active default.luks",
  "amend -f luks -o help",
  "create -f qcow2 -b default.luks -F luks out.qcow2",
  "create -f luks out.luks 1M",
  "create -f luks -o key-secret=s out.luks 1M",
  "create S -f luks -o key-secret=s out.luks",
  "create S -f luks -o key-secret=s,cipher-alg=foo,hash-alg=foo out.luks 1M",
  "create S -f luks -o key-secret=s,cipher-mode=foo,ivgen-alg=foo out.luks 1M",
  "create S -f luks -o key-secret=s,ivgen-alg=foo,ivgen-hash-alg=foo out.luks 1M",
  "create S -f luks -o key-secret=s,ivgen-hash-alg=foo,hash-alg=foo out.luks 1M",
  "create S -f luks -o key-secret=s,hash-alg=foo out.luks 1M",
  "create S -f luks -o key-secret=s,cipher-alg=des out.luks 1M",
  "create S -f luks -o key-secret=s,cipher-alg=3des out.luks 1M",
  "create S -f luks -o key-secret=s,cipher-alg=cast5-128,ivgen-alg=essiv out.luks 1M",
  "create S -f luks -o key-secret=s,cipher-alg=twofish-128,ivgen-alg=essiv,ivgen-hash-alg=sha1 out.luks 1M",
  "create S -f luks -o key-secret=s,ivgen-alg=essiv,ivgen-hash-alg=sha512 out.luks 1M",
  "create S -f luks -o key-secret=s,iter-time=foo out.luks 1M",
  "create S -f luks -o key-secret=s,preallocation=foo out.luks 1M",
  "create S -f luks -o key-secret=s,cluster_size=4k out.luks 1M",
  "create -f luks -o help",
  "create -f luks -o help out.luks",
];

describe("command lines on LUKS images, against qemu-img", { skip: missingTool }, () => {
  const fixture = new Fixture((directory) => {
    unpack("default.luks", directory);
    unpack("slots.luks", directory);
    fs.writeFileSync(path.join(directory, "content.raw"), content);
  });
  after(() => fixture.remove());
  for (const command of COMMANDS) {
    it(command, () => {
      const line = command.replace(/\bX\b/, imageOpts("default.luks", "s")).replace(/\bS\b/, SECRETS);
      return fixture.same(words(line));
    });
  }
});

/** Where fields are in the header, as the specification has it. */
const AT = {
  version: 6,
  cipher: 8,
  mode: 40,
  hash: 72,
  payload: 104,
  keyBytes: 108,
  iterations: 164,
} as const;
const slotAt = (slot: number) => 208 + 48 * slot;

const u16 = (value: number) => Uint8Array.of(value >> 8, value);
const u32 = (value: number) => Uint8Array.of(value >>> 24, value >>> 16, value >>> 8, value);
const text = (value: string) => Buffer.concat([Buffer.from(value), Buffer.alloc(32)]).subarray(0, 32);

type Patch = readonly [offset: number, bytes: Uint8Array];

const HOSTILE: Readonly<Record<string, readonly Patch[]>> = {
  magic: [[0, Buffer.from("XX")]],
  ...each("version", [0, 2, 3, 257], (value) => [[AT.version, u16(value)]]),
  ...each("cipher", ["", "AES", "cast5", "serpent", "twofish", "des", "aes-256", "a".repeat(32)], (value) => [
    [AT.cipher, text(value)],
  ]),
  ...each(
    "mode",
    (
      " ecb xts xts- xts-plain cbc-essiv cbc-essiv: cbc-essiv:foo cbc-essiv:sha1:x xts-plain64:sha256 " +
      "xts-plain64:foo foo-plain -plain xts-plain-plain XTS-plain64 lrw-benbi aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
    ).split(" "),
    (value) => [[AT.mode, text(value)]],
  ),
  ...each(
    "mode with one key",
    ["cbc-essiv", "cbc-essiv:sha1", "cbc-essiv:sha256", "cbc-foo", "ecb-null", "ctr-plain64", "cbc-"],
    (value) => [
      [AT.mode, text(value)],
      [AT.keyBytes, u32(32)],
    ],
  ),
  ...each("hash", ["", "SHA1", "foo", "whirlpool", "sha1", "a".repeat(32)], (value) => [
    [AT.hash, text(value)],
  ]),
  ...each("payload", [0, 1, 7, 8, 4039, 4041, 6089, 2 ** 31, 2 ** 32 - 1], (value) => [
    [AT.payload, u32(value)],
  ]),
  ...each("key of bytes", [0, 1, 8, 16, 24, 32, 40, 48, 56, 65, 128, 512], (value) => [
    [AT.keyBytes, u32(value)],
  ]),
  ...each("digest iterations", [0, 1, 2 ** 32 - 1], (value) => [[AT.iterations, u32(value)]]),
  ...each("slot 0 in state", [0, 1, 0xdead], (value) => [[slotAt(0), u32(value)]]),
  ...each("slot 1 in state", [0, 0xac71f3], (value) => [[slotAt(1), u32(value)]]),
  ...each("slot 0 of iterations", [0, 1, 2 ** 32 - 1], (value) => [[slotAt(0) + 4, u32(value)]]),
  ...each("slot 0 at", [0, 7, 9, 512, 1016, 3536, 4040, 2 ** 31], (value) => [[slotAt(0) + 40, u32(value)]]),
  ...each("slot 1 at", [0, 7, 8, 500, 513, 3536, 4040, 2 ** 31], (value) => [[slotAt(1) + 40, u32(value)]]),
  ...each("slot 1 of stripes", [0, 1, 3999, 4001, 2 ** 31, 2 ** 32 - 1], (value) => [
    [slotAt(1) + 44, u32(value)],
  ]),
  "two faults: cipher and mode": [
    [AT.cipher, text("foo")],
    [AT.mode, text("foo")],
  ],
  "two faults: cipher and hash": [
    [AT.cipher, text("foo")],
    [AT.hash, text("foo")],
  ],
  "two faults: state and place": [
    [slotAt(0), u32(0)],
    [slotAt(0) + 40, u32(0)],
  ],
  "two faults: iterations and place": [
    [slotAt(0) + 4, u32(0)],
    [slotAt(0) + 40, u32(4041)],
  ],
};

function each<T extends string | number>(
  what: string,
  values: readonly T[],
  patch: (value: T) => readonly Patch[],
) {
  return Object.fromEntries(values.map((value) => [`${what} '${value}'`, patch(value)]));
}

/** Bytes that a file is cut to. */
const CUTS = [0, 1, 100, 511, 591, 592, 4096, 2067968, 2068479, 2068480, 2068481];

describe("hostile headers, against qemu-img", { skip: missingTool }, () => {
  const dir = tempDir({ after });
  const whole = gunzipSync(fs.readFileSync(path.join(ENCRYPTED, "default.luks.gz")));
  const same = async (image: Uint8Array) => {
    fs.writeFileSync(path.join(dir, "x.luks"), image);
    const args = ["info", "-f", "luks", "x.luks"];
    assert.deepEqual(await runOurs(args, dir), runTheirs(args, dir));
  };

  for (const [what, patches] of Object.entries(HOSTILE)) {
    it(what, async () => {
      const image = Buffer.from(whole);
      for (const [offset, bytes] of patches) image.set(bytes, offset);
      await same(image);
    });
  }

  for (const bytes of CUTS) it(`cut to ${bytes} bytes`, () => same(whole.subarray(0, bytes)));

  it("more iterations than are reasonable are refused before they are begun", async () => {
    for (const [offset, count] of [
      [slotAt(0) + 4, MAX_ITERATIONS + 1],
      [AT.iterations, 2 ** 32 - 1],
    ] as const) {
      const image = Buffer.from(whole);
      image.set(u32(count), offset);
      fs.writeFileSync(path.join(dir, "x.luks"), image);
      const { stderr } = await runOurs(words(`map ${SECRETS} ${imageOpts("x.luks", "s")}`), dir);
      assert.match(stderr, new RegExp(`PBKDF iterations ${count} larger than ${MAX_ITERATIONS}`));
    }
  });

  it("a header is written as it was read", () => {
    const head = whole.subarray(0, LUKS_HEADER_BYTES);
    assert.equal(LUKS_HEADER_BYTES, 592);
    assert.ok(Buffer.from(serializeLuksHeader(parseLuksHeader(head))).equals(head));
  });

  it("random damage of the header never does more than refuse it", async () => {
    const dice = random(31);
    for (let round = 0; round < 150; round++) {
      const image = Buffer.from(whole.subarray(0, 4096));
      for (let fault = dice.between(1, 3); fault > 0; fault--) image[dice.below(592)] = dice.below(256);
      fs.writeFileSync(path.join(dir, "x.luks"), image);
      fs.truncateSync(path.join(dir, "x.luks"), whole.length);
      const { exitCode, stderr } = await runOurs(["info", "-f", "luks", "x.luks"], dir);
      assert.ok(
        exitCode === 0 || (exitCode === 1 && stderr.startsWith("qemu-img: Could not open 'x.luks': ")),
      );
    }
  });
});

describe("requests, against qemu-io", { skip: missingTool }, () => {
  const dir = tempDir({ after });
  it("the same writes leave the same file, at whatever alignment", async () => {
    const dice = random(41);
    for (const name of ["default.luks", "aes-128-cbc-essiv-sha1.luks", "aes-128-ctr-md5.luks"]) {
      unpack(name, dir, "one.luks");
      unpack(name, dir, "two.luks");
      const commands = Array.from({ length: 25 }, () => {
        const offset = dice.below(content.length - 1);
        const bytes = dice.between(1, Math.min(6000, content.length - offset));
        const verb = dice.pick([
          `write -P ${dice.below(256)}`,
          "write -z",
          "discard",
          `writev -P ${dice.below(256)}`,
        ]);
        return ["-c", `${verb} ${offset} ${bytes}`];
      }).flat();
      const args = (image: string) => [...commands, ...words(`${SECRETS} ${imageOpts(image, "s")}`)];
      assert.equal((await runOurs(args("one.luks"), dir, "qemu-io")).exitCode, 0);
      assert.equal(runQemuIo(args("two.luks"), dir), 0);
      assert.ok(
        fs.readFileSync(path.join(dir, "one.luks")).equals(fs.readFileSync(path.join(dir, "two.luks"))),
      );
    }
  });
});

function runQemuIo(args: readonly string[], cwd: string): number | null {
  return spawnSync("qemu-io", args, { cwd }).status;
}

describe("sector ciphers, against OpenSSL's own modes", () => {
  const dice = random(51);
  const cases: readonly (readonly [cipher: string, mode: CipherMode, ivs: IvGenerator, ivHash?: HashName])[] =
    [
      ["aes-128", "xts", "plain64"],
      ["aes-256", "xts", "plain"],
      ["aes-128", "cbc", "plain64"],
      ["aes-192", "cbc", "plain"],
      ["aes-256", "cbc", "essiv", "sha256"],
      ["aes-128", "cbc", "essiv", "md5"],
      ["aes-256", "ctr", "plain64"],
      ["aes-128", "ecb", "plain64"],
      ["3des", "cbc", "plain64"],
    ];
  for (const [name, mode, ivGenerator, ivHash] of cases) {
    it(`${name}-${mode}-${ivGenerator}${ivHash ? `:${ivHash}` : ""}`, () => {
      const algorithm = cipherByName(name);
      const key = dice.bytes(keyBytesOf({ algorithm, mode }));
      const cipher = sectorCipher({ algorithm, mode, ivGenerator, ivHash }, key);
      // Over a batch's end, over 2^32, and from an odd address.
      for (const [first, sectors] of [
        [0, 1],
        [5, 70],
        [2 ** 32 - 2, 5],
        [2 ** 40, 3],
      ] as const) {
        const plain = dice.bytes(sectors * 512);
        const data = new Uint8Array(sectors * 512 + 1).subarray(1);
        data.set(plain);
        cipher.encrypt(first, data);
        for (let index = 0; index < sectors; index++) {
          const number = ivOf(first + index, algorithm.blockBytes, ivGenerator);
          const iv = ivHash ? essiv(key, ivHash, number) : number;
          const one = createCipheriv(`${algorithm.opensslName}-${mode}`, key, mode === "ecb" ? null : iv);
          one.setAutoPadding(false);
          const expected = one.update(plain.subarray(index * 512, (index + 1) * 512));
          assert.ok(
            expected.equals(data.subarray(index * 512, (index + 1) * 512)),
            `sector ${first + index}`,
          );
        }
        cipher.decrypt(first, data);
        assert.ok(Buffer.from(plain).equals(data));
      }
    });
  }
});

function ivOf(sector: number, bytes: number, generator: IvGenerator): Buffer {
  const iv = Buffer.alloc(Math.max(bytes, 8));
  iv.writeBigUInt64LE(BigInt(sector));
  if (generator === "plain") iv.fill(0, 4);
  return iv.subarray(0, bytes);
}

function essiv(key: Uint8Array, hash: HashName, number: Uint8Array): Buffer {
  const digest = createHash(hash).update(key).digest();
  return createCipheriv(`aes-${digest.length * 8}-ecb`, digest, null)
    .setAutoPadding(false)
    .update(number);
}

describe("the anti-forensic splitter", () => {
  it("gives back what was split, and nothing else if a byte is changed", () => {
    const dice = random(61);
    for (const hash of Object.keys(HASH_BYTES) as HashName[]) {
      const key = dice.bytes(dice.pick([16, 20, 33, 64]));
      const split = afSplit(hash, key, 20);
      assert.equal(split.length, key.length * 20);
      assert.deepEqual(afMerge(hash, split, key.length, 20), key);
      split[0] = (split[0] as number) ^ 1;
      assert.notDeepEqual(afMerge(hash, split, key.length, 20), key);
    }
  });
});
