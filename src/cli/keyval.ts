/**
 * "key=value,..." as `--object` takes it, which is stricter than the lists of `-o`: every key has a value, but the
 * first may stand for an implied key, and a lone `help` asks a question.  @qemu util/keyval.c
 */

import { BlockError } from "../block/errors.ts";
import type { Options } from "../block/options.ts";

export interface KeyValues {
  readonly options: Options;
  /** `help` or `?` stood by itself. */
  readonly wantsHelp: boolean;
}

/** EINVAL with qemu's words. A key that comes again goes over the one before. */
export function parseStrictKeyValues(text: string, impliedKey: string): KeyValues {
  const options: Options = new Map();
  let wantsHelp = false;
  let isFirst = true;
  for (let rest = text; rest !== ""; isFirst = false) {
    const word = /^[^=,]*/.exec(rest)?.[0] ?? "";
    const hasValue = rest[word.length] === "=";
    if (hasValue) {
      const raw = /^(?:[^,]|,,)*/.exec(rest.slice(word.length + 1))?.[0] ?? "";
      checkKey(word);
      options.set(word, raw.replaceAll(",,", ","));
      rest = rest.slice(word.length + 1 + raw.length + 1);
      continue;
    }
    rest = rest.slice(word.length + 1);
    if (word === "help" || word === "?") wantsHelp = true;
    else if (word === "") throw invalidKey(word);
    else if (isFirst) options.set(impliedKey, word);
    else throw new BlockError("EINVAL", `Expected '=' after parameter '${word}'`);
  }
  return { options, wantsHelp };
}

/** Letters, digits, hyphens and underscores, in parts with dots between. */
function checkKey(key: string): void {
  if (!/^[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*$/.test(key)) throw invalidKey(key);
}

function invalidKey(key: string): BlockError {
  return new BlockError("EINVAL", `Invalid parameter '${key}'`);
}
