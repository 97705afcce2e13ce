/** Keys from passphrases (PBKDF2, RFC 8018), and how many iterations take how long.  @qemu crypto/pbkdf.c */

import { pbkdf2 as pbkdf2Callback } from "node:crypto";
import { promisify } from "node:util";
import { BlockError } from "../../src/block/errors.ts";
import type { HashName } from "./algorithms.ts";

const pbkdf2 = promisify(pbkdf2Callback);

/**
 * A derivation can't be interrupted, and an image says how long it takes: more iterations are refused. cryptsetup
 * asks for two seconds' worth, which is some ten million at most.
 */
export const MAX_ITERATIONS = 100_000_000;

/** LUKS wants so many at least. */
const MIN_ITERATIONS = 1000;

/** On another thread. */
export async function deriveKey(
  hash: HashName,
  passphrase: Uint8Array,
  salt: Uint8Array,
  iterations: number,
  bytes: number,
): Promise<Uint8Array> {
  if (iterations > MAX_ITERATIONS)
    throw new BlockError("ENOTSUP", `PBKDF iterations ${iterations} larger than ${MAX_ITERATIONS}`);
  return pbkdf2(passphrase, salt, iterations, bytes, hash);
}

/** How many iterations take `milliseconds` here, at least 1000.  @qemu qcrypto_pbkdf2_count_iters */
export async function iterationsFor(hash: HashName, bytes: number, milliseconds: number): Promise<number> {
  const rate = await iterationsPerMillisecond(hash, bytes);
  // A negative time is a very long one to QEMU.
  if (milliseconds < 0) throw tooMany(rate * 1000, "too large to scale");
  const iterations = Math.max(Math.floor(rate * milliseconds), MIN_ITERATIONS);
  if (iterations > MAX_ITERATIONS) throw tooMany(iterations, `larger than ${MAX_ITERATIONS}`);
  return iterations;
}

function tooMany(iterations: number, why: string): BlockError {
  return BlockError.wrap(
    `PBKDF iterations ${BigInt(Math.floor(iterations))} ${why}`,
    new BlockError("ERANGE"),
  );
}

/** So long is measured, in milliseconds: the clock and the way to the thread don't matter then. */
const MIN_MEASURE = 20;

/** What else the machine does makes a measurement slower, and a key weaker: the fastest counts. */
const MEASUREMENTS = 3;

async function iterationsPerMillisecond(hash: HashName, bytes: number): Promise<number> {
  let iterations = 8192;
  let rate = 0;
  for (let done = 0; done < MEASUREMENTS; ) {
    const start = performance.now();
    await pbkdf2(PROBE, PROBE, iterations, bytes, hash);
    const took = performance.now() - start;
    rate = Math.max(rate, iterations / took);
    if (took >= MIN_MEASURE) done++;
    else iterations *= 2;
  }
  return rate;
}

const PROBE = Buffer.from("password");
