/**
 * Damaged images: small ones made by QEMU's tools, with chosen fields of their structures overwritten. A case is a
 * line: the base image, then what is written where.
 *
 * Places: `@24:8` (offset and bytes in the file), `l1[0]`, `l2[3]` (of the first L2 table), `lb[3]` (an extended
 * entry's bitmap), `rt[0]` (refcount table), `rc[5]` (refcount of cluster 5), `sn+8:4` (snapshot table), `s1[0]`,
 * `s2[3]` (L1 table of the first snapshot, and its first L2 table), `bx+0:4` (bitmaps extension), `bd+0:8` (bitmap directory), `bt[0]`
 * (table of the first bitmap). `cut=5K`: the length of the file.
 *
 * Values: sums of numbers, `K` (clusters: 5K), `C` (copied), `Z` (compressed), and the places' own offsets in capitals (L1, L2, ...),
 * `END`.
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";

/** Name, size, options of create, and what is done then: qemu-io's commands, or lines for qemu-img that begin with a dash. */
const BASES: readonly (readonly [name: string, size: string, options: string, steps: readonly string[]])[] = [
  [
    "plain",
    "8M",
    "cluster_size=4k",
    [
      "write -P 1 0 16k",
      "write -P 2 64k 4k",
      "write -z 128k 8k",
      "write -P 3 192k 4k",
      "write -z 192k 4k",
      "write -c -P 4 256k 4k",
      "write -c -P 5 260k 4k",
      "write -P 6 4M 4k",
    ],
  ],
  [
    "snap",
    "8M",
    "cluster_size=4k",
    [
      "write -P 1 0 16k",
      "write -c -P 4 256k 4k",
      "- snapshot -c first",
      "write -P 9 4k 4k",
      "write -P 9 4M 4k",
      "- snapshot -c second",
      "write -P 8 0 4k",
    ],
  ],
  [
    "ext",
    "16M",
    "cluster_size=16k,extended_l2=on",
    ["write -P 1 0 16k", "write -P 2 32k 1k", "write -z 34k 2k", "write -c 64k 16k", "write -z 128k 16k"],
  ],
  ["data", "1M", "cluster_size=4k,data_file=data.raw", ["write -P 1 0 16k", "write -z 64k 4k"]],
  ["bitmaps", "1M", "cluster_size=4k", ["write -P 1 0 4k", "- bitmap --add a", "- bitmap --add b"]],
  ["narrow", "1M", "cluster_size=4k,refcount_bits=1", ["write 0 8k", "write 64k 4k", "write -c 128k 4k"]],
  ["wide", "1M", "cluster_size=4k,refcount_bits=64", ["write 0 8k", "write 64k 4k"]],
  ["old", "1M", "cluster_size=4k,compat=0.10", ["write 0 8k", "write -c 128k 4k"]],
  ["tiny", "4M", "cluster_size=512", ["write 0 200k", "write 1M 100k"]],
  ["empty", "8M", "cluster_size=4k", []],
  [
    "mixed",
    "8M",
    "cluster_size=4k",
    [
      "write -P 1 0 16k",
      "write -z 128k 8k",
      "write -c -P 4 256k 4k",
      "- snapshot -c first",
      "write -P 9 0 4k",
      "- bitmap --add bm",
    ],
  ],
  ["lazy", "1M", "cluster_size=4k,lazy_refcounts=on", ["write -P 1 0 16k"]],
];

export function makeBases(directory: string): void {
  for (const [name, size, options, steps] of BASES) {
    const file = `${name}.qcow2`;
    const run = (tool: string, args: readonly string[]) => {
      const { status, stderr } = spawnSync(tool, args, { cwd: directory, encoding: "utf8" });
      assert.equal(status, 0, `${tool} ${args.join(" ")}: ${stderr}`);
    };
    run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", options, file, size]);
    let commands: string[] = [];
    const write = () => {
      if (commands.length > 0) run("qemu-io", [...commands.flatMap((command) => ["-c", command]), file]);
      commands = [];
    };
    for (const step of steps) {
      if (!step.startsWith("- ")) commands.push(step);
      else {
        write();
        const [, word = "", ...rest] = step.split(" ");
        // The names of bitmaps stand behind the file.
        const last = word === "bitmap" ? rest.splice(-1) : [];
        run("qemu-img", [word, ...rest, file, ...last]);
      }
    }
    write();
  }
}

