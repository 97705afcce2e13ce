/** Formats that are known by their first bytes and not read yet. Sources: the formats' own specifications. */

import type { ForeignFormat } from "../src/block/driver.ts";


/** A driver that comes takes its line with it. */
export const foreignFormats: readonly ForeignFormat[] = [
];
