/** Encrypted qcow2 images against qemu-img: images of either are read by the other, and the same requests leave the same bytes. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { gunzipSync } from "node:zlib";
import { CryptoHeader } from "../../../drivers/qcow2/layout.ts";
import { open } from "../../../src/index.ts";
import { Fixture, missingTool, runOurs, runTheirs, words } from "../../cli/differential.ts";
import { random } from "../../support/random.ts";
import { tempDir } from "../../support/temp.ts";

const ENCRYPTED = fileURLToPath(new URL("../encrypted", import.meta.url));
const SECRETS = "--object secret,id=s,data=passphrase --object secret,id=t,data=another";

/** With the options that qemu-img made them by. */
const IMAGES: Readonly<Record<string, string>> = {
  "luks.qcow2": "encrypt.format=luks,encrypt.iter-time=1,encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc",
  "luks-cluster-512.qcow2":
    "encrypt.format=luks,encrypt.iter-time=1,encrypt.cipher-alg=aes-128,cluster_size=512,refcount_bits=64",
  "aes.qcow2": "encrypt.format=aes",
  "aes-v2-cluster-4k.qcow2": "encryption=on,compat=0.10,cluster_size=4096",
};

const content = fs.readFileSync(path.join(ENCRYPTED, "content.raw"));

function unpacked(name: string): Buffer {
  return gunzipSync(fs.readFileSync(path.join(ENCRYPTED, `${name}.gz`)));
}

function unpack(name: string, directory: string, as = name): void {
  fs.writeFileSync(path.join(directory, as), unpacked(name));
}

function imageOpts(filename: string, more = ""): string {
  return `--image-opts driver=qcow2,encrypt.key-secret=s,file.filename=${filename}${more}`;
}

async function ours(line: string, directory: string): Promise<string> {
  const { stdout, stderr, exitCode } = await runOurs(words(line), directory);
  assert.equal(exitCode, 0, `${line}: ${stderr}`);
  return stdout;
}

function theirs(line: string, directory: string): string {
  const { stdout, stderr, exitCode } = runTheirs(words(line), directory);
  assert.equal(exitCode, 0, `${line}: ${stdout}${stderr}`);
  return stdout;
}

describe("encrypted images of qemu-img", () => {
  const dir = tempDir({ after });
  fs.writeFileSync(path.join(dir, "content.raw"), content);
  for (const [name, options] of Object.entries(IMAGES)) {
    it(`${name} has the content that was put in`, async () => {
      unpack(name, dir);
      await ours(`convert ${SECRETS} ${imageOpts(name)} -O raw out.raw`, dir);
      assert.ok(fs.readFileSync(path.join(dir, "out.raw")).equals(content));
    });

    it(`${name} is made here with the same bytes, keys aside`, async () => {
      await ours(
        `convert ${SECRETS} -f raw -O qcow2 -o encrypt.key-secret=s,${options} content.raw made.qcow2`,
        dir,
      );
      const made = withoutSecrets(fs.readFileSync(path.join(dir, "made.qcow2")));
      const original = withoutSecrets(unpacked(name));
      assert.equal(made.length, original.length);
      assert.ok(made.equals(original));
    });
  }
});

/** With the LUKS header and all data clusters zeroed: what is left depends on no key. */
function withoutSecrets(image: Buffer): Buffer {
  const clusterSize = 1 << image.readUInt32BE(20);
  const at = (offset: number) => Number(image.readBigUInt64BE(offset) & 0x00ff_ffff_ffff_fe00n);
  const l1Offset = at(40);
  const dataClusters: number[] = [];
  for (let index = 0; index < image.readUInt32BE(36); index++) {
    const l2Offset = at(l1Offset + index * 8);
    if (l2Offset === 0) continue;
    for (let entry = 0; entry < clusterSize; entry += 8)
      if (at(l2Offset + entry) !== 0) dataClusters.push(at(l2Offset + entry));
  }
  for (const offset of dataClusters) image.fill(0, offset, offset + clusterSize);
  const extension = image.indexOf(Uint8Array.of(0x05, 0x37, 0xbe, 0x77));
  if (extension >= 0 && extension < clusterSize) {
    const { offset, length } = CryptoHeader.read(image, extension + 8);
    image.fill(0, offset, offset + length);
  }
  return image;
}

