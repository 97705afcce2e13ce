/** Files and block devices of the host.  @qemu block/file-posix.c */

import fs from "node:fs";
import { type NodeOps, type Prealloc, type ProtocolDriver, Req } from "../src/block/driver.ts";
import { BlockError, toBlockError } from "../src/block/errors.ts";
import { protocolPrefix } from "../src/block/filename.ts";
import type { BlockNode } from "../src/block/node.ts";
import type { OpeningNode } from "../src/block/open.ts";
import type { OptionValues } from "../src/block/options.ts";
import { SECTOR_SIZE } from "../src/block/units.ts";
import { posix } from "../src/platform/posix.ts";
import { checkConfined, confine } from "./confine.ts";
import {
  copyRange,
  directAlignment,
  EARLY_READS,
  fileStatus,
  fullPread,
  fullPwrite,
  type HostFile,
  punchHole,
  resize,
  syncData,
  zeroRange,
} from "./file-io.ts";
import { canLock, FileLocks, lockDevice, lockForCreate } from "./file-locks.ts";

const options = {
  filename: { type: "string", strong: true },
  /** on, off or auto: whether others are kept out by locks on the file. */
  locking: { type: "string", values: ["on", "off", "auto"] },
  /** threads, native or io_uring: taken, and without effect here. */
  aio: { type: "string", values: ["threads", "native", "io_uring"] },
} as const;

const createOptions = {
  size: { type: "size", help: "Virtual disk size" },
  nocow: { type: "bool", help: "Turn off copy-on-write (valid only on btrfs)" },
  preallocation: {
    type: "string",
    values: ["off", "metadata", "falloc", "full"],
    help: "Preallocation mode (allowed values: off, falloc, full)",
  },
  extent_size_hint: { type: "size", help: "Extent size hint for the image file, 0 to disable" },
} as const;

const deviceCreateOptions = {
  preallocation: { type: "string", values: ["off"], help: "Preallocation mode (allowed values: off)" },
  size: createOptions.size,
} as const;

/** Statfs type of tmpfs: its reads never wait, though it does not know RWF_NOWAIT. */
const TMPFS_MAGIC = 0x01021994;

const stripPrefix = (filename: string): string => {
  if (!filename.startsWith("file:")) return filename;
  const rest = filename.slice("file:".length);
  return protocolPrefix(rest) === undefined ? rest : `./${rest}`;
};

export const file: ProtocolDriver<typeof options, typeof createOptions> = {
  formatName: "file",
  kind: "protocol",
  prefix: "file",
  parseFilename: (filename) => new Map([["filename", stripPrefix(filename)]]),
  options,
  createOptions,
  open: async (_, node) => openFile(node, "file"),

  async remove(filename, environment) {
    try {
      const named = stripPrefix(filename);
      fs.unlinkSync(environment.staging?.locate(named) ?? named);
    } catch (error) {
      throw toBlockError(error);
    }
  },

  async create(_co, request) {
    const { filename: given, environment, sharesWrites = false } = request;
    const { size = 0, preallocation = "off" } = request.options;
    const filename = environment.guard ? confine(stripPrefix(given)) : stripPrefix(given);
    const lock = (fd: number) => lockForCreate(fd, given.replace(/^file:/, ""), sharesWrites);
    let fd: number;
    try {
      fd =
        environment.staging?.create(filename, lock) ??
        fs.openSync(filename, fs.constants.O_RDWR | fs.constants.O_CREAT, 0o644);
    } catch (error) {
      // What the lock says is said already.
      if (error instanceof BlockError) throw error;
      throw BlockError.wrap(`Could not create '${filename}'`, toBlockError(error));
    }
    try {
      if (!environment.staging) lock(fd);
      // Emptied first: what was in the file before must not shine through.
      fs.ftruncateSync(fd, 0);
      await resize(fd, 0, size, preallocation, environment.signal);
    } catch (error) {
      throw toBlockError(error);
    } finally {
      fs.closeSync(fd);
    }
  },
};

const stripDevicePrefix = (filename: string): string => filename.replace(/^host_device:/, "");

