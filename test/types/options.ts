/** What the typed options accept and refuse; checked by tsc, never run. */

import type { DriverOptions, OptionsOf } from "../../src/library/driver-options.ts";
import { convert, create } from "../../src/library/jobs.ts";
import { open } from "../../src/library/open.ts";

export const accepted: readonly DriverOptions[] = [
  { driver: "file", filename: "a.img", locking: "off" },
  { driver: "null-co", size: 512, "read-zeroes": true, "latency-ns": 5 },
  { driver: "raw", offset: 512, size: 1024, file: { driver: "file", filename: "a.img" } },
  { driver: "raw", file: "a-node", "node-name": "top", "read-only": true, cache: { direct: true } },
  { driver: "raw", file: { filename: "a.img" }, discard: "unmap", "detect-zeroes": "unmap" },
  { driver: "compress", file: { driver: "raw", file: { driver: "null-co" } } },
  { file: { driver: "file", filename: "a.img" } },
  {
    driver: "qcow2",
    "lazy-refcounts": true,
    "l2-cache-size": 2 ** 20,
    file: { driver: "file", filename: "a.qcow2" },
    "data-file": { filename: "a.data" },
    backing: { driver: "raw", file: { filename: "base.img" } },
  },
  { driver: "compress", file: { driver: "qcow2", backing: null, file: "a-node" } },
];

export const window: OptionsOf<"raw"> = { driver: "raw", offset: 512, file: "a-node" };

export function refused(): readonly Promise<unknown>[] {
  return [
    // @ts-expect-error: no such driver
    open({ driver: "qcow9", file: "a-node" }),
    // @ts-expect-error: raw has no such option
    open({ driver: "raw", ofset: 512, file: "a-node" }),
    // @ts-expect-error: a size is a number
    open({ driver: "raw", offset: "big", file: "a-node" }),
    // @ts-expect-error: a format stands on a file
    open({ driver: "raw", offset: 512 }),
    // @ts-expect-error: raw has no backing file
    open({ driver: "raw", file: "a-node", backing: null }),
    // @ts-expect-error: a protocol has no children
    open({ driver: "null-co", file: "a-node" }),
    // @ts-expect-error: the wrong option stands deep in the graph
    open({ driver: "compress", file: { driver: "raw", file: { driver: "file", fillename: "a.img" } } }),
    // @ts-expect-error: qcow2 has no such option
    open({ driver: "qcow2", "lazy-refcount": true, file: "a-node" }),
    // @ts-expect-error: qcow2 has no such child
    open({ driver: "qcow2", file: "a-node", data_file: "a-node" }),
    // @ts-expect-error: the wrong option stands in the backing file
    open({ driver: "qcow2", file: "a-node", backing: { driver: "raw", ofset: 0, file: "a-node" } }),
    // @ts-expect-error: blkdebug's child has another name
    open({ driver: "blkdebug", file: "a-node" }),
    // @ts-expect-error: a rule has no such option
    open({ driver: "blkdebug", image: "a-node", "inject-error": [{ evnt: "write_aio" }] }),
    // @ts-expect-error: a node option with a value that it does not have
    open({ driver: "raw", file: "a-node", discard: "maybe" }),
    // @ts-expect-error: no such cache mode
    open("a.img", { cache: "fast" }),
    // @ts-expect-error: no such option of open
    open("a.img", { readonly: true }),
  ];
}

export const rules: DriverOptions = {
  driver: "blkdebug",
  image: { driver: "file", filename: "a.img" },
  "inject-error": [{ event: "write_aio", errno: 28, once: true }],
};

/** The values of `create` and `convert`. */
export async function created(): Promise<void> {
  await create("a.img", { format: "raw", size: 512, options: { preallocation: "falloc" } });
  await convert({ driver: "raw", file: "a-node" }, { format: "raw", filename: "b.img" }, { compress: false });
  await create("a.qcow2", {
    format: "qcow2",
    size: 512,
    options: { cluster_size: 65536, compat: "1.1", preallocation: "metadata", nocow: true },
  });
  await convert(["a.img", "b.img"], {
    format: "qcow2",
    filename: "c.qcow2",
    backing: { filename: "base.img", format: "raw" },
    options: { compression_type: "zstd" },
  });
  // @ts-expect-error: no such format
  await create("a.img", { format: "qcow9", size: 512 });
  // @ts-expect-error: raw has no such create option
  await create("a.img", { format: "raw", size: 512, options: { cluster_size: 512 } });
  // @ts-expect-error: the size has a place of its own
  await create("a.img", { format: "raw", options: { size: 512 } });
  // @ts-expect-error: a size is a number
  await create("a.img", { format: "raw", size: "512" });
  // @ts-expect-error: a protocol is no format
  await create("a.img", { format: "file", size: 512 });
  // @ts-expect-error: a filter cannot be created
  await convert("a.img", { format: "compress", filename: "b.img" });
  // @ts-expect-error: an option of another format
  await create("a.qcow2", { format: "qcow2", size: 512, options: { subformat: "dynamic" } });
  // @ts-expect-error: a word that the option does not have
  await create("a.qcow2", { format: "qcow2", size: 512, options: { preallocation: "some" } });
  // @ts-expect-error: the backing file has a place of its own
  await create("a.qcow2", { format: "qcow2", size: 512, options: { backing_file: "base.img" } });
  // @ts-expect-error: no such option of convert
  await convert("a.img", { format: "raw", filename: "b.img" }, { compres: true });
}
