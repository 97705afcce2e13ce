/**
 * The header cluster: header, extensions and the backing file's name, read with every number bounded, and written
 * byte for byte as qemu-img does. Source: qcow2.txt, "Header", "Header extensions", "Feature name table".
 */

import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import type { OpenEnvironment } from "../../src/block/open.ts";
import { divideRoundUp, isAligned } from "../../src/block/units.ts";
import { readExtensions, textOf, unsupportedFeatureNames } from "./header-extensions.ts";
import {
  Autoclear,
  BitmapsExtension,
  type BitmapsRecord,
  CryptMethod,
  CryptoHeader,
  type CryptoHeaderRecord,
  ExtensionHeader,
  ExtensionType,
  FeatureName,
  HeaderAdditional,
  HeaderV2,
  type HeaderV2Record,
  HeaderV3,
  type HeaderV3Record,
  Incompatible,
  MAX_BACKING_NAME_BYTES,
  MAX_CLUSTER_BITS,
  MAX_L1_BYTES,
  MAX_REFCOUNT_TABLE_BYTES,
  MAX_SNAPSHOTS,
  MIN_CLUSTER_BITS,
  QCOW2_MAGIC,
} from "./layout.ts";
import type { CompressionType, Qcow2State, UnknownExtension } from "./state.ts";

/** All that the header cluster says. */
export interface ParsedHeader {
  /** 2 or 3. */
  readonly version: number;
  readonly clusterBits: number;
  /** Virtual size in bytes; not rounded to sectors. */
  readonly size: number;
  readonly refcountBits: number;
  readonly compressionType: CompressionType;
  readonly incompatibleFeatures: bigint;
  readonly compatibleFeatures: bigint;
  readonly autoclearFeatures: bigint;

  readonly l1TableOffset: number;
  /** Entries; at least as many as `size` needs. */
  readonly l1Size: number;
  readonly refcountTableOffset: number;
  readonly refcountTableClusters: number;
  readonly snapshotsOffset: number;
  readonly nbSnapshots: number;

  readonly headerLength: number;
  /** Bytes of the header behind what we know. */
  readonly unknownHeader: Uint8Array;
  /** In the order in which they are to be written: the reverse of how they were found, as in QEMU. */
  readonly unknownExtensions: readonly UnknownExtension[];
  readonly backingFile: string | undefined;
  readonly backingFormat: string | undefined;
  readonly dataFileName: string | undefined;
  /** `CryptMethod`. */
  readonly cryptMethod: number;
  readonly cryptoHeader: CryptoHeaderRecord | undefined;
  readonly bitmaps: BitmapsRecord | undefined;
  readonly hasStaleBitmaps: boolean;
}

export interface ParseOptions {
  /** The image is to be written: a corrupt one is refused. */
  readonly writable: boolean;
  /** It is to be checked: what only the check looks at is not looked at here. */
  readonly check: boolean;
  readonly warn: OpenEnvironment["warn"];
}

/** Known bytes of a header of version 3. */
const HEADER_BYTES = HeaderV2.size + HeaderV3.size + HeaderAdditional.size;

const KNOWN_INCOMPATIBLE = Object.values(Incompatible).reduce((mask, bit) => mask | bit, 0n);

