/**
 * New VMDK images, laid out as qemu-img does: header, room for the descriptor, both directories with all their tables, and
 * then grains.  @qemu vmdk_co_create
 */

import { BlockBackend } from "../../src/block/backend.ts";
import { type Coroutine, graphRdlock } from "../../src/block/coroutine.ts";
import { createFile, emptyCreated, fillCreated } from "../../src/block/create.ts";
import type { CreateRequest } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import { combinePath, isAbsolute, protocolPrefix } from "../../src/block/filename.ts";
import { type OpenEnvironment, openNode } from "../../src/block/open.ts";
import { DEFAULT_FLAGS } from "../../src/block/open-flags.ts";
import type { Options, OptionValues } from "../../src/block/options.ts";
import { alignUp, divideRoundUp, GiB, KiB, SECTOR_SIZE } from "../../src/block/units.ts";
import { DESCRIPTOR_BYTES, descriptorText, NO_CID } from "./descriptor.ts";
import { Compression, HeaderFlag, Magic, SparseHeader } from "./layout.ts";
import { currentCid, newCid } from "./parent.ts";
import { stateOf } from "./state.ts";

const SUBFORMATS = [
  "monolithicSparse",
  "monolithicFlat",
  "twoGbMaxExtentSparse",
  "twoGbMaxExtentFlat",
  "streamOptimized",
] as const;
const ADAPTER_TYPES = ["ide", "buslogic", "lsilogic", "legacyESX"] as const;

/** In the order in which qemu-img names them when it says what it makes. */
export const createOptions = {
  size: { type: "size", help: "Virtual disk size" },
  adapter_type: {
    type: "string",
    help: "Virtual adapter type, can be one of ide (default), lsilogic, buslogic or legacyESX",
  },
  backing_file: { type: "string", help: "File name of a base image" },
  backing_fmt: { type: "string", help: "Must be 'vmdk' if present" },
  compat6: { type: "bool", default: "off", help: "VMDK version 6 image" },
  hwversion: { type: "string", default: "undefined", help: "VMDK hardware version" },
  toolsversion: { type: "string", help: "VMware guest tools version" },
  subformat: {
    type: "string",
    help: "VMDK flat extent format, can be one of {monolithicSparse (default) | monolithicFlat | twoGbMaxExtentSparse | twoGbMaxExtentFlat | streamOptimized} ",
  },
  zeroed_grain: { type: "bool", help: "Enable efficient zero writes using the zeroed-grain GTE feature" },
} as const;

export type CreateOptions = typeof createOptions;

/** What an image is to be, once its options are known to go together. */
interface NewImage {
  /** Whole sectors. */
  readonly bytes: number;
  readonly createType: (typeof SUBFORMATS)[number];
  readonly isFlat: boolean;
  readonly isSplit: boolean;
  readonly isCompressed: boolean;
  readonly hasZeroGrains: boolean;
  readonly adapterType: string;
  readonly hwVersion: string;
  readonly toolsVersion: string;
  readonly backingFile: string | undefined;
}

/** Bytes of each of the files that an image is split into. */
const SPLIT_BYTES = 2 * GiB;

export async function create(co: Coroutine<"none">, request: CreateRequest<CreateOptions>): Promise<void> {
  const { filename, protocolOptions, environment } = request;
  if (filename === "") throw new BlockError("EINVAL", "No filename provided");
  const image = checkOptions(request.options);
  const parentCid =
    image.backingFile === undefined
      ? NO_CID
      : await parentCidOf(co, filename, image.backingFile, environment);
  const parts = partsOf(filename, image);
  const text = textOf(filename, image, parts, parentCid);
  const files = [...new Set([...parts.map((part) => part.path), filename])];
  const isEmbedded = parts[0]?.path === filename;
  try {
    if (!isEmbedded) await createFile(co, filename, protocolOptions, environment);
    for (const { path, bytes } of parts) {
      await makeFile(co, path, protocolOptions, environment, (file) =>
        image.isFlat ? file.truncate(bytes) : writeSparse(file, image, bytes),
      );
    }
    await fillCreated(co, filename, environment, (file) => file.write(isEmbedded ? SECTOR_SIZE : 0, text));
  } catch (error) {
    for (const file of files) await emptyCreated(co, file, environment);
    throw error;
  }
}

