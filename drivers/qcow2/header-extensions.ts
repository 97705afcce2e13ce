/** Header extensions: read, checked and sorted into those that we know and those that we only keep. Source: qcow2.txt, "Header extensions" */

import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import type { OpenEnvironment } from "../../src/block/open.ts";
import { isAligned } from "../../src/block/units.ts";
import {
  BitmapsExtension,
  type BitmapsRecord,
  CryptMethod,
  CryptoHeader,
  type CryptoHeaderRecord,
  ExtensionHeader,
  ExtensionType,
  FeatureName,
  MAX_BITMAP_DIRECTORY_BYTES,
  MAX_BITMAPS,
} from "./layout.ts";
import type { UnknownExtension } from "./state.ts";

/** Where extensions may be: within the first cluster. */
export interface ExtensionArea {
  readonly file: BlockChild;
  readonly start: number;
  readonly end: number;
  readonly clusterSize: number;
  readonly cryptMethod: number;
}

export interface Extensions {
  backingFormat: string | undefined;
  dataFileName: string | undefined;
  bitmaps: BitmapsRecord | undefined;
  cryptoHeader: CryptoHeaderRecord | undefined;
  /** There are bitmaps that must not be used: they go with the next header that is written. */
  hasStaleBitmaps: boolean;
  /** The last one found comes first. */
  unknownExtensions: UnknownExtension[];
}

export interface ExtensionContext {
  /** The autoclear bit is set: nobody has written to the image without keeping the bitmaps in step. */
  readonly hasBitmaps: boolean;
  readonly version: number;
  readonly warn: OpenEnvironment["warn"];
}

/** A backing format has at most 15 letters. */
const MAX_FORMAT_BYTES = 15;

/** Bytes that are read at once. */
const WINDOW_BYTES = 4096;

/** @qemu qcow2_read_extensions */
export async function readExtensions(
  co: Coroutine<"read">,
  area: ExtensionArea,
  context: ExtensionContext,
): Promise<Extensions> {
  const found: Extensions = {
    backingFormat: undefined,
    dataFileName: undefined,
    bitmaps: undefined,
    cryptoHeader: undefined,
    hasStaleBitmaps: false,
    unknownExtensions: [],
  };
  for await (const { type, length, read } of walkExtensions(co, area)) {
    switch (type) {
      case ExtensionType.BackingFormat:
        if (length > MAX_FORMAT_BYTES)
          throw invalid(`ERROR: ext_backing_format: len=${length} too large (>=16)`);
        found.backingFormat =
          textOf(await read("ERROR: ext_backing_format: Could not read format name")) || undefined;
        break;
      case ExtensionType.DataFile:
        found.dataFileName = textOf(await read("ERROR: Could not read data file name"));
        break;
      case ExtensionType.FeatureNames:
        break;
      case ExtensionType.CryptoHeader:
        found.cryptoHeader = await readCryptoHeader(length, read, area);
        break;
      case ExtensionType.Bitmaps:
        found.bitmaps = await readBitmaps(length, read, area, context);
        found.hasStaleBitmaps = found.bitmaps === undefined;
        break;
      default:
        found.unknownExtensions.push({
          type,
          data: await read("ERROR: unknown extension: Could not read data"),
        });
    }
  }
  found.unknownExtensions.reverse();
  return found;
}

/**
 * The names of incompatible features, from the image's own table; bits that it has no name for as one number. A
 * broken table is not what the user is to hear of.  @qemu report_unsupported_feature
 */
export async function unsupportedFeatureNames(
  co: Coroutine<"read">,
  area: ExtensionArea,
  mask: bigint,
): Promise<string> {
  let table: Uint8Array = new Uint8Array(0);
  try {
    for await (const { type, read } of walkExtensions(co, area))
      if (type === ExtensionType.FeatureNames)
        table = await read("ERROR: ext_feature_table: Could not read table");
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
  }
  const padded = new Uint8Array(Math.ceil(table.length / FeatureName.size) * FeatureName.size);
  padded.set(table);
  const names: string[] = [];
  let left = mask;
  for (let at = 0; at < padded.length; at += FeatureName.size) {
    const { type, bit, name } = FeatureName.read(padded, at);
    if (name[0] === 0) break;
    const flag = 1n << BigInt(bit);
    if (type !== 0 || (left & flag) === 0n) continue;
    names.push(textOf(name));
    left &= ~flag;
  }
  if (left !== 0n) names.push(`Unknown incompatible feature: ${left.toString(16)}`);
  return names.join(", ");
}

/** Reads an extension's data; `failure` is what is said if that does not go. */
type ReadData = (failure: string) => Promise<Uint8Array>;

