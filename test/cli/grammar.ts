/** Command lines of qemu-img made up from a grammar: mostly sensible, now and then with something wrong in them. */

import type { Random } from "../support/random.ts";

/** Images of the directory in which the lines are run, some of them broken, and names of none. */
const READABLE = [
  "base.raw",
  "odd.raw",
  "zeroes.raw",
  "empty.raw",
  "mid.qcow2",
  "top.qcow2",
  "over.qcow2",
  "empty.qcow2",
  "zero-length.qcow2",
  "short.qcow2",
  "prealloc.qcow2",
  "external.qcow2",
  "subclusters.qcow2",
  "old.qcow2",
  "zstd.qcow2",
  "snapshots.qcow2",
  "bitmaps.qcow2",
  "packed.qcow2",
  "zeroed.qcow2",
] as const;
const BROKEN = [
  "leak.qcow2",
  "corrupt.qcow2",
  "cut.qcow2",
  "lazy.qcow2",
  "broken-chain.qcow2",
  "garbage.qcow2",
  "sub",
  "none",
  "none/none",
  "",
  "json:{}",
  "json:{",
  "nbd:x",
  "foo:bar",
] as const;
/** As options. */
const SPELLED = [
  "json:{'driver':'qcow2','file.filename':'top.qcow2'}",
  'json:{"driver":"raw","file":{"driver":"file","filename":"base.raw"}}',
  "json:{'driver':'raw','offset':512,'file.filename':'base.raw'}",
  "file:base.raw",
  "./mid.qcow2",
] as const;
const IMAGE_OPTS = [
  "driver=qcow2,file.filename=top.qcow2",
  "driver=raw,file.filename=base.raw",
  "file.filename=mid.qcow2",
  "driver=qcow2,file.driver=file,file.filename=top.qcow2,backing=",
  "driver=qcow2,file.filename=top.qcow2,l2-cache-size=64k",
  "driver=raw,size=1M,offset=64k,file.filename=base.raw",
  "driver=raw,size=1000,file.filename=base.raw",
  "driver=compress,file.driver=qcow2,file.file.filename=mid.qcow2",
  "driver=null-co,size=1M",
  "driver=null-co,size=1M,read-zeroes=on",
  "driver=blkdebug,image.filename=base.raw",
  "base.raw",
  "filename=base.raw",
  "driver=foo,file.filename=base.raw",
  "driver=qcow2,file.filename=base.raw",
  "driver=qcow2,file.filename=top.qcow2,foo=bar",
  "driver=qcow2",
  "",
] as const;
const FORMATS = ["raw", "qcow2", "file", "null-co", "compress", "foo", ""] as const;
const SIZES = [
  "1M",
  "64k",
  "0",
  "512",
  "1000",
  "3G",
  "1.5M",
  "0x10000",
  "1e3",
  "-1",
  "x",
  "8E",
  "+1M",
  "1Mb",
  "1kk",
];
const SMALL_SIZES = SIZES.filter((size) => size !== "3G");
const CACHES = ["none", "writeback", "writethrough", "directsync", "unsafe", "off", "foo"] as const;
const CREATE_OPTIONS = [
  "cluster_size=4k",
  "cluster_size=512",
  "cluster_size=2M",
  "cluster_size=4M",
  "cluster_size=5000",
  "compat=0.10",
  "compat=1.1",
  "compat=v2",
  "compat=2",
  "extended_l2=on",
  "extended_l2=on,cluster_size=16k",
  "lazy_refcounts=on",
  "lazy_refcounts=maybe",
  "refcount_bits=1",
  "refcount_bits=64",
  "refcount_bits=3",
  "preallocation=metadata",
  "preallocation=falloc",
  "preallocation=full",
  "preallocation=foo",
  "compression_type=zstd",
  "compression_type=lz4",
  "data_file=o.data",
  "data_file=o.data,data_file_raw=on",
  "data_file_raw=on",
  "size=1M",
  "size=x",
  "backing_file=base.raw,backing_fmt=raw",
  "backing_file=base.raw",
  "backing_fmt=raw",
  "backing_file=none,backing_fmt=raw",
  "nocow=on",
  "extent_size_hint=1M",
  "foo=bar",
  "help",
  "cluster_size=4k,help",
  "help,foo",
  ",",
  "",
  "cluster_size",
  "nolazy_refcounts",
] as const;
const OBJECTS = [
  "secret,id=a,data=x",
  "secret,id=a",
  "secret,data=x",
  "foo,id=a",
  "secret,id=a,data=x,file=y",
  "",
];
const SNAPSHOTS = [
  "one",
  "1",
  "2",
  "none",
  "snapshot.id=1",
  "snapshot.name=one",
  "snapshot.id=9",
  "snapshot.foo=1",
];