const LUKS = "encrypt.format=luks,encrypt.iter-time=0";
const CREATED: readonly string[] = [
  LUKS,
  `${LUKS},encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256`,
  `${LUKS},encrypt.cipher-alg=aes-192,encrypt.ivgen-alg=plain,encrypt.hash-alg=sha512,compat=0.10`,
  `${LUKS},encrypt.cipher-alg=aes-128,cluster_size=512`,
  `${LUKS},encrypt.cipher-alg=aes-128,cluster_size=2M`,
  `${LUKS},encrypt.cipher-alg=aes-128,extended_l2=on`,
  `${LUKS},encrypt.cipher-alg=aes-128,data_file=made.data`,
  `${LUKS},encrypt.cipher-alg=aes-128,data_file=made.data,data_file_raw=on`,
  `${LUKS},encrypt.cipher-alg=aes-128,preallocation=metadata`,
  `${LUKS},encrypt.cipher-alg=aes-128,preallocation=full,cluster_size=4k`,
  "encrypt.format=aes,preallocation=falloc",
  "encryption=on,extended_l2=on",
  "encryption=on,lazy_refcounts=on,cluster_size=1k",
];

describe("encrypted images of ours", { skip: missingTool }, () => {
  const dir = tempDir({ after });
  // A hole and zeroes among the data: nothing there may shine through from the file.
  const sparse = Buffer.alloc(300_000 - (300_000 % 512));
  content.copy(sparse, 0);
  content.copy(sparse, 200_000);
  fs.writeFileSync(path.join(dir, "sparse.raw"), sparse);

  for (const options of CREATED) {
    it(`qemu-img reads what ${options} makes, and says the same of it`, async () => {
      await ours(
        `convert ${SECRETS} -f raw -O qcow2 -o encrypt.key-secret=s,${options} sparse.raw made.qcow2`,
        dir,
      );
      theirs(`compare ${SECRETS} ${imageOpts("made.qcow2")} driver=raw,file.filename=sparse.raw`, dir);
      await ours(`compare ${SECRETS} ${imageOpts("made.qcow2")} driver=raw,file.filename=sparse.raw`, dir);
      theirs(`check ${SECRETS} ${imageOpts("made.qcow2")}`, dir);
      for (const line of [
        "info made.qcow2",
        "info --output=json made.qcow2",
        `check ${SECRETS} ${imageOpts("made.qcow2")}`,
        `map --output=json ${SECRETS} ${imageOpts("made.qcow2")}`,
      ])
        assert.equal(await ours(line, dir), theirs(line, dir), line);
    });
  }

  it("keys that one adds, the other knows", async () => {
    await ours(`create -q ${SECRETS} -f qcow2 -o encrypt.key-secret=s,${LUKS} keys.qcow2 1M`, dir);
    const opts = imageOpts("keys.qcow2");
    await ours(
      `amend ${SECRETS} ${opts} -o encrypt.state=active,encrypt.new-secret=t,encrypt.iter-time=0`,
      dir,
    );
    const byOther = opts.replace("secret=s", "secret=t");
    theirs(`check ${SECRETS} ${byOther}`, dir);
    await ours(`amend ${SECRETS} ${byOther} -o encrypt.state=inactive,encrypt.keyslot=0`, dir);
    assert.notEqual(runTheirs(words(`check ${SECRETS} ${opts}`), dir).exitCode, 0);
    assert.equal(await ours("info keys.qcow2", dir), theirs("info keys.qcow2", dir));
  });
});

