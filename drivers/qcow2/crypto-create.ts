/** Encryption of a new image: what was asked for, checked, and then put into the image.  @qemu qcow2_set_up_encryption */

import type { Coroutine } from "../../src/block/coroutine.ts";
import type { CreateRequest } from "../../src/block/driver.ts";
import { assert } from "../../src/block/errors.ts";
import type { BlockNode } from "../../src/block/node.ts";
import type { OpenEnvironment } from "../../src/block/open.ts";
import { type OptionValues, takeOptions } from "../../src/block/options.ts";
import { alignUp } from "../../src/block/units.ts";
import type { NewLuks } from "../crypto/luks.ts";
import { createLuksByOptions, luksCreateOptions, luksPayloadBytes } from "../crypto/luks-options.ts";
import { requirePassphrase } from "../crypto/secrets.ts";
import type { CreateOptions, EncryptionFormat } from "./create-options.ts";
import { headerArea } from "./crypto-open.ts";
import { updateHeader } from "./header.ts";
import { CryptMethod } from "./layout.ts";
import { allocateClusters } from "./refcount.ts";
import { type Qcow2State, stateOf } from "./state.ts";

/** Marks an image that has no guest data yet as encrypted, with keys that are there already. */
export type Encrypt = (co: Coroutine<"read">, node: BlockNode) => Promise<void>;

const PREFIX = "encrypt.";

/** Makes the keys: what can fail without an image fails here. */
export async function planEncryption(
  format: EncryptionFormat,
  { options, environment }: CreateRequest<CreateOptions>,
): Promise<Encrypt> {
  if (format === "luks") {
    const luks = await createLuksByOptions(luksOptions(options), environment, PREFIX);
    return (co, node) => encryptImage(co, node, luks);
  }
  requirePassphrase(environment, options["encrypt.key-secret"], PREFIX);
  return (co, node) => encryptImage(co, node, undefined);
}

/** Bytes that a LUKS header would take in an image with these options.  @qemu qcow2_measure */
export function luksBytes(options: OptionValues<CreateOptions>, environment: OpenEnvironment): number {
  return luksPayloadBytes(luksOptions(options), environment, PREFIX);
}

function luksOptions(options: OptionValues<CreateOptions>): OptionValues<typeof luksCreateOptions> {
  const given = new Map<string, string | number | boolean>();
  for (const [key, value] of Object.entries(options))
    if (key.startsWith(PREFIX) && value !== undefined) given.set(key.slice(PREFIX.length), value);
  return takeOptions(luksCreateOptions, given);
}

/** The LUKS header is on the disk before the image's header says so. The old AES has nothing to be written. */
async function encryptImage(
  co: Coroutine<"read">,
  node: BlockNode,
  luks: NewLuks | undefined,
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
