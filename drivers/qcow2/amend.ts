/** Changes options of an image that exists, one after the other, in QEMU's order.  @qemu qcow2_amend_options */

import type { Coroutine } from "../../src/block/coroutine.ts";
import type { AmendRequest } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import { truncateNode } from "../../src/block/length.ts";
import type { OptionValues } from "../../src/block/options.ts";
import { isPowerOfTwo } from "../../src/block/units.ts";
import { checkUsable } from "./corruption.ts";
import { type amendOptions, VERSIONS } from "./create-options.ts";
import { amendEncryption, checkHasKeys } from "./crypto.ts";
import { markClean } from "./inactivate.ts";
import { Autoclear, Compatible } from "./layout.ts";
import { changeRefcountWidth, type OnProgress } from "./refcount-width.ts";
import type { Qcow2State } from "./state.ts";
import { changeHeader, downgrade, upgrade } from "./version.ts";

type AmendOptions = typeof amendOptions;

/** What was done before an error stays done. */
export async function amend(
  co: Coroutine<"read">,
  state: Qcow2State,
  request: AmendRequest<AmendOptions>,
): Promise<void> {
  const { options, onProgress } = request;
  checkUsable(state);
  const changesKeys = Object.keys(options).some((key) => key.startsWith("encrypt."));
  if (changesKeys) checkHasKeys(state);
  const { version, refcountBits } = checkOptions(state, options);
  const isWidthNew = refcountBits !== state.refcountBits;
  // The change of keys counts, but tells of no progress.
  const operations = Number(version !== state.version) + Number(isWidthNew) + Number(changesKeys);
  const beginOperation = joinProgress(operations, onProgress);
  const { lock } = state;
  if (version > state.version) await lock.run(() => upgrade(co, state, beginOperation()));
  if (changesKeys) await lock.run(() => amendEncryption(co, state, request));
  if (isWidthNew) {
    if (version < 3 && refcountBits !== 16)
      throw invalid(
        "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)",
      );
    await lock.run(() => changeRefcountWidth(co, state, refcountBits, beginOperation()));
  }
  const { backing_file: backingFile, backing_fmt: backingFormat } = options;
  const isAsBefore = backingFile === state.node.backingFilename && backingFormat === state.node.backingFormat;
  if ((backingFile !== undefined || backingFormat !== undefined) && !isAsBefore)
    throw new BlockError("EINVAL", "Cannot amend the backing file", {
      hint: "You can use 'qemu-img rebase' instead.",
    });
  await lock.run(() => changeDataFile(co, state, options));
  await lock.run(() => changeLazyRefcounts(co, state, options.lazy_refcounts, version));
  if (options.size) await truncateNode(co, state.node, options.size, false, "off", 0);
  if (version < state.version) await lock.run(() => downgrade(co, state, beginOperation()));
}

/** Refuses what can be seen to be wrong before anything is changed. */
function checkOptions(
  state: Qcow2State,
  options: OptionValues<AmendOptions>,
): { readonly version: number; readonly refcountBits: number } {
  const { compat, data_file, data_file_raw, refcount_bits: refcountBits = state.refcountBits } = options;
  const version = compat === undefined ? state.version : VERSIONS[compat];
  if (version === undefined) throw invalid(`Unknown compatibility level ${compat}`);
  if (data_file !== undefined && !state.hasDataFile)
    throw invalid("data-file can only be set for images that use an external data file");
  if (data_file_raw && (state.autoclearFeatures & Autoclear.DataFileRaw) === 0n)
    throw invalid("data-file-raw cannot be set on existing images");
  if (!isPowerOfTwo(refcountBits) || refcountBits > 64)
    throw invalid("Refcount width must be a power of two and may not exceed 64 bits");
  return { version, refcountBits };
}

function invalid(message: string): BlockError {
  return new BlockError("EINVAL", message);
}

async function changeDataFile(
  co: Coroutine<"read">,
  state: Qcow2State,
  options: OptionValues<AmendOptions>,
): Promise<void> {
  if (options.data_file_raw === false)
    await changeHeader(co, state, { autoclearFeatures: state.autoclearFeatures & ~Autoclear.DataFileRaw });
  if (options.data_file !== undefined)
    await changeHeader(co, state, { dataFileName: options.data_file || undefined });
}

async function changeLazyRefcounts(
  co: Coroutine<"read">,
  state: Qcow2State,
  isLazy: boolean | undefined,
  newVersion: number,
): Promise<void> {
  const { compatibleFeatures } = state;
  if (isLazy === undefined || isLazy === ((compatibleFeatures & Compatible.LazyRefcounts) !== 0n)) return;
  if (isLazy && newVersion < 3)
    throw invalid(
      "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)",
    );
  if (!isLazy) await markClean(co, state);
  await changeHeader(co, state, {
    compatibleFeatures: compatibleFeatures ^ Compatible.LazyRefcounts,
    useLazyRefcounts: isLazy,
  });
}

/**
 * Makes one count of those of several operations: what is still to come is taken to be as much, each, as what came
 * before on the average.  @qemu qcow2_amend_helper_cb
 */
function joinProgress(operations: number, onProgress: OnProgress): () => OnProgress {
  let ended = -1;
  let doneBefore = 0;
  let currentTotal = 0;
  return () => {
    ended++;
    doneBefore += currentTotal;
    return (done, total) => {
      currentTotal = total;
      const known = doneBefore + total;
      onProgress(doneBefore + done, known + Math.floor((known * (operations - ended - 1)) / (ended + 1)));
    };
  };
}