async function makeFile(
  co: Coroutine<"none">,
  path: string,
  options: Options,
  environment: OpenEnvironment,
  write: (file: BlockBackend) => Promise<void>,
): Promise<void> {
  await createFile(co, path, options, environment);
  await fillCreated(co, path, environment, write);
}

/** The words of each refusal are qemu-img's.  @qemu vmdk_co_create_opts, vmdk_co_do_create */
function checkOptions(options: OptionValues<CreateOptions>): NewImage {
  const { hwversion = "undefined" } = options;
  const { backing_file: backingFile, backing_fmt: backingFormat } = options;
  const { compat6 = false, zeroed_grain: hasZeroGrains = false } = options;
  if (backingFormat !== undefined && backingFormat !== "vmdk")
    throw new BlockError("EINVAL", "backing_file must be a vmdk image");
  const adapterType = choose(ADAPTER_TYPES, options.adapter_type ?? "ide");
  const createType = choose(SUBFORMATS, options.subformat ?? "monolithicSparse");
  const isFlat = createType === "monolithicFlat" || createType === "twoGbMaxExtentFlat";
  if (compat6 && hwversion !== "undefined")
    throw new BlockError("EINVAL", "compat6 cannot be enabled with hwversion set");
  if (isFlat && backingFile !== undefined)
    throw new BlockError("ENOTSUP", "Flat image can't have backing file");
  if (isFlat && hasZeroGrains) throw new BlockError("ENOTSUP", "Flat image can't enable zeroed grain");
  return {
    bytes: alignUp(options.size ?? 0, SECTOR_SIZE),
    createType,
    isFlat,
    isSplit: createType === "twoGbMaxExtentSparse" || createType === "twoGbMaxExtentFlat",
    isCompressed: createType === "streamOptimized",
    hasZeroGrains,
    adapterType,
    hwVersion: hwversion === "undefined" ? (compat6 ? "6" : "4") : hwversion,
    toolsVersion: options.toolsversion ?? "2147483647",
    backingFile,
  };
}

function choose<W extends string>(words: readonly W[], given: string): W {
  const word = words.find((each) => each === given);
  if (word === undefined) throw new BlockError("EINVAL", `invalid parameter value: ${given}`);
  return word;
}

/** The identity that the backing file has now. */
async function parentCidOf(
  co: Coroutine<"none">,
  filename: string,
  backingFile: string,
  environment: OpenEnvironment,
): Promise<number> {
  const isPlain = protocolPrefix(backingFile) !== undefined || isAbsolute(backingFile);
  const node = await openNode(co, {
    filename: isPlain ? backingFile : combinePath(filename, backingFile),
    options: new Map(),
    flags: { ...DEFAULT_FLAGS, noBacking: true },
    environment,
  });
  const backend = await BlockBackend.forNode(co, node);
  try {
    const state = stateOf.get(node);
    if (!state)
      throw new BlockError("EINVAL", `Invalid backing file format: ${node.driver.formatName}. Must be vmdk`);
    const cid = await graphRdlock(co, (reader) => currentCid(reader, state));
    if (cid === undefined) throw new BlockError("EINVAL", "Failed to read parent CID");
    return cid;
  } finally {
    await backend.close();
  }
}

/** One of the files that the content is to lie in. */
interface Part {
  readonly path: string;
  readonly bytes: number;
}

/** @qemu filename_decompose */
function partsOf(filename: string, { bytes, isFlat, isSplit, createType }: NewImage): Part[] {
  const directory = directoryOf(filename);
  const name = filename.slice(directory.length);
  const dot = name.lastIndexOf(".");
  const stem = directory + (dot < 0 ? name : name.slice(0, dot));
  const suffix = dot < 0 ? "" : name.slice(dot);
  const parts: Part[] = [];
  if (!isSplit) {
    if (!isFlat) return [{ path: filename, bytes }];
    return bytes > 0 ? [{ path: `${stem}-flat${suffix}`, bytes }] : [];
  }
  const letter = createType === "twoGbMaxExtentFlat" ? "f" : "s";
  for (let start = 0; start < bytes; start += SPLIT_BYTES) {
    const number = String(parts.length + 1).padStart(3, "0");
    parts.push({
      path: `${stem}-${letter}${number}${suffix}`,
      bytes: Math.min(bytes - start, SPLIT_BYTES),
    });
  }
  return parts;
}

/** With the slash or colon that ends it. */
function directoryOf(filename: string): string {
  const end = Math.max(filename.lastIndexOf("/"), filename.lastIndexOf(":"));
  return filename.slice(0, end + 1);
}

