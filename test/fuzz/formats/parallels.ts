/** Parallels' expandable images: a header and a table of clusters. Source: QEMU's docs/interop/parallels.txt. */

import type { FuzzFormat } from "../format.ts";
import { makeBoth } from "./made.ts";

const CLUSTER_BYTES = 65536;

export const parallels: FuzzFormat = {
  formatName: "parallels",
  writable: true,
  bases: (workshop) =>
    makeBoth(workshop, "parallels", [
      { name: "small", size: 2 ** 20, options: { cluster_size: CLUSTER_BYTES } },
      { name: "empty", size: 64 * 2 ** 20, data: 0 },
    ]),
  regions: () => [
    { name: "magic", offset: 0, width: "text", count: 16 },
    { name: "header", offset: 16, width: 4, count: 5, littleEndian: true },
    { name: "sectors", offset: 36, width: 8, count: 1, littleEndian: true },
    { name: "in use", offset: 44, width: 4, count: 1, littleEndian: true },
    { name: "data", offset: 48, width: 4, count: 2, littleEndian: true, unit: 512 },
    { name: "extension", offset: 56, width: 8, count: 1, littleEndian: true, unit: 512 },
    { name: "table", offset: 64, width: 4, count: 16, littleEndian: true, unit: CLUSTER_BYTES },
    { name: "table in sectors", offset: 64, width: 4, count: 16, littleEndian: true, unit: 512 },
  ],
};
