/** Opening: the header, the tables and the data file become the state of the node.  @qemu qcow2_do_open */

import type { BlockChild } from "../../src/block/child.ts";
import { type Coroutine, graphRdlock } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import type { OpeningNode } from "../../src/block/open.ts";
import { MAX_LENGTH, SECTOR_SIZE } from "../../src/block/units.ts";
import { openCrypto } from "./crypto.ts";
import { type ParsedHeader, parseHeader, updateHeader } from "./header.ts";
import { Allocations, Transfers } from "./in-flight.ts";
import { Autoclear, Incompatible } from "./layout.ts";
import { Mutex } from "./mutex.ts";
import { makeCaches, runtimeOf, startCleaning } from "./runtime.ts";
import type { options } from "./runtime-options.ts";
import { isDirty, type Qcow2State } from "./state.ts";

type Opening = OpeningNode<typeof options>;

export async function openState(co: Coroutine<"none">, opening: Opening): Promise<Qcow2State> {
  const { node, environment, flags } = opening;
  const file = await opening.openFileChild(co);
  const header = await graphRdlock(co, (reader) =>
    parseHeader(reader, file, { writable: !node.readOnly, check: flags.check, warn: environment.warn }),
  );
  if (header.compressionType === "zstd") await (await import("./codec.ts")).prepareCodec("zstd");
  const crypto = await openCrypto(co, opening, header, file);
  const dataFile = await openDataFile(co, opening, header, file);
  node.backingFilename = header.backingFile;
  node.backingFormat = header.backingFormat;
  node.totalSectors = Math.floor(header.size / SECTOR_SIZE);
  return graphRdlock(co, async (reader) => {
    const state = await makeState(reader, opening, { ...header, crypto }, file, dataFile);
    if (!node.readOnly) await dropUnknown(reader, state, header.hasStaleBitmaps);
    if (state.bitmaps) await (await import("./bitmap-load.ts")).loadBitmaps(reader, state, state.bitmaps);
    if (isDirty(state) && !node.readOnly && !flags.check)
      await (await import("./check.ts")).repairDirty(reader, state);
    return state;
  });
}

/** The child that guest data lies in. */
async function openDataFile(
  co: Coroutine<"none">,
  { openChild, openReference, nameReference, takeOptionsUnder, flags }: Opening,
  header: ParsedHeader,
  file: BlockChild,
): Promise<BlockChild> {
  const isNeeded = (header.incompatibleFeatures & Incompatible.DataFile) !== 0n;
  const { dataFileName } = header;
  if (isNeeded || dataFileName !== undefined)
    nameReference({ kind: "data file", filename: dataFileName ?? "" });
  // Whoever only wants to know about the image touches neither what it names nor what options name.
  if (flags.noIo) {
    takeOptionsUnder(["data-file"]);
    return file;
  }
  const role = { data: true };
  const byUser = await openChild(co, "data-file", role);
  if (!isNeeded) {
    if (byUser)
      throw new BlockError("EINVAL", "'data-file' can only be set for images with an external data file");
    if ((header.autoclearFeatures & Autoclear.DataFileRaw) !== 0n)
      throw new BlockError("EINVAL", "data-file-raw requires a data file");
    return file;
  }
  if (byUser) return byUser;
  if (dataFileName === undefined) throw new BlockError("EINVAL", "'data-file' is required for this image");
  return openReference(co, "data-file", role, "data file", dataFileName);
}