/** Reads and checks the header. The words of each refusal are qemu-img's.  @qemu qcow2_do_open */
export async function parseHeader(
  co: Coroutine<"read">,
  file: BlockChild,
  { writable, check, warn }: ParseOptions,
): Promise<ParsedHeader> {
  // What lies behind the end of a short file reads as zeroes.
  const head = await readBytes(co, file, 0, HEADER_BYTES, "Could not read qcow2 header");
  const v2 = HeaderV2.read(head);
  checkStart(v2);
  const clusterSize = 2 ** v2.clusterBits;
  const v3 = v2.version === 3 ? HeaderV3.read(head, HeaderV2.size) : V2_FEATURES;
  if (v2.version === 3 && v3.headerLength < HeaderV2.size + HeaderV3.size)
    throw invalid("qcow2 header too short");
  if (v3.headerLength > clusterSize) throw invalid("qcow2 header exceeds cluster size");
  if (v2.backingFileOffset > clusterSize) throw invalid("Invalid backing file offset");
  const compressionType = compressionTypeOf(head, v3);

  const extensionsEnd = v2.backingFileOffset || clusterSize;
  const area = { file, start: v3.headerLength, end: extensionsEnd, clusterSize, cryptMethod: v2.cryptMethod };
  await checkFeatures(co, v3, writable && !check, v2.clusterBits, (mask) =>
    unsupportedFeatureNames(co, area, mask),
  );
  checkTables(v2, v3, clusterSize, check);
  checkEncryption(v2.cryptMethod);

  const extensions = await readExtensions(co, area, {
    hasBitmaps: (v3.autoclearFeatures & 1n) !== 0n,
    version: v2.version,
    warn,
  });
  const { version, clusterBits, size } = v2;
  const { headerLength } = v3;
  return {
    ...extensions,
    version,
    clusterBits,
    size,
    compressionType,
    cryptMethod: v2.cryptMethod,
    headerLength,
    refcountBits: 2 ** v3.refcountOrder,
    incompatibleFeatures: v3.incompatibleFeatures,
    compatibleFeatures: v3.compatibleFeatures,
    autoclearFeatures: v3.autoclearFeatures,
    l1TableOffset: v2.l1TableOffset,
    l1Size: v2.l1Size,
    refcountTableOffset: v2.refcountTableOffset,
    refcountTableClusters: v2.refcountTableClusters,
    snapshotsOffset: v2.snapshotsOffset,
    nbSnapshots: v2.nbSnapshots,
    unknownHeader: await readUnknownHeader(co, file, headerLength),
    backingFile: await readBackingName(co, file, v2, clusterSize),
  };
}

/** What a later version of the format has put behind the fields that are known. */
async function readUnknownHeader(
  co: Coroutine<"read">,
  file: BlockChild,
  headerLength: number,
): Promise<Uint8Array> {
  const bytes = headerLength - HEADER_BYTES;
  if (bytes <= 0) return new Uint8Array(0);
  return readBytes(co, file, HEADER_BYTES, bytes, "Could not read unknown qcow2 header fields");
}

/** What decides how the rest is read. */
function checkStart(v2: HeaderV2Record): void {
  if (v2.magic !== QCOW2_MAGIC) throw invalid("Image is not in qcow2 format");
  if (v2.version !== 2 && v2.version !== 3)
    throw new BlockError("ENOTSUP", `Unsupported qcow2 version ${v2.version}`);
  if (v2.clusterBits < MIN_CLUSTER_BITS || v2.clusterBits > MAX_CLUSTER_BITS)
    throw invalid(`Unsupported cluster size: 2^${v2.clusterBits}`);
}

async function readBytes(
  co: Coroutine<"read">,
  file: BlockChild,
  offset: number,
  bytes: number,
  failure: string,
): Promise<Uint8Array> {
  try {
    return await file.preadBytes(co, offset, bytes);
  } catch (error) {
    throw BlockError.wrap(failure, error);
  }
}

/** What version 2 has no fields for. */
const V2_FEATURES: HeaderV3Record = {
  incompatibleFeatures: 0n,
  compatibleFeatures: 0n,
  autoclearFeatures: 0n,
  refcountOrder: 4,
  headerLength: HeaderV2.size,
};

function invalid(message: string): BlockError {
  return new BlockError("EINVAL", message);
}

/** @qemu validate_compression_type */
function compressionTypeOf(head: Uint8Array, v3: HeaderV3Record): CompressionType {
  const hasField = v3.headerLength > HeaderV2.size + HeaderV3.size;
  const { compressionType } = HeaderAdditional.read(head, HeaderV2.size + HeaderV3.size);
  const type = hasField ? compressionType : 0;
  if (type > 1) throw new BlockError("ENOTSUP", `qcow2: unknown compression type: ${type}`);
  const hasBit = (v3.incompatibleFeatures & Incompatible.CompressionType) !== 0n;
  if ((type !== 0) !== hasBit)
    throw invalid(`qcow2: Compression type incompatible feature bit must ${hasBit ? "not " : ""}be set`);
  return type === 1 ? "zstd" : "zlib";
}

async function checkFeatures(
  co: Coroutine<"read">,
  v3: HeaderV3Record,
  writable: boolean,
  clusterBits: number,
  namesOf: (mask: bigint) => Promise<string>,
): Promise<void> {
  const unknown = v3.incompatibleFeatures & ~KNOWN_INCOMPATIBLE;
  if (unknown !== 0n)
    throw new BlockError("ENOTSUP", `Unsupported qcow2 feature(s): ${await namesOf(unknown)}`);
  if ((v3.incompatibleFeatures & Incompatible.Corrupt) !== 0n && writable)
    throw new BlockError("EACCES", "qcow2: Image is corrupt; cannot be opened read/write");
  const subclusterSize = 2 ** clusterBits / 32;
  if ((v3.incompatibleFeatures & Incompatible.ExtendedL2) !== 0n && subclusterSize < 512)
    throw invalid(`Unsupported subcluster size: ${subclusterSize}`);
  if (v3.refcountOrder > 6) throw invalid("Reference count entry width too large; may not exceed 64 bits");
  co.checkAborted();
}

