/** The keys of an encrypted image: the old AES's is the passphrase itself, LUKS has them behind its own header. */

import type { BlockChild } from "../../src/block/child.ts";
import { type Coroutine, graphRdlock } from "../../src/block/coroutine.ts";
import type { AmendRequest } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import type { OpeningNode } from "../../src/block/open.ts";
import { type OptionTable, takeOptions } from "../../src/block/options.ts";
import { type HeaderArea, type LuksVolume, luksInfo, openLuks } from "../crypto/luks.ts";
import { amendLuks, luksAmendOptions } from "../crypto/luks-amend.ts";
import { qcowAesCipher } from "../crypto/qcow-aes.ts";
import { requirePassphrase } from "../crypto/secrets.ts";
import type { CryptoFields, ImageCrypto } from "./crypto.ts";
import type { CryptoHeaderRecord } from "./layout.ts";
import type { options as runtimeOptions } from "./runtime-options.ts";

const PREFIX = "encrypt.";

export async function openKeys(
  co: Coroutine<"none">,
  { options, flags, environment }: OpeningNode<typeof runtimeOptions>,
  format: ImageCrypto["format"],
  { cryptMethod, cryptoHeader }: CryptoFields,
  file: BlockChild,
): Promise<ImageCrypto> {
  const passphrase = () =>
    flags.noIo ? undefined : requirePassphrase(environment, options["encrypt.key-secret"], PREFIX);
  if (format === "aes") {
    const key = passphrase();
    return { format, cipher: key && qcowAesCipher(key), info: () => ({ format }), amend: undefined };
  }
  if (!cryptoHeader) throw invalid(`Missing CRYPTO header for crypt method ${cryptMethod}`);
  const area = headerArea(file, cryptoHeader);
  const volume = await graphRdlock(co, (reader) => openLuks(reader, area, passphrase(), environment.guard));
  return {
    format,
    cipher: volume.key?.cipher,
    info: () => luksInfo(volume, { format }),
    amend: (reader, request) => amend(reader, area, volume, request),
  };
}

async function amend(
  co: Coroutine<"read">,
  area: HeaderArea,
  volume: LuksVolume,
  { options, force, environment }: AmendRequest<OptionTable>,
): Promise<void> {
  const given = new Map(
    Object.entries(options).flatMap(([key, value]) =>
      key.startsWith(PREFIX) && value !== undefined ? [[key.slice(PREFIX.length), value]] : [],
    ),
  );
  await amendLuks(co, { area, volume, options: takeOptions(luksAmendOptions, given), force, environment });
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

function invalid(message: string): BlockError {
  return new BlockError("EINVAL", message);
}
