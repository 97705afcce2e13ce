/** New qcow images: a header, the name of the backing file, and an L1 table of zeroes.  @qemu qcow_co_create */

import type { BlockBackend } from "../../src/block/backend.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { createFilled } from "../../src/block/create.ts";
import type { CreateRequest } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import { alignUp, KiB, MAX_LENGTH, SECTOR_SIZE } from "../../src/block/units.ts";
import {
  CryptMethod,
  ENTRY_BYTES,
  Header,
  type HeaderRecord,
  l1EntriesFor,
  QCOW_MAGIC,
  QCOW_VERSION,
} from "./layout.ts";

export const createOptions = {
  size: { type: "size", help: "Virtual disk size" },
  backing_file: { type: "string", help: "File name of a base image" },
  backing_fmt: { type: "string", help: "Format of the backing image" },
  encryption: {
    type: "bool",
    help: "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
  },
  "encrypt.format": { type: "string", help: "Encrypt the image, format choices: 'aes'" },
  "encrypt.key-secret": {
    type: "string",
    help: "ID of the secret that provides the AES encryption key",
  },
} as const;

export type CreateOptions = typeof createOptions;

export async function create(co: Coroutine<"none">, request: CreateRequest<CreateOptions>): Promise<void> {
  // All is checked before anything that is there is emptied.
  const cryptMethod = await checkEncryption(request);
  const { header, backingName } = makeHeader(request.options, cryptMethod);
  await createFilled(co, request, (file) => writeImage(file, header, backingName));
}

/** The passphrase is not stored, but must be there. */
async function checkEncryption({ options, environment }: CreateRequest<CreateOptions>): Promise<number> {
  const { encryption = false, "encrypt.format": format, "encrypt.key-secret": secret } = options;
  if (encryption && format !== undefined)
    throw new BlockError(
      "EINVAL",
      "'encrypt.format' and its alias 'encryption' can't be used at the same time",
    );
  if (!encryption && format === undefined) {
    if (secret !== undefined) throw new BlockError("EINVAL", "Parameter 'encrypt.format' is missing");
    return CryptMethod.None;
  }
  if (format !== undefined && format !== "aes") {
    if (format === "luks") throw new BlockError("ENOTSUP", "Unsupported encryption format");
    throw new BlockError("EINVAL", `Parameter 'format' does not accept value '${format}'`);
  }
  const { requirePassphrase } = await import("../crypto/secrets.ts");
  requirePassphrase(environment, secret, "encrypt.");
  return CryptMethod.Aes;
}

/** Overlays get clusters of a sector, so that nothing need be copied, and long tables. */
const OVERLAY = { clusterBits: 9, l2Bits: 12 };
const STANDALONE = { clusterBits: 12, l2Bits: 9 };

function makeHeader(
  { size = 0, backing_file: backingFile }: CreateRequest<CreateOptions>["options"],
  cryptMethod: number,
): { readonly header: HeaderRecord; readonly backingName: Uint8Array } {
  const total = alignUp(size, SECTOR_SIZE);
  if (total === 0) throw new BlockError("EINVAL", "Image size is too small, cannot be zero length");
  if (total > MAX_LENGTH) throw new BlockError("EFBIG");
  const backingName = Buffer.from(backingFile ?? "");
  return {
    header: {
      magic: QCOW_MAGIC,
      version: QCOW_VERSION,
      backingFileOffset: backingFile === undefined ? 0 : Header.size,
      backingFileSize: backingName.length,
      mtime: 0,
      size: total,
      ...(backingFile === undefined ? STANDALONE : OVERLAY),
      padding: 0,
      cryptMethod,
      l1TableOffset: alignUp(Header.size + backingName.length, ENTRY_BYTES),
    },
    backingName,
  };
}

const PIECE_BYTES = 256 * KiB;

/** The header comes last: until then the file is no image. */
async function writeImage(file: BlockBackend, header: HeaderRecord, backingName: Uint8Array): Promise<void> {
  const l1Bytes = alignUp(l1EntriesFor(header.size, header) * ENTRY_BYTES, SECTOR_SIZE);
  for (let at = 0; at < l1Bytes; at += PIECE_BYTES)
    await file.write(header.l1TableOffset + at, new Uint8Array(Math.min(l1Bytes - at, PIECE_BYTES)));
  await file.write(0, Buffer.concat([Header.write(header), backingName]));
}
