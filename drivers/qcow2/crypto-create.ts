/** Encryption of a new image: what was asked for, checked, and then put into the image.  @qemu qcow2_set_up_encryption */

import type { Coroutine } from "../../src/block/coroutine.ts";
import type { CreateRequest } from "../../src/block/driver.ts";
import { assert, BlockError } from "../../src/block/errors.ts";
import type { BlockNode } from "../../src/block/node.ts";
import type { OpenEnvironment } from "../../src/block/open.ts";
import { type OptionValues, takeOptions } from "../../src/block/options.ts";
import { alignUp } from "../../src/block/units.ts";
import type { NewLuks } from "../crypto/luks.ts";
import { createLuksByOptions, luksCreateOptions, luksPayloadBytes } from "../crypto/luks-options.ts";
import { requirePassphrase } from "../crypto/secrets.ts";
import type { CreateOptions } from "./create-options.ts";
import { headerArea } from "./crypto.ts";
import { updateHeader } from "./header.ts";
import { CryptMethod } from "./layout.ts";
import { allocateClusters } from "./refcount.ts";
import { type Qcow2State, stateOf } from "./state.ts";

/** What an image is to get. Undefined: the old AES, which has nothing to be written. */
export interface NewEncryption {
  readonly luks: NewLuks | undefined;
}

type EncryptionFormat = "aes" | "luks";

const PREFIX = "encrypt.";

/** Undefined: no encryption. Refuses what does not go together, in the words of QEMU's option parser. */
export function checkEncryption(options: OptionValues<CreateOptions>): EncryptionFormat | undefined {
  if (options.encryption && options["encrypt.format"] !== undefined)
    throw invalid("'encrypt.format' and its alias 'encryption' can't be used at the same time");
  const format = options.encryption ? "aes" : options["encrypt.format"];
  const others = Object.keys(options).filter((key) => key.startsWith(PREFIX) && key !== "encrypt.format");
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

/** Makes the keys: what can fail without an image fails here. */
export async function planEncryption(
  format: EncryptionFormat,
  { options, environment }: CreateRequest<CreateOptions>,
): Promise<NewEncryption> {
  if (format === "luks")
    return { luks: await createLuksByOptions(luksOptions(options), environment, PREFIX) };
  requirePassphrase(environment, options["encrypt.key-secret"], PREFIX);
  return { luks: undefined };
}

/** Bytes that a LUKS header would take in an image with these options.  @qemu qcow2_measure */
export function luksBytes(options: OptionValues<CreateOptions>, environment: OpenEnvironment): number {
  if (options["encrypt.format"] !== "luks") return 0;
  return luksPayloadBytes(luksOptions(options), environment, PREFIX);
}

function luksOptions(options: OptionValues<CreateOptions>): OptionValues<typeof luksCreateOptions> {
  const given = new Map<string, string | number | boolean>();
  for (const [key, value] of Object.entries(options))
    if (key.startsWith(PREFIX) && value !== undefined) given.set(key.slice(PREFIX.length), value);
  return takeOptions(luksCreateOptions, given);
}

/**
 * Marks an image that has no guest data yet as encrypted. The LUKS header is on the disk before the image's header
 * says so.
 */
export async function encryptImage(
  co: Coroutine<"read">,
  node: BlockNode,
  { luks }: NewEncryption,
): Promise<void> {
  const state = stateOf.get(node);
  assert(state !== undefined, "encryptImage needs an open qcow2 node");
  await state.lock.run(async () => {
    if (luks) await writeLuks(co, state, luks);
    state.cryptMethod = luks ? CryptMethod.Luks : CryptMethod.Aes;
    await updateHeader(co, state);
  });
}

async function writeLuks(co: Coroutine<"read">, state: Qcow2State, luks: NewLuks): Promise<void> {
  const { file, clusterSize } = state;
  const length = luks.payloadOffset;
  const bytes = alignUp(length, clusterSize);
  const offset = await allocateClusters(co, state, bytes, "LUKS header");
  await file.pwriteZeroes(co, offset, bytes);
  state.cryptoHeader = { offset, length };
  await luks.write(co, headerArea(file, state.cryptoHeader));
  await state.refcountCache.flush(co);
}

function invalid(message: string): BlockError {
  return new BlockError("EINVAL", message);
}
