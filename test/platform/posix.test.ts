/** Each call of platform/posix.ts on real files, and its fallback in a process of its own. */

import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { after, before, describe, it } from "node:test";
import { Worker } from "node:worker_threads";
import { Fallocate, posix } from "../../src/platform/posix.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const GiB = 1024 * MiB;

/** A descriptor that no test opens. */
const badFd = 1_000_000;

let dir = "";
const open: number[] = [];

before(() => {
  dir = fs.mkdtempSync(path.join(os.tmpdir(), "bdrv-posix-"));
});

after(() => {
  for (const fd of open) fs.closeSync(fd);
  fs.rmSync(dir, { recursive: true });
});

function openFile(name: string, flags = "w+"): number {
  const fd = fs.openSync(path.resolve(dir, name), flags);
  open.push(fd);
  return fd;
}

/** Bytes in which every place differs from its neighbours and from the same place in the next block. */
function pattern(bytes: number, seed = 1): Buffer {
  const data = Buffer.alloc(bytes);
  for (let i = 0; i < bytes; i++) data[i] = (i * 7 + (i >> 8) * 13 + seed) & 0xff;
  return data;
}

function readBack(fd: number, offset: number, length: number): Buffer {
  const data = Buffer.alloc(length);
  assert.equal(fs.readSync(fd, data, 0, length, offset), length);
  return data;
}

/** A file that reads without waiting, or undefined with a skip where the file system of the temp dir cannot. */
function cachedFile(t: { skip(reason: string): void }, name: string, data: Uint8Array): number | undefined {
  const fd = openFile(name);
  fs.writeSync(fd, data, 0, data.length, 0);
  if (posix().preadNowait(fd, Buffer.alloc(1), 0) === 1) return fd;
  t.skip(`the file system of ${dir} does not read without waiting`);
  return undefined;
}

const native = { skip: posix().native ? false : "no foreign calls here" };

