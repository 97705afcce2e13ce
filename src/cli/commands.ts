/**
 * The table of commands: their options as qemu-img's own take them, letter by letter, and where each one's module is.
 * They are loaded when they are called.
 * The words behind `-o` and its like belong to the drivers.
 */

import type { Command } from "./command.ts";
import { HELP_OPTION, type OptionSpec } from "./getopt.ts";
import { TRUST_OPTIONS } from "./trust.ts";

const OBJECT: OptionSpec = {
  name: "object",
  long: "object",
  value: "OBJECTDEF",
  help: "Define an object, such as secret,id=NAME,file=PATH",
};
const IMAGE_OPTS: OptionSpec = {
  name: "image-opts",
  long: "image-opts",
  help: "FILENAME is a list of options (driver=qcow2,file.filename=...)",
};
const FORCE_SHARE: OptionSpec = {
  name: "force-share",
  short: "U",
  long: "force-share",
  help: "Open the image even if another process writes to it",
};
const OUTPUT: OptionSpec = { name: "output", long: "output", value: "FORMAT", help: "human or json" };
const QUIET: OptionSpec = { name: "quiet", short: "q", help: "Print errors only" };
const PROGRESS: OptionSpec = { name: "progress", short: "p", help: "Show progress" };
const FORMAT: OptionSpec = {
  name: "format",
  short: "f",
  value: "FORMAT",
  help: "Format of the image; probed by default",
};
/** Where qemu-img has a long name for it as well. */
const FORMAT_LONG: OptionSpec = { ...FORMAT, long: "format" };
const SOURCE_CACHE: OptionSpec = {
  name: "source-cache",
  short: "T",
  value: "CACHE",
  help: "Cache mode for reading: none, writeback, writethrough, directsync or unsafe",
};
const TARGET_CACHE: OptionSpec = {
  name: "cache",
  short: "t",
  value: "CACHE",
  help: "Cache mode for writing, as for -T",
};
const BACKING_FILE: OptionSpec = {
  name: "backing-file",
  short: "b",
  value: "FILENAME",
  help: "The new image stores only what differs from this one",
};
const BACKING_FORMAT: OptionSpec = {
  name: "backing-format",
  short: "F",
  value: "FORMAT",
  help: "Format of the backing file",
};
const DRIVER_OPTIONS: OptionSpec = {
  name: "options",
  short: "o",
  value: "OPTIONS",
  help: "Options of the new image's format, a=b,c=d; `-o help` lists them",
};
const OUTPUT_FORMAT: OptionSpec = {
  name: "output-format",
  short: "O",
  value: "FORMAT",
  help: "Format of the new image; raw by default",
};
const SNAPSHOT: OptionSpec = {
  name: "snapshot",
  short: "l",
  value: "SNAPSHOT",
  help: "Internal snapshot of the image to be read",
};

