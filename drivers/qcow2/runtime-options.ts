/** The options that a qcow2 node takes beside its children, and what they come to.  @qemu qcow2_runtime_opts */

import { BlockError } from "../../src/block/errors.ts";
import type { OptionTable, OptionValues } from "../../src/block/options.ts";
import { alignUp, isPowerOfTwo, KiB, MiB } from "../../src/block/units.ts";
import type { MetadataKind } from "./corruption.ts";

export const options = {
  /** aes or luks: what the image must be encrypted with. */
  "encrypt.format": { type: "string", changeable: true },
  /** Id of the secret with the passphrase. Changed by a reopen, it is not asked for again. */
  "encrypt.key-secret": { type: "string", strong: true, changeable: true },
  /** Refcounts are brought up to date when the image is closed; meanwhile it is marked dirty. */
  "lazy-refcounts": { type: "bool", changeable: true },
  /** Tell the file of clusters that a discard of the guest frees. */
  "pass-discard-request": { type: "bool", changeable: true },
  "pass-discard-snapshot": { type: "bool", changeable: true },
  "pass-discard-other": { type: "bool", changeable: true },
  /** none, constant, cached or all. */
  "overlap-check": { type: "string", changeable: true },
  "overlap-check.template": { type: "string", changeable: true },
  "overlap-check.main-header": { type: "bool", changeable: true },
  "overlap-check.active-l1": { type: "bool", changeable: true },
  "overlap-check.active-l2": { type: "bool", changeable: true },
  "overlap-check.refcount-table": { type: "bool", changeable: true },
  "overlap-check.refcount-block": { type: "bool", changeable: true },
  "overlap-check.snapshot-table": { type: "bool", changeable: true },
  "overlap-check.inactive-l1": { type: "bool", changeable: true },
  "overlap-check.inactive-l2": { type: "bool", changeable: true },
  "overlap-check.bitmap-directory": { type: "bool", changeable: true },
  /** Bytes of both metadata caches together. */
  "cache-size": { type: "size", changeable: true },
  "l2-cache-size": { type: "size", changeable: true },
  /** Bytes of an L2 table that are read and kept as a unit. */
  "l2-cache-entry-size": { type: "size", changeable: true },
  "refcount-cache-size": { type: "size", changeable: true },
  /** Seconds after which unused tables are forgotten; 0: never. */
  "cache-clean-interval": { type: "number", changeable: true },
} as const satisfies OptionTable;

/** The largest L2 cache where nothing is said.  @qemu DEFAULT_L2_CACHE_MAX_SIZE */
const MAX_DEFAULT_L2_CACHE = 32 * MiB;
const DEFAULT_L2_CACHE_ENTRY = 64 * KiB;
const MIN_L2_TABLES = 2;
const MIN_REFCOUNT_TABLES = 4;
const DEFAULT_CLEAN_INTERVAL_SECONDS = 600;

export interface CacheSizes {
  readonly l2EntryBytes: number;
  readonly l2Tables: number;
  readonly refcountTables: number;
}

