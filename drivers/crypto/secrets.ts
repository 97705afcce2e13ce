/** Passphrases: drivers' options name a secret by its id.  @qemu qcrypto_secret_lookup_as_utf8 */

import { BlockError } from "../../src/block/errors.ts";
import type { OpenEnvironment } from "../../src/block/open.ts";

/** The passphrase in the secret `id`, which must be text. */
export function lookUpPassphrase(environment: OpenEnvironment, id: string): Uint8Array {
  const secret = environment.secret?.(id);
  if (!secret) throw new BlockError("EINVAL", `No secret with id '${id}'`);
  const { data } = secret;
  if (data.includes(0) || !isUtf8(data))
    throw new BlockError("EINVAL", `Data from secret ${id} is not valid UTF-8`);
  return data;
}

function isUtf8(data: Uint8Array): boolean {
  try {
    new TextDecoder("utf-8", { fatal: true }).decode(data);
    return true;
  } catch {
    return false;
  }
}

/** `prefix`: what stands before the option's name in this driver ("encrypt."). */
export function requirePassphrase(
  environment: OpenEnvironment,
  id: string | undefined,
  prefix: string,
): Uint8Array {
  if (id === undefined)
    throw new BlockError("EINVAL", `Parameter '${prefix}key-secret' is required for cipher`);
  return lookUpPassphrase(environment, id);
}