/** Reads the tables, and puts everything together. */
async function makeState(
  co: Coroutine<"read">,
  { node, environment, options: given, flags }: Opening,
  header: ParsedHeader & Pick<Qcow2State, "crypto">,
  file: BlockChild,
  dataFile: BlockChild,
): Promise<Qcow2State> {
  const geometry = geometryOf(header);
  const { clusterSize } = geometry;
  const runtime = runtimeOf(given, { ...header, ...geometry }, flags.unmap);
  const l1Table = await readTable(
    co,
    file,
    header.l1TableOffset,
    header.l1Size * 8,
    "Could not read L1 table",
  );
  if (file.debug) await file.debug.event(co, "reftable_load");
  const refcountTable = await readTable(
    co,
    file,
    header.refcountTableOffset,
    header.refcountTableClusters * clusterSize,
    "Could not initialize refcount handling",
  );
  const { snapshots, tableBytes } =
    flags.check || header.nbSnapshots === 0
      ? NO_SNAPSHOTS
      : await (await import("./snapshot-table.ts")).readSnapshots(co, file, header);
  const state: Qcow2State = {
    ...header,
    ...geometry,
    ...emptyRuntime(),
    unknownExtensions: [...header.unknownExtensions],
    node,
    environment,
    file,
    dataFile,
    l1Table,
    refcountTable,
    snapshots,
    unreadSnapshots: flags.check ? header.nbSnapshots : undefined,
    snapshotTableBytes: tableBytes,
    ...makeCaches(file, dataFile, runtime, clusterSize, () => state),
    passDiscard: runtime.passDiscard,
    useLazyRefcounts: runtime.useLazyRefcounts,
    overlapChecks: runtime.overlapChecks,
  };
  if (!flags.noIo) startCleaning(state, runtime.cleanSeconds);
  return state;
}

/** What follows from the header's numbers. */
function geometryOf({ clusterBits, incompatibleFeatures }: ParsedHeader) {
  const clusterSize = 2 ** clusterBits;
  const extendedL2 = (incompatibleFeatures & Incompatible.ExtendedL2) !== 0n;
  const l2EntryBytes = extendedL2 ? 16 : 8;
  const subclusters = extendedL2 ? 32 : 1;
  return {
    clusterSize,
    extendedL2,
    l2EntryBytes,
    l2Entries: clusterSize / l2EntryBytes,
    subclusters,
    subclusterSize: clusterSize / subclusters,
    hasDataFile: (incompatibleFeatures & Incompatible.DataFile) !== 0n,
    // So that entries of compressed clusters can name any offset.
    maxHostOffset: Math.min(MAX_LENGTH, 2 ** (70 - clusterBits)),
  };
}

/** What is known before the first request. */
function emptyRuntime() {
  return {
    lock: new Mutex(),
    transfers: new Transfers(),
    allocations: new Allocations(),
    freeClusterIndex: 0,
    freeByteOffset: 0,
    freed: new Set<number>(),
    discards: [],
    retiredTables: [],
    compressTurn: Promise.resolve(),
    inflated: new Map<string, Uint8Array>(),
    inflatedGeneration: 0,
    metadataIndex: undefined,
    isBroken: false,
    isCorruptionReported: false,
    metadataPreallocated: undefined,
    cleaning: undefined,
  };
}

async function readTable(
  co: Coroutine<"read">,
  file: BlockChild,
  offset: number,
  bytes: number,
  message: string,
): Promise<DataView<ArrayBuffer>> {
  const table = new Uint8Array(bytes);
  try {
    await file.pread(co, offset, table);
  } catch (error) {
    throw BlockError.wrap(message, error);
  }
  return new DataView(table.buffer);
}

/** The check reads the table, whatever is wrong with it. */
const NO_SNAPSHOTS = { snapshots: [], tableBytes: 0 };

/** What we know nothing of can't be kept in step with what is written; nor can bitmaps that are out of step. */
async function dropUnknown(
  co: Coroutine<"read">,
  state: Qcow2State,
  hasStaleBitmaps: boolean,
): Promise<void> {
  const known = state.autoclearFeatures & (Autoclear.Bitmaps | Autoclear.DataFileRaw);
  if (known === state.autoclearFeatures && !hasStaleBitmaps) return;
  state.autoclearFeatures = known;
  try {
    await updateHeader(co, state);
  } catch (error) {
    throw BlockError.wrap("Could not update qcow2 header", error);
  }
}
