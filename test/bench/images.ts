/** The benchmark's images: a real file system made of the machine's own files, and what qemu-img makes of it. */

import { execFileSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { random } from "../support/random.ts";

/** Where files for the file system are taken from, in this order, until there are enough. */
const SOURCES = ["/usr/bin", "/usr/lib", "/usr/share", "/usr/include"];
/** The part of the file system that is filled. */
const FILL = 0.7;
const MIB = 2 ** 20;
const SPARSE_BYTES = 2 ** 40;

export interface BenchImages {
  readonly raw: string;
  readonly qcow2: string;
  readonly zlib: string;
  readonly zstd: string;
  readonly vmdk: string;
  /** Of 256 MiB: what was written to it came in any order. */
  readonly fragmented: string;
  /** The top of a chain of three. */
  readonly chain: string;
  /** 1 TiB, raw, with 64 MiB of data here and there. */
  readonly sparse: string;
  /** 100 GiB, qcow2, all of it allocated and none of it written. */
  readonly wide: string;
  /** A few KiB. */
  readonly small: string;
}

/** Makes what is not there yet: a directory that is kept serves again. */
export function makeImages(directory: string, bytes: number, log: (line: string) => void): BenchImages {
  const at = (name: string) => path.join(directory, name);
  const images: BenchImages = {
    raw: at("disk.raw"),
    qcow2: at("disk.qcow2"),
    zlib: at("zlib.qcow2"),
    zstd: at("zstd.qcow2"),
    vmdk: at("disk.vmdk"),
    fragmented: at("fragmented.qcow2"),
    chain: at("top.qcow2"),
    sparse: at("sparse.raw"),
    wide: at("wide.qcow2"),
    small: at("small.qcow2"),
  };
  /** Makes a file under another name first, so that one that is there is whole. */
  const make = (filename: string, how: (unfinished: string) => void) => {
    if (fs.existsSync(filename)) return;
    log(`making ${path.basename(filename)}`);
    const unfinished = `${filename}.part`;
    fs.rmSync(unfinished, { force: true });
    how(unfinished);
    fs.renameSync(unfinished, filename);
  };
  const convert = (...args: string[]) => qemuImg("convert", "-f", "raw", "-O", "qcow2", ...args);
  make(images.raw, (file) => makeFileSystem(file, bytes, at("tree")));
  make(images.qcow2, (file) => convert(images.raw, file));
  make(images.zlib, (file) => convert("-c", images.raw, file));
  make(images.zstd, (file) => convert("-c", "-o", "compression_type=zstd", images.raw, file));
  make(images.vmdk, (file) => qemuImg("convert", "-f", "raw", "-O", "vmdk", images.raw, file));
  make(images.fragmented, makeFragmented);
  make(at("middle.qcow2"), (file) => makeOverlay(images.qcow2, file, bytes, 1));
  make(images.chain, (file) => makeOverlay(at("middle.qcow2"), file, bytes, 2));
  make(images.sparse, makeSparse);
  make(images.wide, (file) =>
    qemuImg("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", file, "100G"),
  );
  make(images.small, (file) => qemuImg("create", "-q", "-f", "qcow2", file, "64M"));
  // What is written to the disk meanwhile is not part of any job.
  execFileSync("sync");
  return images;
}

function qemuImg(...args: string[]): void {
  execFileSync("qemu-img", args, { stdio: ["ignore", "ignore", "inherit"] });
}

/** ext4 with files of this machine, written by mke2fs, without a mount. */
function makeFileSystem(filename: string, bytes: number, tree: string): void {
  const staged = stageFiles(tree, bytes * FILL);
  if (staged < bytes * FILL * 0.9)
    throw new Error(
      `Only ${Math.floor(staged / MIB)} MiB of files under ${SOURCES.join(", ")}: ask for less`,
    );
  fs.closeSync(fs.openSync(filename, "w"));
  fs.truncateSync(filename, bytes);
  execFileSync("mke2fs", ["-q", "-F", "-t", "ext4", "-m", "0", "-d", tree, filename], {
    stdio: ["ignore", "ignore", "inherit"],
  });
  fs.rmSync(tree, { recursive: true });
}

/** Copies files to `tree` until they are `bytes` together; gives how many there are. */
function stageFiles(tree: string, bytes: number): number {
  fs.rmSync(tree, { recursive: true, force: true });
  let staged = 0;
  for (const source of SOURCES) {
    const pending = [source];
    for (let directory = pending.pop(); directory !== undefined; directory = pending.pop()) {
      const target = path.join(tree, directory);
      fs.mkdirSync(target, { recursive: true });
      for (const entry of readdirSorted(directory)) {
        const from = path.join(directory, entry.name);
        if (entry.isDirectory()) pending.push(from);
        if (!entry.isFile()) continue;
        // A block each, so that small files do not overfill the file system.
        const size = Math.ceil(fs.statSync(from).size / 4096) * 4096 + 512;
        if (staged + size > bytes) continue;
        fs.copyFileSync(from, path.join(target, entry.name), fs.constants.COPYFILE_FICLONE);
        staged += size;
        if (staged > bytes * 0.98) return staged;
      }
    }
  }
  return staged;
}

function readdirSorted(directory: string): fs.Dirent[] {
  if (!fs.existsSync(directory)) return [];
  const entries = fs.readdirSync(directory, { withFileTypes: true });
  return entries.sort((a, b) => (a.name < b.name ? -1 : 1));
}

/** An overlay with writes over a tenth of the disk, and a few zeroes. */
function makeOverlay(backing: string, filename: string, bytes: number, seed: number): void {
  qemuImg("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing, filename);
  const numbers = random(seed);
  const WRITE_BYTES = MIB / 2;
  const commands: string[] = [];
  for (let written = 0; written < bytes / 10; written += WRITE_BYTES) {
    const offset = numbers.below(Math.floor((bytes - WRITE_BYTES) / 4096)) * 4096;
    const what = numbers.below(8) === 0 ? "write -z" : `write -P ${1 + numbers.below(255)}`;
    commands.push("-c", `${what} ${offset} ${WRITE_BYTES}`);
  }
  execFileSync("qemu-io", [...commands, filename], { stdio: ["ignore", "ignore", "inherit"] });
}

/** Every 64 KiB written by itself, in an order that leads all over the disk. */
function makeFragmented(filename: string): void {
  const PIECES = 4096;
  qemuImg("create", "-q", "-f", "qcow2", filename, "256M");
  let input = "";
  // A step that shares no factor with the number of pieces comes by each of them.
  for (let piece = 0; piece < PIECES; piece++)
    input += `write -q -P ${1 + (piece % 250)} ${((piece * 1531) % PIECES) * 64}k 64k\n`;
  execFileSync("qemu-io", ["-t", "unsafe", filename], { input, stdio: ["pipe", "ignore", "inherit"] });
}

function makeSparse(filename: string): void {
  const fd = fs.openSync(filename, "w");
  fs.ftruncateSync(fd, SPARSE_BYTES);
  const numbers = random(3);
  const PIECE_BYTES = MIB;
  for (let piece = 0; piece < 64; piece++) {
    const offset = numbers.below(SPARSE_BYTES / MIB) * MIB;
    fs.writeSync(fd, numbers.bytes(PIECE_BYTES), 0, PIECE_BYTES, offset);
  }
  fs.closeSync(fd);
}
