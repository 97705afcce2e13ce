/** The one error class of the block layer. Its message is what a user of qemu-img sees; `errno` is stable for programs. */

/** What the C library prints for each errno that the block layer uses.  @qemu strerror */
const STRERROR = {
  EPERM: "Operation not permitted",
  ENOENT: "No such file or directory",
  EINTR: "Interrupted system call",
  EIO: "Input/output error",
  ENXIO: "No such device or address",
  EBADF: "Bad file descriptor",
  EAGAIN: "Resource temporarily unavailable",
  ENOMEM: "Cannot allocate memory",
  EACCES: "Permission denied",
  EBUSY: "Device or resource busy",
  EEXIST: "File exists",
  EXDEV: "Invalid cross-device link",
  ENODEV: "No such device",
  ENOTDIR: "Not a directory",
  EISDIR: "Is a directory",
  EINVAL: "Invalid argument",
  ENFILE: "Too many open files in system",
  EMFILE: "Too many open files",
  ETXTBSY: "Text file busy",
  EFBIG: "File too large",
  ENOSPC: "No space left on device",
  EROFS: "Read-only file system",
  EPIPE: "Broken pipe",
  EDOM: "Numerical argument out of domain",
  ERANGE: "Numerical result out of range",
  ENAMETOOLONG: "File name too long",
  ENOSYS: "Function not implemented",
  ELOOP: "Too many levels of symbolic links",
  EOVERFLOW: "Value too large for defined data type",
  EPROTO: "Protocol error",
  ENOTSUP: "Operation not supported",
  ESTALE: "Stale file handle",
  EDQUOT: "Disk quota exceeded",
  ENOMEDIUM: "No medium found",
  ETIMEDOUT: "Connection timed out",
  ECANCELED: "Operation canceled",
} as const;

export type Errno = keyof typeof STRERROR;

/** `EOPNOTSUPP` is the same number as `ENOTSUP` on Linux; Node reports either. */
const ALIASES: Readonly<Record<string, Errno>> = { EOPNOTSUPP: "ENOTSUP", EWOULDBLOCK: "EAGAIN" };

/** Numbers that os.constants.errno lacks. */
const LINUX_NUMBERS: Readonly<Record<string, number>> = {
  ENOMEDIUM: 123,
  ENOTSUP: 95,
  ESTALE: 116,
  EDQUOT: 122,
};

export interface BlockErrorOptions {
  readonly cause?: unknown;
  /** Name of the node the error happened on. */
  readonly node?: string;
  /** Guest offset in bytes that the error is about. */
  readonly offset?: number;
  /** A line that a command prints after the message, with no prefix.  @qemu error_append_hint */
  readonly hint?: string;
  /** The file that somebody else has locked. */
  readonly lockedFile?: string;
}

export class BlockError extends Error {
  override readonly name = "BlockError";
  readonly errno: Errno;
  readonly node: string | undefined;
  readonly offset: number | undefined;
  readonly hint: string | undefined;
  readonly lockedFile: string | undefined;

  /** Without a message: the C library's text for `errno`. */
  constructor(errno: Errno, message?: string, options: BlockErrorOptions = {}) {
    super(message ?? STRERROR[errno], options.cause === undefined ? undefined : { cause: options.cause });
    this.errno = errno;
    this.node = options.node;
    this.offset = options.offset;
    this.hint = options.hint;
    this.lockedFile = options.lockedFile;
  }

  /** `prefix: message of the cause`, with the cause's errno kept.  @qemu error_prepend */
  static wrap(prefix: string, cause: unknown): BlockError {
    const inner = toBlockError(cause);
    return new BlockError(inner.errno, `${prefix}: ${inner.message}`, {
      cause,
      ...(inner.node !== undefined && { node: inner.node }),
      ...(inner.offset !== undefined && { offset: inner.offset }),
      ...(inner.hint !== undefined && { hint: inner.hint }),
      ...(inner.lockedFile !== undefined && { lockedFile: inner.lockedFile }),
    });
  }
}

/** The text of an errno, as the C library has it.  @qemu strerror */
export function strerror(errno: Errno): string {
  return STRERROR[errno];
}

/** The errno's number on this system, positive; 5 (EIO) if it is unknown here. */
export function errnoNumber(errno: Errno): number {
  const numbers: Readonly<Record<string, number>> = process.getBuiltinModule("node:os").constants.errno;
  return LINUX_NUMBERS[errno] ?? numbers[errno] ?? 5;
}

/** The name for a positive errno number, `EIO` if unknown. blkdebug's `errno` option comes as a number. */
export function errnoFromNumber(number: number): Errno {
  for (const name of Object.keys(STRERROR) as Errno[]) if (errnoNumber(name) === number) return name;
  return "EIO";
}

function isErrno(code: string): code is Errno {
  return Object.hasOwn(STRERROR, code);
}

/**
 * Makes a BlockError of what Node's file functions throw; a BlockError comes back as it is.
 * An error without an errno (a bug, an abort) is thrown on: it must not pass for an I/O error.
 */
export function toBlockError(error: unknown): BlockError {
  if (error instanceof BlockError) return error;
  const code = error instanceof Error && "code" in error ? error.code : undefined;
  if (typeof code === "string") {
    const errno = isErrno(code) ? code : ALIASES[code];
    if (errno) return new BlockError(errno, undefined, { cause: error });
    if (/^E[A-Z0-9]+$/.test(code)) return new BlockError("EIO", code, { cause: error });
  }
  throw error;
}

/** A broken invariant of ours: never an answer to bad input. */
export function assert(condition: boolean, message: string): asserts condition {
  if (!condition) throw new AssertionError(message);
}

export class AssertionError extends Error {
  override readonly name = "AssertionError";
}
