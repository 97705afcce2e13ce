/** The formats that the fuzzer knows; those whose drivers are registered. */

import { findDriver } from "../../../src/index.ts";
import type { FuzzFormat } from "../format.ts";
import { bochs } from "./bochs.ts";
import { cloop } from "./cloop.ts";
import { dmg } from "./dmg.ts";
import { luks } from "./luks.ts";
import { parallels } from "./parallels.ts";
import { qcow } from "./qcow.ts";
import { qcow2 } from "./qcow2.ts";
import { qed } from "./qed.ts";
import { raw } from "./raw.ts";
import { vdi } from "./vdi.ts";
import { vhdx } from "./vhdx.ts";
import { vmdk } from "./vmdk.ts";
import { vpc } from "./vpc.ts";

const known = [qcow2, luks, raw, vmdk, vpc, vhdx, vdi, qcow, qed, parallels, dmg, bochs, cloop];

export const fuzzFormats: readonly FuzzFormat[] = known.filter(({ formatName }) => findDriver(formatName));
