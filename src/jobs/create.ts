/** Makes a new image, over a backing file if one is given.  @qemu bdrv_img_create */

import { mainContext } from "../block/aio-context.ts";
import { BlockBackend } from "../block/backend.ts";
import { coWrapper } from "../block/coroutine.ts";
import { type BlockDriver, loadDriver } from "../block/driver.ts";
import { BlockError } from "../block/errors.ts";
import { combinePath, isAbsolute, protocolPrefix } from "../block/filename.ts";
import { findProtocol, type OpenEnvironment } from "../block/open.ts";
import { DEFAULT_FLAGS } from "../block/open-flags.ts";
import {
  type OptionScalar,
  type OptionSpec,
  type Options,
  type OptionTable,
  takeOptions,
  warnOfHexSuffix,
} from "../block/options.ts";
import { MAX_LENGTH } from "../block/units.ts";
import { Staging } from "./staging.ts";

export interface CreateImageRequest {
  readonly filename: string;
  /** Name of the driver, "raw" or "qcow2". */
  readonly format: string;
  /** Bytes; undefined: `options` says it, or it is the backing file's. */
  readonly size?: number | undefined;
  /** As the image will name it: relative to the image. */
  readonly backingFile?: string | undefined;
  readonly backingFormat?: string | undefined;
  /** The backing file need not be there, and is not looked at. */
  readonly unsafeBacking?: boolean;
  /** Of the format's and the protocol's own, as text or typed. */
  readonly options?: Options;
  readonly environment: OpenEnvironment;
  /** Gets "Formatting 'x', fmt=raw size=512" when all that was asked for has been understood. */
  readonly announce?: (line: string) => void;
}

/** What can be asked of a new image: the format's options and then those of the protocol beneath. */
export async function createOptionTable(format: string, filename: string | undefined): Promise<OptionTable> {
  const driver = await findCreatable(format);
  const protocol = filename === undefined ? undefined : await findCreatableProtocol(filename);
  return { ...protocol?.createOptions, ...driver.createOptions };
}

async function findCreatable(format: string): Promise<BlockDriver> {
  const driver = await loadDriver(format);
  if (!driver) throw new BlockError("EINVAL", `Unknown file format '${format}'`);
  if (!driver.create)
    throw new BlockError("ENOTSUP", `Format driver '${format}' does not support image creation`);
  return driver;
}

async function findCreatableProtocol(filename: string): Promise<BlockDriver> {
  const protocol = await findProtocol(filename).load();
  if (!protocol.create)
    throw new BlockError(
      "ENOTSUP",
      `Protocol driver '${protocol.formatName}' does not support image creation`,
    );
  return protocol;
}

export async function createImage(request: CreateImageRequest): Promise<void> {
  const { filename, format, environment } = request;
  const driver = await findCreatable(format);
  const protocol = await findCreatableProtocol(filename);
  // The format's options stand first in the announcement.
  const table: OptionTable = { ...driver.createOptions, ...protocol.createOptions, ...driver.createOptions };
  const options = new Map(request.options);
  checkOptions(table, options);
  const sizes = [...options.keys()].filter((key) => table[key]?.type === "size");
  for (const key of sizes) warnOfHexSuffix(String(options.get(key)), environment.warn);
  if (request.size !== undefined) {
    if (options.has("size")) throw new BlockError("EINVAL", "The image size must be specified only once");
    options.set("size", request.size);
  }
  addBacking(table, options, request);
  const backingFile = options.get("backing_file");
  if (backingFile !== undefined) {
    const sizeBytes = await checkBacking(String(backingFile), options, request);
    if (!options.has("size") && sizeBytes !== undefined) options.set("size", sizeBytes);
  }
  if (!options.has("size")) throw new BlockError("EINVAL", "Image creation needs a size parameter");
  request.announce?.(`Formatting '${filename}', fmt=${format}${describeOptions(table, options)}`);
  // QEMU reads them once more, in an order of its own.
  for (const key of ["size", ...sizes.filter((each) => each !== "size")])
    if (sizes.includes(key)) warnOfHexSuffix(String(options.get(key)), environment.warn);
  const hasClusters = table["cluster_size"] !== undefined;
  try {
    // Refused before the file that is there is emptied.
    if (sizeOf(options) > MAX_LENGTH) throw new BlockError("EFBIG");
    await withStaging(environment, (staged) =>
      mainContext.run((main) => create(main, driver, filename, options, staged)),
    );
  } catch (error) {
    if (!(error instanceof BlockError) || error.errno !== "EFBIG") throw error;
    const hint = hasClusters ? " (try using a larger cluster size)" : "";
    throw new BlockError("EFBIG", `The image size is too large for file format '${format}'${hint}`, {
      cause: error,
    });
  }
}

/** `make` makes files that get their names at the end; who goes on with them has a staging of their own, and names them. */
async function withStaging(
  environment: OpenEnvironment,
  make: (staged: OpenEnvironment) => Promise<void>,
): Promise<void> {
  if (environment.staging) return make(environment);
  const staging = new Staging();
  try {
    await make({ ...environment, staging });
  } catch (error) {
    staging.discard();
    throw error;
  }
  staging.commit();
}

