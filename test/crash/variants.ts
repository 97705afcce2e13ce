/** The images whose crashes are tried out: how each is made and what can be done with it. */

import type { OpsProfile } from "../random-ops.ts";

/** One image of a chain. */
export interface Layer {
  readonly format: string;
  /** For `create -o`; data files and the like lie on the disk `crash:`. */
  readonly options?: string;
  readonly profile: OpsProfile;
  /** A new image holds whatever its file has. */
  readonly startsUnknown?: boolean;
}

export interface Variant {
  readonly name: string;
  /** The lowest first; each is the backing file of the next. Only the topmost is worked on. */
  readonly layers: readonly Layer[];
  /** Of the topmost, beside `driver`. */
  readonly openOptions?: Readonly<Record<string, string | number | boolean>>;
  /** Whether its header says that it is to be repaired before it is read: entries may lead nowhere. */
  readonly needsRepair?: (file: Uint8Array) => boolean;
  /** What it says that can only be opened once it has been repaired, as QEMU too would say; undefined: nothing. */
  readonly asksForRepair?: RegExp;
  /** What `check` calls an error, here as in QEMU, though only space is lost. */
  readonly isLeak?: (line: string) => boolean;
  /** Whether qemu-img can be asked about the file alone. */
  readonly qemuChecks: boolean;
}

const KiB = 1024;
const MiB = 1024 * KiB;

function qcow2(clusterSize: number, options = "", more: Partial<OpsProfile> = {}): Layer {
  const v2 = options.includes("compat=0.10");
  return {
    format: "qcow2",
    options: [`cluster_size=${clusterSize}`, options].filter(Boolean).join(","),
    profile: {
      size: clusterSize * 40 + 512,
      clusterSize,
      compressed: true,
      resize: true,
      snapshots: true,
      bitmaps: !v2,
      v2,
      ordered: true,
      ...more,
    },
  };
}

/** Small caches, so that tables are written on the way. */
function ofQcow2(name: string, ...layers: readonly Layer[]): Variant {
  const clusterSize = layers.at(-1)?.profile.clusterSize ?? 0;
  return { name, layers, openOptions: { "l2-cache-size": clusterSize * 3 }, qemuChecks: layers.length === 1 };
}

/** What a snapshot leaves to the backing file changes with that. */
const COMMIT = { commit: true, snapshots: false };

const SECRET = "encrypt.key-secret=s,encrypt.iter-time=0,encrypt.cipher-alg=aes-128";

/** A format whose tables are not QCOW2's: writes, zeroes, discards, and what it can beside. */
function plain(format: string, clusterSize: number, options: string, more: Partial<OpsProfile> = {}): Layer {
  return {
    format,
    options,
    profile: {
      size: clusterSize * 24,
      clusterSize,
      compressed: false,
      resize: false,
      ordered: true,
      ...more,
    },
  };
}

export const VARIANTS: readonly Variant[] = [
  ofQcow2("qcow2, clusters of 512", qcow2(512)),
  ofQcow2("qcow2, clusters of 4096", qcow2(4 * KiB)),
  ofQcow2("qcow2 v2, clusters of 1024", qcow2(1 * KiB, "compat=0.10")),
  ofQcow2("qcow2, refcounts of 64 bits", qcow2(512, "refcount_bits=64")),
  ofQcow2("qcow2, refcounts of 1 bit", qcow2(2 * KiB, "refcount_bits=1", { snapshots: "overflow" })),
  ofQcow2("qcow2, extended L2", qcow2(16 * KiB, "extended_l2=on", { size: 16 * 24 * KiB })),
  ofQcow2("qcow2, lazy refcounts", qcow2(1 * KiB, "lazy_refcounts=on")),
  ofQcow2("qcow2, zstd", qcow2(4 * KiB, "compression_type=zstd")),
  {
    ...ofQcow2(
      "qcow2, data file",
      qcow2(1 * KiB, "data_file=crash:data", { compressed: false, snapshots: false }),
    ),
    qemuChecks: false,
  },
  {
    ...ofQcow2(
      "qcow2, LUKS",
      qcow2(512, `encrypt.format=luks,${SECRET}`, { compressed: false, size: 512 * 40 }),
    ),
    openOptions: { "encrypt.key-secret": "s", "l2-cache-size": 1536 },
    qemuChecks: false,
  },
  ofQcow2("qcow2 over qcow2, committed", qcow2(512), qcow2(1 * KiB, "", COMMIT)),
  ofQcow2(
    "qcow2 over raw, committed",
    plain("raw", 64 * KiB, ""),
    qcow2(512, "", { ...COMMIT, size: 512 * 100 }),
  ),
  { name: "raw", layers: [plain("raw", 4 * KiB, "", { resize: true })], qemuChecks: false },
  {
    name: "luks",
    layers: [
      { ...plain("luks", 4 * KiB, "key-secret=s,iter-time=0,cipher-alg=aes-128"), startsUnknown: true },
    ],
    openOptions: { "key-secret": "s" },
    qemuChecks: false,
  },
  {
    name: "vdi",
    layers: [plain("vdi", MiB, "", { size: 4 * MiB })],
    // The header counts a block before the map has it: the other way round it would be handed out twice. A block that is
    // lost so makes others lie behind where they should, as in QEMU.
    isLeak(line) {
      const [, found, counted] =
        /^ERROR: allocated blocks mismatch, is (\d+), should be (\d+)/.exec(line) ?? [];
      return Number(found) < Number(counted) || /^ERROR: block index \d+ too large/.test(line);
    },
    qemuChecks: true,
  },
  { name: "vpc", layers: [plain("vpc", 2 * MiB, "force_size=on", { size: 6 * MiB })], qemuChecks: false },
  {
    name: "vhdx",
    layers: [plain("vhdx", MiB, "block_size=1M", { size: 4 * MiB })],
    asksForRepair: /contains a log that needs to be replayed/,
    qemuChecks: false,
  },
  {
    name: "qcow",
    layers: [plain("qcow", 4 * KiB, "", { compressed: true, compressedClusters: 1 })],
    qemuChecks: false,
  },
  {
    name: "qcow over raw, committed",
    layers: [plain("raw", 64 * KiB, ""), plain("qcow", 512, "", { ...COMMIT, size: 512 * 400 })],
    qemuChecks: false,
  },
  ...["monolithicSparse", "twoGbMaxExtentSparse", "monolithicFlat"].map((subformat) => ({
    name: `vmdk, ${subformat}`,
    layers: [plain("vmdk", 64 * KiB, `subformat=${subformat}`, { size: 16 * 64 * KiB })],
    qemuChecks: subformat === "monolithicSparse",
  })),
  {
    name: "vmdk, zeroed grains, over vmdk",
    layers: [
      plain("vmdk", 64 * KiB, "", { size: 12 * 64 * KiB }),
      plain("vmdk", 64 * KiB, "zeroed_grain=on", { size: 12 * 64 * KiB }),
    ],
    qemuChecks: false,
  },
  {
    name: "parallels",
    layers: [plain("parallels", 4 * KiB, "cluster_size=4k")],
    openOptions: { "prealloc-size": 65536 },
    asksForRepair: /Image was not closed correctly/,
    isLeak: (line) => line.startsWith("ERROR image was not closed correctly"),
    qemuChecks: true,
  },
  {
    name: "qed",
    layers: [plain("qed", 4 * KiB, "cluster_size=4k", { resize: "grow" })],
    needsRepair: (file) => ((file[16] ?? 0) & 2) !== 0,
    qemuChecks: false,
  },
];
