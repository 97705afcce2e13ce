/** The only registry of bdrv's own drivers; probing asks formats in this order. */

import { registerDriver } from "../src/block/driver.ts";
import { compress } from "./filter-compress.ts";
import { file, hostDevice } from "./file.ts";
import { nullCo } from "./null-co.ts";
import { raw } from "./raw.ts";

registerDriver(file);
registerDriver(hostDevice);
registerDriver(nullCo);
registerDriver(compress);
registerDriver(raw);
