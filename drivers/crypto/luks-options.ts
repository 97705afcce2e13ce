/** The options of LUKS volumes when they are created and when their key slots are changed.  @qemu block/crypto.h */

import { BlockError } from "../../src/block/errors.ts";
import type { OpenEnvironment } from "../../src/block/open.ts";
import type { OptionValues } from "../../src/block/options.ts";
import { SECTOR_SIZE } from "../../src/block/units.ts";
import { CIPHER_NAMES, checkAvailable, cipherByName, HASHES, IV_GENERATORS, MODES } from "./algorithms.ts";
import { createLuks, type NewLuks } from "./luks.ts";
import { type LuksSpec, newLuksHeader } from "./luks-header.ts";
import { requirePassphrase } from "./secrets.ts";
import { essivAlgorithm } from "./sector-cipher.ts";

/** In the order in which qemu-img names them when it says what it makes. */
export const luksCreateOptions = {
  "key-secret": { type: "string", help: "ID of the secret that provides the keyslot passphrase" },
  "cipher-alg": { type: "string", help: "Name of encryption cipher algorithm" },
  "cipher-mode": { type: "string", help: "Name of encryption cipher mode" },
  "ivgen-alg": { type: "string", help: "Name of IV generator algorithm" },
  "ivgen-hash-alg": { type: "string", help: "Name of IV generator hash algorithm" },
  "hash-alg": { type: "string", help: "Name of encryption hash algorithm" },
  "iter-time": { type: "number", help: "Time to spend in PBKDF in milliseconds" },
} as const;

type CreateValues = OptionValues<typeof luksCreateOptions>;

/** @qemu QCRYPTO_BLOCK_LUKS_DEFAULT_ITER_TIME_MS */
export const DEFAULT_ITERATION_MILLISECONDS = 2000;

/** A new volume as the options have it. `prefix`: what stands before their names ("encrypt."). */
export async function createLuksByOptions(
  options: CreateValues,
  environment: OpenEnvironment,
  prefix = "",
): Promise<NewLuks> {
  const names = checkSpec(options);
  const passphrase = requirePassphrase(environment, options["key-secret"], prefix);
  return createLuks(luksSpec(names), passphrase, options["iter-time"] ?? DEFAULT_ITERATION_MILLISECONDS);
}

/** Bytes before the data of such a volume: nothing is computed, but what `create` refuses is refused. */
export function luksPayloadBytes(options: CreateValues, environment: OpenEnvironment, prefix = ""): number {
  const names = checkSpec(options);
  requirePassphrase(environment, options["key-secret"], prefix);
  const spec = luksSpec(names);
  checkAvailable(spec.algorithm, spec.mode);
  return newLuksHeader(spec, "").payloadSectors * SECTOR_SIZE;
}

/** The names, checked in the order in which QEMU does. */
function checkSpec(options: CreateValues) {
  return {
    cipher: oneOf(CIPHER_NAMES, options, "cipher-alg", "aes-256"),
    mode: oneOf(MODES, options, "cipher-mode", "xts"),
    ivGenerator: oneOf(IV_GENERATORS, options, "ivgen-alg", "plain64"),
    ivHash: oneOf(HASHES, options, "ivgen-hash-alg", undefined),
    hash: oneOf(HASHES, options, "hash-alg", "sha256"),
  };
}

function oneOf<T extends string, D extends T | undefined>(
  values: readonly T[],
  options: CreateValues,
  key: keyof CreateValues,
  otherwise: D,
): T | D {
  const given = options[key];
  if (given === undefined) return otherwise;
  const found = values.find((value) => value === given);
  if (found === undefined)
    throw new BlockError("EINVAL", `Parameter '${key}' does not accept value '${given}'`);
  return found;
}

function luksSpec({ cipher, ivHash, ...names }: ReturnType<typeof checkSpec>): LuksSpec {
  const algorithm = cipherByName(cipher);
  if (algorithm.luksName === undefined)
    throw new BlockError("ENOTSUP", `Algorithm '${cipher}' not supported`);
  const isEssiv = names.ivGenerator === "essiv";
  const spec = { ...names, algorithm, ivHash: isEssiv ? (ivHash ?? ("sha256" as const)) : ivHash };
  if (isEssiv) essivAlgorithm(spec);
  return spec;
}