function checkTables(v2: HeaderV2Record, v3: HeaderV3Record, clusterSize: number, check: boolean): void {
  if (v2.refcountTableClusters === 0 && !check)
    throw invalid("Image does not contain a reference count table");
  const refcountTableBytes = v2.refcountTableClusters * clusterSize;
  if (refcountTableBytes > MAX_REFCOUNT_TABLE_BYTES)
    throw new BlockError("EFBIG", "Reference count table too large");
  checkOffset("Reference count table", v2.refcountTableOffset, clusterSize);
  if (!check) {
    if (v2.nbSnapshots > MAX_SNAPSHOTS) throw new BlockError("EFBIG", "Snapshot table too large");
    checkOffset("Snapshot table", v2.snapshotsOffset, clusterSize);
  }
  if (v2.l1Size * 8 > MAX_L1_BYTES) throw new BlockError("EFBIG", "Active L1 table too large");
  checkOffset("Active L1 table", v2.l1TableOffset, clusterSize);
  const entries = l1EntriesFor(
    v2.size,
    clusterSize,
    (v3.incompatibleFeatures & Incompatible.ExtendedL2) !== 0n,
  );
  // In 64 bits, as qemu has it, the number of the very largest sizes wraps; no node is that long.
  if (v2.size > 2 ** 64 - clusterSize)
    throw new BlockError("EFBIG", "Could not refresh total sector count: File too large");
  if (entries > 2 ** 31 - 1) throw new BlockError("EFBIG", "Image is too big");
  if (v2.l1Size < entries) throw invalid("L1 table is too small");
}

/** L1 entries that a virtual size takes.  @qemu size_to_l1 */
export function l1EntriesFor(sizeBytes: number, clusterSize: number, extendedL2: boolean): number {
  return divideRoundUp(sizeBytes, clusterSize * (clusterSize / (extendedL2 ? 16 : 8)));
}

/** Over 2^53 a number is not exact, and no table can be there. */
function checkOffset(what: string, offset: number, clusterSize: number): void {
  if (!Number.isSafeInteger(offset) || !isAligned(offset, clusterSize))
    throw invalid(`${what} offset invalid`);
}

function checkEncryption(cryptMethod: number): void {
  if (cryptMethod > CryptMethod.Luks) throw invalid(`Unsupported encryption method ${cryptMethod | 0}`);
}

async function readBackingName(
  co: Coroutine<"read">,
  file: BlockChild,
  { backingFileOffset, backingFileSize }: HeaderV2Record,
  clusterSize: number,
): Promise<string | undefined> {
  if (backingFileOffset === 0) return undefined;
  if (backingFileSize > Math.min(MAX_BACKING_NAME_BYTES, clusterSize - backingFileOffset))
    throw invalid("Backing file name too long");
  const failure = "Could not read backing file name";
  const name = await readBytes(co, file, backingFileOffset, backingFileSize, failure);
  return textOf(name) || undefined;
}

/**
 * The header cluster for what `header` says, `2 ** clusterBits` bytes. `headerLength` is found anew.
 * Throws ENOSPC if names and extensions don't go into the cluster.  @qemu qcow2_update_header
 */