function sizeOf(options: Options): number {
  return takeOptions({ size: { type: "size" } } as const, new Map(options)).size ?? 0;
}

const create = coWrapper(
  async (co, driver: BlockDriver, filename: string, options: Options, environment: OpenEnvironment) => {
    const protocolOptions = new Map(options);
    const values = takeOptions(driver.createOptions ?? {}, protocolOptions);
    await driver.create?.(co, { filename, options: values, protocolOptions, environment });
  },
);

/** An option that nobody has, or whose value is of the wrong type, is refused at once; what it means is the driver's. */
export function checkOptions(table: OptionTable, options: Options): void {
  for (const [key, value] of options) {
    const spec = table[key];
    if (!spec) throw new BlockError("EINVAL", `Invalid parameter '${key}'`);
    takeOptions({ [key]: { type: spec.type } }, new Map([[key, value]]));
  }
}

/** Sets the options that mean a backing file and its format; ENOTSUP where `format` has none. */
export function setBackingOptions(
  table: OptionTable,
  options: Options,
  format: string,
  { backingFile, backingFormat }: Pick<CreateImageRequest, "backingFile" | "backingFormat">,
): void {
  if (backingFile !== undefined) {
    if (!table["backing_file"])
      throw new BlockError("ENOTSUP", `Backing file not supported for file format '${format}'`);
    options.set("backing_file", backingFile);
  }
  if (backingFormat !== undefined) {
    if (!table["backing_fmt"])
      throw new BlockError("ENOTSUP", `Backing file format not supported for file format '${format}'`);
    options.set("backing_fmt", backingFormat);
  }
}

/** `backingFile` and `backingFormat` go before the options of the same meaning. */
function addBacking(table: OptionTable, options: Options, request: CreateImageRequest): void {
  const { format, filename } = request;
  setBackingOptions(table, options, format, request);
  const name = options.get("backing_file");
  if (name === filename)
    throw new BlockError(
      "EINVAL",
      "Error: Trying to create an image with the same filename as the backing file",
    );
  if (name === "") throw new BlockError("EINVAL", "Expected backing file name, got empty string");
}

/** Opens the backing file unless that is not wanted, and gives its length in bytes. Its format must be given. */
async function checkBacking(
  backingFile: string,
  options: Options,
  { filename, unsafeBacking, environment }: CreateImageRequest,
): Promise<number | undefined> {
  const format = options.get("backing_fmt");
  const missingFormat = "Backing file specified without backing format";
  if (unsafeBacking) {
    if (format === undefined) throw new BlockError("EINVAL", missingFormat);
    return undefined;
  }
  const fullName = backingFilename(filename, backingFile);
  let backing: BlockBackend;
  try {
    backing = await BlockBackend.open({
      filename: fullName,
      options: new Map(format === undefined ? [] : [["driver", format]]),
      // Nothing is read of its content: an encrypted one needs no key, and others may write to it.
      flags: { ...DEFAULT_FLAGS, noIo: true, forceShare: true },
      environment,
    });
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new BlockError(error.errno, error.message, {
      cause: error,
      hint: `${error.hint === undefined ? "" : `${error.hint}\n`}Could not open backing image.`,
    });
  }
  try {
    if (format === undefined)
      throw new BlockError("EINVAL", missingFormat, {
        hint: `Detected format of ${backing.node.driver.formatName}.`,
      });
    return await backing.getLength();
  } finally {
    await backing.close();
  }
}

/** Where the backing file is, seen from here.  @qemu bdrv_get_full_backing_filename_from_filename */
function backingFilename(filename: string, backingFile: string): string {
  if (protocolPrefix(backingFile) !== undefined || isAbsolute(backingFile)) return backingFile;
  if (filename === "" || filename.startsWith("json:"))
    throw new BlockError("EINVAL", `Cannot use relative backing file names for '${filename}'`);
  return combinePath(filename, backingFile);
}

/** " a=b c=d" with all options that were given or have a default, in the order of the table.  @qemu qemu_opts_print */
function describeOptions(table: OptionTable, options: Options): string {
  let text = "";
  for (const [key, spec] of Object.entries(table)) {
    const value = options.get(key) ?? spec.default;
    if (value !== undefined) text += ` ${key}=${describeValue(key, spec, value)}`;
  }
  return text;
}

function describeValue(key: string, spec: OptionSpec, value: OptionScalar): string {
  if (spec.type === "size" || spec.type === "number") {
    const number = takeOptions({ [key]: spec }, new Map([[key, value]]))[key] as number;
    // As an integer: over 2^53 a number's own text rounds.
    return Number.isInteger(number) ? String(BigInt(number)) : String(number);
  }
  if (typeof value === "boolean") return value ? "on" : "off";
  return String(value).replaceAll(",", ",,");
}
