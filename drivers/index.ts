/** The only registry of bdrv's own drivers; probing asks formats in this order. */

import { type BlockDriver, registerDriver, registerForeignFormat } from "../src/block/driver.ts";
import type { OptionValues } from "../src/block/options.ts";
import { blkdebug } from "./blkdebug.ts";
import type { SECTIONS } from "./blkdebug-rules.ts";
import { blklogwrites } from "./blklogwrites.ts";
import { blkverify } from "./blkverify.ts";
import { copyOnRead } from "./copy-on-read.ts";
import { file, hostDevice } from "./file.ts";
import { compress } from "./filter-compress.ts";
import { foreignFormats } from "./foreign-formats.ts";
import { luks } from "./luks.ts";
import { nullAio, nullCo } from "./null-co.ts";
import { preallocate } from "./preallocate.ts";
import { qcow2 } from "./qcow2/index.ts";
import { quorum } from "./quorum.ts";
import { raw } from "./raw.ts";
import { throttle } from "./throttle.ts";

/** By format name. The library's typed options (`DriverOptions`) are computed from this list. */
export const drivers = {
  file,
  host_device: hostDevice,
  "null-co": nullCo,
  "null-aio": nullAio,
  blkdebug,
  blklogwrites,
  blkverify,
  compress,
  "copy-on-read": copyOnRead,
  preallocate,
  quorum,
  throttle,
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
  readonly blklogwrites: { readonly file: true; readonly log: true };
  readonly blkverify: { readonly raw: true; readonly test: true };
  /** Has a list of children instead. */
  readonly quorum: Record<never, never>;
}

/** For `DriverOptions`: options that are lists of groups, which no table holds. */
export interface DriverLists {
  readonly blkdebug: {
    readonly [S in keyof typeof SECTIONS]: readonly OptionValues<(typeof SECTIONS)[S]>[];
  };
  readonly quorum: { readonly children: readonly (string | object)[] };
}

// The registry parses options by each driver's own table, so it needs no driver's own option types.
for (const driver of Object.values(drivers)) registerDriver(driver as unknown as BlockDriver);
for (const format of foreignFormats) registerForeignFormat(format);
