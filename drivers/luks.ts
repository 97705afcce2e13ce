/** The LUKS format, version 1: guest data encrypted behind a header with the keys.  @qemu block/crypto.c */

import type { BlockChild } from "../src/block/child.ts";
import { type Coroutine, graphRdlock } from "../src/block/coroutine.ts";
import { createFilled } from "../src/block/create.ts";
import {
  type CreateRequest,
  type FormatDriver,
  type MeasureRequest,
  type Prealloc,
  Req,
} from "../src/block/driver.ts";
import { BlockError } from "../src/block/errors.ts";
import { type IoVector, iovFlatten, iovLength, iovParts, iovSlice, iovWrite } from "../src/block/iov.ts";
import { takeOptions } from "../src/block/options.ts";
import { MAX_LENGTH, MiB, SECTOR_SIZE } from "../src/block/units.ts";
import { type HeaderArea, type LuksVolume, luksInfo, openLuks } from "./crypto/luks.ts";
import { amendLuks, luksAmendOptions } from "./crypto/luks-amend.ts";
import { createLuksByOptions, luksCreateOptions, luksPayloadBytes } from "./crypto/luks-options.ts";
import { requirePassphrase } from "./crypto/secrets.ts";

const options = {
  /** Id of the secret with the passphrase. */
  "key-secret": { type: "string", strong: true },
} as const;

const createOptions = {
  size: { type: "size", help: "Virtual disk size" },
  ...luksCreateOptions,
} as const;

/** What is encrypted at once on its way to the file: the caller's buffers stay as they are.  @qemu BLOCK_CRYPTO_MAX_IO_SIZE */
const WINDOW_BYTES = MiB;

export const luks: FormatDriver<typeof options, typeof createOptions> = {
  formatName: "luks",
  kind: "format",
  options,
  createOptions,
  amendOptions: luksAmendOptions,
  create,
  measure,

  async open(co, { openFileChild, options: given, flags, environment }) {
    const file = await openFileChild(co);
    const area = areaOf(file);
    const passphrase = flags.noIo ? undefined : requirePassphrase(environment, given["key-secret"], "");
    const volume = await graphRdlock(co, (reader) => openLuks(reader, area, passphrase, environment.guard));
    const { payloadOffset } = volume;
    return {
      async getLength(co) {
        const bytes = (await file.getLength(co)) - payloadOffset;
        if (bytes < 0) throw new BlockError("EIO");
        return bytes;
      },
      pread: (co, offset, iov) => pread(co, file, volume, offset, iov),
      pwrite: (co, offset, iov, flags) => pwrite(co, file, volume, offset, iov, flags),
      supportedWriteFlags: file.node.supportedWriteFlags & Req.Fua,
      async truncate(co, bytes, exact, prealloc, flags) {
        // Zeroes in the file are none to the guest.
        if (flags & Req.ZeroWrite)
          throw new BlockError("ENOTSUP", "Block driver does not support requested flags");
        if (bytes > MAX_LENGTH - payloadOffset)
          throw new BlockError("EFBIG", "The requested file size is too large");
        await file.truncate(co, bytes + payloadOffset, exact, prealloc);
      },
      limits: () => ({ requestAlignment: SECTOR_SIZE }),
      getInfo: async () => ({}),
      getSpecificInfo: async () => ({ type: "luks", data: luksInfo(volume) }),
      amend: (co, { options: wanted, force, environment: surroundings }) =>
        amendLuks(co, { area, volume, options: wanted, force, environment: surroundings }),
      reopen: async () => ({ commit: () => {}, abort: () => {} }),
    };
  },
};

function areaOf(file: BlockChild): HeaderArea {
  return {
    read: (co, offset, bytes) => file.preadBytes(co, offset, bytes),
    write: (co, offset, data) => file.pwrite(co, offset, data),
    flush: (co) => file.flush(co),
  };
}

function cipherOf({ key }: LuksVolume) {
  if (!key) throw new BlockError("EIO", "The volume was opened without its key");
  return key.cipher;
}

async function pread(
  co: Coroutine<"read">,
  file: BlockChild,
  volume: LuksVolume,
  offset: number,
  iov: IoVector,
): Promise<void> {
  const cipher = cipherOf(volume);
  if (iov instanceof Uint8Array) {
    await file.pread(co, volume.payloadOffset + offset, iov);
    cipher.decrypt(offset / SECTOR_SIZE, iov);
    return;
  }
  const bytes = iovLength(iov);
  for (let done = 0; done < bytes; done += WINDOW_BYTES) {
    const piece = new Uint8Array(Math.min(WINDOW_BYTES, bytes - done));
    await file.pread(co, volume.payloadOffset + offset + done, piece);
    cipher.decrypt((offset + done) / SECTOR_SIZE, piece);
    iovWrite(iovParts(iovSlice(iov, done, done + piece.length)), piece);
  }
}

async function pwrite(
  co: Coroutine<"read">,
  file: BlockChild,
  volume: LuksVolume,
  offset: number,
  iov: IoVector,
  flags: number,
): Promise<void> {
  const cipher = cipherOf(volume);
  const bytes = iovLength(iov);
  for (let done = 0; done < bytes; done += WINDOW_BYTES) {
    const piece = iovFlatten(iovSlice(iov, done, Math.min(done + WINDOW_BYTES, bytes))).slice();
    cipher.encrypt((offset + done) / SECTOR_SIZE, piece);
    await file.pwrite(co, volume.payloadOffset + offset + done, piece, flags);
  }
}

const PREALLOC: readonly string[] = ["off", "metadata", "falloc", "full"] satisfies readonly Prealloc[];

async function create(
  co: Coroutine<"none">,
  { filename, options: given, protocolOptions, environment }: CreateRequest<typeof createOptions>,
): Promise<void> {
  const fileOptions = new Map(protocolOptions);
  const { preallocation = "off" } = takeOptions(
    { preallocation: { type: "string", values: PREALLOC } } as const,
    fileOptions,
  );
  // All is known before anything that is there is emptied.
  const volume = await createLuksByOptions(given, environment);
  const bytes = volume.payloadOffset + (given.size ?? 0);
  if (bytes > MAX_LENGTH) throw new BlockError("EFBIG");
  await createFilled(co, { filename, protocolOptions: fileOptions, environment }, async (file) => {
    // The format has no metadata that grows with it.
    await file.truncate(bytes, preallocation === "metadata" ? "off" : (preallocation as Prealloc));
    await file.run((reader, root) => volume.write(reader, areaOf(root)));
  });
}

async function measure({ options: given, source, environment }: MeasureRequest<typeof createOptions>) {
  const payload = luksPayloadBytes(given, environment);
  const bytes = payload + (source ? await source.node.getLength(source.co) : (given.size ?? 0));
  return { required: bytes, fullyAllocated: bytes };
}