/** One option with its value, if it has one, as it may stand in a command line. */
type Maker = (random: Random) => readonly string[];

const flag =
  (name: string): Maker =>
  () => [name];
const valued =
  (name: string, values: readonly string[]): Maker =>
  (random) => {
    const value = random.pick(values);
    if (name.startsWith("--")) return random.chance(0.5) ? [`${name}=${value}`] : [name, value];
    return random.chance(0.2) && value !== "" ? [`${name}${value}`] : [name, value];
  };

const OBJECT = valued("--object", OBJECTS);
const FORMAT = valued("-f", FORMATS);
const SHARE: Maker = (random) => [random.pick(["-U", "--force-share", "--force"])];
const OUTPUT = valued("--output", ["json", "human", "json", "xml"]);
const OPTIONS = valued("-o", CREATE_OPTIONS);
const SOURCE_CACHE = valued("-T", CACHES);
const CACHE = valued("-t", CACHES);

const image: Maker = (random) => [
  random.chance(0.75)
    ? random.pick(READABLE)
    : random.chance(0.6)
      ? random.pick(BROKEN)
      : random.pick(SPELLED),
];
const target: Maker = (random) => [
  random.chance(0.85) ? "o" : random.pick(["base.raw", "mid.qcow2", "none/o", "sub", "", "foo:o", "json:{}"]),
];

interface Grammar {
  readonly options: readonly Maker[];
  readonly operands: readonly Maker[];
  /** Options that stand in nearly every line. */
  readonly usual?: readonly Maker[];
}

const dd =
  (name: string, values: readonly string[]): Maker =>
  (random) => [`${name}=${random.pick(values)}`];

