/** Compressed clusters: every codec on what it and others made, on streams that are broken, and beside qemu-img. */

import assert from "node:assert/strict";
import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { after, describe, it } from "node:test";
import zlib from "node:zlib";
import {
  compressAsync,
  decompressInto,
  decompressNow,
  prepareCodec,
  resetCodecs,
} from "../../../drivers/qcow2/codec.ts";
import { openInflater } from "../../../drivers/qcow2/inflate.ts";
import { findFrame, openNapi, openNode, openWasm, type Zstd } from "../../../drivers/qcow2/zstd.ts";
import { openBackend } from "../../support/graph.ts";
import { random } from "../../support/random.ts";
import { tempDir } from "../../support/temp.ts";
import { missing, mustRun } from "../../support/tools.ts";
import { makeImage } from "./patch.ts";

const CLUSTER = 65536;
const dir = tempDir({ after });
const require = createRequire(import.meta.url);

function load(name: string): unknown {
  try {
    return require(name);
  } catch {
    return undefined;
  }
}

/** Clusters that compress well, badly, and with matches farther back than 4 KiB. */
function samples(): Uint8Array[] {
  const source = random(7);
  const text = Buffer.from(Array.from({ length: 3000 }, () => `word${source.below(500)} `).join("")).subarray(
    0,
    20000,
  );
  const far = Buffer.concat([source.bytes(20000), text.subarray(0, 5000)]);
  return [
    Buffer.alloc(CLUSTER),
    Buffer.alloc(CLUSTER, "abc"),
    Buffer.concat([text, text, text, text]).subarray(0, CLUSTER),
    Buffer.concat([far, far, far]).subarray(0, CLUSTER),
  ];
}

/** As it is read from an image: up to the end of a sector, with what happens to be there. */
function withGarbage(stream: Uint8Array, byte: number): Uint8Array {
  return Buffer.concat([stream, Buffer.alloc(512 - (stream.length % 512), byte)]);
}

const deflate = (input: Uint8Array) => zlib.deflateRawSync(input, { windowBits: 12, memLevel: 9 });

describe("inflate", () => {
  const inflaters = {
    "zlib-sync": openInflater(load),
    "node's handle": openInflater(() => undefined),
  };
  for (const [name, { inflate, name: current }] of Object.entries(inflaters)) {
    const skip = name === "zlib-sync" && current() !== "zlib-sync" && "zlib-sync is not built for this node";

    it(`${name} takes streams of any window, with and without garbage behind them`, { skip }, () => {
      for (const sample of samples())
        for (const stream of [
          deflate(sample),
          zlib.deflateRawSync(sample),
          zlib.deflateRawSync(sample, { level: 0 }),
        ])
          for (const input of [stream, withGarbage(stream, 0), withGarbage(stream, 0xff)])
            assert.ok(Buffer.from(inflate(input, CLUSTER) ?? []).equals(sample));
    });

    it(`${name} gives the first cluster of a stream that holds more`, { skip }, () => {
      const sample = Buffer.alloc(CLUSTER, "0123456789");
      for (const bytes of [512, 4096, CLUSTER - 1])
        assert.ok(Buffer.from(inflate(deflate(sample), bytes) ?? []).equals(sample.subarray(0, bytes)));
    });

    it(`${name} refuses what is broken or ends early`, { skip }, () => {
      const stream = deflate(samples()[3] as Uint8Array);
      assert.equal(inflate(stream, CLUSTER + 1), undefined);
      assert.equal(inflate(stream.subarray(0, stream.length - 30), CLUSTER), undefined);
      assert.equal(inflate(new Uint8Array(0), CLUSTER), undefined);
      assert.equal(inflate(Buffer.alloc(CLUSTER, 0xff), CLUSTER), undefined);
      // It still works after that.
      assert.ok(inflate(stream, CLUSTER));
    });

    it(`${name} makes no more than a cluster of a bomb`, { skip }, () => {
      const bomb = zlib.deflateRawSync(Buffer.alloc(64 * 2 ** 20));
      assert.equal(inflate(bomb, CLUSTER)?.length, CLUSTER);
    });
  }

  it("goes on with node's handle after 1024 streams, since zlib-sync loses memory with each", (context) => {
    const { inflate, name } = openInflater(load);
    if (name() !== "zlib-sync") return context.skip("zlib-sync is not built for this node");
    const sample = Buffer.alloc(512, 1);
    const stream = deflate(sample);
    for (let count = 0; count < 1024; count++) inflate(stream, 512);
    assert.equal(name(), "node");
    assert.ok(Buffer.from(inflate(stream, 512) ?? []).equals(sample));
  });
});

