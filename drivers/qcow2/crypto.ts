/**
 * Encrypted images: guest data in clusters is encrypted sector by sector, metadata and compressed clusters are not.
 * Source: qcow2.txt, "Data encryption", "Full disk encryption header pointer".
 *
 * With LUKS the sector's number is that of its place in the file, so that two clusters with the same content look
 * different; with the old AES it is the guest's.  @qemu qcow2_co_encrypt, qcow2_co_decrypt
 */

import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import type { AmendRequest, InfoValue } from "../../src/block/driver.ts";
import { assert, BlockError } from "../../src/block/errors.ts";
import { type IoVector, iovFlatten, iovLength, iovSlice, iovWrite } from "../../src/block/iov.ts";
import type { OpeningNode } from "../../src/block/open.ts";
import type { OptionTable } from "../../src/block/options.ts";
import { MiB, SECTOR_SIZE } from "../../src/block/units.ts";
import type { SectorCipher } from "../crypto/sector-cipher.ts";
import { CryptMethod, type CryptoHeaderRecord } from "./layout.ts";
import type { options as runtimeOptions } from "./runtime-options.ts";
import type { Qcow2State } from "./state.ts";

export interface ImageCrypto {
  readonly format: "aes" | "luks";
  /** Undefined while the image is open only to be told about. */
  readonly cipher: SectorCipher | undefined;
  /** As `info` shows it. */
  readonly info: () => InfoValue;
  /** Changes the key slots; undefined: there are none. */
  readonly amend: ((co: Coroutine<"read">, request: AmendRequest<OptionTable>) => Promise<void>) | undefined;
}

/** What the image's header says. */
export interface CryptoFields {
  readonly cryptMethod: number;
  readonly cryptoHeader: CryptoHeaderRecord | undefined;
}

/** What goes through a cipher at once, beside the caller's own buffers. */
const WINDOW_BYTES = MiB;

const FORMATS: Readonly<Record<number, ImageCrypto["format"]>> = {
  [CryptMethod.Aes]: "aes",
  [CryptMethod.Luks]: "luks",
};

/** Finds the key by the user's options. Undefined: the image is not encrypted.  @qemu qcow2_do_open */
export async function openCrypto(
  co: Coroutine<"none">,
  opening: OpeningNode<typeof runtimeOptions>,
  fields: CryptoFields,
  file: BlockChild,
): Promise<ImageCrypto | undefined> {
  const [unknown] = opening.takeOptionsUnder(["encrypt."]).keys();
  const format = FORMATS[fields.cryptMethod];
  checkFormat(opening.options["encrypt.format"], format);
  if (!format) return undefined;
  if (unknown !== undefined) throw invalid(`Parameter '${unknown.slice("encrypt.".length)}' is unexpected`);
  // Most images have no use for it, and node's crypto takes milliseconds to load.
  const { openKeys } = await import("./crypto-open.ts");
  return openKeys(co, opening, format, fields, file);
}

/** Refuses options that mean an image of another kind. */
export function checkFormat(wanted: string | undefined, format: ImageCrypto["format"] | undefined): void {
  if (wanted === undefined || wanted === format) return;
  if (!format) throw invalid(`No encryption in image header, but options specified format '${wanted}'`);
  throw invalid(`Header reported '${format}' encryption format but options specify '${wanted}'`);
}

/** Reads guest data out of its place in the data file. */
export async function readData(
  co: Coroutine<"read">,
  state: Qcow2State,
  guestOffset: number,
  hostOffset: number,
  iov: IoVector,
): Promise<void> {
  const { dataFile, crypto } = state;
  if (!crypto) return dataFile.pread(co, hostOffset, iov);
  const cipher = cipherOf(crypto);
  const bytes = iovLength(iov);
  for (let done = 0; done < bytes; done += WINDOW_BYTES) {
    const part = iovSlice(iov, done, Math.min(done + WINDOW_BYTES, bytes));
    const piece = part instanceof Uint8Array ? part : new Uint8Array(iovLength(part));
    await dataFile.pread(co, hostOffset + done, piece);
    cipher.decrypt(firstSector(crypto, guestOffset + done, hostOffset + done, piece), piece);
    if (piece !== part) iovWrite(part, piece);
  }
}

/** Writes guest data into its place in the data file; the caller's buffers stay as they are. */
export async function writeData(
  co: Coroutine<"read">,
  state: Qcow2State,
  guestOffset: number,
  hostOffset: number,
  iov: IoVector,
): Promise<void> {
  const { dataFile, crypto } = state;
  if (!crypto) return dataFile.pwrite(co, hostOffset, iov);
  const cipher = cipherOf(crypto);
  const bytes = iovLength(iov);
  for (let done = 0; done < bytes; done += WINDOW_BYTES) {
    const piece = iovFlatten(iovSlice(iov, done, Math.min(done + WINDOW_BYTES, bytes))).slice();
    cipher.encrypt(firstSector(crypto, guestOffset + done, hostOffset + done, piece), piece);
    await dataFile.pwrite(co, hostOffset + done, piece);
  }
}

function cipherOf({ cipher }: ImageCrypto): SectorCipher {
  if (!cipher) throw new BlockError("EIO", "The image was opened without its key");
  return cipher;
}

/** The limits of the node see to whole sectors. */
function firstSector(
  { format }: ImageCrypto,
  guestOffset: number,
  hostOffset: number,
  data: Uint8Array,
): number {
  const sector = (format === "luks" ? hostOffset : guestOffset) / SECTOR_SIZE;
  assert(Number.isInteger(sector) && data.length % SECTOR_SIZE === 0, "only whole sectors are encrypted");
  return sector;
}

/** The part "encrypt" of what `info` shows. */
export function cryptoInfo({ crypto }: Qcow2State): { readonly encrypt?: InfoValue } {
  return crypto ? { encrypt: crypto.info() } : {};
}

/** Refuses a change of key slots where there are none. */
export function checkHasKeys({ crypto }: Qcow2State): void {
  if (!crypto) throw invalid("Can't amend encryption options - encryption not present");
  if (!crypto.amend) throw new BlockError("ENOTSUP", "Only LUKS encryption options can be amended");
}

/** Changes key slots by those of the options that begin with "encrypt.".  @qemu qcow2_amend_options */
export async function amendEncryption(
  co: Coroutine<"read">,
  { crypto }: Qcow2State,
  request: AmendRequest<OptionTable>,
): Promise<void> {
  assert(crypto?.amend !== undefined, "amendEncryption comes after checkHasKeys");
  await crypto.amend(co, request);
}

function invalid(message: string): BlockError {
  return new BlockError("EINVAL", message);
}
