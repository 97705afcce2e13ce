/** Sends every request to an image and to a raw copy of it, and ends the process where their answers differ.  @qemu block/blkverify.c */

import type { BlockChild } from "../src/block/child.ts";
import type { FilterDriver } from "../src/block/driver.ts";
import { BlockError, errnoNumber } from "../src/block/errors.ts";
import { type IoVector, iovFlatten, iovLength } from "../src/block/iov.ts";
import type { Options } from "../src/block/options.ts";

const options = {
  /** The children by their filenames, as `blkverify:RAW:IMAGE` gives them. */
  "x-raw": { type: "string" },
  "x-image": { type: "string" },
} as const;

export const blkverify: FilterDriver<typeof options> = {
  formatName: "blkverify",
  kind: "filter",
  prefix: "blkverify",
  options,

  parseFilename(filename) {
    if (!filename.startsWith("blkverify:")) return new Map([["x-image", filename]]);
    const match = /^blkverify:([^:]*):(.*)$/s.exec(filename);
    if (!match) throw new BlockError("EINVAL", "blkverify requires raw copy and original image path");
    const parsed: Options = new Map();
    parsed.set("x-raw", match[1] as string);
    parsed.set("x-image", match[2] as string);
    return parsed;
  },

  filenameOf(node) {
    const [raw, test] = ["raw", "test"].map((key) => node.children.get(key)?.node.exactFilename ?? "");
    return raw !== "" && test !== "" ? `blkverify:${raw}:${test}` : "";
  },

  async open(co, { options: given, openChild, environment }) {
    const raw = await openChild(co, "raw", { filtered: true, primary: true }, given["x-raw"]);
    if (!raw) throw new BlockError("EINVAL", 'A block device must be specified for "raw"');
    const test = await openChild(co, "test", { data: true }, given["x-image"]);
    if (!test) throw new BlockError("EINVAL", 'A block device must be specified for "test"');

    /** Both requests, which must end alike. */
    const both = async (
      verb: "read" | "write",
      offset: number,
      bytes: number,
      request: (child: BlockChild) => Promise<void>,
    ): Promise<() => never | void> => {
      const [ofTest, ofRaw] = await Promise.all([outcome(request(test)), outcome(request(raw))]);
      if (code(ofTest) !== code(ofRaw))
        mismatch(verb, offset, bytes, `return value mismatch ${code(ofTest)} != ${code(ofRaw)}`);
      return () => {
        if (ofTest) throw ofTest;
      };
    };
    const mismatch = (verb: string, offset: number, bytes: number, what: string): never => {
      const line = `blkverify: ${verb} offset=${offset} bytes=${bytes} ${what}`;
      if (environment.fatal) environment.fatal(line);
      throw new BlockError("EIO", line, { offset });
    };

    return {
      getLength: (co) => test.getLength(co),
      async pread(co, offset, iov, flags) {
        const bytes = iovLength(iov);
        const copy = new Uint8Array(bytes);
        const finish = await both("read", offset, bytes, (child) =>
          child.pread(co, offset, child === raw ? copy : iov, flags),
        );
        const at = firstDifference(iov, copy);
        if (at >= 0) mismatch("read", offset, bytes, `contents mismatch at offset ${offset + at}`);
        finish();
      },
      async pwrite(co, offset, iov, flags) {
        const finish = await both("write", offset, iovLength(iov), (child) =>
          child.pwrite(co, offset, iov, flags),
        );
        finish();
      },
      getAllocatedFileSize: async () => undefined,
      // A zero write is one of data: both shall be written the same way.
      pwriteZeroes: async () => {
        throw new BlockError("ENOTSUP");
      },
      // What it leaves need not be the same in both.
      pdiscard: async () => {},
      // Only the image under test has anything to lose.
      flush: (co) => test.flush(co),
    };
  },
};

function outcome(request: Promise<void>): Promise<BlockError | undefined> {
  return request.then(
    () => undefined,
    (error: unknown) => {
      if (error instanceof BlockError) return error;
      throw error;
    },
  );
}

/** As a C function returns it. */
function code(error: BlockError | undefined): number {
  return error ? -errnoNumber(error.errno) : 0;
}

/** -1: none. */
function firstDifference(iov: IoVector, copy: Uint8Array): number {
  const buffer = iovFlatten(iov);
  if (Buffer.compare(buffer, copy) === 0) return -1;
  return buffer.findIndex((byte, index) => byte !== copy[index]);
}
