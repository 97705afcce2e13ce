/** The QED format: two levels of tables and no reference counts.  Source: docs/interop/qed_spec.txt.  @qemu block/qed.c */

import type { BlockStatus } from "../../src/block/block-status.ts";
import type { BlockChild } from "../../src/block/child.ts";
import { type Coroutine, graphRdlock } from "../../src/block/coroutine.ts";
import {
  type FormatDriver,
  type NodeOps,
  type Prealloc,
  type ReopenAction,
  Req,
  type ReqFlags,
} from "../../src/block/driver.ts";
import { BlockError, toBlockError } from "../../src/block/errors.ts";
import type { OpeningNode } from "../../src/block/open.ts";
import { alignDown, SECTOR_SIZE } from "../../src/block/units.ts";
import { openFailed } from "../opening.ts";
import { Mutex } from "../qcow2/mutex.ts";
import { check } from "./check.ts";
import { type CreateOptions, create, createOptions } from "./create.ts";
import { pread, pwrite, pwriteZeroes } from "./io.ts";
import {
  Feature,
  Header,
  type HeaderRecord,
  isClusterSize,
  isImageSize,
  isTableSize,
  KNOWN_FEATURES,
  QED_MAGIC,
} from "./layout.ts";
import { findRun, isTableOffset, makeTables, type QedState, writeHeader } from "./state.ts";

export const qed: FormatDriver<Record<never, never>, CreateOptions> = {
  formatName: "qed",
  kind: "format",
  options: {},
  createOptions,
  supportsBacking: true,
  create,

  async open(co, opening) {
    const { node, flags, openFileChild } = opening;
    const file = await openFileChild(co);
    const state = await graphRdlock(co, async (reader) => {
      const state = await readImage(reader, opening, file);
      if (!node.readOnly) await settle(reader, state, flags.check);
      return state;
    });
    node.totalSectors = state.header.imageSize / SECTOR_SIZE;
    return nodeOps(state);
  },
};

function nodeOps(state: QedState): NodeOps {
  const { clusterSize, node } = state;
  return {
    pread: (co, offset, iov) => pread(co, state, offset, iov),
    pwrite: (co, offset, iov) => pwrite(co, state, offset, iov),
    pwriteZeroes: async (co, offset, bytes) => pwriteZeroes(co, state, offset, bytes),
    blockStatus: (co, _wantZero, offset, bytes) => blockStatus(co, state, offset, bytes),
    flushToOs: (co) => writeTables(co, state),
    truncate: (co, bytes, _exact, prealloc, flags) => truncate(co, state, bytes, prealloc, flags),
    limits: () => ({ pwriteZeroesAlignment: clusterSize }),
    hasZeroInit: () => true,
    // Like qemu-img it does not tell of a check that is needed.
    getInfo: async () => ({ clusterSize, placesTablesByWrite: true }),
    check: (co, { fixErrors, fixLeaks }) => check(co, state, fixErrors || fixLeaks),
    changeBackingFile: (co, name, format) => state.lock.run(() => changeBackingFile(co, state, name, format)),
    reopen: (co) => reopen(co, state),
    async close(co) {
      if (!node.readOnly) await graphRdlock(co, (reader) => markClosed(reader, state));
    },
  };
}

/** @qemu bdrv_qed_do_open */
async function readImage(co: Coroutine<"read">, { node }: OpeningNode, file: BlockChild): Promise<QedState> {
  const header = await readHeader(co, file);
  if (header.magic !== QED_MAGIC) throw invalid("Image not in QED format");
  if ((header.features & ~KNOWN_FEATURES) !== 0n)
    throw new BlockError(
      "ENOTSUP",
      `Unsupported QED features: ${(header.features & ~KNOWN_FEATURES).toString(16)}`,
    );
  const { clusterSize, tableSize, headerSize } = header;
  if (!isClusterSize(clusterSize)) throw invalid("QED cluster size is invalid");
  const fileEnd = alignDown(await file.getLength(co), clusterSize);
  if (!isTableSize(tableSize)) throw invalid("QED table size is invalid");
  if (!isImageSize(header.imageSize, clusterSize, tableSize)) throw invalid("QED image size is invalid");
  if (!isTableOffset({ header, clusterSize, fileEnd }, header.l1TableOffset))
    throw invalid("QED table offset is invalid");
  if (headerSize * clusterSize >= 2 ** 32) throw invalid("QED header size is too large");
  if ((header.features & Feature.BackingFile) !== 0n) await readBackingName(co, node, file, header);
  return {
    node,
    file,
    header,
    fileEnd,
    lock: new Mutex(),
    tableLock: new Mutex(),
    ...makeTables(file, header),
  };
}

async function readHeader(co: Coroutine<"read">, file: BlockChild): Promise<HeaderRecord> {
  try {
    return Header.read(await file.preadBytes(co, 0, Header.size));
  } catch (error) {
    throw new BlockError(toBlockError(error).errno, "Failed to read QED header", { cause: error });
  }
}

/** Longer names are cut short.  @qemu qed_read_string */
const MAX_BACKING_NAME_BYTES = 1023;

