/** Names of parents as Windows writes them, made into names that can be opened here. */

import { protocolPrefix } from "../src/block/filename.ts";

/**
 * A relative path stays one ("..\base.vhd" is "../base.vhd"), so does an absolute one of this system; of one with a drive
 * or a share only the file's name is left. It is never more than a path: what looks like a protocol is none.
 */
export function parentPath(name: string): string {
  const isElsewhere = /^([A-Za-z]:|\\)/.test(name);
  const parts = name.split(/[\\/]/).filter((part) => part !== ".");
  const path = isElsewhere ? (parts.at(-1) ?? "") : parts.join("/");
  return protocolPrefix(path) === undefined ? path : `./${path}`;
}
