/** The conformance suite over encrypted images: LUKS, and qcow2 with LUKS and with the old AES. */

import fs from "node:fs";
import path from "node:path";
import { after, before, describe, it } from "node:test";
import { openGate } from "../../src/block/open.ts";
import type { NestedOptions, OptionScalar, Options } from "../../src/block/options.ts";
import { createImage } from "../../src/jobs/create.ts";
import { type ConformanceImage, type ConformanceSubject, conformance } from "../conformance.ts";
import { openBackend } from "../support/graph.ts";
import { tempDir } from "../support/temp.ts";

const dir = tempDir({ after });
let filesMade = 0;

const environment = {
  gate: openGate,
  warn: () => {},
  secret: (id: string) => (id === "s" ? { data: Buffer.from("passphrase") } : undefined),
};

const COMMON = {
  canWrite: true,
  keepsData: true,
  canOverwrite: true,
  canTruncate: true,
  discarded: "any",
} as const;

/** Empty images that tests copy, by their names: deriving a key takes a moment. */
const templates = new Map<string, () => Promise<void>>();

function freshName(suffix: string): string {
  return path.join(dir, `image${filesMade++}${suffix}`);
}

interface Case {
  readonly name: string;
  readonly format: "luks" | "qcow2";
  readonly unit: number;
  readonly options: Readonly<Record<string, string | number>>;
  readonly more?: Partial<ConformanceSubject>;
}

function create(filename: string, { format, options }: Case, more: Options): Promise<void> {
  return createImage({
    filename,
    format,
    unsafeBacking: true,
    options: new Map<string, OptionScalar>([...Object.entries<OptionScalar>(options), ...more]),
    environment,
  });
}

function subject(each: Case): ConformanceSubject {
  const { name, format, unit, more } = each;
  const template = path.join(dir, name);
  templates.set(name, () => create(template, each, new Map([["size", 0]])));
  const key = format === "luks" ? "key-secret" : "encrypt.key-secret";
  const optionsOf = (filename: string): NestedOptions => ({
    driver: format,
    [key]: "s",
    file: { driver: "file", filename },
  });
  const image = (filename: string): ConformanceImage => ({
    open: ({ readOnly }) =>
      openBackend(optionsOf(filename), { environment, flags: { readOnly, unmap: true } }),
    dispose: () => fs.rmSync(filename, { force: true }),
  });
  const makeOverlay = async (below: Uint8Array, bytes: number) => {
    const base = freshName(".raw");
    fs.writeFileSync(base, below);
    const filename = freshName(".qcow2");
    const backing: Options = new Map<string, OptionScalar>([
      ["size", bytes],
      ["backing_file", base],
      ["backing_fmt", "raw"],
    ]);
    await create(filename, each, backing);
    return image(filename);
  };
  return {
    ...COMMON,
    name,
    unit,
    async make(content) {
      const filename = freshName(`.${format}`);
      fs.copyFileSync(template, filename);
      const made = image(filename);
      await using backend = await made.open({ readOnly: false });
      await backend.truncate(content.length);
      for (let at = 0; at < content.length; at += unit) {
        const piece = content.subarray(at, at + unit);
        // What was never written stays unallocated, where the format knows of it.
        if (format === "luks" || piece.some((byte) => byte !== 0)) await backend.write(at, piece);
      }
      return made;
    },
    ...(format === "qcow2" && { makeOverlay }),
    ...more,
  };
}

const AES_128 = { "cipher-alg": "aes-128", "iter-time": 0 };
const ENCRYPT_LUKS = {
  "encrypt.format": "luks",
  "encrypt.key-secret": "s",
  "encrypt.cipher-alg": "aes-128",
  "encrypt.iter-time": 0,
};

/** What LUKS gains by growing is zeroes in the file, and so anything to the guest. */
const LUKS = { canTruncate: false };

const CASES: readonly Case[] = [
  { name: "luks, xts", format: "luks", unit: 4096, options: { "key-secret": "s", ...AES_128 }, more: LUKS },
  {
    name: "luks, cbc-essiv",
    format: "luks",
    unit: 512,
    options: {
      "key-secret": "s",
      ...AES_128,
      "cipher-mode": "cbc",
      "ivgen-alg": "essiv",
      "ivgen-hash-alg": "md5",
    },
    more: LUKS,
  },
  { name: "qcow2 with luks", format: "qcow2", unit: 4096, options: { ...ENCRYPT_LUKS, cluster_size: 4096 } },
  {
    name: "qcow2 with luks, extended L2",
    format: "qcow2",
    unit: 16384,
    options: { ...ENCRYPT_LUKS, cluster_size: 16384, extended_l2: "on" },
  },
  {
    name: "qcow2 v2 with aes, clusters of 512",
    format: "qcow2",
    unit: 512,
    options: { "encrypt.format": "aes", "encrypt.key-secret": "s", cluster_size: 512, compat: "0.10" },
  },
];

describe("conformance of encrypted images", () => {
  before(async () => {
    for (const make of templates.values()) await make();
  });
  for (const each of CASES) conformance(it, subject(each));
});
