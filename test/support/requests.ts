/** One list of requests, run by qemu-io and by us: each gives one answer, so that the lists can be compared. */

import { BlockError } from "../../src/block/errors.ts";
import type { NestedOptions } from "../../src/block/options.ts";
import { openBackend } from "./graph.ts";
import { run } from "./tools.ts";

/** In bytes. */
export interface Request {
  readonly op: "read" | "write" | "write -z" | "discard" | "flush" | "truncate";
  readonly offset?: number;
  readonly bytes?: number;
  /** The byte that is written; 0xcd if it is not given. */
  readonly pattern?: number;
}

/** "ok" or the error's text for each request; one line alone if the image could not be opened. */
export type Answers = readonly string[];

/** By qemu-io, which opens `json:` of the options. What it says of a truncate comes last. */
export function answersOfQemu(
  options: NestedOptions,
  requests: readonly Request[],
  mode: readonly string[] = [],
): Answers {
  // Its own default is writethrough: every write would be a flush too.
  const args = ["-t", "writeback", "-d", "unmap", ...mode];
  for (const request of requests) args.push("-c", commandOf(request));
  args.push(`json:${JSON.stringify(options)}`);
  const { stdout, stderr } = run("qemu-io", args);
  const opening = /can't open(?: device .*?\})?: (.*)/s.exec(stderr);
  if (opening) return [(opening[1] as string).replace(/\n$/, "")];
  const lines = `${stdout}\n${stderr}`
    .split("\n")
    .filter((line) => !/ ops?[;,]|^$|^WARNING|^ {9}/.test(line));
  return lines.map((line) => /(?:failed|qemu-io): (.*)/.exec(line)?.[1] ?? "ok");
}

function commandOf({ op, offset = 0, bytes = 0, pattern = 0xcd }: Request): string {
  if (op === "flush") return "flush";
  if (op === "truncate") return `truncate ${offset}`;
  return op === "write" ? `write -P ${pattern} ${offset} ${bytes}` : `${op} ${offset} ${bytes}`;
}

/** By us. Requests that qemu-io says nothing about (flush, truncate, a discard that worked) have no answer if all is well. */
export async function answersOfOurs(
  options: NestedOptions,
  requests: readonly Request[],
  readOnly = false,
): Promise<Answers> {
  const answers: string[] = [];
  let image: Awaited<ReturnType<typeof openBackend>>;
  try {
    image = await openBackend(`json:${JSON.stringify(options)}`, { flags: { unmap: true, readOnly } });
  } catch (error) {
    return [messageOf(error)];
  }
  for (const { op, offset = 0, bytes = 0, pattern = 0xcd } of requests) {
    try {
      if (op === "read") await image.read(offset, bytes);
      else if (op === "write") await image.write(offset, new Uint8Array(bytes).fill(pattern));
      else if (op === "write -z") await image.writeZeroes(offset, bytes);
      else if (op === "discard") await image.discard(offset, bytes);
      else if (op === "truncate") await image.truncate(offset);
      else await image.flush();
      if (op !== "flush" && op !== "truncate") answers.push("ok");
    } catch (error) {
      // qemu-io's flush fails in silence.
      if (op !== "flush") answers.push(messageOf(error));
    }
  }
  // An error at the end, of the last flush, is not told by qemu-io.
  await image.close().catch(messageOf);
  return answers;
}

function messageOf(error: unknown): string {
  if (error instanceof BlockError) return error.hint ? `${error.message}\n${error.hint}` : error.message;
  throw error;
}