export function serializeHeader(header: Omit<ParsedHeader, "headerLength" | "hasStaleBitmaps">): Uint8Array {
  const writer = new ClusterWriter(2 ** header.clusterBits);
  const isV3 = header.version >= 3;
  const headerLength = isV3 ? HEADER_BYTES + header.unknownHeader.length : HeaderV2.size;
  writer.skip(isV3 ? HEADER_BYTES : HeaderV2.size);
  if (isV3) writer.append(header.unknownHeader);
  if (header.backingFormat) writer.extension(ExtensionType.BackingFormat, Buffer.from(header.backingFormat));
  if (header.dataFileName) writer.extension(ExtensionType.DataFile, Buffer.from(header.dataFileName));
  if (header.cryptoHeader)
    writer.extension(ExtensionType.CryptoHeader, CryptoHeader.write(header.cryptoHeader));
  // As qemu-img: small clusters must have room for the name of the backing file.
  if (isV3 && header.clusterBits > 12) writer.extension(ExtensionType.FeatureNames, featureNameTable());
  if (header.bitmaps) writer.extension(ExtensionType.Bitmaps, BitmapsExtension.write(header.bitmaps));
  for (const { type, data } of header.unknownExtensions) writer.extension(type, data);
  writer.extension(ExtensionType.End, new Uint8Array(0));

  const backingName = Buffer.from(header.backingFile ?? "");
  const backingFileOffset = backingName.length > 0 ? writer.at : 0;
  writer.append(backingName);

  HeaderV2.write(
    {
      magic: QCOW2_MAGIC,
      version: header.version,
      clusterBits: header.clusterBits,
      size: header.size,
      backingFileOffset,
      backingFileSize: backingName.length,
      cryptMethod: header.cryptMethod,
      l1Size: header.l1Size,
      l1TableOffset: header.l1TableOffset,
      refcountTableOffset: header.refcountTableOffset,
      refcountTableClusters: header.refcountTableClusters,
      nbSnapshots: header.nbSnapshots,
      snapshotsOffset: header.snapshotsOffset,
    },
    writer.buffer,
  );
  if (!isV3) return writer.buffer;
  const { incompatibleFeatures, compatibleFeatures, autoclearFeatures } = header;
  const refcountOrder = Math.log2(header.refcountBits);
  HeaderV3.write(
    { incompatibleFeatures, compatibleFeatures, autoclearFeatures, refcountOrder, headerLength },
    writer.buffer,
    HeaderV2.size,
  );
  const compressionType = header.compressionType === "zstd" ? 1 : 0;
  HeaderAdditional.write(
    { compressionType, padding: new Uint8Array(7) },
    writer.buffer,
    HeaderV2.size + HeaderV3.size,
  );
  return writer.buffer;
}

/** Fills a cluster from its start. */
class ClusterWriter {
  readonly buffer: Uint8Array;
  at = 0;

  constructor(clusterSize: number) {
    this.buffer = new Uint8Array(clusterSize);
  }

  skip(bytes: number): void {
    if (bytes > this.buffer.length - this.at) throw new BlockError("ENOSPC");
    this.at += bytes;
  }

  append(data: Uint8Array): void {
    const at = this.at;
    this.skip(data.length);
    this.buffer.set(data, at);
  }

  extension(type: number, data: Uint8Array): void {
    this.append(ExtensionHeader.write({ type, length: data.length }));
    this.append(data);
    this.skip(-data.length & 7);
  }
}

/** The names of all features that QEMU 7.2 knows, for programs that don't know them. */
const FEATURE_NAMES: readonly (readonly [type: number, bit: number, name: string])[] = [
  [0, 0, "dirty bit"],
  [0, 1, "corrupt bit"],
  [0, 2, "external data file"],
  [0, 3, "compression type"],
  [0, 4, "extended L2 entries"],
  [1, 0, "lazy refcounts"],
  [2, 0, "bitmaps"],
  [2, 1, "raw external data"],
];

function featureNameTable(): Uint8Array {
  return Buffer.concat(
    FEATURE_NAMES.map(([type, bit, name]) => FeatureName.write({ type, bit, name: Buffer.from(name) })),
  );
}

/** Writes the header cluster anew from the state: one write, so that it is there as a whole or not at all. */
export async function updateHeader(co: Coroutine<"read">, state: Qcow2State): Promise<void> {
  const { node } = state;
  const cluster = serializeHeader({
    ...state,
    nbSnapshots: state.unreadSnapshots ?? state.snapshots.length,
    backingFile: node.backingFilename,
    backingFormat: node.backingFormat,
  });
  await state.file.pwrite(co, 0, cluster);
}

/** What the image says of its backing file; the file that is open as such stays.  @qemu qcow2_change_backing_file */
export async function changeBackingFile(
  co: Coroutine<"read">,
  state: Qcow2State,
  backingFile: string | undefined,
  backingFormat: string | undefined,
): Promise<void> {
  const { node } = state;
  if (backingFile && (state.autoclearFeatures & Autoclear.DataFileRaw) !== 0n) throw new BlockError("EINVAL");
  if (Buffer.byteLength(backingFile ?? "") > MAX_BACKING_NAME_BYTES) throw new BlockError("EINVAL");
  const before = [node.backingFilename, node.backingFormat] as const;
  node.backingFilename = backingFile || undefined;
  node.backingFormat = backingFormat || undefined;
  try {
    await updateHeader(co, state);
  } catch (error) {
    [node.backingFilename, node.backingFormat] = before;
    throw error;
  }
}
