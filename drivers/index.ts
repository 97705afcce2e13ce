/** The only registry of bdrv's own drivers; probing asks formats in this order. */

import {
  type BlockDriver,
  type DriverEntry,
  registerDriver,
  registerForeignFormat,
  registerLazyDriver,
} from "../src/block/driver.ts";
import type { OptionValues } from "../src/block/options.ts";
import type { SECTIONS } from "./blkdebug-rules.ts";
import { file, hostDevice } from "./file.ts";
import { compress } from "./filter-compress.ts";
import { foreignFormats } from "./foreign-formats.ts";
import { raw } from "./raw.ts";
import {
  bySignature,
  endsAsDmg,
  isBochs,
  isCloop,
  isFixedVhd,
  isQcow2,
  isVmdk,
  probeDmg,
  probeParallels,
} from "./signatures.ts";

/** A driver with its code, or what finds it and how it is loaded. */
type Entry = { readonly formatName: string; readonly open: unknown } | LazyEntry;
type LazyEntry = Omit<DriverEntry, "formatName" | "load"> & { readonly load: () => Promise<unknown> };

/** By format name. What not every command needs is loaded when it is asked for. */
const entries = {
  file,
  host_device: hostDevice,
  "null-co": { kind: "protocol", prefix: "null-co", load: async () => (await import("./null-co.ts")).nullCo },
  "null-aio": {
    kind: "protocol",
    prefix: "null-aio",
    load: async () => (await import("./null-co.ts")).nullAio,
  },
  blkdebug: {
    kind: "filter",
    prefix: "blkdebug",
    load: async () => (await import("./blkdebug.ts")).blkdebug,
  },
  blklogwrites: { kind: "filter", load: async () => (await import("./blklogwrites.ts")).blklogwrites },
  blkverify: {
    kind: "filter",
    prefix: "blkverify",
    load: async () => (await import("./blkverify.ts")).blkverify,
  },
  compress,
  "copy-on-read": { kind: "filter", load: async () => (await import("./copy-on-read.ts")).copyOnRead },
  partition: {
    kind: "filter",
    prefix: "part",
    load: async () => (await import("./partition.ts")).partition,
  },
  gzip: { kind: "filter", prefix: "gzip", load: async () => (await import("./gzip/index.ts")).gzip },
  preallocate: { kind: "filter", load: async () => (await import("./preallocate.ts")).preallocate },
  quorum: { kind: "filter", load: async () => (await import("./quorum.ts")).quorum },
  split: { kind: "filter", prefix: "split", load: async () => (await import("./split.ts")).split },
  throttle: { kind: "filter", load: async () => (await import("./throttle.ts")).throttle },
  luks: {
    kind: "format",
    probe: bySignature({ text: "LUKS\xba\xbe\0\x01" }),
    load: async () => (await import("./luks.ts")).luks,
  },
  bochs: { kind: "format", probe: isBochs, load: async () => (await import("./bochs.ts")).bochs },
  cloop: { kind: "format", probe: isCloop, load: async () => (await import("./cloop.ts")).cloop },
  dmg: {
    kind: "format",
    probe: probeDmg,
    probeEnd: endsAsDmg,
    load: async () => (await import("./dmg/index.ts")).dmg,
  },
  vvfat: {
    kind: "protocol",
    prefix: "fat",
    load: async () => (await import("./vvfat/index.ts")).vvfat,
  },
  vdi: {
    kind: "format",
    probe: bySignature({ offset: 64, text: "\x7f\x10\xda\xbe" }),
    load: async () => (await import("./vdi.ts")).vdi,
  },
  parallels: {
    kind: "format",
    probe: probeParallels,
    load: async () => (await import("./parallels/index.ts")).parallels,
  },
  vmdk: {
    kind: "format",
    probe: isVmdk,
    load: async () => (await import("./vmdk/index.ts")).vmdk,
  },
  vhdx: {
    kind: "format",
    probe: bySignature({ text: "vhdxfile" }),
    load: async () => (await import("./vhdx/index.ts")).vhdx,
  },
  vpc: {
    kind: "format",
    probe: bySignature({ text: "conectix" }),
    probeEnd: isFixedVhd,
    load: async () => (await import("./vpc/index.ts")).vpc,
  },
  qcow: {
    kind: "format",
    probe: bySignature({ text: "QFI\xfb\0\0\0\x01" }),
    load: async () => (await import("./qcow1/index.ts")).qcow,
  },
  qed: {
    kind: "format",
    probe: bySignature({ text: "QED\0" }),
    load: async () => (await import("./qed/index.ts")).qed,
  },
  qcow2: {
    kind: "format",
    probe: isQcow2,
    load: async () => (await import("./qcow2/index.ts")).qcow2,
  },
  raw,
} as const satisfies Readonly<Record<string, Entry>>;

/** The drivers' types, by format name: the library's typed options (`DriverOptions`) are computed from them. */
export type Drivers = {
  readonly [N in keyof typeof entries]: (typeof entries)[N] extends { readonly load: () => Promise<infer D> }
    ? D
    : (typeof entries)[N];
};

/**
 * For `DriverOptions`: the children of drivers that take others than the one `file` of a format or filter.
 * True: it must be given.
 */
export interface DriverChildren {
  readonly qcow: { readonly file: true; readonly backing: false };
  readonly qcow2: { readonly file: true; readonly backing: false; readonly "data-file": false };
  readonly qed: { readonly file: true; readonly backing: false };
  readonly parallels: { readonly file: true; readonly backing: false };
  readonly vmdk: { readonly file: true; readonly backing: false };
  readonly vhdx: { readonly file: true; readonly backing: false };
  readonly vpc: { readonly file: true; readonly backing: false };
  /** Finds its parts by the first one's name. */
  readonly split: Record<never, never>;
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
for (const [formatName, entry] of Object.entries(entries)) {
  if ("open" in entry) registerDriver(entry as unknown as BlockDriver);
  else registerLazyDriver({ formatName, ...(entry as LazyEntry & Pick<DriverEntry, "load">) });
}
for (const format of foreignFormats) registerForeignFormat(format);
