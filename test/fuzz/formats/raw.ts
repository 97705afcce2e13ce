/** Raw images: there is nothing in them that could be wrong, whatever they look like. */

import fs from "node:fs";
import type { FuzzFormat } from "../format.ts";

export const raw: FuzzFormat = {
  formatName: "raw",
  writable: true,
  async bases(workshop) {
    const like = workshop.path("like.qcow2");
    const image = workshop.tool(
      "qemu-img",
      "create",
      "-q",
      "-f",
      "qcow2",
      "-o",
      "cluster_size=4k",
      like,
      "1M",
    );
    return [
      { name: "zeroes", content: new Uint8Array(65536) },
      { name: "odd", content: new Uint8Array(70001).fill(0x5a) },
      ...(image ? [{ name: "looks like qcow2", content: fs.readFileSync(like) }] : []),
    ];
  },
  regions: () => [{ name: "start", offset: 0, width: 4, count: 128 }],
};
