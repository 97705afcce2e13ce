/** What can be asked of a new qcow2 image, and whether it goes together. The words of each refusal are qemu-img's.  @qemu qcow2_create_opts */

import { findDriver, type Prealloc } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import type { OptionValues } from "../../src/block/options.ts";
import { alignUp, isPowerOfTwo, SECTOR_SIZE } from "../../src/block/units.ts";
import { MAX_BACKING_NAME_BYTES, MAX_CLUSTER_BITS, MIN_CLUSTER_BITS } from "./layout.ts";
import type { CompressionType } from "./state.ts";

/** In the order in which qemu-img names them when it says what it makes. */
export const createOptions = {
  encryption: {
    type: "bool",
    help: "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
  },
  "encrypt.format": { type: "string", help: "Encrypt the image, format choices: 'aes', 'luks'" },
  "encrypt.key-secret": { type: "string", help: "ID of secret providing qcow AES key or LUKS passphrase" },
  "encrypt.cipher-alg": { type: "string", help: "Name of encryption cipher algorithm" },
  "encrypt.cipher-mode": { type: "string", help: "Name of encryption cipher mode" },
  "encrypt.ivgen-alg": { type: "string", help: "Name of IV generator algorithm" },
  "encrypt.ivgen-hash-alg": { type: "string", help: "Name of IV generator hash algorithm" },
  "encrypt.hash-alg": { type: "string", help: "Name of encryption hash algorithm" },
  "encrypt.iter-time": { type: "number", help: "Time to spend in PBKDF in milliseconds" },
  cluster_size: { type: "size", default: "65536", help: "qcow2 cluster size" },
  extended_l2: { type: "bool", default: "off", help: "Extended L2 tables" },
  preallocation: {
    type: "string",
    values: ["off", "metadata", "falloc", "full"],
    refusal: "Parameter 'preallocation' does not accept value '%s'",
    help: "Preallocation mode (allowed values: off, metadata, falloc, full)",
  },
  compression_type: {
    type: "string",
    default: "zlib",
    help: "Compression method used for image cluster compression",
  },
  size: { type: "size", help: "Virtual disk size" },
  compat: { type: "string", help: "Compatibility level (v2 [0.10] or v3 [1.1])" },
  backing_file: { type: "string", help: "File name of a base image" },
  backing_fmt: { type: "string", help: "Image format of the base image" },
  data_file: { type: "string", help: "File name of an external data file" },
  data_file_raw: { type: "bool", help: "The external data file must stay valid as a raw image" },
  lazy_refcounts: { type: "bool", default: "off", help: "Postpone refcount updates" },
  refcount_bits: { type: "number", default: "16", help: "Width of a reference count entry in bits" },
} as const;

export type CreateOptions = typeof createOptions;

/** In the order in which amend looks at them. */
export const amendOptions = {
  "encrypt.state": { type: "string", help: "Select new state of affected keyslots (active/inactive)" },
  "encrypt.keyslot": { type: "number", help: "Select a single keyslot to modify explicitly" },
  "encrypt.old-secret": { type: "string", help: "Select all keyslots that match this password" },
  "encrypt.new-secret": {
    type: "string",
    help: "New secret to set in the matching keyslots. Empty string to erase",
  },
  "encrypt.iter-time": createOptions["encrypt.iter-time"],
  size: createOptions.size,
  compat: createOptions.compat,
  backing_file: createOptions.backing_file,
  backing_fmt: createOptions.backing_fmt,
  data_file: createOptions.data_file,
  data_file_raw: createOptions.data_file_raw,
  lazy_refcounts: createOptions.lazy_refcounts,
  refcount_bits: createOptions.refcount_bits,
} as const;

/** Formats that QEMU can open and bdrv can't: an overlay may name them all the same.  @qemu BlockdevDriver */
const OTHER_FORMATS = (
  "blkreplay copy-before-write ftp ftps gluster host_cdrom http https iscsi nbd nfs nvme rbd replication " +
  "snapshot-access ssh vvfat"
).split(" ");

/** What decides how large tables are. */
export interface Geometry {
  readonly version: 2 | 3;
  readonly clusterBits: number;
  readonly clusterSize: number;
  readonly refcountBits: number;
  readonly extendedL2: boolean;
}

/** What the options ask for, checked. */
export interface NewImage extends Geometry {
  /** Bytes, a multiple of 512. */
  readonly size: number;
  readonly lazyRefcounts: boolean;
  readonly compressionType: CompressionType;
  readonly preallocation: Prealloc;
  readonly backingFile: string | undefined;
  readonly backingFormat: string | undefined;
  readonly dataFile: string | undefined;
  readonly dataFileRaw: boolean;
}

const NEEDS_V3 = "with compatibility level 1.1 and above (use version=v3 or greater)";

export const VERSIONS: Readonly<Record<string, 2 | 3>> = { "0.10": 2, v2: 2, "1.1": 3, v3: 3 };

/** Extended L2 entries have 32 subclusters of at least 512 bytes. */
const MIN_EXTENDED_CLUSTER_BYTES = 16384;

