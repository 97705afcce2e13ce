/** The qcow format, version 1: two levels of tables, what is new behind the end of the file.  @qemu block/qcow.c */

import type { BlockStatus } from "../../src/block/block-status.ts";
import type { BlockChild } from "../../src/block/child.ts";
import { type Coroutine, graphRdlock } from "../../src/block/coroutine.ts";
import type { FormatDriver, NodeOps } from "../../src/block/driver.ts";
import { BlockError, toBlockError } from "../../src/block/errors.ts";
import type { OpeningNode } from "../../src/block/open.ts";
import { MAX_LENGTH, SECTOR_SIZE } from "../../src/block/units.ts";
import { beforeLastCluster } from "../last-cluster.ts";
import { openFailed } from "../opening.ts";
import { Mutex } from "../qcow2/mutex.ts";
import { type CreateOptions, create, createOptions } from "./create.ts";
import { pread, pwrite, pwriteCompressed } from "./io.ts";
import {
  CryptMethod,
  ENTRY_BYTES,
  Header,
  type HeaderRecord,
  l1EntriesFor,
  QCOW_MAGIC,
  QCOW_VERSION,
} from "./layout.ts";
import { findRun, makeTables, type QcowState } from "./state.ts";

const options = {
  /** aes: what the image must be encrypted with. */
  "encrypt.format": { type: "string" },
  /** Id of the secret with the passphrase. */
  "encrypt.key-secret": { type: "string", strong: true },
} as const;

type Opening = OpeningNode<typeof options>;

export const qcow: FormatDriver<typeof options, CreateOptions> = {
  formatName: "qcow",
  kind: "format",
  options,
  createOptions,
  supportsBacking: true,
  supportsCompression: true,
  create,

  async open(co, opening) {
    const { node, environment, openFileChild } = opening;
    const file = await openFileChild(co);
    const header = await graphRdlock(co, (reader) => readHeader(reader, file));
    checkHeader(header);
    const cipher = await openCipher(opening, header);
    // Where no file has anything the table is empty.
    if (header.l1TableOffset >= 2 ** 63) throw openFailed(file, "EIO");
    if (header.backingFileOffset !== 0)
      node.backingFilename = await graphRdlock(co, (reader) => readBackingName(reader, file, header));
    node.totalSectors = Math.floor(header.size / SECTOR_SIZE);
    const clusterSize = 2 ** header.clusterBits;
    return nodeOps(header, {
      node,
      file,
      guard: environment.guard,
      clusterBits: header.clusterBits,
      clusterSize,
      l2Bytes: 2 ** header.l2Bits * ENTRY_BYTES,
      l2Span: 2 ** header.l2Bits * clusterSize,
      l1TableOffset: header.l1TableOffset,
      ...makeTables(file, header),
      tableLock: new Mutex(),
      lock: new Mutex(),
      isEncrypted: header.cryptMethod === CryptMethod.Aes,
      cipher,
      inflated: undefined,
    });
  },
};

function nodeOps(header: HeaderRecord, state: QcowState): NodeOps {
  const { clusterSize, isEncrypted } = state;
  return {
    pread: (co, offset, iov) => pread(co, state, offset, iov),
    pwrite: (co, offset, iov) => pwrite(co, state, offset, iov),
    pwriteCompressed: async (co, offset, iov) => pwriteCompressed(co, state, offset, iov),
    blockStatus: (co, _wantZero, offset, bytes) => blockStatus(co, state, offset, bytes),
    flushToOs: (co) => writeTables(co, state),
    limits: () => ({ requestAlignment: SECTOR_SIZE }),
    hasZeroInit: () => true,
    getInfo: async () => ({ clusterSize, isEncrypted }),
    makeEmpty: (co) => state.lock.run(() => makeEmpty(co, state, header)),
    reopen: async () => ({ commit: () => {}, abort: () => {} }),
  };
}

async function readHeader(co: Coroutine<"read">, file: BlockChild): Promise<HeaderRecord> {
  try {
    return Header.read(await file.preadBytes(co, 0, Header.size));
  } catch (error) {
    throw openFailed(file, toBlockError(error).errno);
  }
}

