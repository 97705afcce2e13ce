/**
 * Stands between the file driver and the system: sees the calls that read, write and resize files under a directory, and
 * lets some of them fail or do less than they were asked.
 */

import fs from "node:fs";
import { type Posix, posix } from "../../src/platform/posix.ts";

export interface Syscall {
  readonly kind: "read" | "write" | "sync" | "truncate" | "rename";
  readonly bytes: number;
}

/** What becomes of a call: an error, fewer bytes than asked for, or (undefined) what it asks for. */
export type Verdict = { readonly errno: string } | { readonly bytes: number } | undefined;

type Callback = (error: NodeJS.ErrnoException | null, bytes?: number) => void;

/** Asks `judge` about every call on files under `directory` until the function that it gives is called. */
export function watchSyscalls(directory: string, judge: (call: Syscall) => Verdict): () => void {
  const undo: (() => void)[] = [];
  const replace = <T extends object, K extends keyof T>(owner: T, key: K, made: T[K]) => {
    const before = owner[key];
    owner[key] = made;
    undo.push(() => {
      owner[key] = before;
    });
  };
  const isOurs = (fd: number) => {
    try {
      return fs.readlinkSync(`/proc/self/fd/${fd}`).startsWith(directory);
    } catch {
      return false;
    }
  };
  const verdictOn = (fd: number, call: Syscall) => (isOurs(fd) ? judge(call) : undefined);
  watchNode(replace, verdictOn, (name, call) => (name.startsWith(directory) ? judge(call) : undefined));
  watchPosix(replace, verdictOn);
  return () => {
    for (const each of undo.reverse()) each();
  };
}

type Replace = <T extends object, K extends keyof T>(owner: T, key: K, made: T[K]) => void;
type Judge<W> = (where: W, call: Syscall) => Verdict;

/** How many of `asked` bytes may be done; throws what the verdict says. */
function limit(verdict: Verdict, asked: number, syscall: string): number {
  if (!verdict) return asked;
  if ("bytes" in verdict) return Math.min(asked, verdict.bytes);
  throw systemError(verdict.errno, syscall);
}

function systemError(errno: string, syscall: string): NodeJS.ErrnoException {
  return Object.assign(new Error(`${errno}: made up, ${syscall}`), { code: errno, syscall });
}

function watchNode(replace: Replace, judge: Judge<number>, judgeName: Judge<string>): void {
  const { readSync, writeSync, ftruncateSync, renameSync, fdatasync } = fs;
  const readNow = (fd: number, buffer: NodeJS.ArrayBufferView, offset: number, length: number, at: number) =>
    readSync(fd, buffer, offset, limit(judge(fd, { kind: "read", bytes: length }), length, "read"), at);
  const writeNow = (fd: number, buffer: NodeJS.ArrayBufferView, offset: number, length: number, at: number) =>
    writeSync(fd, buffer, offset, limit(judge(fd, { kind: "write", bytes: length }), length, "write"), at);
  replace(fs, "readSync", readNow as typeof fs.readSync);
  replace(fs, "writeSync", writeNow as typeof fs.writeSync);
  replace(fs, "ftruncateSync", (fd: number, bytes?: number) => {
    limit(judge(fd, { kind: "truncate", bytes: bytes ?? 0 }), 0, "ftruncate");
    ftruncateSync(fd, bytes);
  });
  replace(fs, "renameSync", (from, to) => {
    limit(judgeName(String(to), { kind: "rename", bytes: 0 }), 0, "rename");
    renameSync(from, to);
  });
  replace(fs, "fdatasync", ((fd: number, done: Callback) => {
    later(
      done,
      () => limit(judge(fd, { kind: "sync", bytes: 0 }), 0, "fdatasync"),
      () => fdatasync(fd, done),
    );
  }) as typeof fs.fdatasync);
  watchPool(replace, judge);
}

/** Calls that go through the thread pool: an error comes by their callback. */
function watchPool(replace: Replace, judge: Judge<number>): void {
  const { read, readv, write, writev } = fs;
  const one =
    (
      kind: "read" | "write",
      call: (...args: [number, NodeJS.ArrayBufferView, number, number, number, Callback]) => void,
    ) =>
    (
      fd: number,
      buffer: NodeJS.ArrayBufferView,
      offset: number,
      length: number,
      at: number,
      done: Callback,
    ) =>
      later(
        done,
        () => limit(judge(fd, { kind, bytes: length }), length, kind),
        (bytes) => call(fd, buffer, offset, bytes, at, done),
      );
  const many =
    (kind: "read" | "write", call: (...args: [number, NodeJS.ArrayBufferView[], number, Callback]) => void) =>
    (fd: number, buffers: NodeJS.ArrayBufferView[], at: number, done: Callback) => {
      const asked = buffers.reduce((sum, { byteLength }) => sum + byteLength, 0);
      later(
        done,
        () => limit(judge(fd, { kind, bytes: asked }), asked, kind),
        (bytes) => call(fd, cutBuffers(buffers, bytes), at, done),
      );
    };
  replace(fs, "read", one("read", read as never) as typeof fs.read);
  replace(fs, "write", one("write", write as never) as typeof fs.write);
  replace(fs, "readv", many("read", readv as never) as typeof fs.readv);
  replace(fs, "writev", many("write", writev as never) as typeof fs.writev);
}

function later<T>(done: Callback, ask: () => T, go: (answer: T) => void): void {
  let answer: T;
  try {
    answer = ask();
  } catch (error) {
    setImmediate(() => done(error as NodeJS.ErrnoException));
    return;
  }
  go(answer);
}

function cutBuffers(buffers: readonly NodeJS.ArrayBufferView[], bytes: number): NodeJS.ArrayBufferView[] {
  const cut: NodeJS.ArrayBufferView[] = [];
  let left = bytes;
  for (const { buffer, byteOffset, byteLength } of buffers) {
    if (left <= 0) break;
    cut.push(new Uint8Array(buffer, byteOffset, Math.min(byteLength, left)));
    left -= byteLength;
  }
  return cut;
}

function watchPosix(replace: Replace, judge: Judge<number>): void {
  const native: { -readonly [K in keyof Posix]: Posix[K] } = posix();
  const { preadNowait, fallocate, copyFileRange } = native;
  replace(native, "preadNowait", (fd, buffer, offset) => {
    const bytes = limit(judge(fd, { kind: "read", bytes: buffer.length }), buffer.length, "preadv2");
    return preadNowait(fd, buffer.subarray(0, bytes), offset);
  });
  replace(native, "fallocate", (fd, mode, offset, length) => {
    limit(judge(fd, { kind: "write", bytes: length }), length, "fallocate");
    return fallocate(fd, mode, offset, length);
  });
  replace(native, "copyFileRange", (from, fromOffset, to, toOffset, length) => {
    const bytes = limit(judge(to, { kind: "write", bytes: length }), length, "copy_file_range");
    return copyFileRange(from, fromOffset, to, toOffset, bytes);
  });
}
