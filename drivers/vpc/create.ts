/** New VHD images: fixed ones are their content and a footer, dynamic ones begin with a footer, a header and an empty table.  @qemu vpc_co_create_opts */

import { randomBytes } from "node:crypto";
import type { BlockBackend } from "../../src/block/backend.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { createFilled } from "../../src/block/create.ts";
import type { CreateRequest } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import type { OptionValues } from "../../src/block/options.ts";
import { alignUp, divideRoundUp, MiB, SECTOR_SIZE } from "../../src/block/units.ts";
import { type Geometry, MAX_GEOMETRY, MAX_GEOMETRY_SECTORS, roundedGeometry, sectorsOf } from "./geometry.ts";
import {
  checksumOf,
  DiskType,
  DynamicHeader,
  FOOTER_BYTES,
  FOOTER_COOKIE,
  Footer,
  HEADER_COOKIE,
  MAX_DISK_BYTES,
} from "./layout.ts";

export const createOptions = {
  size: { type: "size", help: "Virtual disk size" },
  subformat: {
    type: "string",
    values: ["dynamic", "fixed"],
    refusal: "Parameter 'subformat' does not accept value '%s'",
    help: "Type of virtual hard disk format. Supported formats are {dynamic (default) | fixed} ",
  },
  force_size: {
    type: "bool",
    help: "Force disk size calculation to use the actual size specified, rather than using the nearest CHS-based calculation",
  },
} as const;

/** Of the blocks of a new image, in bytes. */
const BLOCK_BYTES = 2 * MiB;

/** Where the table of a new image lies: behind footer and header. */
const TABLE_OFFSET = FOOTER_BYTES + DynamicHeader.size;

export async function create(
  co: Coroutine<"none">,
  request: CreateRequest<typeof createOptions>,
): Promise<void> {
  const image = planImage(request.options);
  const write = request.options.subformat === "fixed" ? writeFixed : writeDynamic;
  await createFilled(co, request, (file) => write(file, image));
}

interface NewImage {
  /** Bytes, whole sectors. */
  readonly size: number;
  readonly geometry: Geometry;
  /** "qem2" stands for: the size is meant as it is. */
  readonly creator: "qemu" | "qem2";
}

/** A disk is as long as a geometry that has room for what is wanted, unless the size is forced or too large for any. */
function planImage({ size = 0, force_size: isForced }: OptionValues<typeof createOptions>): NewImage {
  const wanted = divideRoundUp(size, SECTOR_SIZE);
  const geometry = isForced ? MAX_GEOMETRY : roundedGeometry(wanted);
  const sectors = sectorsOf(geometry) === MAX_GEOMETRY_SECTORS ? wanted : sectorsOf(geometry);
  if (sectors * SECTOR_SIZE > MAX_DISK_BYTES)
    throw new BlockError("EFBIG", "Disk size is too large, max size is 2040 GiB");
  return { size: sectors * SECTOR_SIZE, geometry, creator: isForced ? "qem2" : "qemu" };
}

/** When Microsoft's clock for VHDs starts, in seconds since 1970. */
const EPOCH_2000 = 946684800;

function footerOf({ size, geometry, creator }: NewImage, diskType: number): Uint8Array {
  const footer = Footer.write({
    cookie: latin1(FOOTER_COOKIE),
    features: 2,
    version: 0x10000,
    dataOffset: 0,
    timestamp: Math.floor(Date.now() / 1000) - EPOCH_2000,
    creatorApplication: latin1(creator),
    creatorVersion: 0x50003,
    creatorHostOs: latin1("Wi2k"),
    originalSize: size,
    currentSize: size,
    ...geometry,
    diskType,
    checksum: 0,
    uniqueId: uuid(),
    savedState: 0,
    reserved: new Uint8Array(0),
  });
  const { dataOffset } = Footer.offsetOf;
  if (diskType === DiskType.Fixed) footer.fill(0xff, dataOffset, dataOffset + 8);
  else new DataView(footer.buffer).setUint32(dataOffset + 4, FOOTER_BYTES);
  return withChecksum(footer, Footer.offsetOf.checksum);
}

async function writeFixed(file: BlockBackend, image: NewImage): Promise<void> {
  const footer = footerOf(image, DiskType.Fixed);
  await file.truncate(image.size + FOOTER_BYTES);
  await file.write(image.size, footer);
}

/** The footer at the start comes last: without it there is no image. */
async function writeDynamic(file: BlockBackend, image: NewImage): Promise<void> {
  const footer = footerOf(image, DiskType.Dynamic);
  const entries = divideRoundUp(image.size, BLOCK_BYTES);
  const header = DynamicHeader.write({
    cookie: latin1(HEADER_COOKIE),
    dataOffset: 0,
    tableOffset: TABLE_OFFSET,
    headerVersion: 0x10000,
    maxTableEntries: entries,
    blockSize: BLOCK_BYTES,
    checksum: 0,
    parentUniqueId: NOTHING,
    parentTimestamp: 0,
    reserved: 0,
    parentUnicodeName: NOTHING,
    parentLocators: NOTHING,
    reserved2: NOTHING,
  });
  header.fill(0xff, DynamicHeader.offsetOf.dataOffset, DynamicHeader.offsetOf.tableOffset);
  const tableEnd = TABLE_OFFSET + alignUp(entries * 4, SECTOR_SIZE);
  await file.write(tableEnd, footer);
  const unused = new Uint8Array(Math.min(tableEnd - TABLE_OFFSET, 256 * 1024)).fill(0xff);
  for (let at = TABLE_OFFSET; at < tableEnd; at += unused.length)
    await file.write(at, unused.subarray(0, Math.min(unused.length, tableEnd - at)));
  await file.write(FOOTER_BYTES, withChecksum(header, DynamicHeader.offsetOf.checksum));
  await file.write(0, footer);
}

const NOTHING = new Uint8Array(0);

function withChecksum(record: Uint8Array, checksumOffset: number): Uint8Array {
  new DataView(record.buffer, record.byteOffset).setUint32(
    checksumOffset,
    checksumOf(record, checksumOffset),
  );
  return record;
}

function latin1(text: string): Uint8Array {
  return Buffer.from(text, "latin1");
}

/** A random one, of version 4. */
function uuid(): Uint8Array {
  const bytes = randomBytes(16);
  bytes[6] = ((bytes[6] as number) & 0x0f) | 0x40;
  bytes[8] = ((bytes[8] as number) & 0x3f) | 0x80;
  return bytes;
}
