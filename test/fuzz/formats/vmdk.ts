/** VMDK: sparse extents with their descriptor inside, and descriptors alone. Source: VMware, Virtual Disk Format 1.1. */

import fs from "node:fs";
import { CowdHeader, SparseHeader } from "../../../drivers/vmdk/layout.ts";
import { type Base, type FuzzFormat, type Region, recordRegions, type Workshop } from "../format.ts";
import { makeBoth } from "./made.ts";

const SECTOR = 512;
const MAX_TABLES = 3;

export const vmdk: FuzzFormat = {
  formatName: "vmdk",
  writable: true,

  async bases(workshop) {
    return [
      ...(await makeBoth(workshop, "vmdk", [
        { name: "sparse", size: 2 ** 20 },
        { name: "zeroed grains", size: 2 ** 20, options: { zeroed_grain: true } },
      ])),
      ...streams(workshop),
      ...descriptors(workshop),
    ];
  },

  regions(image) {
    const magic = image.toString("latin1", 0, 4);
    if (magic === "KDMV") return sparseRegions(image, 0);
    if (magic === "COWD") return cowdRegions(image);
    return [{ name: "descriptor", offset: 0, width: "text", count: image.length }];
  },
};

/** Only qemu-img makes them. */
function streams(workshop: Workshop): Base[] {
  const source = workshop.path("source.raw");
  fs.writeFileSync(source, Buffer.alloc(300_000, "some text "));
  const filename = workshop.path("stream.vmdk");
  const args = ["convert", "-O", "vmdk", "-o", "subformat=streamOptimized", source, filename];
  return workshop.tool("qemu-img", ...args) ? [{ name: "stream", content: fs.readFileSync(filename) }] : [];
}

/** Text that names other files. */
function descriptors(workshop: Workshop): Base[] {
  const texts = ["monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"].flatMap((subformat) => {
    const filename = workshop.path(`${subformat}.vmdk`);
    if (
      !workshop.tool("qemu-img", "create", "-q", "-f", "vmdk", "-o", `subformat=${subformat}`, filename, "1M")
    )
      return [];
    return [{ name: subformat, content: fs.readFileSync(filename) }];
  });
  const plain = [
    "# Disk DescriptorFile",
    "version=1",
    "CID=12345678",
    "parentCID=ffffffff",
    'createType="monolithicFlat"',
    'RW 2048 FLAT "disk-flat.vmdk" 0',
    "RW 2048 ZERO",
    'RW 2048 SPARSE "disk-s001.vmdk"',
    'parentFileNameHint="parent.vmdk"',
    'ddb.geometry.cylinders = "2"',
    "",
  ].join("\n");
  return [...texts, { name: "descriptor", content: Buffer.from(plain) }];
}

function sparseRegions(image: Buffer, offset: number): Region[] {
  const header = SparseHeader.read(image, offset);
  const extra = { littleEndian: true };
  const found: Region[] = recordRegions("header", SparseHeader, offset, extra).map((region) =>
    region.name.endsWith("Offset") ? { ...region, unit: SECTOR } : region,
  );
  found.push({
    name: "descriptor",
    offset: header.descriptorOffset * SECTOR,
    width: "text",
    count: Math.min(header.descriptorSize * SECTOR, 1500),
  });
  const isAtEnd = header.directoryOffset >= 2 ** 60;
  if (isAtEnd && offset === 0) found.push(...sparseRegions(image, image.length - 2 * SECTOR));
  for (const place of [header.directoryOffset, header.backupDirectoryOffset]) {
    const at = place * SECTOR;
    if (place === 0 || at + 4 > image.length) continue;
    found.push({ name: "directory", offset: at, width: 4, count: 8, ...extra, unit: SECTOR });
    for (let index = 0; index < MAX_TABLES && at + index * 4 + 4 <= image.length; index++) {
      const table = image.readUInt32LE(at + index * 4) * SECTOR;
      if (table > 0)
        found.push({ name: "grain table", offset: table, width: 4, count: 512, ...extra, unit: SECTOR });
      if (table > 0)
        found.push({
          name: "grain table's start",
          offset: table,
          width: 4,
          count: 4,
          ...extra,
          unit: SECTOR,
        });
    }
  }
  const grain = Number(header.grainOffset) * SECTOR;
  found.push({ name: "marker", offset: grain, width: 4, count: 4, ...extra });
  return found;
}

function cowdRegions(image: Buffer): Region[] {
  const { directoryOffset } = CowdHeader.read(image);
  return [
    ...recordRegions("header", CowdHeader, 0, { littleEndian: true }),
    {
      name: "directory",
      offset: directoryOffset * SECTOR,
      width: 4,
      count: 64,
      littleEndian: true,
      unit: SECTOR,
    },
  ];
}
