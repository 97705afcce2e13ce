/** Check: the entries of the table; what the log held is in the file already, since the image was opened.  @qemu vhdx_co_check */

import type { Coroutine } from "../../src/block/coroutine.ts";
import type { CheckResult } from "../../src/block/driver.ts";
import { scanBat } from "./bat.ts";
import { scanOptionsOf } from "./open.ts";
import type { VhdxState } from "./state.ts";

export async function check(co: Coroutine<"read">, state: VhdxState): Promise<CheckResult> {
  const { file, geometry, environment } = state;
  const { bad } = await scanBat(co, file, geometry, scanOptionsOf(state), (message) => {
    (environment.error ?? environment.warn)(message);
    return true;
  });
  return {
    corruptions: bad,
    leaks: 0,
    checkErrors: 0,
    corruptionsFixed: state.wasReplayed ? 1 : 0,
    leaksFixed: 0,
    imageEndOffset: 0,
  };
}