/** Every extension up to the end mark. */
async function* walkExtensions(
  co: Coroutine<"read">,
  { file, start, end }: ExtensionArea,
): AsyncGenerator<{ readonly type: number; readonly length: number; readonly read: ReadData }> {
  let window: Uint8Array = new Uint8Array(0);
  let windowStart = start;
  /** `end` is within the first cluster, so what is read here is bounded. */
  const fetch = async (offset: number, bytes: number, failure: string): Promise<Uint8Array> => {
    if (offset < windowStart || offset + bytes > windowStart + window.length) {
      const more = Math.min(Math.max(bytes, WINDOW_BYTES), Math.max(bytes, end - offset));
      window = await readSome(co, file, offset, more, bytes, failure);
      windowStart = offset;
    }
    return window.subarray(offset - windowStart, offset - windowStart + bytes);
  };
  for (let offset = start; offset < end; ) {
    const failure = `qcow2_read_extension: ERROR: pread fail from offset ${offset}`;
    const { type, length } = ExtensionHeader.read(await fetch(offset, ExtensionHeader.size, failure));
    offset += ExtensionHeader.size;
    if (offset > end || length > end - offset) throw invalid("Header extension too large");
    if (type === ExtensionType.End) return;
    const at = offset;
    yield { type, length, read: async (why) => (await fetch(at, length, why)).slice() };
    offset += Math.ceil(length / 8) * 8;
  }
}

/** `wanted` bytes ahead, or at least the `needed` ones: what follows them may be unreadable and of no use. */
async function readSome(
  co: Coroutine<"read">,
  file: BlockChild,
  offset: number,
  wanted: number,
  needed: number,
  failure: string,
): Promise<Uint8Array> {
  try {
    return await file.preadBytes(co, offset, wanted);
  } catch {
    co.checkAborted();
  }
  try {
    return await file.preadBytes(co, offset, needed);
  } catch (error) {
    throw BlockError.wrap(failure, error);
  }
}

async function readCryptoHeader(
  length: number,
  read: ReadData,
  { clusterSize, cryptMethod }: ExtensionArea,
): Promise<CryptoHeaderRecord> {
  if (cryptMethod !== CryptMethod.Luks)
    throw invalid("CRYPTO header extension only expected with LUKS encryption method");
  if (length !== CryptoHeader.size)
    throw invalid(`CRYPTO header extension size ${length}, but expected size ${CryptoHeader.size}`);
  const data = await read("Unable to read CRYPTO header extension");
  const offset = new DataView(data.buffer, data.byteOffset, data.length).getBigUint64(0);
  if (offset % BigInt(clusterSize) !== 0n)
    throw invalid(`Encryption header offset '${offset}' is not a multiple of cluster size '${clusterSize}'`);
  return CryptoHeader.read(data);
}

async function readBitmaps(
  length: number,
  read: ReadData,
  { clusterSize }: ExtensionArea,
  { hasBitmaps, version, warn }: ExtensionContext,
): Promise<BitmapsRecord | undefined> {
  if (length !== BitmapsExtension.size) throw invalid("bitmaps_ext: Invalid extension length");
  if (!hasBitmaps) {
    const why =
      version < 3
        ? "This qcow2 v2 image contains bitmaps, but they may have been modified by a program without persistent bitmap support; so now they must all be considered inconsistent"
        : "a program lacking bitmap support modified this file, so all bitmaps are now considered inconsistent";
    warn(why, "Some clusters may be leaked, run 'qemu-img check -r' on the image file to fix.");
    return undefined;
  }
  const data = await read("bitmaps_ext: Could not read ext header");
  const record = BitmapsExtension.read(data);
  const { nbBitmaps, reserved, directorySize, directoryOffset } = record;
  if (reserved !== 0) throw invalid("bitmaps_ext: Reserved field is not zero");
  if (nbBitmaps > MAX_BITMAPS)
    throw invalid(
      `bitmaps_ext: Image has ${nbBitmaps} bitmaps, exceeding the QEMU supported maximum of ${MAX_BITMAPS}`,
    );
  if (nbBitmaps === 0) throw invalid("found bitmaps extension with zero bitmaps");
  if (!isAligned(directoryOffset, clusterSize)) throw invalid("bitmaps_ext: invalid bitmap directory offset");
  if (directorySize > MAX_BITMAP_DIRECTORY_BYTES) {
    // As a number it would be told with its last digits wrong.
    const exact = new DataView(data.buffer, data.byteOffset).getBigUint64(
      BitmapsExtension.offsetOf.directorySize,
    );
    throw invalid(
      `bitmaps_ext: bitmap directory size (${exact}) exceeds the maximum supported size (${MAX_BITMAP_DIRECTORY_BYTES})`,
    );
  }
  return record;
}

function invalid(message: string): BlockError {
  return new BlockError("EINVAL", message);
}

/** Names end at a zero byte, as C has them. */
export function textOf(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return Buffer.from(bytes.buffer, bytes.byteOffset, end < 0 ? bytes.length : end).toString();
}