/** `X` is the options of luks.qcow2, `Y` of aes.qcow2, `S` the secrets. */
const COMMANDS: readonly string[] = [
  "info luks.qcow2",
  "info --output=json aes.qcow2",
  "info X",
  "info --image-opts driver=qcow2,encrypt.key-secret=nobody,encrypt.format=aes,file.filename=aes.qcow2",
  "info --image-opts driver=qcow2,encrypt.key-secret=nobody,encrypt.format=luks,file.filename=aes.qcow2",
  "map luks.qcow2",
  "check luks.qcow2",
  "check -U --output=json luks.qcow2",
  "snapshot -l luks.qcow2",
  "map S X",
  "map S --output=json X",
  "map S Y",
  "check S X",
  "check S --output=json Y",
  "check S -r all X",
  "map S --image-opts driver=qcow2,encrypt.format=aes,encrypt.key-secret=s,file.filename=luks.qcow2",
  "map S --image-opts driver=qcow2,encrypt.format=bogus,encrypt.key-secret=s,file.filename=luks.qcow2",
  "map S --image-opts driver=qcow2,encrypt.format=luks,encrypt.key-secret=nobody,file.filename=luks.qcow2",
  "map S --image-opts driver=qcow2,encrypt.foo=luks,encrypt.key-secret=s,file.filename=luks.qcow2",
  "map S --image-opts driver=qcow2,encrypt.format=luks,file.filename=luks.qcow2",
  "map S --image-opts driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,file.filename=plain.qcow2",
  "map S --image-opts driver=qcow2,encrypt.key-secret=s,file.filename=plain.qcow2",
  "map S --image-opts driver=qcow2,encrypt.key-secret=t,file.filename=luks.qcow2",
  "map --object secret,id=s,data=/w==,format=base64 Y",
  "map --object secret,id=s,data= Y",
  "compare S --image-opts driver=qcow2,encrypt.key-secret=s,file.filename=luks.qcow2 driver=qcow2,encrypt.key-secret=s,file.filename=aes.qcow2",
  "resize S X 1M",
  "resize S --shrink X 4k",
  "resize S --preallocation=metadata X 200k",
  "resize S --preallocation=metadata Y 100k",
  "resize S --preallocation=full Y 200k",
  "convert S -c -O qcow2 -o encrypt.format=luks,encrypt.key-secret=s plain.qcow2 out.qcow2",
  "convert S X -O raw out.raw",
  "convert S X -O qcow2 out.qcow2",
  "convert S --image-opts --target-image-opts -n driver=qcow2,encrypt.key-secret=s,file.filename=luks.qcow2 driver=qcow2,encrypt.key-secret=s,file.filename=aes.qcow2",
  "measure S -O qcow2 X",
  "measure -O qcow2 -o encrypt.format=luks --size 1M",
  "measure S -O qcow2 -o encrypt.format=luks,encrypt.key-secret=nobody --size 1M",
  "measure S -O qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-alg=foo --size 1M",
  "measure -O qcow2 -o encrypt.format=aes --size 1M",
  "measure -O qcow2 -o encryption=on --size 1M",
  "measure -O qcow2 -o encrypt.format=bla --size 1M",
  "amend S X -o encrypt.state=foo",
  "amend S X -o encrypt.new-secret=t",
  "amend S X -o encrypt.state=inactive",
  "amend S X -o encrypt.state=inactive,encrypt.keyslot=0",
  "amend S X -o encrypt.state=active",
  "amend S X -o encrypt.state=active,encrypt.new-secret=nobody,refcount_bits=8",
  "amend S X -o encrypt.format=luks",
  "amend S Y -o encrypt.state=active,encrypt.new-secret=t",
  "amend S Y -o encrypt.state=foo,compat=bar",
  "amend plain.qcow2 -o encrypt.state=foo",
  "amend S X -o compat=0.10",
  "amend S Y -o refcount_bits=64",
  "create -f qcow2 -b luks.qcow2 -F qcow2 out.qcow2",
  "create -f qcow2 -b luks.qcow2 out.qcow2",
  "create S -f qcow2 -o encryption=on out.qcow2 1M",
  "create S -f qcow2 -o encryption=off out.qcow2 1M",
  "create S -f qcow2 -o encryption=off,encrypt.format=luks out.qcow2 1M",
  "create S -f qcow2 -o encryption=on,encrypt.format=luks out.qcow2 1M",
  "create S -f qcow2 -o encrypt.key-secret=s out.qcow2 1M",
  "create S -f qcow2 -o encrypt.format=aes,encrypt.key-secret=s,encrypt.iter-time=10 out.qcow2 1M",
  "create S -f qcow2 -o encrypt.format=aes,encrypt.key-secret=nobody out.qcow2 1M",
  "create S -f qcow2 -o encrypt.format=luks out.qcow2 1M",
  "create S -f qcow2 -o encrypt.format=foo out.qcow2 1M",
  "create S -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-alg=foo out.qcow2 1M",
  "create S -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-alg=des out.qcow2 1M",
  "create S -f qcow2 -o encrypt.format=aes,encrypt.key-secret=s out.qcow2 1M",
  "create S -f qcow2 -o encryption=on,encrypt.key-secret=s,cluster_size=512,compat=0.10 out.qcow2 1M",
  "create S -f qcow2 -b plain.qcow2 -F qcow2 -o encryption=on,encrypt.key-secret=s out.qcow2",
  "create S -f qcow2 -o encryption=on,encrypt.key-secret=s,preallocation=metadata out.qcow2 1M",
];

describe("command lines on encrypted qcow2 images, against qemu-img", { skip: missingTool }, () => {
  const fixture = new Fixture((directory) => {
    unpack("luks.qcow2", directory);
    unpack("aes.qcow2", directory);
    theirs("create -q -f qcow2 plain.qcow2 64k", directory);
  });
  after(() => fixture.remove());
  for (const command of COMMANDS) {
    it(command, () => {
      const line = command
        .replace(/\bX\b/, imageOpts("luks.qcow2"))
        .replace(/\bY\b/, imageOpts("aes.qcow2"))
        .replace(/\bS\b/, SECRETS);
      return fixture.same(words(line));
    });
  }
});

