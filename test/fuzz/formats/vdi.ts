/** VDI: a header and a map of blocks. Source: VirtualBox's own, as QEMU's block/vdi.c describes it; all little-endian. */

import type { FuzzFormat } from "../format.ts";
import { makeBoth } from "./made.ts";

export const vdi: FuzzFormat = {
  formatName: "vdi",
  writable: true,
  bases: (workshop) =>
    makeBoth(workshop, "vdi", [
      { name: "dynamic", size: 2 * 2 ** 20 },
      { name: "empty", size: 64 * 2 ** 20, data: 0 },
      { name: "static", size: 2 ** 20, options: { static: true } },
    ]),
  regions: () => [
    { name: "text", offset: 0, width: "text", count: 64 },
    { name: "header", offset: 64, width: 4, count: 5, littleEndian: true },
    { name: "places", offset: 340, width: 4, count: 2, littleEndian: true, unit: 1 },
    { name: "geometry", offset: 348, width: 4, count: 5, littleEndian: true },
    { name: "disk size", offset: 368, width: 8, count: 1, littleEndian: true },
    { name: "blocks", offset: 376, width: 4, count: 4, littleEndian: true },
    { name: "uuids", offset: 392, width: 8, count: 8, littleEndian: true },
    { name: "map", offset: 512, width: 4, count: 64, littleEndian: true, unit: 2 ** 20 },
    { name: "map's start", offset: 512, width: 4, count: 2, littleEndian: true, unit: 2 ** 20 },
  ],
};
