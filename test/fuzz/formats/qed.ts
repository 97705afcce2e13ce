/** QED: a header, one L1 table, L2 tables. Source: QEMU's docs/interop/qed_spec.txt; little-endian. */

import fs from "node:fs";
import { Header } from "../../../drivers/qed/layout.ts";
import { type FuzzFormat, type Region, recordRegions } from "../format.ts";
import { makeBoth } from "./made.ts";

const little = { littleEndian: true };

export const qed: FuzzFormat = {
  formatName: "qed",
  writable: true,

  async bases(workshop) {
    const small = { cluster_size: 4096, table_size: 2 };
    const made = await makeBoth(workshop, "qed", [
      { name: "small", size: 2 ** 20, options: small, data: 9000 },
      { name: "default", size: 2 ** 30, data: 0 },
    ]);
    const overlay = workshop.path("overlay.qed");
    fs.writeFileSync(workshop.path("below.raw"), "");
    await workshop.create(overlay, "qed", 2 ** 20, {
      ...small,
      backing_file: "below.raw",
      backing_fmt: "raw",
    });
    made.push({ name: "overlay", content: fs.readFileSync(overlay) });
    return made;
  },

  regions(image) {
    const header = Header.read(image);
    const count = (header.clusterSize * header.tableSize) / 8;
    const found: Region[] = [
      ...recordRegions("header", Header, 0, little),
      { name: "L1", offset: header.l1TableOffset, width: 8, count, ...little, unit: 1, flags: [1n] },
      {
        name: "L1's start",
        offset: header.l1TableOffset,
        width: 8,
        count: 3,
        ...little,
        unit: 1,
        flags: [1n],
      },
    ];
    const { backingFilenameOffset: offset, backingFilenameSize } = header;
    if (offset > 0) found.push({ name: "backing file", offset, width: "text", count: backingFilenameSize });
    for (let index = 0; index < 3; index++) {
      const table = Number(image.readBigUInt64LE(header.l1TableOffset + index * 8));
      if (table > 0)
        found.push({ name: "L2", offset: table, width: 8, count, ...little, unit: 1, flags: [1n] });
    }
    return found;
  },
};