describe("preadNowait", { skip: native.skip || (posix().canPreadNowait ? false : "no preadv2 here") }, () => {
  it("reads what is cached into any kind of buffer", (t) => {
    const data = pattern(2 * MiB);
    const fd = cachedFile(t, "cached", data);
    if (fd === undefined) return;
    const buffers: [string, Uint8Array][] = [
      ["a small array, which V8 keeps in its heap at first", new Uint8Array(5)],
      ["a pooled Buffer", Buffer.from("pooled, so at an offset in its memory")],
      ["4 KiB", new Uint8Array(4096)],
      ["a slice", new Uint8Array(new ArrayBuffer(9000), 4001, 4096)],
      ["1 MiB", Buffer.alloc(MiB)],
      ["shared memory", new Uint8Array(new SharedArrayBuffer(4096))],
      ["aligned memory", posix().alignedBuffer(8192)],
    ];
    for (const [what, buffer] of buffers) {
      const around = new Uint8Array(buffer.buffer).slice();
      assert.equal(posix().preadNowait(fd, buffer, 4097), buffer.length, what);
      // No Buffer is made in between: it might be made from the pool that is compared.
      around.set(data.subarray(4097, 4097 + buffer.length), buffer.byteOffset);
      assert.equal(Buffer.compare(around, new Uint8Array(buffer.buffer)), 0, what);
    }
  });

  it("ends at the end of the file", (t) => {
    const data = pattern(10_000);
    const fd = cachedFile(t, "end", data);
    if (fd === undefined) return;
    const buffer = Buffer.alloc(4096);
    assert.equal(posix().preadNowait(fd, buffer, 8192), 10_000 - 8192);
    assert.deepEqual(buffer.subarray(0, 1808), data.subarray(8192));
    assert.equal(posix().preadNowait(fd, buffer, 10_000), 0);
    assert.equal(posix().preadNowait(fd, buffer, 2 ** 40), 0);
  });

  it("takes empty and detached buffers", (t) => {
    const fd = cachedFile(t, "empty", pattern(4096));
    if (fd === undefined) return;
    assert.equal(posix().preadNowait(fd, new Uint8Array(0), 0), 0);
    const detached = new Uint8Array(4096);
    structuredClone(detached.buffer, { transfer: [detached.buffer] });
    assert.equal(posix().preadNowait(fd, detached, 0), 0);
  });

  it("reads at the end of a file of more than 4 GiB", (t) => {
    const fd = cachedFile(t, "far", pattern(16));
    if (fd === undefined) return;
    for (const offset of [2 * GiB - 8, 2 * GiB + 5, 4 * GiB - 8, 4 * GiB + 5, 2 ** 40 + 3]) {
      const data = pattern(16, offset % 251);
      fs.writeSync(fd, data, 0, 16, offset);
      const buffer = new Uint8Array(16);
      assert.equal(posix().preadNowait(fd, buffer, offset), 16, `${offset}`);
      assert.deepEqual(Buffer.from(buffer), data, `${offset}`);
    }
  });

  it("would rather not read what is not cached", (t) => {
    const data = pattern(MiB);
    const fd = cachedFile(t, "dropped", data);
    if (fd === undefined) return;
    fs.fsyncSync(fd);
    const dd = ["iflag=nocache", "count=0", "status=none"];
    const { status } = spawnSync("dd", [`if=${path.join(dir, "dropped")}`, ...dd]);
    if (status !== 0) return t.skip("no dd that drops a file from the page cache");
    const buffer = Buffer.alloc(4096);
    const count = posix().preadNowait(fd, buffer, MiB / 2);
    if (count > 0) return t.skip("the system kept the pages");
    assert.equal(count, -1);
    assert.ok(
      buffer.every((byte) => byte === 0),
      "buffer left alone",
    );
    readBack(fd, MiB / 2, 4096);
    assert.equal(posix().preadNowait(fd, buffer, MiB / 2), 4096);
    assert.deepEqual(buffer, data.subarray(MiB / 2, MiB / 2 + 4096));
  });

  it("throws as Node does", () => {
    assert.throws(() => posix().preadNowait(badFd, Buffer.alloc(16), 0), {
      name: "Error",
      code: "EBADF",
      errno: -os.constants.errno.EBADF,
      syscall: "preadv2",
      message: "EBADF: bad file descriptor, preadv2",
    });
  });

  it("works in a worker beside the main thread", native, async (t) => {
    const fd = cachedFile(t, "worker", pattern(4096));
    if (fd === undefined) return;
    const url = new URL("../../src/platform/posix.ts", import.meta.url).href;
    const script = `import { parentPort } from "node:worker_threads";
      import { register } from ${JSON.stringify(import.meta.resolve("tsx/esm/api"))};
      register();
      const { posix } = await import(${JSON.stringify(url)});
      const buffer = new Uint8Array(4096);
      parentPort.postMessage([posix().native, posix().preadNowait(${fd}, buffer, 0), buffer]);`;
    const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(script)}`));
    const [message] = (await Promise.all([
      new Promise((resolve, reject) => worker.once("message", resolve).once("error", reject)),
      new Promise((resolve) => worker.once("exit", resolve)),
    ])) as [[boolean, number, Uint8Array], unknown];
    assert.deepEqual(message.slice(0, 2), [true, 4096]);
    assert.deepEqual(Buffer.from(message[2]), pattern(4096));
  });
});

describe("seekData and seekHole", native, () => {
  it("find the data and the holes of a sparse file", (t) => {
    const fd = openFile("sparse");
    fs.ftruncateSync(fd, 6 * GiB);
    fs.writeSync(fd, pattern(64 * KiB), 0, 64 * KiB, MiB);
    fs.writeSync(fd, pattern(64 * KiB), 0, 64 * KiB, 5 * GiB);
    const { seekData, seekHole } = posix();
    if (seekHole(fd, 0) !== 0) return t.skip(`the file system of ${dir} does not tell holes`);
    assert.equal(seekData(fd, 0), MiB);
    assert.equal(seekData(fd, MiB + 1), MiB + 1);
    assert.equal(seekHole(fd, MiB), MiB + 64 * KiB);
    assert.equal(seekHole(fd, MiB + 64 * KiB + 1), MiB + 64 * KiB + 1);
    assert.equal(seekData(fd, MiB + 64 * KiB), 5 * GiB);
    assert.equal(seekHole(fd, 5 * GiB), 5 * GiB + 64 * KiB);
    assert.equal(seekData(fd, 5 * GiB + 64 * KiB), -1);
    assert.equal(seekHole(fd, 6 * GiB), -1);
    assert.equal(seekData(fd, 7 * GiB), -1);
  });

  it("take the end of a file without holes for a hole", () => {
    const fd = openFile("dense");
    fs.writeSync(fd, pattern(10_000));
    assert.equal(posix().seekHole(fd, 0), 10_000);
    assert.equal(posix().seekData(fd, 10_000), -1);
  });

  it("cannot tell for what has no positions, and throw for what is not open", () => {
    const device = openFile("/dev/null", "r");
    assert.notEqual(posix().seekData(device, 0), -1);
    assert.throws(() => posix().seekData(badFd, 0), { code: "EBADF", syscall: "lseek" });
    assert.throws(() => posix().seekHole(badFd, 0), { code: "EBADF", syscall: "lseek" });
  });
});

describe("fallocate", native, () => {
  const fileOf1MiB = (name: string) => {
    const fd = openFile(name);
    fs.writeSync(fd, pattern(MiB));
    fs.fsyncSync(fd);
    return fd;
  };
  const unsupported = "the file system of the temp dir does not support this mode";

  it("punches holes", (t) => {
    const fd = fileOf1MiB("punched");
    const allocated = fs.fstatSync(fd).blocks;
    const mode = Fallocate.PunchHole | Fallocate.KeepSize;
    if (!posix().fallocate(fd, mode, 64 * KiB, 128 * KiB)) return t.skip(unsupported);
    const expected = pattern(MiB).fill(0, 64 * KiB, 192 * KiB);
    assert.ok(readBack(fd, 0, MiB).equals(expected));
    assert.equal(fs.fstatSync(fd).size, MiB);
    assert.ok(fs.fstatSync(fd).blocks < allocated);
  });

  it("zeroes ranges, past the end with or without the size", (t) => {
    const fd = fileOf1MiB("zeroed");
    if (!posix().fallocate(fd, Fallocate.ZeroRange, 1000, 100_000)) return t.skip(unsupported);
    assert.ok(readBack(fd, 0, MiB).equals(pattern(MiB).fill(0, 1000, 101_000)));
    assert.ok(posix().fallocate(fd, Fallocate.ZeroRange | Fallocate.KeepSize, MiB - 4096, 8192));
    assert.equal(fs.fstatSync(fd).size, MiB);
    assert.ok(posix().fallocate(fd, Fallocate.ZeroRange, MiB - 4096, 8192));
    assert.equal(fs.fstatSync(fd).size, MiB + 4096);
    assert.ok(readBack(fd, MiB - 4096, 8192).equals(Buffer.alloc(8192)));
  });

  it("allocates, and keeps the size if told so", (t) => {
    const fd = openFile("allocated");
    if (!posix().fallocate(fd, Fallocate.KeepSize, 0, MiB)) return t.skip(unsupported);
    assert.equal(fs.fstatSync(fd).size, 0);
    assert.ok(fs.fstatSync(fd).blocks * 512 >= MiB);
    assert.ok(posix().fallocate(fd, Fallocate.Allocate, 5 * GiB, MiB));
    assert.equal(fs.fstatSync(fd).size, 5 * GiB + MiB);
  });

  it("is false for modes there are not and throws real errors", () => {
    const fd = fileOf1MiB("refused");
    assert.equal(posix().fallocate(fd, Fallocate.PunchHole, 0, 4096), false, "needs KeepSize");
    assert.equal(posix().fallocate(fd, 0x4000, 0, 4096), false);
    assert.equal(posix().fallocate(openFile("/dev/null", "r+"), Fallocate.Allocate, 0, 4096), false);
    assert.throws(() => posix().fallocate(badFd, 0, 0, 4096), { code: "EBADF", syscall: "fallocate" });
    const readOnly = openFile("refused", "r");
    assert.throws(() => posix().fallocate(readOnly, 0, 0, 4096), { code: "EBADF" });
  });

  it("throws where the file would become too big", (t) => {
    const fd = openFile("too-big");
    const tooBig = Number.MAX_SAFE_INTEGER - 4096;
    let answer: unknown;
    try {
      answer = posix().fallocate(fd, Fallocate.Allocate, tooBig, 4096);
    } catch (error) {
      answer = (error as NodeJS.ErrnoException).code;
    }
    if (answer === true) return t.skip("the file system takes files of 8 PiB, as tmpfs does");
    assert.equal(answer, "EFBIG");
  });
});

describe("copyFileRange", native, () => {
  /** Copies the whole range, as a caller has to: by pieces. */
  const copyAll = (from: number, at: number, to: number, toAt: number, length: number): boolean => {
    for (let done = 0; done < length; ) {
      const count = posix().copyFileRange(from, at + done, to, toAt + done, length - done);
      if (count < 0) return false;
      assert.ok(count > 0);
      done += count;
    }
    return true;
  };

  it("copies a range between files, beyond 4 GiB too", (t) => {
    const from = openFile("copy-from");
    const to = openFile("copy-to");
    const data = pattern(MiB);
    fs.writeSync(from, data, 0, MiB, 5 * GiB);
    if (!copyAll(from, 5 * GiB + 1000, to, 6 * GiB + 10, 300_000)) return t.skip("not supported here");
    assert.ok(readBack(to, 6 * GiB + 10, 300_000).equals(data.subarray(1000, 301_000)));
    assert.equal(fs.fstatSync(to).size, 6 * GiB + 300_010);
    assert.equal(posix().copyFileRange(from, 6 * GiB, to, 0, 4096), 0, "at the end of the input");
    assert.equal(posix().copyFileRange(from, 5 * GiB, from, 5 * GiB + 1, 4096), -1, "overlapping");
  });

  it("copies between file systems or says that it cannot", (t) => {
    if (!fs.existsSync("/dev/shm")) return t.skip("no /dev/shm");
    const other = fs.mkdtempSync("/dev/shm/bdrv-posix-");
    try {
      const from = openFile(path.join(other, "from"));
      fs.writeSync(from, pattern(100_000));
      const to = openFile("from-shm");
      if (!copyAll(from, 10, to, 20, 50_000)) return;
      assert.ok(readBack(to, 20, 50_000).equals(pattern(100_000).subarray(10, 50_010)));
    } finally {
      fs.rmSync(other, { recursive: true });
    }
  });

  it("throws for what is not open", () => {
    const fd = openFile("copy-bad");
    const expected = { code: "EBADF", syscall: "copy_file_range" };
    assert.throws(() => posix().copyFileRange(badFd, 0, fd, 0, 16), expected);
    assert.throws(() => posix().copyFileRange(fd, 0, badFd, 0, 16), expected);
  });
});

describe("blockDeviceSize", () => {
  it("is what the kernel lists", (t) => {
    const root = "/sys/class/block";
    const names = fs.existsSync(root) ? fs.readdirSync(root) : [];
    let seen = 0;
    for (const name of names) {
      try {
        open.push(fs.openSync(`/dev/${name}`, "r"));
      } catch {
        continue; // Not allowed, not there, or without a medium.
      }
      const sectors = Number(fs.readFileSync(`${root}/${name}/size`, "utf8"));
      assert.equal(posix().blockDeviceSize(open.at(-1) ?? -1), sectors * 512, name);
      seen += 1;
    }
    if (seen === 0) t.skip("no block device that may be opened");
  });

  it("is unknown for what is no block device", () => {
    assert.equal(posix().blockDeviceSize(openFile("no-device")), undefined);
    assert.equal(posix().blockDeviceSize(openFile(os.devNull, "r")), undefined);
    assert.throws(() => posix().blockDeviceSize(badFd), { code: "EBADF" });
  });
});

describe("open file description locks", native, () => {
  it("conflict between two descriptions of a file, not within one", (t) => {
    const { ofdLock, ofdTest } = posix();
    const one = openFile("locked");
    const two = openFile("locked", "r+");
    if (ofdLock(one, "write", 100, 10) === undefined) return t.skip("no such locks here");
    assert.equal(ofdLock(one, "write", 100, 10), true);
    assert.equal(ofdLock(two, "write", 109, 1), false);
    assert.equal(ofdLock(two, "read", 0, 0), false, "to the end of all files");
    assert.equal(ofdLock(two, "write", 110, 5), true);
    assert.equal(ofdTest(one, "write", 100, 10), true, "its own lock is no conflict");
    assert.equal(ofdTest(two, "write", 100, 1), false);
    assert.equal(ofdTest(two, "read", 100, 1), false);
    assert.equal(ofdTest(two, "read", 99, 1), true);
    assert.equal(ofdLock(one, "read", 100, 10), true, "a write lock made a read lock");
    assert.equal(ofdTest(two, "read", 100, 1), true);
    assert.equal(ofdTest(two, "write", 100, 1), false);
    assert.equal(ofdLock(two, "read", 100, 1), true);
    assert.equal(ofdLock(one, "write", 100, 1), false);
    assert.equal(ofdLock(two, "unlock", 0, 0), true);
    assert.equal(ofdLock(one, "write", 100, 20), true);
    assert.equal(ofdLock(one, "unlock", 100, 20), true);
    assert.equal(ofdTest(two, "write", 0, 0), true);
  });

  it("reach far and end when the description is closed", () => {
    const { ofdLock, ofdTest } = posix();
    const one = fs.openSync(path.join(dir, "closed"), "w+");
    const two = openFile("closed", "r+");
    assert.equal(ofdLock(one, "write", 5 * GiB, GiB), true);
    assert.equal(ofdTest(two, "write", 5 * GiB - 1, 1), true);
    assert.equal(ofdTest(two, "write", 6 * GiB - 1, 1), false);
    assert.equal(ofdTest(two, "write", 6 * GiB, 1), true);
    fs.closeSync(one);
    assert.equal(ofdTest(two, "write", 5 * GiB, GiB), true);
  });

  it("throw where the descriptor is not good for it", () => {
    openFile("read-only");
    const readOnly = openFile("read-only", "r");
    assert.equal(posix().ofdLock(readOnly, "read", 0, 1), true);
    assert.throws(() => posix().ofdLock(readOnly, "write", 0, 1), { code: "EBADF", syscall: "fcntl" });
    assert.throws(() => posix().ofdTest(badFd, "read", 0, 1), { code: "EBADF", syscall: "fcntl" });
  });
});

describe("alignedBuffer", () => {
  /** Needs O_DIRECT to see the address from outside: the kernel refuses memory that is not aligned. */
  it("is good for O_DIRECT", (t) => {
    fs.writeFileSync(path.join(dir, "direct"), pattern(MiB));
    const flags = fs.constants.O_RDONLY | (fs.constants.O_DIRECT ?? 0);
    for (const bytes of [4096, 5 * 4096, MiB]) {
      const buffer = posix().alignedBuffer(bytes);
      assert.equal(buffer.length, bytes);
      assert.ok(buffer.every((byte) => byte === 0));
      try {
        open.push(fs.openSync(path.join(dir, "direct"), flags));
      } catch {
        return t.skip("no O_DIRECT here");
      }
      assert.equal(fs.readSync(open.at(-1) ?? -1, buffer, 0, bytes, 0), bytes);
      assert.ok(pattern(MiB).subarray(0, bytes).equals(buffer));
    }
  });

  it("takes other alignments and sizes", () => {
    assert.equal(posix().alignedBuffer(0).length, 0);
    assert.equal(posix().alignedBuffer(513, 512).length, 513);
    assert.equal(posix().alignedBuffer(70_000, 65536).length, 70_000);
  });
});

describe("loading", () => {
  /** What a fresh process prints, as JSON. */
  const run = (script: string, env: Record<string, string>): unknown => {
    const url = new URL("../../src/platform/posix.ts", import.meta.url).href;
    const source = `const { posix, Fallocate } = await import(${JSON.stringify(url)});
      const koffiLoaded = () => process.report.getReport().sharedObjects.some((name) => name.includes("koffi"));
      console.log(JSON.stringify(await (async () => {${script}})()));`;
    const args = ["--import", "tsx", "--input-type=module", "-e", source];
    return JSON.parse(
      execFileSync(process.execPath, args, { env: { ...process.env, ...env }, encoding: "utf8" }),
    );
  };

  it("leaves koffi alone until the first call", native, () => {
    const script =
      "const before = koffiLoaded(); posix(); return [before, koffiLoaded(), posix() === posix()];";
    assert.deepEqual(run(script, {}), [false, true, true]);
  });

  it("falls back with BDRV_NO_FFI=1", () => {
    fs.writeFileSync(path.join(dir, "fallback"), pattern(MiB));
    const script = `
      const fs = await import("node:fs");
      const fd = fs.openSync(${JSON.stringify(path.join(dir, "fallback"))}, "r+");
      const p = posix();
      const buffer = p.alignedBuffer(70000);
      let direct = 4096;
      try {
        const other = fs.openSync(${JSON.stringify(path.join(dir, "fallback"))}, fs.constants.O_DIRECT);
        direct = fs.readSync(other, buffer, 0, 4096, 4096);
      } catch {}
      return {
        native: p.native, canPreadNowait: p.canPreadNowait, preadNowait: p.preadNowait(fd, buffer, 0),
        seekData: String(p.seekData(fd, 0)), seekHole: String(p.seekHole(fd, 0)),
        fallocate: p.fallocate(fd, Fallocate.KeepSize, 0, 4096), copyFileRange: p.copyFileRange(fd, 0, fd, 8192, 4096),
        blockDeviceSize: String(p.blockDeviceSize(fd)),
        ofdLock: String(p.ofdLock(fd, "write", 0, 1)), ofdTest: String(p.ofdTest(fd, "write", 0, 1)),
        aligned: buffer.length, direct, koffi: koffiLoaded(),
      };`;
    assert.deepEqual(run(script, { BDRV_NO_FFI: "1" }), {
      native: false,
      canPreadNowait: false,
      preadNowait: -1,
      seekData: "undefined",
      seekHole: "undefined",
      fallocate: false,
      copyFileRange: -1,
      blockDeviceSize: "undefined",
      ofdLock: "undefined",
      ofdTest: "undefined",
      aligned: 70_000,
      direct: 4096,
      koffi: false,
    });
  });

  it("falls back where koffi does not load", native, () => {
    const script = `
      const { default: Module } = await import("node:module");
      const load = Module._load;
      Module._load = function (name, ...rest) {
        if (name.includes("koffi")) throw new Error("not installed");
        return load.call(this, name, ...rest);
      };
      process.dlopen = () => { throw new Error("not for this system"); };
      return posix().native;`;
    assert.equal(run(script, {}), false);
  });
});
