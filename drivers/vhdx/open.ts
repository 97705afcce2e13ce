/** Opening a VHDX: headers, log, regions, metadata, and a look at the whole table.  @qemu vhdx_open */

import type { BlockChild } from "../../src/block/child.ts";
import { type Coroutine, graphRdlock } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import type { OpeningNode } from "../../src/block/open.ts";
import { MAX_LENGTH, SECTOR_SIZE } from "../../src/block/units.ts";
import { openFailed, refuseBacking, toOpenFailed } from "../opening.ts";
import { PagedTable } from "../paged-table.ts";
import { Mutex } from "../qcow2/mutex.ts";
import { TableCache } from "../qcow2/table-cache.ts";
import { scanBat } from "./bat.ts";
import { BITMAP_PIECE_BYTES } from "./blocks.ts";
import { isLogEmpty, isLogPlaced, newGuid, readHeaders, settleHeaders, writeHeader } from "./headers.ts";
import { FILE_SIGNATURE, NO_GUID } from "./layout.ts";
import { checkSequence, findSequence, replay } from "./log.ts";
import { type Metadata, readMetadata } from "./metadata.ts";
import { type FoundRegions, readRegions } from "./regions.ts";
import type { Headers, Region, VhdxState } from "./state.ts";

/** Pieces of blocks of bits in memory: 1 MiB. */
const BITMAP_PIECES = 256;

export async function openState(co: Coroutine<"none">, opening: OpeningNode): Promise<VhdxState> {
  const file = await opening.openFileChild(co);
  return graphRdlock(co, async (reader) => {
    try {
      return await readState(reader, opening, file);
    } catch (error) {
      throw toOpenFailed(file, error);
    }
  });
}

async function readState(co: Coroutine<"read">, opening: OpeningNode, file: BlockChild): Promise<VhdxState> {
  const { node, environment, flags } = opening;
  const opened = { file, headers: await readStart(co, file) };
  const { logOffset, logLength } = opened.headers.current;
  const log: Region = { offset: logOffset, bytes: logLength };
  const wasReplayed = await replayLog(co, opened, log, node.readOnly);
  const tellError = (message: string) => (environment.error ?? environment.warn)(message);
  const found = await readRegions(co, file, log, tellError);
  const metadata = await readMetadata(co, file, found.metadata);
  const { geometry, parent } = metadata;
  if (geometry.entries * 8 > found.bat.bytes) throw openFailed(file, "EINVAL");
  if (found.bat.offset > MAX_LENGTH) throw openFailed(file, "EIO");
  node.totalSectors = Math.floor(geometry.diskSize / SECTOR_SIZE);
  if (parent) {
    node.backingFilename = parent.filename;
    node.backingFormat = "vhdx";
  } else refuseBacking(opening);
  const state = makeState(opening, opened, found, metadata, wasReplayed);
  // Who wants to check it will hear all that is wrong.
  if (flags.check) return state;
  const scan = await scanBat(co, file, geometry, scanOptionsOf(state), (message) => {
    tellError(message);
    return false;
  });
  if (scan.bad > 0) throw openFailed(file, "EINVAL");
  state.hasBlocks = scan.hasBlocks;
  // A small table is in memory from here on, as all tables are with QEMU.
  if (geometry.entries > 0) await state.bat.get(co, 0);
  return state;
}

export function scanOptionsOf({ batOffset, regions, parent }: VhdxState) {
  return { batOffset, regions, hasParent: parent !== undefined };
}

async function readStart(co: Coroutine<"read">, file: BlockChild): Promise<Headers> {
  const signature = await file.preadBytes(co, 0, FILE_SIGNATURE.length);
  if (Buffer.from(signature).toString("latin1") !== FILE_SIGNATURE) throw openFailed(file, "EINVAL");
  const headers = await readHeaders(co, file);
  const isUsed = !isLogEmpty(headers.current);
  if (!isLogPlaced(headers.current, isUsed)) throw openFailed(file, "EINVAL");
  return headers;
}

/** Gives whether there was something in the log.  @qemu vhdx_parse_log */
async function replayLog(
  co: Coroutine<"read">,
  opened: { readonly file: BlockChild; headers: Headers },
  log: Region,
  readOnly: boolean,
): Promise<boolean> {
  const { file } = opened;
  const { logGuid } = opened.headers.current;
  if (isLogEmpty(opened.headers.current) || log.bytes === 0) return false;
  const sequence = await findSequence(co, file, log, logGuid);
  if (sequence.length === 0) return false;
  await checkSequence(co, file, log, sequence);
  if (readOnly) {
    const { filename } = file.node;
    throw new BlockError(
      "EPERM",
      `VHDX image file '${filename}' opened read-only, but contains a log that needs to be replayed`,
      { hint: `To replay the log, run:\nqemu-img check -r all '${filename}'` },
    );
  }
  await replay(co, file, log, sequence);
  await writeHeader(co, opened, { logGuid: NO_GUID, fileWriteGuid: newGuid() });
  await settleHeaders(co, opened);
  return true;
}

function makeState(
  { node, environment }: OpeningNode,
  { file, headers }: { readonly file: BlockChild; readonly headers: Headers },
  { bat, all }: FoundRegions,
  { geometry, parent }: Metadata,
  wasReplayed: boolean,
): VhdxState {
  return {
    node,
    file,
    environment,
    geometry,
    headers,
    log: { offset: headers.current.logOffset, bytes: headers.current.logLength },
    regions: all,
    batOffset: bat.offset,
    bat: new PagedTable({
      file,
      offset: bat.offset,
      entries: geometry.entries,
      entryBytes: 8,
      littleEndian: true,
    }),
    lock: new Mutex(),
    logPosition: 0,
    logSequence: 1n,
    isMarked: false,
    wasReplayed,
    hasBlocks: false,
    parent: parent && {
      linkage: parent.linkage,
      isChecked: false,
      bitmaps: new TableCache({ file, tableBytes: BITMAP_PIECE_BYTES, capacity: BITMAP_PIECES }),
    },
  };
}