const table: readonly Command[] = [
  {
    name: "amend",
    summary: "Change options of an image that exists",
    operands: "FILENAME",
    options: [
      HELP_OPTION,
      OBJECT,
      IMAGE_OPTS,
      PROGRESS,
      QUIET,
      FORMAT,
      TARGET_CACHE,
      { name: "force", long: "force", help: "Also what other programs may not be able to read" },
      { ...DRIVER_OPTIONS, help: "What is to change, a=b,c=d; `-o help` lists the options" },
    ],
    load: () => import("./amend.ts"),
  },
  {
    name: "bench",
    summary: "Take the time of reads or writes",
    operands: "FILENAME",
    options: [
      HELP_OPTION,
      { name: "count", short: "c", value: "COUNT", help: "Requests in all; 75000 by default" },
      { name: "depth", short: "d", value: "DEPTH", help: "Requests at once; 64 by default" },
      FORMAT,
      {
        name: "flush-interval",
        long: "flush-interval",
        value: "COUNT",
        help: "Writing: flush after so many requests",
      },
      { name: "aio", short: "i", value: "AIO", help: "threads, native or io_uring; without effect" },
      { name: "native", short: "n", help: "As -i native" },
      { name: "no-drain", long: "no-drain", help: "A flush does not wait for what is under way" },
      { name: "offset", short: "o", value: "OFFSET", help: "Where the first request starts" },
      { name: "pattern", long: "pattern", value: "BYTE", help: "The byte that is written; 0 by default" },
      QUIET,
      { name: "buffer-size", short: "s", value: "SIZE", help: "Bytes of a request; 4096 by default" },
      { name: "step-size", short: "S", value: "SIZE", help: "Bytes from a request to the next" },
      TARGET_CACHE,
      { name: "write", short: "w", help: "Write instead of reading" },
      IMAGE_OPTS,
      FORCE_SHARE,
    ],
    load: () => import("./bench.ts"),
  },
  {
    name: "bitmap",
    summary: "Change the dirty bitmaps of an image",
    operands: "FILENAME BITMAP",
    options: [
      HELP_OPTION,
      OBJECT,
      IMAGE_OPTS,
      { name: "add", long: "add", help: "Make a bitmap that marks what is written from now on" },
      { name: "remove", long: "remove", help: "Delete the bitmap" },
      { name: "clear", long: "clear", help: "Make all of the bitmap clean" },
      { name: "enable", long: "enable", help: "From now on writes mark the bitmap" },
      { name: "disable", long: "disable", help: "From now on writes don't mark the bitmap" },
      { name: "merge", long: "merge", value: "SOURCE", help: "Mark what is dirty in this bitmap too" },
      { name: "source-file", short: "b", value: "FILENAME", help: "The image that has SOURCE" },
      FORMAT,
      { name: "source-format", short: "F", value: "FORMAT", help: "Format of that image" },
      { name: "granularity", short: "g", value: "SIZE", help: "Bytes to a bit, for --add" },
    ],
    load: () => import("./bitmap.ts"),
  },
  {
    name: "check",
    summary: "Check an image for errors",
    operands: "FILENAME",
    options: [
      HELP_OPTION,
      FORMAT_LONG,
      { name: "repair", short: "r", long: "repair", value: "WHAT", help: "Repair leaks or all" },
      OUTPUT,
      OBJECT,
      IMAGE_OPTS,
      FORCE_SHARE,
      SOURCE_CACHE,
      QUIET,
    ],
    load: () => import("./check.ts"),
  },
  {
    name: "commit",
    summary: "Copy an overlay's data into its backing file",
    operands: "FILENAME",
    options: [
      HELP_OPTION,
      FORMAT,
      TARGET_CACHE,
      {
        name: "base",
        short: "b",
        value: "BASE",
        help: "Image of the backing chain that gets the data; implies -d",
      },
      { name: "rate-limit", short: "r", value: "RATE", help: "Bytes per second" },
      { name: "drop", short: "d", help: "Don't empty the overlay afterwards" },
      PROGRESS,
      QUIET,
      OBJECT,
      IMAGE_OPTS,
    ],
    load: () => import("./commit.ts"),
  },
  {
    name: "compare",
    summary: "Compare the content of two images",
    operands: "FILENAME1 FILENAME2",
    options: [
      HELP_OPTION,
      FORMAT,
      { name: "format2", short: "F", value: "FORMAT", help: "Format of the second image" },
      SOURCE_CACHE,
      PROGRESS,
      QUIET,
      { name: "strict", short: "s", help: "Sizes and allocation must be the same too" },
      OBJECT,
      IMAGE_OPTS,
      FORCE_SHARE,
    ],
    load: () => import("./compare.ts"),
  },
  {
    name: "convert",
    summary: "Copy images into a new one, in any format",
    operands: "FILENAME [FILENAME2 ...] OUTPUT_FILENAME",
    options: [
      HELP_OPTION,
      FORMAT,
      OUTPUT_FORMAT,
      { ...BACKING_FILE, short: "B" },
      BACKING_FORMAT,
      { name: "compress", short: "c", help: "Compress the output" },
      { name: "copy-range", short: "C", help: "Try to let the kernel copy" },
      DRIVER_OPTIONS,
      SNAPSHOT,
      {
        name: "sparse-size",
        short: "S",
        value: "SIZE",
        help: "Zeroes of this length become a hole; 4k by default",
      },
      { name: "rate-limit", short: "r", value: "RATE", help: "Bytes per second" },
      { name: "parallel", short: "m", value: "COUNT", help: "Requests in flight" },
      { name: "out-of-order", short: "W", help: "Write in any order" },
      { name: "no-create", short: "n", help: "The output exists and is written into" },
      TARGET_CACHE,
      SOURCE_CACHE,
      PROGRESS,
      QUIET,
      OBJECT,
      IMAGE_OPTS,
      FORCE_SHARE,
      {
        name: "target-image-opts",
        long: "target-image-opts",
        help: "OUTPUT_FILENAME is a list of options; needs -n",
      },
      { name: "target-is-zero", long: "target-is-zero", help: "The output reads as zeroes; needs -n" },
      { name: "salvage", long: "salvage", help: "Go on after read errors, with zeroes" },
      { name: "bitmaps", long: "bitmaps", help: "Copy persistent bitmaps too" },
      { name: "skip-broken-bitmaps", long: "skip-broken-bitmaps", help: "Leave out inconsistent bitmaps" },
    ],
    load: () => import("./convert.ts"),
  },
  {
    name: "create",
    summary: "Create an image",
    operands: "FILENAME [SIZE]",
    options: [
      HELP_OPTION,
      { ...FORMAT, help: "Format of the new image; raw by default" },
      BACKING_FILE,
      BACKING_FORMAT,
      { name: "unsafe", short: "u", help: "Don't open the backing file" },
      DRIVER_OPTIONS,
      QUIET,
      OBJECT,
    ],
    load: () => import("./create.ts"),
  },
  {
    name: "dd",
    summary: "Copy blocks of an image into a new one",
    operands: "[bs=SIZE] [count=BLOCKS] [skip=BLOCKS] if=INPUT of=OUTPUT",
    options: [HELP_OPTION, FORMAT, OUTPUT_FORMAT, OBJECT, IMAGE_OPTS, FORCE_SHARE],
    load: () => import("./dd.ts"),
  },
  {
    name: "info",
    summary: "Describe an image",
    operands: "FILENAME",
    options: [
      HELP_OPTION,
      FORMAT_LONG,
      OUTPUT,
      { name: "backing-chain", long: "backing-chain", help: "Describe the backing files too" },
      OBJECT,
      IMAGE_OPTS,
      FORCE_SHARE,
    ],
    load: () => import("./info.ts"),
  },
  {
    name: "map",
    summary: "List where an image's data lies",
    operands: "FILENAME",
    options: [
      HELP_OPTION,
      FORMAT_LONG,
      OUTPUT,
      {
        name: "start-offset",
        short: "s",
        long: "start-offset",
        value: "OFFSET",
        help: "First byte to be listed",
      },
      { name: "max-length", short: "l", long: "max-length", value: "LENGTH", help: "Bytes to be listed" },
      OBJECT,
      IMAGE_OPTS,
      FORCE_SHARE,
    ],
    load: () => import("./map.ts"),
  },
  {
    name: "measure",
    summary: "Tell how large a new image would be",
    operands: "[FILENAME]",
    // In the order in which the C library names those that an abbreviation may mean.
    options: [
      HELP_OPTION,
      IMAGE_OPTS,
      OBJECT,
      OUTPUT,
      { name: "size", long: "size", value: "SIZE", help: "Of an empty image, instead of FILENAME" },
      FORCE_SHARE,
      FORMAT,
      OUTPUT_FORMAT,
      DRIVER_OPTIONS,
      SNAPSHOT,
    ],
    load: () => import("./measure.ts"),
  },
  {
    name: "snapshot",
    summary: "List, take, apply or delete internal snapshots",
    operands: "FILENAME",
    options: [
      HELP_OPTION,
      { name: "list", short: "l", help: "List all snapshots" },
      { name: "apply", short: "a", value: "SNAPSHOT", help: "Go back to this snapshot" },
      { name: "create", short: "c", value: "SNAPSHOT", help: "Take a snapshot" },
      { name: "delete", short: "d", value: "SNAPSHOT", help: "Delete this snapshot" },
      QUIET,
      OBJECT,
      IMAGE_OPTS,
      FORCE_SHARE,
    ],
    load: () => import("./snapshot.ts"),
  },
  {
    name: "rebase",
    summary: "Change the backing file of an image",
    operands: "FILENAME",
    options: [
      HELP_OPTION,
      FORMAT,
      { ...BACKING_FILE, help: 'The new backing file; "" for none' },
      BACKING_FORMAT,
      { name: "unsafe", short: "u", help: "Only change the name: the new backing file reads the same" },
      TARGET_CACHE,
      SOURCE_CACHE,
      PROGRESS,
      QUIET,
      OBJECT,
      IMAGE_OPTS,
      FORCE_SHARE,
    ],
    load: () => import("./rebase.ts"),
  },
  {
    name: "resize",
    summary: "Change the size of an image",
    operands: "FILENAME [+|-]SIZE",
    options: [
      HELP_OPTION,
      FORMAT,
      {
        name: "preallocation",
        long: "preallocation",
        value: "MODE",
        help: "How far new space is set aside: off, metadata, falloc or full",
      },
      { name: "shrink", long: "shrink", help: "The image may become smaller" },
      QUIET,
      OBJECT,
      IMAGE_OPTS,
    ],
    load: () => import("./resize.ts"),
  },
];

/** Those of qemu-img. */
export const commands = table.map(withTrustOptions);

/** What only `bdrv` has. */
export const ownCommands: readonly Command[] = [
  withTrustOptions({
    name: "inspect",
    summary: "Tell whether an image from untrusted hands is safe to open",
    operands: "FILENAME",
    options: [HELP_OPTION, FORMAT_LONG],
    load: () => import("./inspect.ts"),
  }),
];

export function findCommand(name: string, program: string): Command | undefined {
  const all = program === "bdrv" ? [...commands, ...ownCommands] : commands;
  return all.find((command) => command.name === name);
}

function withTrustOptions(command: Command): Command {
  return { ...command, options: [...command.options, ...TRUST_OPTIONS] };
}
