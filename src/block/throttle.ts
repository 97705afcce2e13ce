/**
 * Limits on the rate of requests, shared by all members of a group: leaky buckets that requests fill and time
 * empties.  @qemu util/throttle.c, block/throttle-groups.c, docs/throttle.txt
 */

import { BlockError } from "./errors.ts";

export const BUCKETS = [
  "bps-total",
  "bps-read",
  "bps-write",
  "iops-total",
  "iops-read",
  "iops-write",
] as const;
export type BucketName = (typeof BUCKETS)[number];

/** One bucket's limits, in bytes or requests. */
export interface BucketLimits {
  /** A second; 0: no limit. */
  readonly average: number;
  /** A second, in a burst; 0: none set. */
  readonly max: number;
  /** Seconds that a burst may last. */
  readonly maxLength: number;
}

export interface ThrottleLimits {
  readonly buckets: Readonly<Record<BucketName, BucketLimits>>;
  /** A request counts once for each so many bytes; 0: once. */
  readonly iopsSize: number;
}

export type Direction = "read" | "write";

/** The largest value of a limit.  @qemu THROTTLE_VALUE_MAX */
const MAX_VALUE = 1e15;

/** @qemu throttle_is_valid */
export function checkThrottleLimits({ buckets, iopsSize }: ThrottleLimits): void {
  const fail = (message: string): never => {
    throw new BlockError("EINVAL", message);
  };
  const isSet = (name: BucketName) => buckets[name].average > 0;
  const hasMax = (name: BucketName) => buckets[name].max > 0;
  for (const has of [isSet, hasMax])
    for (const kind of ["bps", "iops"] as const)
      if (has(`${kind}-total`) && (has(`${kind}-read`) || has(`${kind}-write`)))
        fail("bps/iops/max total values and read/write values cannot be used at the same time");
  if (iopsSize > 0 && !isSet("iops-total") && !isSet("iops-read") && !isSet("iops-write"))
    fail("iops size requires an iops value to be set");
  for (const name of BUCKETS) checkBucket(buckets[name], fail);
}

function checkBucket({ average, max, maxLength }: BucketLimits, fail: (message: string) => never): void {
  if (average < 0 || max < 0 || average > MAX_VALUE || max > MAX_VALUE)
    fail(`bps/iops/max values must be within [0, ${MAX_VALUE}]`);
  if (maxLength === 0) fail("the burst length cannot be 0");
  if (maxLength > 1 && max === 0) fail("burst length set without burst rate");
  if (maxLength > 1 && max > MAX_VALUE / maxLength) fail("burst length too high for this burst rate");
  if (max > 0 && average === 0) fail("bps_max/iops_max require corresponding bps/iops values");
  if (max > 0 && max < average) fail("bps_max/iops_max cannot be lower than bps/iops");
}

/** What has been let in and has not leaked out yet. */
class Bucket {
  readonly #limits: BucketLimits;
  #level = 0;
  /** The same for the rate within a burst. */
  #burstLevel = 0;

  constructor(limits: BucketLimits) {
    this.#limits = limits;
  }

  leak(seconds: number): void {
    const { average, max, maxLength } = this.#limits;
    this.#level = Math.max(this.#level - average * seconds, 0);
    if (maxLength > 1) this.#burstLevel = Math.max(this.#burstLevel - max * seconds, 0);
  }

  fill(units: number): void {
    this.#level += units;
    if (this.#limits.maxLength > 1) this.#burstLevel += units;
  }

  /** Seconds until the next request may begin. */
  wait(): number {
    const { average, max, maxLength } = this.#limits;
    if (average === 0) return 0;
    // Without a burst rate, a tenth of a second's worth may come at once.
    const room = max > 0 ? max * maxLength : average / 10;
    if (this.#level > room) return (this.#level - room) / average;
    if (maxLength > 1 && this.#burstLevel > max / 10) return (this.#burstLevel - max / 10) / max;
    return 0;
  }
}

/** Requests of one direction wait in the order in which they came, whichever member they are of. */
export class ThrottleGroup {
  readonly #buckets: Readonly<Record<BucketName, Bucket>>;
  readonly #iopsSize: number;
  readonly #turns: Record<Direction, Promise<void>> = { read: Promise.resolve(), write: Promise.resolve() };
  #leakedAt = performance.now();

  constructor({ buckets, iopsSize }: ThrottleLimits) {
    this.#buckets = Object.fromEntries(BUCKETS.map((name) => [name, new Bucket(buckets[name])])) as Record<
      BucketName,
      Bucket
    >;
    this.#iopsSize = iopsSize;
  }

  /** Comes back when the request may begin. With `released` aborted it begins at once. */
  async pass(direction: Direction, bytes: number, released: AbortSignal): Promise<void> {
    const turn = this.#turns[direction];
    const mine = turn.then(() => this.#enter(direction, bytes, released));
    this.#turns[direction] = mine;
    await mine;
  }

  async #enter(direction: Direction, bytes: number, released: AbortSignal): Promise<void> {
    for (;;) {
      this.#leak();
      const seconds = released.aborted ? 0 : Math.max(...this.#of(direction).map((bucket) => bucket.wait()));
      // With no await before it is counted: requests of the other direction look at the same buckets.
      if (seconds === 0) return this.#account(direction, bytes);
      const { setTimeout: sleep } = process.getBuiltinModule("node:timers/promises");
      await sleep(Math.ceil(seconds * 1000), undefined, { signal: released }).catch(() => {});
    }
  }

  #account(direction: Direction, bytes: number): void {
    const requests = this.#iopsSize > 0 ? Math.max(bytes / this.#iopsSize, 1) : 1;
    const { "bps-total": bps, "iops-total": iops } = this.#buckets;
    bps.fill(bytes);
    this.#buckets[`bps-${direction}`].fill(bytes);
    iops.fill(requests);
    this.#buckets[`iops-${direction}`].fill(requests);
  }

  #of(direction: Direction): readonly Bucket[] {
    const { "bps-total": bps, "iops-total": iops } = this.#buckets;
    return [bps, iops, this.#buckets[`bps-${direction}`], this.#buckets[`iops-${direction}`]];
  }

  #leak(): void {
    const now = performance.now();
    for (const name of BUCKETS) this.#buckets[name].leak((now - this.#leakedAt) / 1000);
    this.#leakedAt = now;
  }
}
