/** Scripts for qemu-io, made from a seed: every command that leaves the image different, and those that look at it. */

import { type Random, random } from "../support/random.ts";

/** What the image of a script is. */
export interface ScriptImage {
  readonly bytes: number;
  /** Of a format, for which compressed writes and the discard of clusters mean something; undefined: raw. */
  readonly clusterBytes?: number;
}

const KIB = 1024;
const SUFFIXED: readonly (readonly [string, number])[] = [
  ["k", KIB],
  ["K", KIB],
  ["M", KIB * KIB],
];

/** `count` command lines, the same for the same seed. */
export function randomScript(seed: number, image: ScriptImage, count: number): string[] {
  const rng = random(seed);
  const lines: string[] = [];
  while (lines.length < count) {
    const line = randomCommand(rng, image);
    lines.push(line);
    // Which of several ends first is a matter of chance, in both tools.
    if (line.startsWith("aio_")) lines.push("aio_flush");
  }
  return lines;
}

function randomCommand(rng: Random, image: ScriptImage): string {
  const range = () => randomRange(rng, image);
  const pattern = () => String(rng.below(4));
  const { bytes, clusterBytes } = image;
  const kind = rng.below(clusterBytes === undefined ? 20 : 27);
  switch (kind) {
    case 0:
    case 1:
    case 2:
      return `write -P ${pattern()} ${range()}`;
    case 3:
      return `read -P ${pattern()} ${range()}`;
    case 4:
      return `read -v ${size(rng, rng.below(bytes))} ${rng.below(100)}`;
    case 5:
      return `write -z${rng.pick(["", "u", "n", "f", "uf", "q"])} ${range()}`;
    case 6:
      return `discard ${range()}`;
    case 7:
      return `writev -P ${pattern()} ${range()} ${rng.below(9000)} ${rng.below(3)}`;
    case 8:
      return `readv -P ${pattern()} ${range()} ${rng.below(9000)}`;
    case 9:
      return `alloc ${range()}`;
    case 10:
      return rng.pick(["map", "length", "info", "flush", "aio_flush"]);
    case 11:
      return `aio_write -q -P ${pattern()} ${range()}`;
    case 12:
      return `write -s pattern ${range()}`;
    case 13:
      // Cut inside of a cluster, and grown again, qemu's image shows what was there; ours reads as zeroes.
      return rng.chance(0.3) ? `truncate ${size(rng, units(rng, bytes * 1.2, clusterBytes ?? 512))}` : "map";
    case 14:
      return `read ${range()} ${rng.pick(["", "", "-q", "-C", "-x", "7"])}`.trim();
    case 15:
      return `aio_write -q -z${rng.pick(["", "u"])} ${range()}`;
    case 16:
      return `${rng.pick(WORDS)} ${rng.pick(["", "-P 1", "-x", "-z", "-q", "-C", "-v"])} ${garbage(rng)} ${garbage(rng)}`;
    case 17:
      return `reopen ${rng.pick(["-r", "-w", "-w", "-c writeback", "-c unsafe", "-r -c unsafe", ""])}`.trim();
    case 18:
      return `aio_read -v -P ${pattern()} ${size(rng, rng.below(bytes))} ${rng.below(64)} ${rng.below(64)}`;
    case 19:
      return `${rng.pick(["help ", ""])}${rng.pick(WORDS)}`;
    case 20:
      // One cluster: of several, all that begin are written, and how many begin before one fails is chance.
      return `write -c -P ${pattern()} ${size(rng, units(rng, bytes, clusterBytes))} ${Math.min(clusterBytes ?? 0, bytes)}`;
    case 21:
      return `discard ${size(rng, units(rng, bytes, 64 * KIB))} ${rng.pick(["64k", "128k"])}`;
    case 22:
      return `write -zu ${size(rng, units(rng, bytes, 64 * KIB))} 64k`;
    case 23:
      return `write -b -P ${pattern()} ${size(rng, units(rng, bytes))} ${size(rng, units(rng, 100 * KIB))}`;
    case 24:
      return `read -b -P ${pattern()} ${size(rng, units(rng, bytes))} ${size(rng, units(rng, 100 * KIB))}`;
    case 25:
      return `write -z ${size(rng, rng.below(bytes))} ${rng.below(2000)}`;
    default:
      return `write -P ${pattern()} ${size(rng, units(rng, bytes, 64 * KIB))} ${rng.pick(["64k", "192k"])}`;
  }
}

/** All commands that neither wait for something nor end the process. */
const WORDS =
  "aio_flush aio_read aio_write alloc break discard flush help info length map open read readv remove_break reopen resume truncate write writev r w d ?".split(
    " ",
  );

const GARBAGE =
  ",,0,1,512,x,-1,1k,0x200,1.5k,3G,8E,16E,9223372036854775807,0x1k,1kb,07,.5,5.,+3,1e3,--,-q,nope,i.raw".split(
    ",",
  );

/** What is no number, or a strange one. */
function garbage(rng: Random): string {
  return rng.pick(GARBAGE);
}

/** "OFFSET LENGTH", now and then beyond the end. */
function randomRange(rng: Random, { bytes }: ScriptImage): string {
  const offset = rng.chance(0.4) ? units(rng, bytes) : rng.below(bytes + 10);
  const length = rng.chance(0.5) ? units(rng, 200 * KIB) : rng.below(200 * KIB);
  return `${size(rng, offset)} ${size(rng, length)}`;
}

const units = (rng: Random, limit: number, unit = 512) => rng.below(limit / unit) * unit;

/** A number as people write it. */
function size(rng: Random, bytes: number): string {
  const suffixed = SUFFIXED.filter(([, unit]) => bytes >= unit && bytes % (unit / 8) === 0);
  if (suffixed.length > 0 && rng.chance(0.5)) {
    const [suffix, unit] = rng.pick(suffixed);
    return `${bytes / unit}${suffix}`;
  }
  return rng.chance(0.1) ? `0x${bytes.toString(16)}` : String(bytes);
}
