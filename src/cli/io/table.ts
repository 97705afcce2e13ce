/** All commands of `bdrv io`, by their names.  @qemu qemuio_add_command */

import type { IoCommand } from "./command.ts";
import {
  abort,
  aioFlush,
  breakpoint,
  help,
  quit,
  removeBreak,
  resume,
  sigraise,
  sleep,
  waitBreak,
} from "./control.ts";
import { alloc, discard, flush, info, length, map, truncate } from "./image.ts";
import { close, open, reopen } from "./open.ts";
import { aioRead, read, readv } from "./read.ts";
import { aioWrite, write, writev } from "./write.ts";

export const ioCommands: readonly IoCommand[] = [
  abort,
  aioFlush,
  aioRead,
  aioWrite,
  alloc,
  breakpoint,
  close,
  discard,
  flush,
  help,
  info,
  length,
  map,
  open,
  quit,
  read,
  readv,
  removeBreak,
  reopen,
  resume,
  sigraise,
  sleep,
  truncate,
  waitBreak,
  write,
  writev,
];
