/** Changes options of an image that exists.  @qemu qemu-img.c: img_amend */

import type { BlockBackend } from "../block/backend.ts";
import { type BlockDriver, loadDriver } from "../block/driver.ts";
import { BlockError } from "../block/errors.ts";
import type { OpenEnvironment } from "../block/open.ts";
import {
  type Options,
  type OptionTable,
  type OptionValues,
  takeOptions,
  warnOfHexSuffix,
} from "../block/options.ts";
import { checkOptions } from "./create.ts";

export interface AmendImageRequest {
  /** Of the driver's `amendOptions`, as text or typed. */
  readonly options: Options;
  /** Also what may make old readers fail. */
  readonly force: boolean;
  readonly environment: OpenEnvironment;
  /** Gets how far the work has come, in units of its own, which may change on the way. */
  readonly onProgress: (done: number, total: number) => void;
  readonly signal: AbortSignal | undefined;
}

/** What can be changed of an image in a format. Throws where that is nothing. */
export async function amendOptionTable(format: string): Promise<OptionTable> {
  const driver = await loadDriver(format);
  if (!driver) throw new BlockError("EINVAL", `Unknown file format '${format}'`);
  return tableOf(driver);
}

function tableOf({ amendOptions, formatName }: BlockDriver): OptionTable {
  if (amendOptions) return amendOptions;
  throw new BlockError("ENOTSUP", `Format driver '${formatName}' does not support option amendment`);
}

/** Does nothing where the options are none of the format's; after that `begin` is called. */
export async function amendImage(
  image: BlockBackend,
  { options, signal, ...request }: AmendImageRequest,
  begin: () => void = () => {},
): Promise<void> {
  const { driver } = image.node;
  const values = parse(driver, options, request.environment.warn);
  begin();
  await image.run(async (co, { node }) => node.ops.amend?.(co, { ...request, options: values }), signal);
}

/** The first option that is wrong, in the order in which they were given, is what the user hears of. */
function parse(
  driver: BlockDriver,
  options: Options,
  warn: (message: string) => void,
): OptionValues<OptionTable> {
  const table = tableOf(driver);
  for (const [key, value] of options) {
    const spec = table[key];
    if (!spec) {
      const isForCreation = areOptionsOf({ ...driver.createOptions, ...table }, options);
      throw new BlockError("EINVAL", `Invalid parameter '${key}'`, {
        ...(isForCreation && { hint: "This option is only supported for image creation" }),
      });
    }
    if (spec.type === "size") warnOfHexSuffix(String(value), warn);
    takeOptions({ [key]: spec }, new Map([[key, value]]));
  }
  return takeOptions(table, new Map(options));
}

function areOptionsOf(table: OptionTable, options: Options): boolean {
  try {
    checkOptions(table, options);
    return true;
  } catch (error) {
    if (error instanceof BlockError) return false;
    throw error;
  }
}