/** @qemu read_cache_sizes */
export function cacheSizes(
  given: OptionValues<typeof options>,
  virtualBytes: number,
  clusterSize: number,
  entryBytes: number,
): CacheSizes {
  const combined = given["cache-size"];
  const givenL2 = given["l2-cache-size"];
  const givenRefcount = given["refcount-cache-size"];
  const l2EntryBytes = given["l2-cache-entry-size"] ?? Math.min(DEFAULT_L2_CACHE_ENTRY, clusterSize);
  const minRefcount = MIN_REFCOUNT_TABLES * clusterSize;
  // What covers the whole disk.
  const fullL2 = alignUp(Math.ceil(virtualBytes / clusterSize) * entryBytes, clusterSize);
  let l2 = givenL2 ?? Math.min(fullL2, MAX_DEFAULT_L2_CACHE);
  let refcount = givenRefcount ?? minRefcount;
  if (combined !== undefined) {
    if (givenL2 !== undefined && givenRefcount !== undefined)
      throw new BlockError(
        "EINVAL",
        "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time",
      );
    if (givenL2 !== undefined && givenL2 > combined)
      throw new BlockError("EINVAL", "l2-cache-size may not exceed cache-size");
    if (givenRefcount !== undefined && givenRefcount > combined)
      throw new BlockError("EINVAL", "refcount-cache-size may not exceed cache-size");
    if (givenL2 !== undefined) refcount = combined - givenL2;
    else if (givenRefcount !== undefined) l2 = combined - givenRefcount;
    else {
      // The L2 cache first, as far as it is of use.
      l2 = combined > fullL2 + minRefcount ? fullL2 : Math.max(combined - minRefcount, 0);
      refcount = combined - l2;
    }
  }
  if (l2EntryBytes < 512 || l2EntryBytes > clusterSize || !isPowerOfTwo(l2EntryBytes))
    throw new BlockError(
      "EINVAL",
      `L2 cache entry size must be a power of two between 512 and the cluster size (${clusterSize})`,
    );
  // More would never be used.
  l2 = Math.min(l2, fullL2);
  const l2Tables = Math.max(Math.floor(l2 / l2EntryBytes), MIN_L2_TABLES);
  const refcountTables = Math.max(Math.floor(refcount / clusterSize), MIN_REFCOUNT_TABLES);
  if (refcountTables > 2 ** 31 - 1) throw new BlockError("EINVAL", "Refcount cache size too big");
  return { l2EntryBytes, l2Tables, refcountTables };
}

export function cleanIntervalSeconds(given: OptionValues<typeof options>): number {
  const seconds = given["cache-clean-interval"] ?? DEFAULT_CLEAN_INTERVAL_SECONDS;
  // A negative number is a large one where it is taken for one without a sign.
  if (seconds < 0 || seconds > 2 ** 32 - 1) throw new BlockError("EINVAL", "Cache clean interval too big");
  return seconds;
}

/** Which of the image's own tables writes are kept from hitting. */
export function overlapChecks(given: OptionValues<typeof options>): ReadonlySet<MetadataKind> {
  const whole = given["overlap-check"];
  const template = given["overlap-check.template"];
  if (whole !== undefined && template !== undefined && whole !== template)
    throw new BlockError(
      "EINVAL",
      `Conflicting values for qcow2 options 'overlap-check' ('${whole}') and 'overlap-check.template' ('${template}')`,
    );
  const mode = whole ?? template ?? "cached";
  const byTemplate = OVERLAP_TEMPLATES.get(mode);
  if (!byTemplate)
    throw new BlockError(
      "EINVAL",
      `Unsupported value '${mode}' for qcow2 option 'overlap-check'. Allowed are any of the following: none, constant, cached, all`,
    );
  return new Set(
    OVERLAP_OPTIONS.filter(([key, kind]) => given[key] ?? byTemplate.has(kind)).map(([, kind]) => kind),
  );
}

const OVERLAP_OPTIONS = [
  ["overlap-check.main-header", "qcow2_header"],
  ["overlap-check.active-l1", "active L1 table"],
  ["overlap-check.active-l2", "active L2 table"],
  ["overlap-check.refcount-table", "refcount table"],
  ["overlap-check.refcount-block", "refcount block"],
  ["overlap-check.snapshot-table", "snapshot table"],
  ["overlap-check.inactive-l1", "inactive L1 table"],
  ["overlap-check.inactive-l2", "inactive L2 table"],
  ["overlap-check.bitmap-directory", "bitmap directory"],
] as const satisfies readonly (readonly [keyof typeof options, MetadataKind])[];

const CONSTANT: readonly MetadataKind[] = [
  "qcow2_header",
  "active L1 table",
  "refcount table",
  "snapshot table",
  "bitmap directory",
];
const CACHED: readonly MetadataKind[] = [
  ...CONSTANT,
  "active L2 table",
  "refcount block",
  "inactive L1 table",
];

/** By what they cost: a comparison or two, a look at what is in memory, reads.  @qemu overlap_bool_option_names */
const OVERLAP_TEMPLATES = new Map<string, ReadonlySet<MetadataKind>>([
  ["none", new Set()],
  ["constant", new Set(CONSTANT)],
  ["cached", new Set(CACHED)],
  ["all", new Set([...CACHED, "inactive L2 table"])],
]);