/** Block and character devices by their names in /dev.  @qemu bdrv_host_device */
export const hostDevice: ProtocolDriver<typeof options, typeof deviceCreateOptions> = {
  formatName: "host_device",
  kind: "protocol",
  prefix: "host_device",
  parseFilename: (filename) => new Map([["filename", stripDevicePrefix(filename)]]),
  claims: (filename) => {
    try {
      const stat = fs.statSync(filename);
      return stat.isBlockDevice() || stat.isCharacterDevice();
    } catch {
      // Whatever is wrong with the name is said by who opens it.
      return false;
    }
  },
  createOptions: deviceCreateOptions,

  // A device is there already: it must be large enough, and what it held must not be probed.
  async create(_co, { filename: given, options: { size = 0 }, sharesWrites = false }) {
    const filename = stripDevicePrefix(given);
    let fd: number | undefined;
    try {
      fd = openDescriptor(filename, false, false);
      lockDevice(fd, filename, true);
    } catch (error) {
      if (fd !== undefined) fs.closeSync(fd);
      throw BlockError.wrap(
        "Protocol driver 'host_device' does not support image creation, and opening the image failed",
        error,
      );
    }
    try {
      // Before anything is lost: qemu-img finds out after.
      lockDevice(fd, filename, sharesWrites);
      if (size > (posix().blockDeviceSize(fd) ?? 0))
        throw new BlockError("EINVAL", "Cannot grow device files");
      const bytes = Math.min(size, SECTOR_SIZE);
      if (bytes > 0) fs.writeSync(fd, new Uint8Array(bytes), 0, bytes, 0);
    } catch (error) {
      throw toBlockError(error);
    } finally {
      fs.closeSync(fd);
    }
  },
  options,
  open: async (_, node) => openFile(node, "host_device"),
};

function openDescriptor(filename: string, readOnly: boolean, direct: boolean): number {
  const { O_RDONLY, O_RDWR, O_DIRECT, O_NONBLOCK }: Partial<typeof fs.constants> = fs.constants;
  // Systems without O_DIRECT do without. A pipe must not keep the whole process waiting for its other end, deaf
  // to signals, only to be refused after: files and disks do not care about O_NONBLOCK.
  const flags = ((readOnly ? O_RDONLY : O_RDWR) ?? 0) | ((direct && O_DIRECT) || 0) | (O_NONBLOCK ?? 0);
  try {
    return fs.openSync(filename, flags);
  } catch (error) {
    throw BlockError.wrap(`Could not open '${filename}'`, toBlockError(error));
  }
}

async function openFile(
  { node, options, applyAutoReadOnly, environment }: OpeningNode<typeof file.options>,
  driver: string,
) {
  if (!options.filename) throw new BlockError("EINVAL", "The 'file' block driver requires a file name");
  node.exactFilename = options.filename;
  const named = environment.guard ? confine(options.filename) : options.filename;
  const filename = environment.staging?.locate(named) ?? named;
  const { direct, nativeAio } = node.flags;
  let fd: number;
  try {
    fd = openDescriptor(filename, node.readOnly, direct);
  } catch (error) {
    const reason = toBlockError(error);
    if (node.readOnly || (reason.errno !== "EACCES" && reason.errno !== "EROFS")) throw reason;
    applyAutoReadOnly(reason);
    fd = openDescriptor(filename, true, direct);
  }
  try {
    if (environment.guard) checkConfined(fd, filename);
    // The thread pool does it all; but who asks for native AIO learns of a mistake in the cache mode.
    if ((options.aio === "native" || nativeAio) && !direct)
      throw new BlockError(
        "EINVAL",
        "aio=native was specified, but it requires cache.direct=on, which was not specified.",
      );
    const stat = fs.fstatSync(fd);
    const isDevice = stat.isBlockDevice() || stat.isCharacterDevice();
    if (driver === "file" && !stat.isFile())
      throw new BlockError("EINVAL", `'${driver}' driver requires '${filename}' to be a regular file`);
    if (driver === "host_device" && !isDevice)
      throw new BlockError(
        "EINVAL",
        `'${driver}' driver requires '${filename}' to be either a character or block device`,
      );
    const inMemory = !isDevice && !direct && fs.statfsSync(filename).type === TMPFS_MAGIC;
    const host: HostFile = {
      fd,
      filename,
      isDevice,
      isDirect: direct,
      inMemory,
      // Made when it is wanted.
      get signal() {
        return environment.signal;
      },
      earlyReads: EARLY_READS,
      slowUntil: 0,
      // Loaded when it is first needed.
      get posix() {
        return posix();
      },
    };
    return fileOps(host, node, openLocks(fd, options, environment));
  } catch (error) {
    fs.closeSync(fd);
    throw toBlockError(error);
  }
}

