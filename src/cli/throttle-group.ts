/** The properties of `--object throttle-group`: x-iops-total=N or limits.iops-total=N and their like.  @qemu throttle_group_obj */

import { BlockError } from "../block/errors.ts";
import { type Options, parseInteger, takeString } from "../block/options.ts";
import {
  BUCKETS,
  type BucketLimits,
  type BucketName,
  checkThrottleLimits,
  ThrottleGroup,
} from "../block/throttle.ts";

/** Takes what it knows out of `properties`. Throws BlockError with qemu's words. */
export function makeThrottleGroup(properties: Options): ThrottleGroup {
  const buckets = {} as Record<BucketName, BucketLimits>;
  for (const name of BUCKETS) {
    buckets[name] = {
      average: takeLimit(properties, name, 0),
      max: takeLimit(properties, `${name}-max`, 0),
      maxLength: takeLimit(properties, `${name}-max-length`, 1),
    };
  }
  const iopsSize = takeLimit(properties, "iops-size", 0);
  const [unknown] = properties.keys();
  if (unknown === "limits")
    throw new BlockError("EINVAL", "Invalid parameter type for 'limits', expected: object");
  if (unknown !== undefined) throw new BlockError("EINVAL", `Parameter '${unknown}' is unexpected`);
  const limits = { buckets, iopsSize };
  checkThrottleLimits(limits);
  return new ThrottleGroup(limits);
}

/** The largest number of seconds that the older spelling takes. */
const MAX_LENGTH = 2 ** 32 - 1;

/** The older spelling of a property goes first. */
function takeLimit(properties: Options, name: string, otherwise: number): number {
  let value = otherwise;
  for (const key of [`limits.${name}`, `x-${name}`]) {
    const text = takeString(properties, key);
    if (text === undefined) continue;
    const number = parseInteger(text);
    if (number === undefined || Math.abs(number) >= 2 ** 63)
      throw new BlockError("EINVAL", `Parameter '${key}' expects integer`);
    if (key.startsWith("x-")) {
      if (number < 0) throw new BlockError("EINVAL", "Property values cannot be negative");
      if (name.endsWith("-max-length") && number > MAX_LENGTH)
        throw new BlockError("EINVAL", `${key} value must be in therange [0, ${MAX_LENGTH}]`);
    }
    value = number;
  }
  return value;
}