describe("requests on encrypted qcow2 images, against qemu-io", { skip: missingTool }, () => {
  const dir = tempDir({ after });
  const both = async (args: readonly string[], tool = "qemu-io") => {
    const mine = await runOurs(forImage(args, "ours"), dir, tool);
    const other = spawnSync(tool, forImage(args, "theirs"), { cwd: dir, encoding: "utf8" });
    assert.equal(mine.exitCode, other.status, `${args.join(" ")}: ${mine.stderr} ${other.stderr}`);
  };

  for (const name of Object.keys(IMAGES)) {
    it(`${name}: the same requests and snapshots leave the same file`, async () => {
      const dice = random(71);
      for (const as of ["ours.qcow2", "theirs.qcow2"]) unpack(name, dir, as);
      for (let round = 0; round < 3; round++) {
        const commands = Array.from({ length: 12 }, () => {
          const offset = dice.below(content.length - 1);
          const bytes = dice.between(1, Math.min(6000, content.length - offset));
          const verb = dice.pick([`write -P ${dice.below(256)}`, "write -z", "discard", "write -z -u"]);
          return ["-c", `${verb} ${offset} ${bytes}`];
        }).flat();
        await both([...commands, ...words(`${SECRETS} ${imageOpts("IMAGE.qcow2")}`)]);
        if (round === 0) await both(words(`resize ${SECRETS} ${imageOpts("IMAGE.qcow2")} 100k`), "qemu-img");
        const [one, two] = ["ours.qcow2", "theirs.qcow2"].map((file) =>
          fs.readFileSync(path.join(dir, file)),
        );
        assert.ok(one && two && one.equals(two), `round ${round}`);
      }
      // The last: what a snapshot says of when it was made differs.
      await both(words(`snapshot ${SECRETS} -c one ${imageOpts("IMAGE.qcow2")}`), "qemu-img");
      const write = ["-c", "write -P 7 3000 9000"];
      await both([...write, ...words(`${SECRETS} ${imageOpts("IMAGE.qcow2")}`)]);
      theirs(`compare ${SECRETS} --image-opts ${optionsOf("ours")} ${optionsOf("theirs")}`, dir);
      theirs(`check ${SECRETS} ${imageOpts("ours.qcow2")}`, dir);
      await both(words(`snapshot ${SECRETS} -a one ${imageOpts("IMAGE.qcow2")}`), "qemu-img");
      theirs(`compare ${SECRETS} --image-opts ${optionsOf("ours")} ${optionsOf("theirs")}`, dir);
    });
  }

  it("a reopen may name another secret, and not another format", async () => {
    unpack("luks.qcow2", dir, "ours.qcow2");
    unpack("luks.qcow2", dir, "theirs.qcow2");
    for (const option of ["key-secret=t", "key-secret=nobody", "format=luks", "format=aes"]) {
      const reopen = ["-c", `reopen -o encrypt.${option}`, "-c", "read -P 0 1M 0"];
      await both([...reopen, ...words(`${SECRETS} ${imageOpts("IMAGE.qcow2")}`)]);
    }
  });

  it("zeroes stay zeroes when version 2 has no entry for them, where qemu-img turns them to garbage", async () => {
    unpack("luks-cluster-512.qcow2", dir, "old.qcow2");
    const opts = imageOpts("old.qcow2");
    const writes = ["-c", "write -q -z 2k 8k"];
    assert.equal((await runOurs([...writes, ...words(`${SECRETS} ${opts}`)], dir, "qemu-io")).exitCode, 0);
    await ours(`amend ${SECRETS} ${opts} -o refcount_bits=16`, dir);
    await ours(`amend ${SECRETS} ${opts} -o compat=0.10`, dir);
    const expected = Buffer.from(content);
    expected.fill(0, 2048, 2048 + 8192);
    fs.writeFileSync(path.join(dir, "expected.raw"), expected);
    theirs(`compare ${SECRETS} ${opts} driver=raw,file.filename=expected.raw`, dir);
    theirs(`check ${SECRETS} ${opts}`, dir);
  });

  it("machine state is kept, at whatever alignment", async () => {
    unpack("luks.qcow2", dir, "state.qcow2");
    const node = {
      driver: "qcow2",
      "encrypt.key-secret": "s",
      file: { driver: "file", filename: path.join(dir, "state.qcow2") },
    } as const;
    await using image = await open(node, { writable: true, secrets: { s: "passphrase" } });
    const dice = random(91);
    const model = new Uint8Array(5000);
    for (let round = 0; round < 20; round++) {
      const offset = dice.below(4000);
      const piece = dice.bytes(dice.between(1, 1000));
      model.set(piece, offset);
      await image.snapshots.saveVmState(offset, piece);
    }
    const read = new Uint8Array(4321);
    await image.snapshots.loadVmState(123, read);
    assert.deepEqual(read, model.subarray(123, 123 + 4321));
  });

  it("an encrypted backing file is read with its own secret", async () => {
    unpack("luks.qcow2", dir, "base.qcow2");
    await ours(`create -q -f qcow2 -u -b base.qcow2 -F qcow2 over.qcow2 ${content.length}`, dir);
    const opts =
      "driver=qcow2,file.filename=over.qcow2,backing.driver=qcow2,backing.file.filename=base.qcow2";
    fs.writeFileSync(path.join(dir, "content.raw"), content);
    for (const run of [ours, theirs])
      await run(
        `compare ${SECRETS} --image-opts ${opts},backing.encrypt.key-secret=s driver=raw,file.filename=content.raw`,
        dir,
      );
  });
});

