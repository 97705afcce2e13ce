/**
 * Encrypted images: guest data in clusters is encrypted sector by sector, metadata and compressed clusters are not.
 * Source: qcow2.txt, "Data encryption", "Full disk encryption header pointer".
 *
 * With LUKS the sector's number is that of its place in the file, so that two clusters with the same content look
 * different; with the old AES it is the guest's.  @qemu qcow2_co_encrypt, qcow2_co_decrypt
 */

import type { BlockChild } from "../../src/block/child.ts";
import { type Coroutine, graphRdlock } from "../../src/block/coroutine.ts";
import type { AmendRequest, InfoValue } from "../../src/block/driver.ts";
import { assert, BlockError } from "../../src/block/errors.ts";
import { type IoVector, iovFlatten, iovLength, iovSlice, iovWrite } from "../../src/block/iov.ts";
import type { OpeningNode } from "../../src/block/open.ts";
import { type OptionTable, takeOptions } from "../../src/block/options.ts";
import { MiB, SECTOR_SIZE } from "../../src/block/units.ts";
import { cipherByName } from "../crypto/algorithms.ts";
import { type HeaderArea, type LuksVolume, luksInfo, openLuks } from "../crypto/luks.ts";
import { amendLuks, luksAmendOptions } from "../crypto/luks-amend.ts";
import { requirePassphrase } from "../crypto/secrets.ts";
import { type SectorCipher, sectorCipher } from "../crypto/sector-cipher.ts";
import { CryptMethod, type CryptoHeaderRecord } from "./layout.ts";
import type { options as runtimeOptions } from "./runtime-options.ts";
import type { Qcow2State } from "./state.ts";

export interface ImageCrypto {
  readonly format: "aes" | "luks";
  /** Undefined while the image is open only to be told about. */
  readonly cipher: SectorCipher | undefined;
  readonly luks: { readonly volume: LuksVolume; readonly area: HeaderArea } | undefined;
}

/** What the image's header says. */
interface CryptoFields {
  readonly cryptMethod: number;
  readonly cryptoHeader: CryptoHeaderRecord | undefined;
}

/** The old AES takes so much of the passphrase, and zeroes where it is shorter. */
const AES_KEY_BYTES = 16;

/** What goes through a cipher at once, beside the caller's own buffers. */
const WINDOW_BYTES = MiB;

/** Finds the key by the user's options. Undefined: the image is not encrypted.  @qemu qcow2_do_open */
export async function openCrypto(
  co: Coroutine<"none">,
  { takeOptionsUnder, options, flags, environment }: OpeningNode<typeof runtimeOptions>,
  fields: CryptoFields,
  file: BlockChild,
): Promise<ImageCrypto | undefined> {
  const [unknown] = takeOptionsUnder(["encrypt."]).keys();
  const { "encrypt.format": wanted, "encrypt.key-secret": keySecret } = options;
  const format = FORMATS[fields.cryptMethod];
  if (!format) {
    if (wanted === undefined) return undefined;
    throw invalid(`No encryption in image header, but options specified format '${wanted}'`);
  }
  if (wanted !== undefined && wanted !== format)
    throw invalid(`Header reported '${format}' encryption format but options specify '${wanted}'`);
  if (unknown !== undefined) throw invalid(`Parameter '${unknown.slice("encrypt.".length)}' is unexpected`);
  const passphrase = () => (flags.noIo ? undefined : requirePassphrase(environment, keySecret, "encrypt."));
  if (format === "aes") {
    const key = passphrase();
    return { format, cipher: key && aesCipher(key), luks: undefined };
  }
  if (!fields.cryptoHeader) throw invalid(`Missing CRYPTO header for crypt method ${fields.cryptMethod}`);
  const area = headerArea(file, fields.cryptoHeader);
  const volume = await graphRdlock(co, (reader) => openLuks(reader, area, passphrase()));
  return { format, cipher: volume.key?.cipher, luks: { volume, area } };
}

const FORMATS: Readonly<Record<number, ImageCrypto["format"]>> = {
  [CryptMethod.Aes]: "aes",
  [CryptMethod.Luks]: "luks",
};

function aesCipher(passphrase: Uint8Array): SectorCipher {
  const key = new Uint8Array(AES_KEY_BYTES);
  key.set(passphrase.subarray(0, AES_KEY_BYTES));
  const algorithm = cipherByName("aes-128");
  return sectorCipher({ algorithm, mode: "cbc", ivGenerator: "plain64", ivHash: undefined }, key);
}

/** The clusters that the header extension names: nothing beyond them is read or written as LUKS's. */
export function headerArea(file: BlockChild, { offset, length }: CryptoHeaderRecord): HeaderArea {
  const check = (at: number, bytes: number) => {
    if (at + bytes > length) throw invalid("Request for data outside of extension header");
  };
  return {
    async read(co, at, bytes) {
      check(at, bytes);
      try {
        return await file.preadBytes(co, offset + at, bytes);
      } catch (error) {
        throw BlockError.wrap("Could not read encryption header", error);
      }
    },
    async write(co, at, data) {
      check(at, data.length);
      try {
        await file.pwrite(co, offset + at, data);
      } catch (error) {
        throw BlockError.wrap("Could not write encryption header", error);
      }
    },
    flush: (co) => file.flush(co),
  };
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
  if (!crypto) return {};
  const { format, luks } = crypto;
  return { encrypt: luks ? luksInfo(luks.volume, { format }) : { format } };
}

/** Refuses a change of key slots where there are none. */
export function checkHasKeys({ crypto }: Qcow2State): void {
  if (!crypto) throw invalid("Can't amend encryption options - encryption not present");
  if (!crypto.luks) throw new BlockError("ENOTSUP", "Only LUKS encryption options can be amended");
}

/** Changes key slots by those of `options` that begin with "encrypt.".  @qemu qcow2_amend_options */
export async function amendEncryption(
  co: Coroutine<"read">,
  { crypto }: Qcow2State,
  { options, force, environment }: AmendRequest<OptionTable>,
): Promise<void> {
  assert(crypto?.luks !== undefined, "amendEncryption comes after checkHasKeys");
  const given = new Map(
    Object.entries(options).flatMap(([key, value]) =>
      key.startsWith("encrypt.") && value !== undefined ? [[key.slice("encrypt.".length), value]] : [],
    ),
  );
  const { volume, area } = crypto.luks;
  await amendLuks(co, { area, volume, options: takeOptions(luksAmendOptions, given), force, environment });
}

function invalid(message: string): BlockError {
  return new BlockError("EINVAL", message);
}
