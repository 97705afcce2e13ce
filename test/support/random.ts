/** Random numbers from a seed: the same ones on every machine. */

export interface Random {
  readonly seed: number;
  /** A number in [0, 1). */
  next(): number;
  /** A whole number in [0, limit). */
  below(limit: number): number;
  /** A whole number in [from, to]. */
  between(from: number, to: number): number;
  chance(probability: number): boolean;
  pick<T>(choices: readonly T[]): T;
  /** A buffer in which every byte is random. */
  bytes(length: number): Uint8Array;
}

/** The generator is splitmix32: tiny, and good enough to choose test cases. */
export function random(seed: number): Random {
  let state = seed >>> 0;
  const next32 = (): number => {
    state = (state + 0x9e3779b9) >>> 0;
    let mixed = state ^ (state >>> 16);
    mixed = Math.imul(mixed, 0x21f0aaad);
    mixed ^= mixed >>> 15;
    mixed = Math.imul(mixed, 0x735a2d97);
    return (mixed ^ (mixed >>> 15)) >>> 0;
  };
  const next = () => next32() / 2 ** 32;
  const below = (limit: number) => Math.floor(next() * limit);
  return {
    seed,
    next,
    below,
    between: (from, to) => from + below(to - from + 1),
    chance: (probability) => next() < probability,
    pick: (choices) => choices[below(choices.length)] as (typeof choices)[number],
    bytes(length) {
      const buffer = new Uint8Array(length);
      for (let i = 0; i < length; i++) buffer[i] = next32();
      return buffer;
    },
  };
}