/** Undefined: the file is not to be locked, or can't be. */
function openLocks(
  fd: number,
  { filename = "", locking = "auto" }: OptionValues<typeof options>,
  { warn }: OpeningNode["environment"],
): FileLocks | undefined {
  if (locking === "off") return undefined;
  // Nobody is told that what happens by itself elsewhere does not happen here.
  if (locking === "on" && !canLock(fd))
    warn("File lock requested but OFD locking syscall is unavailable: the file is not locked");
  return new FileLocks(fd, filename);
}

function fileOps(host: HostFile, node: BlockNode, locks: FileLocks | undefined): NodeOps {
  const { isDevice } = host;
  return {
    supportedWriteFlags: Req.WriteUnchanged,
    supportedZeroFlags: Req.MayUnmap | Req.NoFallback | Req.WriteUnchanged,
    async getLength() {
      if (!isDevice) return fs.fstatSync(host.fd).size;
      if (!fs.fstatSync(host.fd).isBlockDevice()) return 0;
      const bytes = host.posix.blockDeviceSize(host.fd);
      if (bytes === undefined) throw new BlockError("ENOTSUP", `The size of '${host.filename}' is not known`);
      return bytes;
    },
    pread: (_, offset, iov) => fullPread(host, offset, iov),
    pwrite: (_, offset, iov) => fullPwrite(host, offset, iov),
    descriptor: () => host.fd,
    copyFrom: async (_, offset, range) => copyRange(host, offset, range),
    async pwriteZeroes(_, offset, bytes, flags) {
      if (!zeroRange(host, offset, bytes, (flags & Req.MayUnmap) !== 0)) throw new BlockError("ENOTSUP");
    },
    async pdiscard(_, offset, bytes) {
      if (!punchHole(host, offset, bytes)) throw new BlockError("ENOTSUP");
    },
    flushToDisk: () => syncData(host),
    async truncate(_, bytes, exact, prealloc) {
      if (isDevice) checkDeviceSize(host, bytes, exact, prealloc);
      else await resize(host.fd, fs.fstatSync(host.fd).size, bytes, prealloc, host.signal);
    },
    blockStatus: async (_, wantZero, offset, bytes) => fileStatus(host, node, wantZero, offset, bytes),
    getAllocatedFileSize: async () => fs.fstatSync(host.fd).blocks * 512,
    hasZeroInit: () => !isDevice,
    getInfo: async () => ({}),
    preparePermissions: (pair) => locks?.prepare(pair),
    limits: () => (host.isDirect ? { requestAlignment: directAlignment(host), memoryAlignment: 4096 } : {}),
    async reopen(_, { readOnly, direct }) {
      const { fd, isDirect } = host;
      const fresh = openDescriptor(host.filename, readOnly, direct);
      host.fd = fresh;
      host.isDirect = direct;
      return {
        commit: () => {
          locks?.moveTo(fresh);
          fs.closeSync(fd);
        },
        abort: () => {
          host.fd = fd;
          host.isDirect = isDirect;
          fs.closeSync(fresh);
        },
      };
    },
    close: async () => fs.closeSync(host.fd),
  };
}

/** A device has the size it has: only that may be asked for, or less where it need not be exact. */
function checkDeviceSize(host: HostFile, bytes: number, exact: boolean, prealloc: Prealloc): void {
  if (prealloc !== "off")
    throw new BlockError("ENOTSUP", `Preallocation mode '${prealloc}' unsupported for this non-regular file`);
  const size = host.posix.blockDeviceSize(host.fd) ?? 0;
  if (bytes !== size && exact) throw new BlockError("ENOTSUP", "Cannot resize device files");
  if (bytes > size) throw new BlockError("EINVAL", "Cannot grow device files");
}
