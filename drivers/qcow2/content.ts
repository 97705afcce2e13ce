/** What a write brings: bytes in memory, or bytes of a host file that the kernel copies. */

import type { HostRange } from "../../src/block/copy-range.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { type IoVector, iovLength, iovSlice } from "../../src/block/iov.ts";
import { writeData } from "./crypto.ts";
import type { Qcow2State } from "./state.ts";

export type Content = IoVector | HostRange;

export function isHostRange(content: Content): content is HostRange {
  return "fd" in content;
}

export function contentLength(content: Content): number {
  return isHostRange(content) ? content.bytes : iovLength(content);
}

/** The bytes [start, end) of it, with no copy. */
export function contentSlice(content: Content, start: number, end: number): Content {
  if (!isHostRange(content)) return iovSlice(content, start, end);
  return { fd: content.fd, offset: content.offset + start, bytes: end - start };
}

/** Puts it where guest data lies. An encrypted image takes no host ranges. */
export function writeContent(
  co: Coroutine<"read">,
  state: Qcow2State,
  guestOffset: number,
  hostOffset: number,
  content: Content,
): Promise<void> {
  return isHostRange(content)
    ? state.dataFile.copyFrom(co, hostOffset, content)
    : writeData(co, state, guestOffset, hostOffset, content);
}