/** A copy of the case's base in `directory`, damaged: its name. */
export function damage(bases: string, directory: string, line: string): string {
  const [base = "", ...patches] = line.split(" ");
  const name = `${base}.qcow2`;
  let content = fs.readFileSync(path.join(bases, name));
  const image = new Places(content);
  for (const patch of patches) {
    const [place = "", value = ""] = patch.split("=");
    if (place === "cut") {
      const bytes = Number(image.value(value));
      content = bytes <= content.length ? content.subarray(0, bytes) : grown(content, bytes);
      continue;
    }
    const { offset, bytes } = image.place(place);
    if (offset + bytes > content.length) content = grown(content, offset + bytes);
    const number = BigInt.asUintN(bytes * 8, image.value(value));
    for (let index = 0; index < bytes; index++)
      content[offset + index] = Number((number >> BigInt(8 * (bytes - 1 - index))) & 0xffn);
  }
  fs.writeFileSync(path.join(directory, name), content);
  if (base === "data") fs.copyFileSync(path.join(bases, "data.raw"), path.join(directory, "data.raw"));
  return name;
}

function grown(content: Buffer, bytes: number): Buffer<ArrayBuffer> {
  return Buffer.concat([content, Buffer.alloc(bytes - content.length)]);
}

const OFFSET_MASK = 0x00ff_ffff_ffff_fe00n;

/** Where things are in an undamaged image. */
class Places {
  readonly #content: Buffer;
  readonly #cluster: number;

  constructor(content: Buffer) {
    this.#content = content;
    this.#cluster = 2 ** content.readUInt32BE(20);
  }

  #pointer(offset: number): number {
    return Number(this.#content.readBigUInt64BE(offset) & OFFSET_MASK);
  }

  /** Offset of a structure by its name. */
  #start(name: string): number {
    switch (name) {
      case "L1":
        return this.#pointer(40);
      case "L2":
        return this.#pointer(this.#start("L1"));
      case "RT":
        return this.#pointer(48);
      case "RB":
        return this.#pointer(this.#start("RT"));
      case "SN":
        return this.#pointer(64);
      case "S1":
        return this.#pointer(this.#start("SN"));
      case "S2":
        return this.#pointer(this.#start("S1"));
      case "BX":
        return this.#content.indexOf(Buffer.from("2385287500000018", "hex")) + 8;
      case "BD":
        return this.#pointer(this.#start("BX") + 16);
      case "BT":
        return this.#pointer(this.#start("BD"));
      default:
        throw new Error(`no structure ${name}`);
    }
  }

  place(text: string): { readonly offset: number; readonly bytes: number } {
    const absolute = /^@(\w+):(\d)$/.exec(text);
    if (absolute) return { offset: Number(absolute[1]), bytes: Number(absolute[2]) };
    const relative = /^(\w\w)\+(\w+):(\d)$/.exec(text);
    if (relative) {
      const [, name = "", offset, bytes] = relative;
      return { offset: this.#start(name.toUpperCase()) + Number(offset), bytes: Number(bytes) };
    }
    const [, name = "", index] = /^(\w\w)\[(\d+)\]$/.exec(text) ?? [];
    const at = Number(index);
    if (name === "rc") return { offset: this.#start("RB") + 2 * at, bytes: 2 };
    const isExtended = (this.#content.readUInt32BE(76) & 16) !== 0 && this.#content.readUInt32BE(4) === 3;
    const stride = isExtended && ["l2", "s2", "lb"].includes(name) ? 16 : 8;
    const start = this.#start(name === "lb" ? "L2" : name.toUpperCase());
    return { offset: start + stride * at + (name === "lb" ? 8 : 0), bytes: 8 };
  }

  value(text: string): bigint {
    let sum = 0n;
    for (const term of text.split("+")) {
      const clusters = /^(\d+)K$/.exec(term);
      if (clusters) sum += BigInt(clusters[1] as string) * BigInt(this.#cluster);
      else if (term === "C") sum += 1n << 63n;
      else if (term === "Z") sum += 1n << 62n;
      else if (term === "END") sum += BigInt(this.#content.length);
      else if (/^[A-Z]/.test(term)) sum += BigInt(this.#start(term));
      else sum += BigInt(term);
    }
    return sum;
  }
}
