/** How a node is to be opened, beside its driver's options; children inherit most of it.  @qemu BDRV_O_* */

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
