/** `snapshot`: lists, takes, applies and deletes internal snapshots.  @qemu img_snapshot */

import type { BlockBackend } from "../block/backend.ts";
import type { SnapshotInfo } from "../block/driver.ts";
import { BlockError, errnoNumber, strerror } from "../block/errors.ts";
import { type CliContext, UsageError } from "./command.ts";
import type { Getopt } from "./getopt.ts";
import { snapshotTable } from "./info-text.ts";
import { defineObject } from "./objects.ts";
import { withImage } from "./open-image.ts";

/** The options that say what is to be done, by their names in the table of commands. */
const ACTIONS = ["list", "apply", "create", "delete"] as const;
type Action = (typeof ACTIONS)[number];

interface SnapshotArguments {
  readonly filename: string;
  /** Undefined: the image is only opened. */
  readonly action: Action | undefined;
  /** Which one. */
  readonly snapshot: string;
  readonly imageOpts: boolean;
  readonly forceShare: boolean;
}

export async function run(args: Getopt, context: CliContext): Promise<number> {
  const { action, snapshot, ...wanted } = parse(args, context);
  const request = {
    ...wanted,
    format: undefined,
    flags: { readOnly: action === "list", unmap: true, forceShare: wanted.forceShare },
  };
  await withImage(request, context, async (image) => {
    if (action === "list") await list(image, context);
    else if (action) await actions[action](image, snapshot);
  });
  return 0;
}

function parse(args: Getopt, context: CliContext): SnapshotArguments {
  let action: Action | undefined;
  let snapshot = "";
  let imageOpts = false;
  let forceShare = false;
  for (const { name, value } of args) {
    const asked = ACTIONS.find((each) => each === name);
    if (asked) {
      if (action) throw new UsageError("Cannot mix '-l', '-a', '-c', '-d'");
      action = asked;
      snapshot = value;
    } else if (name === "object") defineObject(value, context);
    else if (name === "image-opts") imageOpts = true;
    else if (name === "force-share") forceShare = true;
  }
  const [filename, ...more] = args.operands;
  if (filename === undefined || more.length > 0) throw new UsageError("Expecting one image file name");
  return { filename, action, snapshot, imageOpts, forceShare };
}

async function list(image: BlockBackend, { stdout }: CliContext): Promise<void> {
  const snapshots = await known(image);
  if (snapshots.length === 0) return;
  stdout.write(`${["Snapshot list:", ...snapshotTable(snapshots)].join("\n")}\n`);
}

/** A format that can't have any has none. */
async function known(image: BlockBackend): Promise<readonly SnapshotInfo[]> {
  try {
    return await image.snapshots.list();
  } catch (error) {
    if (error instanceof BlockError) return [];
    throw error;
  }
}

const actions = {
  async create(image: BlockBackend, name: string): Promise<void> {
    try {
      await image.snapshots.create(name, { icount: 0n });
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      const { errno } = error;
      const reason = `-${errnoNumber(errno)} (${strerror(errno)})`;
      throw new BlockError(errno, `Could not create snapshot '${name}': ${reason}`, { cause: error });
    }
  },

  async apply(image: BlockBackend, idOrName: string): Promise<void> {
    try {
      await image.snapshots.apply(idOrName);
    } catch (error) {
      throw BlockError.wrap(`Could not apply snapshot '${idOrName}'`, error);
    }
  },

  /** By its name only.  @qemu bdrv_snapshot_find */
  async delete(image: BlockBackend, name: string): Promise<void> {
    const prefix = `Could not delete snapshot '${name}'`;
    const found = (await known(image)).find((snapshot) => snapshot.name === name);
    if (!found) throw new BlockError("ENOENT", `${prefix}: snapshot not found`);
    try {
      await image.snapshots.delete({ id: found.id, name });
    } catch (error) {
      throw BlockError.wrap(prefix, error);
    }
  },
};
