/** How a node is to be opened, beside its driver's options; children inherit most of it.  @qemu BDRV_O_* */

import type { ChildRole } from "./child.ts";
import type { DriverEntry } from "./driver.ts";
import { BlockError } from "./errors.ts";
import { type Options, takeBool, takeString } from "./options.ts";

export interface OpenFlags {
  readonly readOnly: boolean;
  /** Falls back to read-only where writing is refused.  @qemu BDRV_O_AUTO_RDONLY */
  readonly autoReadOnly: boolean;
  /** Only metadata is asked for: no data is read or written.  @qemu BDRV_O_NO_IO */
  readonly noIo: boolean;
  /** The backing file is left alone.  @qemu BDRV_O_NO_BACKING */
  readonly noBacking: boolean;
  /** Others may do what they like with the image meanwhile (`-U`).  @qemu force-share */
  readonly forceShare: boolean;
  /** Bypass the host's page cache (`cache.direct`).  @qemu BDRV_O_NOCACHE */
  readonly direct: boolean;
  /** Flushes need not reach the disk (`cache.no-flush`).  @qemu BDRV_O_NO_FLUSH */
  readonly noFlush: boolean;
  /** Linux' own asynchronous I/O is asked for, which needs `direct`; the thread pool does it all the same.  @qemu BDRV_O_NATIVE_AIO */
  readonly nativeAio: boolean;
  /** Discards are passed down (`discard=unmap`).  @qemu BDRV_O_UNMAP */
  readonly unmap: boolean;
  readonly detectZeroes: "off" | "on" | "unmap";
  /** Nobody else may write to the image or resize it while it is open.  @qemu BDRV_O_NO_SHARE */
  readonly noShare: boolean;
  /** The right to change the length is taken at once, not only when it is changed.  @qemu BDRV_O_RESIZE */
  readonly resize: boolean;
  /** The image is opened to be checked: a driver tolerates what it would refuse.  @qemu BDRV_O_CHECK */
  readonly check: boolean;
}

export const DEFAULT_FLAGS: OpenFlags = {
  readOnly: true,
  autoReadOnly: false,
  noIo: false,
  noBacking: false,
  forceShare: false,
  direct: false,
  noFlush: false,
  nativeAio: false,
  unmap: false,
  detectZeroes: "off",
  noShare: false,
  resize: false,
  check: false,
};

export type CacheMode = "none" | "off" | "directsync" | "writeback" | "writethrough" | "unsafe";

/** What qemu-img's `-t`/`-T` names mean; undefined: no such mode.  @qemu bdrv_parse_cache_mode */
export function parseCacheMode(
  name: string,
): { readonly direct: boolean; readonly noFlush: boolean; readonly writethrough: boolean } | undefined {
  switch (name) {
    case "off":
    case "none":
      return { direct: true, noFlush: false, writethrough: false };
    case "directsync":
      return { direct: true, noFlush: false, writethrough: true };
    case "writeback":
      return { direct: false, noFlush: false, writethrough: false };
    case "unsafe":
      return { direct: false, noFlush: true, writethrough: false };
    case "writethrough":
      return { direct: false, noFlush: false, writethrough: true };
    default:
      return undefined;
  }
}

/** The options that every node has.  @qemu bdrv_runtime_opts */
export function takeFlags(options: Options, given: OpenFlags): OpenFlags {
  const discard = takeString(options, "discard");
  const detectZeroes = takeString(options, "detect-zeroes");
  const flags: OpenFlags = {
    ...given,
    readOnly: takeBool(options, "read-only") ?? given.readOnly,
    autoReadOnly: takeBool(options, "auto-read-only") ?? given.autoReadOnly,
    forceShare: takeBool(options, "force-share") ?? given.forceShare,
    direct: takeBool(options, "cache.direct") ?? given.direct,
    noFlush: takeBool(options, "cache.no-flush") ?? given.noFlush,
    unmap: discard === undefined ? given.unmap : discard === "unmap" || discard === "on",
    detectZeroes: parseDetectZeroes(detectZeroes) ?? given.detectZeroes,
  };
  if (discard !== undefined && !["unmap", "on", "ignore", "off"].includes(discard))
    throw new BlockError("EINVAL", "Invalid discard option");
  if (flags.detectZeroes === "unmap" && !flags.unmap)
    throw new BlockError(
      "EINVAL",
      "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
    );
  return flags;
}

/** Whoever writes does not let others write as they like.  @qemu bdrv_open_common */
export function checkForceShare({ forceShare, readOnly }: OpenFlags): void {
  if (forceShare && !readOnly)
    throw new BlockError("EINVAL", "force-share=on can only be used with read-only images");
}

function parseDetectZeroes(value: string | undefined): OpenFlags["detectZeroes"] | undefined {
  if (value === undefined || value === "off" || value === "on" || value === "unmap") return value;
  throw new BlockError("EINVAL", `invalid parameter value: ${value}`);
}

/** What a child of `parent` inherits.  @qemu bdrv_inherited_options */
export function childFlags(parent: OpenFlags, kind: DriverEntry["kind"], role: ChildRole): OpenFlags {
  const flags = { ...parent, detectZeroes: "off" as const };
  if (role.cow) return { ...flags, readOnly: true, autoReadOnly: false };
  return {
    ...flags,
    noBacking: kind === "filter" && parent.noBacking,
    // Formats respect the unmap policy themselves, so the layers below may always.
    unmap: kind === "filter" && role.filtered ? parent.unmap : true,
    noIo: parent.noIo && !role.metadata,
  };
}
