/** Creating a file through its protocol driver, for the format drivers that fill it.  @qemu bdrv_create_file */

import { BlockBackend } from "./backend.ts";
import { Perm } from "./child.ts";
import type { Coroutine } from "./coroutine.ts";
import { BlockError } from "./errors.ts";
import { findProtocol, type OpenEnvironment, openNode } from "./open.ts";
import { DEFAULT_FLAGS } from "./open-flags.ts";
import { type Options, takeOptions } from "./options.ts";

/** Makes `filename`, or empties it, with the protocol's own create options. */
export async function createFile(
  co: Coroutine<"none">,
  filename: string,
  options: Options,
  environment: OpenEnvironment,
  sharesWrites = false,
): Promise<void> {
  const driver = await findProtocol(filename).load();
  if (!driver.create || !driver.createOptions)
    throw new BlockError("ENOTSUP", `Driver '${driver.formatName}' does not support image creation`);
  const left = new Map(options);
  const values = takeOptions(driver.createOptions, left);
  const [unknown] = left.keys();
  if (unknown !== undefined) throw new BlockError("EINVAL", `Invalid parameter '${unknown}'`);
  await driver.create(co, { filename, options: values, protocolOptions: left, environment, sharesWrites });
}

/** Opens a file that has just been created, to be filled by a format driver. The caller closes it. */
export async function openCreated(
  co: Coroutine<"none">,
  filename: string,
  environment: OpenEnvironment,
): Promise<BlockBackend> {
  const flags = { ...DEFAULT_FLAGS, readOnly: false, unmap: true };
  const node = await openNode(co, { filename, options: new Map(), flags, environment, protocol: true });
  return BlockBackend.forNode(co, node, {
    allowBeyondEof: true,
    perm: { used: Perm.Write | Perm.Resize, shared: Perm.All },
  });
}

/** Opens a file that has just been created, has it filled, and closes it. */
export async function fillCreated(
  co: Coroutine<"none">,
  filename: string,
  environment: OpenEnvironment,
  write: (file: BlockBackend) => Promise<void>,
): Promise<void> {
  const file = await openCreated(co, filename, environment);
  try {
    await write(file);
  } finally {
    await file.close();
  }
}

/** What a format driver's `create` does with one file: makes it, fills it, and leaves none where that fails. */
export async function createFilled(
  co: Coroutine<"none">,
  {
    filename,
    protocolOptions,
    environment,
  }: {
    readonly filename: string;
    readonly protocolOptions: Options;
    readonly environment: OpenEnvironment;
  },
  write: (file: BlockBackend) => Promise<void>,
): Promise<void> {
  await createFile(co, filename, protocolOptions, environment);
  try {
    await fillCreated(co, filename, environment, write);
  } catch (error) {
    await emptyCreated(co, filename, environment);
    throw error;
  }
}

/**
 * So that nobody takes a file whose making failed for an image: it is emptied, and gone where the protocol can remove
 * files. What went wrong before is what the user is to hear of.  @qemu bdrv_co_delete_file_noerr
 */
export async function emptyCreated(
  co: Coroutine<"none">,
  filename: string,
  environment: OpenEnvironment,
): Promise<void> {
  try {
    await fillCreated(co, filename, environment, (file) => file.truncate(0));
    const driver = await findProtocol(filename).load();
    if (driver.kind === "protocol") await driver.remove?.(filename, environment);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
  }
}
