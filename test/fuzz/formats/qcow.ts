/** qcow, version 1: a header, one L1 table, L2 tables. Source: QEMU's description of the format; big-endian. */

import fs from "node:fs";
import { Header } from "../../../drivers/qcow1/layout.ts";
import { type FuzzFormat, type Region, recordRegions } from "../format.ts";
import { makeBoth } from "./made.ts";

const FLAGS = [1n << 63n, (1n << 63n) | (0x40n << 51n)];

export const qcow: FuzzFormat = {
  formatName: "qcow",
  writable: true,

  async bases(workshop) {
    const made = await makeBoth(workshop, "qcow", [
      { name: "plain", size: 2 ** 20, data: 9000 },
      { name: "large", size: 2 ** 36, data: 0 },
    ]);
    const source = workshop.path("source.raw");
    fs.writeFileSync(source, Buffer.alloc(204_800, "some text "));
    const packed = workshop.path("packed.qcow");
    if (workshop.tool("qemu-img", "convert", "-c", "-O", "qcow", source, packed))
      made.push({ name: "compressed", content: fs.readFileSync(packed) });
    const overlay = workshop.path("overlay.qcow");
    await workshop.create(overlay, "qcow", 2 ** 20, { backing_file: "source.raw", backing_fmt: "raw" });
    made.push({ name: "overlay", content: fs.readFileSync(overlay) });
    return made;
  },

  regions(image) {
    const { backingFileOffset, backingFileSize, l1TableOffset, size, clusterBits, l2Bits } =
      Header.read(image);
    const l1Entries = Math.ceil(size / 2 ** (clusterBits + l2Bits));
    const found: Region[] = [
      ...recordRegions("header", Header, 0),
      { name: "L1", offset: l1TableOffset, width: 8, count: l1Entries, unit: 1, flags: FLAGS },
    ];
    if (backingFileOffset > 0)
      found.push({ name: "backing file", offset: backingFileOffset, width: "text", count: backingFileSize });
    for (let index = 0; index < Math.min(l1Entries, 64); index++) {
      const table = Number(image.readBigUInt64BE(l1TableOffset + index * 8));
      if (table === 0) continue;
      found.push({ name: "L2", offset: table, width: 8, count: 2 ** l2Bits, unit: 1, flags: FLAGS });
      found.push({ name: "data", offset: table + 8 * 2 ** l2Bits, width: "bytes", count: 200 });
    }
    return found;
  },
};
