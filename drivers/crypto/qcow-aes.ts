/** The encryption that qcow and old qcow2 images have: AES-128 in CBC mode, its key the passphrase itself. */

import { cipherByName } from "./algorithms.ts";
import { type SectorCipher, sectorCipher } from "./sector-cipher.ts";

/** So much is taken of the passphrase, and zeroes where it is shorter. */
const KEY_BYTES = 16;

/** Sectors are numbered as the guest sees them.  @qemu block/crypto: qcow */
export function qcowAesCipher(passphrase: Uint8Array): SectorCipher {
  const key = new Uint8Array(KEY_BYTES);
  key.set(passphrase.subarray(0, KEY_BYTES));
  const algorithm = cipherByName("aes-128");
  return sectorCipher({ algorithm, mode: "cbc", ivGenerator: "plain64", ivHash: undefined }, key);
}
