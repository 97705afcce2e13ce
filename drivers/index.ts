/** The only registry of bdrv's own drivers; probing asks formats in this order. */

import { type BlockDriver, registerDriver, registerForeignFormat } from "../src/block/driver.ts";
import type { OptionValues } from "../src/block/options.ts";
import { blkdebug } from "./blkdebug.ts";
import type { SECTIONS } from "./blkdebug-rules.ts";
import { file, hostDevice } from "./file.ts";
import { compress } from "./filter-compress.ts";
import { foreignFormats } from "./foreign-formats.ts";
import { luks } from "./luks.ts";
import { nullCo } from "./null-co.ts";
import { qcow2 } from "./qcow2/index.ts";
import { raw } from "./raw.ts";

/** By format name. The library's typed options (`DriverOptions`) are computed from this list. */
export const drivers = {
  file,
  host_device: hostDevice,
  "null-co": nullCo,
  blkdebug,
  compress,
  luks,
  qcow2,
  raw,
} as const;

/**
 * For `DriverOptions`: the children of drivers that take others than the one `file` of a format or filter.
 * True: it must be given.
 */
export interface DriverChildren {
  readonly qcow2: { readonly file: true; readonly backing: false; readonly "data-file": false };
  readonly blkdebug: { readonly image: true };
}

/** For `DriverOptions`: options that are lists of groups, which no table holds. */
export interface DriverLists {
  readonly blkdebug: {
    readonly [S in keyof typeof SECTIONS]: readonly OptionValues<(typeof SECTIONS)[S]>[];
  };
}

// The registry parses options by each driver's own table, so it needs no driver's own option types.
for (const driver of Object.values(drivers)) registerDriver(driver as unknown as BlockDriver);
for (const format of foreignFormats) registerForeignFormat(format);