/** @qemu qcow_open */
function checkHeader(header: HeaderRecord): void {
  const { magic, version, size, clusterBits, l2Bits, cryptMethod } = header;
  if (magic !== QCOW_MAGIC) throw invalid("Image not in qcow format");
  if (version !== QCOW_VERSION) {
    const isNewer = version === 2 || version === 3;
    throw new BlockError("ENOTSUP", `qcow (v1) does not support qcow version ${version}`, {
      ...(isNewer && { hint: "Try the 'qcow2' driver instead." }),
    });
  }
  if (size <= 1) throw invalid("Image size is too small (must be at least 2 bytes)");
  if (clusterBits < 9 || clusterBits > 16) throw invalid("Cluster size must be between 512 and 64k");
  if (l2Bits < 6 || l2Bits > 13) throw invalid("L2 table size must be between 512 and 64k");
  if (cryptMethod > CryptMethod.Aes) throw invalid("invalid encryption method in qcow header");
}

/** @qemu INT_MAX / sizeof(uint64_t) */
const MAX_L1_ENTRIES = 268435455;

/** The key; undefined where there is none, or nothing will be read. */
async function openCipher(
  { options: given, flags, environment, takeOptionsUnder }: Opening,
  header: HeaderRecord,
): Promise<QcowState["cipher"]> {
  const [unknown] = takeOptionsUnder(["encrypt."]).keys();
  const wanted = given["encrypt.format"];
  if (header.cryptMethod === CryptMethod.None) {
    if (wanted !== undefined)
      throw invalid(`No encryption in image header, but options specified format '${wanted}'`);
    checkL1(header);
    return undefined;
  }
  if (wanted !== undefined && wanted !== "aes")
    throw invalid(`Header reported 'aes' encryption format but options specify '${wanted}'`);
  if (unknown !== undefined) throw invalid(`Parameter '${unknown.slice("encrypt.".length)}' is unexpected`);
  const { requirePassphrase } = await import("../crypto/secrets.ts");
  const { qcowAesCipher } = await import("../crypto/qcow-aes.ts");
  const cipher = flags.noIo
    ? undefined
    : qcowAesCipher(requirePassphrase(environment, given["encrypt.key-secret"], "encrypt."));
  checkL1(header);
  return cipher;
}

function checkL1(header: HeaderRecord): void {
  if (l1EntriesFor(header.size, header) > MAX_L1_ENTRIES) throw invalid("Image too large");
}

/** @qemu sizeof(bs->auto_backing_file) - 1 */
const MAX_BACKING_NAME_BYTES = 1023;

async function readBackingName(
  co: Coroutine<"read">,
  file: BlockChild,
  { backingFileOffset, backingFileSize }: HeaderRecord,
): Promise<string | undefined> {
  if (backingFileSize > MAX_BACKING_NAME_BYTES) throw invalid("Backing file name too long");
  if (backingFileOffset > MAX_LENGTH && backingFileOffset < 2 ** 63) return undefined;
  try {
    const name = Buffer.from(await file.preadBytes(co, backingFileOffset, backingFileSize));
    return name.toString().replace(/\0.*$/s, "") || undefined;
  } catch (error) {
    throw openFailed(file, toBlockError(error).errno);
  }
}

async function blockStatus(
  co: Coroutine<"read">,
  state: QcowState,
  offset: number,
  bytes: number,
): Promise<BlockStatus> {
  const run = await findRun(
    co,
    state,
    offset,
    beforeLastCluster(state.node, state.clusterSize, offset, bytes),
  );
  const data = { bytes: run.bytes, data: true, zero: false, allocated: true };
  if (run.kind === "compressed") return { ...data, compressed: true };
  if (run.kind !== "data") return { bytes: run.bytes, data: false, zero: false, allocated: false };
  // What lies in the file of an encrypted image is not what the guest sees.
  return state.isEncrypted ? data : { ...data, offset: run.hostOffset, file: state.file.node };
}

async function writeTables(co: Coroutine<"read">, state: QcowState): Promise<void> {
  await state.tableLock.run(() => state.l2Cache.write(co));
  await state.l1.write(co);
}

/** All is the backing file's again; the file ends with the L1 table.  @qemu qcow_make_empty */
async function makeEmpty(co: Coroutine<"read">, state: QcowState, header: HeaderRecord): Promise<void> {
  const { file, l1TableOffset } = state;
  const l1Bytes = l1EntriesFor(header.size, header) * ENTRY_BYTES;
  await writeTables(co, state);
  await file.pwriteZeroes(co, l1TableOffset, l1Bytes);
  await file.flush(co);
  await file.truncate(co, l1TableOffset + l1Bytes, false);
  Object.assign(state, makeTables(file, header), { inflated: undefined });
}

function invalid(message: string): BlockError {
  return new BlockError("EINVAL", message);
}