function optionsOf(name: string): string {
  return `driver=qcow2,encrypt.key-secret=s,file.filename=${name}.qcow2`;
}

function forImage(args: readonly string[], name: string): string[] {
  return args.map((argument) => argument.replace("IMAGE", name));
}

const u32 = (value: number) => Uint8Array.of(value >>> 24, value >>> 16, value >>> 8, value);
const u64 = (value: number) => Buffer.concat([u32(Math.floor(value / 2 ** 32)), u32(value % 2 ** 32)]);

/** Where the header extension is in luks.qcow2, and the LUKS header. */
const EXTENSION = 112;

type Patch = readonly [offset: number, bytes: Uint8Array];

describe("hostile encryption headers, against qemu-img", { skip: missingTool }, () => {
  const dir = tempDir({ after });
  const luks = unpacked("luks.qcow2");
  const { offset: luksOffset } = CryptoHeader.read(luks, EXTENSION + 8);
  const same = async (original: Buffer, patches: readonly Patch[], bytes = original.length) => {
    const image = Buffer.from(original.subarray(0, bytes));
    for (const [offset, patch] of patches) image.set(patch, offset);
    fs.writeFileSync(path.join(dir, "x.qcow2"), image);
    for (const line of ["info x.qcow2", `map ${SECRETS} ${imageOpts("x.qcow2")}`]) {
      const given = await runOurs(words(line), dir);
      assert.deepEqual(given, runTheirs(words(line), dir), line);
    }
  };

  for (const method of [0, 1, 3, 0xffffffff])
    it(`method ${method} with LUKS's header`, () => same(luks, [[32, u32(method)]]));
  for (const method of [1, 3]) {
    it(`method ${method} without a header`, async () => {
      theirs("create -q -f qcow2 plain.qcow2 64k", dir);
      await same(fs.readFileSync(path.join(dir, "plain.qcow2")), [[32, u32(method)]]);
    });
  }
  for (const bytes of [0, 8, 15, 17, 24])
    it(`an extension of ${bytes} bytes`, () => same(luks, [[EXTENSION + 4, u32(bytes)]]));
  for (const offset of [0, 1, 512, 0x10000, 0x40001, 2 ** 50])
    it(`a header at ${offset}`, () => same(luks, [[EXTENSION + 8, u64(offset)]]));
  for (const length of [0, 1, 591, 592, 4096, 65536, 532480, 2 ** 62])
    it(`a header of ${length} bytes`, () => same(luks, [[EXTENSION + 16, u64(length)]]));
  it("another magic", () => same(luks, [[luksOffset, Buffer.from("XX")]]));
  it("LUKS2", () => same(luks, [[luksOffset + 7, Uint8Array.of(2)]]));
  it("a payload at 0", () => same(luks, [[luksOffset + 104, u32(0)]]));
  it("a payload far away", () => same(luks, [[luksOffset + 104, u32(0x7fffffff)]]));
  it("a file that ends before the header", () => same(luks, [], luksOffset));
  it("a file that ends in the header", () => same(luks, [], luksOffset + 256));

  it("LUKS without a header is refused, where qemu-img crashes", async () => {
    theirs("create -q -f qcow2 plain.qcow2 64k", dir);
    const image = fs.readFileSync(path.join(dir, "plain.qcow2"));
    image.set(u32(2), 32);
    fs.writeFileSync(path.join(dir, "x.qcow2"), image);
    const { stderr, exitCode } = await runOurs(["info", "x.qcow2"], dir);
    assert.equal(exitCode, 1);
    assert.match(stderr, /Missing CRYPTO header for crypt method 2/);
  });
});