const GRAMMARS: Readonly<Record<string, Grammar>> = {
  info: {
    options: [FORMAT, OUTPUT, flag("--backing-chain"), OBJECT, SHARE, flag("--backing"), flag("-f")],
    operands: [image],
  },
  map: {
    options: [
      FORMAT,
      OUTPUT,
      OBJECT,
      SHARE,
      valued("-s", SIZES),
      valued("--start-offset", SIZES),
      valued("-l", SIZES),
      valued("--max-length", SIZES),
    ],
    operands: [image],
  },
  check: {
    options: [FORMAT, OUTPUT, OBJECT, SHARE, SOURCE_CACHE, flag("-q"), valued("-r", ["leaks", "all", "foo"])],
    operands: [image],
  },
  compare: {
    options: [FORMAT, valued("-F", FORMATS), SOURCE_CACHE, flag("-p"), flag("-q"), flag("-s"), SHARE, OBJECT],
    operands: [image, image],
  },
  measure: {
    options: [
      FORMAT,
      valued("-O", FORMATS),
      OPTIONS,
      OUTPUT,
      OBJECT,
      SHARE,
      valued("--size", SIZES),
      valued("-l", SNAPSHOTS),
    ],
    operands: [image],
  },
  create: {
    options: [
      OPTIONS,
      OPTIONS,
      valued("-b", ["base.raw", "mid.qcow2", "none", "", "json:{}"]),
      valued("-F", FORMATS),
      flag("-u"),
      flag("-q"),
      OBJECT,
      FORMAT,
    ],
    usual: [valued("-f", ["qcow2", "qcow2", "raw"])],
    operands: [target, (random) => (random.chance(0.8) ? [random.pick(SMALL_SIZES)] : [])],
  },
  convert: {
    options: [
      FORMAT,
      OPTIONS,
      OPTIONS,
      valued("-B", ["base.raw", "mid.qcow2", "none", ""]),
      valued("-F", FORMATS),
      flag("-c"),
      flag("-C"),
      valued("-l", SNAPSHOTS),
      valued("-S", SIZES),
      valued("-r", ["1G", "0", "x"]),
      valued("-m", ["1", "8", "16", "17", "0", "x"]),
      flag("-W"),
      flag("-n"),
      CACHE,
      SOURCE_CACHE,
      flag("-p"),
      flag("-q"),
      flag("--target-is-zero"),
      flag("--target-image-opts"),
      flag("--salvage"),
      flag("--bitmaps"),
      flag("--skip-broken-bitmaps"),
      SHARE,
      OBJECT,
    ],
    usual: [valued("-O", ["raw", "qcow2", "qcow2"])],
    operands: [image, (random) => (random.chance(0.1) ? image(random) : []), target],
  },
  dd: {
    options: [FORMAT, valued("-O", ["raw", "qcow2", "qcow2", "foo"]), SHARE, OBJECT],
    operands: [
      (random) => [`if=${image(random)[0]}`],
      (random) => [`of=${target(random)[0]}`],
      dd("bs", ["512", "1000", "64k", "1M", "0", "x", "3G"]),
      (random) => (random.chance(0.4) ? dd("count", ["1", "3", "0", "100000", "x"])(random) : []),
      (random) => (random.chance(0.4) ? dd("skip", ["1", "3", "0", "100000", "x", "7E"])(random) : []),
    ],
  },
  bench: {
    options: [
      FORMAT,
      valued("-d", ["1", "2", "64", "x"]),
      valued("-s", ["512", "4k", "1000", "1M", "x"]),
      valued("-S", ["512", "64k", "1000", "x"]),
      valued("-o", ["0", "64k", "1000", "100M", "x"]),
      valued("-i", ["threads", "native", "io_uring", "x"]),
      valued("--pattern", ["1", "0xff", "256", "x"]),
      valued("--flush-interval", ["0", "3", "64", "x"]),
      flag("--no-drain"),
      flag("-n"),
      flag("-q"),
      SHARE,
      CACHE,
      flag("-w"),
    ],
    usual: [valued("-c", ["0", "1", "10", "10", "x"])],
    operands: [image],
  },
  snapshot: {
    options: [SHARE, OBJECT, flag("-q"), flag("-l")],
    usual: [
      (random) => [
        random.pick(["-a", "-d"]),
        random.pick(["one", "1", "none", "a long name for a snapshot"]),
      ],
    ],
    operands: [image],
  },
  rebase: {
    options: [
      FORMAT,
      CACHE,
      SOURCE_CACHE,
      flag("-p"),
      flag("-u"),
      flag("-q"),
      SHARE,
      OBJECT,
      valued("-F", FORMATS),
    ],
    usual: [valued("-b", ["base.raw", "mid.qcow2", "none", "", "zeroes.raw", "top.qcow2"])],
    operands: [image],
  },
  commit: {
    options: [
      FORMAT,
      CACHE,
      valued("-b", ["base.raw", "mid.qcow2", "none", "top.qcow2"]),
      valued("-r", ["1G", "x"]),
      flag("-d"),
      flag("-p"),
      flag("-q"),
      OBJECT,
    ],
    operands: [image],
  },
  resize: {
    options: [
      FORMAT,
      valued("--preallocation", ["off", "metadata", "falloc", "full", "foo"]),
      flag("-q"),
      flag("--shrink"),
      OBJECT,
    ],
    operands: [
      image,
      (random) => [random.pick(["2M", "+1M", "-1M", "0", "10M", "x", "+", "-0", "8E", "+1000", "5000"])],
    ],
  },
  amend: {
    options: [FORMAT, CACHE, flag("-p"), flag("-q"), flag("--force"), OBJECT, OPTIONS],
    usual: [OPTIONS],
    operands: [image],
  },
  bitmap: {
    options: [
      FORMAT,
      flag("--add"),
      flag("--remove"),
      flag("--clear"),
      flag("--enable"),
      flag("--disable"),
      valued("--merge", ["first", "second", "none"]),
      valued("-b", ["bitmaps.qcow2", "none", "base.raw"]),
      valued("-F", FORMATS),
      valued("-g", ["512", "64k", "1M", "5000", "x", "4G"]),
      OBJECT,
    ],
    usual: [(random) => [random.pick(["--add", "--remove", "--clear", "--enable", "--disable", "--merge"])]],
    operands: [
      (random) => [random.chance(0.6) ? "bitmaps.qcow2" : random.pick(READABLE)],
      (random) => [random.pick(["first", "second", "third", "", "none"])],
    ],
  },
};

export const COMMANDS: readonly string[] = Object.keys(GRAMMARS);

/** A line for `command`, without the program's name. */
export function commandLine(random: Random, command: string): string[] {
  const { options, operands, usual = [] } = GRAMMARS[command] as Grammar;
  const parts: (readonly string[])[] = usual.filter(() => random.chance(0.95)).map((make) => make(random));
  for (let count = random.below(4); count > 0; count--) parts.push(random.pick(options)(random));
  if (random.chance(0.03)) parts.push([random.pick(["-Z", "--nonsense", "--", "-h=1", "--help=1", "-"])]);
  let words = operands.flatMap((make) => make(random)).map((word) => [word]);
  if (random.chance(0.08) && command !== "dd") {
    parts.push(["--image-opts"]);
    words = words.map((word, index) => (index === 0 ? [random.pick(IMAGE_OPTS)] : word));
  }
  if (random.chance(0.03)) words = words.slice(1);
  if (random.chance(0.03)) words = [...words, ["surplus"]];
  // Options before, between and behind the operands, whose own order stays.
  const line: string[] = [];
  const left = [...words];
  for (const part of parts) {
    while (left.length > 0 && random.chance(0.15) && command !== "resize")
      line.push(...(left.shift() as string[]));
    line.push(...part);
  }
  return [command, ...line, ...left.flat()];
}
