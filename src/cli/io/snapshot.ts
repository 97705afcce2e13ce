/** Writes that are forgotten when the image is closed: a temporary overlay takes them.  @qemu bdrv_append_temp_snapshot */

import { randomBytes } from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { mainContext } from "../../block/aio-context.ts";
import { BlockBackend } from "../../block/backend.ts";
import { BlockError, toBlockError } from "../../block/errors.ts";
import { unrefNode } from "../../block/graph.ts";
import { type OpenRequest, openNode } from "../../block/open.ts";
import { SECTOR_SIZE } from "../../block/units.ts";
import { createImage } from "../../jobs/create.ts";

/** Opens what `request` asks for, read-only, and a new overlay over it that has the flags of the request. */
export async function openSnapshot(request: OpenRequest): Promise<BlockBackend> {
  const { flags, environment } = request;
  const base = await mainContext.run((main) =>
    openNode(main, { ...request, flags: { ...flags, readOnly: true } }),
  );
  let temporary: string | undefined;
  try {
    temporary = await temporaryImage(base.totalSectors * SECTOR_SIZE, request);
    const options = new Map([
      ["driver", "qcow2"],
      ["file.driver", "file"],
      ["file.filename", temporary],
      ["backing", base.nodeName],
    ]);
    // Nobody reads it after a crash.
    return await BlockBackend.open({ options, flags: { ...flags, noFlush: true }, environment });
  } finally {
    // It lives on until it is closed, and no longer, however that happens.
    if (temporary !== undefined) await removeTemporary(temporary);
    await mainContext.run((main) => unrefNode(main, base));
  }
}

async function temporaryImage(size: number, { environment }: OpenRequest): Promise<string> {
  const directory = process.env["TMPDIR"] ?? "/var/tmp";
  const filename = path.join(directory, `vl.${randomBytes(6).toString("hex")}`);
  try {
    fs.closeSync(fs.openSync(filename, "wx", 0o600));
  } catch (error) {
    throw BlockError.wrap(`Could not open temporary file '${filename}'`, toBlockError(error));
  }
  try {
    await createImage({ filename, format: "qcow2", size, environment });
  } catch (error) {
    await removeTemporary(filename);
    throw BlockError.wrap(`Could not create temporary overlay '${filename}'`, error);
  }
  return filename;
}

async function removeTemporary(filename: string): Promise<void> {
  const { remove } = await import("fs-extra/esm");
  await remove(filename);
}