describe("zstd", () => {
  const codecs: readonly (readonly [string, () => Promise<Zstd | undefined>])[] = [
    ["zstd-napi", async () => openNapi(load)],
    ["node", async () => openNode()],
    ["wasm", openWasm],
  ];
  for (const [name, open] of codecs) {
    it(`${name}: frames of every codec, with garbage behind them`, async (context) => {
      const codec = await open();
      if (!codec) return context.skip(`${name} is not there`);
      assert.equal(codec.name, name);
      for (const [, other] of codecs) {
        const writer = await other();
        for (const sample of writer ? samples() : []) {
          const frame = (await writer?.compress(sample)) as Uint8Array;
          for (const input of [frame, withGarbage(frame, 0), withGarbage(frame, 0x28)])
            assert.ok(Buffer.from(codec.decompress(input, CLUSTER) ?? []).equals(sample));
        }
      }
    });

    it(`${name}: several frames, and one to be skipped`, async (context) => {
      const codec = await open();
      if (!codec) return context.skip(`${name} is not there`);
      const sample = samples()[2] as Buffer;
      const skippable = Buffer.from("502a4d1803000000aabbcc", "hex");
      const frames = [
        await codec.compress(sample.subarray(0, 1000)),
        skippable,
        await codec.compress(sample.subarray(1000)),
      ];
      const input = withGarbage(Buffer.concat(frames), 0);
      assert.ok(Buffer.from(codec.decompress(input, CLUSTER) ?? []).equals(sample));
    });

    it(`${name} refuses what is broken, ends early or holds more`, async (context) => {
      const codec = await open();
      if (!codec) return context.skip(`${name} is not there`);
      const frame = await codec.compress(samples()[3] as Uint8Array);
      assert.equal(codec.decompress(frame, CLUSTER + 1), undefined);
      assert.equal(codec.decompress(frame, CLUSTER - 1), undefined);
      assert.equal(codec.decompress(frame.subarray(0, frame.length - 1), CLUSTER), undefined);
      assert.equal(codec.decompress(new Uint8Array(0), CLUSTER), undefined);
      assert.equal(codec.decompress(Buffer.alloc(512, 0xff), CLUSTER), undefined);
      // A size that the decoder must not believe.
      const liar = Buffer.from("28b52ffde0ffffffffffffff0f0100", "hex");
      assert.equal(codec.decompress(withGarbage(liar, 0), CLUSTER), undefined);
      const broken = Buffer.from(frame);
      for (let at = 6; at < broken.length; at += 7) broken[at] = (broken[at] as number) ^ 0x55;
      codec.decompress(broken, CLUSTER);
      assert.ok(codec.decompress(frame, CLUSTER), "it still works after that");
    });
  }

  it("the end of a frame is found by its headers", () => {
    const frame = Buffer.from("28b52ffd2003190000616263", "hex");
    assert.deepEqual(findFrame(frame, 0), { end: 12, skippable: false, contentBytes: 3 });
    assert.equal(findFrame(frame.subarray(0, 11), 0), undefined);
    assert.equal(findFrame(Buffer.from("28b52ffd20031f0000616263", "hex"), 0), undefined);
  });
});

describe("compressed clusters", () => {
  for (const native of [true, false])
    for (const type of ["zlib", "zstd"] as const) {
      const which = `${type}, ${native ? "native codecs" : "BDRV_NO_NATIVE=1"}`;

      /** The module's own choice of codecs, as the environment has it. */
      async function withCodecs(fn: () => Promise<void>): Promise<void> {
        const before = process.env["BDRV_NO_NATIVE"];
        if (native) delete process.env["BDRV_NO_NATIVE"];
        else process.env["BDRV_NO_NATIVE"] = "1";
        resetCodecs();
        try {
          await prepareCodec(type);
          await fn();
        } finally {
          if (before === undefined) delete process.env["BDRV_NO_NATIVE"];
          else process.env["BDRV_NO_NATIVE"] = before;
          resetCodecs();
        }
      }

      it(`${which}: there and back, at once and in parallel`, () =>
        withCodecs(async () => {
          const all = samples();
          const streams = await Promise.all(all.map((sample) => compressAsync(type, sample)));
          const outputs = await Promise.all(
            streams.map(async (stream) => {
              const output = new Uint8Array(CLUSTER);
              await decompressInto(type, [withGarbage(stream as Uint8Array, 0xee)], output);
              return output;
            }),
          );
          for (const [index, sample] of all.entries()) {
            assert.ok(Buffer.from(outputs[index] as Uint8Array).equals(sample));
            assert.ok(Buffer.from(decompressNow(type, streams[index] as Uint8Array, CLUSTER)).equals(sample));
          }
          assert.equal(await compressAsync(type, random(1).bytes(CLUSTER)), undefined);
          const broken = Buffer.alloc(512, 0xff);
          assert.throws(() => decompressNow(type, broken, CLUSTER), { errno: "EIO" });
          await assert.rejects(decompressInto(type, [broken], new Uint8Array(CLUSTER)), { errno: "EIO" });
        }));

      const skip = missing("qemu-img") || missing("qemu-io");
      it(`${which}: qemu-img reads ours, and we read qemu-img's`, { skip }, () =>
        withCodecs(async () => {
          const content = Buffer.concat(samples());
          const raw = path.join(dir, "content.raw");
          fs.writeFileSync(raw, content);
          const made = path.join(dir, "theirs.qcow2");
          const options = `compression_type=${type}`;
          mustRun("qemu-img", ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, made]);
          const reader = await openBackend({ driver: "qcow2", file: { driver: "file", filename: made } });
          try {
            assert.ok(Buffer.from(await reader.read(0, content.length)).equals(content));
          } finally {
            await reader.close();
          }
          const ours = path.join(dir, "ours.qcow2");
          makeImage(ours, String(content.length), options);
          const writer = await openBackend({ driver: "qcow2", file: { driver: "file", filename: ours } });
          try {
            for (let offset = 0; offset < content.length; offset += CLUSTER)
              await writer.write(offset, content.subarray(offset, offset + CLUSTER), { compressed: true });
          } finally {
            await writer.close();
          }
          mustRun("qemu-img", ["compare", "-f", "raw", "-F", "qcow2", raw, ours]);
          mustRun("qemu-img", ["check", "-q", ours]);
          fs.rmSync(ours);
        }),
      );
    }
});
