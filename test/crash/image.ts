/** Images on the disk `crash:`: how the chain of a variant is made and opened. */

import type { BlockBackend } from "../../src/block/backend.ts";
import { openGate } from "../../src/block/open.ts";
import { type NestedOptions, parseKeyValues } from "../../src/block/options.ts";
import { createImage } from "../../src/jobs/create.ts";
import { makeOps, type OpsProfile, type OpsTarget, runOps } from "../random-ops.ts";
import { openBackend } from "../support/graph.ts";
import type { Variant } from "./variants.ts";

const environment = {
  gate: openGate,
  warn: () => {},
  secret: () => ({ data: Buffer.from("passphrase") }),
};

export const layerName = (index: number) => `layer${index}`;

interface OpenFlagsWanted {
  readonly readOnly: boolean;
  readonly check?: boolean;
}

/** `above`: what stands between the format and its file. */
export function openLayer(
  variant: Variant,
  index: number,
  flags: OpenFlagsWanted,
  above: (file: NestedOptions) => NestedOptions = (file) => file,
): Promise<BlockBackend> {
  const { format } = variant.layers[index] as (typeof variant.layers)[number];
  const isTop = index === variant.layers.length - 1;
  const file = above({ driver: "crash", filename: layerName(index) });
  return openBackend(
    { driver: format, ...(isTop && variant.openOptions), file },
    { flags: { unmap: true, ...flags }, environment },
  );
}

/** Makes the images of a variant, each with some content but the topmost, which is to be worked on. */
export async function makeChain(variant: Variant, seed: number): Promise<OpsTarget> {
  let model = new Uint8Array();
  for (const [index, { format, options, profile, startsUnknown }] of variant.layers.entries()) {
    const below = variant.layers[index - 1];
    await createImage({
      filename: `crash:${layerName(index)}`,
      format,
      size: profile.size,
      backingFile: below && `crash:${layerName(index - 1)}`,
      backingFormat: below?.format,
      options: parseKeyValues(options ?? ""),
      environment,
    });
    const shown = new Uint8Array(profile.size);
    shown.set(model.subarray(0, profile.size));
    if (startsUnknown) {
      await using image = await openLayer(variant, index, { readOnly: true });
      shown.set(await readAll(image));
    }
    const target: OpsTarget = {
      model: shown,
      below: below && model,
      snapshots: new Map(),
      bitmaps: new Map(),
      open: () => openLayer(variant, index, { readOnly: false }),
      openReadOnly: () => openLayer(variant, index, { readOnly: true }),
    };
    if (index === variant.layers.length - 1) return target;
    const quiet = { ...profile, resize: false, snapshots: false, bitmaps: false };
    await runOps(target, makeOps(seed, 12, quiet), quiet);
    model = target.model as Uint8Array<ArrayBuffer>;
  }
  throw new Error(`'${variant.name}' has no layers`);
}

export function topProfile({ name, layers }: Variant): OpsProfile {
  const profile = layers.at(-1)?.profile;
  if (!profile) throw new Error(`'${name}' has no layers`);
  return profile;
}

export async function readAll(image: BlockBackend): Promise<Uint8Array> {
  return image.read(0, await image.getLength());
}
