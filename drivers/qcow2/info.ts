/** What `info` says of a qcow2 image beside what every image has.  @qemu qcow2_get_specific_info */

import type { Coroutine } from "../../src/block/coroutine.ts";
import type { InfoValue, SpecificInfo } from "../../src/block/driver.ts";
import type { StoredBitmap } from "./bitmap.ts";
import { cryptoInfo } from "./crypto.ts";
import { Autoclear, BitmapFlag, Compatible, Incompatible } from "./layout.ts";
import type { Qcow2State } from "./state.ts";

export async function specificInfo(co: Coroutine<"read">, state: Qcow2State): Promise<SpecificInfo> {
  const { incompatibleFeatures: incompatible, dataFileName } = state;
  if (state.version < 3) {
    const { compressionType, refcountBits } = state;
    return {
      type: "qcow2",
      data: {
        compat: "0.10",
        "compression-type": compressionType,
        "refcount-bits": refcountBits,
        ...cryptoInfo(state),
      },
    };
  }
  const bitmaps = state.bitmaps
    ? await (await import("./bitmap.ts")).readBitmapDirectory(co, state, state.bitmaps)
    : [];
  return {
    type: "qcow2",
    data: {
      compat: "1.1",
      "compression-type": state.compressionType,
      "lazy-refcounts": (state.compatibleFeatures & Compatible.LazyRefcounts) !== 0n,
      ...(bitmaps.length > 0 && { bitmaps: bitmaps.map(bitmapInfo) }),
      "refcount-bits": state.refcountBits,
      ...(dataFileName !== undefined && { "data-file": dataFileName }),
      ...cryptoInfo(state),
      ...((incompatible & Incompatible.DataFile) !== 0n && {
        "data-file-raw": (state.autoclearFeatures & Autoclear.DataFileRaw) !== 0n,
      }),
      corrupt: (incompatible & Incompatible.Corrupt) !== 0n,
      "extended-l2": state.extendedL2,
    },
  };
}

/** @qemu Qcow2BitmapInfo */
function bitmapInfo({ name, flags, granularityBits }: StoredBitmap): InfoValue {
  const names = [
    ...((flags & BitmapFlag.InUse) !== 0 ? ["in-use"] : []),
    ...((flags & BitmapFlag.Auto) !== 0 ? ["auto"] : []),
  ];
  return { flags: names, name, granularity: 2 ** granularityBits };
}
