/** LUKS 1: a header with eight key slots before the data. Source: LUKS On-Disk Format Specification 1.2, figures 1 and 2. */

import fs from "node:fs";
import type { FuzzFormat, Region } from "../format.ts";

const SLOTS = 8;
const SLOT_BYTES = 48;
const FIRST_SLOT = 208;

export const luks: FuzzFormat = {
  formatName: "luks",
  writable: true,

  async bases(workshop) {
    const bases = [];
    for (const [name, options] of Object.entries(VARIANTS)) {
      const filename = workshop.path(`${name}.luks`);
      await workshop.create(filename, "luks", 65536, { "key-secret": "key", "iter-time": 1, ...options });
      bases.push({ name, content: fs.readFileSync(filename), options: { "key-secret": "key" } });
    }
    return bases;
  },

  regions: () => [
    { name: "version", offset: 6, width: 2, count: 1 },
    { name: "cipher name", offset: 8, width: "text", count: 32 },
    { name: "cipher mode", offset: 40, width: "text", count: 32 },
    { name: "hash", offset: 72, width: "text", count: 32 },
    { name: "payload", offset: 104, width: 4, count: 1, unit: 512 },
    { name: "key bytes", offset: 108, width: 4, count: 1 },
    { name: "digest", offset: 112, width: "bytes", count: 20 },
    { name: "salt", offset: 132, width: "bytes", count: 32 },
    { name: "iterations", offset: 164, width: 4, count: 1 },
    { name: "uuid", offset: 168, width: "text", count: 40 },
    ...Array.from({ length: SLOTS }, (_, slot) => slotRegions(slot)).flat(),
  ],
};

const VARIANTS = {
  xts: {},
  cbc: { "cipher-alg": "aes-128", "cipher-mode": "cbc", "ivgen-alg": "essiv", "ivgen-hash-alg": "sha256" },
  sha1: { "hash-alg": "sha1", "ivgen-alg": "plain" },
};

function slotRegions(slot: number): Region[] {
  const start = FIRST_SLOT + slot * SLOT_BYTES;
  return [
    { name: `slot ${slot} state`, offset: start, width: 4, count: 1, flags: [0x00ac71f3n ^ 0x0000deadn] },
    { name: `slot ${slot} iterations`, offset: start + 4, width: 4, count: 1 },
    { name: `slot ${slot} place`, offset: start + 40, width: 4, count: 1, unit: 512 },
    { name: `slot ${slot} stripes`, offset: start + 44, width: 4, count: 1 },
  ];
}
