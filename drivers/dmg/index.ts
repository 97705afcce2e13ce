/** Disk images of macOS (UDIF), read-only: chunks, each zero, plain or compressed.  @qemu block/dmg.c */

import type { BlockChild } from "../../src/block/child.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import type { FormatDriver } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import { type IoVector, iovFill, iovLength, iovParts, iovSlice, iovWrite } from "../../src/block/iov.ts";
import type { OpenEnvironment } from "../../src/block/open.ts";
import { MAX_LENGTH, SECTOR_SIZE } from "../../src/block/units.ts";
import { readAtOpen } from "../opening.ts";
import { Mutex } from "../qcow2/mutex.ts";
import { probeDmg } from "../signatures.ts";
import type { ChunkRecord, ChunkTable } from "./chunks.ts";
import { findCodec } from "./codecs.ts";
import { ChunkType } from "./layout.ts";
import { readTables } from "./tables.ts";

interface State {
  readonly file: BlockChild;
  readonly chunks: ChunkTable;
  readonly environment: OpenEnvironment;
  /** The compressed chunk that was last read. */
  current: { readonly sector: number; readonly content: Uint8Array } | undefined;
  /** One chunk at a time is made: they may be large. */
  readonly lock: Mutex;
}

export const dmg: FormatDriver = {
  formatName: "dmg",
  kind: "format",
  options: {},
  probe: probeDmg,

  async open(co, { openFileChild, requireReadOnly, node, environment }) {
    requireReadOnly();
    const file = await openFileChild(co);
    const { chunks, sectors } = await readAtOpen(co, file, (reader) => readTables(reader, file, environment));
    if (chunks.unknownTypes.has(ChunkType.Lzfse))
      throw new BlockError("ENOTSUP", "LZFSE compressed dmg images are not supported");
    const [type] = chunks.unknownTypes;
    if (type !== undefined)
      environment.warn(
        `Image contains chunks of unknown type ${type.toString(16)}, accessing them will result in I/O errors`,
      );
    node.totalSectors = sectors;
    const state: State = { file, chunks, environment, current: undefined, lock: new Mutex() };
    return {
      pread: (co, offset, iov) => state.lock.run(() => pread(co, state, offset, iov)),
      limits: () => ({ requestAlignment: SECTOR_SIZE }),
    };
  },
};

async function pread(co: Coroutine<"read">, state: State, offset: number, iov: IoVector): Promise<void> {
  const bytes = iovLength(iov);
  for (let done = 0; done < bytes; ) {
    const chunk = state.chunks.find((offset + done) / SECTOR_SIZE);
    if (!chunk) throw new BlockError("EIO");
    const inChunk = offset + done - chunk.sector * SECTOR_SIZE;
    const piece = Math.min(chunk.sectors * SECTOR_SIZE - inChunk, bytes - done);
    await readChunk(co, state, chunk, inChunk, iovSlice(iov, done, done + piece));
    done += piece;
    co.checkAborted();
  }
}

async function readChunk(
  co: Coroutine<"read">,
  state: State,
  chunk: ChunkRecord,
  inChunk: number,
  iov: IoVector,
): Promise<void> {
  switch (chunk.type) {
    case ChunkType.Zero:
    case ChunkType.Ignore:
      iovFill(iov, 0);
      return;
    case ChunkType.Raw: {
      // QEMU gives whatever was in memory for what a chunk lacks.
      if (inChunk + iovLength(iov) > chunk.length || chunk.offset > MAX_LENGTH) throw new BlockError("EIO");
      await state.file.pread(co, chunk.offset + inChunk, iov);
      return;
    }
    default: {
      const bytes = iovLength(iov);
      const content = await loadChunk(co, state, chunk);
      iovWrite(iovParts(iov), content.subarray(inChunk, inChunk + bytes));
    }
  }
}

async function loadChunk(co: Coroutine<"read">, state: State, chunk: ChunkRecord): Promise<Uint8Array> {
  const { sector, sectors, offset, length, type } = chunk;
  if (state.current?.sector === sector) return state.current.content;
  const decode = findCodec(type);
  if (!decode || offset > MAX_LENGTH) throw new BlockError("EIO");
  const bytes = sectors * SECTOR_SIZE;
  state.environment.guard?.decompress(bytes);
  const content = await decode(await state.file.preadBytes(co, offset, length), bytes);
  state.current = { sector, content };
  return content;
}
