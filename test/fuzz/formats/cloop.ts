/** Compressed loop images: a script, two numbers, a table of offsets, blocks. Source: cloop's compressed_loop.h. */

import { deflateSync } from "node:zlib";
import type { FuzzFormat } from "../format.ts";

const BLOCK_BYTES = 65536;
const BLOCKS = 5;
const TABLE_OFFSET = 136;

export const cloop: FuzzFormat = {
  formatName: "cloop",
  writable: false,
  async bases() {
    const blocks = Array.from({ length: BLOCKS }, (_, index) =>
      deflateSync(Buffer.alloc(BLOCK_BYTES, `block ${index}`)),
    );
    const head = Buffer.alloc(TABLE_OFFSET + (BLOCKS + 1) * 8);
    head.write("#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n");
    head.writeUInt32BE(BLOCK_BYTES, 128);
    head.writeUInt32BE(BLOCKS, 132);
    let at = head.length;
    for (const [index, block] of [...blocks, Buffer.alloc(0)].entries()) {
      head.writeBigUInt64BE(BigInt(at), TABLE_OFFSET + index * 8);
      at += block.length;
    }
    return [{ name: "small", content: Buffer.concat([head, ...blocks]) }];
  },
  regions: () => [
    { name: "script", offset: 0, width: "text", count: 128 },
    { name: "block size", offset: 128, width: 4, count: 1 },
    { name: "blocks", offset: 132, width: 4, count: 1 },
    { name: "offsets", offset: TABLE_OFFSET, width: 8, count: BLOCKS + 1, unit: 1 },
    { name: "data", offset: TABLE_OFFSET + (BLOCKS + 1) * 8, width: "bytes", count: 100 },
  ],
};
