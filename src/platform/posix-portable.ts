/** What can be had without foreign calls: the fallback of posix.ts, and the parts that need no more anywhere. */

import * as fs from "node:fs";
import type { Posix } from "./posix.ts";

export function portablePosix(): Posix {
  return {
    native: false,
    canPreadNowait: false,
    preadNowait: () => -1,
    seekData: () => undefined,
    seekHole: () => undefined,
    fallocate: () => false,
    copyFileRange: () => -1,
    blockDeviceSize,
    ofdLock: () => undefined,
    ofdTest: () => undefined,
    alignedBuffer: wasmBuffer,
  };
}

/** Asks sysfs rather than the BLKGETSIZE64 ioctl, because that needs no foreign call and says the same. */
export function blockDeviceSize(fd: number): number | undefined {
  const stat = fs.fstatSync(fd, { bigint: true });
  if (!stat.isBlockDevice() || process.platform !== "linux") return undefined;
  const rdev = stat.rdev;
  // How glibc packs a 12-bit (now 32-bit) major and a 20-bit (now 32-bit) minor number into dev_t.
  const major = ((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & 0xfffff000n);
  const minor = (rdev & 0xffn) | ((rdev >> 12n) & 0xffffff00n);
  try {
    // Units of 512 bytes, whatever the sector size of the device.
    const sectors = Number(fs.readFileSync(`/sys/dev/block/${major}:${minor}/size`, "latin1").trim());
    return Number.isSafeInteger(sectors * 512) ? sectors * 512 : undefined;
  } catch {
    return undefined; // No sysfs here, as in some sandboxes.
  }
}

const wasmPage = 65536;

interface WasmMemory {
  readonly buffer: ArrayBuffer;
}

/** Node's types leave WebAssembly out; this is the part that is used. */
interface WithWasm {
  readonly WebAssembly: { readonly Memory: new (descriptor: { initial: number }) => WasmMemory };
}

/** The memory of a WebAssembly.Memory starts on a page: the only aligned memory in reach of plain JavaScript. */
function wasmBuffer(bytes: number, alignment = 4096): Uint8Array {
  if (alignment > wasmPage) throw new RangeError(`alignment ${alignment} is over ${wasmPage}`);
  const { Memory } = (globalThis as unknown as WithWasm).WebAssembly;
  return new Uint8Array(new Memory({ initial: Math.ceil(bytes / wasmPage) }).buffer, 0, bytes);
}
