/** Where ours differs from qemu-img on purpose: each case with its reason. Everything else must be the same. */

import type { RunResult } from "./differential.ts";

export interface Difference {
  readonly why: string;
  /** What may differ: all of it, or only the files that are left. */
  readonly what: "all" | "files" | "output";
  readonly applies: (line: readonly string[], theirs: RunResult) => boolean;
}

export const DIFFERENCES: readonly Difference[] = [
  {
    why: "Protocols that are not there yet are unknown.",
    what: "all",
    applies: (line) => line.some((word) => /^(if=|of=)?nbd:/.test(word)),
  },
  {
    why: "qemu-img is killed by a signal: bench divides by the length of an image of no bytes, convert -B '' trips over its own name.",
    what: "all",
    applies: (_, theirs) => theirs.exitCode === -1,
  },
  {
    why: "A conversion that is refused does not end with 0, as it does with --target-is-zero over a backing file.",
    what: "all",
    applies: (_, theirs) => theirs.stderr.includes("Cannot use --target-is-zero"),
  },
  {
    why: "What null-co reads as without read-zeroes is whatever is in memory.",
    what: "files",
    applies: (line) => line.some((word) => word.includes("null-co") && !word.includes("read-zeroes")),
  },
  {
    why: "What was behind the end of an image that shrank within a cluster does not come back when it grows, nor what a cluster held that is used again by --preallocation=metadata.",
    what: "files",
    applies: ([command]) => command === "resize" || command === "amend",
  },
  {
    why: "Space is also set aside where clusters at the end of the file are free.",
    what: "all",
    applies: ([command], theirs) =>
      command === "resize" && theirs.stderr.includes("Cannot use preallocation for shrinking files"),
  },
  {
    why: "A create that fails leaves what was there, or nothing; qemu-img has emptied or removed it by then.",
    what: "files",
    applies: ([command], theirs) => command === "create" && theirs.exitCode !== 0,
  },
  {
    why: "A failed conversion leaves no image that passes for whole.",
    what: "files",
    applies: ([command], theirs) => command === "convert" && theirs.exitCode !== 0,
  },
  {
    why: "Nor does a dd that failed.",
    what: "files",
    applies: ([command], theirs) => command === "dd" && theirs.exitCode !== 0,
  },
  {
    why: "An operation on snapshots that fails is undone; qemu-img leaves it half done.",
    what: "files",
    applies: ([command], theirs) => command === "snapshot" && theirs.exitCode !== 0,
  },
  {
    why: "A raw image, which has no snapshots, is not opened a second time after the first was not applied: one warning.",
    what: "output",
    applies: ([command], { stderr }) => command === "snapshot" && stderr.split("WARNING").length === 3,
  },
  {
    why: "With -W it is left open in which order clusters are allocated.",
    what: "files",
    applies: ([command, ...words]) => command === "convert" && words.includes("-W"),
  },
  {
    why: "Parallel writes that meet allocated clusters at their start are allocated in no certain order.",
    what: "files",
    applies: ([command, ...words]) => command === "bench" && words.includes("-w"),
  },
  {
    why: "dd does not empty the image that it reads, itself or by a backing file; qemu-img copies what is left then: nothing.",
    what: "all",
    applies: ([command, ...words]) => {
      const target = words.findLast((word) => word.startsWith("of="))?.slice(3);
      return command === "dd" && (target === "base.raw" || target === "mid.qcow2");
    },
  },
  {
    why: "Options of a new image are checked before a file is made, not after; where both would fail, the first is told.",
    what: "all",
    applies: ([command, ...words], theirs) =>
      (command === "create" || command === "convert") &&
      words.includes("none/o") &&
      theirs.stderr.includes("Could not create 'none/o'"),
  },
  {
    why: "Of an option that is given twice, only the value that counts is looked at.",
    what: "all",
    applies: ([, ...words]) => hasKeyTwice(words),
  },
  {
    why: "The blocks that qemu-img commit copies are on their way at once, and are allocated in no certain order.",
    what: "files",
    applies: ([command]) => command === "commit",
  },
  {
    why: "With -C progress is told in the steps in which is copied, which are others.",
    what: "output",
    applies: ([command, ...words]) => command === "convert" && words.includes("-C") && words.includes("-p"),
  },
  {
    why: "qemu-img commit -p repeats the line as often as a timer of its job rings.",
    what: "output",
    applies: ([command, ...words]) => command === "commit" && words.includes("-p"),
  },
  {
    why: "Node names that the block layer makes up (#block123) count on from image to image in one process.",
    what: "output",
    applies: (_, theirs) => /#block\d+/.test(theirs.stderr),
  },
];

function hasKeyTwice(words: readonly string[]): boolean {
  const keys = words
    .filter((word, index) => words[index - 1] === "-o" || word.startsWith("-o"))
    .flatMap((list) => list.replace(/^-o/, "").split(","))
    .map((option) => option.replace(/=.*/, ""));
  return new Set(keys).size < keys.length;
}
