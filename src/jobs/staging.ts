/**
 * New files get their names when all of them are whole: each is made under another name in the same directory, and
 * renamed at the end. Who watches the name sees what was there before, or the new image, and no half of it.
 *
 * The other name follows from the file's own, so that what a killed process left behind is taken over by the next one
 * that makes the same file, and two at once meet at the lock on it. Not all can be had so: what must stay the file that
 * it is (one with several names, of another owner, or that somebody has open; a descriptor under /proc; a file that is
 * mounted) is written in place, as all is by qemu-img.
 */

import fs from "node:fs";
import path from "node:path";
import { BlockError, toBlockError } from "../block/errors.ts";
import type { FileStaging } from "../block/open.ts";

/** A file on the host, whatever its name. */
export interface FileIdentity {
  readonly path: string;
  readonly dev: bigint;
  readonly ino: bigint;
  readonly ctimeNs: bigint;
}

interface StagedFile {
  /** Where it is made; `target` itself where it is written in place. */
  readonly made: string;
  /** The end of the symbolic links that its name may be. */
  readonly target: string;
  /** What was made, or what was found in its place. */
  readonly identity: FileIdentity | undefined;
  /** Holds the locks on the file that will be replaced. */
  readonly replaced: number | undefined;
}

type Lock = Parameters<FileStaging["create"]>[1];

const { O_RDWR, O_CREAT, O_NOFOLLOW } = fs.constants;

/** As many as Linux follows. */
const MAX_LINKS = 40;

export class Staging implements FileStaging {
  /** By the absolute name that was asked for, in the order in which they were made. */
  readonly #files = new Map<string, StagedFile>();

  create(filename: string, lock: Lock): number {
    const name = path.resolve(filename);
    const known = this.#files.get(name);
    if (known) return openLocked(known.made, O_RDWR, lock);
    const target = followLinks(name);
    const before = fs.lstatSync(target, { throwIfNoEntry: false });
    const canBeStaged = filename !== "" && (!before || canBeReplaced(target, before));
    const beside = canBeStaged ? makeBeside(target, before, lock) : undefined;
    if (beside) {
      const { fd, ...made } = beside;
      this.#files.set(name, { ...made, target });
      return fd;
    }
    const identity = identifyFile(target);
    const fd = openLocked(filename, O_RDWR | O_CREAT, lock);
    this.#files.set(name, { made: target, target, identity, replaced: undefined });
    return fd;
  }

  locate(filename: string): string {
    const staged = this.#files.get(path.resolve(filename));
    return staged && staged.made !== staged.target ? staged.made : filename;
  }

