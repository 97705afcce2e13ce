/** How large a new image would be, empty or with an image's content.  @qemu bdrv_measure */

import type { BlockBackend } from "../block/backend.ts";
import { loadDriver, type MeasureResult } from "../block/driver.ts";
import { BlockError } from "../block/errors.ts";
import type { OpenEnvironment } from "../block/open.ts";
import { type Options, type OptionTable, takeOptions } from "../block/options.ts";

export interface MeasureImageRequest {
  /** A driver's name. */
  readonly format: string;
  /** Create options of the format, as text or typed. */
  readonly options: Options;
  /** The image to be copied, or the bytes of an empty one. */
  readonly source: BlockBackend | number;
  readonly environment: OpenEnvironment;
  readonly signal?: AbortSignal | undefined;
}

/** ENOTSUP where the format does not say. */
export async function measureImage(request: MeasureImageRequest): Promise<MeasureResult> {
  const { format, source, environment, signal } = request;
  const driver = await loadDriver(format);
  if (driver?.kind !== "format" || !driver.measure)
    throw new BlockError("ENOTSUP", `Block driver '${format}' does not support size measurement`);
  const { measure } = driver;
  const options = new Map(request.options);
  if (typeof source === "number") options.set("size", source);
  const values = takeOptions(plainlyRefusing(driver.createOptions ?? {}), options);
  if (typeof source === "number") return measure({ options: values, source: undefined, environment });
  return source.run(
    (co) => measure({ options: values, source: { node: source.node, co }, environment }),
    signal,
  );
}

/** A word that an option does not take is refused as everywhere but in `create`. */
function plainlyRefusing(table: OptionTable): OptionTable {
  const plain = Object.entries(table).map(([key, spec]) => {
    const { refusal, ...rest } = spec;
    return [key, refusal === undefined ? spec : rest] as const;
  });
  return Object.fromEntries(plain);
}