async function readBackingName(
  co: Coroutine<"read">,
  node: OpeningNode["node"],
  file: BlockChild,
  {
    backingFilenameOffset: offset,
    backingFilenameSize: size,
    features,
    headerSize,
    clusterSize,
  }: HeaderRecord,
): Promise<void> {
  if (offset + size > headerSize * clusterSize) throw invalid("QED backing filename offset is invalid");
  if (size > MAX_BACKING_NAME_BYTES) throw openFailed(file, "EINVAL");
  let name: Uint8Array;
  try {
    name = await file.preadBytes(co, offset, size);
  } catch (error) {
    throw openFailed(file, toBlockError(error).errno);
  }
  node.backingFilename = Buffer.from(name).toString().replace(/\0.*$/s, "") || undefined;
  if (node.backingFilename && (features & Feature.BackingFormatNoProbe) !== 0n) node.backingFormat = "raw";
}

/** What an image that can be written needs before its first request. */
async function settle(co: Coroutine<"read">, state: QedState, isCheck: boolean): Promise<void> {
  const { header } = state;
  if (header.autoclearFeatures !== 0n) {
    header.autoclearFeatures = 0n;
    await writeHeader(co, state);
    await state.file.flush(co);
  }
  if (!isCheck && (header.features & Feature.NeedCheck) !== 0n) await check(co, state, true);
}

async function blockStatus(
  co: Coroutine<"read">,
  state: QedState,
  offset: number,
  bytes: number,
): Promise<BlockStatus> {
  const run = await findRun(co, state, offset, bytes);
  const { kind, hostOffset } = run;
  if (kind === "data")
    return {
      bytes: run.bytes,
      data: true,
      zero: false,
      allocated: true,
      offset: hostOffset,
      file: state.file.node,
    };
  return { bytes: run.bytes, data: false, zero: kind === "zero", allocated: kind === "zero" };
}

async function writeTables(co: Coroutine<"read">, state: QedState): Promise<void> {
  await state.tableLock.run(() => state.l2Cache.write(co));
  await state.l1.write(co);
}

/** @qemu bdrv_qed_co_truncate */
async function truncate(
  co: Coroutine<"read">,
  state: QedState,
  bytes: number,
  prealloc: Prealloc,
  flags: ReqFlags,
): Promise<void> {
  const { header } = state;
  // What is behind the old end of a backing file would show.
  if (flags & Req.ZeroWrite) throw new BlockError("ENOTSUP", "Block driver does not support requested flags");
  if (prealloc !== "off") throw new BlockError("ENOTSUP", `Unsupported preallocation mode '${prealloc}'`);
  if (!isImageSize(bytes, header.clusterSize, header.tableSize))
    throw invalid("Invalid image size specified");
  if (bytes < header.imageSize)
    throw new BlockError("ENOTSUP", "Shrinking images is currently not supported");
  const old = header.imageSize;
  header.imageSize = bytes;
  try {
    await writeHeader(co, state);
  } catch (error) {
    header.imageSize = old;
    throw BlockError.wrap("Failed to update the image size", error);
  }
}

/** @qemu bdrv_qed_change_backing_file */
async function changeBackingFile(
  co: Coroutine<"read">,
  state: QedState,
  name: string | undefined,
  format: string | undefined,
): Promise<void> {
  const { header, file, node } = state;
  const features = header.features & ~(Feature.BackingFile | Feature.BackingFormatNoProbe);
  const nameBytes = Buffer.from(name ?? "");
  const offset = name === undefined ? header.backingFilenameOffset : Header.size;
  const changed: HeaderRecord = {
    ...header,
    features,
    backingFilenameOffset: offset,
    backingFilenameSize: nameBytes.length,
  };
  if (name !== undefined) changed.features |= Feature.BackingFile;
  if (name !== undefined && format === "raw") changed.features |= Feature.BackingFormatNoProbe;
  if (Header.size + nameBytes.length > header.headerSize * header.clusterSize) throw new BlockError("ENOSPC");
  await file.pwrite(co, 0, Buffer.concat([Header.write(changed), nameBytes]));
  Object.assign(header, changed);
  node.backingFilename = name;
  node.backingFormat = changed.features & Feature.BackingFormatNoProbe ? "raw" : undefined;
}

/** All that was changed is on the disk before the header says that the tables are in step.  @qemu bdrv_qed_close */
async function markClosed(co: Coroutine<"read">, state: QedState): Promise<void> {
  const { header, file } = state;
  await writeTables(co, state);
  if ((header.features & Feature.NeedCheck) === 0n) return;
  await file.flush(co);
  header.features &= ~Feature.NeedCheck;
  await writeHeader(co, state);
}

/** Nothing is under way: the tables are in step, as for QEMU whenever an image is drained. */
async function reopen(co: Coroutine<"none">, state: QedState): Promise<ReopenAction> {
  if (!state.node.readOnly) await graphRdlock(co, (reader) => markClosed(reader, state));
  return { commit: () => {}, abort: () => {} };
}

function invalid(message: string): BlockError {
  return new BlockError("EINVAL", message);
}
