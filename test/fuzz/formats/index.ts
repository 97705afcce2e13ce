/** The formats that the fuzzer knows; those whose drivers are registered. */

import { findDriver } from "../../../src/index.ts";
import type { FuzzFormat } from "../format.ts";
import { bochs } from "./bochs.ts";
import { cloop } from "./cloop.ts";
import { luks } from "./luks.ts";
import { parallels } from "./parallels.ts";
import { qcow2 } from "./qcow2.ts";
import { raw } from "./raw.ts";
import { vdi } from "./vdi.ts";
import { vmdk } from "./vmdk.ts";
import { vpc } from "./vpc.ts";

const known = [qcow2, luks, raw, vmdk, vpc, vdi, parallels, bochs, cloop];

export const fuzzFormats: readonly FuzzFormat[] = known.filter(({ formatName }) => findDriver(formatName));
