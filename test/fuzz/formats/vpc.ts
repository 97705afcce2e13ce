/** VHD: footer, dynamic header, block allocation table. Source: Virtual Hard Disk Image Format Specification 1.0. */

import { DynamicHeader, Footer } from "../../../drivers/vpc/layout.ts";
import { type FuzzFormat, recordRegions } from "../format.ts";
import { makeBoth } from "./made.ts";

const FOOTER_BYTES = 512;

export const vpc: FuzzFormat = {
  formatName: "vpc",
  writable: true,
  bases: (workshop) =>
    makeBoth(workshop, "vpc", [
      { name: "dynamic", size: 4 * 2 ** 20 },
      { name: "empty", size: 64 * 2 ** 20, data: 0 },
      { name: "fixed", size: 2 ** 20, options: { subformat: "fixed" } },
    ]),

  regions(image) {
    const end = image.length - FOOTER_BYTES;
    const found = recordRegions("footer at the end", Footer, end);
    if (image.toString("latin1", 0, 8) !== "conectix") return found;
    const header = Number(Footer.read(image).dataOffset);
    const { tableOffset, maxTableEntries } = DynamicHeader.read(image, header);
    return [
      ...recordRegions("footer", Footer, 0),
      ...recordRegions("header", DynamicHeader, header),
      { name: "table", offset: tableOffset, width: 4, count: maxTableEntries, unit: 512 },
      { name: "table's start", offset: tableOffset, width: 4, count: 2, unit: 512 },
      ...found,
    ];
  },

  mend(image) {
    const footers = [0, image.length - FOOTER_BYTES].filter(
      (at) => image.toString("latin1", at, at + 8) === "conectix",
    );
    for (const at of footers) mendSum(image, at, FOOTER_BYTES, Footer.offsetOf.checksum);
    const header = footers[0] === 0 ? Number(Footer.read(image).dataOffset) : image.length;
    if (header + DynamicHeader.size <= image.length)
      mendSum(image, header, DynamicHeader.size, DynamicHeader.offsetOf.checksum);
  },
};

/** The complement of the sum of all bytes but its own. */
function mendSum(image: Buffer, offset: number, bytes: number, field: number): void {
  image.writeUInt32BE(0, offset + field);
  let sum = 0;
  for (const byte of image.subarray(offset, offset + bytes)) sum += byte;
  image.writeUInt32BE(~sum >>> 0, offset + field);
}
