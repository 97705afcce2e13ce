/** The names that ciphers and hashes go by: in options, in LUKS headers, and in OpenSSL.  @qemu qapi/crypto.json */

import { createCipheriv } from "node:crypto";
import { BlockError } from "../../src/block/errors.ts";

/** A block cipher with keys of one size. */
export interface CipherAlgorithm {
  /** As QEMU names it: "aes-256". */
  readonly name: string;
  /** In a LUKS header, where the key's length is told apart; undefined: LUKS has no name for it. */
  readonly luksName: string | undefined;
  readonly keyBytes: number;
  readonly blockBytes: number;
  /** Without the mode; undefined: OpenSSL has no such cipher. */
  readonly opensslName: string | undefined;
}

/** In the order of QCryptoCipherAlgorithm; CAST5 is in OpenSSL's legacy provider, which node loads only when told to. */
const CIPHERS: readonly CipherAlgorithm[] = [
  { name: "aes-128", luksName: "aes", keyBytes: 16, blockBytes: 16, opensslName: "aes-128" },
  { name: "aes-192", luksName: "aes", keyBytes: 24, blockBytes: 16, opensslName: "aes-192" },
  { name: "aes-256", luksName: "aes", keyBytes: 32, blockBytes: 16, opensslName: "aes-256" },
  { name: "des", luksName: undefined, keyBytes: 8, blockBytes: 8, opensslName: "des" },
  { name: "3des", luksName: undefined, keyBytes: 24, blockBytes: 8, opensslName: "des-ede3" },
  { name: "cast5-128", luksName: "cast5", keyBytes: 16, blockBytes: 8, opensslName: "cast5" },
  ...[16, 24, 32].map((keyBytes) => otherCipher("serpent", keyBytes)),
  ...[16, 24, 32].map((keyBytes) => otherCipher("twofish", keyBytes)),
];

function otherCipher(luksName: string, keyBytes: number): CipherAlgorithm {
  return { name: `${luksName}-${keyBytes * 8}`, luksName, keyBytes, blockBytes: 16, opensslName: undefined };
}

/** How long digests are. The names are OpenSSL's too. */
export const HASH_BYTES = {
  md5: 16,
  sha1: 20,
  sha224: 28,
  sha256: 32,
  sha384: 48,
  sha512: 64,
  ripemd160: 20,
} as const;
export type HashName = keyof typeof HASH_BYTES;
export const HASHES = Object.keys(HASH_BYTES) as readonly HashName[];

export const MODES = ["ecb", "cbc", "xts", "ctr"] as const;
export type CipherMode = (typeof MODES)[number];

export const IV_GENERATORS = ["plain", "plain64", "essiv"] as const;
export type IvGenerator = (typeof IV_GENERATORS)[number];

export const CIPHER_NAMES: readonly string[] = CIPHERS.map(({ name }) => name);

export function cipherByName(name: string): CipherAlgorithm {
  const found = CIPHERS.find((cipher) => cipher.name === name);
  if (!found) throw unsupported(`Algorithm '${name}' not supported`);
  return found;
}

/** The cipher that a LUKS header means. `keyBytes`: of one key, where XTS has two.  @qemu qcrypto_block_luks_cipher_name_lookup */
export function cipherByLuksName(luksName: string, keyBytes: number): CipherAlgorithm {
  const found = CIPHERS.find((cipher) => cipher.luksName === luksName && cipher.keyBytes === keyBytes);
  if (!found) throw unsupported(`Algorithm '${luksName}' with key size ${keyBytes} bytes not supported`);
  return found;
}

/** Throws in QEMU's words where OpenSSL can't do it. Of a mode of OpenSSL's own, only CBC is used beside ECB. */
export function checkAvailable(
  { name, opensslName, keyBytes, blockBytes }: CipherAlgorithm,
  mode: CipherMode,
) {
  if (mode === "xts" && blockBytes !== 16) throw unsupported(`Unsupported cipher mode ${mode}`);
  try {
    if (opensslName === undefined) throw new TypeError("not in OpenSSL");
    // All keys of a kind have the same length; single bytes that differ pass for a key of any cipher.
    const key = Uint8Array.from({ length: keyBytes }, (_, index) => index);
    createCipheriv(`${opensslName}-ecb`, key, null);
  } catch {
    throw unsupported(`Algorithm '${name}' not supported`);
  }
}

export function unsupported(message: string): BlockError {
  return new BlockError("ENOTSUP", message);
}