export function checkCreateOptions(options: OptionValues<CreateOptions>): NewImage {
  const compat = options.compat ?? "v3";
  const version = VERSIONS[compat];
  if (!version) throw invalid(`Parameter 'version' does not accept value '${compat}'`);
  const compression = options.compression_type ?? "zlib";
  if (compression !== "zlib" && compression !== "zstd")
    throw invalid(`Parameter 'compression-type' does not accept value '${compression}'`);
  const { preallocation = "off", backing_fmt: backingFormat } = options;
  if (backingFormat !== undefined && !findDriver(backingFormat) && !OTHER_FORMATS.includes(backingFormat))
    throw invalid(`Parameter 'backing-fmt' does not accept value '${backingFormat}'`);
  if (options.extended_l2 && version < 3) throw invalid(`Extended L2 entries are only supported ${NEEDS_V3}`);
  const image: NewImage = {
    version,
    ...clustersOf(options),
    refcountBits: options.refcount_bits ?? 16,
    size: alignUp(options.size ?? 0, SECTOR_SIZE),
    lazyRefcounts: options.lazy_refcounts ?? false,
    compressionType: compression,
    preallocation,
    backingFile: options.backing_file,
    backingFormat,
    dataFile: options.data_file,
    dataFileRaw: options.data_file_raw ?? false,
  };
  checkImage(image);
  return image;
}

/** `remedy`: how the user is told to ask for version 3. */
export function geometryOf(options: OptionValues<CreateOptions>, version: 2 | 3, remedy: string): Geometry {
  const geometry = { version, ...clustersOf(options), refcountBits: options.refcount_bits ?? 16 };
  checkRefcounts(geometry, remedy);
  return geometry;
}

function clustersOf(
  options: OptionValues<CreateOptions>,
): Pick<Geometry, "clusterBits" | "clusterSize" | "extendedL2"> {
  const { cluster_size: clusterSize = 65536, extended_l2: extendedL2 = false } = options;
  const clusterBits = Math.log2(clusterSize);
  if (!isPowerOfTwo(clusterSize) || clusterBits < MIN_CLUSTER_BITS || clusterBits > MAX_CLUSTER_BITS)
    throw invalid("Cluster size must be a power of two between 512 and 2048k");
  if (extendedL2 && clusterSize < MIN_EXTENDED_CLUSTER_BYTES)
    throw invalid(
      `Extended L2 entries are only supported with cluster sizes of at least ${MIN_EXTENDED_CLUSTER_BYTES} bytes`,
    );
  return { clusterBits, clusterSize, extendedL2 };
}

function checkRefcounts({ version, refcountBits }: Geometry, remedy: string): void {
  if (!isPowerOfTwo(refcountBits) || refcountBits > 64)
    throw invalid("Refcount width must be a power of two and may not exceed 64 bits");
  if (refcountBits !== 16 && version < 3)
    throw invalid(
      `Different refcount widths than 16 bits require compatibility level 1.1 or above (use ${remedy} or greater)`,
    );
}

export type EncryptionFormat = "aes" | "luks";

/** Undefined: no encryption. Refuses what does not go together, in the words of QEMU's option parser. */
export function checkEncryption(options: OptionValues<CreateOptions>): EncryptionFormat | undefined {
  if (options.encryption && options["encrypt.format"] !== undefined)
    throw invalid("'encrypt.format' and its alias 'encryption' can't be used at the same time");
  const format = options.encryption ? "aes" : options["encrypt.format"];
  const others = Object.keys(options).filter((key) => key.startsWith("encrypt.") && key !== "encrypt.format");
  if (format === undefined) {
    if (others.length > 0) throw invalid("Parameter 'encrypt.format' is missing");
    return undefined;
  }
  if (format !== "aes" && format !== "luks")
    throw invalid(`Parameter 'format' does not accept value '${format}'`);
  const surplus = others.find((key) => key !== "encrypt.key-secret");
  if (format === "aes" && surplus !== undefined) throw invalid(`Parameter '${surplus}' is unexpected`);
  return format;
}

/** What does not go together, in the order in which qemu-img finds it. */
function checkImage(image: NewImage): void {
  const { version, backingFile, backingFormat, dataFile, dataFileRaw } = image;
  if (image.preallocation !== "off" && backingFile !== undefined && !image.extendedL2)
    throw invalid("Backing file and preallocation can only be used at the same time if extended_l2 is on");
  if (backingFormat !== undefined && backingFile === undefined)
    throw invalid("Backing format cannot be used without backing file");
  if (image.lazyRefcounts && version < 3) throw invalid(`Lazy refcounts only supported ${NEEDS_V3}`);
  checkRefcounts(image, "version=v3");
  if (dataFileRaw && dataFile === undefined) throw invalid("data-file-raw requires data-file");
  if (dataFileRaw && backingFile !== undefined)
    throw invalid("Backing file and data-file-raw cannot be used at the same time");
  if (dataFile !== undefined && version < 3)
    throw invalid(`External data files are only supported ${NEEDS_V3}`);
  if (image.compressionType !== "zlib" && version < 3)
    throw invalid(`Non-zlib compression type is only supported ${NEEDS_V3}`);
  if (Buffer.byteLength(backingFile ?? "") > MAX_BACKING_NAME_BYTES)
    throw BlockError.wrap(
      `Could not assign backing file '${backingFile}'${backingFormat === undefined ? "" : ` with format '${backingFormat}'`}`,
      new BlockError("EINVAL"),
    );
}

function invalid(message: string): BlockError {
  return new BlockError("EINVAL", message);
}