function textOf(filename: string, image: NewImage, parts: readonly Part[], parentCid: number): Uint8Array {
  const directory = directoryOf(filename);
  const heads = image.adapterType === "ide" ? 16 : 255;
  const text = descriptorText({
    cid: newCid(),
    parentCid,
    createType: image.createType,
    parentFilename: image.backingFile,
    extentLines: parts.map(({ path, bytes }) => {
      const name = path.slice(directory.length);
      return image.isFlat
        ? `RW ${bytes / SECTOR_SIZE} FLAT "${name}" 0`
        : `RW ${bytes / SECTOR_SIZE} SPARSE "${name}"`;
    }),
    hwVersion: image.hwVersion,
    cylinders: Math.floor(image.bytes / SECTOR_SIZE / (63 * heads)),
    heads,
    adapterType: image.adapterType,
    toolsVersion: image.toolsVersion,
  });
  // There is so much room before the tables, and no reader looks further.
  const room = parts[0]?.path === filename ? DESCRIPTOR_BYTES : Number.POSITIVE_INFINITY;
  if (text.length > room) throw new BlockError("EINVAL", "VMDK description file too big");
  return text;
}

const GRAIN_SECTORS = 128;
const TABLE_ENTRIES = 512;
const TABLE_SECTORS = (TABLE_ENTRIES * 4) / SECTOR_SIZE;
/** Behind the descriptor. */
const BACKUP_DIRECTORY_SECTOR = 21;

/** @qemu vmdk_create_extent, vmdk_init_extent */
async function writeSparse(
  file: BlockBackend,
  { isCompressed, hasZeroGrains }: NewImage,
  bytes: number,
): Promise<void> {
  const capacity = bytes / SECTOR_SIZE;
  const tables = divideRoundUp(divideRoundUp(capacity, GRAIN_SECTORS), TABLE_ENTRIES);
  const directorySectors = divideRoundUp(tables * 4, SECTOR_SIZE);
  const copySectors = directorySectors + tables * TABLE_SECTORS;
  const directory = BACKUP_DIRECTORY_SECTOR + copySectors;
  const grainOffset = alignUp(directory + copySectors, GRAIN_SECTORS);
  const header = SparseHeader.write({
    magic: Magic.Hosted,
    version: isCompressed ? 3 : hasZeroGrains ? 2 : 1,
    flags:
      HeaderFlag.LineEnds |
      HeaderFlag.BackupDirectory |
      (isCompressed ? HeaderFlag.Compressed | HeaderFlag.Markers : 0) |
      (hasZeroGrains ? HeaderFlag.ZeroGrain : 0),
    capacity,
    grainSize: GRAIN_SECTORS,
    descriptorOffset: 1,
    descriptorSize: 20,
    tableEntries: TABLE_ENTRIES,
    backupDirectoryOffset: BACKUP_DIRECTORY_SECTOR,
    directoryOffset: directory,
    grainOffset: BigInt(grainOffset),
    uncleanShutdown: 0,
    lineEnds: Uint8Array.from([0x0a, 0x20, 0x0d, 0x0a]),
    compression: isCompressed ? Compression.Deflate : Compression.None,
  });
  await file.write(0, header);
  await file.truncate(grainOffset * SECTOR_SIZE);
  for (const start of [BACKUP_DIRECTORY_SECTOR, directory])
    await writeDirectory(file, start, start + directorySectors, tables);
}

const DIRECTORY_PIECE_BYTES = 256 * KiB;

/** A directory of tables that lie behind each other from sector `firstTable` on. */
async function writeDirectory(
  file: BlockBackend,
  sector: number,
  firstTable: number,
  tables: number,
): Promise<void> {
  const bytes = alignUp(tables * 4, SECTOR_SIZE);
  for (let at = 0; at < bytes; at += DIRECTORY_PIECE_BYTES) {
    const view = new DataView(new ArrayBuffer(Math.min(bytes - at, DIRECTORY_PIECE_BYTES)));
    const first = at / 4;
    const entries = Math.min(view.byteLength / 4, tables - first);
    for (let index = 0; index < entries; index++)
      view.setUint32(index * 4, firstTable + (first + index) * TABLE_SECTORS, true);
    await file.write(sector * SECTOR_SIZE + at, new Uint8Array(view.buffer));
  }
}
