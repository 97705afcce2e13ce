/** Where a command's text goes: a descriptor, buffered as the C library buffers stdout, or a test's string. */

import fs from "node:fs";

export interface Output {
  readonly isTerminal: boolean;
  write(text: string): void;
  /** Passes on what is buffered. */
  flush(): void;
}

/** The C library's buffer for a pipe or a file. Errors are not buffered, so the order of both matters to scripts. */
const BUFFER_BYTES = 4096;

/**
 * Text for a descriptor. Synchronous, and without `process.stdout`, which costs 1.5 ms of a start. Whoever reads
 * may be gone (EPIPE): then the rest is dropped, as after a SIGPIPE.
 */
export class DescriptorOutput implements Output {
  readonly #fd: number;
  readonly #buffered: boolean;
  #isTerminal: boolean | undefined;
  #pending: Buffer[] = [];
  #pendingBytes = 0;
  #closed = false;

  constructor(fd: number, buffered: boolean) {
    this.#fd = fd;
    this.#buffered = buffered;
  }

  get isTerminal(): boolean {
    this.#isTerminal ??= isTerminal(this.#fd);
    return this.#isTerminal;
  }

  write(text: string): void {
    const bytes = Buffer.from(text);
    this.#pending.push(bytes);
    this.#pendingBytes += bytes.length;
    if (!this.#buffered || this.isTerminal) this.flush();
    else if (this.#pendingBytes >= BUFFER_BYTES) this.#pass(this.#pendingBytes % BUFFER_BYTES);
  }

  flush(): void {
    if (this.#pendingBytes > 0) this.#pass(0);
  }

  /** Writes what is buffered but for the last `kept` bytes: an overflowing buffer passes on whole blocks. */
  #pass(kept: number): void {
    const all = Buffer.concat(this.#pending);
    this.#pending = kept === 0 ? [] : [all.subarray(all.length - kept)];
    this.#pendingBytes = kept;
    let bytes: Uint8Array = all.subarray(0, all.length - kept);
    while (bytes.length > 0 && !this.#closed) {
      try {
        bytes = bytes.subarray(fs.writeSync(this.#fd, bytes));
      } catch (error) {
        const code = (error as NodeJS.ErrnoException).code;
        // A pipe that somebody else made non-blocking is full: wait a little for its reader.
        if (code === "EAGAIN") Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5);
        else if (code === "EPIPE" || code === "EBADF" || code === "EIO") this.#closed = true;
        else throw error;
      }
    }
  }
}

const MAY_LACK = { throwIfNoEntry: false } as const;

/** node:tty brings the whole of node:net with it (3 ms), so it is asked only about what can be a terminal. */
function isTerminal(fd: number): boolean {
  try {
    const stat = fs.fstatSync(fd);
    if (!stat.isCharacterDevice() || stat.rdev === fs.statSync("/dev/null", MAY_LACK)?.rdev) return false;
  } catch {
    // A descriptor that is not open.
    return false;
  }
  return process.getBuiltinModule("node:tty").isatty(fd);
}

/** Collects everything, for callers in the same process. */
export class MemoryOutput implements Output {
  readonly isTerminal = false;
  text = "";

  write(text: string): void {
    this.text += text;
  }

  flush(): void {}
}