  /** Gives the files their names, last of all the one that was made first: it is what names the others. */
  commit(): void {
    try {
      for (const { made, target, identity } of [...this.#files.values()].reverse()) {
        if (made === target || !fs.existsSync(made)) continue;
        if (!isSameFile(identifyFile(made), identity))
          throw new BlockError("EBUSY", `Another process has replaced '${made}'`);
        fs.renameSync(made, target);
      }
      this.#close();
    } catch (error) {
      this.discard();
      throw toBlockError(error);
    }
  }

  /** Leaves nothing of what was made. What would have been replaced stays as it was; what was written in place goes away. */
  discard(): void {
    for (const { made, target, identity } of this.#files.values()) {
      const now = identifyFile(made);
      if (!now) continue;
      // A file in its place that the failed attempt did not touch is none of ours.
      if (made === target ? now.ctimeNs !== identity?.ctimeNs : isSameFile(now, identity)) removeFile(now);
    }
    this.#close();
  }

  #close(): void {
    for (const { replaced } of this.#files.values()) if (replaced !== undefined) fs.closeSync(replaced);
    this.#files.clear();
  }
}

/** The regular file of that name, if it is one. */
export function identifyFile(filename: string): FileIdentity | undefined {
  const stat = fs.statSync(filename, { bigint: true, throwIfNoEntry: false });
  if (!stat?.isFile()) return undefined;
  return { path: filename, dev: stat.dev, ino: stat.ino, ctimeNs: stat.ctimeNs };
}

function isSameFile(one: FileIdentity | undefined, other: FileIdentity | undefined): boolean {
  return one !== undefined && one.dev === other?.dev && one.ino === other.ino;
}

/** Another name of the same file must not show half an image either, so it is emptied first. */
function removeFile({ path: filename }: FileIdentity): void {
  for (const step of [fs.truncateSync, fs.unlinkSync]) {
    try {
      step(filename);
    } catch {
      // The error that has led here says more than this one.
    }
  }
}

/** Descriptors' own names: what is open under them is to be written, and nothing else. */
const DESCRIPTORS = /^\/proc\/|^\/dev\/(?!shm\/)/;

/** The end of the symbolic links, also where nothing is there yet. A descriptor's name is no link to be followed. */
function followLinks(name: string): string {
  let target = name;
  for (let count = 0; count < MAX_LINKS && !DESCRIPTORS.test(target); count++) {
    if (!fs.lstatSync(target, { throwIfNoEntry: false })?.isSymbolicLink()) return target;
    target = path.resolve(path.dirname(target), fs.readlinkSync(target));
  }
  return target;
}

/** Not a device or pipe, and nobody can tell the new file from the old one but by its number. */
function canBeReplaced(target: string, stat: fs.Stats): boolean {
  const owner = process.geteuid?.();
  return (
    stat.isFile() &&
    stat.nlink === 1 &&
    (owner === undefined || owner === stat.uid) &&
    !DESCRIPTORS.test(target) &&
    !isMountPoint(target)
  );
}

/** A container gets single files of its host so. */
function isMountPoint(target: string): boolean {
  try {
    const name = target.replace(
      /[ \t\n\\]/g,
      (char) => `\\${char.charCodeAt(0).toString(8).padStart(3, "0")}`,
    );
    return fs.readFileSync("/proc/self/mountinfo", "utf8").includes(` ${name} `);
  } catch {
    // Only Linux has such.
    return false;
  }
}

/** Makes the file that is to get the name `target`; undefined where it must be made in place after all. */
function makeBeside(
  target: string,
  before: fs.Stats | undefined,
  lock: Lock,
): (Omit<StagedFile, "target"> & { readonly fd: number }) | undefined {
  const made = path.join(path.dirname(target), `.${path.basename(target)}.bdrv-part`);
  let isShared = false;
  // Who may not write the old file may not replace it.
  const replaced =
    before &&
    openLocked(target, O_RDWR, (fd) => {
      isShared = lock(fd);
    });
  if (replaced !== undefined && isShared) {
    fs.closeSync(replaced);
    return undefined;
  }
  try {
    const fd = openLocked(made, O_RDWR | O_CREAT | O_NOFOLLOW, (each) => {
      checkOwn(each);
      lock(each);
    });
    if (before && !takeAfter(fd, before)) {
      fs.closeSync(fd);
      fs.unlinkSync(made);
    } else return { fd, made, identity: identifyFile(made), replaced };
  } catch (error) {
    const { errno } = toBlockError(error);
    if (errno === "EAGAIN" || (!before && errno !== "ENAMETOOLONG" && errno !== "EPERM")) {
      if (replaced !== undefined) fs.closeSync(replaced);
      throw error;
    }
  }
  if (replaced !== undefined) fs.closeSync(replaced);
  return undefined;
}

function openLocked(filename: string, flags: number, lock: (fd: number) => void): number {
  const fd = fs.openSync(filename, flags, 0o644);
  try {
    lock(fd);
    return fd;
  } catch (error) {
    fs.closeSync(fd);
    throw error;
  }
}

/** Somebody may have put something else there, in a directory that is open to all. */
function checkOwn(fd: number): void {
  const stat = fs.fstatSync(fd);
  const owner = process.geteuid?.() ?? stat.uid;
  if (!stat.isFile() || stat.nlink !== 1 || stat.uid !== owner) throw new BlockError("EPERM");
}

/** Gives the new file the group and the permissions of the old one, if that may be. */
function takeAfter(fd: number, before: fs.Stats): boolean {
  try {
    if (fs.fstatSync(fd).gid !== before.gid) fs.fchownSync(fd, before.uid, before.gid);
    fs.fchmodSync(fd, before.mode & 0o7777);
    return true;
  } catch {
    return false;
  }
}
